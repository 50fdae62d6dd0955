//! What keeps the cache full, when nothing can leave it: what a call says that has failed for it.
//!
//! # Context: control plane

use crate::short::Short;
use softfault_mm::folio::{DIRTY, Folio, HELD, State};
use softfault_mm::mapping::Mapping;
use softfault_mm::page::EXTENT_PAGES;
use softfault_mm::types::FillError;
use std::fmt;

/// What the pages of a full cache wait for, in pages; a page counts where it is named first. A look at words that others
/// change meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InTheWay {
    /// The limit that is reached, in bytes.
    pub limit_bytes: u64,
    /// It is the object's own.
    pub is_own_limit: bool,
    /// Dirty, and the store does not take them.
    pub failing_pages: u64,
    /// One of the objects whose store does not, and what it says.
    pub failing: Option<(String, FillError)>,
    /// Pinned.
    pub pinned_pages: u64,
    /// Held dirty.
    pub held_pages: u64,
    /// Written, with nowhere to go: anonymous memory without a swap file.
    pub unswappable_pages: u64,
    /// On their way from a store, to one, or out of the cache.
    pub moving_pages: u64,
    /// Whatever else.
    pub other_pages: u64,
}

impl InTheWay {
    /// Counts the pages of one object.
    pub(crate) fn count(&mut self, m: &Mapping<'_>) {
        let failure = m.failing.cause();
        let cached = m.chunks.iter().zip(m.folios.chunks(EXTENT_PAGES)).filter(|(c, _)| c.nr_uptodate() > 0);
        for word in cached.flat_map(|(_, words)| words) {
            if let Some(nr) = self.place_of(m, word.load(), failure.is_some()) {
                *nr += 1;
            }
        }
        if let Some(error) = failure.filter(|_| self.failing.is_none()) {
            self.failing = Some((format!("{:?}", Short(m.label)), error));
        }
    }

    fn place_of(&mut self, m: &Mapping<'_>, seen: Folio, fails: bool) -> Option<&mut u64> {
        Some(match seen.state() {
            State::Absent | State::Poisoned => return None,
            State::Filling | State::Writeback | State::Evicting => &mut self.moving_pages,
            State::Uptodate if seen.has(DIRTY) && fails => &mut self.failing_pages,
            State::Uptodate if seen.pins() > 0 => &mut self.pinned_pages,
            State::Uptodate if seen.has(DIRTY | HELD) => &mut self.held_pages,
            State::Uptodate if !m.dirty_goes => &mut self.unswappable_pages,
            State::Uptodate => &mut self.other_pages,
        })
    }
}

impl fmt::Display for InTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.is_own_limit { "the object's limit" } else { "the limit" };
        write!(f, "of {} KiB, which is {whose}, ", self.limit_bytes >> 10)?;
        let kinds = [
            (self.failing_pages, "pages are dirty and their store fails"),
            (self.pinned_pages, "are pinned"),
            (self.held_pages, "are held dirty"),
            (self.unswappable_pages, "are anonymous memory without a swap file"),
            (self.moving_pages, "are being read, written or dropped"),
            (self.other_pages, "are in use"),
        ];
        let mut comma = "";
        for (nr, what) in kinds.into_iter().filter(|(nr, _)| *nr > 0) {
            write!(f, "{comma}{nr} {what}")?;
            comma = ", ";
        }
        match &self.failing {
            Some((object, error)) => write!(f, " ({object}: {error})"),
            None => Ok(()),
        }
    }
}
