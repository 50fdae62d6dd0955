//! Words that are read whole, or not at all, by readers who write nothing: Linux's seqlock, whose writers do not wait here.
//!
//! A writer owns the words by the odd version; who finds it odd leaves them to the other.
//! ```text
//! writer                              reader
//! version 2 -> 3 (or: it is another's)
//!                                     version 3: looks again
//! fence; writes the words
//!                                     version 2, reads some new words
//! version 4
//!                                     fence; version is not 2: looks again
//! ```
//! Every order of a writer and a reader, and of two writers, is walked by tests/loom_seqlock.rs.
//!
//! # Context: handler

use crate::sync::{AtomicU64, Ordering, fence};

/// `N` words that belong together; zeros at first.
#[derive(Debug)]
pub struct SeqLock<const N: usize> {
    version: AtomicU64,
    words: [AtomicU64; N],
}

impl<const N: usize> Default for SeqLock<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> SeqLock<N> {
    /// Returns zeros.
    ///
    /// # Context: handler
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self { version: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; N] }
    }

    /// Returns zeros.
    ///
    /// # Context: handler
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self { version: AtomicU64::new(0), words: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Writes all words; `false`: somebody else is writing, and these are dropped.
    ///
    /// # Context: handler
    pub fn try_write(&self, words: &[u64; N]) -> bool {
        let version = self.version.load(Ordering::Relaxed);
        let odd = version.wrapping_add(1);
        // Acquire pairs with the Release below, of the `try_write` before: its words come before ours.
        if version & 1 != 0
            || self.version.compare_exchange(version, odd, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return false;
        }
        // The fence pairs with the one in `read`: who reads a word of ours finds the odd version, or a later one.
        fence(Ordering::Release);
        self.words.iter().zip(words).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
        // Release pairs with `read`, and with the next writer's exchange.
        self.version.store(odd.wrapping_add(1), Ordering::Release);
        true
    }

    /// Returns all words as one writer left them; `None`: they changed each of `tries` times.
    ///
    /// # Context: handler
    pub fn read(&self, tries: usize) -> Option<[u64; N]> {
        for _ in 0..tries {
            // Acquire pairs with the last store of `try_write`.
            let version = self.version.load(Ordering::Acquire);
            if version & 1 != 0 {
                continue;
            }
            let mut words = [0; N];
            words.iter_mut().zip(&self.words).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
            // The fence pairs with the one in `try_write`.
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) == version {
                return Some(words);
            }
        }
        None
    }
}
