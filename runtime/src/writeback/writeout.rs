//! Giving the store what was written: finding out which pages that are, and writing them. Linux: `filemap_fdatawrite_range`.
//!
//! # Context: control plane, the flusher

use super::pinned;
use super::state::{Flushing, bytes};
use crate::error::{self, Error};
use softfault_mm::ctx::Ctx;
use softfault_mm::discarded;
use softfault_mm::folio::{DIRTY, Folio, State};
use softfault_mm::host::Env;
use softfault_mm::mapping::Mapping;
use softfault_mm::ops::WaitKey;
use softfault_mm::types::FillError;
use softfault_mm::vmstat::Event;
use softfault_mm::{rmap, writeback};
use softfault_platform::host::Host;
use softfault_platform::section;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Chunks that are scanned in one section: 1 GiB, some milliseconds where all of it is mapped. Who unmaps waits for that.
const SCAN_CHUNKS: usize = 512;

/// Marks every page of the range dirty that was written before the call. Who must not miss one walks the nodes: see
/// [`FlushState::walk`](super::state::FlushState::walk).
///
/// # Context: control plane, the flusher
pub(crate) fn harvest(env: Env<'_>, m: &Mapping<'_>, range: &Range<u64>) {
    for (from, to) in m.nodes.runs(range.start, range.end, SCAN_CHUNKS) {
        discarded::drop_missing(m, &|addr| env.park.wake(addr), 0, from, to);
        env.mm.with_rmap(&mut |r| {
            rmap::harvest(r, m, from, to);
        });
    }
    // Reclaim that took a mapping away before our scan has said in the word, when its section ends, that the page was
    // written.
    section::synchronize();
}

/// Writes what is known to be dirty, without looking for more and without waiting for what is pinned. A chunk
/// whose node is being looked at meanwhile may be passed over.
///
/// # Context: the flusher
pub(crate) fn write_known_dirty(env: Env<'_>, m: &Mapping<'_>) -> Result<u64, (u64, FillError)> {
    let mut written = 0;
    // A store that fails says so of the first chunk.
    let chunks = if m.failing.is_set() { 1 } else { usize::MAX };
    for (from, to) in m.nodes.runs(0, m.nr_pages(), chunks) {
        written += writeback::writeout(env, m, 0, from, to)?;
    }
    Ok(written)
}

/// Waits, for `most` at most, for pages of an exclusive object that lie in its arena before they are in the cache: they come one
/// after the other, and the program stores to those that are in place.
/// ```text
/// filler                               the program                    sync
/// puts pages 0 to 15 where they belong
/// page 0: filling -> uptodate
///                                      loads page 0, stores to 1
///                                                                     page 1 is filling: nothing to write?
/// page 1: filling -> uptodate
/// ```
///
/// # Context: control plane, exit's writer
pub(crate) fn wait_for_arrivals(env: Env<'_>, m: &Mapping<'_>, range: &Range<u64>, most: Duration) {
    if !m.exclusive {
        return;
    }
    let ctx = Ctx::thread(0);
    let began = Instant::now();
    for (p, word) in m.each_folio(range.start, range.end) {
        let claim = word.load();
        // Each claim has a version of its own: another one began after the call.
        let goes_on = |w: Folio| w.state() == State::Filling && w.version() == claim.version();
        while goes_on(word.load()) && m.a_ops.may_be_stored_to(p) && began.elapsed() < most {
            if let Some(low) = word.mark_waiter(State::Filling) {
                env.park.wait(&ctx, WaitKey { addr: word.futex_addr(), seen: low }, ARRIVAL_NS);
            }
        }
    }
}

/// How long a wait for a page lasts before the clock is looked at.
const ARRIVAL_NS: u64 = 1_000_000;

/// Gives every byte of the pages that was written before the call to the store. Returns the first held page, if a
/// held one is dirty. Of an object that lives, or that a claim keeps.
///
/// # Errors
/// A page that the store did not take, and why: for [`failed`], where somebody is told. Nothing is allocated here.
///
/// # Context: control plane, the flusher
pub(crate) fn write_back(f: &Flushing, range: &Range<u64>) -> Result<Option<u64>, (u64, FillError)> {
    wait_for_arrivals(Host::detached().env(), f.mapping(), range, Duration::MAX);
    write_back_here(f, range)
}

/// As [`write_back`], of what has arrived: see [`wait_for_arrivals`].
///
/// # Errors
/// As [`write_back`].
///
/// # Context: control plane, the flusher
pub(crate) fn write_back_here(f: &Flushing, range: &Range<u64>) -> Result<Option<u64>, (u64, FillError)> {
    let m = f.mapping();
    let host = Host::detached();
    let _walk = f.state().walk();
    harvest(host.env(), m, range);
    for (from, to) in m.nodes.runs(range.start, range.end, usize::MAX) {
        m.stat.add(0, Event::WRITEBACK_SCAN, to - from);
        writeback::writeout(host.env(), m, 0, from, to)?;
        // Nothing of what was written is in our hands any more.
        host.breathe();
    }
    let mut held = None;
    for (p, word) in m.each_folio(range.start, range.end) {
        let seen = word.load();
        if writeback::is_in_hand(seen) || (seen.is_mappable() && seen.has(DIRTY)) {
            let skipped = pinned::settle(host.env(), f, word, p)?;
            held = held.or_else(|| skipped.then_some(p));
        }
    }
    Ok(held)
}

/// Makes the error of a page that the store did not take.
///
/// # Context: control plane: it allocates
pub(crate) fn failed(f: &Flushing, op: &'static str) -> impl Fn((u64, FillError)) -> Error {
    let label = f.mapping().label;
    move |(p, error)| error::writeback(op, label, bytes(&(p..p + 1)), error)
}

/// Writes everything back before the object goes away. Nobody is left to be told of errors: they are counted.
///
/// # Context: whoever drops the last reference to the object
pub(crate) fn write_back_last(f: &Flushing) {
    let all = 0..f.mapping().nr_pages();
    let _ = write_back(f, &all);
}
