//! The offline optimum for demand filling: evict the page whose next use is farthest (Belady's MIN).

use super::{Outcome, Policy};
use std::collections::BinaryHeap;

/// Never used again.
const NEVER: u32 = u32::MAX;

/// The cache; it knows the trace and must be run over exactly that, from its start.
#[derive(Debug)]
pub struct Opt {
    limit: usize,
    /// For each access of the trace, when its page is used next.
    next_use: Vec<u32>,
    now: usize,
    nr_cached: usize,
    /// For each page its next use if it is cached.
    cached_until: Vec<Option<u32>>,
    /// Next use and page; entries that `cached_until` contradicts are stale.
    heap: BinaryHeap<(u32, u32)>,
}

impl Opt {
    /// Makes an empty cache of `limit` pages for an object of `nr_pages` pages and the future `trace`.
    ///
    /// # Panics
    /// When the trace has 2^32 accesses or more.
    #[must_use]
    pub fn new(nr_pages: usize, limit: usize, trace: &[u32]) -> Self {
        let mut upcoming = vec![NEVER; nr_pages];
        let mut next_use = vec![NEVER; trace.len()];
        for (i, &pgoff) in trace.iter().enumerate().rev() {
            next_use[i] = upcoming[pgoff as usize];
            upcoming[pgoff as usize] = u32::try_from(i).expect("a trace shorter than 2^32");
        }
        let cached_until = vec![None; nr_pages];
        Self { limit, next_use, now: 0, nr_cached: 0, cached_until, heap: BinaryHeap::new() }
    }

    fn evict(&mut self) {
        while let Some((until, page)) = self.heap.pop() {
            if self.cached_until[page as usize] == Some(until) {
                self.cached_until[page as usize] = None;
                self.nr_cached -= 1;
                return;
            }
        }
    }
}

impl Policy for Opt {
    fn access(&mut self, pgoff: u32) -> Outcome {
        let until = self.next_use[self.now];
        self.now += 1;
        let hit = self.cached_until[pgoff as usize].is_some();
        if !hit {
            if self.nr_cached == self.limit {
                self.evict();
            }
            self.nr_cached += 1;
        }
        self.cached_until[pgoff as usize] = Some(until);
        self.heap.push((until, pgoff));
        if hit { Outcome::Hit } else { Outcome::Major }
    }

    fn nr_cached(&self) -> usize {
        self.nr_cached
    }
}
