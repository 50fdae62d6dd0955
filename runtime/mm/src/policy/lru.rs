//! The queues of reclaim: in which order pages are looked at. Linux: `mm/vmscan.c`'s lists, `mm/workingset.c`.
//!
//! S3-FIFO with the reference bit that a fault runtime can have. A page enters `small`; reclaim unmaps pages at the tail
//! of `small` (while that is longer than its share) or of `main` and moves them to `probation`; a page that is missed
//! there goes to the head of `main`, any other leaves the cache and leaves a *shadow*: when it went, and from where. A
//! page that comes back within as many evictions as the cache has pages belongs to the working set, and enters `main`
//! at once.
//! ```text
//!  fill --(no shadow, or an old one)--> small ---+              +--(missed)--> main
//!  fill --(young shadow)--------------> main ----+--> probation-+
//!                                                               +--(not missed)--> absent, with a shadow
//! ```
//! So a scan passes through `small` and `probation` alone, and costs a hot page one minor fault for each time that
//! reclaim goes round `main`. A loop that is longer than the cache would go round `main` for nothing: while `main` is
//! full and what it gives up comes back, only one refault in some enters it ([`crate::workingset`] decides).
//!
//! The queues hold numbers, not pages: an entry may be stale (the page left otherwise, and perhaps came back), which its
//! popper notices by the version.
//!
//! # Context: handler

use crate::folio::Folio;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::workingset::{self, Queue, Regret, Shadow, ShadowClock};

/// A queue of non-zero words for many producers and consumers, in borrowed zeroed memory. Nothing is lost and nothing
/// is doubled; the order is first in, first out but for threads that overtake each other.
///
/// A cell is taken by the CAS that fills or empties it, and the ends are moved afterwards, by whoever comes by:
/// ```text
/// producer A                      producer B
/// cell[t]: 0 -> a
///                                 cell[t] is taken: tail t -> t+1 for A; cell[t+1]: 0 -> b
/// tail t -> t+1: done already
/// ```
/// A producer that slept since it read `tail` may fill a cell that lies outside of head..tail by then; its item is
/// found when the tail has come round.
pub struct Fifo<'g> {
    cells: &'g [AtomicU64],
    /// Cells in use, a power of two less one; it only grows.
    mask: AtomicU64,
    head: AtomicU64,
    tail: AtomicU64,
}

impl core::fmt::Debug for Fifo<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Fifo").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<'g> Fifo<'g> {
    /// Wraps borrowed zeroed cells, of which the first `len` (rounded down to a power of two) are used for now.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(cells: &'g [AtomicU64], len: u64) -> Self {
        let fifo = Self { cells, mask: AtomicU64::new(0), head: AtomicU64::new(0), tail: AtomicU64::new(0) };
        fifo.grow(len);
        fifo
    }

    /// Uses more cells.
    ///
    /// An index means another cell from then on, so what stands in the old ones is taken out and appended anew: an item
    /// that lay outside of head..tail would wait until the ends have come round.
    ///
    /// # Context: control plane
    pub fn grow(&self, len: u64) {
        let most = self.cells.len() as u64;
        let len = if len < most { len } else { most };
        let mask = if len == 0 { 0 } else { (1 << (63 - len.leading_zeros())) - 1 };
        let before = self.mask.fetch_max(mask, Ordering::Relaxed);
        if before >= mask {
            return;
        }
        let old = usize::try_from(before).unwrap_or(usize::MAX).saturating_add(1);
        for cell in self.cells.iter().take(old) {
            // Acquire pairs with `Fifo::push`: as if it had been popped.
            let item = cell.swap(0, Ordering::Acquire);
            // There is room: the queue has at least doubled.
            if item != 0 && !self.push(item) {
                debug_assert!(false, "a queue that has just grown is full");
            }
        }
    }

    fn cell(&self, at: u64) -> Option<&'g AtomicU64> {
        self.cells.get(usize::try_from(at & self.mask.load(Ordering::Relaxed)).ok()?)
    }

    /// Appends `item`, which is not 0; `false`: no room.
    ///
    /// # Context: handler
    pub fn push(&self, item: u64) -> bool {
        loop {
            let tail = self.tail.load(Ordering::Relaxed);
            let len = tail.wrapping_sub(self.head.load(Ordering::Relaxed));
            if len.cast_signed() > self.mask.load(Ordering::Relaxed).cast_signed() {
                return false;
            }
            let Some(cell) = self.cell(tail) else { return false };
            // Release pairs with `Fifo::pop`: what was done to the page before comes before what reclaim does.
            let won = cell.compare_exchange(0, item, Ordering::Release, Ordering::Relaxed).is_ok();
            let _ = self.tail.compare_exchange(tail, tail.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
            if won {
                return true;
            }
        }
    }

    /// Takes the oldest item.
    ///
    /// # Context: handler
    pub fn pop(&self) -> Option<u64> {
        loop {
            let head = self.head.load(Ordering::Relaxed);
            if self.tail.load(Ordering::Relaxed).wrapping_sub(head).cast_signed() <= 0 {
                return None;
            }
            let cell = self.cell(head)?;
            let seen = cell.load(Ordering::Relaxed);
            // Acquire pairs with `Fifo::push`.
            let won = seen != 0 && cell.compare_exchange(seen, 0, Ordering::Acquire, Ordering::Relaxed).is_ok();
            let _ = self.head.compare_exchange(head, head.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
            if won {
                return Some(seen);
            }
        }
    }

    /// Returns about how many items there are.
    ///
    /// # Context: handler
    #[must_use]
    pub fn len(&self) -> u64 {
        let len = self.tail.load(Ordering::Relaxed).wrapping_sub(self.head.load(Ordering::Relaxed));
        if len.cast_signed() < 0 { 0 } else { len }
    }

    /// Returns whether three quarters of the room are taken.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        let room = self.mask.load(Ordering::Relaxed).saturating_add(1);
        self.len() > room / 4 * 3
    }

    /// Returns whether there seem to be none.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

const PGOFF_BITS: u32 = 34;
const VERSION_BITS: u32 = 10;
const ORIGIN: u64 = 1 << (PGOFF_BITS + VERSION_BITS);
const ID_SHIFT: u32 = PGOFF_BITS + VERSION_BITS + 1;
/// Objects whose pages queues can name.
pub const NR_MAPPINGS_MAX: u64 = 1 << (64 - ID_SHIFT - 1);

/// A page as a queue names it: one word, not 0.
///
/// ```text
///  63 62 ........ 45    44    43 ... 34 33 ... 0
/// +--+--------------+--------+---------+---------+
/// |1 |    object    | of main| version |  pgoff  |
/// +--+--------------+--------+---------+---------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// Names page `pgoff` of object `id` as it is in the cache now.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(id: u32, pgoff: u64, word: Folio) -> Self {
        Self::named(id, pgoff, word.version())
    }
    /// Names page `pgoff` of object `id` in the life that began with `version`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn named(id: u32, pgoff: u64, version: u32) -> Self {
        let version = u64::from(version) & ((1 << VERSION_BITS) - 1);
        let page = pgoff & ((1 << PGOFF_BITS) - 1);
        Self((1 << 63) | (u64::from(id) << ID_SHIFT) | (version << PGOFF_BITS) | page)
    }
    /// Notes which queue the page was taken from.
    ///
    /// # Context: handler
    #[must_use]
    pub fn taken_from(self, queue: Queue) -> Self {
        Self(if queue == Queue::Main { self.0 | ORIGIN } else { self.0 & !ORIGIN })
    }
    /// Returns which queue the page was taken from.
    ///
    /// # Context: handler
    #[must_use]
    pub fn origin(self) -> Queue {
        if self.0 & ORIGIN == 0 { Queue::Small } else { Queue::Main }
    }
    /// Returns the object.
    ///
    /// # Context: handler
    #[must_use]
    pub fn mapping_id(self) -> u32 {
        u32::try_from((self.0 & !(1 << 63)) >> ID_SHIFT).unwrap_or(0)
    }
    /// Returns the page.
    ///
    /// # Context: handler
    #[must_use]
    pub fn pgoff(self) -> u64 {
        self.0 & ((1 << PGOFF_BITS) - 1)
    }
    /// Returns whether the page is still the one that was named, as far as ten bits tell.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_current(self, word: Folio) -> bool {
        word.is_mappable() && Self::new(self.mapping_id(), self.pgoff(), word).0 == self.0 & !ORIGIN
    }
}

/// The queues of one cache.
#[derive(Debug)]
pub struct Lruvec<'g> {
    /// Pages that came in and were not missed yet.
    pub small: Fifo<'g>,
    /// Pages that were missed at least once.
    pub main: Fifo<'g>,
    /// Pages without mappings, waiting to be missed.
    pub probation: Fifo<'g>,
    /// Pages evicted so far: the clock of the shadows.
    evictions: AtomicU64,
    /// A [`Regret`].
    regret: AtomicU64,
    /// Refaults that met a full and regretted `main`.
    refused: AtomicU32,
}

impl<'g> Lruvec<'g> {
    /// Makes queues of three pieces of zeroed memory.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(small: &'g [AtomicU64], main: &'g [AtomicU64], probation: &'g [AtomicU64], limit_pages: u64) -> Self {
        let len = Self::len_for(limit_pages);
        Self {
            small: Fifo::new(small, len),
            main: Fifo::new(main, len),
            probation: Fifo::new(probation, len),
            evictions: AtomicU64::new(0),
            regret: AtomicU64::new(0),
            refused: AtomicU32::new(0),
        }
    }

    /// Returns how many cells each queue needs for a cache of `limit_pages`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn len_for(limit_pages: u64) -> u64 {
        // Stale entries take room too: a page that was truncated away and came back stands twice for a while.
        limit_pages.saturating_mul(2).clamp(1024, 1 << PGOFF_BITS).next_power_of_two()
    }

    /// Makes room for a larger cache.
    ///
    /// # Context: control plane
    pub fn grow(&self, limit_pages: u64) {
        let len = Self::len_for(limit_pages);
        for queue in [&self.small, &self.main, &self.probation] {
            queue.grow(len);
        }
    }

    /// Enters a page that was filled; `active`: it belongs to the working set. `false`: no queue has room.
    ///
    /// # Context: handler
    pub fn add(&self, entry: Entry, active: bool) -> bool {
        let (first, second) = if active { (&self.main, &self.small) } else { (&self.small, &self.main) };
        first.push(entry.0) || second.push(entry.0) || self.probation.push(entry.0)
    }

    /// Returns how many entries there are, void ones too.
    ///
    /// # Context: handler
    #[must_use]
    pub fn len(&self) -> u64 {
        self.small.len().saturating_add(self.main.len()).saturating_add(self.probation.len())
    }

    /// Returns whether there are none.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether a queue fills up with entries of pages that went otherwise: those of cached pages take half of it.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.small.is_crowded() || self.main.is_crowded() || self.probation.is_crowded()
    }

    /// Returns how many pages `small` should hold in a cache of `limit_pages`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn small_target(limit_pages: u64) -> u64 {
        workingset::target_pages(limit_pages, workingset::SMALL_PCT)
    }

    /// Returns how many pages `probation` should hold.
    ///
    /// # Context: handler
    #[must_use]
    pub fn probation_target(limit_pages: u64) -> u64 {
        workingset::target_pages(limit_pages, workingset::PROBATION_PCT)
    }

    /// Returns how many pages a batch takes: few of a small cache, so that what was mapped a moment ago survives.
    ///
    /// # Context: handler
    #[must_use]
    pub fn batch_pages(limit_pages: u64) -> u64 {
        workingset::batch_pages(Self::probation_target(limit_pages))
    }

    /// Takes the entry at the tail that is to be unmapped next; if `whole`, those in `small` first, also of the last that came.
    ///
    /// # Context: handler
    pub fn pop_coldest(&self, limit_pages: u64, whole: bool) -> Option<Entry> {
        let (nr_small, nr_main) = (self.small.len(), self.main.len());
        let target = if whole { 0 } else { Self::small_target(limit_pages) };
        let queue = workingset::refill_from(nr_small, target, nr_main)?;
        let (first, second) = match queue {
            Queue::Small => (Queue::Small, Queue::Main),
            Queue::Main => (Queue::Main, Queue::Small),
        };
        // The other one if somebody emptied it meanwhile.
        self.pop_from(first).or_else(|| self.pop_from(second))
    }

    fn pop_from(&self, queue: Queue) -> Option<Entry> {
        let fifo = if queue == Queue::Main { &self.main } else { &self.small };
        fifo.pop().map(|e| Entry(e).taken_from(queue))
    }

    /// Counts an eviction and returns the shadow to leave. Linux: `workingset_eviction`.
    ///
    /// # Context: handler
    pub fn evicted(&self, from: Queue, limit_pages: u64) -> Shadow {
        if from == Queue::Main {
            self.update_regret(|r| r.evicted(limit_pages));
        }
        ShadowClock::new(limit_pages).stamp(self.evictions.fetch_add(1, Ordering::Relaxed), from)
    }

    /// Counts a fill of a page that left this shadow, and returns whether it enters `main`. Linux: `workingset_refault`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn refault(&self, shadow: Shadow, limit_pages: u64) -> bool {
        let evictions = self.evictions.load(Ordering::Relaxed);
        let distance = ShadowClock::new(limit_pages).distance(shadow, evictions);
        if !workingset::is_refault(distance, workingset::percent(limit_pages, workingset::WINDOW_PCT)) {
            return false;
        }
        if shadow.is_of_main() {
            self.update_regret(Regret::returned);
        }
        let small = Self::small_target(limit_pages);
        let slack = workingset::slack_pages(limit_pages, Self::probation_target(limit_pages));
        let regretted = || Regret::from_bits(self.regret.load(Ordering::Relaxed)).exceeds(workingset::REGRET_PCT);
        if !workingset::main_is_full(self.small.len(), small, slack) || !regretted() {
            return true;
        }
        workingset::is_admitted(self.refused.fetch_add(1, Ordering::Relaxed), workingset::ADMIT_EVERY)
    }

    fn update_regret(&self, f: impl Fn(Regret) -> Regret) {
        let mut seen = self.regret.load(Ordering::Relaxed);
        loop {
            let next = f(Regret::from_bits(seen)).bits();
            // Relaxed: advice, and nothing hangs on its order.
            match self.regret.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::folio::FolioWord;

    fn cells(n: usize) -> Vec<AtomicU64> {
        (0..n).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn a_queue_keeps_order_and_refuses_when_full() {
        let cells = cells(8);
        let q = Fifo::new(&cells, 4);
        for lap in 0..5 {
            for i in 1..=4 {
                assert!(q.push(lap * 10 + i));
            }
            assert!(!q.push(99), "four cells");
            for i in 1..=4 {
                assert_eq!(q.pop(), Some(lap * 10 + i));
            }
            assert_eq!(q.pop(), None);
        }
    }

    #[test]
    fn growing_loses_nothing() {
        let cells = cells(64);
        let q = Fifo::new(&cells, 4);
        let mut left: std::collections::BTreeSet<u64> = (1..=7).collect();
        for i in 1..=3 {
            assert!(q.push(i));
        }
        assert_eq!(q.pop(), Some(1));
        left.remove(&1);
        assert!(q.push(4) && q.push(5));
        q.grow(64);
        assert!(q.push(6) && q.push(7));
        for turn in 0..1000u64 {
            if let Some(i) = q.pop() {
                assert!(i >= 1000 || left.remove(&i), "{i} came twice");
            }
            assert!(q.push(1000 + turn));
        }
        assert!(left.is_empty(), "never came: {left:?}");
    }

    #[test]
    fn nothing_is_lost_or_doubled_between_threads() {
        let cells = cells(64);
        let q = Fifo::new(&cells, 64);
        let got = std::sync::Mutex::new(Vec::new());
        let pushing = AtomicU32::new(2);
        std::thread::scope(|s| {
            for t in 0..2u64 {
                let (q, pushing) = (&q, &pushing);
                s.spawn(move || {
                    for i in 0..20_000 {
                        while !q.push(1 + t * 100_000 + i) {
                            std::thread::yield_now();
                        }
                    }
                    // Release pairs with the load below: who sees it sees every item.
                    pushing.fetch_sub(1, Ordering::Release);
                });
            }
            for _ in 0..2 {
                s.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let pushed = pushing.load(Ordering::Acquire) == 0;
                        match q.pop() {
                            Some(i) => mine.push(i),
                            // Who pushes may be waiting for room for as long as it likes.
                            None if !pushed => std::thread::yield_now(),
                            None => break,
                        }
                    }
                    got.lock().unwrap().extend(mine);
                });
            }
        });
        let mut got = got.into_inner().unwrap();
        got.extend(std::iter::from_fn(|| q.pop()));
        got.extend(cells.iter().map(|c| c.load(Ordering::Relaxed)).filter(|v| *v != 0));
        got.sort_unstable();
        assert_eq!(got.len(), 40_000);
        got.dedup();
        assert_eq!(got.len(), 40_000, "something came twice");
    }

    #[test]
    fn an_entry_knows_its_page_until_the_page_is_another() {
        let w = FolioWord::new();
        w.try_claim().unwrap();
        let _ = w.publish(0);
        let e = Entry::new(262_143, (1 << 34) - 1, w.load());
        assert_eq!((e.mapping_id(), e.pgoff()), (262_143, (1 << 34) - 1));
        assert!(e.is_current(w.load()));
        w.try_discard().unwrap();
        let _ = w.evicted(0);
        assert!(!e.is_current(w.load()), "absent");
        w.try_claim().unwrap();
        let _ = w.publish(0);
        assert!(!e.is_current(w.load()), "another life");
    }

    #[test]
    fn an_entry_remembers_its_queue() {
        let w = FolioWord::new();
        w.try_claim().unwrap();
        let _ = w.publish(0);
        let e = Entry::new(262_143, (1 << 34) - 1, w.load());
        assert_eq!(e.origin(), Queue::Small);
        for queue in [Queue::Main, Queue::Small] {
            let e = e.taken_from(Queue::Main).taken_from(queue);
            assert_eq!((e.origin(), e.mapping_id(), e.pgoff()), (queue, 262_143, (1 << 34) - 1));
            assert!(e.is_current(w.load()), "from {queue:?}");
        }
    }

    #[test]
    fn shadows_tell_the_working_set() {
        let (a, b, c) = (cells(1024), cells(1024), cells(1024));
        for limit in [512u64, 1 << 20] {
            let lru = Lruvec::new(&a, &b, &c, limit);
            // No page of main came back, so nobody regrets.
            _ = lru.evicted(Queue::Main, limit);
            let shadow = lru.evicted(Queue::Small, limit);
            assert!(lru.refault(shadow, limit));
            assert!(!lru.refault(Shadow(0), limit), "never evicted");
            (0..limit / 2).for_each(|_| _ = lru.evicted(Queue::Small, limit));
            assert!(lru.refault(shadow, limit), "half a cache ago");
            (0..limit).for_each(|_| _ = lru.evicted(Queue::Small, limit));
            assert!(!lru.refault(shadow, limit), "a cache and a half ago");
        }
    }

    #[test]
    fn a_full_main_that_is_regretted_lets_one_refault_in_sixteen_in() {
        let (a, b, c) = (cells(1024), cells(1024), cells(1024));
        let limit = 512;
        let lru = Lruvec::new(&a, &b, &c, limit);
        // Nothing came back of what main gave up: no regret yet.
        let gone: Vec<_> = (0..100).map(|_| lru.evicted(Queue::Main, limit)).collect();
        let admitted = gone.iter().take(8).filter(|s| lru.refault(**s, limit)).count();
        assert_eq!(admitted, 8, "before there was regret");
        gone.iter().take(20).for_each(|s| _ = lru.refault(*s, limit));
        let before = lru.refused.load(Ordering::Relaxed) % 16;
        assert!(before > 0, "some are refused");
        let admitted = gone.iter().cycle().take(160).filter(|s| lru.refault(**s, limit)).count();
        assert_eq!(admitted, 10, "of 160");
        // A long small means that main has room.
        (1..200).for_each(|i| assert!(lru.small.push(i)));
        assert!(gone.iter().all(|s| lru.refault(*s, limit)), "main is not full");
    }

    #[test]
    fn the_coldest_is_in_small_while_that_is_long() {
        let (a, b, c) = (cells(1024), cells(1024), cells(1024));
        let lru = Lruvec::new(&a, &b, &c, 100);
        for i in 1..=7 {
            assert!(lru.small.push(i) && lru.main.push(100 + i));
        }
        let order: Vec<_> = std::iter::from_fn(|| lru.pop_coldest(100, false)).map(|e| e.origin()).collect();
        let (small, main) = ([Queue::Small; 2], [Queue::Main; 7]);
        assert_eq!(order[..9], [&small[..], &main[..]].concat(), "five percent stay in small while main has any");
        assert_eq!(order.len(), 14);
    }
}
