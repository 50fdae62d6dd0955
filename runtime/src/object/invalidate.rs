//! Dropping what is cached because somebody else has changed the store. Linux: `invalidate_inode_pages2_range`.
//!
//! # Context: control plane

use super::state::ObjectInner;
use crate::error::Result;
use crate::types::Invalidated;
use crate::writeback::{state, writeout};
use crossbeam_utils::Backoff;
use softfault_mm::folio::{DIRTY, State};
use softfault_mm::vmscan;
use softfault_platform::host::Host;
use std::ops::Range;

/// How often pages that are clean and busy are tried.
const ROUNDS: u32 = 100;

/// Drops what is cached of the byte range, but for what was written here, or is pinned.
///
/// # Errors
/// [`Error::Exhausted`](crate::Error::Exhausted) when an extent cannot be taken back.
///
/// # Context: control plane
pub(crate) fn invalidate(object: &ObjectInner, range: &Range<u64>) -> Result<Invalidated> {
    let m = object.mapping();
    let pages = state::pages(m, range);
    let host = Host::detached();
    let cached = |p: &u64| m.folio(*p).is_some_and(|w| w.load().state() != State::Absent);
    let (mut dropped, backoff) = (0, Backoff::new());
    let _walk = object.flushing().state().walk();
    for _ in 0..ROUNDS {
        object.i_mmap().demote(pages.start, pages.end)?;
        dropped += if m.exclusive {
            // What was written here stays, once that is known.
            writeout::harvest(host.env(), m, &pages);
            vmscan::evict_exclusive(host.env(), m, pages.start, pages.end, false)
        } else {
            vmscan::reclaim_range(host.env(), m, 0, pages.start, pages.end)
        };
        let busy = pages
            .clone()
            .filter(cached)
            .any(|p| m.folio(p).is_some_and(|w| !w.load().has(DIRTY) && w.load().state() != State::Poisoned));
        if !busy {
            break;
        }
        backoff.snooze();
    }
    Ok(Invalidated { dropped, kept: pages.filter(cached).count() as u64 })
}
