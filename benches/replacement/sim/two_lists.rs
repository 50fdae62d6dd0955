//! The kernel's two lists with refault distance, for pages of files that are mapped, with accessed bits.
//!
//! As in `folio_check_references` the first young visit only marks a page and keeps it inactive; the second activates.

use super::list::{Links, Queue};
use super::{Outcome, Policy};

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Inactive,
    Active,
}

/// The cache.
#[derive(Debug)]
pub struct TwoLists {
    limit: usize,
    state: Vec<State>,
    young: Vec<bool>,
    referenced: Vec<bool>,
    /// The age of non-resident pages when a page was evicted; 0 for never.
    shadow: Vec<u64>,
    /// Evictions and activations so far.
    nonresident_age: u64,
    links: Links,
    inactive: Queue,
    active: Queue,
}

impl TwoLists {
    /// Makes an empty cache of `limit` pages for an object of `nr_pages`.
    #[must_use]
    pub fn new(nr_pages: usize, limit: usize) -> Self {
        Self {
            limit,
            state: vec![State::Absent; nr_pages],
            young: vec![false; nr_pages],
            referenced: vec![false; nr_pages],
            shadow: vec![0; nr_pages],
            nonresident_age: 0,
            links: Links::new(nr_pages),
            inactive: Queue::default(),
            active: Queue::default(),
        }
    }

    /// Deactivates until the inactive list is not the shorter one: the kernel's ratio below 1 GiB.
    fn shrink_active(&mut self) {
        while self.inactive.len() < self.active.len() {
            let Some(page) = self.active.pop(&mut self.links) else { return };
            self.young[page as usize] = false;
            self.referenced[page as usize] = false;
            self.state[page as usize] = State::Inactive;
            self.inactive.push(&mut self.links, page);
        }
    }

    fn activate(&mut self, page: u32) {
        self.nonresident_age += 1;
        self.referenced[page as usize] = false;
        self.state[page as usize] = State::Active;
        self.active.push(&mut self.links, page);
    }

    fn evict(&mut self) {
        loop {
            self.shrink_active();
            let Some(page) = self.inactive.pop(&mut self.links) else { return };
            let i = page as usize;
            if !std::mem::take(&mut self.young[i]) {
                self.nonresident_age += 1;
                self.shadow[i] = self.nonresident_age;
                self.referenced[i] = false;
                self.state[i] = State::Absent;
                return;
            }
            if std::mem::replace(&mut self.referenced[i], true) {
                self.activate(page);
            } else {
                self.inactive.push(&mut self.links, page);
            }
        }
    }
}

impl Policy for TwoLists {
    fn access(&mut self, pgoff: u32) -> Outcome {
        let i = pgoff as usize;
        if self.state[i] != State::Absent {
            self.young[i] = true;
            return Outcome::Hit;
        }
        if self.nr_cached() == self.limit {
            self.evict();
        }
        self.young[i] = true;
        let at = std::mem::take(&mut self.shadow[i]);
        if at != 0 && self.nonresident_age - at <= self.active.len() as u64 {
            self.activate(pgoff);
        } else {
            self.state[i] = State::Inactive;
            self.inactive.push(&mut self.links, pgoff);
        }
        Outcome::Major
    }

    fn nr_cached(&self) -> usize {
        self.inactive.len() + self.active.len()
    }
}
