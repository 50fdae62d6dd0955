//! SIGSEGVs that a concurrent `protect` or `map` explains.
//!
//! ```text
//! thread                                  protect()
//! store to a read-only page: SIGSEGV
//!                                         publish the writable vma, mprotect
//! handler: the vma permits the store
//! ```
//! The instruction may simply run again. But if something else took the permission away (an `mprotect` of the
//! program's own) it would run again for ever; so a thread that comes back for the same address too often, without
//! pause, gets its signal.
//!
//! # Context: handler

use crate::sys::thread;
use core::sync::atomic::{AtomicUsize, Ordering};

const ENTRIES: usize = 64;
/// Enough for an mprotect on a busy machine (each turn yields the processor), few enough not to hang a program.
const PATIENCE: usize = 1 << 10;

/// Ticks (about ten milliseconds) after which a thread has not come back "without pause".
const PAUSE_TICKS: usize = 30_000_000;

struct Entry {
    last: AtomicUsize,
    count: AtomicUsize,
    at: AtomicUsize,
}

static LAST: [Entry; ENTRIES] =
    [const { Entry { last: AtomicUsize::new(0), count: AtomicUsize::new(0), at: AtomicUsize::new(0) } }; ENTRIES];

/// Notes a permitted access that faulted; `true`: let it run again.
pub(super) fn may_retry(address: usize) -> bool {
    let tp = thread::thread_pointer();
    let Some(entry) = LAST.get((tp >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) else { return false };
    let now = thread::rdtsc() as usize;
    let paused = now.wrapping_sub(entry.at.swap(now, Ordering::Relaxed)) > PAUSE_TICKS;
    // Two threads in one entry only reset each other's count: more patience, never less.
    if entry.last.swap(address ^ tp, Ordering::Relaxed) != address ^ tp || paused {
        entry.count.store(0, Ordering::Relaxed);
    }
    thread::sched_yield();
    entry.count.fetch_add(1, Ordering::Relaxed) < PATIENCE
}
