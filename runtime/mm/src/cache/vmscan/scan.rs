//! What every step of a batch of reclaim needs, and the little that all of them do.
//!
//! # Context: handler, inside a section

use crate::folio::{DIRTY, Folio, HELD};
use crate::host::{BATCH, Env, Rmap};
use crate::lru::{Entry, Fifo};
use crate::mapping::Mapping;
use crate::memcontrol::CacheAccount;
use crate::sync::Ordering;
use crate::vmstat::VmStat;

/// What one batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shrunk {
    /// Pages that left the cache.
    pub freed: u64,
    /// Entries of cached pages that were looked at.
    pub scanned: u64,
    /// Entries of pages that went otherwise, which are gone now.
    pub stale: u64,
    /// Dirty pages that were handed to write-back.
    pub dirty: u64,
    /// Pages that can go when their store, which does not fail, has flushed.
    pub owed: u64,
    /// Entries that came off probation, whatever they named.
    pub judged: u64,
    /// Those among them of pages that stores have in hand, and which were passed over: see [`Look::past`].
    pub passed: u64,
}

/// How a batch looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Every page gets its verdict, also those that came a moment ago: nothing else is left to be freed.
    pub whole: bool,
    /// What stores have in hand does not stay on probation: nothing of it has come back for a while. There may be more of it than
    /// probation is to hold, and as long as that is full nobody looks at anything else:
    /// ```text
    /// a store that hangs                        reclaim
    /// has a tenth of the cache in hand
    ///                                           probation: all being written, wait
    ///                                           small, main: probation is full, verdicts come first
    /// ```
    pub past: bool,
}

/// An object with more mappings than this is reclaimed by blocks.
const MAPS_FEW: u32 = 8;
/// Pages in such a block.
pub(super) const BLOCK_PAGES: u64 = BATCH as u64;

/// Returns whether the object is reclaimed by blocks.
pub(super) fn by_blocks(mapping: &Mapping<'_>) -> bool {
    // Relaxed: a wrong answer costs time and nothing else.
    mapping.nr_maps.load(Ordering::Relaxed) > MAPS_FEW
}

/// What every step of a batch needs.
pub(super) struct Scan<'a> {
    pub(super) env: Env<'a>,
    pub(super) account: &'a CacheAccount<'a>,
    pub(super) stat: &'a VmStat,
    pub(super) stripe: usize,
    pub(super) rmap: &'a dyn Rmap,
}

impl Scan<'_> {
    /// Puts an entry into a queue, or into another one where that is full: it is never lost.
    pub(super) fn enter(&self, queue: &Fifo<'_>, entry: Entry) {
        if !queue.push(entry.0) {
            let _ = self.account.lru.add(entry, true);
        }
    }
}

/// Returns whether a page could not be freed even if nobody missed it: then it is not taken out of its mappings, which would
/// cost a fault and gain nothing.
pub(super) fn must_stay(mapping: &Mapping<'_>, seen: Folio) -> bool {
    seen.has(DIRTY) && (seen.has(HELD) || !mapping.dirty_goes || mapping.failing.is_set())
}

/// Calls `f` once for each object that the batch has pages of.
pub(super) fn each_mapping(rmap: &dyn Rmap, pages: &[(u32, u64)], f: &mut dyn FnMut(&Mapping<'_>)) {
    for (i, (id, _)) in pages.iter().enumerate() {
        let first = !pages.iter().take(i).any(|(other, _)| other == id);
        if first && let Some(mapping) = rmap.mapping(*id) {
            f(mapping);
        }
    }
}
