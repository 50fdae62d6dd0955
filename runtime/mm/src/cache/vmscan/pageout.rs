//! Dirty pages that reclaim meets are written: here, or by a filler. Linux: `pageout`.
//!
//! # Context: handler

use super::evict::Why;
use super::range::{Reach, take_out_range};
use crate::cache::filemap;
use crate::folio::{DIRTY, State};
use crate::host::Env;
use crate::mapping::Mapping;
use crate::sync::Ordering;
use crate::writeback;

/// How many neighbours of a dirty page are written with it.
const CLUSTER_PAGES: u64 = 16;
/// How many clusters of one object are with its store at once, or on their way: a store that hangs must not have all fillers of the
/// process, which read for the others.
const WRITERS_MAX: u32 = 16;

/// Has dirty pages written: here, where the store may be called in a handler, else by a filler. Returns how many pages
/// that concerns.
pub(crate) fn write_dirty(env: Env<'_>, stripe: usize, pages: &[(u32, u64)]) -> u64 {
    let mut nr = 0;
    let mut last = None;
    for (id, pgoff) in pages {
        let first = pgoff & !(CLUSTER_PAGES - 1);
        if last.replace((*id, first)) == Some((*id, first)) {
            nr += 1;
            continue;
        }
        let (mut claim, mut is_busy) = (None, false);
        env.mm.with_rmap(&mut |r| {
            let Some(m) = r.mapping(*id) else { return };
            is_busy = !is_written_here(m) && m.nr_writers.load(Ordering::Relaxed) >= WRITERS_MAX;
            claim = if is_busy { None } else { filemap::try_hold_to_write(m, first, CLUSTER_PAGES) };
        });
        // What waits for its turn is on its way, too.
        nr += u64::from(is_busy);
        if let Some(claim) = claim {
            nr += 1;
            write_claim(env, stripe, claim);
        }
    }
    nr
}

/// Returns whether who reclaims gives the store its pages, and no filler.
fn is_written_here(mapping: &Mapping<'_>) -> bool {
    mapping.handler_safe && !mapping.store_faults && !mapping.write_blocks
}

fn write_claim(env: Env<'_>, stripe: usize, claim: crate::claim::Claim) {
    let mut here = false;
    env.mm.with_claim(&claim, &mut |m| here = is_written_here(m));
    if here {
        write_here(env, stripe, claim);
    } else if let Err(claim) = env.park.submit_writeback(claim) {
        env.spend(claim, filemap::release_written);
    }
}

/// Writes the dirty pages that a claim for write-back names, and spends it.
///
/// # Context: as the object's store
pub fn write_here(env: Env<'_>, stripe: usize, claim: crate::claim::Claim) {
    env.spend(claim, |m, claim| {
        let (from, to) = (claim.pgoff(), claim.pgoff().saturating_add(u64::from(claim.nr())));
        if m.exclusive && !claim.is_staying() {
            // In no batch, and in no queue: it is seen by this count that pages are on their way.
            let is_awaited = m.is_write_awaited();
            m.account.writeback_begins(to - from, is_awaited);
            let reach = Reach { idle: true, dirty: true, why: Why::Reclaim };
            let (given, freed) = take_out_range(env, m, stripe, from, to, reach);
            if given > 0 {
                m.failing.note_given(freed > 0);
            }
            m.account.writeback_ends(to - from, is_awaited);
        } else if writeback::writeout(env, m, stripe, from, to).is_err() {
            // It is counted, and who asks for durability is told.
            keep_unwritten(m, from, to);
        }
        filemap::release_written(m, claim);
    });
}

/// Takes pages that stay dirty off probation, where they would be in the way of pages that can go. Linux: they are activated.
fn keep_unwritten(mapping: &Mapping<'_>, from: u64, to: u64) {
    for word in (from..to).filter_map(|p| mapping.folio(p)) {
        let seen = word.load();
        if seen.state() == State::Uptodate && seen.has(DIRTY) {
            word.keep(seen.version());
        }
    }
}
