//! The word of one chunk, 2 MiB of an object: what counts over all its pages at once.
//!
//! ```text
//!  63 51 50 49 48 47      32 31      16 15       0
//! +-----+--+--+--+----------+----------+----------+
//! |  0  |S |C |H | uptodate | evicting |  native  |
//! +-----+--+--+--+----------+----------+----------+
//!   S seen complete  C collapsing  H huge (see `khugepaged`)
//! ```
//! The word is the exclusion between promotion, which hands an extent over the chunk to the kernel, and eviction. Without
//! it (7 million zero reads in 10 s):
//! ```text
//! promoter                         evictor
//! reads 512 words: all uptodate
//!                                  page -> evicting; extent native? no
//! UNREGISTER; native
//!                                  punch
//! a thread reads the hole: the kernel fills it with zeros, unasked
//! ```
//! Promote: CAS native+1 where evicting = 0, *then* read the words. Evict: CAS evicting+1 where native = 0, else
//! demote every extent over the chunk first. (tests/loom_extent.rs)
//!
//! # Context: handler

use crate::sync::{AtomicU64, Ordering, fence};

const NATIVE: u64 = 1;
const NATIVE_MASK: u64 = 0xffff;
const EVICTING: u64 = 1 << 16;
const EVICTING_MASK: u64 = 0xffff << 16;
const UPTODATE_SHIFT: u32 = 32;
const UPTODATE: u64 = 1 << UPTODATE_SHIFT;
const UPTODATE_MASK: u64 = 0xffff << UPTODATE_SHIFT;
/// The kernel was made to keep the chunk as one huge page, and none of it was punched since.
const HUGE: u64 = 1 << 48;
/// Somebody is collapsing it, and holds a native count.
const COLLAPSING: u64 = 1 << 49;
/// It was complete when the background collapser last came by.
const SEEN: u64 = 1 << 50;

/// The word of one chunk. All-zero: no native mapping, no eviction, nothing cached.
#[derive(Debug)]
#[repr(transparent)]
pub struct ChunkWord(AtomicU64);

impl ChunkWord {
    /// Returns an empty chunk (tests; tables are zeroed memory).
    ///
    /// # Context: handler
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn update(&self, f: impl Fn(u64) -> Option<u64>) -> bool {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let Some(next) = f(seen) else { return false };
            // AcqRel: a promoter that finds evicting = 0 must see the words as the last evictor left them, and an
            // evictor that finds native = 0 must see the range registered again: each pairs with the other's count going down,
            // `put_native` and `put_evict`.
            match self.0.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    /// Counts a native mapping, unless an eviction is under way.
    ///
    /// # Context: handler
    #[must_use]
    pub fn try_get_native(&self) -> bool {
        self.update(|w| (w & EVICTING_MASK == 0 && w & NATIVE_MASK != NATIVE_MASK).then(|| w + NATIVE))
    }

    /// Drops a native mapping: the range is registered again.
    ///
    /// # Context: handler
    pub fn put_native(&self) {
        let _ = self.update(|w| (w & NATIVE_MASK != 0).then(|| w - NATIVE));
    }

    /// Counts an eviction, unless a native mapping exists: demote first.
    ///
    /// # Context: handler
    #[must_use]
    pub fn try_get_evict(&self) -> bool {
        self.update(|w| (w & NATIVE_MASK == 0 && w & EVICTING_MASK != EVICTING_MASK).then(|| w + EVICTING))
    }

    /// Drops an eviction: its pages are `absent`.
    ///
    /// # Context: handler
    pub fn put_evict(&self) {
        let _ = self.update(|w| (w & EVICTING_MASK != 0).then(|| w - EVICTING));
    }

    /// Counts `nr` more uptodate pages. A hint: promotion reads the words themselves.
    ///
    /// # Context: handler
    pub fn add_uptodate(&self, nr: u64) {
        self.0.fetch_add(nr << UPTODATE_SHIFT, Ordering::Relaxed);
    }

    /// Counts `nr` fewer uptodate pages: the chunk is not complete any more.
    ///
    /// # Context: handler
    pub fn sub_uptodate(&self, nr: u64) {
        let _ = self.update(|w| {
            let have = (w & UPTODATE_MASK) >> UPTODATE_SHIFT;
            Some((w & !SEEN) - (if nr < have { nr } else { have }) * UPTODATE)
        });
    }

    /// Begins a collapse: counts a native mapping, which keeps evictions out. `false`: one is under way, or another
    /// collapse, or the chunk is huge already.
    ///
    /// # Context: handler
    #[must_use]
    pub fn begin_collapse(&self) -> bool {
        let busy = EVICTING_MASK | COLLAPSING | HUGE;
        let won = self.update(|w| (w & busy == 0 && w & NATIVE_MASK != NATIVE_MASK).then(|| (w + NATIVE) | COLLAPSING));
        // SeqCst pairs with `count_user_pin` and `is_collapsing`: the collapser sees the pin, or who pins sees the collapser.
        fence(Ordering::SeqCst);
        won
    }

    /// Ends a collapse; `huge`: it succeeded.
    ///
    /// # Context: handler
    pub fn end_collapse(&self, huge: bool) {
        let _ = self.update(|w| Some(((w & !(COLLAPSING | SEEN)) - NATIVE) | if huge { HUGE } else { 0 }));
    }

    /// Returns whether a collapse is under way: who has counted a pin waits until it is not, and faults in then.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_collapsing(&self) -> bool {
        // SeqCst pairs with `begin_collapse`, and comes after the caller's `count_user_pin`.
        self.0.load(Ordering::SeqCst) & COLLAPSING != 0
    }

    /// Returns whether the chunk is a huge page. It stays so for as long as the caller holds a count of either kind.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn is_huge(&self) -> bool {
        // Acquire pairs with `ChunkWord::update`, by which the chunk became huge: its words were finished before.
        self.0.load(Ordering::Acquire) & HUGE != 0
    }

    /// The chunk is, or is about to be, no huge page; returns whether it was.
    ///
    /// # Context: handler
    #[must_use]
    pub fn clear_huge(&self) -> bool {
        self.update(|w| (w & HUGE != 0).then_some(w & !HUGE))
    }

    /// Notes that the chunk was seen complete; returns whether it has been so since it was seen before.
    ///
    /// # Context: handler
    #[must_use]
    pub fn mark_seen(&self) -> bool {
        self.0.fetch_or(SEEN, Ordering::Relaxed) & SEEN != 0
    }

    /// Makes it the word of an empty chunk. Nobody uses the chunk.
    ///
    /// # Context: handler
    pub fn reset(&self) {
        // One that was never used takes no memory.
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the uptodate pages, as a hint.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn nr_uptodate(&self) -> u64 {
        (self.0.load(Ordering::Relaxed) & UPTODATE_MASK) >> UPTODATE_SHIFT
    }

    /// Returns the native mappings over the chunk.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr_native(&self) -> u64 {
        self.0.load(Ordering::Relaxed) & NATIVE_MASK
    }
}

impl Default for ChunkWord {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn its_size_is_what_the_tables_assume() {
        assert_eq!(size_of::<ChunkWord>(), 8);
    }

    #[test]
    fn promotion_and_eviction_exclude_each_other() {
        let c = ChunkWord::new();
        assert!(c.try_get_native());
        assert!(!c.try_get_evict(), "native mappings must be demoted first");
        assert!(c.try_get_native(), "several arenas may be native over one chunk");
        c.put_native();
        c.put_native();
        assert!(c.try_get_evict());
        assert!(c.try_get_evict());
        assert!(!c.try_get_native(), "an eviction is under way");
        c.put_evict();
        c.put_evict();
        assert!(c.try_get_native());
    }

    #[test]
    fn counts_do_not_leak_into_each_other() {
        let c = ChunkWord::new();
        c.add_uptodate(512);
        assert!(c.try_get_native());
        c.sub_uptodate(600);
        assert_eq!((c.nr_uptodate(), c.nr_native()), (0, 1), "saturates, does not borrow");
        c.put_native();
        c.put_native();
        assert_eq!(c.nr_native(), 0, "a put too many is no carry");
    }

    #[test]
    fn a_collapse_keeps_evictions_and_other_collapses_out() {
        let c = ChunkWord::new();
        c.add_uptodate(512);
        assert!(!c.mark_seen() && c.mark_seen());
        assert!(c.try_get_evict());
        assert!(!c.begin_collapse(), "an eviction is under way");
        c.put_evict();
        assert!(c.begin_collapse() && c.is_collapsing());
        assert!(!c.begin_collapse() && !c.try_get_evict());
        c.end_collapse(true);
        assert!(c.is_huge() && !c.is_collapsing() && !c.begin_collapse(), "it is huge already");
        assert_eq!((c.nr_native(), c.nr_uptodate()), (0, 512));
        assert!(c.try_get_evict() && c.clear_huge() && !c.clear_huge());
        c.put_evict();
        assert!(!c.mark_seen(), "a new life");
        c.sub_uptodate(1);
        assert!(!c.mark_seen(), "it was not complete in between");
    }
}
