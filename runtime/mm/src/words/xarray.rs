//! Which chunks of an object have anything in their words. Linux: the nodes of an `address_space`'s `i_pages`.
//!
//! An object may be ten thousand times as large as what was ever touched of it. Who looks for pages by what their words
//! say (a sync, a flush, the flusher) looks where there is a node, so that it costs with what was touched, not with the
//! size of the object. A node is one bit; it comes with the first page of the chunk that is claimed, and goes when a
//! flush finds every word of the chunk at rest:
//! ```text
//! who claims, holds or voids a page          who prunes
//! word: absent -> filling
//!                                            -node
//! fence                                      fence
//! node? if there is none: +node              looks at the words: one is not at rest: +node again
//! ```
//! Either the first sees that the node has gone, or the second sees the word (tests/loom_xarray.rs). In between a chunk
//! with a word in use has no node; so who walks the nodes, and must not miss one, keeps who prunes away by a lock of the
//! control plane.
//!
//! # Context: handler

use crate::page::{EXTENT_PAGES, chunk_of, pgoff_index};
use crate::sync::{AtomicU64, Ordering, fence};

const BITS: usize = 64;

/// One bit a chunk of the object. All-zero: nothing was ever touched.
#[derive(Debug, Clone, Copy)]
pub struct Nodes<'g>(&'g [AtomicU64]);

impl<'g> Nodes<'g> {
    /// Returns how many words the nodes of `nr_chunks` chunks take.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn words(nr_chunks: usize) -> usize {
        nr_chunks.div_ceil(BITS)
    }

    /// Wraps zeroed words.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(words: &'g [AtomicU64]) -> Self {
        Self(words)
    }

    fn word(&self, chunk: usize) -> Option<&AtomicU64> {
        self.0.get(chunk / BITS)
    }

    /// Returns whether the chunk has a node.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn has(&self, chunk: usize) -> bool {
        // SeqCst pairs with `Nodes::insert` and `Nodes::remove`: who walks sees every node that was made before it began.
        self.word(chunk).is_some_and(|w| w.load(Ordering::SeqCst) & (1 << (chunk % BITS)) != 0)
    }

    /// Gives the chunk of page `pgoff` a node. The caller has put into a word of it what is to be found there.
    ///
    /// # Context: handler
    #[inline]
    pub fn insert(&self, pgoff: u64) {
        let chunk = pgoff_index(chunk_of(pgoff));
        // The fence pairs with `Nodes::remove`: see the module.
        fence(Ordering::SeqCst);
        if !self.has(chunk)
            && let Some(word) = self.word(chunk)
        {
            word.fetch_or(1 << (chunk % BITS), Ordering::SeqCst);
        }
    }

    /// Takes the chunk's node away. The caller keeps walkers out, and looks at the words afterwards: if one is in use, it
    /// calls [`Nodes::insert`].
    ///
    /// # Context: handler
    pub fn remove(&self, chunk: usize) {
        // SeqCst pairs with `has`, and the fence below with `Nodes::insert`.
        if let Some(word) = self.word(chunk) {
            word.fetch_and(!(1 << (chunk % BITS)), Ordering::SeqCst);
        }
        // Before the caller's look at the words: see the module.
        fence(Ordering::SeqCst);
    }

    /// Returns the first chunk from `chunk` on, before `end`, that has a node.
    fn next(&self, chunk: usize, end: usize) -> Option<usize> {
        let mut at = chunk;
        while at < end {
            // SeqCst pairs with `Nodes::insert` and `Nodes::remove`, as in `has`.
            let bits = self.word(at)?.load(Ordering::SeqCst) >> (at % BITS);
            if bits != 0 {
                let found = at + bits.trailing_zeros() as usize;
                return (found < end).then_some(found);
            }
            at = (at / BITS + 1) * BITS;
        }
        None
    }

    /// Returns the next pages of `from..to`, first and behind the last, whose chunks have nodes, neighbours together, but at
    /// most `max_chunks` of them.
    ///
    /// # Context: handler
    #[must_use]
    pub fn next_run(&self, from: u64, to: u64, max_chunks: usize) -> Option<(u64, u64)> {
        if from >= to {
            return None;
        }
        let end = pgoff_index(to.div_ceil(EXTENT_PAGES as u64));
        let first = self.next(pgoff_index(chunk_of(from)), end)?;
        let mut last = first + 1;
        while last < end && last - first < max_chunks && self.has(last) {
            last += 1;
        }
        let page = |chunk: usize| (chunk as u64).saturating_mul(EXTENT_PAGES as u64);
        Some((page(first).max(from), page(last).min(to)))
    }

    /// Returns every run of [`Nodes::next_run`] in `from..to`.
    ///
    /// # Context: handler
    pub fn runs(self, from: u64, to: u64, max_chunks: usize) -> impl Iterator<Item = (u64, u64)> + use<'g> {
        let mut at = from;
        core::iter::from_fn(move || {
            let run = self.next_run(at, to, max_chunks)?;
            at = run.1;
            Some(run)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn words(nr: usize) -> Vec<AtomicU64> {
        (0..nr).map(|_| AtomicU64::new(0)).collect()
    }

    const C: u64 = EXTENT_PAGES as u64;

    #[test]
    fn runs_are_the_chunks_with_nodes_cut_to_the_range() {
        let words = words(Nodes::words(200));
        let nodes = Nodes::new(&words);
        assert_eq!(nodes.next_run(0, 200 * C, usize::MAX), None);
        for chunk in [0, 63, 64, 65, 130] {
            nodes.insert(chunk * C + 7);
        }
        let all: Vec<_> = nodes.runs(0, 200 * C, usize::MAX).collect();
        assert_eq!(all, [(0, C), (63 * C, 66 * C), (130 * C, 131 * C)]);
        let cut: Vec<_> = nodes.runs(5, 64 * C + 1, usize::MAX).collect();
        assert_eq!(cut, [(5, C), (63 * C, 64 * C + 1)]);
        let short: Vec<_> = nodes.runs(63 * C, 130 * C, 2).collect();
        assert_eq!(short, [(63 * C, 65 * C), (65 * C, 66 * C)]);
        nodes.remove(64);
        assert!(nodes.has(63) && !nodes.has(64) && nodes.has(65));
        assert_eq!(nodes.next_run(131 * C, 200 * C, 9), None);
        assert_eq!(nodes.next_run(7, 7, 9), None, "nothing in an empty range");
    }

    #[test]
    fn what_lies_past_the_table_has_no_node() {
        let words = words(1);
        let nodes = Nodes::new(&words);
        nodes.insert(64 * C);
        assert!(!nodes.has(64));
        assert_eq!(nodes.next_run(0, u64::MAX, 9), None);
    }
}
