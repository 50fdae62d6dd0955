//! `peer_monitor` with a bounded cache: a monitor thread that copies pages in and evicts the oldest.
//!
//! Private anonymous memory, registered for missing pages. For each message: one `MADV_DONTNEED` of the oldest page, one
//! UFFDIO_COPY. A page that was stored to is protected and copied back first. See the fault benchmark's peers for what a
//! monitor's processor means.

use crate::floor::{Marked, Marks};
use crate::source::{self, Source};
use softfault_benches::area::{Mapping, ViewMut};
use softfault_benches::machine::{Cpus, Pinned};
use softfault_benches::monitor::{Fault, Wait, next_fault};
use softfault_benches::workload::Load;
use softfault_benches::{Context, EXTENT, Error, PAGE, Result};
use softfault_platform::sys::mem::{self, MADV_DONTNEED};
use softfault_platform::sys::uffd::{Filled, Uffd, bits};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};

/// A cache kept by a monitor thread, which lives as long as one run.
#[derive(Debug)]
pub(crate) struct Monitored {
    map: Mapping,
    uffd: Uffd,
    source: Source,
    marks: Marks,
    cached: Mutex<Cached>,
    /// A page behind the object, kept for stopping the monitor.
    last: usize,
}

/// The cached pages, by age.
#[derive(Debug)]
struct Cached {
    queue: Vec<Option<usize>>,
    next: usize,
}

impl Monitored {
    /// Makes a cache of `cache_bytes` over `source`.
    pub(crate) fn new(source: Source, cache_bytes: usize) -> Result<Self> {
        let map = Mapping::anonymous(source.len_bytes() + EXTENT)?;
        let uffd = Uffd::open(0, bits::FEATURE_PAGEFAULT_FLAG_WP).context("userfaultfd that may serve the kernel")?;
        let mode = bits::REGISTER_MISSING | bits::REGISTER_WP;
        uffd.register(map.base(), map.len_bytes(), mode).context("UFFDIO_REGISTER")?;
        let (marks, last) = (Marks::new(source.pages()), source.pages());
        let cached = Mutex::new(Cached { queue: vec![None; cache_bytes / PAGE], next: 0 });
        Ok(Self { map, uffd, source, marks, cached, last })
    }

    /// Runs a load on it on `threads` threads, with the monitor on processor `cpu`.
    pub(crate) fn run(
        &self,
        load: &mut Load,
        threads: usize,
        accesses: usize,
        (cpus, cpu): (Cpus, usize),
    ) -> Result<f64> {
        // SAFETY: the mapping is writable, outlives the view, and is accessed through views only.
        let view = unsafe { ViewMut::new(self.map.base(), self.map.len_bytes()) };
        self.drop_page(self.last)?;
        let memory = Marked { view, marks: &self.marks, on: load.writes() };
        let (stop, ready) = (AtomicBool::new(false), Barrier::new(2));
        let writes = load.writes();
        std::thread::scope(|scope| {
            let monitor = scope.spawn(|| {
                let pinned = Pinned::to(cpu);
                ready.wait();
                let end = pinned.and_then(|_pinned| self.serve(writes, &stop));
                if let Err(e) = end {
                    // The measuring threads sleep in faults that nobody else will resolve.
                    eprintln!("monitor: {e}");
                    std::process::exit(1);
                }
            });
            ready.wait();
            let ns = load.run(&memory, threads, accesses, cpus);
            stop.store(true, Ordering::Release);
            // A last fault brings the monitor out of its wait.
            let _wakes_it = view.view().touch(self.last);
            // The closure above ends the process rather than panicking.
            let _ = monitor.join();
            ns
        })
    }

    /// Resolves faults until one arrives after `stop`.
    fn serve(&self, writes: bool, stop: &AtomicBool) -> Result<()> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some(fault) = next_fault(&self.uffd, Wait::Poll)? else { continue };
            let page = fault.page.wrapping_sub(self.map.base()) / PAGE;
            if page == self.last && stop.load(Ordering::Acquire) {
                return self.copy_in(page, 0).map(drop);
            }
            self.resolve(&mut cached, page, fault, writes)?;
        }
    }

    fn resolve(&self, cached: &mut Cached, page: usize, fault: Fault, writes: bool) -> Result<()> {
        if fault.protected {
            // Protected pages are gone before the next message is read: the store looks again.
            self.uffd.wake(fault.page, PAGE);
            return Ok(());
        }
        let place = cached.next;
        if let Some(oldest) = cached.queue[place] {
            self.evict(oldest, writes)?;
            cached.queue[place] = None;
        }
        if self.copy_in(page, page * PAGE)? {
            cached.queue[place] = Some(page);
            cached.next = (place + 1) % cached.queue.len();
        }
        Ok(())
    }

    /// Copies the source's bytes at `from_bytes` into `page`; returns whether it was missing.
    fn copy_in(&self, page: usize, from_bytes: usize) -> Result<bool> {
        let at = self.map.base() + page * PAGE;
        loop {
            match self.uffd.copy(at, self.source.addr(from_bytes), PAGE, 0) {
                Filled::All => return Ok(true),
                Filled::Exists => {
                    // The other thread's fault for the same page was served: who waits looks again.
                    self.uffd.wake(at, PAGE);
                    return Ok(false);
                }
                Filled::Again => {}
                other => return Err(Error::Wrong(format!("UFFDIO_COPY: {other:?}"))),
            }
        }
    }

    fn evict(&self, page: usize, writes: bool) -> Result<()> {
        if writes {
            let at = self.map.base() + page * PAGE;
            self.uffd.writeprotect(at, PAGE, true).context("UFFDIO_WRITEPROTECT")?;
            if self.marks.take(page) {
                // SAFETY: the page is mapped until `drop_page` below, and protected: nobody stores to it.
                let copied = unsafe { self.source.write(page * PAGE, at, PAGE) };
                copied.map_err(|e| source::failed(page, e))?;
            }
        }
        self.drop_page(page)
    }

    fn drop_page(&self, page: usize) -> Result<()> {
        // SAFETY: our own mapping, accessed through views only; what was stored is in the source.
        unsafe { mem::madvise(self.map.base() + page * PAGE, PAGE, MADV_DONTNEED) }.context("madvise")
    }
}
