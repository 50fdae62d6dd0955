//! The usual way to resolve a userfaultfd fault: a monitor thread that reads one message and answers it.
//!
//! The monitor is written as handlers on the crate `userfaultfd` are: poll, read one 32-byte message, one ioctl. The
//! calls are raw, which is a little kinder to it than the crate would be; with the feature `peers` they are the
//! crate's (it needs libclang to build). It is pinned, because unpinned the scheduler
//! may put it beside the faulting thread or on top of it.
//!
//! Pinned to another processor of a virtual machine it still has two speeds, a factor of 2 to 3 apart: two idle
//! processors are woken for each fault, and what that costs is the host's mood. Read `peer_monitor` with its range.

use crate::floors;
use crate::subject::{Delivery, Shape, Subject};
use softfault_benches::area::{Mapping, Memfd, shuffled};
use softfault_benches::machine::Pinned;
use softfault_benches::monitor::Wait;
#[cfg(feature = "peers")]
use softfault_benches::monitor::wait_for;
#[cfg(not(feature = "peers"))]
use softfault_benches::monitor::{Fault, next_fault};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::trap::{self, Trapped};
use softfault_benches::{Context, PAGE, Result};
#[cfg(feature = "peers")]
use softfault_platform::sys::file;
use softfault_platform::sys::mem::PROT_READ;
#[cfg(not(feature = "peers"))]
use softfault_platform::sys::uffd::Filled;
use softfault_platform::sys::uffd::Uffd;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

const ROWS: &[RowSpec] = &[
    RowSpec::floor("peer_monitor"),
    RowSpec::floor("peer_monitor_same_cpu"),
    RowSpec::floor("peer_monitor_spin"),
    RowSpec::against("bare_vs_monitor", "bare_handler", &["peer_monitor"], None),
    RowSpec::against("minor_single_vs_monitor", "minor_single", &["peer_monitor"], Some(0.125)),
    RowSpec::against("minor_single_vs_monitor_same_cpu", "minor_single", &["peer_monitor_same_cpu"], Some(1.0)),
    RowSpec::against("minor_single_vs_monitor_spin", "minor_single", &["peer_monitor_spin"], Some(1.0)),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    // Small: one fault takes a monitor on another processor as long as 20 take a handler.
    let len_bytes = session.options.size_bytes(16, 2);
    let memfd = Memfd::filled(len_bytes)?;
    let map = || Mapping::shared(memfd.fd(), len_bytes, PROT_READ);
    let watched = Trapped::new(map()?, trap::Delivery::Message)?;
    let trapped = Trapped::new(map()?, trap::Delivery::Sigbus)?;
    // The last page is kept for stopping the monitor.
    let order: Vec<u32> = shuffled(len_bytes / PAGE - 1);

    let subject = Subject::start(Delivery::InThread)?;
    let shape = Shape { len_bytes, ..Shape::TRAPPED };
    let single = subject.as_ref().map(|s| s.arena_cached(&session.options.dir, shape)).transpose()?;

    let cpus = session.cpus;
    let mut series = vec![
        Series::new("peer_monitor_same_cpu", || monitored(&watched, &order, cpus.measuring, Wait::Poll)),
        Series::new("bare_handler", || floors::bare(&trapped, 1, &order)),
    ];
    if let Some(other) = cpus.other {
        let (watched, order) = (&watched, &order);
        series.push(Series::new("peer_monitor", move || monitored(watched, order, other, Wait::Poll)));
        series.push(Series::new("peer_monitor_spin", move || monitored(watched, order, other, Wait::Spin)));
    }
    if let Some(a) = &single {
        series.push(Series::new("minor_single", || a.first_touch(&order)));
    }
    session.measure(&rows, series)
}

/// Times first touches that a monitor on processor `cpu` resolves.
fn monitored(watched: &Trapped, order: &[u32], cpu: usize, wait: Wait) -> Result<f64> {
    watched.map().zap()?;
    let view = watched.map().view();
    let (stop, ready) = (AtomicBool::new(false), Barrier::new(2));
    std::thread::scope(|scope| {
        let monitor = scope.spawn(|| {
            let pinned = Pinned::to(cpu);
            ready.wait();
            let end = pinned.and_then(|_pinned| monitor(watched.uffd(), wait, &stop));
            if let Err(e) = end {
                // The measuring thread sleeps in a fault that nobody else will resolve.
                eprintln!("monitor: {e}");
                std::process::exit(1);
            }
        });
        ready.wait();
        let ns = view.time_touches(order);
        stop.store(true, Ordering::Release);
        // A last fault brings the monitor out of its wait, so that it needs neither timeout nor a second descriptor.
        let _wakes_it = view.touch(view.pages() - 1);
        // The closure above ends the process rather than panicking.
        let _ = monitor.join();
        ns
    })
}

/// Resolves faults until one arrives after `stop`, as a program on the crate `userfaultfd` does.
#[cfg(feature = "peers")]
fn monitor(uffd: &Uffd, wait: Wait, stop: &AtomicBool) -> Result<()> {
    use std::os::fd::FromRawFd;
    let wrong = |e: userfaultfd::Error| softfault_benches::Error::Wrong(format!("the crate userfaultfd: {e}"));
    let fd = file::dup_cloexec(uffd.fd()).context("dup")?;
    // SAFETY: a fresh duplicate of a userfaultfd, which nobody else owns; its descriptor shares the context.
    let peer = unsafe { userfaultfd::Uffd::from_raw_fd(fd) };
    loop {
        wait_for(uffd, wait)?;
        let Some(userfaultfd::Event::Pagefault { addr, .. }) = peer.read_event().map_err(wrong)? else { continue };
        let page = (addr as usize & !(PAGE - 1)) as *mut std::ffi::c_void;
        let stopping = stop.load(Ordering::Acquire);
        if peer.r#continue(page, PAGE, true).is_err() {
            // Mapped already: who waits looks again.
            peer.wake(page, PAGE).map_err(wrong)?;
        }
        if stopping {
            return Ok(());
        }
    }
}

/// Resolves faults until one arrives after `stop`.
#[cfg(not(feature = "peers"))]
fn monitor(uffd: &Uffd, wait: Wait, stop: &AtomicBool) -> Result<()> {
    loop {
        let Some(Fault { page, .. }) = next_fault(uffd, wait)? else { continue };
        let stopping = stop.load(Ordering::Acquire);
        match uffd.cont(page, PAGE, 0) {
            Filled::All => {}
            Filled::Exists => uffd.wake(page, PAGE),
            Filled::Err(errno) => return Err(errno).context("UFFDIO_CONTINUE"),
            other => return Err(softfault_benches::Error::Wrong(format!("UFFDIO_CONTINUE: {other:?}"))),
        }
        if stopping {
            return Ok(());
        }
    }
}
