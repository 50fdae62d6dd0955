//! What threads have found out about a full cache when they left it for a signal.
//!
//! Whoever is told that there is no memory has looked at everything, several times, and that takes longer than the program's signals
//! wait. So a thread leaves however often one comes, and goes on with what it has seen when its instruction faults again.
//! ```text
//! the thread (every signal masked)                   somebody: kill(), a timer
//! nothing can go: looks again, naps
//!                                                    pending
//! keeps what it has seen; return: the handler runs
//! the instruction faults: takes it, looks again
//! ```
//!
//! # Context: handler

use crate::sys::thread;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use softfault_mm::stall::Stall;

const BUCKETS: usize = 32;
const WAYS: usize = 8;
/// In [`Kept::thread`]: somebody changes the entry. Thread pointers are multiples of 8.
const IN_USE: usize = 1;
/// Who comes back later than this begins anew: pages may have been unpinned meanwhile, of which nobody says anything.
const AWAY_NS: u64 = 100_000_000;

/// What one thread has kept.
struct Kept {
    /// The thread pointer; 0: the entry is free.
    thread: AtomicUsize,
    /// What was full.
    addr: AtomicUsize,
    at_ns: AtomicU64,
    stall: UnsafeCell<Stall>,
}

// SAFETY: the stall is touched only by who has made `thread` say IN_USE.
unsafe impl Sync for Kept {}

impl Kept {
    const fn new() -> Self {
        let stall = UnsafeCell::new(Stall::NONE);
        Self { thread: AtomicUsize::new(0), addr: AtomicUsize::new(0), at_ns: AtomicU64::new(0), stall }
    }

    /// Runs `f` on the entry if it is `owner`'s, and nobody else's meanwhile; it is `next`'s then. `false`: it was not.
    fn change(&self, owner: usize, next: usize, f: impl FnOnce(&mut Stall)) -> bool {
        // Acquire pairs with the Release below, of the `change` before: its user is done with the entry.
        let ours = owner != IN_USE
            && self.thread.compare_exchange(owner, IN_USE, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if ours {
            // SAFETY: the word says IN_USE, which we alone have written, so nobody else comes here until it is changed below.
            f(unsafe { &mut *self.stall.get() });
            // Release pairs with the Acquire above, of the `change` that follows.
            self.thread.store(next, Ordering::Release);
        }
        ours
    }
}

static KEPT: [[Kept; WAYS]; BUCKETS] = [const { [const { Kept::new() }; WAYS] }; BUCKETS];

fn bucket_of(thread: usize) -> &'static [Kept; WAYS] {
    let at = (thread >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59;
    KEPT.get(at % BUCKETS).unwrap_or(&KEPT[0])
}

/// Returns, once, what the thread has kept of what is full at `addr`, if that was a moment ago.
///
/// # Context: handler
#[must_use]
pub fn take(addr: usize) -> Option<Stall> {
    take_of(thread::thread_pointer(), addr, thread::monotonic_ns())
}

fn take_of(thread: usize, addr: usize, now_ns: u64) -> Option<Stall> {
    let is_ours =
        |kept: &&Kept| kept.thread.load(Ordering::Relaxed) == thread && kept.addr.load(Ordering::Relaxed) == addr;
    // Nobody else writes our thread pointer, and who drops it to keep something else does not put it back.
    let kept = bucket_of(thread).iter().find(is_ours)?;
    let is_recent = now_ns.saturating_sub(kept.at_ns.load(Ordering::Relaxed)) < AWAY_NS;
    let mut stall = None;
    kept.change(thread, 0, |of| stall = is_recent.then_some(*of));
    stall
}

/// Keeps what the thread has seen of what is full at `addr`. Where nine threads of one bucket have left at the same time the one
/// that did so first begins anew.
///
/// # Context: handler
pub fn keep(addr: usize, stall: Stall) {
    keep_of(thread::thread_pointer(), addr, thread::monotonic_ns(), stall);
}

fn keep_of(thread: usize, addr: usize, now_ns: u64, stall: Stall) {
    let put = |kept: &Kept, seen: usize| {
        kept.change(seen, thread, |of| {
            *of = stall;
            kept.addr.store(addr, Ordering::Relaxed);
            kept.at_ns.store(now_ns, Ordering::Relaxed);
        })
    };
    let bucket = bucket_of(thread);
    // Free when it is taken: another thread that leaves at the same time keeps what it has put there meanwhile.
    if bucket.iter().any(|kept| put(kept, 0)) {
        return;
    }
    // Whose each is, is asked before its age: of two that leave at the same time the second finds the first's no more, and takes
    // the next oldest.
    for _ in 0..WAYS {
        let owners = bucket.iter().map(|kept| (kept, kept.thread.load(Ordering::Relaxed)));
        let oldest = owners.min_by_key(|(kept, _)| kept.at_ns.load(Ordering::Relaxed));
        if oldest.is_some_and(|(kept, owner)| put(kept, owner)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: usize = 0x5f00_0000_1000;

    fn stall(ticket: u64) -> Stall {
        Stall::new(7, ticket)
    }

    #[test]
    fn what_is_kept_is_taken_once_by_its_thread_in_its_place() {
        keep(PLACE, stall(5));
        assert_eq!(take(PLACE + 8), None, "another place");
        assert_eq!(take_of(thread::thread_pointer() + 8, PLACE, thread::monotonic_ns()), None, "another thread");
        assert_eq!(take(PLACE), Some(stall(5)));
        assert_eq!(take(PLACE), None, "it was taken");
        keep(PLACE, stall(6));
        let late = thread::monotonic_ns() + AWAY_NS;
        assert_eq!(take_of(thread::thread_pointer(), PLACE, late), None, "it was away for long");
    }

    /// Threads that leave at the same time do not make each other begin anew, as long as there is room for all.
    #[test]
    fn threads_of_one_bucket_keep_what_they_have() {
        let thread = 0x7d00_0000_0000;
        let neighbours =
            (0usize..).map(|n| thread + n * 64).filter(|t| core::ptr::eq(bucket_of(*t), bucket_of(thread)));
        let mut nine = [0; WAYS + 1];
        nine.iter_mut().zip(neighbours).for_each(|(t, of)| *t = of);
        for (n, t) in nine.iter().enumerate().take(WAYS) {
            keep_of(*t, PLACE, n as u64, stall(n as u64));
        }
        keep_of(nine[WAYS], PLACE, WAYS as u64, stall(WAYS as u64));
        for (n, t) in nine.iter().enumerate() {
            let expected = (n > 0).then_some(stall(n as u64));
            assert_eq!(take_of(*t, PLACE, 20), expected, "thread {n}: only the first is dropped");
        }
    }
}
