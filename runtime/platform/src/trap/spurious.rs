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
//! pause, gets its signal. Only what comes back while no change is under way counts, and it counts anew after each that has
//! ended: a thread is not killed because the one that changes the mapping does not run.
//!
//! # Context: handler

use crate::child;
use crate::sys::thread;
use core::sync::atomic::{AtomicUsize, Ordering};

const ENTRIES: usize = 64;
/// Turns without a change that could explain them; each yields the processor.
const PATIENCE: usize = 1 << 10;
/// Turns while a change is under way, before the thread sleeps in each.
const TURNS: usize = 1 << 6;
const SLEEP_NS: u64 = 1_000_000;
/// How often it sleeps for one and the same change, half a minute: who makes the change may be waiting for this very thread (for
/// the allocator's lock, say, if its heap is in the arena).
const SLEEPS_MAX: usize = 30_000;
/// How many changes may have ended during the turns of one access. Those of other ranges are among them: a program that goes on
/// making such, while it has itself taken a permission away, is told.
const CHANGES_MAX: usize = 1 << 10;

/// Changes of what ranges permit that have begun in this process.
static BEGUN: AtomicUsize = AtomicUsize::new(0);
/// Those of them that are over.
static ENDED: AtomicUsize = AtomicUsize::new(0);

/// A change of what a range permits is under way until this is dropped: vmas and the kernel may say different things.
#[derive(Debug)]
#[must_use = "it is over when this is dropped"]
pub struct Changing(());

/// Begins a change: before its records are published.
///
/// # Context: control plane
pub fn changing() -> Changing {
    // Relaxed: who sees the record, which is published later by a Release, sees this.
    BEGUN.fetch_add(1, Ordering::Relaxed);
    Changing(())
}

/// Returns whether one is under way in this process: it may have ended by now.
///
/// # Context: handler
#[must_use]
pub fn is_changing() -> bool {
    // Acquire pairs with `Changing::drop`. Read first: at worst a change seems to be under way that has just ended.
    let ended = ENDED.load(Ordering::Acquire);
    BEGUN.load(Ordering::Relaxed) != ended
}

impl Drop for Changing {
    fn drop(&mut self) {
        // Release pairs with `may_retry`: who sees that it is over comes back to what the kernel was told.
        ENDED.fetch_add(1, Ordering::Release);
    }
}

/// Ticks (about ten milliseconds) after which a thread has not come back "without pause".
const PAUSE_TICKS: usize = 30_000_000;

struct Entry {
    last: AtomicUsize,
    count: AtomicUsize,
    at: AtomicUsize,
    /// [`ENDED`] as last seen, and how often it had moved.
    ended: AtomicUsize,
    changes: AtomicUsize,
}

impl Entry {
    const fn new() -> Self {
        Self {
            last: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            at: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            changes: AtomicUsize::new(0),
        }
    }
}

static LAST: [Entry; ENTRIES] = [const { Entry::new() }; ENTRIES];

/// Notes a permitted access that faulted; `true`: let it run again.
pub(super) fn may_retry(address: usize) -> bool {
    let tp = thread::thread_pointer();
    let Some(entry) = LAST.get((tp >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) else { return false };
    let now = thread::rdtsc() as usize;
    let paused = now.wrapping_sub(entry.at.swap(now, Ordering::Relaxed)) > PAUSE_TICKS;
    // Two threads in one entry only reset each other's count: more patience, never less.
    // While a change is under way it is no pause of the thread's own: it has slept here, or had no processor.
    let is_new = entry.last.swap(address ^ tp, Ordering::Relaxed) != address ^ tp;
    if is_new || (paused && !is_changing()) {
        entry.count.store(0, Ordering::Relaxed);
        entry.changes.store(0, Ordering::Relaxed);
    }
    // Acquire pairs with `Changing::drop`. Read first: at worst a change seems to be under way that has just ended.
    let ended = ENDED.load(Ordering::Acquire);
    let is_changing = BEGUN.load(Ordering::Relaxed) != ended && !child::in_child();
    if entry.ended.swap(ended, Ordering::Relaxed) != ended
        && entry.changes.fetch_add(1, Ordering::Relaxed) < CHANGES_MAX
    {
        entry.count.store(0, Ordering::Relaxed);
    }
    if is_changing && entry.changes.load(Ordering::Relaxed) < CHANGES_MAX {
        let turns = entry.count.fetch_add(1, Ordering::Relaxed);
        if turns < TURNS {
            thread::sched_yield();
        } else {
            thread::sleep_ns(SLEEP_NS);
        }
        return turns < TURNS + SLEEPS_MAX;
    }
    thread::sched_yield();
    entry.count.fetch_add(1, Ordering::Relaxed) < PATIENCE
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use core::time::Duration;
    use std::time::Instant;

    /// Tries again and again, `between` the tries doing what others do; returns whether it is told in the end.
    fn is_told(address: usize, mut between: impl FnMut()) -> bool {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if !may_retry(address) {
                return true;
            }
            between();
        }
        false
    }

    // One test: the changes of one would be among those that the other counts.
    #[test]
    fn who_took_a_permission_away_is_told_unless_one_change_lasts() {
        // One is under way at any time, as where several threads map and unmap.
        let mut under_way = changing();
        assert!(is_told(0x5f00_0000_3000, || under_way = changing()), "others change theirs without end");
        let address = 0x5f00_0000_4000;
        assert!((0..PATIENCE + TURNS).all(|_| may_retry(address)), "the same change is under way");
        let tp = thread::thread_pointer();
        for entry in LAST.iter().filter(|e| e.last.load(Ordering::Relaxed) == address ^ tp) {
            // Many turns later, the last of them after a pause that was none of its own.
            entry.count.store(TURNS + SLEEPS_MAX, Ordering::Relaxed);
            entry.at.store(0, Ordering::Relaxed);
        }
        assert!(!may_retry(address), "a change that does not end is no reason to wait for ever");
        drop(under_way);
    }
}
