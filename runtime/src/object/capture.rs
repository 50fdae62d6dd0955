//! What calls do that change an object's bytes while a capture of it is made.
//!
//! Those that take little time, as `write_at`, are in a lift, page by page: they wait for a cut, and after it they have the page's
//! old bytes kept. Those that take long hold the object's gate, which the cutter takes before it cuts and gives back after the cut:
//! so each part of them that one hold of the gate covers (a chunk of a hole) lies before the cut or after it, and after it they have
//! the old bytes of its pages kept first.
//!
//! # Context: control plane

use super::state::ObjectInner;
use crate::error::{Error, Result};
use softfault_mm::capture::{self, Admit};
use softfault_mm::cut::{self, Admitted, Lift, NR_CAPTURES, Phase, naive};
use softfault_mm::ops::WaitKey;
use softfault_mm::types::FillError;
use softfault_platform::host::Host;
use softfault_platform::sys::{futex, thread};
use std::sync::atomic::{AtomicU32, Ordering};

/// How long a wait for a capture's word lasts at most before the word is looked at again.
const SLICE_NS: u64 = 10_000_000;

/// The threads that cut, by the number of the capture, 0 for none: what they call waits for no cut, since it would be for their own.
/// Each is written by that thread.
pub(crate) static CUTTERS: [AtomicU32; NR_CAPTURES] = [const { AtomicU32::new(0) }; NR_CAPTURES];

/// Why each capture failed, where the store of an object is why: [`FillError::code`].
static CAUSES: [AtomicU32; NR_CAPTURES] = [const { AtomicU32::new(0) }; NR_CAPTURES];

/// Refuses a call that would wait for the cut that its own thread is making.
///
/// # Errors
/// [`Error::Denied`].
pub(crate) fn refuse_in_cut(op: &'static str) -> Result<()> {
    // A thread sees what it has stored itself; of others any answer is right.
    if CUTTERS.iter().any(|c| c.load(Ordering::Relaxed) != 0) {
        let tid = thread::gettid();
        if CUTTERS.iter().any(|c| c.load(Ordering::Relaxed) == tid) {
            return Err(Error::Denied { op, what: "the closure of a cut would wait for the cut here" });
        }
    }
    Ok(())
}

/// Keeps and takes why a capture failed.
pub(crate) fn set_cause(number: u32, cause: Option<FillError>) -> Option<FillError> {
    let code = cause.map_or(0, |e| u32::from(e.code()));
    // Relaxed: it is read by who has seen the phase that was stored afterwards.
    let had = CAUSES.get(number as usize)?.swap(code, Ordering::Relaxed);
    (had != 0).then(|| FillError::from_code(had as u16))
}

/// A store by a call to one page: it lies before the cut or after it as a whole.
#[must_use = "the store is made while it lives"]
pub(crate) struct Bracket {
    _lift: Option<Lift<'static>>,
    /// While a capture is made no handler of the program's runs inside: it might store where stores wait for us.
    _host: Option<Host>,
}

/// Begins a store to page `pgoff`, which the caller has pinned. Waits for a cut, and has the old bytes kept after it.
///
/// # Errors
/// [`Error::Denied`] in the closure of the cut.
pub(crate) fn begin_store(object: &ObjectInner, op: &'static str, pgoff: u64) -> Result<Bracket> {
    let m = object.mapping();
    let Some(tables) = cut::tables().filter(|_| !naive::has(naive::NO_WRITE_AT)) else {
        return Ok(Bracket { _lift: None, _host: None });
    };
    loop {
        let host = m.captured.number().map(|_| Host::detached());
        let lift = tables.lifts.enter(stripe());
        let Some(inside) = &lift else { return Ok(Bracket { _lift: None, _host: host }) };
        let wait = match capture::admit_call(m, pgoff, inside) {
            Admit::Go(Admitted::Saving) => capture::preserve_page(m, pgoff),
            Admit::Go(_) => None,
            Admit::Wait(key) => Some(key),
        };
        let Some(key) = wait else { return Ok(Bracket { _lift: lift, _host: host }) };
        drop((lift, host));
        refuse_in_cut(op)?;
        sleep_on(key);
    }
}

/// Any number that is mostly the same for a thread: threads' stacks lie apart.
pub(super) fn stripe() -> usize {
    let here = 0u8;
    std::ptr::from_ref(&here).addr() >> 16
}

pub(super) fn sleep_on(key: WaitKey) {
    let _ = futex::wait(key.addr, key.seen, SLICE_NS);
}

/// Gives capture `number` up, if it copies: nobody waits for it, and nothing is kept any more. Returns whether it did.
pub(crate) fn fail(number: u32) -> bool {
    let Some(capture) = cut::tables().and_then(|t| t.capture(number)) else { return false };
    let failed = capture.change_phase(Phase::Copying, Phase::Failed);
    capture.note_room();
    [capture.phase_key(Phase::Failed).0, capture.room_key().0].into_iter().for_each(futex::wake_all);
    failed
}

/// Refuses what would make the object's bytes another moment's while it is captured.
///
/// # Errors
/// [`Error::Denied`].
pub(crate) fn refuse_captured(object: &ObjectInner, op: &'static str) -> Result<()> {
    match object.mapping().captured.number() {
        None => Ok(()),
        Some(_) => Err(Error::Denied { op, what: "a capture of the object is under way" }),
    }
}
