//! The decisions of staged reclaim: those of `softfault_mm::workingset`, so that what is measured is what runs, and the
//! alternatives that only the simulation has.

pub use softfault_mm::workingset::{
    ADMIT_EVERY, BATCH_PAGES, PROBATION_PCT, Queue, REGRET_PCT, Regret, SMALL_PCT, Shadow, ShadowClock, WINDOW_PCT,
    batch_pages, high_watermark, is_admitted, is_refault, low_watermark, main_is_full, percent, refill_from,
    slack_pages, target_pages,
};

/// How far back a refault may lie and still count as proof that the page belongs into the main queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Refaults prove nothing.
    None,
    /// As many evictions as the main queue has pages.
    MainLen,
    /// This many percent of the limit in evictions.
    Percent(u64),
}

impl Window {
    /// Returns the window in evictions.
    #[must_use]
    pub fn pages(self, limit: u64, nr_main: u64) -> u64 {
        match self {
            Self::None => 0,
            Self::MainLen => nr_main,
            Self::Percent(pct) => percent(limit, pct),
        }
    }
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

/// [`target_pages`] for policies that count in lengths of vectors.
#[must_use]
pub fn target_len(limit: usize, pct: u64) -> usize {
    len(target_pages(limit as u64, pct))
}

/// [`batch_pages`] for policies that count in lengths of vectors.
#[must_use]
pub fn batch_len(probation_target: usize) -> usize {
    len(batch_pages(probation_target as u64))
}

fn len(pages: u64) -> usize {
    usize::try_from(pages).unwrap_or(usize::MAX)
}
