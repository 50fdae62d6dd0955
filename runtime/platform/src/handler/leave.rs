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
//! - A deadline goes on while the thread is away ([`begin`]), else a storm would have it begin anew each time; and
//!   a thread that asks for room in a full cache is told so in the end ([`may_leave`]).
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
/// How long a thread may go on leaving a wait that is to end by itself.
const PATIENCE_NS: u64 = 2_000_000_000;
/// How long it may not then, the first time, and how often this is doubled at most: 32 s.
const REFUSED_NS: u64 = 500_000_000;
const REFUSED_DOUBLED: u32 = 6;

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

/// How a wait was left again and again: since when, to the microsecond, and how often a time without leaving has followed.
#[derive(Clone, Copy)]
struct Leaving {
    began_us: u64,
    refused: u32,
}

const REFUSED_SHIFT: u32 = 56;

impl Leaving {
    fn pack(self) -> u64 {
        u64::from(self.refused) << REFUSED_SHIFT | self.began_us & ((1 << REFUSED_SHIFT) - 1)
    }

    fn unpack(word: u64) -> Self {
        Self { began_us: word & ((1 << REFUSED_SHIFT) - 1), refused: (word >> REFUSED_SHIFT) as u32 }
    }

    /// Returns what is to be kept by now, and whether the thread may leave.
    fn at(self, now_us: u64) -> (Self, bool) {
        let patience_us = PATIENCE_NS / 1_000;
        let refused_us = (REFUSED_NS / 1_000) << self.refused.min(REFUSED_DOUBLED);
        let age_us = now_us.saturating_sub(self.began_us);
        if age_us >= patience_us + refused_us {
            (Self { began_us: now_us, refused: (self.refused + 1).min(REFUSED_DOUBLED) }, true)
        } else {
            (self, age_us < patience_us)
        }
    }
}

/// Returns whether this thread may leave a wait on `addr` for a signal once more; `false`: it has done so for long, and has
/// to find out how the wait ends, however many of its naps that takes.
///
/// A wait that does not end (for a store that hangs) finds out nothing, and the signal may be the one that is to end the
/// program: after a time it may leave again. Each such time is twice the one before, for a cache of any size is gone through
/// in one of them.
///
/// # Context: handler
#[must_use]
pub fn may_leave(addr: usize) -> bool {
    let now_ns = thread::monotonic_ns();
    let now_us = now_ns / 1_000;
    let kept = take(addr, now_ns).map_or(Leaving { began_us: now_us, refused: 0 }, Leaving::unpack);
    let (kept, may) = kept.at(now_us);
    // Also if it may not: a signal that is pending would let it go again after the next nap, for ever.
    put(addr, now_ns, kept.pack());
    may
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

    #[test]
    fn nobody_leaves_for_ever() {
        let addr = 0x5f00_0000_2000;
        let began = std::time::Instant::now();
        while may_leave(addr) {
            assert!(began.elapsed().as_secs() < 30, "it is told in the end");
            std::thread::sleep(core::time::Duration::from_millis(1));
        }
        assert!(began.elapsed().as_nanos() >= u128::from(PATIENCE_NS));
        assert!(!may_leave(addr), "and does not begin anew while it waits");
    }

    /// A signal comes a hundred times a second, the store hangs: it is let in again and again, and time is left to find out.
    #[test]
    fn a_wait_without_end_is_left_again() {
        let ms = |us: u64| us / 1_000;
        let (mut left, mut refused, mut longest, mut run) = (0, 0, 0, 0);
        let mut kept = Leaving { began_us: 7, refused: 0 };
        for now_us in (7..600_000_000).step_by(10_000) {
            let (next, may) = Leaving::unpack(kept.pack()).at(now_us);
            kept = next;
            run = if may { 0 } else { run + 10_000 };
            longest = run.max(longest);
            *if may { &mut left } else { &mut refused } += 1;
        }
        assert!(left > 1_000, "{left} times");
        assert!(refused > left, "{refused} naps in which it finds out, {left} times away");
        assert!((31_000..=33_000).contains(&ms(longest)), "{} ms without a signal", ms(longest));
    }
}
