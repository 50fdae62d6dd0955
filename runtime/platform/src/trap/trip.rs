//! What lies at the top of a walk stack: one signal's way through the handler, and what its instructions are told.
//!
//! `trampoline` makes it and knows where its fields lie; `entry` reads and writes them.
//!
//! # Context: handler

use crate::sys::signal::SigInfo;
use core::ffi::c_void;
use core::mem::offset_of;
use softfault_mm::types::{FaultFlags, VmFaultReason};

/// What `step` answers: return to the interrupted instruction.
pub(super) const RESUME: u32 = 0;
/// Sleep on the trip's word for a slice, then call again.
pub(super) const SLEEP: u32 = 1;
/// The previous handler gets the signal `trip.passed`.
pub(super) const PASS: u32 = 2;

/// One signal's way through the handler. The instructions of `trampoline` know where its fields lie.
#[repr(C, align(16))]
pub(super) struct Trip {
    /// What to sleep on, and the value that it has.
    pub(super) addr: usize,
    pub(super) seen: u32,
    /// Which of [`leave::SLICES`]; [`FRESH`]: nobody has looked at this signal yet.
    pub(super) slice: u32,
    /// The bits of the attempts so far, and what is known of the access.
    pub(super) before: VmFaultReason,
    pub(super) flags: FaultFlags,
    /// When the wait's deadline is; `u64::MAX`: never.
    pub(super) end_ns: u64,
    /// What the sleep's system call returned.
    pub(super) slept: isize,
    /// The signal for the previous handler.
    pub(super) passed: i32,
    /// The signal that arrived, and its arguments.
    pub(super) signo: i32,
    pub(super) info: *mut SigInfo,
    pub(super) uc: *mut c_void,
    /// The clock when the fault began, of a sampled one; 0: it is not.
    pub(super) began: u64,
    /// The caller's rbx, r12..r15.
    pub(super) saved: [u64; 5],
    /// The stack pointer that we came with.
    pub(super) from: usize,
    /// As a frame pointer expects them: the caller's rbp, and the return address.
    pub(super) frame: [usize; 2],
}

/// See [`Trip::slice`].
pub(super) const FRESH: u32 = u32::MAX;

/// A trip fits xmm0..8.
pub(super) const TRIP_BYTES: usize = 9 * 16;
const _: () = assert!(size_of::<Trip>() == TRIP_BYTES);
// What the trampoline says to debuggers and unwinders, in bytes from the frame pointer.
const _: () = {
    let frame = offset_of!(Trip, frame) as isize;
    assert!(offset_of!(Trip, from) as isize - frame == -8);
    assert!(offset_of!(Trip, saved) as isize + 8 - frame == -40);
};
