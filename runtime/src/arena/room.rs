//! Calls that change the kernel's mappings, where the process may have no more of them.
//!
//! Where pages are exposed by protection their exposures can be hidden, which gives mappings back (`platform::crowd`): a call
//! does what a fault does, and its error comes when there is nothing to hide.
//!
//! # Context: control plane

use super::state::ArenaInner;
use softfault_platform::crowd::{self, Crowded};
use softfault_platform::host::Uninterrupted;
use softfault_platform::section::Slot;
use softfault_platform::sys::{Errno, futex};
use softfault_platform::vmatree::Trap;

/// How often a call that was refused a mapping is made again.
const ROUNDS: u32 = 16;
/// How long it waits for who is hiding already.
const PAUSE_NS: u64 = 1_000_000;

/// Makes a call on the arena's range; again where it is refused for want of a mapping, while others can be had.
///
/// # Errors
/// The call's.
pub(super) fn with_room<T>(arena: &ArenaInner, mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    with_room_for(arena, |errno| *errno == Errno::ENOMEM, &mut call)
}

/// The same, for calls with other errors: `is_full` knows them.
pub(super) fn with_room_for<T, E>(
    arena: &ArenaInner,
    is_full: impl Fn(&E) -> bool,
    call: &mut dyn FnMut() -> Result<T, E>,
) -> Result<T, E> {
    for _ in 0..ROUNDS {
        match call() {
            Err(e) if arena.trap == Trap::Segv && is_full(&e) && make_room() => {}
            r => return r,
        }
    }
    call()
}

/// Hides what others have exposed, or waits for who does; `false`: there is nothing to hide. The caller may have the lock of an
/// arena's vmas, which nobody who hides wants.
fn make_room() -> bool {
    // A section is not interrupted.
    let uninterrupted = Uninterrupted::new();
    let Ok(slot) = Slot::enter_patiently() else { return false };
    let made = crowd::make_room_for_call(&slot);
    drop(slot);
    drop(uninterrupted);
    match made {
        Ok(()) => true,
        Err(Crowded { key, is_being_made }) => {
            if is_being_made {
                let _ = futex::wait(key.addr, key.seen, PAUSE_NS);
            }
            is_being_made
        }
    }
}
