//! Pages whose bytes are to become void, in the store first: nobody reads or fills them until that is known.
//!
//! ```text
//! who punches a hole                   others
//! cached -> evicting, bytes kept
//! absent -> evicting, vacant
//!                                      fault, sync: wait; stores through mappings that are left go to the kept bytes
//! the store punches
//!   done: bytes dropped, -> absent
//!   not:  cached -> uptodate, dirty
//! ```
//! Were the pages dropped before the store has answered, what it refused to punch would be its old bytes again. Dirty:
//! a mapping that was taken away meanwhile has told nobody of the stores through it.
//!
//! # Context: control plane, under the lock over the object's flushes; inside a section nothing waits.

use super::evict::{Why, punch};
use super::huge;
use crate::folio::{DIRTY, FolioWord, Wake};
use crate::host::{Env, Rmap};
use crate::mapping::Mapping;
use crate::rmap;

/// Takes all of `from..to`, pages of one chunk, cached or not: they are the caller's until [`drop_void`] or
/// [`keep_void`]. `false`: one is pinned, being filled or written, and none is taken.
///
/// # Context: control plane, under the lock over the object's flushes
pub fn take_void(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) -> bool {
    let mut taken = false;
    env.mm.with_rmap(&mut |r| taken = take(env, r, mapping, stripe, from, to));
    taken
}

fn take(env: Env<'_>, r: &dyn Rmap, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) -> bool {
    if huge::is_kept_whole(r, mapping, from) || !rmap::get_evict(r, mapping, stripe, from) {
        return false;
    }
    let mut p = from;
    while p < to && mapping.folio(p).is_some_and(|w| take_one(mapping, w, p)) {
        p = p.saturating_add(1);
    }
    if p < to {
        keep_void(env, mapping, from, p);
        return false;
    }
    rmap::hide(r, mapping, from, to);
    true
}

fn take_one(mapping: &Mapping<'_>, word: &FolioWord, pgoff: u64) -> bool {
    if let Ok(old) = word.try_discard() {
        mapping.account_cleaned(u64::from(old.has(DIRTY)));
        return true;
    }
    let vacated = word.try_vacate().is_ok();
    if vacated {
        mapping.nodes.insert(pgoff);
    }
    vacated
}

/// Drops pages that were taken; returns how many could not be, and are cached as they were.
///
/// # Context: control plane, under the lock over the object's flushes
pub fn drop_void(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) -> u64 {
    let vacant = |p: u64| mapping.folio(p).is_some_and(|w| w.load().is_vacant());
    let mut left = 0;
    let mut run = from;
    for p in from..=to {
        if p < to && !vacant(p) {
            continue;
        }
        if run < p {
            left += (p - run) - punch(mapping, env.park, stripe, (run, p), Why::Void, None);
        }
        run = p.saturating_add(1);
    }
    end(env, mapping, from, to);
    left
}

/// Gives back pages that were taken and shall stay; those that were cached are dirty.
///
/// # Context: control plane, under the lock over the object's flushes
pub fn keep_void(env: Env<'_>, mapping: &Mapping<'_>, from: u64, to: u64) {
    for p in from..to {
        if let Some(word) = mapping.folio(p).filter(|w| !w.load().is_vacant()) {
            mapping.account_dirtied(1);
            if mapping.stay(word, p, DIRTY, false) == Wake::Needed {
                env.park.wake(word.futex_addr());
            }
        }
    }
    end(env, mapping, from, to);
}

fn end(env: Env<'_>, mapping: &Mapping<'_>, from: u64, to: u64) {
    for word in (from..to).filter_map(|p| mapping.folio(p)) {
        if word.end_vacancy() == Ok(Wake::Needed) {
            env.park.wake(word.futex_addr());
        }
    }
    if let Some(chunk) = mapping.chunk(from) {
        chunk.put_evict();
    }
}
