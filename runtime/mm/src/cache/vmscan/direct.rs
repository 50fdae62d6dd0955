//! Direct reclaim: a thread that cannot go on without a page frees some, and is told when there are none to be had. Linux:
//! `try_to_free_mem_cgroup_pages`, `should_reclaim_retry`.
//!
//! That nothing can go is a proof, not a count of attempts: whoever is told so gets a signal. Everything was looked at, several
//! times, and nothing was under way that might have ended otherwise:
//! ```text
//! thread                                        another reclaimer, or a filler
//!                                               takes pages out of the queues, or into write-back
//! looks at everything: pinned, or not there     is preempted
//! naps, looks again; as often as it does
//! somebody began before this stall: naps on
//!                                               punches them: progress, and the stall is over
//!                                               or puts them back: another stall, which looks at them too
//! ```
//!
//! # Context: handler

use super::{Look, shrink_batch};
use crate::ctx::Ctx;
use crate::host::{BATCH, Env, Woken};
use crate::mapping::Mapping;
use crate::memcontrol::CacheAccount;
use crate::ops::WaitKey;
use crate::stall::Stall;
use crate::sync::Ordering;
use crate::vmstat::Event;

/// How direct reclaim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// There is room, or was a moment ago: try again.
    Some,
    /// This thread does not wait: later.
    Later,
    /// Everything was looked at, and nothing can go.
    Nothing,
}

/// A nap ends when somebody else has freed or written something, or after this.
const NAP_NS: u64 = 2_000_000;
/// How many pages one thread frees for one of its own, at most.
const FREED_MAX: u64 = 4 * BATCH as u64;

/// Begins a stall.
pub(crate) fn begin(env: Env<'_>) -> Stall {
    Stall::new(env.park.now_ns(), env.mm.reclaim_ticket())
}

/// Returns the stall that the thread went away with, if that was from what is `full` now, and there was no room since.
pub(crate) fn resume(env: Env<'_>, full: WaitKey) -> Stall {
    env.park.take_stall(full.addr).filter(|s| s.goes_on(full)).unwrap_or_else(|| begin(env))
}

/// Keeps the stall for a thread that goes away and comes back.
pub(crate) fn keep(env: Env<'_>, full: WaitKey, mut stall: Stall) -> Freed {
    stall.leave(full);
    env.park.keep_stall(full.addr, stall);
    Freed::Later
}

/// Returns what names the cache, when its progress is `seen`.
fn full(account: &CacheAccount<'_>, seen: u32) -> WaitKey {
    WaitKey { addr: account.name(), seen }
}

/// Sleeps on `key`, without counting it.
pub(crate) fn sleep(env: Env<'_>, ctx: &Ctx<'_>, key: WaitKey) -> Woken {
    env.park.nap(ctx, key, NAP_NS)
}

/// Counts a nap.
pub(crate) fn count(env: Env<'_>, stall: &mut Stall, woken: Woken, busy: bool) {
    stall.count(env.park.now_ns(), NAP_NS, woken == Woken::NotNow, busy);
}

/// Naps until somebody gets on, if nobody has since the account's progress was `seen`.
fn nap(env: Env<'_>, ctx: &Ctx<'_>, account: &CacheAccount<'_>, (stall, seen): (&mut Stall, u32), busy: bool) -> Woken {
    let key = WaitKey { seen, ..account.begin_wait() };
    let woken = sleep(env, ctx, key);
    if account.has_progressed(key) {
        // Others get on: so shall we.
        *stall = begin(env);
    } else {
        count(env, stall, woken, busy);
    }
    account.end_wait();
    woken
}

/// Returns whether a store that takes its time is waited for, however long. Not by a thread that is in one, and has pages in hand
/// itself: it might wait for itself, or for another one that waits for it.
pub(crate) fn is_waiting(ctx: &Ctx<'_>) -> bool {
    !ctx.nested && !ctx.is_helper
}

/// Returns whether a store has pages in hand whose end is room: writes them, reads them, or is to make them durable. One that takes
/// what it is given is progress, and one that takes nothing is known to fail after a few times, so neither goes on for ever.
fn is_under_way(account: &CacheAccount<'_>, stall: &Stall) -> bool {
    account.is_being_written() || account.is_being_read() || stall.is_owed()
}

/// Begins a look at a batch; returns whether everything in it gets its verdict.
fn begin_look(account: &CacheAccount<'_>, stall: &mut Stall, limit: u64) -> bool {
    let whole = stall.is_whole(limit);
    if whole && stall.unjudged == 0 {
        stall.begin_look(account.lru.probation.len().saturating_add(account.lru.small.len()));
    }
    whole
}

/// Returns whether a deadline has passed: who gave one is told.
pub(crate) fn is_overdue(mapping: &Mapping<'_>, stall: &Stall) -> bool {
    mapping.deadline_ns != u64::MAX && stall.is_over(mapping.deadline_ns / NAP_NS)
}

/// Returns whether nothing can go, after a time that would say so if nobody else had pages in hand, and no store had any
/// (`under_way`) whose end would be room for the thread.
pub(crate) fn is_proof(env: Env<'_>, mapping: &Mapping<'_>, stall: &mut Stall, under_way: bool) -> bool {
    let account = mapping.account;
    if is_overdue(mapping, stall) {
        return true;
    }
    if under_way || env.mm.has_reclaim_from_before(account.name(), stall.ticket) {
        stall.outlasted = true;
        return false;
    }
    if stall.outlasted || !stall.is_again {
        // What others had in hand, since before or since they came meanwhile, is where it can be looked at now. A handler that
        // installs pages has no batch; its pins last as long as the kernel's lock over the address space, which a fork may hold.
        if !env.mm.have_sections_settled() {
            stall.outlasted = true;
            return false;
        }
        *stall = begin(env).again(stall);
        return false;
    }
    true
}

/// Frees pages for a thread that cannot go on without one.
///
/// Gives up when it has looked at everything several times, nothing is being written out either, and nobody else has pages in
/// hand: then all pages are pinned, held, or cannot be written.
///
/// # Context: handler
pub fn try_to_free_pages(env: Env<'_>, ctx: &Ctx<'_>, mapping: &Mapping<'_>) -> Freed {
    let (account, stat) = (mapping.account, mapping.stat);
    stat.add(ctx.stripe, Event::ALLOCSTALL, 1);
    let mut seen = account.progress();
    let mut stall = resume(env, full(account, seen));
    let mut freed = 0u64;
    loop {
        let limit = account.limit();
        if account.nr_pages.load(Ordering::Relaxed) < limit {
            return Freed::Some;
        }
        let whole = begin_look(account, &mut stall, limit);
        let look = Look { whole, past: stall.is_stuck() };
        let (done, looked) = shrink_batch(env, account, stat, ctx.stripe, look);
        stat.add(ctx.stripe, Event::PGSCAN_DIRECT, done.scanned);
        freed += done.freed;
        if freed > FREED_MAX {
            return Freed::Some;
        }
        if done.freed > 0 {
            // Still above the limit, which was lowered perhaps: an attempt for each small batch would be too many.
            (stall, seen) = (begin(env), account.progress());
            continue;
        }
        let is_through = account.lru.probation.is_empty() && account.lru.small.is_empty();
        stall.unjudged = if is_through { 0 } else { stall.unjudged.saturating_sub(done.judged) };
        stall.note_owed(done.owed);
        let is_out_of_breath = stall.is_out_of_breath();
        if done.stale > 0 && !is_out_of_breath {
            // Behind the entries of pages that went otherwise there may be others; their number is finite.
            continue;
        }
        let is_round = done.stale == 0 && (!looked || stall.look(limit, done.scanned));
        let writes = account.nr_writeback.load(Ordering::Relaxed) > 0 || done.dirty > 0;
        let busy = !looked || writes || account.is_filling();
        // Everything on probation gets its verdict before a nap says that nothing was under way. Who waits for others' batches
        // looks at everything when they have been given back; who passes over what stores have in hand, at what lies behind it.
        let naps = is_round || stall.outlasted || (busy && done.passed == 0 && stall.is_patient());
        let mut woken = Woken::LookAgain;
        if naps || is_out_of_breath {
            woken = nap(env, ctx, account, (&mut stall, seen), busy || !naps);
            if woken != Woken::NotNow {
                seen = account.progress();
            }
        }
        let under_way = is_waiting(ctx) && is_under_way(account, &stall);
        let is_long = stall.is_long(limit, looked && done.scanned + done.stale == 0);
        if (is_long || is_overdue(mapping, &stall)) && is_proof(env, mapping, &mut stall, under_way) {
            return Freed::Nothing;
        }
        if woken == Woken::NotNow {
            return keep(env, full(account, seen), stall);
        }
    }
}
