//! CLOCK: first in, first out, with a second chance for pages that were read since the hand last passed.
//!
//! With accessed bits that cost nothing. Without any (`blind`) it is plain FIFO: what reclaim by punch alone does.

use super::list::{Links, Queue};
use super::{Outcome, Policy};

/// The cache: one queue; its tail is under the hand.
#[derive(Debug)]
pub struct Clock {
    limit: usize,
    blind: bool,
    cached: Vec<bool>,
    referenced: Vec<bool>,
    links: Links,
    queue: Queue,
}

impl Clock {
    /// Makes an empty cache of `limit` pages for an object of `nr_pages`; a `blind` one sees no access.
    #[must_use]
    pub fn new(nr_pages: usize, limit: usize, blind: bool) -> Self {
        Self {
            limit,
            blind,
            cached: vec![false; nr_pages],
            referenced: vec![false; nr_pages],
            links: Links::new(nr_pages),
            queue: Queue::default(),
        }
    }

    fn evict(&mut self) {
        while let Some(page) = self.queue.pop(&mut self.links) {
            if !std::mem::take(&mut self.referenced[page as usize]) {
                self.cached[page as usize] = false;
                return;
            }
            self.queue.push(&mut self.links, page);
        }
    }
}

impl Policy for Clock {
    fn access(&mut self, pgoff: u32) -> Outcome {
        let page = pgoff as usize;
        if self.cached[page] {
            self.referenced[page] = !self.blind;
            return Outcome::Hit;
        }
        if self.queue.len() == self.limit {
            self.evict();
        }
        self.cached[page] = true;
        self.referenced[page] = false;
        self.queue.push(&mut self.links, pgoff);
        Outcome::Major
    }

    fn nr_cached(&self) -> usize {
        self.queue.len()
    }
}
