//! Waits of a fault that end when a signal comes for the program: how long a slice of sleep is, and what must outlast a wait
//! that was left.
//!
//! With the kernel's own mappings, a thread that waits for a page returns to user mode when a signal is pending (Linux:
//! `handle_userfault`, `fault_signal_pending`): the program's handler runs on the stack that is its due, and the
//! instruction faults again. A handler of ours that waits does the same. It cannot sleep with the program's mask in
//! force: the program's handler would run below ours, on what is left of the alternate stack.
//! ```text
//! the thread that waits (every signal masked)       the filler                     somebody: kill()
//! walk: the page is being filled
//! WAITERS set, nothing held
//! rt_sigpending & !interrupted mask?  none
//!                                                                                  pending (a)
//! futex(word, seen, slice) .. ETIMEDOUT
//! rt_sigpending: there is one
//! return: the kernel opens the mask
//! the program's handler runs
//!                                                   publish, wake: nobody there (b)
//! the instruction faults: walk again: mapped
//! ```
//! - (a) Anywhere before the look: seen by it. Anywhere after: seen after the slice. A slice is 8 ms at most, which is the
//!   latency that the wait adds to a signal.
//! - (b) Nobody waits for a thread that left: it has no claim, pin, slot or stack. What it claimed it gave to a filler, or
//!   filled before it came to wait. So a handler may jump away, and a storm of signals cannot stop a fill.
//! - The word moved *and* a signal is pending: the walk comes first. Each time the instruction comes back there is one
//!   attempt before there is a wait, so the page is mapped as soon as it is there, however many signals come.
//! - A signal that is ignored is pending while it is masked: it is dropped on the way out, and the instruction is back.
//! - A deadline goes on while the thread is away ([`begin`]), else a storm would have it begin anew each time; and so does
//!   what a thread has found out that asks for room in a full cache ([`crate::stalls`]).
//!
//! # Context: handler

use crate::sys::thread::{self, Timespec};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const fn ms(ms: i64) -> Timespec {
    Timespec { sec: 0, nsec: ms * 1_000_000 }
}

/// How long a thread sleeps between two looks for signals: each slice is the next one.
pub static SLICES: [Timespec; 4] = [ms(1), ms(2), ms(4), ms(8)];

const ENTRIES: usize = 256;
/// Who comes back later than this begins a new wait.
const AWAY_NS: u64 = 100_000_000;

/// A wait that was left: by whom and for what (thread pointer and address), when, and what it goes on with.
struct Left {
    key: AtomicUsize,
    at_ns: AtomicU64,
    what: AtomicU64,
}

// Two threads in one entry forget each other's wait: it begins anew, as if there had been no such table.
static LEFT: [Left; ENTRIES] =
    [const { Left { key: AtomicUsize::new(0), at_ns: AtomicU64::new(0), what: AtomicU64::new(0) } }; ENTRIES];

fn entry_of(addr: usize) -> (&'static Left, usize) {
    let tp = thread::thread_pointer();
    let at = ((tp >> 6) ^ (addr >> 3)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    (LEFT.get(at % ENTRIES).unwrap_or(&LEFT[0]), tp ^ addr.rotate_left(16))
}

/// Returns what this thread left the wait on `addr` with, if that was a moment ago.
fn take(addr: usize, now_ns: u64) -> Option<u64> {
    let (left, key) = entry_of(addr);
    let recent = now_ns.saturating_sub(left.at_ns.load(Ordering::Relaxed)) < AWAY_NS;
    (left.key.swap(0, Ordering::Relaxed) == key && recent).then(|| left.what.load(Ordering::Relaxed))
}

fn put(addr: usize, now_ns: u64, what: u64) {
    let (left, key) = entry_of(addr);
    left.at_ns.store(now_ns, Ordering::Relaxed);
    left.what.store(what, Ordering::Relaxed);
    left.key.store(key, Ordering::Relaxed);
}

/// Returns when a wait on `addr` for `timeout_ns` ends: a thread that left this wait for a signal, and is back, goes on with
/// the deadline that it had. `u64::MAX`: never.
///
/// # Context: handler
#[must_use]
pub fn begin(addr: usize, timeout_ns: u64) -> u64 {
    if timeout_ns == u64::MAX {
        return u64::MAX;
    }
    let now_ns = thread::monotonic_ns();
    let fresh = now_ns.saturating_add(timeout_ns);
    take(addr, now_ns).map_or(fresh, |end_ns| end_ns.min(fresh))
}

/// Notes that this thread leaves a wait on `addr` that ends at `end_ns`.
///
/// # Context: handler
pub fn end(addr: usize, end_ns: u64) {
    if end_ns != u64::MAX {
        put(addr, thread::monotonic_ns(), end_ns);
    }
}

/// Waits that were left for a signal since the process began.
static NR_LEFT: AtomicU64 = AtomicU64::new(0);

/// Counts a wait that is left for a signal.
///
/// # Context: handler
pub fn count() {
    NR_LEFT.fetch_add(1, Ordering::Relaxed);
}

/// Returns how many waits of faults were left for a signal since the process began; the instruction faulted again.
///
/// # Context: handler
#[must_use]
pub fn nr_left() -> u64 {
    NR_LEFT.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn a_deadline_goes_on_while_the_thread_is_away() {
        let addr = 0x5f00_0000_1000;
        let first = begin(addr, 1_000_000_000);
        end(addr, first);
        assert_eq!(begin(addr, 1_000_000_000), first, "the same wait");
        assert!(begin(addr, 1_000_000_000) > first, "it did not leave in between: a new one");
        end(addr, first);
        assert!(begin(addr + 8, 1_000_000_000) > first, "another page");
        assert_eq!(begin(addr, u64::MAX), u64::MAX);
    }
}
