//! S3-FIFO in two stages, for caches that see only faults: SMALL, MAIN, and PROBATION, whose pages were unmapped to be
//! asked and await the verdict.
//!
//! ```text
//!            fill ──▶ SMALL ──unmap──▶ ┌───────────┐ ──not referenced──▶ evicted, leaves a shadow
//!   fill, refault ──▶ MAIN  ──unmap──▶ │ PROBATION │
//!                      ▲               └───────────┘
//!                      └───────────── referenced ◀── a minor fault meanwhile
//! ```

use super::decide::{self, Regret, Shadow, ShadowClock, Shadows, Window, high_watermark, low_watermark};
use super::list::{Links, Queue};
use super::{Outcome, Policy};

/// What can be tuned. Percentages are of the limit.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Target of SMALL.
    pub small_pct: u64,
    /// Target of PROBATION.
    pub probation_pct: u64,
    /// Which refaults go straight to MAIN.
    pub window: Window,
    /// Whose pages leave shadows.
    pub shadows: Shadows,
    /// While MAIN is full and regretted, one refault of so many within the window goes there; 1: all.
    pub admit_every: u32,
    /// MAIN is regretted while so many percent of what it gave up came back within the window; 0: always.
    pub regret_pct: u32,
    /// Whether pages of MAIN are asked before they are evicted.
    pub ask_main: bool,
    /// Whether the first reference only brings a page back to SMALL.
    pub small_twice: bool,
    /// Laps through MAIN, at most, that a page may skip without being asked: one more after each good verdict.
    pub max_tenure: u8,
    /// Whether pages are freed ahead in batches, between the watermarks of the running cache, or one by one in a full one.
    pub ahead: bool,
}

impl Tuning {
    /// Two stages and nothing against loops: every refault within the length of MAIN goes there.
    pub const PLAIN: Self = Self {
        small_pct: 10,
        probation_pct: 12,
        window: Window::MainLen,
        shadows: Shadows::All,
        admit_every: 1,
        regret_pct: 0,
        ask_main: true,
        small_twice: false,
        max_tenure: 0,
        ahead: false,
    };

    /// What the benchmark recommends, and `softfault_mm` does; see the README.
    pub const RECOMMENDED: Self = Self {
        small_pct: decide::SMALL_PCT,
        probation_pct: decide::PROBATION_PCT,
        window: Window::Percent(decide::WINDOW_PCT),
        admit_every: decide::ADMIT_EVERY,
        regret_pct: decide::REGRET_PCT,
        ..Self::PLAIN
    };

    /// The same as it runs: with a background reclaimer, here one that is never late.
    pub const RUNNING: Self = Self { ahead: true, ..Self::RECOMMENDED };
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Small,
    Main,
    /// Unmapped, or mapped again by a minor fault; `from` is the queue it came from.
    Probation {
        from: decide::Queue,
    },
}

/// One page.
#[derive(Clone, Copy, Debug)]
struct Page {
    state: State,
    mapped: bool,
    referenced: bool,
    /// Good verdicts so far, up to the tuning's `max_tenure`.
    tenure: u8,
    /// Laps left to skip.
    skip: u8,
    shadow: Shadow,
}

/// The cache.
#[derive(Debug)]
pub struct Staged {
    limit: u64,
    tuning: Tuning,
    clock: ShadowClock,
    evictions: u64,
    nr_unmapped: u64,
    /// Refaults that met a full and regretted MAIN.
    refused: u32,
    regret: Regret,
    pages: Vec<Page>,
    links: Links,
    small: Queue,
    main: Queue,
    probation: Queue,
}

impl Staged {
    /// Makes an empty cache of `limit` pages for an object of `nr_pages`.
    #[must_use]
    pub fn new(nr_pages: usize, limit: usize, tuning: Tuning) -> Self {
        let absent = Page {
            state: State::Absent,
            mapped: false,
            referenced: false,
            tenure: 0,
            skip: 0,
            shadow: Shadow::default(),
        };
        Self {
            limit: limit as u64,
            tuning,
            clock: ShadowClock::new(limit as u64),
            evictions: 0,
            nr_unmapped: 0,
            refused: 0,
            regret: Regret::default(),
            pages: vec![absent; nr_pages],
            links: Links::new(nr_pages),
            small: Queue::default(),
            main: Queue::default(),
            probation: Queue::default(),
        }
    }

    /// Gives up one page.
    fn reclaim(&mut self) {
        let target = decide::target_pages(self.limit, self.tuning.probation_pct);
        let before = self.evictions;
        while self.evictions == before {
            if self.probation.len() as u64 <= target && self.refill(decide::batch_pages(target)) {
                return;
            }
            let Some(pgoff) = self.probation.pop(&mut self.links) else { return };
            self.judge(pgoff);
        }
    }

    /// Frees pages as the background reclaimer does when the low watermark is passed.
    fn reclaim_ahead(&mut self) {
        if self.nr_cached() as u64 <= low_watermark(self.limit) {
            return;
        }
        let target = decide::target_pages(self.limit, self.tuning.probation_pct);
        let batch = decide::batch_pages(target);
        while self.nr_cached() as u64 > high_watermark(self.limit) {
            // One batch, as `softfault_mm::vmscan::shrink` does it: verdicts first.
            for _ in 0..batch {
                let [nr_small, nr_main, nr_probation] = self.lens();
                if nr_probation as u64 <= target && nr_small + nr_main > 0 {
                    break;
                }
                let Some(pgoff) = self.probation.pop(&mut self.links) else { break };
                self.judge(pgoff);
            }
            if self.probation.len() as u64 <= target {
                self.refill(batch);
            }
        }
    }

    /// Unmaps a batch; returns whether it evicted a page unasked instead.
    fn refill(&mut self, nr: u64) -> bool {
        let small_target = decide::target_pages(self.limit, self.tuning.small_pct);
        let mut nr = nr;
        while nr > 0 {
            let [nr_small, nr_main, _] = self.lens().map(|n| n as u64);
            let Some(from) = decide::refill_from(nr_small, small_target, nr_main) else { return false };
            let pgoff = match from {
                decide::Queue::Small => self.small.pop(&mut self.links),
                decide::Queue::Main => self.main.pop(&mut self.links),
            };
            let Some(pgoff) = pgoff else { return false };
            let page = &mut self.pages[pgoff as usize];
            if from == decide::Queue::Main && page.skip > 0 {
                page.skip -= 1;
                self.main.push(&mut self.links, pgoff);
                continue;
            }
            if from == decide::Queue::Main && !self.tuning.ask_main {
                self.evict(pgoff, from);
                return true;
            }
            page.state = State::Probation { from };
            page.referenced = false;
            page.mapped = false;
            self.nr_unmapped += 1;
            self.probation.push(&mut self.links, pgoff);
            nr -= 1;
        }
        false
    }

    /// Gives the verdict on a page that leaves PROBATION.
    fn judge(&mut self, pgoff: u32) {
        let page = &mut self.pages[pgoff as usize];
        let State::Probation { from } = page.state else { return };
        if !page.referenced {
            self.evict(pgoff, from);
        } else if from == decide::Queue::Small && self.tuning.small_twice && page.tenure == 0 {
            page.tenure = 1;
            page.state = State::Small;
            self.small.push(&mut self.links, pgoff);
        } else {
            page.tenure = (page.tenure + 1).min(self.tuning.max_tenure);
            page.skip = page.tenure;
            page.state = State::Main;
            self.main.push(&mut self.links, pgoff);
        }
    }

    fn evict(&mut self, pgoff: u32, from: decide::Queue) {
        let leaves_shadow = self.tuning.shadows.leaves(from);
        let page = &mut self.pages[pgoff as usize];
        page.state = State::Absent;
        page.mapped = false;
        if from == decide::Queue::Main {
            self.regret = self.regret.evicted(self.limit);
        }
        page.shadow = if leaves_shadow { self.clock.stamp(self.evictions, from) } else { Shadow::default() };
        self.evictions += 1;
    }

    fn fill(&mut self, pgoff: u32) {
        if self.nr_cached() as u64 == self.limit {
            self.reclaim();
        }
        let shadow = std::mem::take(&mut self.pages[pgoff as usize].shadow);
        let queue = self.admit(shadow);
        let page = &mut self.pages[pgoff as usize];
        page.mapped = true;
        page.referenced = false;
        page.tenure = 0;
        page.skip = 0;
        match queue {
            decide::Queue::Small => {
                page.state = State::Small;
                self.small.push(&mut self.links, pgoff);
            }
            decide::Queue::Main => {
                page.state = State::Main;
                self.main.push(&mut self.links, pgoff);
            }
        }
        if self.tuning.ahead {
            self.reclaim_ahead();
        }
    }

    /// Returns where a filled page goes that left `shadow`.
    fn admit(&mut self, shadow: Shadow) -> decide::Queue {
        let window = self.tuning.window.pages(self.limit, self.main.len() as u64);
        if !decide::is_refault(self.clock.distance(shadow, self.evictions), window) {
            return decide::Queue::Small;
        }
        if shadow.is_of_main() {
            self.regret = self.regret.returned();
        }
        if !self.main_is_full() || !self.regret.exceeds(self.tuning.regret_pct) {
            return decide::Queue::Main;
        }
        let refused = self.refused;
        self.refused = refused.wrapping_add(1);
        if decide::is_admitted(refused, self.tuning.admit_every) { decide::Queue::Main } else { decide::Queue::Small }
    }

    fn main_is_full(&self) -> bool {
        let small_target = decide::target_pages(self.limit, self.tuning.small_pct);
        let probation_target = decide::target_pages(self.limit, self.tuning.probation_pct);
        let batch = decide::batch_pages(probation_target);
        let slack = if self.tuning.ahead { decide::slack_pages(self.limit, probation_target) } else { batch };
        decide::main_is_full(self.small.len() as u64, small_target, slack)
    }

    /// Returns the lengths of SMALL, MAIN and PROBATION.
    #[must_use]
    pub fn lens(&self) -> [usize; 3] {
        [self.small.len(), self.main.len(), self.probation.len()]
    }
}

impl Policy for Staged {
    fn access(&mut self, pgoff: u32) -> Outcome {
        let page = &mut self.pages[pgoff as usize];
        if page.state == State::Absent {
            self.fill(pgoff);
            return Outcome::Major;
        }
        if page.mapped {
            return Outcome::Hit;
        }
        page.mapped = true;
        page.referenced = true;
        Outcome::Minor
    }

    fn nr_cached(&self) -> usize {
        self.lens().iter().sum()
    }

    fn nr_unmapped(&self) -> u64 {
        self.nr_unmapped
    }
}
