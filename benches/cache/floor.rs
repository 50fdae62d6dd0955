//! `floor_hot`: bare code in the faulting thread that keeps a bounded cache of a shared memfd.
//!
//! For each missing page: evict the oldest one by a punch of one page, copy the page in through an alias, CONTINUE. FIFO,
//! no windows, no batches, no statistics, nothing but this one object. The variant `floor_pwrite` copies the page in by
//! pwrite(2), straight from the hot buffer, which no opaque store can: the least that we know of.

use crate::source::Source;
use softfault_benches::area::{Mapping, Memfd, ViewMut};
use softfault_benches::machine::Cpus;
use softfault_benches::trap::{Delivery, Resolve, Trapped, with_resolver};
use softfault_benches::workload::{Load, Memory};
use softfault_benches::{PAGE, Result};
use softfault_platform::sys::file;
use softfault_platform::sys::mem::{self, MADV_DONTNEED, PROT_READ, PROT_WRITE};
use softfault_platform::sys::uffd::{DONTWAKE, Filled};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};

/// States of a page; only who moved it to `BUSY` moves it on.
const ABSENT: u8 = 0;
const BUSY: u8 = 1;
const PRESENT: u8 = 2;

/// An empty place in the queue.
const NONE: u32 = u32::MAX;

/// A cache kept by a bare handler.
#[derive(Debug)]
pub(crate) struct Floor {
    // The registration goes before the pages.
    trapped: Trapped,
    alias: Mapping,
    memfd: Memfd,
    source: Source,
    state: Vec<AtomicU8>,
    marks: Marks,
    /// The cached pages by age: `tail` counts insertions, and an insertion evicts who was in its place.
    queue: Vec<AtomicU32>,
    tail: AtomicUsize,
    writes: AtomicBool,
    shared: AtomicBool,
    fill: Fill,
}

/// How a page comes into the memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// By stores to it.
    Alias,
    /// By pwrite(2) from the source's own memory.
    Pwrite,
}

impl Floor {
    /// Makes a cache of `cache_bytes` over `source`.
    pub(crate) fn new(source: Source, cache_bytes: usize, fill: Fill) -> Result<Self> {
        let len_bytes = source.len_bytes();
        let memfd = Memfd::sparse(len_bytes)?;
        let map = || Mapping::shared(memfd.fd(), len_bytes, PROT_READ | PROT_WRITE);
        Ok(Self {
            trapped: Trapped::new(map()?, Delivery::Sigbus)?,
            alias: map()?,
            memfd,
            state: (0..source.pages()).map(|_| AtomicU8::new(ABSENT)).collect(),
            marks: Marks::new(source.pages()),
            source,
            queue: (0..cache_bytes / PAGE).map(|_| AtomicU32::new(NONE)).collect(),
            tail: AtomicUsize::new(0),
            writes: AtomicBool::new(false),
            shared: AtomicBool::new(false),
            fill,
        })
    }

    /// Runs a load on it.
    pub(crate) fn run(&self, load: &mut Load, threads: usize, accesses: usize, cpus: Cpus) -> Result<f64> {
        self.writes.store(load.writes(), Ordering::Relaxed);
        self.shared.store(threads > 1, Ordering::Relaxed);
        let map = self.trapped.map();
        // SAFETY: the mapping is writable, outlives the view, and is accessed through views only.
        let view = unsafe { ViewMut::new(map.base(), map.len_bytes()) };
        let memory = Marked { view, marks: &self.marks, on: load.writes() };
        with_resolver(self, || load.run(&memory, threads, accesses, cpus))
    }

    /// Evicts whoever is oldest, fills `page` and maps it.
    fn fault(&self, page: usize) -> Option<()> {
        let place = self.queue.get(self.tail.fetch_add(1, Ordering::Relaxed) % self.queue.len().max(1))?;
        // A thread that stood still for a whole pass finds its place taken, or empty: nobody is evicted for it then.
        let oldest = place.swap(NONE, Ordering::Relaxed);
        if oldest != NONE {
            self.evict(oldest as usize)?;
        }
        let (offset, map) = (page * PAGE, self.trapped.map());
        match self.fill {
            // SAFETY: the page is ours (`BUSY`); nobody else looks at its alias.
            Fill::Alias => unsafe { self.source.read(offset, self.alias.base() + offset, PAGE) }.ok()?,
            Fill::Pwrite => {
                // SAFETY: the same page; the source is mapped.
                let n = unsafe { file::pwrite(self.memfd.fd(), self.source.addr(offset), PAGE, offset as u64) };
                (n == Ok(PAGE)).then_some(())?;
            }
        }
        match self.trapped.uffd().cont(map.base() + offset, PAGE, DONTWAKE) {
            Filled::All | Filled::Exists => {}
            _ => return None,
        }
        place.store(u32::try_from(page).ok()?, Ordering::Relaxed);
        Some(())
    }

    fn evict(&self, page: usize) -> Option<()> {
        let state = self.state.get(page)?;
        // Acquire: what the thread that filled the page did is done.
        if state.compare_exchange(PRESENT, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Some(());
        }
        let offset = page * PAGE;
        if self.writes.load(Ordering::Relaxed) {
            if self.shared.load(Ordering::Relaxed) {
                // Another thread may be storing to it: no longer, once it is unmapped.
                // SAFETY: our own shared mapping; the bytes stay in the memfd.
                unsafe { mem::madvise(self.trapped.map().base() + offset, PAGE, MADV_DONTNEED) }.ok()?;
            }
            if self.marks.take(page) {
                // SAFETY: the alias is readable, and the page ours.
                unsafe { self.source.write(offset, self.alias.base() + offset, PAGE) }.ok()?;
            }
        }
        // SAFETY: the page is ours, and its bytes are in the source.
        unsafe { mem::punch_hole(self.memfd.fd(), offset as u64, PAGE as u64) }.ok()?;
        // Release: whoever fills it next finds it punched.
        state.store(ABSENT, Ordering::Release);
        Some(())
    }
}

impl Resolve for Floor {
    fn resolve(&self, addr: usize) -> bool {
        let page = addr.wrapping_sub(self.trapped.map().base()) / PAGE;
        let Some(state) = self.state.get(page) else { return false };
        if state.compare_exchange(ABSENT, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            // The other thread is at it, or has done it: the access looks again.
            return true;
        }
        let done = self.fault(page).is_some();
        // Release: pairs with the eviction's acquire.
        state.store(if done { PRESENT } else { ABSENT }, Ordering::Release);
        done
    }
}

/// Which pages were stored to, as the program that stores says itself: cheaper than any tracking that the kernel has.
#[derive(Debug)]
pub(crate) struct Marks(Vec<AtomicU8>);

impl Marks {
    /// No page was.
    pub(crate) fn new(pages: usize) -> Self {
        Self((0..pages).map(|_| AtomicU8::new(0)).collect())
    }

    /// Returns whether `page` was, and forgets it. The page is unmapped, or protected, already.
    pub(crate) fn take(&self, page: usize) -> bool {
        self.0.get(page).is_some_and(|m| m.swap(0, Ordering::Relaxed) != 0)
    }

    fn set(&self, page: usize) {
        self.0[page].store(1, Ordering::Relaxed);
    }
}

/// A view whose stores are marked.
#[derive(Debug)]
pub(crate) struct Marked<'a> {
    /// The pages.
    pub(crate) view: ViewMut<'a>,
    /// Their marks.
    pub(crate) marks: &'a Marks,
    /// Whether there are stores at all.
    pub(crate) on: bool,
}

impl Memory for Marked<'_> {
    #[inline(always)]
    fn load(&self, page: usize) -> u8 {
        self.view.view().touch(page)
    }

    // Before and after: between the first mark and the store the page may be evicted, its mark taken, and the page be
    // filled again for somebody else; the store lands in the new page, which only the second mark then names. Both are
    // lost only on a thread that stands still for a whole pass of the queue.
    #[inline(always)]
    fn store(&self, page: usize) {
        debug_assert!(self.on);
        self.marks.set(page);
        self.view.store(page);
        self.marks.set(page);
    }

    fn stored(&self, page: usize) -> u8 {
        self.view.stored(page)
    }
}
