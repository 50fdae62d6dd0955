//! What happens at exit(3): threads that write dirty pages anyway are asked to write all of them, and waited for.
//!
//! What a program stored to the kernel's own shared mapping is in the file when the process has ended, since the kernel
//! writes it. Our dirty pages end with the process, so they have to be written before. exit(3) may be called while the
//! program, or the thread that calls it, holds any lock, ours among them (a signal handler may call it), and while
//! runtimes come and go. So the handler takes no lock, allocates nothing, and touches nothing that anybody frees:
//! ```text
//! exiting thread                                  a flusher, in its seat
//! each seat: wanted += 1
//! each seat that owes a round: wake its bell ---> wanted != done: writes everything
//! sleeps on PROGRESS, 5 ms at most          <---  done = wanted as it was before; PROGRESS += 1, wake
//! no seat owes one, or time is over: returns
//! ```
//! A wake that comes between a flusher's look at its seat and its sleep is lost: so it is given again after each nap. The
//! bell is the address of a futex that may be gone; futex(2) uses it as a key, and a wake reads nothing there.
//!
//! A seat's states: free -> taken (a runtime is made) -> free (its flusher has ended).
//!
//! # Context: exit(3), which may hold any lock, and the flushers' threads: nothing is locked or allocated

use crate::child;
use crate::sys::{Errno, futex, process, thread};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Runtimes of a process that can be written back at exit.
pub const NR_SEATS: usize = 256;
/// The longest nap between two wakes, in nanoseconds.
const NAP_NS: u64 = 5_000_000;

#[derive(Debug)]
struct Place {
    taken: AtomicU32,
    /// The address of what its flusher sleeps on.
    bell: AtomicUsize,
    /// How long exit(3) waits for it, in milliseconds.
    wait_ms: AtomicU32,
    /// The flusher's thread, which cannot wait for itself.
    tid: AtomicU32,
    /// Rounds that were asked for, and up to which of them everything was written.
    wanted: AtomicU32,
    done: AtomicU32,
}

static PLACES: [Place; NR_SEATS] = [const {
    Place {
        taken: AtomicU32::new(0),
        bell: AtomicUsize::new(0),
        wait_ms: AtomicU32::new(0),
        tid: AtomicU32::new(0),
        wanted: AtomicU32::new(0),
        done: AtomicU32::new(0),
    }
}; NR_SEATS];

/// Moves with each round that ends; who waits for one sleeps on it.
static PROGRESS: AtomicU32 = AtomicU32::new(0);
/// The handler is known to the C library.
static IS_REGISTERED: AtomicU32 = AtomicU32::new(0);

/// A flusher's seat: what asks it for a round, and is told that it was made. Free again on drop.
#[derive(Debug)]
pub struct Seat(&'static Place);

impl Seat {
    /// Takes a seat for a flusher that sleeps on the futex at `bell`; exit(3) waits `wait_ms` for it at most. 0: it does not
    /// ask.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `EBUSY`: every seat is taken. `ENOMEM`: the C library has no room for the handler.
    pub fn take(bell: usize, wait_ms: u32) -> Result<Self, Errno> {
        if IS_REGISTERED.swap(1, Ordering::Relaxed) == 0
            && let Err(e) = process::at_exit(write_back_at_exit)
        {
            IS_REGISTERED.store(0, Ordering::Relaxed);
            return Err(e);
        }
        // Acquire pairs with `Seat::drop`: the last one's words are written no more.
        let free = |p: &&Place| p.taken.compare_exchange(0, 2, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let place = PLACES.iter().find(free).ok_or(Errno::EBUSY)?;
        place.bell.store(bell, Ordering::Relaxed);
        place.wait_ms.store(wait_ms, Ordering::Relaxed);
        place.tid.store(0, Ordering::Relaxed);
        place.done.store(place.wanted.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release pairs with `write_back_at_exit`: who sees the seat taken sees whose it is.
        place.taken.store(1, Ordering::Release);
        Ok(Self(place))
    }

    /// Says that the calling thread is the flusher.
    ///
    /// # Context: the flusher thread
    pub fn sit(&self) {
        self.0.tid.store(thread::gettid(), Ordering::Relaxed);
    }

    /// Returns the round that is wanted, if there is one that was not made.
    ///
    /// # Context: the flusher thread
    #[must_use]
    pub fn wanted(&self) -> Option<u32> {
        // Acquire pairs with `want`: what was stored before is seen by who writes.
        let wanted = self.0.wanted.load(Ordering::Acquire);
        (wanted != self.0.done.load(Ordering::Relaxed)).then_some(wanted)
    }

    /// Says that everything was written that was stored before `round` was wanted.
    ///
    /// # Context: the flusher thread
    pub fn made(&self, round: u32) {
        // Release pairs with `is_behind`: what was written is written when the round counts as made.
        self.0.done.store(round, Ordering::Release);
        progress();
    }

    /// Asks for a round, and waits for it at most `timeout_ns`; `false`: it was not made in time.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn write_back(&self, timeout_ns: u64) -> bool {
        let round = want(self.0);
        let began = thread::monotonic_ns();
        while is_behind(self.0, round) {
            let left = timeout_ns.saturating_sub(thread::monotonic_ns().wrapping_sub(began));
            if left == 0 || self.0.tid.load(Ordering::Relaxed) == thread::gettid() {
                return false;
            }
            nap(self.0, left);
        }
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Release pairs with `Seat::take`: the next one's are the only words here.
        self.0.taken.store(0, Ordering::Release);
        progress();
    }
}

fn progress() {
    // Release pairs with `nap`: what has moved is seen by who finds this moved.
    PROGRESS.fetch_add(1, Ordering::Release);
    futex::wake_all(core::ptr::from_ref(&PROGRESS).addr());
}

/// Asks for a round; returns its number.
fn want(place: &Place) -> u32 {
    // Release pairs with `Seat::wanted`.
    place.wanted.fetch_add(1, Ordering::Release).wrapping_add(1)
}

/// Returns whether `round` was not made yet. Rounds are numbered round the clock.
fn is_behind(place: &Place, round: u32) -> bool {
    // Acquire pairs with `Seat::made`.
    place.done.load(Ordering::Acquire).wrapping_sub(round).cast_signed() < 0
}

/// Wakes the flusher of a seat, and sleeps until some round was made, for at most [`NAP_NS`].
fn nap(place: &Place, left_ns: u64) {
    // Acquire pairs with `progress`: a round that is made after this look moves the word, and the sleep returns.
    let seen = PROGRESS.load(Ordering::Acquire);
    futex::wake_all(place.bell.load(Ordering::Relaxed));
    let _ = futex::wait(core::ptr::from_ref(&PROGRESS).addr(), seen, left_ns.min(NAP_NS));
}

/// Has every flusher write everything, and waits, for each as long as its runtime allows. Not in a forked child: its parent's
/// pages are the parent's, and no flusher came along.
///
/// # Context: any thread, whatever it holds
extern "C" fn write_back_at_exit() {
    if child::in_child() {
        return;
    }
    let me = thread::gettid();
    // Acquire pairs with `Seat::take`.
    let is_asked = |p: &&Place| {
        p.taken.load(Ordering::Acquire) == 1
            && p.wait_ms.load(Ordering::Relaxed) > 0
            && p.tid.load(Ordering::Relaxed) != me
    };
    for place in PLACES.iter().filter(is_asked) {
        let _ = want(place);
    }
    let began = thread::monotonic_ns();
    for place in PLACES.iter().filter(is_asked) {
        let round = place.wanted.load(Ordering::Relaxed);
        // One clock for all: the waits do not add up.
        let limit_ns = u64::from(place.wait_ms.load(Ordering::Relaxed)).saturating_mul(1_000_000);
        while is_asked(&place) && is_behind(place, round) {
            let left = limit_ns.saturating_sub(thread::monotonic_ns().wrapping_sub(began));
            if left == 0 {
                break;
            }
            nap(place, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_asked_and_answers() {
        let bell = AtomicU32::new(0);
        let seat = Seat::take(core::ptr::from_ref(&bell).addr(), 1).map_err(|e| e.0);
        let Ok(seat) = seat else { return assert_eq!(seat.map(|_| ()), Ok(())) };
        assert_eq!(seat.wanted(), None);
        let round = want(seat.0);
        assert_eq!(seat.wanted(), Some(round));
        assert!(is_behind(seat.0, round));
        seat.made(round);
        assert_eq!((seat.wanted(), is_behind(seat.0, round)), (None, false));
        assert!(!seat.write_back(1_000_000), "nobody sits there: the wait ends");
        // Round the clock.
        seat.0.wanted.store(u32::MAX, Ordering::Relaxed);
        seat.made(u32::MAX);
        let round = want(seat.0);
        assert!(round == 0 && is_behind(seat.0, round), "the round after the last number");
        drop(seat);
    }
}
