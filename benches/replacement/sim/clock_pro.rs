//! CLOCK-Pro: one ring of hot pages, cold pages and, not resident, pages in their test period; three hands.
//!
//! With every access seen, or staged: the hands ask by unmapping. HAND_hot unmaps a hot page when it passes and judges
//! it a lap later. HAND_cold cannot wait for a lap, since it stops at the next victim: a cold page that it finds mapped
//! goes through a queue of unmapped pages, PROBATION, first.

use super::decide;
use super::list::{Links, NONE, Queue};
use super::{Outcome, Policy};

/// Hot pages that HAND_hot may pass for one eviction, staged: without a bound a first lap would unmap everything.
const HOT_STEPS: usize = 64;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Hot,
    Cold,
    /// Cold, in PROBATION and not in the ring.
    Probation,
    /// Not resident; a fault makes it hot and gives the cold pages more room.
    Test,
}

/// The cache.
#[derive(Debug)]
pub struct ClockPro {
    limit: usize,
    /// Target of PROBATION; `None` when every access is seen.
    probation_target: Option<usize>,
    cold_target: usize,
    /// A hundredth of the limit: HAND_cold walks the ring from one cold page to the next, so they must not get rare.
    cold_floor: usize,
    state: Vec<State>,
    mapped: Vec<bool>,
    referenced: Vec<bool>,
    ring: Ring,
    links: Links,
    probation: Queue,
    nr_hot: usize,
    /// Resident cold pages, those in PROBATION among them.
    nr_cold: usize,
    nr_test: usize,
    nr_unmapped: u64,
}

impl ClockPro {
    /// Makes an empty cache of `limit` pages for an object of `nr_pages`.
    ///
    /// Staged with a PROBATION of `probation_pct` percent of the limit, or seeing every access (`None`).
    #[must_use]
    pub fn new(nr_pages: usize, limit: usize, probation_pct: Option<u64>) -> Self {
        Self {
            limit,
            probation_target: probation_pct.map(|pct| decide::target_len(limit, pct)),
            cold_target: (limit / 10).max(1),
            cold_floor: (limit / 100).max(1),
            state: vec![State::Absent; nr_pages],
            mapped: vec![false; nr_pages],
            referenced: vec![false; nr_pages],
            ring: Ring::new(nr_pages),
            links: Links::new(nr_pages),
            probation: Queue::default(),
            nr_hot: 0,
            nr_cold: 0,
            nr_test: 0,
            nr_unmapped: 0,
        }
    }

    fn staged(&self) -> bool {
        self.probation_target.is_some()
    }

    fn evict(&mut self) {
        let mut hot_steps = 0;
        loop {
            while self.nr_cold == 0 || (self.nr_hot > self.limit - self.cold_target && hot_steps < HOT_STEPS) {
                self.run_hand_hot();
                hot_steps += usize::from(self.staged());
            }
            let victim = match self.probation_target {
                Some(target) => self.next_staged(target),
                None => self.ring.next_of(&self.state, State::Cold),
            };
            let Some(page) = victim else { continue };
            if !std::mem::take(&mut self.referenced[page as usize]) {
                self.start_test(page);
                return;
            }
            self.nr_cold -= 1;
            self.make_hot(page);
        }
    }

    /// Returns a cold page that was asked, after having refilled PROBATION; `None` if more hot pages must cool first.
    fn next_staged(&mut self, target: usize) -> Option<u32> {
        let mut batch = if self.probation.len() <= target { decide::batch_len(target) } else { 0 };
        while batch > 0 && self.nr_cold > self.probation.len() {
            let page = self.ring.next_of(&self.state, State::Cold)?;
            if !self.mapped[page as usize] || self.referenced[page as usize] {
                // Asked already, when it was hot.
                return Some(page);
            }
            self.ring.remove(page);
            self.mapped[page as usize] = false;
            self.nr_unmapped += 1;
            self.state[page as usize] = State::Probation;
            self.probation.push(&mut self.links, page);
            batch -= 1;
        }
        self.probation.pop(&mut self.links)
    }

    fn make_hot(&mut self, page: u32) {
        if self.state[page as usize] == State::Cold || self.state[page as usize] == State::Test {
            self.ring.remove(page);
        }
        self.state[page as usize] = State::Hot;
        self.nr_hot += 1;
        self.ring.insert(page);
    }

    fn start_test(&mut self, page: u32) {
        if self.state[page as usize] == State::Probation {
            self.ring.insert(page);
        }
        self.state[page as usize] = State::Test;
        self.mapped[page as usize] = false;
        self.nr_cold -= 1;
        self.nr_test += 1;
        while self.nr_test > self.limit {
            self.run_hand_test();
        }
    }

    /// Moves HAND_hot by one page. Tests that it meets end: the page stayed away longer than any hot one.
    fn run_hand_hot(&mut self) {
        let page = self.ring.hot;
        match self.state[page as usize] {
            State::Hot if self.referenced[page as usize] => {
                self.referenced[page as usize] = false;
                self.ask(page);
            }
            State::Hot if self.staged() && self.mapped[page as usize] => self.ask(page),
            State::Hot => {
                self.state[page as usize] = State::Cold;
                self.nr_hot -= 1;
                self.nr_cold += 1;
            }
            State::Test => {
                self.end_test(page);
                return;
            }
            _ => {}
        }
        self.ring.hot = self.ring.next[page as usize];
    }

    /// Unmaps a hot page, so that a fault tells of its next access.
    fn ask(&mut self, page: u32) {
        if self.staged() {
            self.mapped[page as usize] = false;
            self.nr_unmapped += 1;
        }
    }

    fn run_hand_test(&mut self) {
        while self.state[self.ring.test as usize] != State::Test {
            self.ring.test = self.ring.next[self.ring.test as usize];
        }
        self.end_test(self.ring.test);
    }

    /// Ends the test of a page that did not come back in time: cold pages need less room.
    fn end_test(&mut self, page: u32) {
        self.ring.remove(page);
        self.state[page as usize] = State::Absent;
        self.nr_test -= 1;
        self.cold_target = (self.cold_target - 1).max(self.cold_floor);
    }

    fn fill(&mut self, page: u32) {
        if self.nr_cached() == self.limit {
            self.evict();
        }
        // Only now: the eviction may have ended the test.
        self.referenced[page as usize] = false;
        self.mapped[page as usize] = true;
        if self.state[page as usize] == State::Test {
            self.cold_target = (self.cold_target + 1).min(self.limit);
            self.nr_test -= 1;
            self.make_hot(page);
        } else {
            self.state[page as usize] = State::Cold;
            self.nr_cold += 1;
            self.ring.insert(page);
        }
    }
}

impl Policy for ClockPro {
    fn access(&mut self, pgoff: u32) -> Outcome {
        let page = pgoff as usize;
        if matches!(self.state[page], State::Absent | State::Test) {
            self.fill(pgoff);
            return Outcome::Major;
        }
        if self.staged() && self.mapped[page] {
            return Outcome::Hit;
        }
        self.referenced[page] = true;
        self.mapped[page] = true;
        if self.staged() { Outcome::Minor } else { Outcome::Hit }
    }

    fn nr_cached(&self) -> usize {
        self.nr_hot + self.nr_cold
    }

    fn nr_unmapped(&self) -> u64 {
        self.nr_unmapped
    }
}

/// The ring and its hands; a hand is a page, or [`NONE`] while the ring is empty.
#[derive(Debug)]
struct Ring {
    next: Vec<u32>,
    prev: Vec<u32>,
    hot: u32,
    cold: u32,
    test: u32,
}

impl Ring {
    fn new(nr_pages: usize) -> Self {
        Self { next: vec![NONE; nr_pages], prev: vec![NONE; nr_pages], hot: NONE, cold: NONE, test: NONE }
    }

    /// Inserts `page` where HAND_hot comes last.
    fn insert(&mut self, page: u32) {
        if self.hot == NONE {
            (self.next[page as usize], self.prev[page as usize]) = (page, page);
            (self.hot, self.cold, self.test) = (page, page, page);
            return;
        }
        let (next, prev) = (self.hot, self.prev[self.hot as usize]);
        (self.next[page as usize], self.prev[page as usize]) = (next, prev);
        self.next[prev as usize] = page;
        self.prev[next as usize] = page;
    }

    /// Takes `page` out; hands on it move on.
    fn remove(&mut self, page: u32) {
        let (next, prev) = (self.next[page as usize], self.prev[page as usize]);
        let after = if next == page { NONE } else { next };
        for hand in [&mut self.hot, &mut self.cold, &mut self.test] {
            if *hand == page {
                *hand = after;
            }
        }
        self.next[prev as usize] = next;
        self.prev[next as usize] = prev;
    }

    /// Moves HAND_cold past the next page in `state`, which must exist, and returns that.
    fn next_of(&mut self, state: &[State], wanted: State) -> Option<u32> {
        if self.cold == NONE {
            return None;
        }
        while state[self.cold as usize] != wanted {
            self.cold = self.next[self.cold as usize];
        }
        let page = self.cold;
        self.cold = self.next[page as usize];
        Some(page)
    }
}
