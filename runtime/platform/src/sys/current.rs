//! Which thread runs: a number, and no system call. Linux: `current`.
//!
//! # Context: handler

use core::arch::asm;

/// Returns the thread pointer: a number that names the calling thread for as long as it lives.
///
/// One load from the thread control block (`%fs:0` holds its own address in the x86-64 TLS ABI); it touches no lazy
/// thread-local and makes no call, so it is the cheapest identity a handler can have.
///
/// # Context: handler
#[inline(always)]
#[must_use]
pub fn thread_pointer() -> usize {
    let tp: usize;
    // SAFETY: the x86-64 TLS ABI (ELF Handling For Thread-Local Storage, 3.4.6) keeps the thread pointer at %fs:0.
    unsafe { asm!("mov {}, fs:[0]", out(reg) tp, options(nostack, preserves_flags, readonly)) };
    tp
}
