//! Dirty pages go to the store. Linux: `mm/page-writeback.c`, `fs/fs-writeback.c`.
//!
//! ```text
//! dirty --try_writeback--> writeback, clean --mkclean, write_folio--> uptodate, unsynced
//! ```
//! The order is the rule. The flag is cleared before the mappings are protected, and the bytes are read afterwards:
//! ```text
//! flusher                              a thread
//! writeback, -DIRTY
//!                                      stores: not noted, its PTE is open; but the bytes are read later
//! protects everywhere
//!                                      stores: noted, or +DIRTY under a pin: dirty again when this is over
//! reads the bytes, the store has them
//! -> uptodate
//! ```
//! A page is `UNSYNCED` from here until a flush that began later has succeeded. The flag has two bits, which take turns, so
//! that a flush takes away only what it covers:
//! ```text
//! flush                                flusher
//! turn a -> b
//!                                      the store has a page: +b
//! fdatasync: does it cover that page?
//! -a: the page stays unsynced
//! ```
//!
//! # Context: handler, unless the object's store waits: then whoever may wait for it

use crate::ctx::Ctx;
use crate::failing::Asked;
use crate::failpoint;
use crate::failures::FailedOp;
use crate::folio::{DIRTY, Folio, LOST, State, UNSYNCED, Wake};
use crate::host::{Env, Rmap};
use crate::mapping::Mapping;
use crate::page::EXTENT_PAGES;
use crate::rmap;
use crate::sync::Ordering;
use crate::types::FillError;
use crate::vmstat::Event;

/// The longest run that is written at once: 2 MiB.
const RUN_MAX: u64 = EXTENT_PAGES as u64;

/// Returns the bit that write-back sets now, when the store has the pages.
///
/// # Context: handler
#[must_use]
pub fn unsynced_bit(mapping: &Mapping<'_>) -> u64 {
    // A read-modify-write, whose AcqRel pairs with `begin_flush`: if it finds the old turn, that flush begins after the store was
    // given the page, and covers it. A load might find the old turn late.
    let [a, b] = UNSYNCED;
    if mapping.flush_turn.fetch_add(0, Ordering::AcqRel) & 1 == 0 { a } else { b }
}

/// Begins a flush: returns the bit that it takes away if it succeeds.
///
/// # Context: control plane, under the lock over the object's flushes
#[must_use]
pub fn begin_flush(mapping: &Mapping<'_>) -> u64 {
    let [a, b] = UNSYNCED;
    // AcqRel pairs with `unsynced_bit`: what found the turn before this was given to the store before.
    if mapping.flush_turn.fetch_add(1, Ordering::AcqRel) & 1 == 0 { a } else { b }
}

/// Takes the pages from `from` on that are dirty and not pinned; returns the first that is not. They are `writeback`.
fn take_run(mapping: &Mapping<'_>, from: u64, to: u64) -> u64 {
    let mut p = from;
    while p < to && p - from < RUN_MAX && mapping.folio(p).is_some_and(|w| w.try_writeback().is_ok()) {
        p += 1;
    }
    mapping.account_cleaned(p - from);
    p
}

/// Writes the dirty pages among `from..to` that are neither pinned nor held; returns how many.
///
/// # Context: as the store
///
/// # Errors
/// The first page that the store did not take, and why; it and the rest of its run are dirty again.
pub fn writeout(
    env: Env<'_>,
    mapping: &Mapping<'_>,
    stripe: usize,
    from: u64,
    to: u64,
) -> Result<u64, (u64, FillError)> {
    let mut written = 0;
    let mut result = Ok(());
    let mut p = from;
    while p < to {
        let end = take_run(mapping, p, to);
        if end > p {
            match write_run(env, mapping, stripe, p, end) {
                Ok(()) => written += end - p,
                Err(e) if result.is_ok() => result = Err(e),
                Err(_) => {}
            }
        }
        p = end.max(p.saturating_add(1));
    }
    result.map(|()| written)
}

/// Protects and writes a run of pages that are `writeback`, and ends it.
fn write_run(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) -> Result<(), (u64, FillError)> {
    let nr = to - from;
    let is_awaited = mapping.is_write_awaited();
    mapping.account.writeback_begins(nr, is_awaited);
    failpoint!(WRITEBACK_TAKEN);
    let protected = env.mm.with_rmap(&mut |r: &dyn Rmap| rmap::mkclean(r, mapping, stripe, from, to));
    failpoint!(WRITEBACK_PROTECTED);
    let written = mapping.a_ops.write_folio(from, u32::try_from(nr).unwrap_or(0));
    failpoint!(WRITEBACK_WRITTEN);
    let good = match written {
        Ok(()) => to,
        Err((good, _)) => from.saturating_add(u64::from(good)).min(to),
    };
    let unsynced = unsynced_bit(mapping);
    // Unprotected pages may be written unseen from here on: they stay dirty.
    let set = if protected { unsynced } else { unsynced | DIRTY };
    end(env, mapping, from, good, set);
    end(env, mapping, good, to, DIRTY);
    mapping.account.writeback_ends(nr, is_awaited);
    mapping.stat.add(stripe, Event::PGPGOUT, good - from);
    mapping.stat.add(stripe, Event::WRITEBACK_CALLS, 1);
    // A store that takes nothing is no progress: who waits for room is told so in the end.
    if good > from
        && let Some(addr) = mapping.account.progressed()
    {
        env.park.wake(addr);
    }
    match written {
        Ok(()) => {
            mapping.note_success(Asked::Write);
            Ok(())
        }
        Err((_, error)) => {
            mapping.note_failure(Asked::Write, error);
            mapping.record_failure(FailedOp::Write, error, good, 0, env.park.now_ns());
            mapping.stat.add(stripe, Event::WRITEBACK_ERRORS, 1);
            Err((good, error))
        }
    }
}

/// writeback -> uptodate for `from..to`, with the flags of `set`.
fn end(env: Env<'_>, mapping: &Mapping<'_>, from: u64, to: u64, set: u64) {
    // Counted first: whoever writes a page after us counts it clean as soon as it is dirty.
    mapping.account_dirtied(if set & DIRTY != 0 { to - from } else { 0 });
    let mut counted = 0;
    for word in (from..to).filter_map(|p| mapping.folio(p)) {
        let (wake, was_dirty) = word.end_writeback(set);
        counted += u64::from(set & DIRTY != 0 && was_dirty);
        if wake == Wake::Needed {
            env.park.wake(word.futex_addr());
        }
    }
    // Those that were written meanwhile, and counted by who wrote.
    mapping.account_cleaned(counted);
}

/// Returns whether somebody is writing the object, is about to, or flushes it: who writes it too may wait for them, and where
/// their store hangs, for ever. Who only reads it is no reason to wait.
///
/// # Context: handler
#[must_use]
pub fn is_under_way(mapping: &Mapping<'_>) -> bool {
    // Relaxed: a hint. Who begins after the look is waited for by who writes, page by page.
    if mapping.nr_writers.load(Ordering::Relaxed) != 0 || mapping.flushing.load(Ordering::Relaxed) != 0 {
        return true;
    }
    mapping.each_folio(0, u64::MAX).any(|(_, word)| is_in_hand(word.load()))
}

/// Returns whether what was stored to a page before is in somebody's hands: it is being written, leaves by way of the store (or
/// stays after all), or a delegate is rewriting it.
///
/// # Context: handler
#[must_use]
pub fn is_in_hand(seen: Folio) -> bool {
    match seen.state() {
        State::Writeback => true,
        State::Evicting => !seen.is_vacant(),
        State::Filling => seen.has(DIRTY),
        State::Absent | State::Uptodate | State::Poisoned => false,
    }
}

/// How long one store waits at most for others' pages to be written.
const THROTTLE_NS: u64 = 10_000_000;

/// Returns whether who stores to the object is to wait: too many pages are dirty, and they are being written. While its
/// store fails there is nothing to wait for.
///
/// # Context: handler
pub fn is_dirty_full(mapping: &Mapping<'_>) -> bool {
    let writes = mapping.is_flushed() && mapping.write_blocks && !mapping.failing.is_set();
    writes && mapping.account.is_dirty_full()
}

/// Waits a little while more pages are dirty than may be: the flusher writes them meanwhile.
///
/// # Context: handler
pub fn balance_dirty_pages(env: Env<'_>, ctx: &Ctx<'_>, mapping: &Mapping<'_>) {
    let account = mapping.account;
    if !is_dirty_full(mapping) {
        return;
    }
    mapping.stat.add(ctx.stripe, Event::BALANCE_DIRTY, 1);
    env.park.wake(account.ring_flusher());
    let nap = account.begin_wait();
    if account.is_dirty_full() {
        let _ = env.park.nap(ctx, nap, THROTTLE_NS);
    }
    account.end_wait();
}

/// Ends a flush that succeeded: what it covered is durable.
///
/// # Context: control plane, under the lock over the object's flushes
pub fn end_flush(mapping: &Mapping<'_>, bit: u64) {
    for (_, word) in mapping.each_folio(0, u64::MAX) {
        if word.load().has(bit) {
            word.clear(bit);
        }
    }
}

/// Ends a flush that failed: every page that the store was given since the last one that succeeded is dirty again if it is
/// still cached, else `LOST`: the store may have dropped it, and nobody else has it. Calls `lost(pgoff)` for each of those.
///
/// # Context: control plane, under the lock over the object's flushes
pub fn fail_flush(mapping: &Mapping<'_>, lost: &mut dyn FnMut(u64)) {
    for (p, word) in mapping.each_folio(0, u64::MAX) {
        // The latest: whose write-back is missed here gives the store its page after the flush.
        let seen = word.load_latest();
        // A page in write-back has been written, perhaps, and is not marked yet.
        if !seen.is_unsynced() && seen.state() != State::Writeback {
            continue;
        }
        if mapping.mark_dirty(word).is_none() {
            let [a, b] = UNSYNCED;
            word.set(LOST);
            word.clear(a | b);
            lost(p);
        }
    }
}
