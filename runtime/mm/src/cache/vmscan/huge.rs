//! Reclaim of huge pages: they are unmapped, judged and dropped whole.
//!
//! Each of the 512 pages has its entry in the queues. The first that comes by decides for all: the others find their page
//! on probation, or gone.
//!
//! # Context: handler, in the section of the caller

use super::evict::{Why, punch};
use super::run::{self, Run};
use super::scan::{Scan, must_stay};
use crate::folio::{FolioWord, UNMAPPED};
use crate::host::{Env, Rmap};
use crate::khugepaged;
use crate::lru::Entry;
use crate::mapping::Mapping;
use crate::page::EXTENT_PAGES;
use crate::rmap;

/// Drops a huge page whole, if nobody missed any part of it; else this part, and what is left is small pages again.
/// Returns how many pages went.
pub(super) fn evict_huge<'a>(
    scan: &Scan<'a>,
    run: &mut Option<Run<'a>>,
    entry: Entry,
    mapping: &'a Mapping<'a>,
    word: &FolioWord,
) -> u64 {
    let first = khugepaged::chunk_start(entry.pgoff());
    if rmap::has_user_pins(scan.rmap, mapping, first) || !rmap::get_evict(scan.rmap, mapping, scan.stripe, first) {
        word.keep(word.load().version());
        scan.enter(&scan.account.lru.main, entry);
        return 0;
    }
    let end = first.saturating_add(EXTENT_PAGES as u64);
    let whole = khugepaged::try_evict_huge(mapping, scan.env.park, first, Some(word));
    let freed = if whole { punch(mapping, scan.env.park, scan.stripe, (first, end), Why::Reclaim, None) } else { 0 };
    if let Some(chunk) = mapping.chunk(first) {
        chunk.put_evict();
    }
    if whole {
        return freed;
    }
    run::evict(scan, run, entry, mapping, word)
}

/// Unmaps the huge page that an entry is a part of, all of it, and puts the entry on probation. Returns whether there
/// was one.
pub(super) fn age_huge(scan: &Scan<'_>, entry: Entry) -> bool {
    let Some(mapping) = scan.rmap.mapping(entry.mapping_id()) else { return false };
    let Some(word) = mapping.folio(entry.pgoff()) else { return false };
    if !khugepaged::is_huge(mapping, entry.pgoff()) || !entry.is_current(word.load()) {
        return false;
    }
    let first = khugepaged::chunk_start(entry.pgoff());
    let lru = &scan.account.lru;
    if word.load().has(UNMAPPED) {
        // The first of its pages that came by has unmapped them all.
        scan.enter(&lru.probation, entry);
        return true;
    }
    if must_stay(mapping, word.load()) || !rmap::get_evict(scan.rmap, mapping, scan.stripe, first) {
        scan.enter(&lru.main, entry);
        return true;
    }
    let unmapped = khugepaged::try_to_unmap_huge(scan.rmap, mapping, scan.stripe, first);
    if let Some(chunk) = mapping.chunk(first) {
        chunk.put_evict();
    }
    scan.enter(if unmapped { &lru.probation } else { &lru.main }, entry);
    true
}

/// Both stages at once for a huge page; 0: a part of it stays.
pub(super) fn reclaim(env: Env<'_>, r: &dyn Rmap, mapping: &Mapping<'_>, stripe: usize, first: u64) -> u64 {
    if !rmap::get_evict(r, mapping, stripe, first) {
        return 0;
    }
    let idle = khugepaged::try_to_unmap_huge(r, mapping, stripe, first)
        && khugepaged::try_evict_huge(mapping, env.park, first, None);
    let end = first.saturating_add(EXTENT_PAGES as u64);
    let freed = if idle { punch(mapping, env.park, stripe, (first, end), Why::Asked, None) } else { 0 };
    if let Some(chunk) = mapping.chunk(first) {
        chunk.put_evict();
    }
    freed
}

/// Returns whether the page is part of a huge page that a program's pin keeps whole.
pub(super) fn is_kept_whole(r: &dyn Rmap, mapping: &Mapping<'_>, pgoff: u64) -> bool {
    khugepaged::is_huge(mapping, pgoff) && rmap::has_user_pins(r, mapping, khugepaged::chunk_start(pgoff))
}
