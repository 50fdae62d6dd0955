//! Walk stacks: where a handler runs, instead of on what the kernel put it on.
//!
//! The kernel writes a signal's frame to the thread's alternate stack, or to the stack that the thread was on where there is
//! none: 8 KiB of std's, exactly one frame's size on processors with large ones (AMX), the 4 KiB of a coroutine. The frame
//! holds every register. So the entry (`trap::trampoline`) takes a stack of this pool before it touches memory, and gives it
//! back before it sleeps or returns: whatever the thread was on needs room for the kernel's frame, and for nothing of ours.
//! ```text
//! what the thread was on                        walk stack, 64 KiB
//! +-----------------------------+               +-----------------------------+ <- top
//! | the kernel's frame: what    |               | Trip: where we came from    |
//! | sigreturn(2) restores    ---+-------------> | step, the walk, a store ..  |
//! +-----------------------------+               +-----------------------------+
//! | the thread's own memory     |               | guard page                  |
//! ```
//! While the stack pointer is elsewhere, the kernel takes the alternate stack for free:
//! ```text
//! on a walk stack                               a signal with SA_ONSTACK comes
//!   sp is not inside the alternate stack          the kernel begins at its top, over the live frame
//!   back; sigreturn restores                      what that signal's handler left there
//! ```
//! So nothing may come meanwhile:
//! - Every signal is masked, as the handler is entered (`trap::chain`): those sent by processes, and those of instructions. An
//!   instruction that faults on a walk stack ends the process by the default action.
//! - Where user code runs that may fault, the alternate stack is disabled first (`sigaltstack(2)` permits that while nobody is
//!   on it), and then the signals of instructions are opened: the frame of a nested fault goes below us, on this stack. Both
//!   are taken back when that code has returned, so whoever runs later finds its stack as it was.
//! - Nothing sleeps for long: who waits goes back with empty hands and sleeps where it came from.
//!
//! Who holds a stack, and how many:
//! ```text
//! numbers 0..64      a store's read or delegate, for as long as it takes     or a walk
//! numbers 64..128                                                            a walk, a batch of reclaim, a nap of milliseconds
//! ```
//! A fault that got one of the upper ones has its page read by a filler, or, where a filler may not (a store that touches
//! arenas), comes again. So there is always one that becomes free, and an entry waits for it: it holds nothing meanwhile.
//!
//! # Context: handler

use crate::sys::{Errno, mem};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use softfault_mm::page::PAGE_SIZE;

/// How many there are.
pub(crate) const NR_STACKS: usize = 128;
/// The first of them, on which user code may stay; a power of two.
pub(crate) const NR_LONG: usize = 64;
const STACK_BYTES: usize = 64 << 10;
/// A guard page, and the stack above it.
pub(crate) const STRIDE_BYTES: usize = PAGE_SIZE + STACK_BYTES;

/// Whether a stack is in use: bit 0. A cache line each: threads that fault at once do not meet.
#[repr(align(64))]
pub(crate) struct Busy(AtomicU32);

/// Bytes from one to the next.
pub(crate) const BUSY_BYTES: usize = size_of::<Busy>();

// Claimed and given back by the entry's instructions: a locked one (Acquire) that sets the bit, and a plain store (Release)
// after the last access to the stack.
pub(crate) static BUSY: [Busy; NR_STACKS] = [const { Busy(AtomicU32::new(0)) }; NR_STACKS];
/// Address of the first guard page; 0: no pool, and no handler of ours is installed yet.
pub(crate) static BASE: AtomicUsize = AtomicUsize::new(0);

/// Returns whether code of the user's may stay on the stack with this number for as long as it likes.
#[inline]
#[must_use]
pub(crate) fn is_for_long(number: usize) -> bool {
    number < NR_LONG
}

/// Maps the pool, once a process; memory is taken as stacks are used.
///
/// # Context: control plane, under the caller's lock
///
/// # Errors
/// The kernel's.
pub fn init() -> Result<(), Errno> {
    if BASE.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    let len_bytes = NR_STACKS * STRIDE_BYTES;
    let base = mem::reserve(len_bytes, PAGE_SIZE)?;
    if let Err(e) = (0..NR_STACKS).try_for_each(|i| open(base + i * STRIDE_BYTES)) {
        // SAFETY: the range reserved above, which nobody has seen.
        let _ = unsafe { mem::munmap(base, len_bytes) };
        return Err(e);
    }
    // Release pairs with `on_signal`, whose instructions read it; it is installed later, by a system call.
    BASE.store(base, Ordering::Release);
    Ok(())
}

/// Makes the stack above the guard page at `guard` accessible.
fn open(guard: usize) -> Result<(), Errno> {
    let stack = guard + PAGE_SIZE;
    // SAFETY: a part of the range that `init` reserved and has shown nobody.
    unsafe { mem::mprotect(stack, STACK_BYTES, mem::PROT_READ | mem::PROT_WRITE) }?;
    // A stack holds addresses of the program, and nothing that a core dump could explain. Advice may be refused.
    // SAFETY: as above; no page is dropped.
    let _ = unsafe { mem::madvise(stack, STACK_BYTES, mem::MADV_DONTDUMP) };
    Ok(())
}

/// Returns how many stacks are in use. For tests: the number may be another one by now.
///
/// # Context: a test
#[must_use]
pub fn nr_busy() -> usize {
    BUSY.iter().filter(|busy| busy.0.load(Ordering::Relaxed) != 0).count()
}

/// Takes (`true`) or gives back every stack that is free, or was taken here. For tests: entries wait meanwhile.
///
/// # Context: a test
pub fn take_all(taken: &mut [bool; NR_STACKS], take: bool) {
    for (busy, mine) in BUSY.iter().zip(taken) {
        if take && !*mine {
            // Acquire, and Release below, pair with `on_signal`, whose instructions do the same.
            *mine = busy.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        } else if !take && core::mem::take(mine) {
            busy.0.store(0, Ordering::Release);
        }
    }
}
