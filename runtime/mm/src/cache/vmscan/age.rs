//! The other end of the queues: pages that grew old are unmapped and put on probation, where a touch shows that they are missed.
//!
//! # Context: handler, inside a section

use super::huge;
use super::scan::{BLOCK_PAGES, Scan, Shrunk, by_blocks, each_mapping, must_stay};
use crate::failpoint;
use crate::folio::{DIRTY, FolioWord};
use crate::host::{BATCH, Batch};
use crate::lru::{Entry, Lruvec};
use crate::mapping::Mapping;
use crate::page::pgoff_index;
use crate::rmap;
use crate::vmstat::Event;
use crate::workingset::Queue;

/// Moves to the batch's front the dirty pages of stores that wait for a device, and returns how many they are. They are
/// written while they are on probation, so that their verdict need not wait for the device; a page that is missed
/// meanwhile was written in vain.
pub(super) fn pick_early(scan: &Scan<'_>, batch: &mut Batch, unmapped: usize) -> usize {
    let mut nr = 0;
    for i in 0..unmapped {
        let Some(page) = batch.pages.get(i).copied() else { break };
        let blocks =
            |m: &Mapping<'_>| m.write_blocks && m.dirty_goes && m.folio(page.1).is_some_and(|w| w.load().has(DIRTY));
        if scan.rmap.mapping(page.0).is_some_and(blocks)
            && let Some(at) = batch.pages.get_mut(nr)
        {
            *at = page;
            nr += 1;
        }
    }
    nr
}

/// Unmaps pages from the tail of `small` or `main`, if `whole` all of `small` first, and puts them on probation; returns how many
/// were looked at, how many entries named none, and how many are in the batch.
pub(super) fn age(scan: &Scan<'_>, batch: &mut Batch, whole: bool) -> (Shrunk, usize) {
    let lru = &scan.account.lru;
    let limit = scan.account.limit();
    let mut done = Shrunk::default();
    // While probation is full, verdicts come first: each page that is added would only make the others wait longer for theirs.
    if lru.probation.len() > Lruvec::probation_target(limit) {
        return (done, 0);
    }
    let most = pgoff_index(Lruvec::batch_pages(limit));
    let (mut nr, mut of_main) = (0, 0u64);
    while nr < most && done.scanned + done.stale < 2 * BATCH as u64 {
        let Some(entry) = lru.pop_coldest(limit, whole) else { break };
        let word = scan.rmap.mapping(entry.mapping_id()).and_then(|m| m.folio(entry.pgoff()));
        if !word.is_some_and(|w| entry.is_current(w.load())) {
            done.stale += 1;
            continue;
        }
        done.scanned += 1;
        if huge::age_huge(scan, entry) {
            continue;
        }
        let first = nr;
        nr += unmap(scan, entry, batch.pages.get_mut(nr..most).unwrap_or(&mut []));
        if entry.origin() == Queue::Main {
            of_main |= (first..nr).fold(0, |bits, i| bits | 1 << i);
        }
    }
    let Batch { pages, zaps } = batch;
    let pages = pages.get(..nr).unwrap_or(&[]);
    each_mapping(scan.rmap, pages, &mut |mapping| {
        // A page of an exclusive object lies in its mapping and nowhere else, so it cannot be unmapped and kept: it is
        // put on probation as it is.
        if !mapping.exclusive {
            rmap::try_to_unmap(scan.rmap, mapping, pages, zaps);
        }
    });
    for (i, (id, pgoff)) in pages.iter().enumerate() {
        if let Some(mapping) = scan.rmap.mapping(*id)
            && let Some(word) = mapping.folio(*pgoff)
        {
            let from = if of_main >> i & 1 != 0 { Queue::Main } else { Queue::Small };
            let entry = Entry::new(*id, *pgoff, word.load()).taken_from(from);
            word.unpin();
            scan.enter(&lru.probation, entry);
        }
    }
    scan.stat.add(scan.stripe, Event::PGDEACTIVATE, nr as u64);
    (done, nr)
}

/// Pins and marks one page for unmapping, where many mappings exist with its neighbours, and names them in `room`,
/// in order. Returns how many: 0 where the page is gone, or is not to be unmapped now.
fn unmap(scan: &Scan<'_>, entry: Entry, room: &mut [(u32, u64)]) -> usize {
    let Some(mapping) = scan.rmap.mapping(entry.mapping_id()) else { return 0 };
    let Some(word) = mapping.folio(entry.pgoff()) else { return 0 };
    let seen = word.load();
    if !entry.is_current(seen) || word.end_isolation(seen) {
        return 0;
    }
    let mut nr = 0;
    // The chunk counts an eviction meanwhile, so that no extent is handed to the kernel while a page of it is unmapped.
    if !must_stay(mapping, seen) && rmap::get_evict(scan.rmap, mapping, scan.stripe, entry.pgoff()) {
        if word.try_unmap().is_ok() {
            nr = take_block(mapping, entry.pgoff(), room);
        } else {
            // A page that was pinned at its verdict may still have its mark, with which no attempt to unmap it succeeds:
            // it would go from queue to queue for ever.
            word.keep(word.load().version());
        }
        if let Some(chunk) = mapping.chunk(entry.pgoff()) {
            chunk.put_evict();
        }
    }
    failpoint!(UNMAP_MARKED);
    if nr == 0 {
        scan.enter(&scan.account.lru.main, entry);
    }
    nr
}

/// Names page `pgoff`, which is marked, in `room`, which is not empty; where many mappings exist marks and names the pages
/// of its block too, as far as there is room. Returns how many it named.
fn take_block(mapping: &Mapping<'_>, pgoff: u64, room: &mut [(u32, u64)]) -> usize {
    let left = room.len() as u64;
    let block = pgoff & !(BLOCK_PAGES - 1);
    let (from, to) = match by_blocks(mapping) {
        true if left >= BLOCK_PAGES => (block, block + BLOCK_PAGES),
        true => (pgoff, pgoff.saturating_add(left).min(block + BLOCK_PAGES)),
        false => (pgoff, pgoff.saturating_add(1)),
    };
    let mut nr = 0;
    for p in from..to {
        let takes = |w: &FolioWord| !must_stay(mapping, w.load()) && w.try_isolate().is_ok();
        if (p == pgoff || mapping.folio(p).is_some_and(takes))
            && let Some(at) = room.get_mut(nr)
        {
            *at = (mapping.id, p);
            nr += 1;
        }
    }
    nr
}
