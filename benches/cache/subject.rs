//! The side that is measured: the only file here that names softfault.
//!
//! What the runtime does not have yet is asked for in one function each, which says so; the rows are then skipped with
//! that reason.

use crate::source::Source;
use softfault::{Access, HandlerStore, Object, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError};
use softfault_benches::area::{View, ViewMut, check_sum, page_byte, shuffled};
use softfault_benches::machine::Cpus;
use softfault_benches::workload::{Load, Workload};
use softfault_benches::{Error, MIB, PAGE, Result};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A runtime with a bounded cache.
#[derive(Debug)]
pub(crate) struct Subject {
    runtime: Runtime,
}

/// A mapped object.
#[derive(Debug)]
pub(crate) struct Arena {
    arena: softfault::Arena,
    object: Object,
    len_bytes: usize,
}

/// Private mappings of one object.
#[derive(Debug)]
pub(crate) struct Clones {
    arena: softfault::Arena,
    len_bytes: usize,
}

/// Returns the processor time that the background reclaimers of this process have used.
fn reclaimer_ns() -> Result<u64> {
    let absent = || Error::Absent("the kernel does not tell a thread's processor time".to_owned());
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task").map_err(|_| absent())?.flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if read("comm").trim() == "softfault-swap" {
            let ns = read("schedstat").split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
            sum += ns.ok_or_else(absent)?;
        }
    }
    Ok(sum)
}

fn wrong(error: softfault::Error) -> Error {
    Error::Wrong(error.to_string())
}

impl Subject {
    /// Starts a runtime, unpinned, whose cache is bounded to `limit_bytes`; [`Error::Absent`] where it does not reclaim.
    pub(crate) fn start(limit_bytes: usize) -> Result<Self> {
        reclaims()?;
        Self::bounded(limit_bytes as u64)
    }

    /// Starts a runtime without a bound.
    pub(crate) fn unbounded() -> Result<Self> {
        Self::bounded(u64::MAX)
    }

    fn bounded(limit_bytes: u64) -> Result<Self> {
        // What a user can say about random access before there is advice: pages one by one.
        let runtime = Runtime::builder().cache_limit(limit_bytes).fill_window_pages(1).build().map_err(wrong)?;
        Ok(Self { runtime })
    }

    /// Maps an object over the opaque store `source`, none of it cached, as fits `workload`.
    pub(crate) fn shared(&self, source: &Arc<Source>, workload: Workload) -> Result<Arena> {
        let len_bytes = source.len_bytes();
        let object = self.runtime.object(len_bytes as u64).writable(workload.writes());
        let object = object.fill_window_pages(window(workload));
        let object = object.handler_store(Box::new(HotStore(Arc::clone(source)))).map_err(wrong)?;
        self.map(object, len_bytes, workload, Sharing::Shared)
    }

    /// Maps an exclusive object over the opaque store `source`, none of it cached.
    pub(crate) fn exclusive(&self, source: &Arc<Source>, workload: Workload) -> Result<Arena> {
        let len_bytes = source.len_bytes();
        let object = self.runtime.object(len_bytes as u64).exclusive(true).writable(workload.writes());
        let object = object.fill_window_pages(window(workload));
        let object = object.handler_store(Box::new(HotStore(Arc::clone(source)))).map_err(wrong)?;
        self.map(object, len_bytes, workload, Sharing::Private)
    }

    /// Maps a file that is larger than the memory, past the kernel's page cache, which the memory group is charged for too.
    ///
    /// The kind of object is what a user would choose: exclusive where one mapping goes over the bytes, since frames that are
    /// moved are neither allocated nor freed; shared where some pages are used again and again, since only the order of
    /// shared ones knows which.
    pub(crate) fn file(&self, path: &Path, len_bytes: usize, workload: Workload) -> Result<Arena> {
        let exclusive = workload != Workload::ZipfRead;
        let options = self.runtime.file_options().direct(true).writable(workload.writes());
        let window = window(workload);
        let options = options.with(move |b| {
            let b = b.fill_window_pages(window);
            if exclusive { b.exclusive(true) } else { b }
        });
        let object = options.open(path).map_err(wrong)?;
        self.map(object, len_bytes, workload, if exclusive { Sharing::Private } else { Sharing::Shared })
    }

    /// Opens a file to which stores are written back.
    fn open_rw(&self, path: &Path) -> Result<Object> {
        self.runtime.open_file_rw(path).map_err(wrong)
    }

    /// Maps a file that is written back, for [`Arena::sync_all`].
    pub(crate) fn writable_file(&self, path: &Path, len_bytes: usize) -> Result<Arena> {
        self.map(self.open_rw(path)?, len_bytes, Workload::RandRw, Sharing::Shared)
    }

    /// Maps a file of which every whole 2 MiB are cached as a huge page; [`Error::Absent`] where the kernel refuses them.
    pub(crate) fn huge(&self, path: &Path, len_bytes: usize) -> Result<Arena> {
        let options = self.runtime.file_options().with(|b| b.huge_pages(true).fill_window_pages(512));
        let object = options.open(path).map_err(wrong)?;
        let len = len_bytes as u64;
        object.populate(0..len).map_err(wrong)?;
        let (huge, chunks) = (object.collapse(0..len).map_err(wrong)?, len / (2 * MIB as u64));
        if huge < chunks {
            return Err(Error::Absent(format!("the kernel made {huge} of {chunks} chunks huge pages")));
        }
        self.map(object, len_bytes, Workload::SeqRead, Sharing::Shared)
    }

    /// Maps an object whose store makes the pattern up, for counting what the runtime itself takes.
    pub(crate) fn patterned(&self, len_bytes: usize) -> Result<Arena> {
        let object = self.runtime.object(len_bytes as u64).fill_window_pages(64);
        let object = object.handler_store(Box::new(PatternStore)).map_err(wrong)?;
        self.map(object, len_bytes, Workload::SeqRead, Sharing::Shared)
    }

    /// Maps an object privately, `nr` times, page by page.
    pub(crate) fn clones(&self, len_bytes: usize, nr: usize) -> Result<Clones> {
        let object = self.runtime.object(len_bytes as u64).fill_window_pages(1);
        let object = object.handler_store(Box::new(PatternStore)).map_err(wrong)?;
        // Extents stay trapped: taking native ones back is another cost.
        let arena = self.runtime.arena(len_bytes * nr).native_extents(false).build().map_err(wrong)?;
        for i in 0..nr {
            arena.map(i * len_bytes, &object, 0, len_bytes, Prot::Read, Sharing::Private).map_err(wrong)?;
        }
        Ok(Clones { arena, len_bytes })
    }

    /// Caches and maps every page of `clones` everywhere, lowers the limit so that about `nr_pages` go, and returns the
    /// nanoseconds of processor time that each of them took the background reclaimer.
    pub(crate) fn reclaim(&self, clones: &Clones, nr_pages: usize) -> Result<f64> {
        // SAFETY: the first mapping, which stays until `clones` is dropped.
        let view = unsafe { View::new(clones.arena.as_ptr() as usize, clones.len_bytes) };
        // Neighbours come far apart, as in a cache of any age.
        let order = shuffled(clones.len_bytes / PAGE);
        check_sum(view.sum(&order), &order)?;
        clones.arena.fault_in(0..clones.arena.len(), Access::Read).map_err(wrong)?;
        let of = |name| self.runtime.stats()[name];
        let (before, cached) = (of("pgsteal"), of("nr_cached_pages"));
        let limit = cached.saturating_sub(nr_pages as u64);
        let start = reclaimer_ns()?;
        self.runtime.set_cache_limit(limit * PAGE as u64);
        while of("nr_cached_pages") > limit {
            std::thread::sleep(Duration::from_micros(50));
        }
        // It may go on to its watermark: what it is doing counts from now on for the next run.
        let (ns, stolen) = (reclaimer_ns()? - start, of("pgsteal") - before);
        self.runtime.set_cache_limit(u64::MAX);
        Ok(ns as f64 / stolen as f64)
    }

    fn map(&self, object: Object, len_bytes: usize, workload: Workload, sharing: Sharing) -> Result<Arena> {
        let arena = self.runtime.arena(len_bytes).fault_around(workload == Workload::SeqRead);
        let arena = arena.build().map_err(wrong)?;
        let prot = if workload.writes() { Prot::ReadWrite } else { Prot::Read };
        arena.map(0, &object, 0, len_bytes, prot, sharing).map_err(wrong)?;
        Ok(Arena { arena, object, len_bytes })
    }

    /// Returns the counters that say how the cache did, for a remark.
    pub(crate) fn remark(&self) -> String {
        let s = self.runtime.stats();
        let of = |name| s[name];
        format!("{} faults, {} of them major, {} pages cached", of("pgfault"), of("pgmajfault"), of("nr_cached_pages"))
    }
}

/// How many pages a miss reads at most, which the on-demand window will decide by itself.
fn window(workload: Workload) -> u32 {
    if workload == Workload::SeqRead { 64 } else { 1 }
}

/// Asks the runtime whether it reclaims: reads through a cache smaller than the object, by calls, which fail where a
/// touch would raise SIGBUS.
fn reclaims() -> Result<()> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        let subject = Subject::bounded(2 * MIB as u64)?;
        let arena = subject.patterned(16 * MIB)?;
        let mut page = [0; PAGE];
        // Far apart first: a runtime that keeps whole extents shows it.
        (0..16).try_for_each(|i| arena.arena.read_at(i * MIB, &mut page).map_err(wrong))?;
        (0..16 * MIB / PAGE).try_for_each(|i| arena.arena.read_at(i * PAGE, &mut page).map_err(wrong))
    };
    match ANSWER.get_or_init(|| ask().err().map(|e| e.to_string())) {
        None => Ok(()),
        Some(e) => Err(Error::Absent(format!("the runtime does not reclaim: {e}"))),
    }
}

impl Arena {
    /// Runs a load on it.
    pub(crate) fn run(&self, load: &mut Load, threads: usize, accesses: usize, cpus: Cpus) -> Result<f64> {
        load.run(&self.view(), threads, accesses, cpus)
    }

    /// Returns the arena's memory.
    pub(crate) fn view(&self) -> ViewMut<'_> {
        // SAFETY: the whole arena stays mapped until `self` is dropped, writable where the workload stores, and is
        // accessed through views only.
        unsafe { ViewMut::new(self.arena.as_ptr() as usize, self.len_bytes) }
    }

    /// Caches and maps every page.
    pub(crate) fn fault_in(&self) -> Result<()> {
        self.arena.fault_in(0..self.len_bytes, Access::Read).map_err(wrong)
    }

    /// Drops every page-table entry; the pages stay cached.
    pub(crate) fn zap(&self) -> Result<()> {
        self.arena.zap(0..self.len_bytes).map_err(wrong)
    }

    /// Hands every extent to the kernel.
    pub(crate) fn promote(&self) -> Result<()> {
        self.arena.promote(0..self.arena.len()).map_err(wrong).map(drop)
    }

    /// Makes every store durable.
    pub(crate) fn sync_all(&self) -> Result<()> {
        self.object.sync_all().map_err(wrong)
    }
}

/// A position as an offset in memory; past any memory when it does not fit.
fn at(pos_bytes: u64) -> usize {
    usize::try_from(pos_bytes).unwrap_or(usize::MAX)
}

/// The hot source as a user's own store: the runtime sees a trait object.
#[derive(Debug)]
struct HotStore(Arc<Source>);

impl Store for HotStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> std::result::Result<(), StoreError> {
        let (dst, len) = (page.as_mut_ptr() as usize, page.len_bytes());
        // SAFETY: `page` lends `len` exclusive writable bytes at `dst`.
        unsafe { self.0.read(at(pos_bytes), dst, len) }.map_err(StoreError::Io)
    }

    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> std::result::Result<(), StoreError> {
        // SAFETY: `pages` lends its bytes; the runtime transfers a page to or from a store one at a time.
        unsafe { self.0.write(at(pos_bytes), pages.as_ptr() as usize, pages.len_bytes()) }.map_err(StoreError::Io)
    }
}

// SAFETY: copies between mapped pages that are not arenas, or raw system calls.
unsafe impl HandlerStore for HotStore {}

/// A store without any bytes of its own.
#[derive(Debug)]
struct PatternStore;

impl Store for PatternStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> std::result::Result<(), StoreError> {
        for (i, page) in page.as_mut_slice().chunks_mut(PAGE).enumerate() {
            page.fill(page_byte(at(pos_bytes) / PAGE + i));
        }
        Ok(())
    }
}

// SAFETY: arithmetic and stores to the bytes it is lent.
unsafe impl HandlerStore for PatternStore {}
