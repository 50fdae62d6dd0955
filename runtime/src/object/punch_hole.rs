//! Holes in an object: bytes that read as zeros, and whose storage goes back. Linux: `fallocate(2)`, `FALLOC_FL_PUNCH_HOLE`.
//!
//! # Context: control plane

use super::capture;
use super::io;
use super::preserve;
use super::state::ObjectInner;
use super::truncate::Below;
use super::void::Void;
use crate::error::{self, Error, Result};
use crate::writeback::flush;
use softfault_mm::folio::{LOST, State};
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT, pages_of};
use softfault_mm::{vmscan, writeback};
use softfault_platform::host::Host;
use softfault_platform::store::StoreError;
use std::ops::Range;
use std::time::Duration;

/// How often pages are tried that somebody is busy with.
const PATIENCE: u32 = 2_000;
/// How long it waits in between.
const TURN: Duration = Duration::from_micros(500);

/// Makes a hole of a byte range.
///
/// # Errors
/// As [`Object::punch_hole`](crate::Object::punch_hole), whose rights were checked.
///
/// # Context: control plane
pub(crate) fn punch_hole(object: &ObjectInner, op: &'static str, range: Range<u64>) -> Result<()> {
    let end = range.end.min(object.len_bytes());
    if range.start >= end {
        return Ok(());
    }
    let (from, to) = (pages_of(range.start), if end == object.len_bytes() { pages_of(end) } else { end >> PAGE_SHIFT });
    if from >= to {
        return zero(object, op, range.start..end);
    }
    zero(object, op, range.start..from << PAGE_SHIFT)?;
    zero(object, op, (to << PAGE_SHIFT).min(end)..end)?;
    let mut at = from;
    while at < to {
        let next = (at | (EXTENT_PAGES as u64 - 1)).saturating_add(1).min(to);
        let hole = at << PAGE_SHIFT..(next << PAGE_SHIFT).min(end);
        if !punch_chunk(object, op, &(at..next), &hole)? {
            zero(object, op, hole)?;
        }
        at = next;
    }
    if !object.store().rereads_unflushed() {
        // What was read before the flush is from before the hole.
        let turn = object.flushing().state().turn();
        let shown = flush::show(object.flushing(), &turn);
        drop(turn);
        shown.map_err(|e| Below::Flush(e).into_error(op, object, end))?;
        discard(object, op, &(from..to))?;
    }
    Ok(())
}

/// Makes a hole of pages of one chunk; `false`: zeros must be written. The pages are kept from others meanwhile:
/// ```text
/// punch_hole                           others
/// drops the pages
///                                      read the old bytes, store to them; the flusher begins to write
/// the store punches
///                                      the flusher has written: the old bytes are back in the store
/// ```
fn punch_chunk(object: &ObjectInner, op: &'static str, pages: &Range<u64>, hole: &Range<u64>) -> Result<bool> {
    capture::refuse_in_cut(op)?;
    let _gate = object.i_mmap().gate();
    preserve::preserve_range(object, pages.clone());
    for _ in 0..PATIENCE {
        object.i_mmap().demote(pages.start, pages.end)?;
        // From here on faults may wait for us: no lock, no memory. What cannot be had is waited for with empty hands.
        let turn = object.flushing().state().turn();
        if let Some(void) = Void::take(object.mapping(), pages) {
            // The pages are back, and the turn, before there is an error: it takes memory.
            let punched = punch_below(object, pages, hole);
            let punched = match punched {
                Ok(true) => Ok(void.punch()),
                other => {
                    drop(void);
                    other
                }
            };
            drop(turn);
            let label = object.mapping().label;
            return punched.map_err(|e| error::writeback(op, label, hole.clone(), e.fill_error()));
        }
        drop(turn);
        std::thread::sleep(TURN);
    }
    Err(Error::Denied { op, what: "pages of the range stay pinned or are being filled; drop the pins" })
}

/// Writes zeros to the range.
fn zero(object: &ObjectInner, op: &'static str, range: Range<u64>) -> Result<()> {
    let zeros = [0u8; 4096];
    let mut at = range.start;
    while at < range.end {
        let here = ((range.end - at) as usize).min(zeros.len());
        let n = io::write_at(object, at, &zeros[..here])?;
        if n == 0 {
            return Err(Error::Denied { op, what: "the end of the object moved meanwhile" });
        }
        at += n as u64;
    }
    Ok(())
}

/// Drops the pages, dirty or not, waiting for who fills, writes or pins them.
fn discard(object: &ObjectInner, op: &'static str, pages: &Range<u64>) -> Result<()> {
    let m = object.mapping();
    let host = Host::detached();
    for _ in 0..PATIENCE {
        object.i_mmap().demote(pages.start, pages.end)?;
        vmscan::discard_range(host.env(), m, 0, pages.start, pages.end);
        let left = pages
            .clone()
            .any(|p| m.folio(p).is_some_and(|w| !matches!(w.load().state(), State::Absent | State::Poisoned)));
        if !left {
            return Ok(());
        }
        host.breathe();
        std::thread::sleep(TURN);
    }
    Err(Error::Denied { op, what: "pages of the range stay pinned or are being filled; drop the pins" })
}

/// Punches a hole into the store; `false`: it cannot. The caller has the object's turn to flush, and the pages.
fn punch_below(object: &ObjectInner, pages: &Range<u64>, hole: &Range<u64>) -> std::result::Result<bool, StoreError> {
    let m = object.mapping();
    match object.store().punch(hole.start, hole.end - hole.start) {
        Ok(()) => {
            // A flush that fails may lose it like a write, and what was lost before does not matter any more.
            for word in pages.clone().filter_map(|p| m.folio(p)) {
                word.set(writeback::unsynced_bit(m));
                word.clear(LOST);
            }
            Ok(true)
        }
        Err(StoreError::Unsupported) => Ok(false),
        Err(error) => Err(error),
    }
}
