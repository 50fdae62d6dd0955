//! The two lists with refault distance, for caches that see only faults.
//!
//! Pages are unmapped when they leave the active list, and judged at the tail of the inactive one. New pages come to
//! that tail mapped and go through PROBATION first. A fill activates by the kernel's rule.

use super::decide;
use super::list::{Links, Queue};
use super::{Outcome, Policy};

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Inactive,
    Active,
    Probation,
}

/// The cache.
#[derive(Debug)]
pub struct StagedTwoLists {
    limit: usize,
    probation_target: usize,
    state: Vec<State>,
    mapped: Vec<bool>,
    referenced: Vec<bool>,
    shadow: Vec<u64>,
    nonresident_age: u64,
    nr_unmapped: u64,
    links: Links,
    inactive: Queue,
    active: Queue,
    probation: Queue,
}

impl StagedTwoLists {
    /// Makes an empty cache of `limit` pages for an object of `nr_pages`.
    #[must_use]
    pub fn new(nr_pages: usize, limit: usize, probation_pct: u64) -> Self {
        Self {
            limit,
            probation_target: decide::target_len(limit, probation_pct),
            state: vec![State::Absent; nr_pages],
            mapped: vec![false; nr_pages],
            referenced: vec![false; nr_pages],
            shadow: vec![0; nr_pages],
            nonresident_age: 0,
            nr_unmapped: 0,
            links: Links::new(nr_pages),
            inactive: Queue::default(),
            active: Queue::default(),
            probation: Queue::default(),
        }
    }

    fn unmap(&mut self, page: u32) {
        self.mapped[page as usize] = false;
        self.referenced[page as usize] = false;
        self.nr_unmapped += 1;
    }

    fn activate(&mut self, page: u32) {
        self.nonresident_age += 1;
        self.state[page as usize] = State::Active;
        self.active.push(&mut self.links, page);
    }

    /// Deactivates until the lists that are not active are not the shorter ones.
    fn shrink_active(&mut self) {
        while self.inactive.len() + self.probation.len() < self.active.len() {
            let Some(page) = self.active.pop(&mut self.links) else { return };
            self.unmap(page);
            self.state[page as usize] = State::Inactive;
            self.inactive.push(&mut self.links, page);
        }
    }

    fn reclaim(&mut self) {
        let before = self.nr_cached();
        while self.nr_cached() == before {
            self.shrink_active();
            if self.probation.len() <= self.probation_target && !self.inactive.is_empty() {
                self.refill();
                continue;
            }
            let Some(page) = self.probation.pop(&mut self.links) else { return };
            self.judge(page);
        }
    }

    /// Takes a batch from the inactive tail: to PROBATION what is mapped and unknown, judged what was asked before.
    fn refill(&mut self) {
        for _ in 0..decide::batch_len(self.probation_target) {
            let Some(page) = self.inactive.pop(&mut self.links) else { return };
            if self.mapped[page as usize] && !self.referenced[page as usize] {
                self.unmap(page);
                self.state[page as usize] = State::Probation;
                self.probation.push(&mut self.links, page);
            } else {
                let evicts = !self.referenced[page as usize];
                self.judge(page);
                if evicts {
                    return;
                }
            }
        }
    }

    /// Gives the verdict on a page that is in no list any more.
    fn judge(&mut self, page: u32) {
        if std::mem::take(&mut self.referenced[page as usize]) {
            self.activate(page);
            return;
        }
        self.nonresident_age += 1;
        self.shadow[page as usize] = self.nonresident_age;
        self.mapped[page as usize] = false;
        self.state[page as usize] = State::Absent;
    }

    fn fill(&mut self, page: u32) {
        if self.nr_cached() == self.limit {
            self.reclaim();
        }
        self.mapped[page as usize] = true;
        self.referenced[page as usize] = false;
        let at = std::mem::take(&mut self.shadow[page as usize]);
        if at != 0 && self.nonresident_age - at <= self.active.len() as u64 {
            self.activate(page);
        } else {
            self.state[page as usize] = State::Inactive;
            self.inactive.push(&mut self.links, page);
        }
    }
}

impl Policy for StagedTwoLists {
    fn access(&mut self, pgoff: u32) -> Outcome {
        let page = pgoff as usize;
        if self.state[page] == State::Absent {
            self.fill(pgoff);
            return Outcome::Major;
        }
        if self.mapped[page] {
            return Outcome::Hit;
        }
        self.mapped[page] = true;
        self.referenced[page] = true;
        Outcome::Minor
    }

    fn nr_cached(&self) -> usize {
        self.inactive.len() + self.active.len() + self.probation.len()
    }

    fn nr_unmapped(&self) -> u64 {
        self.nr_unmapped
    }
}
