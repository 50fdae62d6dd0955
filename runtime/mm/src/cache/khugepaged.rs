//! Huge pages: complete chunks are made one page of 2 MiB, and leave the cache as one. Linux: `mm/khugepaged.c`.
//!
//! The kernel collapses 512 cached pages into one on request, whatever is mapped: it copies them under their locks, and
//! takes every mapping of them away. Then a native extent is mapped by one entry (2 us for 2 MiB, and one TLB entry where
//! there were 512); a trapped one by pages, as before.
//! ```text
//! collapse   chunk native+1, COLLAPSING (evicting = 0); 512 words uptodate and unpinned, no pin of the program's;
//!            COLLAPSE of the alias; forget the hints; HUGE, native-1
//! age        first entry of a huge chunk: all 512 pages UNMAPPED, one zap in each mapping -> probation
//! evict      all 512 idle: all evicting, one punch. Else: one page is punched, and with that the page is split
//! ```
//! Why the native count: the kernel fills holes of what it collapses with zeros. Nothing leaves while it is held.
//!
//! What is not collapsed:
//! * Objects with shared stores that are noted page by page. The note is in the page table, and goes with the mapping; and
//!   such an extent could not be mapped by one entry anyway (see [`crate::huge_memory`]). Who makes an object decides.
//! * Chunks that a program's pin touches: a system call on a trapped extent must find its pages mapped.
//!   ```text
//!   who pins                              collapser
//!   counts the pin in its extent
//!                                         COLLAPSING; pins counted? then not
//!   COLLAPSING? waits until it is not
//!   faults its pages in: they stay
//!   ```
//!   Later, a pin keeps the whole huge page: no part of it is unmapped or punched, because the kernel would take the
//!   other parts' mappings away with it.
//! * Chunks that a delegate is told of.
//!
//! `HUGE` is our mark, not a promise of the kernel's: a page that something else refers to may stay whole after a punch,
//! and `absent` never implies a hole.
//!
//! # Context: control plane (collapse); handler (the rest)

use crate::chunk::ChunkWord;
use crate::failpoint;
use crate::fill;
use crate::folio::{DIRTY, Folio, FolioWord, HELD, REFERENCED, State, UNMAPPED};
use crate::host::{Env, Park, Rmap};
use crate::mapping::Mapping;
use crate::page::{EXTENT_PAGES, PAGE_SHIFT, pgoff_index};
use crate::rmap;
use crate::sync::Ordering;
use crate::types::FillError;
use crate::vmstat::Event;

const CHUNK_PAGES: u64 = EXTENT_PAGES as u64;

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collapse {
    /// It is a huge page now.
    Done,
    /// It was one before.
    Already,
    /// A page of it is not cached, or the object ends in it.
    Incomplete,
    /// A page of it is pinned, told to a delegate, being evicted, or written back; perhaps later.
    Busy,
    /// The kernel does not do it now.
    Refused(FillError),
}

/// Returns the first page of the chunk that holds page `pgoff`.
///
/// # Context: handler
#[must_use]
pub const fn chunk_start(pgoff: u64) -> u64 {
    pgoff & !(CHUNK_PAGES - 1)
}

/// Returns whether page `pgoff` is part of a huge page.
///
/// # Context: handler
#[must_use]
pub fn is_huge(mapping: &Mapping<'_>, pgoff: u64) -> bool {
    mapping.chunk(pgoff).is_some_and(ChunkWord::is_huge)
}

fn words<'a>(mapping: &Mapping<'a>, first: u64) -> &'a [FolioWord] {
    let at = pgoff_index(first);
    mapping.folios.get(at..at.saturating_add(EXTENT_PAGES)).unwrap_or(&[])
}

/// Makes the chunk that begins with page `first` a huge page. Nobody may note stores to the object's pages in page tables.
///
/// # Context: control plane; milliseconds
pub fn collapse_chunk(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize, first: u64) -> Collapse {
    let Some(chunk) = mapping.chunk(first) else { return Collapse::Incomplete };
    if chunk.is_huge() {
        return Collapse::Already;
    }
    if !chunk.begin_collapse() {
        return Collapse::Busy;
    }
    failpoint!(COLLAPSE_COUNTED);
    let end = first.saturating_add(CHUNK_PAGES) << PAGE_SHIFT;
    // The end is read after native was counted, as in a promotion: truncate lowers it first. Acquire pairs with `i_size_write`.
    let mut result = if end > mapping.i_size.load(Ordering::Acquire) || !is_complete(mapping, first) {
        Collapse::Incomplete
    } else {
        may_collapse(env, mapping, first)
    };
    if result == Collapse::Done {
        failpoint!(COLLAPSE_CHECKED);
        result = match mapping.a_ops.collapse(first) {
            Ok(()) => Collapse::Done,
            Err(e) => Collapse::Refused(e),
        };
        // Also after an error: the kernel may have taken mappings away by then.
        env.mm.with_rmap(&mut |r| {
            rmap::each_in_chunk(r, mapping, first, &mut |_, vma, addr, nr| rmap::note_zapped(vma, addr, nr));
        });
        let event = if result == Collapse::Done { Event::THP_COLLAPSE_ALLOC } else { Event::THP_COLLAPSE_ALLOC_FAILED };
        mapping.stat.add(stripe, event, 1);
    }
    if result == Collapse::Done {
        mapping.account.nr_huge.fetch_add(1, Ordering::Relaxed);
    }
    chunk.end_collapse(result == Collapse::Done);
    result
}

fn is_complete(mapping: &Mapping<'_>, first: u64) -> bool {
    let words = words(mapping, first);
    !words.is_empty() && words.iter().all(|w| w.load().is_mappable())
}

/// `Done`: nothing is in the way.
fn may_collapse(env: Env<'_>, mapping: &Mapping<'_>, first: u64) -> Collapse {
    let idle = |w: Folio| w.state() == State::Uptodate && w.pins() == 0 && !w.has(UNMAPPED);
    if !words(mapping, first).iter().all(|w| idle(w.load())) {
        return Collapse::Busy;
    }
    let mut free = false;
    env.mm.with_rmap(&mut |r| {
        free = !rmap::has_user_pins(r, mapping, first);
        rmap::each_in_chunk(r, mapping, first, &mut |_, vma, _, _| free &= vma.delegation.is_none());
    });
    if free { Collapse::Done } else { Collapse::Busy }
}

/// Pages of the chunk that begins with page `first` were punched: if it was a huge page, it is none any more. `whole`: all
/// of them.
///
/// # Context: handler
pub fn note_punched(mapping: &Mapping<'_>, stripe: usize, first: u64, whole: bool) {
    if mapping.chunk(first).is_some_and(ChunkWord::clear_huge) {
        mapping.account.nr_huge.fetch_sub(1, Ordering::Relaxed);
        mapping.stat.add(stripe, if whole { Event::THP_STEAL } else { Event::THP_SPLIT_PAGE }, 1);
    }
}

/// Takes a huge chunk out of its mappings, to see whether it is missed; `false`: a program holds a pin over it, or it could
/// not be taken back. The caller has counted an eviction.
///
/// # Context: handler, inside a section
pub fn try_to_unmap_huge(r: &dyn Rmap, mapping: &Mapping<'_>, stripe: usize, first: u64) -> bool {
    if rmap::has_user_pins(r, mapping, first) {
        return false;
    }
    let words = words(mapping, first);
    let marked = |w: &&FolioWord| w.try_unmap().is_ok();
    // Who fails here is missed already: it stays without the mark, and the chunk is not dropped whole.
    let mut nr = 0;
    let mut taken = [0u64; EXTENT_PAGES.div_ceil(64)];
    for (i, _) in words.iter().enumerate().filter(|(_, w)| marked(w)) {
        if let Some(bits) = taken.get_mut(i / 64) {
            *bits |= 1 << (i % 64);
            nr += 1;
        }
    }
    failpoint!(UNMAP_MARKED);
    rmap::unmap_chunk(r, mapping, first);
    for (i, word) in words.iter().enumerate() {
        if taken.get(i / 64).is_some_and(|bits| bits & (1 << (i % 64)) != 0) {
            word.unpin();
        }
    }
    mapping.stat.add(stripe, Event::PGDEACTIVATE, nr);
    true
}

/// uptodate -> evicting for all pages of a huge chunk, if every one of them may go; else none, and those that waited for
/// being missed wait no more, except `but`. The caller has counted an eviction.
///
/// # Context: handler, inside a section
pub fn try_evict_huge(mapping: &Mapping<'_>, park: &dyn Park, first: u64, but: Option<&FolioWord>) -> bool {
    let words = words(mapping, first);
    let reread = mapping.a_ops.rereads_unflushed();
    let may_go = |w: Folio| {
        let idle = w.state() == State::Uptodate && w.pins() == 0 && w.has(UNMAPPED);
        idle && !w.has(REFERENCED) && !w.has(DIRTY) && !w.has(HELD) && (reread || !w.is_unsynced())
    };
    let taken = if words.iter().all(|w| may_go(w.load())) {
        words.iter().take_while(|w| w.try_evict().is_ok()).count()
    } else {
        0
    };
    if taken == EXTENT_PAGES {
        return true;
    }
    for p in first..first.saturating_add(taken as u64) {
        fill::each(mapping, park, p, p.saturating_add(1), |w| mapping.stay(w, p, 0, true));
    }
    let stays = |w: &&FolioWord| but.is_none_or(|b| !core::ptr::eq(*w, b));
    words.iter().filter(stays).filter(|w| w.load().state() == State::Uptodate).for_each(|w| w.keep(w.load().version()));
    false
}
