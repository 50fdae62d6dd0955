//! Least recently used, exact.

use super::list::{Links, Queue};
use super::{Outcome, Policy};

/// The cache: one queue by recency.
#[derive(Debug)]
pub struct Lru {
    limit: usize,
    cached: Vec<bool>,
    links: Links,
    queue: Queue,
}

impl Lru {
    /// Makes an empty cache of `limit` pages for an object of `nr_pages`.
    #[must_use]
    pub fn new(nr_pages: usize, limit: usize) -> Self {
        Self { limit, cached: vec![false; nr_pages], links: Links::new(nr_pages), queue: Queue::default() }
    }
}

impl Policy for Lru {
    fn access(&mut self, pgoff: u32) -> Outcome {
        let hit = self.cached[pgoff as usize];
        if hit {
            self.queue.remove(&mut self.links, pgoff);
        } else {
            if self.queue.len() == self.limit
                && let Some(victim) = self.queue.pop(&mut self.links)
            {
                self.cached[victim as usize] = false;
            }
            self.cached[pgoff as usize] = true;
        }
        self.queue.push(&mut self.links, pgoff);
        if hit { Outcome::Hit } else { Outcome::Major }
    }

    fn nr_cached(&self) -> usize {
        self.queue.len()
    }
}
