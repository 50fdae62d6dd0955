//! What the replacement of pages decides, as pure functions of lengths and clocks: no page, no queue, no lock. Linux:
//! `mm/workingset.c`, and the proportions of `mm/vmscan.c`.
//!
//! The rules and their numbers were chosen by simulation over traces (`benches/replacement`), which calls these very
//! functions. All-zero words are valid beginnings.
//!
//! # Context: handler

/// Pages that are unmapped together, so that they share one flush.
pub const BATCH_PAGES: u64 = 64;
/// Target of `small`, in percent of the limit.
pub const SMALL_PCT: u64 = 5;
/// Target of `probation`, in percent of the limit.
pub const PROBATION_PCT: u64 = 6;
/// How many evictions back a page may have gone and still count as working set, in percent of the limit.
///
/// Not the length of `main`: that is empty at first, so in a loop no refault would ever lie within it.
pub const WINDOW_PCT: u64 = 100;
/// While `main` is full and regretted, one refault in so many goes there.
pub const ADMIT_EVERY: u32 = 16;
/// `main` is regretted while so many percent of what it gave up came back within the window.
pub const REGRET_PCT: u32 = 25;

/// Which queue a page is taken from or put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Pages filled of late: whatever is not touched again leaves from here.
    Small,
    /// Pages that proved themselves.
    Main,
}

/// Returns `pct` percent of `limit_pages`, at least one page.
///
/// # Context: handler
#[must_use]
pub fn target_pages(limit_pages: u64, pct: u64) -> u64 {
    percent(limit_pages, pct).max(1)
}

/// Returns `pct` percent of `limit_pages`, rounded down; a limit near the largest number is no limit.
///
/// # Context: handler
#[must_use]
pub fn percent(limit_pages: u64, pct: u64) -> u64 {
    limit_pages.checked_mul(pct).map_or_else(|| (limit_pages / 100).saturating_mul(pct), |n| n / 100)
}

/// Returns how many pages to unmap at once: a batch, or less where probation itself is shorter.
///
/// # Context: handler
#[must_use]
pub fn batch_pages(probation_target: u64) -> u64 {
    probation_target.clamp(1, BATCH_PAGES)
}

/// Returns which queue's tail is unmapped next, or `None` when both are empty.
///
/// # Context: handler
#[must_use]
pub fn refill_from(nr_small: u64, small_target: u64, nr_main: u64) -> Option<Queue> {
    match (nr_small, nr_main) {
        (0, 0) => None,
        (_, 0) => Some(Queue::Small),
        (small, _) if small > small_target => Some(Queue::Small),
        _ => Some(Queue::Main),
    }
}

/// Returns whether a page that went `distance` evictions ago (`None`: that is not known) belongs to the working set.
///
/// # Context: handler
#[must_use]
pub fn is_refault(distance: Option<u64>, window_pages: u64) -> bool {
    distance.is_some_and(|d| d < window_pages)
}

/// Watermarks lie a sixty-fourth and a thirty-second of the limit below it.
const LOW_SHARE: u64 = 64;
const HIGH_SHARE: u64 = 32;
/// Pages between limit and low watermark at most.
const GAP_MAX: u64 = 2048;

/// Returns the mark at which the background reclaimer is woken, in pages of a cache of `limit_pages`.
///
/// # Context: handler
#[must_use]
pub fn low_watermark(limit_pages: u64) -> u64 {
    limit_pages.saturating_sub((limit_pages / LOW_SHARE).min(GAP_MAX))
}

/// Returns the mark down to which it frees pages.
///
/// # Context: handler
#[must_use]
pub fn high_watermark(limit_pages: u64) -> u64 {
    limit_pages.saturating_sub((limit_pages / HIGH_SHARE).min(GAP_MAX * 2))
}

/// Returns by how much `small` grows between two refills by a reclaimer that works between the watermarks.
///
/// # Context: handler
#[must_use]
pub fn slack_pages(limit_pages: u64, probation_target: u64) -> u64 {
    batch_pages(probation_target).saturating_add(low_watermark(limit_pages) - high_watermark(limit_pages))
}

/// Returns whether `main` has all the room that the targets leave it.
///
/// `slack_pages` above the target of `small`: between two refills it grows by so much, and without the slack `main` would
/// be drained by a batch each time and never be full.
///
/// # Context: handler
#[must_use]
pub fn main_is_full(nr_small: u64, small_target: u64, slack_pages: u64) -> bool {
    nr_small <= small_target.saturating_add(slack_pages)
}

/// Returns whether a refault that a full and regretted `main` meets goes there all the same; `refused`: how many there
/// were before it, modulo the counter. The others keep out, so that `main` keeps its part of a loop.
///
/// # Context: handler
#[must_use]
pub fn is_admitted(refused: u32, every: u32) -> bool {
    refused.wrapping_add(1).checked_rem(every).is_none_or(|rest| rest == 0)
}

/// How many of the pages that `main` gave up came back soon: whether reclaim from `main` was wise, of late. Two counts
/// in one word, so that threads can pass it on by one CAS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regret(u64);

impl Regret {
    /// Takes the counts from a word that [`Regret::bits`] gave, or 0.
    ///
    /// # Context: handler
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the counts as a word.
    ///
    /// # Context: handler
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    fn counts(self) -> (u64, u64) {
        (self.0 & 0xffff_ffff, self.0 >> 32)
    }

    fn of(evicted: u64, returned: u64) -> Self {
        Self(evicted.min(0xffff_ffff) | (returned.min(0xffff_ffff) << 32))
    }

    /// Counts an eviction of a page that came from `main`. Both counts are halved after a 16th of the cache.
    ///
    /// # Context: handler
    #[must_use]
    pub fn evicted(self, limit_pages: u64) -> Self {
        let horizon = (limit_pages / 16).max(64);
        let (evicted, returned) = self.counts();
        let evicted = evicted + 1;
        if evicted >= horizon { Self::of(evicted / 2, returned / 2) } else { Self::of(evicted, returned) }
    }

    /// Counts a refault within the window of a page that `main` gave up.
    ///
    /// # Context: handler
    #[must_use]
    pub fn returned(self) -> Self {
        let (evicted, returned) = self.counts();
        Self::of(evicted, returned + 1)
    }

    /// Returns whether at least `pct` percent came back.
    ///
    /// # Context: handler
    #[must_use]
    pub fn exceeds(self, pct: u32) -> bool {
        let (evicted, returned) = self.counts();
        returned * 100 >= evicted * u64::from(pct)
    }
}

/// What an evicted page leaves behind: when it went and from where, in 16 bits; 0: nothing.
///
/// ```text
///  15       14 ......................... 0
/// +---------+-----------------------------+
/// | of main | tick modulo 32767, plus one |
/// +---------+-----------------------------+
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shadow(pub u16);

const OF_MAIN: u16 = 1 << 15;
/// Ticks before the clock is back where it was: one less than 15 bits have, so that no stamp is 0.
const WRAP: u16 = 0x7fff;

impl Shadow {
    /// Returns whether there is one.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_some(self) -> bool {
        self.0 & !OF_MAIN != 0
    }

    /// Returns whether the page came from `main`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_of_main(self) -> bool {
        self.0 & OF_MAIN != 0
    }
}

/// The clock of evictions as shadows see it: coarse enough that it wraps after 63 caches or more. Within the window of
/// an older lap a page is taken for a young refault.
#[derive(Clone, Copy, Debug)]
pub struct ShadowClock {
    shift: u32,
}

impl ShadowClock {
    /// Makes the clock of a cache of `limit_pages`: a tick is between a 512th and a 256th of it.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(limit_pages: u64) -> Self {
        Self { shift: (limit_pages / 256).checked_ilog2().unwrap_or(0) }
    }

    fn tick(self, evictions: u64) -> u16 {
        u16::try_from((evictions >> self.shift) % u64::from(WRAP)).unwrap_or(0)
    }

    /// Returns the shadow of a page that leaves after `evictions` evictions.
    ///
    /// # Context: handler
    #[must_use]
    pub fn stamp(self, evictions: u64, from: Queue) -> Shadow {
        let origin = if from == Queue::Main { OF_MAIN } else { 0 };
        Shadow((self.tick(evictions) + 1) | origin)
    }

    /// Returns the evictions since, rounded to ticks and modulo the wrap; `None` without a shadow.
    ///
    /// # Context: handler
    #[must_use]
    pub fn distance(self, shadow: Shadow, evictions: u64) -> Option<u64> {
        let then = (shadow.0 & !OF_MAIN).checked_sub(1)?;
        let now = self.tick(evictions);
        // Both are below WRAP, but for a stamp of 0x7fff, which nobody gives.
        let ticks = if now >= then { now - then } else { now + (WRAP - then) };
        Some(u64::from(ticks) << self.shift)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn refill_takes_from_small_only_above_its_target() {
        assert_eq!(refill_from(0, 10, 0), None);
        assert_eq!(refill_from(11, 10, 5), Some(Queue::Small));
        assert_eq!(refill_from(10, 10, 5), Some(Queue::Main));
        assert_eq!(refill_from(1, 10, 0), Some(Queue::Small));
    }

    #[test]
    fn targets_have_a_page_at_least_and_do_not_overflow() {
        assert_eq!((target_pages(2000, 5), target_pages(1, 5), target_pages(0, 5)), (100, 1, 1));
        assert_eq!(percent(u64::MAX, 100), u64::MAX / 100 * 100);
        assert_eq!((batch_pages(0), batch_pages(12), batch_pages(5000)), (1, 12, BATCH_PAGES));
    }

    #[test]
    fn a_refault_counts_within_the_window_only() {
        assert!(!is_refault(None, 100));
        assert!(is_refault(Some(99), 100));
        assert!(!is_refault(Some(100), 100));
    }

    #[test]
    fn one_refault_in_sixteen_is_admitted() {
        let admitted = (0..160).filter(|n| is_admitted(*n, 16)).count();
        assert_eq!(admitted, 10);
        assert!((0..10).all(|n| is_admitted(n, 1)), "every one of one");
        assert!(is_admitted(u32::MAX, 16), "the counter may wrap");
    }

    #[test]
    fn the_shadow_clock_measures_across_its_wrap_and_is_never_zero() {
        for limit in [1u64, 1000, 5000, 1 << 20] {
            let clock = ShadowClock::new(limit);
            let tick = 1 << (limit / 256).checked_ilog2().unwrap_or(0);
            for start in [0, 1, 32_765 * tick, 32_766 * tick, 32_767 * tick, 32_768 * tick] {
                for from in [Queue::Small, Queue::Main] {
                    let shadow = clock.stamp(start, from);
                    assert!(shadow.is_some(), "limit {limit}, {start} evictions");
                    assert_eq!(shadow.is_of_main(), from == Queue::Main);
                    for age in [0, 1, 7, 1000] {
                        let distance = clock.distance(shadow, start + age).expect("a shadow");
                        assert!(distance.abs_diff(age) < tick, "limit {limit}: {distance} for {age} after {start}");
                    }
                }
            }
            assert_eq!(clock.distance(Shadow(0), 12345), None);
            assert!(!Shadow(0).is_some());
            let lap = u64::from(WRAP) * tick;
            assert!(lap >= 63 * limit, "limit {limit}: back after {lap}");
        }
    }

    #[test]
    fn regret_forgets() {
        let mut regret = Regret::default();
        for _ in 0..99 {
            regret = regret.evicted(1600).returned();
        }
        assert!(regret.exceeds(75), "every page came back");
        (0..400).for_each(|_| regret = regret.evicted(1600));
        assert!(!regret.exceeds(25), "of the last 400 none came back");
        assert_eq!(Regret::from_bits(regret.bits()), regret);
    }

    #[test]
    fn regret_does_not_overflow() {
        let mut regret = Regret::from_bits(u64::MAX);
        regret = regret.returned().evicted(u64::MAX);
        assert!(regret.exceeds(50) && regret.bits() != 0);
    }
}
