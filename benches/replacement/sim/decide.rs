//! The decisions of staged reclaim, as pure functions of lengths and clocks: no page, no lock, no allocation.

/// Pages that are unmapped together, so that they share one flush.
pub const BATCH_PAGES: usize = 64;

/// Which queue a page is taken from or put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Pages filled of late: whatever is not read again leaves from here.
    Small,
    /// Pages that proved themselves.
    Main,
}

/// How far back a refault may lie and still count as proof that the page belongs into the main queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Refaults prove nothing.
    None,
    /// As many evictions as the main queue has pages.
    MainLen,
    /// This many percent of the limit in evictions.
    Percent(usize),
}

/// Whose evicted pages leave a shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadows {
    /// Every page.
    All,
    /// Those that came from SMALL.
    Small,
    /// Those that came from MAIN.
    Main,
}

impl Shadows {
    /// Returns whether a page that is evicted after it came `from` there leaves one.
    #[must_use]
    pub fn leaves(self, from: Queue) -> bool {
        matches!((self, from), (Self::All, _) | (Self::Small, Queue::Small) | (Self::Main, Queue::Main))
    }
}

/// Returns `pct` percent of `limit`, at least one page.
#[must_use]
pub fn target_pages(limit: usize, pct: usize) -> usize {
    (limit * pct / 100).max(1)
}

/// Returns how many pages to unmap at once: a batch, or less where probation itself is shorter.
#[must_use]
pub fn batch_pages(probation_target: usize) -> usize {
    probation_target.clamp(1, BATCH_PAGES)
}

/// Returns which queue's tail is unmapped next, or `None` when both are empty.
#[must_use]
pub fn refill_from(nr_small: usize, small_target: usize, nr_main: usize) -> Option<Queue> {
    match (nr_small, nr_main) {
        (0, 0) => None,
        (_, 0) => Some(Queue::Small),
        (small, _) if small > small_target => Some(Queue::Small),
        _ => Some(Queue::Main),
    }
}

/// Returns where a filled page goes whose eviction lies `distance` evictions back (`None`: no shadow was found).
#[must_use]
pub fn admit(distance: Option<u64>, window: Window, limit: usize, nr_main: usize) -> Queue {
    let within = match window {
        Window::None => 0,
        Window::MainLen => nr_main,
        Window::Percent(pct) => limit * pct / 100,
    };
    match distance {
        Some(d) if d < within as u64 => Queue::Main,
        _ => Queue::Small,
    }
}

/// Returns whether MAIN has all the room that the targets leave it.
///
/// A batch of slack above the target of SMALL: between two refills SMALL grows by so much, and without the slack MAIN
/// would be drained by a batch each time and never be full.
#[must_use]
pub fn main_is_full(nr_small: usize, small_target: usize, probation_target: usize) -> bool {
    nr_small <= small_target + batch_pages(probation_target)
}

/// How many of the pages that MAIN gave up came back soon: whether reclaim from MAIN was wise, of late.
#[derive(Clone, Copy, Debug)]
pub struct Regret {
    evicted: u32,
    returned: u32,
    /// Evictions after which both counts are halved.
    horizon: u32,
}

impl Regret {
    /// Starts counting for a cache of `limit` pages: the horizon is a 16th of it.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { evicted: 0, returned: 0, horizon: u32::try_from(limit / 16).map_or(u32::MAX, |h| h.max(64)) }
    }

    /// Counts an eviction; only those of pages that came from MAIN matter.
    pub fn evicted(&mut self, of_main: bool) {
        self.evicted += u32::from(of_main);
        if self.evicted >= self.horizon {
            self.evicted /= 2;
            self.returned /= 2;
        }
    }

    /// Counts a refault within the window; only pages that MAIN gave up matter.
    pub fn returned(&mut self, of_main: bool) {
        self.returned = self.returned.saturating_add(u32::from(of_main));
    }

    /// Returns whether at least `pct` percent came back.
    #[must_use]
    pub fn exceeds(&self, pct: u32) -> bool {
        u64::from(self.returned) * 100 >= u64::from(self.evicted) * u64::from(pct)
    }
}

/// The clock of evictions as shadows see it: 16 bits, coarse enough that it wraps after 64 caches or more.
#[derive(Clone, Copy, Debug)]
pub struct ShadowClock {
    shift: u32,
}

impl ShadowClock {
    /// Makes the clock of a cache of `limit` pages: a tick is about a thousandth of it.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { shift: (limit / 1024).checked_ilog2().unwrap_or(0) }
    }

    /// Returns the stamp for a page that leaves after `evictions` evictions; never 0, which means no shadow.
    #[must_use]
    pub fn stamp(self, evictions: u64) -> u16 {
        // Modulo 65535 and one up, so that no tick is 0.
        u16::try_from((evictions >> self.shift) % 0xffff).map_or(1, |t| t + 1)
    }

    /// Returns the evictions since `stamp`, rounded down to ticks and modulo the wrap; `None` without a shadow.
    #[must_use]
    pub fn distance(self, stamp: u16, evictions: u64) -> Option<u64> {
        if stamp == 0 {
            return None;
        }
        let now = self.stamp(evictions);
        let ticks = if now >= stamp { now - stamp } else { now + (0xffff - stamp) };
        Some(u64::from(ticks) << self.shift)
    }
}
