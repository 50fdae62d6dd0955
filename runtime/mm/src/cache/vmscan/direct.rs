//! Direct reclaim: a thread that cannot go on without a page frees some itself. Linux: `try_to_free_mem_cgroup_pages`.
//!
//! # Context: handler, outside of sections

use super::shrink;
use crate::ctx::Ctx;
use crate::host::{BATCH, Env, Woken};
use crate::mapping::Mapping;
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

/// Every how many batches that freed nothing the thread sleeps until somebody else has freed or written something.
const NAP_NS: u64 = 2_000_000;
/// How many pages one thread frees for one of its own, at most.
const FREED_MAX: u64 = 4 * BATCH as u64;

/// Frees pages for a thread that cannot go on without one. Linux: `try_to_free_mem_cgroup_pages`, "direct reclaim".
///
/// Gives up when it has looked at everything several times and nothing is being written out either: then all pages are
/// pinned, held, or cannot be written.
pub fn try_to_free_pages(env: Env<'_>, ctx: &Ctx<'_>, mapping: &Mapping<'_>) -> Freed {
    let (account, stat) = (mapping.account, mapping.stat);
    stat.add(ctx.stripe, Event::ALLOCSTALL, 1);
    let mut scanned = 0u64;
    // Naps after which nothing was under way, and after which something was.
    let (mut idle, mut waited) = (0u32, 0u32);
    let mut freed = 0u64;
    loop {
        let limit = account.limit();
        if account.nr_pages.load(Ordering::Relaxed) < limit {
            return Freed::Some;
        }
        let done = shrink(env, account, stat, ctx.stripe);
        stat.add(ctx.stripe, Event::PGSCAN_DIRECT, done.scanned);
        freed += done.freed;
        if freed > FREED_MAX {
            return Freed::Some;
        }
        if done.freed > 0 {
            // Still above the limit, which was lowered perhaps: an attempt for each small batch would be too many.
            (scanned, idle, waited) = (0, 0, 0);
            continue;
        }
        if done.stale > 0 {
            // Behind the entries of pages that went otherwise there may be others; their number is finite.
            continue;
        }
        scanned = scanned.saturating_add(done.scanned);
        let busy = account.nr_writeback.load(Ordering::Relaxed) > 0 || done.dirty > 0 || account.is_filling();
        if done.scanned == 0 || busy || scanned > limit.saturating_mul(2) {
            *if busy { &mut waited } else { &mut idle } += 1;
            let nap = account.begin_wait();
            let woken = env.park.nap(ctx, nap, NAP_NS);
            if account.has_progressed(nap) {
                // Others get on: so shall we.
                (scanned, idle, waited) = (0, 0, 0);
            }
            account.end_wait();
            if woken == Woken::NotNow {
                return Freed::Later;
            }
        }
        // Fruitless looks at everything, and as many naps: a store that is writing, or reading, gets longer.
        if waited > 5_000 || (idle > 16 && (scanned > limit.saturating_mul(4) || idle > 64)) {
            return Freed::Nothing;
        }
    }
}
