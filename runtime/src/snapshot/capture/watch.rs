//! The watch: no store waits for long for a capture, whoever of its threads stands still.
//!
//! ```text
//! draining   where the cutter gives no credits for ten milliseconds, they come from here
//! cutting    after a tenth of a second the stores are let through, and the cutter finds its compare-exchange fail
//! copying    after a second in which stores wait for room and no frame is freed (the disk hangs, and saver and walker with it)
//!            the capture is given up
//! ```
//! Stores may wait for it with any lock of the program's: it neither allocates nor locks, and it waits for nobody.
//!
//! # Context: a helper thread of the capture's own

use super::state::{State, wake_all};
use crate::object::capture as calls;
use softfault_mm::cut::Phase;
use softfault_platform::area;
use softfault_platform::sys::{futex, thread};
use std::sync::atomic::Ordering;

/// How long stores may wait for a cut.
const CUT_NS: u64 = 100_000_000;
/// How long they may wait for room while none comes.
const ROOM_NS: u64 = 1_000_000_000;
/// How often it looks before the cut, and after it.
const LOOK_NS: u64 = 1_000_000;
const LOOK_LATER_NS: u64 = 20_000_000;
/// Looks without a credit from the cutter after which stores get some in any case: it may be long without a processor.
const LOOKS: u32 = 10;
const CREDITS: u32 = 64;

/// Runs until it is told to end.
pub(super) fn run(state: &State) {
    let (mut cutting_since, mut credits, mut room) = (None, Credits::default(), Room::default());
    // Acquire pairs with `end::end`.
    while state.stop.load(Ordering::Acquire) == 0 {
        let phase = state.words().phase();
        match phase {
            Phase::Cutting => {
                // A cutter that is back before the next look has its whole time again.
                if give_up_late(state, *cutting_since.get_or_insert_with(thread::monotonic_ns)) {
                    cutting_since = None;
                }
            }
            Phase::Copying => room.look(state),
            Phase::Draining => credits.look(state),
            Phase::Idle | Phase::Arming | Phase::Failed => {}
        }
        if phase != Phase::Cutting {
            cutting_since = None;
        }
        let is_later = matches!(phase, Phase::Copying | Phase::Failed);
        let _ = futex::wait_word(&state.stop, 0, if is_later { LOOK_LATER_NS } else { LOOK_NS });
    }
}

/// Lets stores through when they have waited for long; returns whether it did.
fn give_up_late(state: &State, since: u64) -> bool {
    let is_late = thread::monotonic_ns().saturating_sub(since) > CUT_NS
        && state.words().change_phase(Phase::Cutting, Phase::Draining);
    if is_late {
        wake_all(state.words());
    }
    is_late
}

/// How often credits were given when it last looked, and how many looks ago.
#[derive(Default)]
struct Credits {
    given: u32,
    looks: u32,
}

impl Credits {
    fn look(&mut self, state: &State) {
        let given = state.words().credit_key().1;
        self.looks = if given == self.given { self.looks + 1 } else { 0 };
        self.given = given;
        if self.looks >= LOOKS {
            state.words().give_credits(CREDITS);
            wake_all(state.words());
        }
    }
}

/// Since when stores wait for room, and how many frames had been freed by then.
#[derive(Default)]
struct Room {
    since: Option<u64>,
    freed: u32,
}

impl Room {
    fn look(&mut self, state: &State) {
        let freed = state.words().room_key().1;
        if !area::is_waited_for(state.number()) || freed != self.freed {
            *self = Self { since: None, freed };
            return;
        }
        if thread::monotonic_ns().saturating_sub(*self.since.get_or_insert_with(thread::monotonic_ns)) > ROOM_NS {
            calls::fail(state.number());
        }
    }
}
