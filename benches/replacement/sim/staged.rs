//! S3-FIFO in two stages, for caches that see only faults: SMALL, MAIN, and PROBATION, whose pages were unmapped to be
//! asked and await the verdict.
//!
//! ```text
//!            fill ──▶ SMALL ──unmap──▶ ┌───────────┐ ──not referenced──▶ evicted, leaves a shadow
//!   fill, refault ──▶ MAIN  ──unmap──▶ │ PROBATION │
//!                      ▲               └───────────┘
//!                      └───────────── referenced ◀── a minor fault meanwhile
//! ```

use super::decide::{self, Regret, ShadowClock, Shadows, Window};
use super::list::{Links, Queue};
use super::{Outcome, Policy};

/// What can be tuned. Percentages are of the limit.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Target of SMALL.
    pub small_pct: usize,
    /// Target of PROBATION.
    pub probation_pct: usize,
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
    };

    /// What the benchmark recommends; see its README.
    pub const RECOMMENDED: Self = Self {
        small_pct: 5,
        probation_pct: 6,
        window: Window::Percent(100),
        admit_every: 16,
        regret_pct: 25,
        ..Self::PLAIN
    };
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
    shadow: u16,
    /// Whether the shadow was left by a page of MAIN.
    shadow_of_main: bool,
}

/// The cache.
#[derive(Debug)]
pub struct Staged {
    limit: usize,
    tuning: Tuning,
    clock: ShadowClock,
    evictions: u64,
    nr_unmapped: u64,
    /// Refaults that were kept out of a full MAIN.
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
            shadow: 0,
            shadow_of_main: false,
        };
        Self {
            limit,
            tuning,
            clock: ShadowClock::new(limit),
            evictions: 0,
            nr_unmapped: 0,
            refused: 0,
            regret: Regret::new(limit),
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
            if self.probation.len() <= target && self.refill(decide::batch_pages(target)) {
                return;
            }
            let Some(pgoff) = self.probation.pop(&mut self.links) else { return };
            self.judge(pgoff);
        }
    }

    /// Unmaps a batch; returns whether it evicted a page unasked instead.
    fn refill(&mut self, nr: usize) -> bool {
        let small_target = decide::target_pages(self.limit, self.tuning.small_pct);
        let mut nr = nr;
        while nr > 0 {
            let Some(from) = decide::refill_from(self.small.len(), small_target, self.main.len()) else { return false };
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
        page.shadow_of_main = from == decide::Queue::Main;
        self.regret.evicted(page.shadow_of_main);
        page.shadow = if leaves_shadow { self.clock.stamp(self.evictions) } else { 0 };
        self.evictions += 1;
    }

    fn fill(&mut self, pgoff: u32) {
        if self.nr_cached() == self.limit {
            self.reclaim();
        }
        let shadow = std::mem::take(&mut self.pages[pgoff as usize].shadow);
        let queue = self.admit(pgoff, self.clock.distance(shadow, self.evictions));
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
    }

    fn admit(&mut self, pgoff: u32, distance: Option<u64>) -> decide::Queue {
        let queue = decide::admit(distance, self.tuning.window, self.limit, self.main.len());
        if queue == decide::Queue::Small {
            return queue;
        }
        self.regret.returned(self.pages[pgoff as usize].shadow_of_main);
        if !self.main_is_full() || !self.regret.exceeds(self.tuning.regret_pct) {
            return queue;
        }
        self.refused += 1;
        if self.refused < self.tuning.admit_every {
            return decide::Queue::Small;
        }
        self.refused = 0;
        queue
    }

    fn main_is_full(&self) -> bool {
        let small_target = decide::target_pages(self.limit, self.tuning.small_pct);
        let probation_target = decide::target_pages(self.limit, self.tuning.probation_pct);
        decide::main_is_full(self.small.len(), small_target, probation_target)
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
