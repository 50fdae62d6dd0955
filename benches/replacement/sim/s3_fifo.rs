//! S3-FIFO with every access seen: a small queue that filters, a main queue with counters, and ghosts of what left the
//! small one.

use super::list::{Links, Queue};
use super::{Outcome, Policy};

/// Accesses that a page is remembered for.
const MAX_FREQ: u8 = 3;

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Small,
    Main,
}

/// The cache.
#[derive(Debug)]
pub struct S3Fifo {
    limit: usize,
    small_target: usize,
    state: Vec<State>,
    freq: Vec<u8>,
    /// When a page last left the small queue unread, in such departures; 0 for never.
    ghost: Vec<u64>,
    departures: u64,
    links: Links,
    small: Queue,
    main: Queue,
}

impl S3Fifo {
    /// Makes an empty cache of `limit` pages for an object of `nr_pages`; `small_pct` percent of it filter.
    #[must_use]
    pub fn new(nr_pages: usize, limit: usize, small_pct: usize) -> Self {
        Self {
            limit,
            small_target: (limit * small_pct / 100).max(1),
            state: vec![State::Absent; nr_pages],
            freq: vec![0; nr_pages],
            ghost: vec![0; nr_pages],
            departures: 0,
            links: Links::new(nr_pages),
            small: Queue::default(),
            main: Queue::default(),
        }
    }

    fn evict(&mut self) {
        while !(if self.small.len() >= self.small_target { self.evict_small() } else { self.evict_main() }) {}
    }

    /// Judges the tail of the small queue; returns whether a page left the cache.
    fn evict_small(&mut self) -> bool {
        let Some(page) = self.small.pop(&mut self.links) else { return self.evict_main() };
        if self.freq[page as usize] > 1 {
            self.freq[page as usize] = 0;
            self.state[page as usize] = State::Main;
            self.main.push(&mut self.links, page);
            return false;
        }
        self.departures += 1;
        self.ghost[page as usize] = self.departures;
        self.state[page as usize] = State::Absent;
        true
    }

    /// Judges the tail of the main queue; returns whether a page left the cache.
    fn evict_main(&mut self) -> bool {
        let Some(page) = self.main.pop(&mut self.links) else { return self.evict_small() };
        let freq = &mut self.freq[page as usize];
        if *freq > 0 {
            *freq -= 1;
            self.main.push(&mut self.links, page);
            return false;
        }
        self.state[page as usize] = State::Absent;
        true
    }

    fn take_ghost(&mut self, page: usize) -> bool {
        let at = std::mem::take(&mut self.ghost[page]);
        at != 0 && self.departures - at < (self.limit - self.small_target) as u64
    }
}

impl Policy for S3Fifo {
    fn access(&mut self, pgoff: u32) -> Outcome {
        let page = pgoff as usize;
        if self.state[page] != State::Absent {
            self.freq[page] = (self.freq[page] + 1).min(MAX_FREQ);
            return Outcome::Hit;
        }
        if self.nr_cached() == self.limit {
            self.evict();
        }
        self.freq[page] = 0;
        if self.take_ghost(page) {
            self.state[page] = State::Main;
            self.main.push(&mut self.links, pgoff);
        } else {
            self.state[page] = State::Small;
            self.small.push(&mut self.links, pgoff);
        }
        Outcome::Major
    }

    fn nr_cached(&self) -> usize {
        self.small.len() + self.main.len()
    }
}
