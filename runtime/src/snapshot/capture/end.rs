//! The end of a capture, however it went: handlers forget it, and protection goes where nobody else needs it.
//!
//! # Context: control plane; the walker

#![expect(unsafe_code, reason = "gives the frames back when nobody can look at them")]

use super::cut::turn;
use super::state::{State, wake_all};
use softfault_mm::capture;
use softfault_mm::cut::{Phase, tables};
use softfault_mm::page::EXTENT_PAGES;
use softfault_platform::area;
use softfault_platform::host::Host;
use softfault_platform::sys::{futex, thread};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Ends a capture, once. Its helpers end, and are joined by who has its handle before the slot goes.
pub(super) fn end(state: &State) {
    let _turn = turn();
    if state.ended.swap(true, Ordering::Relaxed) {
        return;
    }
    let words = state.words();
    words.set_phase(Phase::Idle);
    words.note_room();
    wake_all(words);
    grace();
    let host = Host::detached();
    for object in &state.objects {
        let m = object.mapping();
        if m.captured.number() == Some(state.number()) {
            for first in (0..m.folios.len() as u64).step_by(EXTENT_PAGES) {
                host.env().mm.with_rmap(&mut |r| capture::disarm_chunk(r, m, first));
            }
            m.captured.set_number(None);
        }
    }
    drop(host);
    grace();
    stop(state);
    // The saver may have a frame in hand, and has its share of the claim until it has put that away.
    drop(state.claim.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Tells the capture's helpers to end.
pub(super) fn stop(state: &State) {
    // Release pairs with `saver::run` and `watch::run`.
    state.stop.store(1, Ordering::Release);
    futex::wake_word(&state.stop);
    area::ring(state.number());
}

/// Waits until nobody acts by what was true before.
fn grace() {
    if let Some(tables) = tables() {
        tables.lifts.grace(&mut || {
            thread::sched_yield();
            true
        });
    }
}

/// Gives the frames of a capture back that was ended, and whose threads have.
pub(super) fn close_area(state: &State) {
    // SAFETY: `end` waited for those who saw the capture, and its threads have ended.
    unsafe { area::close(state.number()) };
}
