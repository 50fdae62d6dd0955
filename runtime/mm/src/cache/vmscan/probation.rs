//! The end of probation: who was missed stays, who is dirty is written, the others go.
//!
//! # Context: handler, inside a section

use super::evict::{Why, gone, leave, punch, take_idle};
use super::huge;
use super::run::{self, Run, end_run};
use super::scan::{BLOCK_PAGES, Look, Scan, Shrunk, each_mapping};
use crate::folio::{DIRTY, Folio, FolioWord, HELD, REFERENCED, State, UNMAPPED};
use crate::host::{BATCH, Batch};
use crate::khugepaged;
use crate::lru::{Entry, Lruvec};
use crate::mapping::Mapping;
use crate::page::EXTENT_PAGES;
use crate::rmap;
use crate::vmstat::Event;

/// Entries that are judged in one section, at most, whatever they name.
const JUDGED_MAX: u64 = 2 * BATCH as u64;

/// What becomes of a page at the end of its probation.
enum Verdict {
    /// The entry names a page that is not there any more.
    Stale,
    /// It was missed, or somebody holds it.
    Keep,
    /// It is being written out.
    Wait,
    /// It must be written out first.
    Dirty,
    /// It may go.
    Evict,
}

/// Pages of exclusive objects leave dirty or not; a store that must not be called here is called by a filler.
fn verdict_exclusive(mapping: &Mapping<'_>, seen: Folio) -> Verdict {
    if seen.has(HELD) || (seen.has(DIRTY) && !mapping.dirty_goes) {
        Verdict::Keep
    } else if mapping.punch_waits() {
        Verdict::Dirty
    } else {
        Verdict::Evict
    }
}

fn verdict(mapping: &Mapping<'_>, entry: Entry, seen: Folio) -> Verdict {
    if !entry.is_current(seen) {
        Verdict::Stale
    } else if seen.state() == State::Writeback {
        Verdict::Wait
    } else if !seen.has(UNMAPPED) || seen.has(REFERENCED) || seen.pins() > 0 || seen.has(HELD | DIRTY) {
        Verdict::Keep
    } else if mapping.exclusive {
        verdict_exclusive(mapping, seen)
    } else if seen.has(DIRTY) {
        // A store that fails is tried again by the flusher and by the threads of its own object, not at the cost of those who
        // need room.
        if mapping.failing.is_set() { Verdict::Keep } else { Verdict::Dirty }
    } else {
        Verdict::Evict
    }
}

/// How far the verdicts of a batch have come.
#[derive(Default)]
struct Judged<'a> {
    look: Look,
    done: Shrunk,
    /// Dirty pages, named at the front of the batch.
    dirty: usize,
    /// Pages of exclusive objects that were taken out, named at its end.
    taken: usize,
    run: Option<Run<'a>>,
}

/// Gives verdicts while probation is longer than it should be, or if `whole` while there is anything on it. Returns how many
/// dirty pages lie in the batch.
pub(super) fn shrink_probation(scan: &Scan<'_>, batch: &mut Batch, look: Look) -> (Shrunk, usize) {
    let target = if look.whole { 0 } else { Lruvec::probation_target(scan.account.limit()) };
    let mut judged = Judged { look, ..Judged::default() };
    while let Some(entry) = next(scan, &judged, target) {
        judged.done.judged += 1;
        judge(scan, batch, &mut judged, entry);
    }
    judged.done.freed += end_run(scan, judged.run.take());
    judged.done.freed += end_taken(scan, batch, judged.taken);
    (judged.done, judged.dirty)
}

/// Returns the next entry that is to be judged; `None`: enough for one batch.
fn next(scan: &Scan<'_>, judged: &Judged<'_>, target: u64) -> Option<Entry> {
    let (lru, done) = (&scan.account.lru, &judged.done);
    let most = Lruvec::batch_pages(scan.account.limit());
    let nothing_else = lru.small.is_empty() && lru.main.is_empty();
    let enough = done.scanned >= most || done.judged >= JUDGED_MAX || (lru.probation.len() <= target && !nothing_else);
    // A block that is cut in two costs a punch more, and one more for each block that follows.
    if enough && !judged.run.is_some_and(|r| r.whole && done.scanned < most + BLOCK_PAGES) {
        return None;
    }
    // The batch is filled from both ends.
    if judged.dirty + judged.taken >= BATCH {
        return None;
    }
    lru.probation.pop().map(Entry)
}

/// Gives the verdict on one entry, and does what it says.
fn judge<'a>(scan: &Scan<'a>, batch: &mut Batch, judged: &mut Judged<'a>, entry: Entry) {
    let lru = &scan.account.lru;
    let found = scan.rmap.mapping(entry.mapping_id()).and_then(|m| Some((m, m.folio(entry.pgoff())?)));
    let Some((mapping, word)) = found else {
        judged.done.stale += 1;
        return;
    };
    let seen = word.load();
    let verdict = match verdict(mapping, entry, seen) {
        Verdict::Dirty if !mapping.dirty_goes => Verdict::Keep,
        v => v,
    };
    if matches!(verdict, Verdict::Stale) {
        judged.done.stale += 1;
    } else {
        judged.done.scanned += 1;
    }
    match verdict {
        Verdict::Stale => {}
        Verdict::Keep => {
            word.keep(seen.version());
            scan.stat.add(scan.stripe, Event::PGACTIVATE, 1);
            scan.enter(&lru.main, entry);
        }
        Verdict::Wait => wait(scan, judged, entry, word),
        Verdict::Dirty => {
            if let Some(at) = batch.pages.get_mut(judged.dirty) {
                *at = (entry.mapping_id(), entry.pgoff());
                judged.dirty += 1;
            }
            wait(scan, judged, entry, word);
        }
        Verdict::Evict if mapping.owes_flush(word.load()) => {
            // The page can go once its store has flushed, so it counts as one that is being written.
            mapping.want_flush();
            scan.env.park.wake(scan.account.ring_flusher());
            judged.done.dirty += 1;
            judged.done.owed += u64::from(mapping.is_flush_awaited());
            wait(scan, judged, entry, word);
        }
        Verdict::Evict if mapping.exclusive => {
            // The run ends here: a batch gets longer for a block of the run's own object, and not for others' pages.
            judged.done.freed += end_run(scan, judged.run.take());
            // Named from the batch's end on, while dirty pages are named from its front on: no entry is both, and `next`
            // has left room for one more.
            if let Some(at) = batch.pages.get_mut(BATCH.saturating_sub(judged.taken + 1))
                && take_out_exclusive(scan, entry, mapping, word)
            {
                *at = (entry.mapping_id(), entry.pgoff());
                judged.taken += 1;
            }
        }
        Verdict::Evict if khugepaged::is_huge(mapping, entry.pgoff()) => {
            judged.done.freed += end_run(scan, judged.run.take());
            judged.done.freed += huge::evict_huge(scan, &mut judged.run, entry, mapping, word);
        }
        Verdict::Evict => judged.done.freed += run::evict(scan, &mut judged.run, entry, mapping, word),
    }
}

/// Puts a page that a store has in hand, or will have, back on probation; past it, where that is full of them and they do not get on.
fn wait(scan: &Scan<'_>, judged: &mut Judged<'_>, entry: Entry, word: &FolioWord) {
    let lru = &scan.account.lru;
    if judged.look.past && lru.probation.len() >= Lruvec::probation_target(scan.account.limit()) {
        word.keep(word.load().version());
        judged.done.passed += 1;
        scan.enter(&lru.main, entry);
    } else {
        scan.enter(&lru.probation, entry);
    }
}

/// Makes a page of an exclusive object `evicting`, and its chunk count it; `false`: not now.
fn take_out_exclusive(scan: &Scan<'_>, entry: Entry, mapping: &Mapping<'_>, word: &FolioWord) -> bool {
    let counted = rmap::get_evict(scan.rmap, mapping, scan.stripe, entry.pgoff());
    if counted && take_idle(mapping, word) {
        return true;
    }
    if let Some(chunk) = mapping.chunk(entry.pgoff()).filter(|_| counted) {
        chunk.put_evict();
    }
    scan.enter(&scan.account.lru.probation, entry);
    false
}

/// Drops the pages of exclusive objects that were taken out: all of an object by one call, or neighbour by neighbour.
fn end_taken(scan: &Scan<'_>, batch: &mut Batch, taken: usize) -> u64 {
    let Batch { pages, zaps } = batch;
    let pages = pages.get_mut(BATCH - taken..).unwrap_or_default();
    pages.reverse();
    let pages = &*pages;
    let mut freed = 0;
    each_mapping(scan.rmap, pages, &mut |mapping| {
        let at_once = mapping.a_ops.punch_pages(mapping.id, pages, zaps);
        let mut ours = pages.iter().filter(|(id, _)| *id == mapping.id).map(|(_, p)| *p).peekable();
        while let Some(from) = ours.next() {
            let mut to = from.saturating_add(1);
            while !to.is_multiple_of(EXTENT_PAGES as u64) && ours.next_if_eq(&to).is_some() {
                to = to.saturating_add(1);
            }
            freed += end_taken_run(scan, mapping, from, to, at_once);
        }
    });
    freed
}

fn end_taken_run(scan: &Scan<'_>, mapping: &Mapping<'_>, from: u64, to: u64, punched: bool) -> u64 {
    let (park, stripe) = (scan.env.park, scan.stripe);
    let freed = if punched {
        leave(mapping, park, (from, to), Why::Reclaim, None);
        gone(mapping, park, stripe, from, to - from)
    } else {
        punch(mapping, park, stripe, (from, to), Why::Reclaim, None)
    };
    for _ in from..to {
        if let Some(chunk) = mapping.chunk(from) {
            chunk.put_evict();
        }
    }
    freed
}
