//! The saver: after the cut it makes room for the bytes that stores have kept.
//!
//! Stores may wait for it with any lock of the program's, the allocator's included: it neither allocates nor locks.
//!
//! # Context: a helper thread of the capture's own

use super::state::State;
use crate::object::capture as calls;
use softfault_mm::cut::Phase;
use softfault_mm::failpoint;
use softfault_mm::types::FillError;
use softfault_platform::area;
use softfault_platform::sys::futex;
use std::sync::atomic::Ordering;

/// How long it sleeps at most.
const SLEEP_NS: u64 = 50_000_000;

/// Runs until it is told to end.
pub(super) fn run(state: &State) {
    // Acquire pairs with `end::end`.
    while state.stop.load(Ordering::Acquire) == 0 {
        // Before it looks: who finds no room later moves it.
        let Some((bell, seen)) = area::saver_key(state.number()) else { return };
        let is_copying = state.words().phase() == Phase::Copying;
        if is_copying {
            save(state);
        }
        if !is_copying || !area::is_starved(state.number()) {
            let _ = futex::wait_word(bell, seen, SLEEP_NS);
        }
    }
}

/// Makes room where there is little.
fn save(state: &State) {
    area::drain(state.number(), &mut |key, bytes| {
        let Some((span, page)) = state.find(key) else { return true };
        failpoint!(CAPTURE_SPILLING);
        if state.spill.write(page << 12, bytes).is_err() {
            let _ = calls::set_cause(state.number(), Some(FillError::CacheFull));
            calls::fail(state.number());
            return false;
        }
        // Before the frame is free: the walker finds the page in one of the two places.
        span.object.mapping().captured.bits.note_spilled(key.pgoff);
        state.spilled.fetch_add(1, Ordering::Relaxed);
        area::COUNTS.spilled.fetch_add(1, Ordering::Relaxed);
        true
    });
}
