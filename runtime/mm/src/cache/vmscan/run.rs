//! Neighbours leave together: a punch walks every mapping of the object, for a run of pages about as fast as for one.
//!
//! # Context: handler, inside a section

use super::evict::{Why, punch, take_idle};
use super::scan::{BLOCK_PAGES, Scan, by_blocks};
use crate::failpoint;
use crate::folio::FolioWord;
use crate::lru::Entry;
use crate::mapping::Mapping;
use crate::page::EXTENT_PAGES;
use crate::rmap;
use crate::workingset::{Queue, Shadow};

/// Neighbours that are evicted together: they are `evicting`, and their chunk counts it.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// As it was found when the first page was taken, and not by its number again: who drops the object withdraws that, and
    /// waits for our section.
    mapping: &'a Mapping<'a>,
    from: u64,
    to: u64,
    /// One bit a page from `from`: it came from `main`.
    of_main: u64,
    /// More pages are looked at until its block ends.
    pub(super) whole: bool,
}

impl Run<'_> {
    fn takes(&self, id: u32, pgoff: u64) -> bool {
        let in_chunk = !pgoff.is_multiple_of(EXTENT_PAGES as u64);
        let at_block = self.whole && pgoff.is_multiple_of(BLOCK_PAGES);
        self.mapping.id == id && self.to == pgoff && in_chunk && !at_block && pgoff - self.from < u64::from(u64::BITS)
    }
}

/// Takes one page into the run, ending the run first where the page is not its neighbour. Returns how many pages went.
pub(super) fn evict<'a>(
    scan: &Scan<'a>,
    run: &mut Option<Run<'a>>,
    entry: Entry,
    mapping: &'a Mapping<'a>,
    word: &FolioWord,
) -> u64 {
    let (id, p) = (entry.mapping_id(), entry.pgoff());
    let extends = run.is_some_and(|r| r.takes(id, p));
    let freed = if extends { 0 } else { end_run(scan, run.take()) };
    if !extends && !rmap::get_evict(scan.rmap, mapping, scan.stripe, p) {
        word.keep(word.load().version());
        scan.enter(&scan.account.lru.main, entry);
        return freed;
    }
    if !take_idle(mapping, word) {
        // Somebody came for it between the two looks: the next verdict says so.
        scan.enter(&scan.account.lru.probation, entry);
        if !extends && let Some(chunk) = mapping.chunk(p) {
            chunk.put_evict();
        }
        return freed;
    }
    failpoint!(EVICT_TAKEN);
    let new = Run { mapping, from: p, to: p, of_main: 0, whole: by_blocks(mapping) };
    let run = run.get_or_insert(new);
    run.of_main |= u64::from(entry.origin() == Queue::Main) << (p - run.from);
    run.to = p + 1;
    freed
}

/// Punches a run, makes its pages absent and gives them back to the limit.
pub(super) fn end_run(scan: &Scan<'_>, run: Option<Run<'_>>) -> u64 {
    let Some(run) = run else { return 0 };
    let mapping = run.mapping;
    let limit = scan.account.limit();
    let shadow = |p: u64| {
        let of_main = run.of_main >> (p - run.from) & 1 != 0;
        scan.account.lru.evicted(if of_main { Queue::Main } else { Queue::Small }, limit)
    };
    let (pages, shadows) = ((run.from, run.to), Some(&shadow as &dyn Fn(u64) -> Shadow));
    let freed = punch(mapping, scan.env.park, scan.stripe, pages, Why::Reclaim, shadows);
    if let Some(chunk) = mapping.chunk(run.from) {
        chunk.put_evict();
    }
    freed
}
