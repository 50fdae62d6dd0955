//! What an exclusive object consists of: its place in an arena, its store, and the digest each page was filled with.
//!
//! # Context: handler; [`Pages::leave`]: control plane

use super::place::Place;
use crate::frames::{Frames, Obstacle};
use crate::store::Store;
use crate::store::blocks::Blocks;
use crate::store::retry::Retries;
use crate::store::source::Source;
use crate::sys::Errno;
use core::sync::atomic::{AtomicU64, Ordering};
use softfault_mm::folio::{DIRTY, FolioWord};
use softfault_mm::mapping::FailurePolicy;
use softfault_mm::page::{PAGE_SIZE, pgoff_index};
use softfault_mm::types::FillError;

/// What an exclusive object does with pages that were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Changed pages go to the store; otherwise they stay.
    pub writes_back: bool,
    /// Every page counts as written (its bytes are nowhere else): none is looked at.
    pub always_dirty: bool,
    /// Pages are never moved, as if the kernel could not.
    pub by_copy: bool,
}

/// What an exclusive object is made of.
#[expect(missing_debug_implementations, reason = "a store has none; it is taken apart at once")]
pub struct Parts<'s> {
    /// Where its pages lie while the store fills them, and while they wait to be written.
    pub frames: &'s Frames,
    /// Where its pages come from, and go to.
    pub store: &'s dyn Store,
    /// Its pages' words.
    pub folios: &'s [FolioWord],
    /// A digest for each of them.
    pub filled: &'s [Filled],
    /// What becomes of pages that were written.
    pub facts: Facts,
    /// Its length, past which the store is not asked.
    pub len_bytes: u64,
    /// How often a failed read is tried again.
    pub retries: Retries,
    /// The store may be called in a handler.
    pub handler_safe: bool,
    /// What becomes of pages that the store cannot give.
    pub policy: FailurePolicy,
    /// The object's, in statistics and messages.
    pub name: u64,
}

/// The digest of a page as it was filled.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Filled([AtomicU64; 2]);

/// An exclusive object: its place in an arena, and its store.
pub(super) struct Pages<'s> {
    pub(super) frames: &'s Frames,
    pub(super) source: Source<'s>,
    folios: &'s [FolioWord],
    filled: &'s [Filled],
    pub(super) facts: Facts,
    pub(super) place: Place,
    /// Pages that lie in the arena.
    nr_mapped: AtomicU64,
    /// Writes of changed pages that the store refused.
    write_errors: AtomicU64,
}

impl<'s> Pages<'s> {
    /// Joins a pool of frames with a store.
    pub(super) fn new(parts: Parts<'s>) -> Self {
        let Parts { frames, store, folios, filled, facts, len_bytes, retries, handler_safe, policy, name } = parts;
        let (blocks, i_size) = (Blocks::of(store), AtomicU64::new(len_bytes));
        let source = Source { store, blocks, i_size, retries, handler_safe, policy, name };
        let (place, nr_mapped, write_errors) = (Place::default(), AtomicU64::new(0), AtomicU64::new(0));
        Self { frames, source, folios, filled, facts, place, nr_mapped, write_errors }
    }

    /// Forgets where the object is mapped; waits for MOVEs under way, not for reads. What still lies there goes with the
    /// mapping.
    pub(super) fn leave(&self) {
        self.place.leave();
        self.frames.note_dropped(self.nr_mapped.swap(0, Ordering::Relaxed));
    }

    /// Returns how many writes of changed pages the store refused.
    pub(super) fn write_errors(&self) -> u64 {
        self.write_errors.load(Ordering::Relaxed)
    }

    /// Counts pages that were put into the arena.
    pub(super) fn note_mapped(&self, nr: usize) {
        self.nr_mapped.fetch_add(nr as u64, Ordering::Relaxed);
        self.frames.note_mapped(nr as u64);
    }

    /// Counts pages that left the arena.
    pub(super) fn note_dropped(&self, nr: usize) {
        self.nr_mapped.fetch_sub(nr as u64, Ordering::Relaxed);
        self.frames.note_dropped(nr as u64);
    }

    /// Returns the page's word; `None`: it is past the object's end.
    pub(super) fn word(&self, pgoff: u64) -> Option<&FolioWord> {
        self.folios.get(pgoff_index(pgoff))
    }

    /// Returns whether a store to a page is found by its digest: not where every page counts as written, nor where none can be.
    pub(super) fn is_tracked(&self) -> bool {
        !self.facts.always_dirty && self.place.is_writable()
    }

    /// Remembers what a page is filled with. The owner of its claim only.
    pub(super) fn note_filled(&self, pgoff: u64, page: &[u8; PAGE_SIZE]) {
        if self.is_tracked()
            && let Some(Filled([a, b])) = self.filled.get(pgoff_index(pgoff))
        {
            let [x, y] = self.frames.key().digest(page);
            // Relaxed: who reads them owns the page by then, through its word.
            a.store(x, Ordering::Relaxed);
            b.store(y, Ordering::Relaxed);
        }
    }

    /// Returns whether the page, whose bytes now are `page`, was changed since it was filled. The evictor only.
    pub(super) fn is_changed(&self, pgoff: u64, page: &[u8; PAGE_SIZE]) -> bool {
        if self.word(pgoff).is_some_and(|w| w.load().has(DIRTY)) {
            return true;
        }
        if !self.is_tracked() {
            return false;
        }
        self.digest_of(pgoff) != Some(self.frames.key().digest(page))
    }

    /// Returns the digest of the page as it was filled, if there is one.
    pub(super) fn digest_of(&self, pgoff: u64) -> Option<[u64; 2]> {
        let Filled([a, b]) = self.filled.get(pgoff_index(pgoff))?;
        Some([a.load(Ordering::Relaxed), b.load(Ordering::Relaxed)])
    }

    /// Counts a write that the store refused.
    pub(super) fn note_write_error(&self) {
        self.write_errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns what a caller is told of an obstacle.
pub(super) fn error_of(obstacle: Obstacle) -> FillError {
    match obstacle {
        Obstacle::NoMemory => FillError::NoMemory,
        Obstacle::Gone => FillError::Refused,
        Obstacle::Busy => FillError::Io(Errno::EBUSY),
        Obstacle::Unfit => FillError::Io(Errno::EINVAL),
    }
}
