//! Writes that failed flushes took away: which pages they were on, and whether the program knows.
//!
//! # Context: control plane, the flusher

use super::state::{Flushing, bytes};
use softfault_mm::folio::{DIRTY, FolioWord, LOST, State};
use softfault_mm::mapping::Mapping;
use softfault_mm::page::PAGE_SHIFT;
use std::ops::Range;

/// Returns the bytes of the lost pages among `pages`, and notes that the program is told of them. Allocates.
///
/// # Context: control plane
pub(crate) fn tell(f: &Flushing, pages: Range<u64>) -> Vec<Range<u64>> {
    let m = f.mapping();
    let lost = {
        let _walk = f.state().walk();
        lost_in(m, pages)
    };
    let knows = |w: &FolioWord| {
        let seen = w.load();
        // A store that was made before it is told of was made without the knowledge.
        let written = seen.has(DIRTY) || seen.is_unsynced() || seen.state() == State::Writeback;
        seen.has(LOST) && !written
    };
    let pages = lost.iter().flat_map(|r| r.start >> PAGE_SHIFT..r.end >> PAGE_SHIFT);
    for p in pages.filter(|p| m.folio(*p).is_some_and(knows)) {
        f.state().told.note(p, m.folios.len());
    }
    lost
}

/// Accepts the loss of what was written to the pages: nobody is told of it any more.
///
/// # Context: control plane
pub(crate) fn forget(m: &Mapping<'_>, pages: &Range<u64>) {
    for word in pages.clone().map_while(|p| m.folio(p)).filter(|w| w.load().has(LOST)) {
        word.clear(LOST);
    }
}

/// Returns the bytes of the lost pages among `pages`, those of neighbours in one range.
fn lost_in(m: &Mapping<'_>, pages: Range<u64>) -> Vec<Range<u64>> {
    let mut list: Vec<Range<u64>> = Vec::new();
    for (page, _) in m.each_folio(pages.start, pages.end).filter(|(_, w)| w.load().has(LOST)) {
        let here = bytes(&(page..page + 1));
        match list.last_mut() {
            Some(last) if last.end == here.start => last.end = here.end,
            _ => list.push(here),
        }
    }
    list
}
