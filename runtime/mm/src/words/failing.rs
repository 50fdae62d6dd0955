//! An object whose store fails: that it does, why, and how much of the cache waits for it.
//!
//! Its dirty pages can go nowhere, so they are *stuck*: they count against their own object, and not among the dirty pages for
//! which writers of other objects wait. What bounds them is in `mapping`, the sum over all objects in `memcontrol`.
//!
//! A store that fails now and then is not one that fails: what it did not take is written again, and mostly is taken then.
//! So it takes [`IN_A_ROW`] failures without a success between them. A refused store ends a process; a late one waits.
//! Want of space is different: it does not pass by itself, and writes to blocks that are there succeed meanwhile, so that a
//! row never gets long. It counts at once.
//!
//! One word has the dirty pages and whether they are stuck, so that each is counted as stuck once, whoever comes first:
//! ```text
//! a thread                                the flusher
//! page dirty: +1, not failing
//!                                         failing: 1 page is stuck
//! page dirty: +1, failing: 1 more stuck
//! ```
//!
//! # Context: handler

use crate::errno::Errno;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::types::FillError;

/// Set in the word while the store fails; the rest is the number of dirty pages.
const FAILING: u64 = 1 << 63;

/// Failures one after the other that make a store one that fails.
pub const IN_A_ROW: u32 = 8;

/// What the store was asked when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To take pages.
    Write,
    /// To make durable what it took, where it cannot give that back before.
    Flush,
}

/// Returns whether the store has no room, and says so reliably.
fn is_want_of_space(error: FillError) -> bool {
    matches!(error, FillError::Io(Errno::ENOSPC | Errno::EDQUOT))
}

/// Whether an object's store fails, and its dirty pages.
#[derive(Debug)]
pub struct Failing {
    write: Answers,
    flush: Answers,
    dirty: AtomicU64,
    /// How often in a row the store of an exclusive object took nothing of what reclaim gave it.
    refused: AtomicU32,
}

/// What the store has said to one kind of question since it last did what it was asked.
#[derive(Debug)]
struct Answers {
    /// How it failed last; 0: it did not.
    cause: AtomicU32,
    /// How often.
    failures: AtomicU32,
}

impl Answers {
    fn new() -> Self {
        Self { cause: AtomicU32::new(0), failures: AtomicU32::new(0) }
    }
}

impl Default for Failing {
    fn default() -> Self {
        Self::new()
    }
}

impl Failing {
    /// Returns a store that is well.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new() -> Self {
        let (write, flush) = (Answers::new(), Answers::new());
        Self { write, flush, dirty: AtomicU64::new(0), refused: AtomicU32::new(0) }
    }

    fn answers(&self, asked: Asked) -> &Answers {
        match asked {
            Asked::Write => &self.write,
            Asked::Flush => &self.flush,
        }
    }

    /// Returns whether the store fails.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.dirty.load(Ordering::Relaxed) & FAILING != 0
    }

    /// Notes that the store of an exclusive object was given pages by reclaim, and whether it took any.
    pub(crate) fn note_given(&self, took: bool) {
        if took {
            self.refused.store(0, Ordering::Relaxed);
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns whether the store took nothing, so often in a row that it would count as one that fails if it were one that the
    /// flusher looks after.
    pub(crate) fn is_refusing(&self) -> bool {
        let failures = self.write.failures.load(Ordering::Relaxed);
        failures.max(self.refused.load(Ordering::Relaxed)) >= IN_A_ROW
    }

    /// Returns what the store has said since it last did what it was asked, be it once.
    ///
    /// # Context: handler
    #[must_use]
    pub fn cause(&self) -> Option<FillError> {
        let code = |a: &Answers| Some(a.cause.load(Ordering::Relaxed)).filter(|code| *code != 0);
        let code = code(&self.write).or_else(|| code(&self.flush))?;
        Some(FillError::from_code(u16::try_from(code).unwrap_or(0)))
    }

    /// Returns the number of dirty pages.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr_dirty(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed) & !FAILING
    }

    /// Counts dirty pages; returns how many of them are stuck.
    pub(crate) fn dirtied(&self, nr: u64) -> u64 {
        if self.dirty.fetch_add(nr, Ordering::Relaxed) & FAILING == 0 { 0 } else { nr }
    }

    /// Counts pages that are dirty no more; returns how many of them were stuck.
    pub(crate) fn cleaned(&self, nr: u64) -> u64 {
        let mut seen = self.dirty.load(Ordering::Relaxed);
        loop {
            // Never below 0: the number decides who may store.
            let gone = nr.min(seen & !FAILING);
            match self.dirty.compare_exchange_weak(seen, seen - gone, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return if seen & FAILING == 0 { 0 } else { gone },
                Err(now) => seen = now,
            }
        }
    }

    /// Keeps why the store failed, whatever follows from it; returns how often it has failed in a row.
    pub(crate) fn note(&self, asked: Asked, error: FillError) -> u32 {
        let answers = self.answers(asked);
        answers.cause.store(u32::from(error.code()), Ordering::Relaxed);
        answers.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Notes that the store failed once more; returns how many pages are stuck from now on, if it is one that fails now, and
    /// was not before.
    pub(crate) fn set(&self, asked: Asked, error: FillError) -> Option<u64> {
        let in_a_row = self.note(asked, error);
        if in_a_row < IN_A_ROW && !is_want_of_space(error) {
            return None;
        }
        let before = self.dirty.fetch_or(FAILING, Ordering::Relaxed);
        (before & FAILING == 0).then_some(before)
    }

    /// Notes that the store did what it was asked; returns how many pages are stuck no more, if it is well now.
    ///
    /// A failure of the other kind at the same time may be overlooked until the store is asked again.
    pub(crate) fn clear(&self, asked: Asked) -> Option<u64> {
        let answers = self.answers(asked);
        // Mostly it was well: a look, and nothing to write.
        if answers.cause.load(Ordering::Relaxed) == 0 || answers.cause.swap(0, Ordering::Relaxed) == 0 {
            return None;
        }
        answers.failures.store(0, Ordering::Relaxed);
        if self.cause().is_some() {
            return None;
        }
        let before = self.dirty.fetch_and(!FAILING, Ordering::Relaxed);
        (before & FAILING != 0).then_some(before & !FAILING)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const EIO: FillError = FillError::Io(Errno::EIO);

    #[test]
    fn a_store_that_fails_now_and_then_does_not_fail() {
        let f = Failing::new();
        f.dirtied(3);
        for _ in 0..100 {
            for _ in 1..IN_A_ROW {
                assert_eq!(f.set(Asked::Write, EIO), None);
            }
            assert!(!f.is_set() && f.cause() == Some(EIO), "it may be the last time");
            assert_eq!((f.clear(Asked::Write), f.cause()), (None, None));
        }
        fail(&f, Asked::Write);
        assert_eq!(f.set(Asked::Write, EIO), Some(3));
    }

    #[test]
    fn a_full_store_fails_at_once() {
        for error in [Errno::ENOSPC, Errno::EDQUOT].map(FillError::Io) {
            let f = Failing::new();
            f.dirtied(3);
            assert_eq!((f.set(Asked::Write, error), f.is_set(), f.cause()), (Some(3), true, Some(error)));
            assert_eq!((f.clear(Asked::Write), f.is_set()), (Some(3), false));
        }
    }

    #[test]
    fn what_is_only_noted_has_no_consequence() {
        let f = Failing::new();
        f.dirtied(3);
        (0..2 * IN_A_ROW).for_each(|_| _ = f.note(Asked::Write, EIO));
        assert_eq!((f.is_set(), f.cause(), f.dirtied(1)), (false, Some(EIO), 0));
        assert_eq!((f.clear(Asked::Write), f.cause()), (None, None));
    }

    /// All but the last of the failures that count.
    fn fail(f: &Failing, asked: Asked) {
        (1..IN_A_ROW).for_each(|_| assert_eq!(f.set(asked, EIO), None));
    }

    #[test]
    fn pages_are_stuck_once() {
        let f = Failing::new();
        assert_eq!((f.dirtied(3), f.cleaned(1), f.nr_dirty(), f.cause()), (0, 0, 2, None));
        assert_eq!(f.clear(Asked::Write), None, "it was well");
        fail(&f, Asked::Write);
        assert_eq!((f.set(Asked::Write, EIO), f.set(Asked::Write, EIO)), (Some(2), None));
        assert!(f.is_set() && f.cause() == Some(EIO));
        assert_eq!((f.dirtied(2), f.cleaned(1), f.cleaned(9), f.nr_dirty()), (2, 1, 3, 0));
        assert_eq!(f.dirtied(4), 4);
        assert_eq!((f.clear(Asked::Write), f.clear(Asked::Write), f.nr_dirty()), (Some(4), None, 4));
        assert_eq!(f.cleaned(4), 0);
    }

    #[test]
    fn it_is_well_when_it_does_both() {
        let f = Failing::new();
        fail(&f, Asked::Flush);
        assert_eq!((f.set(Asked::Flush, EIO), f.set(Asked::Write, FillError::Short)), (Some(0), None));
        assert_eq!((f.clear(Asked::Write), f.cause()), (None, Some(EIO)));
        assert_eq!((f.clear(Asked::Flush), f.is_set()), (Some(0), false));
    }
}
