//! The saver: until the cut it watches that stores do not wait for long, and after it, it makes room for the bytes that they have kept.
//!
//! Stores may wait for it with any lock of the program's, the allocator's included: it neither allocates nor locks.
//!
//! # Context: a helper thread of the capture's own

use super::state::{State, wake_all};
use crate::object::capture as calls;
use softfault_mm::cut::Phase;
use softfault_mm::types::FillError;
use softfault_platform::area;
use softfault_platform::sys::{futex, thread};
use std::sync::atomic::Ordering;

/// How long stores may wait for a cut.
const CUT_NS: u64 = 100_000_000;
/// How often it looks before the cut.
const LOOK_NS: u64 = 1_000_000;
/// Credits that stores get in any case, each second look, so that none waits for ever.
const CREDITS: u32 = 64;
/// How long it sleeps at most after the cut.
const SLEEP_NS: u64 = 50_000_000;

/// Runs until it is told to end.
pub(super) fn run(state: &State) {
    let (mut cutting_since, mut looks) = (None, 0u32);
    // Acquire pairs with `end::end`.
    while state.stop.load(Ordering::Acquire) == 0 {
        match state.words().phase() {
            Phase::Copying => {
                save(state);
                continue;
            }
            Phase::Cutting => give_up_late(state, cutting_since.get_or_insert_with(thread::monotonic_ns)),
            Phase::Draining => {
                cutting_since = None;
                looks = looks.wrapping_add(1);
                if looks % 2 == 0 {
                    state.words().give_credits(CREDITS);
                    wake_all(state.words());
                }
            }
            _ => cutting_since = None,
        }
        thread::sleep_ns(LOOK_NS);
    }
}

/// Lets stores through when they have waited for long; the cutter finds its compare-exchange fail.
fn give_up_late(state: &State, since: &u64) {
    if thread::monotonic_ns().saturating_sub(*since) > CUT_NS
        && state.words().change_phase(Phase::Cutting, Phase::Draining)
    {
        wake_all(state.words());
    }
}

/// Makes room where there is little, or sleeps until there is.
fn save(state: &State) {
    let Some((bell, seen)) = area::saver_key(state.number()) else { return };
    area::drain(state.number(), &mut |key, bytes| {
        let Some((span, page)) = state.find(key) else { return true };
        if state.spill.write(page << 12, bytes).is_err() {
            let _ = calls::set_cause(state.number(), Some(FillError::CacheFull));
            calls::fail(state.number());
            return false;
        }
        // Before the frame is free: the walker finds the page in one of the two places.
        span.object.mapping().captured.bits.note_spilled(key.pgoff);
        state.spilled.fetch_add(1, Ordering::Relaxed);
        true
    });
    if !area::is_starved(state.number()) {
        let _ = futex::wait_word(bell, seen, SLEEP_NS);
    }
}
