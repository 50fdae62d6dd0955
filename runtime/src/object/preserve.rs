//! Keeping the bytes of pages that are about to go, for a capture whose cut is made.
//!
//! # Context: control plane

use super::capture::{fail, set_cause, sleep_on, stripe};
use super::io;
use super::state::ObjectInner;
use softfault_mm::capture::{self, Admit};
use softfault_mm::cut::{self, Admitted, Lift, Phase, naive};
use softfault_mm::folio::State;
use softfault_mm::types::FillError;
use std::ops::Range;

/// Has the bytes of pages kept that are about to go; the caller has the object's gate. What cannot be read ends the capture, not
/// the call.
pub(crate) fn preserve_range(object: &ObjectInner, pages: Range<u64>) {
    let m = object.mapping();
    let Some(number) = m.captured.number() else { return };
    let Some(capture) = cut::tables().and_then(|t| t.capture(number)) else { return };
    if naive::has(naive::NO_PRESERVE) {
        return;
    }
    // While we have the gate nobody cuts: the phase can only go from copying to where nothing is kept.
    for pgoff in pages.start..pages.end.min(m.captured.end()) {
        if capture.phase() != Phase::Copying {
            return;
        }
        if m.captured.bits.is_saved(pgoff) || is_never_filled(object, pgoff) {
            continue;
        }
        if let Err(cause) = preserve_one(object, pgoff) {
            set_cause(number, Some(cause));
            fail(number);
            return;
        }
    }
}

/// Marks a page saved that is zero without ever having been filled; `false`: it is another one.
pub(crate) fn is_never_filled(object: &ObjectInner, pgoff: u64) -> bool {
    let m = object.mapping();
    // Without swap what is not cached of anonymous memory is zero, and stays so until it has been kept by who fills it.
    let absent = m.always_dirty && m.folio(pgoff).is_some_and(|w| w.load().state() == State::Absent);
    if !absent {
        return false;
    }
    if m.captured.bits.save(pgoff) {
        // Where nothing was written the capture's file has zeros.
        m.captured.bits.note_spilled(pgoff);
    }
    true
}

fn preserve_one(object: &ObjectInner, pgoff: u64) -> Result<(), FillError> {
    let word = match io::get_pinned(object, pgoff, 0) {
        Err(FillError::PastEnd) => return Ok(()),
        pinned => pinned?,
    };
    loop {
        let lift = cut::tables().and_then(|t| t.lifts.enter(stripe()));
        let wait = match &lift {
            Some(inside) if is_copying(object, pgoff, inside) => capture::preserve_page(object.mapping(), pgoff),
            _ => None,
        };
        drop(lift);
        let Some(key) = wait else { break };
        sleep_on(key);
    }
    word.unpin();
    Ok(())
}

fn is_copying(object: &ObjectInner, pgoff: u64, lift: &Lift<'_>) -> bool {
    capture::admit_call(object.mapping(), pgoff, lift) == Admit::Go(Admitted::Saving)
}
