//! What delivery and mapping cost by themselves, and single-page and windowed minor faults against that.

use crate::subject::{Delivery, Shape, Subject};
use softfault_benches::area::{Mapping, Memfd, shuffled};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::trap::{self, Action, Target, Trapped, with_sigbus};
use softfault_benches::{Error, PAGE, Result, WINDOW_PAGES};
use softfault_platform::sys::mem::PROT_READ;
use softfault_platform::sys::signal::{SIGBUS, mask_bit};
use softfault_platform::sys::uffd::{DONTWAKE, Filled};
use softfault_platform::sys::{signal, thread};
use std::time::Instant;

const ROWS: &[RowSpec] = &[
    RowSpec::floor("syscall_floor").unit("ns/call"),
    RowSpec::floor("signal_floor").unit("ns/fault"),
    RowSpec::floor("continue_1"),
    RowSpec::floor("continue_64"),
    RowSpec::floor("bare_handler"),
    RowSpec::floor("bare_around"),
    // Where a bare handler and the floors part, a goal set on the floors is as good as lost, or given away.
    RowSpec::against("bare_vs_floor", "bare_handler", &["signal_floor", "continue_1"], None),
    RowSpec::against("bare_around_vs_continue", "bare_around", &["continue_64"], None),
    RowSpec::against("minor_single", "minor_single", &["signal_floor", "continue_1"], Some(1.15)),
    RowSpec::against("minor_single_vs_bare", "minor_single", &["bare_handler"], Some(1.25)),
    RowSpec::against("minor_around", "minor_around", &["continue_64"], Some(1.2)),
    RowSpec::against("minor_around_vs_bare", "minor_around", &["bare_around"], Some(1.2)),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(128, 16);
    let memfd = Memfd::filled(len_bytes)?;
    let trapped = Trapped::new(Mapping::shared(memfd.fd(), len_bytes, PROT_READ)?, trap::Delivery::Sigbus)?;
    let order = shuffled(len_bytes / PAGE);

    let subject = Subject::start(Delivery::InThread)?;
    let arena = |fault_around| {
        let shape = Shape { len_bytes, fault_around, ..Shape::TRAPPED };
        subject.as_ref().map(|s| s.arena_cached(&session.options.dir, shape)).transpose()
    };
    let (single, around) = (arena(false)?, arena(true)?);

    let mut series = vec![
        Series::new("syscall_floor", || Ok(syscall(order.len()))),
        Series::new("signal_floor", || signal_floor(&trapped, order.len())),
        Series::new("continue_1", || continues(&trapped, 1, &order)),
        Series::new("continue_64", || continues(&trapped, WINDOW_PAGES, &order)),
        Series::new("bare_handler", || bare(&trapped, 1, &order)),
        Series::new("bare_around", || bare(&trapped, WINDOW_PAGES, &order)),
    ];
    if let Some(a) = &single {
        series.push(Series::new("minor_single", || a.first_touch(&order)));
    }
    if let Some(a) = &around {
        series.push(Series::new("minor_around", || a.first_touch(&order)));
    }
    session.measure(&rows, series)
}

/// Times the cheapest system call that cannot be answered without entering the kernel.
fn syscall(count: usize) -> f64 {
    let start = Instant::now();
    let sum: usize = (0..count).map(|_| thread::gettid() as usize).sum();
    let ns = start.elapsed().as_nanos() as f64 / count as f64;
    std::hint::black_box(sum);
    ns
}

/// Times faults whose handler does nothing but step over the load.
fn signal_floor(trapped: &Trapped, count: usize) -> Result<f64> {
    // A blocked SIGBUS would kill us here rather than measure anything.
    debug_assert_eq!(signal::block(0) & mask_bit(SIGBUS), 0);
    trapped.map().zap()?;
    let target = Target { action: Action::Skip, ..trapped.continuing(1) };
    with_sigbus(&target, || {
        let view = trapped.map().view();
        let start = Instant::now();
        for _ in 0..count {
            let _unspecified = view.touch(0);
        }
        Ok(start.elapsed().as_nanos() as f64 / count as f64)
    })
}

/// Times CONTINUE of `window_pages` pages a call, without any fault, and returns nanoseconds a page.
fn continues(trapped: &Trapped, window_pages: usize, order: &[u32]) -> Result<f64> {
    let windows = windows(order, window_pages);
    trapped.map().zap()?;
    let (base, len_bytes) = (trapped.map().base(), window_pages * PAGE);
    let start = Instant::now();
    for w in &windows {
        let filled = trapped.uffd().cont(base + w * len_bytes, len_bytes, DONTWAKE);
        if filled != Filled::All {
            return Err(Error::Wrong(format!("CONTINUE of cached pages: {filled:?}")));
        }
    }
    Ok(start.elapsed().as_nanos() as f64 / (windows.len() * window_pages) as f64)
}

/// The windows of the pages in `order`, each once, in the order of their first pages.
fn windows(order: &[u32], window_pages: usize) -> Vec<usize> {
    let firsts = order.iter().map(|&p| p as usize).filter(|p| p.is_multiple_of(window_pages));
    firsts.map(|p| p / window_pages).collect()
}

/// Times first touches whose bare handler CONTINUEs `window_pages` pages.
pub(crate) fn bare(trapped: &Trapped, window_pages: usize, order: &[u32]) -> Result<f64> {
    trapped.map().zap()?;
    with_sigbus(&trapped.continuing(window_pages), || trapped.map().view().time_touches(order))
}
