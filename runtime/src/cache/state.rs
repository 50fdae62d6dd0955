//! The state of a runtime: the account of its cache, its threads, and where its objects lie.
//!
//! # Context: control plane

#[cfg(feature = "userfaultfd")]
use super::frames::FramePool;
use super::khugepaged::Khugepaged;
use super::kswapd::Kswapd;
use super::space::{REGION_SHIFTS, Space};
use super::swap::Swap;
use crate::delivery::Findings;
use crate::error::{Error, Result, system};
use crate::lease::{Lease, Table};
use crate::memory;
use crate::process::audit::Warnings;
use crate::process::mlock;
use crate::process::registry::Entered;
use crate::writeback::exit::LastWriter;
use crate::writeback::flusher::{Ending, Flusher, Writables};
use crate::writeback::state::Flushing;
use softfault_mm::lru::Lruvec;
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::page::EXTENT_SIZE;
use softfault_mm::sync::{AtomicU64, Ordering};
use softfault_mm::vmstat::VmStat;
use softfault_platform::sys::futex;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What one runtime owns. Handlers see of it the account and the counters, which every mapping names.
pub(crate) struct RuntimeInner {
    // Dropped in this order: the threads, what they borrow, and what that borrows.
    /// The thread that makes huge pages. Protected by a lock of its own, which is taken under no other.
    pub(crate) khugepaged: Khugepaged,
    /// Taken by drop alone, as the three below.
    pub(super) flusher: Option<Flusher>,
    pub(super) last_writer: Option<LastWriter>,
    pub(super) kswapd: Option<Kswapd>,
    pub(super) entered: Option<Entered>,
    /// Lent to every mapping, to handlers and to threads. Protected by nothing: atomics.
    pub(crate) account: Lease<CacheAccount<'static>>,
    /// What the account's queues borrow. Opened under `growing`, and never closed.
    pub(super) queues: [Table<AtomicU64>; 3],
    /// The counters. Protected by nothing: atomics, which stay when the runtime has gone.
    pub(crate) stat: &'static VmStat,
    /// Callers that could not take our signals. Protected by a lock of its own, a leaf.
    pub(crate) warnings: Warnings,
    /// Who has it opens more of the queues. A leaf.
    pub(super) growing: Mutex<()>,
    /// Objects that may have dirty pages. Protected by a lock of its own, a leaf under which nobody allocates.
    pub(super) writables: Arc<Writables>,
    /// Set when it is made, as the next ones are that name no protection.
    pub(super) dirty_percent: u64,
    /// Each is found out once.
    pub(crate) findings: Findings,
    pub(crate) fill_window_pages: u32,
    /// Where anonymous memory goes; `None`: it stays.
    pub(crate) swap: Option<Swap>,
    pub(crate) readahead_pages: Option<u32>,
    /// What is cached is locked in memory.
    pub(crate) lock_cache: bool,
    /// Bytes of the arenas' tables. Protected by nothing: a statistic.
    pub(crate) arena_table_bytes: AtomicU64,
    /// Where objects lie. Taken before the lock of a space; statistics only try it.
    pub(super) regions: Mutex<Vec<Arc<Space>>>,
    /// The frames of exclusive objects. Taken under no other lock, but for the registry's, which is taken and given back before.
    #[cfg(feature = "userfaultfd")]
    pub(crate) frames: FramePool,
    /// The process that made it: a forked child has nothing of it.
    pub(super) pid: u32,
}

impl std::fmt::Debug for RuntimeInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The tables are left out: they have a word for each page, and what they are of may be a terabyte.
        f.debug_struct("Runtime")
            .field("cached_pages", &self.account.nr_pages)
            .field("limit_pages", &self.account.limit_pages)
            .finish_non_exhaustive()
    }
}

impl RuntimeInner {
    /// Says that an object has ended, and is being written back for the last time until the value is dropped.
    pub(crate) fn ending(&self, flushing: &Flushing) -> Ending {
        Ending::begin(&self.writables, flushing)
    }
    /// Changes the cache's limit, in pages; not, if there is no memory for the queues that it needs.
    pub(crate) fn set_limit(&self, pages: u64) {
        let account = &self.account;
        {
            // Two at a time would open one queue's memory twice.
            let _alone = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
            let len = Lruvec::len_for(pages) as usize;
            if self.queues.iter().any(|q| q.open_to(len).is_err()) {
                return;
            }
            account.lru.grow(pages);
        }
        // SeqCst pairs with `doze`: kswapd finds the new limit in its last look, or we find it idle and ring.
        account.limit_pages.store(pages, Ordering::SeqCst);
        let dirty = pages.saturating_mul(self.dirty_percent) / 100;
        account.dirty_limit.store(dirty, Ordering::Relaxed);
        if account.wants_kswapd() {
            futex::wake_all(account.bell_addr());
        }
    }

    /// Finds `len_bytes` (a multiple of 2 MiB) of cache, in a region that exists or a new one.
    pub(crate) fn allocate(&self, len_bytes: usize) -> Result<(Arc<Space>, u64)> {
        let (space, offset) = self.take(len_bytes)?;
        if self.lock_cache
            && let Err(refusal) = mlock::lock_for_good(space.region.alias_at(offset), len_bytes)
        {
            space.put(offset, len_bytes);
            return Err(refusal.into_error("object"));
        }
        Ok((space, offset))
    }

    fn take(&self, len_bytes: usize) -> Result<(Arc<Space>, u64)> {
        let chunks = len_bytes / EXTENT_SIZE;
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        for space in regions.iter() {
            if let Some(at) = space.take(chunks) {
                let at = at.map_err(system("object", "mprotect"))?;
                return Ok((Arc::clone(space), (at * EXTENT_SIZE) as u64));
            }
        }
        let space = Arc::new(Space::new(len_bytes)?);
        regions.push(Arc::clone(&space));
        let at = space.take(chunks).ok_or(Error::Exhausted { op: "object", what: "cache address space" })?;
        let at = at.map_err(system("object", "mprotect"))?;
        Ok((space, (at * EXTENT_SIZE) as u64))
    }

    /// Returns how many bytes an object gets that does not know how long it will be.
    pub(crate) fn room_to_grow(&self) -> u64 {
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = regions.iter().map(|space| space.region.len_bytes()).max();
        let longest = longest.unwrap_or_else(|| memory::address_space_share(8));
        (longest as u64 / 16).min(1 << (REGION_SHIFTS.end() - 4))
    }

    /// Has everything written that was stored before the call; `false`: it was not in time.
    pub(crate) fn write_back(&self, timeout: Duration) -> bool {
        self.last_writer.as_ref().is_some_and(|w| w.write_back(timeout))
    }

    /// Has the flusher look after an object.
    pub(crate) fn add_writable(&self, flushing: &Arc<Flushing>) {
        self.writables.add(Arc::clone(flushing));
    }

    /// Returns the bytes of address space and of memory, at most, that the queues of reclaim take.
    pub(crate) fn queue_bytes(&self) -> u64 {
        self.queues.iter().map(|q| q.lend().len() as u64 * 8).sum()
    }

    /// Returns the bytes of memory that those take.
    pub(crate) fn queue_bytes_resident(&self) -> u64 {
        self.queues.iter().map(Table::resident_bytes).sum()
    }

    /// Returns the bytes of memory that the words of pages and chunks take; 0 while an object is being made.
    pub(crate) fn folio_table_bytes(&self) -> u64 {
        let resident =
            |s: &Arc<Space>| s.free.try_lock().map_or(0, |free| s.region.table_bytes_resident(free.tail * EXTENT_SIZE));
        self.regions.try_lock().map_or(0, |regions| regions.iter().map(resident).sum())
    }

    /// Returns the bytes of memory that the cache's memfds occupy. Statistics wait for nobody: 0 while an object is
    /// being made.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.regions.try_lock().map_or(0, |regions| regions.iter().map(|s| s.region.allocated_bytes()).sum())
    }

    /// Returns how many memfds the cache has.
    pub(crate) fn nr_regions(&self) -> usize {
        self.regions.try_lock().map_or(0, |regions| regions.len())
    }
}
