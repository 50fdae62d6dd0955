//! The words of one extent, 2 MiB of an arena: who resolves its faults, and hints which of its pages are mapped.
//!
//! An extent is `trapped` (its faults come to us), or handed back to the kernel: `native`, or `tracked` (native, but the
//! kernel notes first stores). Of the 2 MiB of the object that it shows, [`crate::chunk`] has the word.
//!
//! ```text
//!  63 18 17 16 15   8 7     0
//! +-----+--+--+------+-------+
//! |  0  |T |U |window| state |
//! +-----+--+--+------+-------+
//!   U unknown: see [`Extent`]   T touched: see [`Extent::mark_touched`]
//! ```
//!
//! # Context: handler

use crate::page::{EXTENT_PAGES, PAGE_SHIFT};
use crate::sync::{AtomicU64, Ordering, fence};

/// Who resolves the faults of an extent.
///
/// | state     | faults go to        | left by                                                     |
/// |-----------|---------------------|-------------------------------------------------------------|
/// | trapped   | us                  | [`Extent::begin`] (one promoter wins)                       |
/// | changing  | us or the kernel    | [`Extent::finish`], by who began                            |
/// | native    | the kernel          | [`Extent::begin`] (one demoter wins)                        |
/// | tracked   | the kernel, which notes first stores | as native                                  |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentState {
    /// Registered with userfaultfd.
    Trapped,
    /// Somebody is promoting or demoting it.
    Changing,
    /// Unregistered.
    Native,
    /// Registered for asynchronous write protection only.
    Tracked,
}

const STATE_MASK: u64 = 0xff;
/// The kernel mapped pages of it by itself, or an install failed: its maybe-mapped bits do not name all that was mapped.
const UNKNOWN: u64 = 1 << 16;
/// Something was mapped here, where captures ask.
const TOUCHED: u64 = 1 << 17;
const WINDOW_SHIFT: u32 = 8;
const WINDOW_MASK: u64 = 0xff << WINDOW_SHIFT;
/// log2 of the first window: 16 pages, as the kernel's `fault_around_bytes`.
const WINDOW_FIRST: u32 = 4;
/// log2 of the largest window: the extent.
const WINDOW_LAST: u32 = EXTENT_PAGES.trailing_zeros();

impl ExtentState {
    const fn code(self) -> u64 {
        match self {
            Self::Trapped => 0,
            Self::Changing => 1,
            Self::Native => 2,
            Self::Tracked => 3,
        }
    }
    const fn of(word: u64) -> Self {
        match word & STATE_MASK {
            1 => Self::Changing,
            2 => Self::Native,
            3 => Self::Tracked,
            _ => Self::Trapped,
        }
    }
}

/// The state of one extent and 512 *maybe-mapped* bits. All-zero: trapped, nothing mapped.
///
/// The bits let windows skip mapped runs, because CONTINUE stops at each mapped page (a 64-page window over 16 mapped pages
/// takes 33 calls without). And where the host notes first stores in its page tables ([`crate::vma::Vma::is_noted`]),
/// they say what an empty entry means. The host empties entries by itself (reclaim, a split of a huge page, an advice of the
/// program's), and of one that was stored to it leaves nothing behind:
///
/// | entry                        | trapped, known, bit clear | else          |
/// |------------------------------|---------------------------|---------------|
/// | mapped, or a marker, protected | not stored to           | not stored to |
/// | mapped, not protected        | stored to                 | stored to     |
/// | empty                        | was never mapped          | counts as stored to |
///
/// So a bit is set before the install, or a store through a page that is mapped, and emptied, meanwhile would be nowhere;
/// and once more after it, in case a zap has cleared it in between. Both under the page's pin:
/// ```text
/// who installs                         others
/// bit
///                                      unmaps under its own pin: clears the bit, zaps; looks for who came meanwhile, and
///                                      sets the bit again (`rmap::look_after`)
/// maps
///                                      a store; the host empties the entry; a scan: empty, bit set: written
/// bit, in case a zap has cleared it that looks for nobody (the page is dirty then, while we hold the pin)
/// ```
/// An extent is *unknown* once the kernel has mapped pages of it without us: then every empty entry counts as stored to. What
/// is written is protected on the way, and that leaves a marker in an empty entry: so it is written once. The mark goes with
/// the mapping.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Extent {
    word: AtomicU64,
    /// Pins of programs on ranges that touch the extent: a granule of it is then not hidden whole.
    user_pins: AtomicU64,
    /// Borders between pages that are exposed for loads and for stores, at most: the hints tell them not apart.
    splits: AtomicU64,
    pad: [AtomicU64; 5],
    mapped: [AtomicU64; EXTENT_PAGES.div_ceil(64)],
}

/// Runs of exposed pages in a part of an extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Their beginnings and ends.
    pub ends: u32,
    /// The first page is exposed.
    pub first: bool,
    /// The last one is.
    pub last: bool,
}

impl Extent {
    /// Returns a trapped extent (tests; tables are zeroed memory).
    ///
    /// # Context: handler
    #[must_use]
    pub fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            user_pins: AtomicU64::new(0),
            splits: AtomicU64::new(0),
            pad: core::array::from_fn(|_| AtomicU64::new(0)),
            mapped: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Counts a program's pin in (`true`) or out. Who counts in waits for the sections that may have looked before.
    ///
    /// # Context: handler
    pub fn count_user_pin(&self, more: bool) {
        // SeqCst pairs with `user_pins` and `begin_collapse`: who takes pages away sees the pin, or who pins sees that.
        if more {
            self.user_pins.fetch_add(1, Ordering::SeqCst);
        } else {
            self.user_pins.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Returns how many pins of programs touch the extent.
    ///
    /// # Context: handler
    #[must_use]
    pub fn user_pins(&self) -> u64 {
        // SeqCst pairs with `count_user_pin`.
        self.user_pins.load(Ordering::SeqCst)
    }

    /// Returns the state.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn state(&self) -> ExtentState {
        // Acquire pairs with `Extent::finish`: who sees the native state sees the chunk counted.
        ExtentState::of(self.word.load(Ordering::Acquire))
    }

    /// `from` -> changing; one caller wins and must call [`Extent::finish`].
    ///
    /// # Context: handler
    #[must_use]
    pub fn begin(&self, from: ExtentState) -> bool {
        let mut seen = self.word.load(Ordering::Relaxed);
        while ExtentState::of(seen) == from {
            let next = (seen & !STATE_MASK) | ExtentState::Changing.code();
            // AcqRel pairs with `Extent::finish` of who changed it before, and with `state` of who looks meanwhile.
            match self.word.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                // A fault may have doubled its window, in the same word: that is nobody's turn.
                Err(now) => seen = now,
            }
        }
        false
    }

    /// changing -> `to`, by who called [`Extent::begin`]. The fault-around window starts anew.
    ///
    /// # Context: handler
    pub fn finish(&self, to: ExtentState) {
        // Release pairs with `Extent::state` and `Extent::begin`. The state is ours; a fault may double its window meanwhile.
        let mut seen = self.word.load(Ordering::Relaxed);
        loop {
            let next = (seen & (UNKNOWN | TOUCHED)) | to.code();
            match self.word.compare_exchange_weak(seen, next, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Notes that the maybe-mapped bits do not name everything that was mapped: see [`Extent`]. Before the bits are cleared,
    /// or the state says `trapped`.
    ///
    /// # Context: handler
    pub fn mark_unknown(&self) {
        // Release pairs with `Extent::state` and `maybe_mapped`: who sees the state, or bits that were cleared afterwards, sees the
        // mark.
        self.word.fetch_or(UNKNOWN, Ordering::Release);
    }

    /// Forgets the mark, and that anything was mapped. Nothing is mapped here any more, and nobody installs.
    ///
    /// # Context: handler
    pub fn forget_unknown(&self) {
        self.word.fetch_and(!(UNKNOWN | TOUCHED), Ordering::Relaxed);
    }

    /// Notes that something is about to be mapped here, in a lift: a capture that begins waits for it, and then protects the
    /// extent. The maybe-mapped bits would not do: they are cleared of pages whose protection is taken off, and which stay.
    ///
    /// # Context: handler
    pub fn mark_touched(&self) {
        // A look first: it is set once. Relaxed: who asks has waited for the lift.
        if self.word.load(Ordering::Relaxed) & TOUCHED == 0 {
            self.word.fetch_or(TOUCHED, Ordering::Relaxed);
        }
    }

    /// Returns whether anything may be mapped here, as [`Extent::mark_touched`] says.
    ///
    /// # Context: handler, after a grace period
    #[must_use]
    pub fn is_touched(&self) -> bool {
        self.word.load(Ordering::Relaxed) & TOUCHED != 0
    }

    /// Returns whether an entry of page `index` that was found empty never held a page, so that no store is lost with it.
    ///
    /// To be asked after the look at the entry.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_untouched(&self, index: usize) -> bool {
        // The fence pairs with `note_install`, by the entry itself: who finds what became of an install, as nothing, finds
        // what was noted before it.
        fence(Ordering::Acquire);
        !self.maybe_mapped(index) && self.is_known()
    }

    /// The same of all pages `index..index + nr`, as far as they lie in the extent.
    ///
    /// # Context: handler
    #[must_use]
    pub fn are_untouched(&self, index: usize, nr: usize) -> bool {
        // The fence pairs with `note_install`, as in `is_untouched`; the loads below with `note_zapped`.
        fence(Ordering::Acquire);
        let clear = core::cell::Cell::new(true);
        self.each_word(index, nr, |w, bits| clear.set(clear.get() && w.load(Ordering::Acquire) & bits == 0));
        clear.get() && self.is_known()
    }

    /// After the bits: who clears them because they are void has marked the extent before.
    fn is_known(&self) -> bool {
        // Acquire pairs with `mark_unknown` and `Extent::finish`.
        let word = self.word.load(Ordering::Acquire);
        ExtentState::of(word) == ExtentState::Trapped && word & UNKNOWN == 0
    }

    /// Returns the pages of the next fault-around window, doubling from 16 to the whole extent.
    ///
    /// Two threads may get the same window; a lost doubling costs one fault more.
    ///
    /// # Context: handler
    #[must_use]
    pub fn next_window(&self) -> usize {
        let seen = self.word.load(Ordering::Relaxed);
        let had = u32::try_from((seen & WINDOW_MASK) >> WINDOW_SHIFT).unwrap_or(0);
        let log = if had < WINDOW_FIRST { WINDOW_FIRST } else { had };
        let next = if log < WINDOW_LAST { log + 1 } else { WINDOW_LAST };
        let word = (seen & !WINDOW_MASK) | (u64::from(next) << WINDOW_SHIFT);
        let _ = self.word.compare_exchange(seen, word, Ordering::Relaxed, Ordering::Relaxed);
        1 << log
    }

    /// Makes the next fault-around window the first one again: what was mapped is gone.
    ///
    /// # Context: handler
    pub fn reset_window(&self) {
        // Relaxed, and a lost race with next_window() costs one fault more or less.
        self.word.fetch_and(!WINDOW_MASK, Ordering::Relaxed);
    }

    /// Returns whether page `index` (0..512) of the extent may be mapped.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn maybe_mapped(&self, index: usize) -> bool {
        // Acquire pairs with `note_zapped`: who finds it cleared sees the mark of who cleared it.
        self.mapped.get(index / 64).is_some_and(|w| w.load(Ordering::Acquire) & (1 << (index % 64)) != 0)
    }

    /// Notes that pages `index..index + nr` are, or are about to be, mapped, as far as they lie in the extent.
    ///
    /// # Context: handler
    pub fn note_mapped(&self, index: usize, nr: usize) {
        self.each_word(index, nr, |w, bits| {
            // A look first: what is noted before an install is mostly still noted after it.
            if w.load(Ordering::Relaxed) & bits != bits {
                w.fetch_or(bits, Ordering::Relaxed);
            }
        });
    }

    /// As [`Extent::note_mapped`], before an install whose outcome the host may undo: see [`Extent`].
    ///
    /// # Context: handler
    pub fn note_install(&self, index: usize, nr: usize) {
        self.note_mapped(index, nr);
        // The fence pairs with `is_untouched` and `are_untouched`.
        fence(Ordering::Release);
    }

    /// Notes that pages `index..index + nr` were zapped.
    ///
    /// # Context: handler
    pub fn note_zapped(&self, index: usize, nr: usize) {
        // Release pairs with `maybe_mapped`: the zap, and the mark, come before the clear bit.
        self.each_word(index, nr, |w, bits| {
            w.fetch_and(!bits, Ordering::Release);
        });
    }

    /// Looks at the hints of pages `index..index + nr`: where runs of exposed pages begin and end, were there nothing else.
    ///
    /// # Context: handler
    #[must_use]
    pub fn runs(&self, index: usize, nr: usize) -> Runs {
        let mut runs = Runs::default();
        let (mut carry, end) = (0, index.saturating_add(nr));
        for (i, w) in self.mapped.iter().enumerate() {
            let (lo, hi) = (i * 64, i * 64 + 64);
            let (from, to) = (if index > lo { index } else { lo }, if end < hi { end } else { hi });
            let mask = if from < to { (u64::MAX >> (64 - (to - from))) << (from - lo) } else { 0 };
            let bits = w.load(Ordering::Relaxed) & mask;
            runs.ends += (bits ^ (bits << 1 | carry)).count_ones();
            carry = bits >> 63;
        }
        runs.ends += u32::from(carry != 0);
        runs.first = self.maybe_mapped(index);
        runs.last = self.maybe_mapped(end.saturating_sub(1));
        runs
    }

    /// Clears the hints of pages `index..index + nr`, and returns them.
    ///
    /// # Context: handler
    #[must_use]
    pub fn take_mapped(&self, index: usize, nr: usize) -> [u64; EXTENT_PAGES.div_ceil(64)] {
        let had = core::array::from_fn(|i| self.mapped.get(i).map_or(0, |w| w.load(Ordering::Relaxed)));
        self.note_zapped(index, nr);
        had
    }

    /// Sets hints again that were taken.
    ///
    /// # Context: handler
    pub fn put_mapped(&self, had: [u64; EXTENT_PAGES.div_ceil(64)]) {
        for (w, had) in self.mapped.iter().zip(had) {
            w.fetch_or(had, Ordering::Relaxed);
        }
    }

    /// Counts a range that was exposed for stores among pages that may be exposed for loads.
    ///
    /// # Context: handler
    pub fn note_split(&self) {
        self.splits.fetch_add(2, Ordering::Relaxed);
    }

    /// Returns the borders between pages exposed for loads and for stores, at most.
    ///
    /// # Context: handler
    #[must_use]
    pub fn splits(&self) -> i64 {
        let most = EXTENT_PAGES as u64;
        let splits = self.splits.load(Ordering::Relaxed);
        (if splits < most { splits } else { most }).cast_signed()
    }

    /// The extent was hidden whole.
    ///
    /// # Context: handler
    pub fn forget_splits(&self) {
        self.splits.store(0, Ordering::Relaxed);
    }

    fn each_word(&self, index: usize, nr: usize, f: impl Fn(&AtomicU64, u64)) {
        let end = index.saturating_add(nr);
        for (i, w) in self.mapped.iter().enumerate() {
            let (lo, hi) = (i * 64, i * 64 + 64);
            let from = if index > lo { index } else { lo };
            let to = if end < hi { end } else { hi };
            if from < to {
                let ones = u64::MAX >> (64 - (to - from));
                f(w, ones << (from - lo));
            }
        }
    }

    /// Returns the index of the page at `addr` in its extent.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub const fn page_index(addr: usize) -> usize {
        (addr >> PAGE_SHIFT) % EXTENT_PAGES
    }
}

impl Default for Extent {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn its_size_is_what_the_tables_assume() {
        assert_eq!(size_of::<Extent>(), 128);
    }

    #[test]
    fn windows_double_up_to_the_extent() {
        let e = Extent::new();
        let got: Vec<_> = (0..8).map(|_| e.next_window()).collect();
        assert_eq!(got, [16, 32, 64, 128, 256, 512, 512, 512]);
        assert!(e.begin(ExtentState::Trapped));
        e.finish(ExtentState::Trapped);
        assert_eq!(e.next_window(), 16, "a new life starts small");
    }

    #[test]
    fn an_empty_entry_is_untouched_only_where_nothing_can_have_been_mapped() {
        let e = Extent::new();
        assert!(e.is_untouched(7) && e.are_untouched(0, EXTENT_PAGES));
        e.note_install(7, 2);
        assert!(!e.is_untouched(7) && !e.is_untouched(8) && e.is_untouched(9));
        assert!(!e.are_untouched(0, 8) && e.are_untouched(9, 503));
        e.note_zapped(7, 2);
        assert!(e.are_untouched(0, EXTENT_PAGES));
        // The kernel maps by itself while it has the extent, and what it mapped nobody knows afterwards.
        assert!(e.begin(ExtentState::Trapped) && !e.is_untouched(7));
        e.finish(ExtentState::Tracked);
        assert!(!e.is_untouched(7));
        assert!(e.begin(ExtentState::Tracked));
        e.mark_unknown();
        e.finish(ExtentState::Trapped);
        e.reset_window();
        let _ = e.next_window();
        assert_eq!(e.state(), ExtentState::Trapped);
        assert!(!e.is_untouched(7) && !e.are_untouched(100, 1), "the mark outlasts the change of state, and windows");
        e.forget_unknown();
        assert!(e.is_untouched(7));
    }

    #[test]
    fn mapped_bits_cross_words_and_stay_in_the_extent() {
        let e = Extent::new();
        e.note_mapped(60, 10);
        for i in 0..512 {
            assert_eq!(e.maybe_mapped(i), (60..70).contains(&i), "page {i}");
        }
        e.note_zapped(63, 2);
        assert!(e.maybe_mapped(62) && !e.maybe_mapped(63) && !e.maybe_mapped(64) && e.maybe_mapped(65));
        e.note_mapped(500, 100);
        assert!(e.maybe_mapped(511));
        assert!(!e.maybe_mapped(512), "outside");
        e.note_mapped(0, 512);
        assert!((0..512).all(|i| e.maybe_mapped(i)));
    }
}
