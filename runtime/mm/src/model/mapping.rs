//! `Mapping`: an object's pages and how they are filled. Linux: `struct address_space`.
//!
//! # Context: handler, unless a function says otherwise

use crate::chunk::ChunkWord;
use crate::cut::Captured;
use crate::failing::{Asked, Failing};
use crate::failures::{FailedOp, Failure};
use crate::folio::{DIRTY, Folio, FolioWord, Wake};
use crate::lru::Entry;
use crate::memcontrol::CacheAccount;
use crate::ops::AddressSpaceOps;
use crate::page::{EXTENT_SHIFT, PAGE_SHIFT, chunk_of, pages_of, pgoff_index};
use crate::readahead::Request;
use crate::streams::Readahead;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::types::FillError;
use crate::vmstat::VmStat;
use crate::xarray::Nodes;
use core::sync::atomic::AtomicBool;

/// The longest fill window.
const FILL_WINDOW_MAX: u32 = 1 << (EXTENT_SHIFT - PAGE_SHIFT);

/// How many entries a thread that fills a page looks at, at most, for a void one.
const FEW_ENTRIES: usize = 256;

/// What happens to an access whose page the store cannot give. Where there is no room for the page it is no store's
/// failure: that is `VM_FAULT_OOM`, a SIGBUS, with every policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// The page is poisoned: touching it raises SIGBUS, reading it by call returns the error; it heals when a later
    /// touch finds the store well.
    #[default]
    Poison,
    /// The page reads as zeros, and stays so.
    Zero,
    /// The process ends, with a line on standard error that names the object and the page.
    Abort,
}

/// Added to `users` by who ends the object: no new work may be begun for it.
pub const DYING: u32 = 1 << 31;

/// An object's pages. Linux: `struct address_space`.
///
/// What is no atomic is set when the object is made, and protected by nothing. The words of tables have their own protocols
/// (`folio`, `chunk`, `xarray`); of each other atomic its field says who writes it.
pub struct Mapping<'g> {
    /// The object's number in the runtime's table.
    pub id: u32,
    /// What people call it: its path, if it is a file.
    pub label: &'g str,
    /// One word a page, over the object's maximal size.
    pub folios: &'g [FolioWord],
    /// One word a chunk.
    pub chunks: &'g [ChunkWord],
    /// Which chunks have anything in their words.
    pub nodes: Nodes<'g>,
    /// The end of the object, in bytes. Whole pages past it are never filled. Written under the object's turn to flush, by who
    /// has its gate.
    pub i_size: AtomicU64,
    /// The store side.
    pub a_ops: &'g dyn AddressSpaceOps,
    /// What happens when the store fails.
    pub policy: FailurePolicy,
    /// `a_ops` may be called in a signal handler.
    pub handler_safe: bool,
    /// `a_ops` may touch arenas, and so fault, while they run.
    pub store_faults: bool,
    /// The object's content is nowhere else (anonymous memory): stores need no tracking.
    pub always_dirty: bool,
    /// Dirty pages have somewhere to go: a store that takes them. If not, they stay.
    pub dirty_goes: bool,
    /// The pages lie in the only mapping there is, private memory, and cannot be unmapped without leaving: `punch` takes
    /// them out whole, finds by itself which were stored to, and writes those. What `punch` leaves `DIRTY` was written.
    pub exclusive: bool,
    /// The flusher writes them when there are many or they are old: they count as dirty. Anonymous memory waits for
    /// reclaim. Set once, when an object that was opened to be read is opened to be written, under the lock of `make_writable`.
    pub is_flushed: AtomicBool,
    /// Writing them waits for a device.
    pub write_blocks: bool,
    /// A private first store may be read past the cache.
    pub staging: bool,
    /// Pages read at once by one thread when one is missing, at most.
    pub fill_window: u32,
    /// Pages of a *block*, which the store reads as a whole: a power of two, at most an extent; 1 for most. Pages of a block
    /// are claimed together where they can be. Linux: `mapping_min_folio_nrpages`.
    pub read_align: u32,
    /// The store gives parts of blocks, too: pages of a block are claimed together because that costs least, and fail alone.
    pub reads_parts: bool,
    /// What is read beyond that, and before anybody asks.
    pub ra: Readahead,
    /// How long a touch waits for a fill, `u64::MAX` for ever.
    pub deadline_ns: u64,
    /// Claims, tellings and reads in flight: the object must not go away while there are any. Counted by whoever has one;
    /// [`DYING`] is set by who ends the object.
    pub users: AtomicU32,
    /// Those of the claims that are for write-back: handed to a filler, or being written by one. Counted by whoever has one.
    pub nr_writers: AtomicU32,
    /// Calls of `map` whose mappings, whole or in pieces, are still there. Counted by the control plane.
    pub nr_maps: AtomicU32,
    /// The cache's limit, and who is reclaimed first.
    pub account: &'g CacheAccount<'g>,
    /// The object's own limit in pages, `u64::MAX` if it has none. Written by the control plane alone.
    pub own_limit: AtomicU64,
    /// Its pages, as far as they are counted for that limit. Counted by whoever charges and uncharges.
    pub nr_own: AtomicU64,
    /// Where reclaim under that limit goes on. Written by whoever sweeps; any value is right.
    pub hand: AtomicU64,
    /// Which of the two `UNSYNCED` bits write-back sets now. Written under the object's turn to flush.
    pub flush_turn: AtomicU32,
    /// A flush is under way: pages that it covers stay in the cache until its outcome is known. Written under the object's
    /// turn to flush.
    pub flushing: AtomicU32,
    /// Reclaim cannot drop pages before the store has flushed: whoever flushes is asked to. Set by reclaim, cleared under the
    /// object's turn to flush.
    pub flush_wanted: AtomicU32,
    /// Whether the store takes what it is given, and how many pages are dirty.
    pub failing: Failing,
    /// The capture that is made of it, if one is.
    pub captured: Captured<'g>,
    /// Where its events are counted.
    pub stat: &'g VmStat,
}

impl core::fmt::Debug for Mapping<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Not the words: there is one a page.
        f.debug_struct("Mapping").field("id", &self.id).field("i_size", &self.i_size).finish_non_exhaustive()
    }
}

impl Mapping<'_> {
    /// Returns the number of pages, the last one perhaps partly used.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        // Acquire pairs with `i_size_write`: who sees the old end may still map; truncate waits for them.
        pages_of(self.i_size.load(Ordering::Acquire))
    }

    /// Counts a user that found the object by its number; `false`: it is being ended.
    ///
    /// The caller is in a section, and so knows only that the object is there until the section ends.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn try_hold(&self) -> bool {
        let mut seen = self.users.load(Ordering::Relaxed);
        while seen & DYING == 0 {
            // Relaxed: the section orders it; who ends the object waits for sections after it has set DYING.
            match self.users.compare_exchange_weak(seen, seen.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Takes `nr` pages from the cache's limit, and from the object's own if it has one; `false`: one would be passed,
    /// nothing changed.
    ///
    /// # Context: handler
    #[must_use]
    pub fn charge(&self, nr: u64) -> bool {
        if !self.counts_own() {
            return self.account.charge(nr);
        }
        let limit = self.own_limit();
        // Counted first and taken back: another fault may be refused for a moment, and tries again.
        if self.nr_own.fetch_add(nr, Ordering::Relaxed).saturating_add(nr) <= limit && self.account.charge(nr) {
            return true;
        }
        self.nr_own.fetch_sub(nr, Ordering::Relaxed);
        false
    }

    /// Gives `nr` pages back.
    ///
    /// # Context: handler
    pub fn uncharge(&self, nr: u64) {
        if self.counts_own() {
            self.nr_own.fetch_sub(nr, Ordering::Relaxed);
        }
        self.account.uncharge(nr);
    }

    /// Keeps a failure of the object, at its page `pgoff`; `address`: the one that was touched, or 0.
    ///
    /// # Context: handler
    pub fn record_failure(&self, op: FailedOp, cause: FillError, pgoff: u64, address: usize, when_ns: u64) {
        let object_offset = pgoff << PAGE_SHIFT;
        let address = address as u64;
        self.stat.record(&Failure { op, cause, label: self.label, object_offset, address, when_ns });
    }

    /// Returns whether who wants room waits for pages that the store reads, however long it takes. Not for one with a deadline, which
    /// may hang, nor for one that touches arenas: the thread that wants room may be the one that is in it.
    /// ```text
    /// a thread in sync, or read_at
    ///   the store's write, or read: has pages in hand
    ///     touches a page that is not cached, and the cache is full: waits for those pages, for ever
    /// ```
    pub(crate) fn is_read_awaited(&self) -> bool {
        self.deadline_ns == u64::MAX && !self.store_faults
    }

    /// Counts pages of the object that its store is to read, if they are waited for.
    pub(crate) fn fill_begins(&self, nr: u64) {
        if self.is_read_awaited() {
            self.account.fill_begins(nr);
        }
    }

    /// Ends what [`Mapping::fill_begins`] has begun, when the pages are no longer `filling`.
    pub(crate) fn fill_ends(&self, nr: u64) {
        if self.is_read_awaited() {
            self.account.fill_ends(nr);
        }
    }

    /// Notes that the store failed. Swap never is a store that fails: nobody tries it again but reclaim, which must go on to.
    ///
    /// # Context: handler
    pub fn note_failure(&self, asked: Asked, error: FillError) {
        if !self.is_flushed() {
            // Dirty pages that nobody flushes leave for want of memory alone.
            self.failing.note(asked, error);
        } else if let Some(stuck) = self.failing.set(asked, error) {
            self.account.nr_failing.fetch_add(1, Ordering::Relaxed);
            self.account.nr_stuck.fetch_add(stuck, Ordering::Relaxed);
        }
    }

    /// Notes that the store did what it was asked.
    ///
    /// # Context: handler
    pub fn note_success(&self, asked: Asked) {
        if let Some(stuck) = self.failing.clear(asked) {
            CacheAccount::take(&self.account.nr_failing, 1);
            CacheAccount::take(&self.account.nr_stuck, stuck);
        }
    }

    /// Returns whether who wants room waits for the store to take what it is given now, however long it takes. Not for one that
    /// fails, be it one that nobody but reclaim gives anything, whose pages are never counted as stuck; nor for one that touches
    /// arenas, see [`Mapping::is_read_awaited`].
    pub(crate) fn is_write_awaited(&self) -> bool {
        !self.failing.is_set() && !self.failing.is_refusing() && !self.store_faults
    }

    /// The same of pages that can go when it has flushed.
    pub(crate) fn is_flush_awaited(&self) -> bool {
        !self.failing.is_set() && !self.store_faults
    }

    /// Returns why a page may not be made dirty now: the store fails, and the object has its share of dirty pages.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn refuses_stores(&self) -> Option<FillError> {
        if !self.failing.is_set() || self.failing.nr_dirty() < self.account.stuck_limit() {
            return None;
        }
        self.failing.cause()
    }

    /// Returns why there is no room for a page of the object, when nothing can leave: what its store says, if it is that.
    ///
    /// # Context: handler
    #[must_use]
    pub fn why_full(&self) -> FillError {
        let fails = self.is_over_own_limit() && self.failing.is_set();
        self.failing.cause().filter(|_| fails).unwrap_or(FillError::CacheFull)
    }

    /// Returns the object's own limit in pages; `u64::MAX`: it has none. While its store fails it has one in any case: its
    /// share of dirty pages, and room to read by.
    ///
    /// # Context: handler
    #[must_use]
    pub fn own_limit(&self) -> u64 {
        let own = self.own_limit.load(Ordering::Relaxed);
        if self.failing.is_set() { own.min(self.failing_limit()) } else { own }
    }

    /// What was dirty when the store began to fail may be more than its share: then there is still room to read by, but less
    /// and less of it, since pages that are mapped for stores are made dirty without a word.
    #[cold]
    fn failing_limit(&self) -> u64 {
        let share = self.account.stuck_limit();
        let stuck = self.account.nr_stuck.load(Ordering::Relaxed);
        let left = self.account.dirty_limit_and(share).saturating_sub(stuck);
        let room = self.failing.nr_dirty().saturating_add(left.min(share / 2));
        room.max(share.saturating_mul(2))
    }

    /// Returns whether the object's pages are counted by themselves: they may be bounded.
    fn counts_own(&self) -> bool {
        // Not whether it is flushed, which begins when the first writer comes: pages are given back as they were counted.
        !self.always_dirty || self.own_limit.load(Ordering::Relaxed) != u64::MAX
    }

    /// Returns whether the object has no room below a limit of its own.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_over_own_limit(&self) -> bool {
        self.nr_own.load(Ordering::Relaxed) >= self.own_limit()
    }

    /// Returns whether the flusher looks after the object.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        // Relaxed: who misses that it was set counts one page too few.
        self.is_flushed.load(Ordering::Relaxed)
    }

    /// Marks a page dirty to which a store was found, and which nobody has pinned for that; `None`: it is not cached, or
    /// leaving, and was found dirty by who makes it leave.
    ///
    /// # Context: handler
    pub fn mark_dirty(&self, word: &FolioWord) -> Option<Folio> {
        // Counted under a pin, where there is one left: who writes the page back meanwhile would count it clean before it was
        // counted dirty, and the number never falls below 0.
        let pinned = word.try_pin(DIRTY);
        let old = pinned.or_else(|_| word.try_dirty()).ok()?;
        self.account_dirtied(u64::from(!old.has(DIRTY)));
        if pinned.is_ok() {
            word.unpin();
        }
        Some(old)
    }

    /// Counts pages that became dirty.
    ///
    /// # Context: handler
    pub fn account_dirtied(&self, nr: u64) {
        if nr > 0 && self.is_flushed() {
            self.account.nr_dirty.fetch_add(nr, Ordering::Relaxed);
            let stuck = self.failing.dirtied(nr);
            if stuck > 0 {
                self.account.nr_stuck.fetch_add(stuck, Ordering::Relaxed);
            }
        }
    }

    /// Counts pages that are dirty no more.
    ///
    /// # Context: handler
    pub fn account_cleaned(&self, nr: u64) {
        if nr == 0 || !self.is_flushed() {
            return;
        }
        // Never below 0: writers wait by these numbers.
        CacheAccount::take(&self.account.nr_dirty, nr);
        let stuck = self.failing.cleaned(nr);
        if stuck > 0 {
            CacheAccount::take(&self.account.nr_stuck, stuck);
        }
    }

    /// Returns whether `punch` may have to call a store that waits, or must not be called in a handler: not inside a section.
    ///
    /// # Context: handler
    #[must_use]
    pub fn punch_waits(&self) -> bool {
        self.exclusive && self.dirty_goes && (!self.handler_safe || self.store_faults || self.write_blocks)
    }

    /// Returns whether a page must not leave the cache before the store has flushed: the store could not give it back, or
    /// nobody knows yet whether it still can.
    /// ```text
    /// flush                                  others
    /// the store fails, and forgets
    ///                                        the page leaves, and is read again: the old bytes
    /// looks for what is cached: writes the old bytes, and says that all is well
    /// ```
    /// Hence a flush first lets everybody know, then waits for the sections in which somebody may not have seen it.
    ///
    /// # Context: handler
    #[must_use]
    pub fn owes_flush(&self, seen: Folio) -> bool {
        // SeqCst pairs with `Settled::new`, which waits for the sections that have not seen it.
        seen.is_unsynced() && (self.flushing.load(Ordering::SeqCst) != 0 || !self.a_ops.rereads_unflushed())
    }

    /// Asks for a flush of the store.
    ///
    /// # Context: handler
    pub fn want_flush(&self) {
        self.flush_wanted.store(1, Ordering::Relaxed);
    }

    /// Returns the word of page `pgoff`.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn folio(&self, pgoff: u64) -> Option<&FolioWord> {
        self.folios.get(pgoff_index(pgoff))
    }

    /// Returns the words of `from..to` that may not be at rest, with their page numbers: those of chunks that have nodes.
    ///
    /// # Context: handler
    pub fn each_folio(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &FolioWord)> {
        let runs = self.nodes.runs(from, to, usize::MAX);
        runs.flat_map(|(from, to)| (from..to).filter_map(|p| self.folio(p).map(|word| (p, word))))
    }

    /// Takes the nodes of chunks away whose words are all at rest. The caller keeps who walks the nodes out.
    ///
    /// # Context: control plane
    pub fn prune(&self) {
        for (from, to) in self.nodes.runs(0, self.folios.len() as u64, 1) {
            if self.chunk(from).is_none_or(|c| c.nr_uptodate() > 0) {
                continue;
            }
            self.nodes.remove(pgoff_index(chunk_of(from)));
            if (from..to).any(|p| self.folio(p).is_some_and(|w| !w.load().is_at_rest())) {
                self.nodes.insert(from);
            }
        }
    }

    /// Returns whether page `pgoff` is in the cache, whole.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_cached(&self, pgoff: u64) -> bool {
        self.folio(pgoff).is_some_and(|w| w.load().is_mappable())
    }

    /// Returns an access of `req` pages at `pgoff`, as readahead knows it.
    ///
    /// # Context: handler
    #[must_use]
    pub fn request(&self, pgoff: u64, req: u32) -> Request {
        Request { index: pgoff, req, sync_max: self.fill_window_pages(), floor: 0, end: self.nr_pages() }
    }

    /// Returns the fill window: a power of two, at most an extent.
    ///
    /// # Context: handler
    #[must_use]
    pub fn fill_window_pages(&self) -> u32 {
        self.fill_window.clamp(1, FILL_WINDOW_MAX).next_power_of_two()
    }

    /// Returns the pages `from..to` with the rest of the blocks in which they lie, as far as the object goes.
    ///
    /// # Context: handler
    #[must_use]
    pub fn whole_blocks(&self, from: u64, to: u64) -> (u64, u64) {
        if self.read_align <= 1 {
            return (from, to);
        }
        let mask = u64::from(self.read_align) - 1;
        let end = to.saturating_add(mask) & !mask;
        (from & !mask, end.min(self.nr_pages()).max(to))
    }

    /// Returns the pages `from..to` with what the store must read with them: it all comes, or none does.
    ///
    /// # Context: handler
    #[must_use]
    pub fn read_together(&self, from: u64, to: u64) -> (u64, u64) {
        if self.reads_parts { (from, to) } else { self.whole_blocks(from, to) }
    }

    /// Returns the word of the chunk that holds page `pgoff`.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn chunk(&self, pgoff: u64) -> Option<&ChunkWord> {
        self.chunks.get(pgoff_index(chunk_of(pgoff)))
    }

    /// evicting -> uptodate, with the flags of `set`: page `pgoff`, whose word is `word`, stays after all. It is entered anew:
    /// who popped its entry meanwhile found that it was leaving, and forgot it. Evictor only; the caller wakes who waits.
    pub(crate) fn stay(&self, word: &FolioWord, pgoff: u64, set: u64, active: bool) -> Wake {
        let (wake, version) = word.evict_undo(set);
        self.enter(Entry::named(self.id, pgoff, version), active);
        wake
    }

    /// Gives a page its place in the queues of reclaim; where they are full, that of one of the same object that has left: a
    /// page that no queue names is never reclaimed.
    pub(crate) fn enter(&self, entry: Entry, active: bool) {
        let lru = &self.account.lru;
        if lru.add(entry, active) {
            return;
        }
        // Every queue has twice the room that cached pages take, and is cleaned when it fills up: one of a few is void.
        for _ in 0..FEW_ENTRIES {
            let Some(old) = lru.small.pop().map(Entry) else { break };
            let stays =
                old.mapping_id() != self.id || self.folio(old.pgoff()).is_some_and(|w| old.is_current(w.load()));
            if stays {
                let _ = lru.add(old, false);
            } else {
                break;
            }
        }
        let _ = lru.add(entry, false);
    }
}
