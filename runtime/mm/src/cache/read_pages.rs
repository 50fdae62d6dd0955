//! Passing pages to the fillers before anybody asks for them. Linux: `page_cache_ra_unbounded`, `read_pages`.
//!
//! Readahead takes what is to be had: pages that are absent, as long as the cache's limit admits them and a filler has
//! time. What is refused is not tried again; the access that misses it reads it.
//!
//! # Context: handler

use crate::cache::filemap;
use crate::claim::Claim;
use crate::fill;
use crate::folio::State;
use crate::host::Park;
use crate::mapping::Mapping;
use crate::readahead::{Ahead, Mode, NO_MARKER, Plan};
use crate::types::FillError;
use crate::vmstat::Event;

/// The longest run that one filler is given: a larger window is read by several at once, and a disk that is asked for one
/// run at a time gives half of what it can.
const READ_PAGES_MAX: u64 = 64;

/// Claims what is read now for a fault that found `pgoff` missing, once the fillers have what lies ahead of it; `None`:
/// it is no longer missing. Linux: `do_sync_mmap_readahead`.
///
/// # Context: handler
///
/// # Errors
/// As [`filemap::claim_run`].
pub fn do_sync_mmap_readahead(
    mapping: &Mapping<'_>,
    park: &dyn Park,
    stripe: usize,
    pgoff: u64,
    mode: Mode,
) -> Result<Option<Claim>, FillError> {
    let plan = mapping.ra.sync_mmap(&mapping.request(pgoff, 1), mode, &|p| mapping.is_cached(p));
    mapping.stat.add(stripe, Event::MMAP_MISS, u64::from(plan.is_miss));
    claim_plan(mapping, park, stripe, pgoff, &plan)
}

/// Claims what a plan reads now, and passes on what it reads ahead.
///
/// # Context: handler
///
/// # Errors
/// As [`filemap::claim_run`].
pub fn claim_plan(
    mapping: &Mapping<'_>,
    park: &dyn Park,
    stripe: usize,
    pgoff: u64,
    plan: &Plan,
) -> Result<Option<Claim>, FillError> {
    let Some(claim) = filemap::claim_run(mapping, pgoff, plan.start, plan.end)? else { return Ok(None) };
    filemap::set_marker(mapping, &claim, plan.marker);
    if let Some(ahead) = &plan.ahead {
        submit_ahead(mapping, park, stripe, ahead);
    }
    Ok(Some(claim))
}

/// The marker on `pgoff` was mapped or pinned, by an access of `req` pages: has the fillers read the window that it
/// sets off. Linux: `do_async_mmap_readahead`.
///
/// # Context: handler
#[inline(never)]
pub fn do_async_readahead(mapping: &Mapping<'_>, park: &dyn Park, stripe: usize, pgoff: u64, req: u32) {
    mapping.stat.add(stripe, Event::READAHEAD_HITS, 1);
    let rq = mapping.request(pgoff, req);
    if let Some(ahead) = mapping.ra.on_marker(&rq, mapping.ra.mode(), &|p| mapping.is_cached(p)) {
        submit_ahead(mapping, park, stripe, &ahead);
    }
}

/// Has the fillers read a window; returns how many pages they were given.
///
/// # Context: handler
pub fn submit_ahead(mapping: &Mapping<'_>, park: &dyn Park, stripe: usize, ahead: &Ahead) -> u64 {
    let mut given = 0;
    for i in 0..ahead.nr {
        let Some((from, to)) = ahead.pages(i) else { break };
        match submit_range(mapping, park, from, to, Some(ahead.marker)) {
            Ok(nr) => given += nr,
            Err(nr) => {
                given += nr;
                break;
            }
        }
    }
    mapping.stat.add(stripe, Event::READAHEAD_WINDOWS, u64::from(given > 0));
    mapping.stat.add(stripe, Event::READAHEAD_PAGES, given);
    given
}

/// Has the fillers read what is missing of `from..to`, in runs as long as claims may be; returns how many pages they
/// were given. Linux: `force_page_cache_ra`.
///
/// # Context: handler
pub fn force_ahead(mapping: &Mapping<'_>, park: &dyn Park, stripe: usize, from: u64, to: u64) -> u64 {
    let (Ok(given) | Err(given)) = submit_range(mapping, park, from, to, None);
    mapping.stat.add(stripe, Event::READAHEAD_PAGES, given);
    given
}

/// Claims and submits the absent pages of `from..to`, run by run: how many, `Err` if it stopped before the end. A guess
/// has a marker, and is not made while the fillers are behind; an order has none.
fn submit_range(mapping: &Mapping<'_>, park: &dyn Park, from: u64, to: u64, marker: Option<u64>) -> Result<u64, u64> {
    let (from, to) = mapping.whole_blocks(from, to.min(mapping.nr_pages()));
    // A poisoned page is not read ahead: it would fail again and again.
    let absent = |p: u64| mapping.folio(p).is_some_and(|w| w.load().state() == State::Absent);
    let (mut p, mut given) = (from, 0);
    while p < to {
        if !absent(p) {
            p = p.saturating_add(1);
            continue;
        }
        if marker.is_some() && park.is_congested() {
            return Err(given);
        }
        let end = to.min(p.saturating_add(READ_PAGES_MAX));
        match filemap::claim_run(mapping, p, p, end) {
            Ok(Some(claim)) => {
                filemap::set_marker(mapping, &claim, marker.unwrap_or(NO_MARKER));
                let (nr, behind) = (u64::from(claim.nr()), claim.pgoff().saturating_add(u64::from(claim.nr())));
                if let Err(claim) = park.submit(claim.into_ahead()) {
                    fill::abandon(mapping, park, claim);
                    return Err(given);
                }
                given += nr;
                p = behind;
            }
            // Somebody else claimed it between the look and the claim.
            Ok(None) => p = p.saturating_add(1),
            Err(_) => return Err(given),
        }
    }
    Ok(given)
}
