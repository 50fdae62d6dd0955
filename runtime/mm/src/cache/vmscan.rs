//! Reclaim: pages leave the cache so that others can come. Linux: `mm/vmscan.c`.
//!
//! ```text
//! shrink                                                  one batch, at most 64 pages
//!   shrink_probation   verdicts: missed -> main, dirty -> write-back, clean and idle -> evicting -> punched -> absent
//!   write_dirty        what was dirty, here or by a filler
//!   age                tail of small or main -> UNMAPPED, zapped in every shared mapping by one call -> probation
//! ```
//! Unmapping is one call a batch, and the punches that come a stage later find nothing mapped (but in private mappings,
//! which only a punch may unmap). The pages share the flush of other processors' TLBs where their entries are clean; those
//! that UFFDIO_CONTINUE makes are born dirty, and for each of these Linux (6.18) flushes by itself.
//!
//! Where an object has more than a few mappings a page is taken with its neighbours: a punch walks every mapping, for a
//! run of pages about as fast as for one.
//!
//! # Context: handler. A section is held over each of the first and the last step, and left in between: nothing that
//! waits happens inside.

mod age;
mod direct;
mod evict;
mod huge;
mod pageout;
mod probation;
mod range;
mod run;
mod scan;
mod void;

pub use direct::{Freed, try_to_free_pages};
pub(crate) use direct::{begin, count, is_overdue, is_proof, is_waiting, keep, resume, sleep};
pub(crate) use evict::{Why, punch, take_idle};
pub(crate) use pageout::write_dirty;
pub use pageout::write_here;
pub(crate) use range::unmap_batch;
pub use range::{deactivate_range, discard_range, evict_exclusive, reclaim_range};
pub use scan::{Look, Shrunk};
pub use void::{drop_void, keep_void, take_void};

use crate::host::{BATCH, Env};
use crate::lru::Entry;
use crate::memcontrol::CacheAccount;
use crate::vmstat::VmStat;
use scan::Scan;

/// Looks at one batch of pages and frees those that nobody missed.
///
/// # Context: handler, outside of sections
pub fn shrink(env: Env<'_>, account: &CacheAccount<'_>, stat: &VmStat, stripe: usize) -> Shrunk {
    shrink_batch(env, account, stat, stripe, Look::default()).0
}

/// As [`shrink`], in a way of its own; returns also whether it could look at all, which takes a batch that nobody else has.
///
/// # Context: handler, outside of sections
pub fn shrink_batch(
    env: Env<'_>,
    account: &CacheAccount<'_>,
    stat: &VmStat,
    stripe: usize,
    look: Look,
) -> (Shrunk, bool) {
    let mut done = Shrunk::default();
    let mut looked = false;
    let have = env.mm.with_batch(account.name(), &mut |batch| {
        let mut dirty = 0;
        looked = env.mm.with_rmap(&mut |r| {
            let scan = Scan { env, account, stat, stripe, rmap: r };
            (done, dirty) = probation::shrink_probation(&scan, batch, look);
        });
        if dirty > 0 {
            done.dirty += write_dirty(env, stripe, batch.pages.get(..dirty).unwrap_or(&[]));
        }
        let mut early = 0;
        env.mm.with_rmap(&mut |r| {
            let scan = Scan { env, account, stat, stripe, rmap: r };
            let (seen, unmapped) = age::age(&scan, batch, look.whole);
            done.scanned += seen.scanned;
            done.stale += seen.stale;
            early = age::pick_early(&scan, batch, unmapped);
        });
        if early > 0 {
            write_dirty(env, stripe, batch.pages.get(..early).unwrap_or(&[]));
        }
    });
    if !have {
        env.park.relax();
    }
    (done, have && looked)
}

/// Takes the entries of pages that went otherwise out of the queues.
///
/// # Context: handler, outside of sections
pub fn prune(env: Env<'_>, account: &CacheAccount<'_>) {
    for queue in [&account.lru.small, &account.lru.main, &account.lru.probation] {
        let mut left = queue.len();
        while left > 0 {
            let some = left.min(BATCH as u64);
            left -= some;
            env.mm.with_rmap(&mut |r| {
                for _ in 0..some {
                    let Some(entry) = queue.pop().map(Entry) else { break };
                    let word = r.mapping(entry.mapping_id()).and_then(|m| m.folio(entry.pgoff()));
                    if word.is_some_and(|w| entry.is_current(w.load())) && !queue.push(entry.0) {
                        let _ = account.lru.add(entry, true);
                    }
                }
            });
        }
    }
}
