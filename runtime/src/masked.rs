//! Locks whose holders somebody may wait for who serves a fault: the program's signals wait while one is held.
//!
//! A fault takes none of them itself. But it may wait for the flusher, which takes the object's turn, or for a filler, which
//! takes a shard of zswap's; and it comes again for as long as an extent is on its way from one side to the other:
//! ```text
//! a thread of the program                        the flusher, a filler
//! takes the lock
//!   SIGALRM: the program's handler touches
//!   an arena; the page waits for ..              .. who waits for the lock
//! ```
//! Who *waits* for such a lock has its signals open, unless it has another one: whoever holds it may be in a store that takes its
//! time. So nobody sleeps in the lock itself, which it would have when it wakes, before its signals are masked:
//! ```text
//! waits                                          gives it back
//! waiters + 1; fence
//! tries: taken                                   unlocks; fence
//! opens its signals, sleeps on `given_back`      waiters? given_back + 1, wakes all
//! masks them, tries again
//! ```
//! Either the waiter's try comes after the unlock, and succeeds or finds another holder, or the other sees the waiter. A handler
//! that jumps away from the sleep leaves its count behind, which costs a wake for nobody each time.
//!
//! # Context: control plane, the flusher and fillers; never a handler

use softfault_mm::ctx::Ctx;
use softfault_mm::host::Env;
use softfault_mm::ops::WaitKey;
use softfault_platform::host::Uninterrupted;
use softfault_platform::sys::futex;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{self, MutexGuard, PoisonError, TryLockError};

/// A lock that is held with the program's asynchronous signals masked.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    inner: sync::Mutex<T>,
    waiters: AtomicU32,
    given_back: AtomicU32,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { inner: sync::Mutex::new(value), waiters: AtomicU32::new(0), given_back: AtomicU32::new(0) }
    }

    /// Takes it if nobody has it. A panic under it left nothing half done that its users do not look at again.
    fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.inner.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Returns whether nobody has it, at some moment of the call. The caller's signals are masked.
    pub(crate) fn is_free(&self) -> bool {
        // Who waits has seen it taken by this look, perhaps: it is given back as by who had it.
        self.try_lock().map(|guard| (guard, GiveBack(self))).is_some()
    }

    /// Returns what it protects, of which there is no other user.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes who waits, when the lock has been given back.
#[derive(Debug)]
struct GiveBack<'a, T>(&'a Mutex<T>);

impl<T> Drop for GiveBack<'_, T> {
    fn drop(&mut self) {
        // SeqCst pairs with `wait`: see above.
        fence(Ordering::SeqCst);
        if self.0.waiters.load(Ordering::Relaxed) != 0 {
            self.0.given_back.fetch_add(1, Ordering::Relaxed);
            futex::wake_word(&self.0.given_back);
        }
    }
}

/// A lock that is held, with the program's asynchronous signals masked.
#[derive(Debug)]
pub(crate) struct Masked<'a, T> {
    // Dropped in this order: the lock is given back, who waits is woken, and then signals come again.
    guard: MutexGuard<'a, T>,
    _give_back: GiveBack<'a, T>,
    _uninterrupted: Uninterrupted,
}

/// Takes the lock; the program's signals come while it is waited for.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> Masked<'_, T> {
    let uninterrupted = Uninterrupted::new();
    let guard = mutex.try_lock().unwrap_or_else(|| wait(mutex, &uninterrupted));
    Masked { guard, _give_back: GiveBack(mutex), _uninterrupted: uninterrupted }
}

/// How long who has a `Host` sleeps before it looks again.
const PAUSE_NS: u64 = 1_000_000;

/// The same for a thread whose `Host` masks its signals already, and opens them while it waits.
pub(crate) fn lock_beside<'a, T>(env: Env<'_>, ctx: &Ctx<'_>, mutex: &'a Mutex<T>) -> Masked<'a, T> {
    let uninterrupted = Uninterrupted::new();
    let guard = loop {
        let seen = mutex.given_back.load(Ordering::Relaxed);
        if let Some(guard) = mutex.try_lock() {
            break guard;
        }
        env.park.wait(ctx, WaitKey { addr: mutex.given_back.as_ptr() as usize, seen }, PAUSE_NS);
    };
    Masked { guard, _give_back: GiveBack(mutex), _uninterrupted: uninterrupted }
}

#[cold]
fn wait<'a, T>(mutex: &'a Mutex<T>, uninterrupted: &Uninterrupted) -> MutexGuard<'a, T> {
    mutex.waiters.fetch_add(1, Ordering::Relaxed);
    let guard = loop {
        let seen = mutex.given_back.load(Ordering::Relaxed);
        // SeqCst pairs with `GiveBack::drop`.
        fence(Ordering::SeqCst);
        if let Some(guard) = mutex.try_lock() {
            break guard;
        }
        uninterrupted.opened(|| {
            let _ = futex::wait_word(&mutex.given_back, seen, u64::MAX);
        });
    };
    mutex.waiters.fetch_sub(1, Ordering::Relaxed);
    guard
}

impl<T> Deref for Masked<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Masked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn one_at_a_time_and_nobody_is_forgotten() {
        let (mutex, inside) = (Mutex::new(0u64), AtomicU64::new(0));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for i in 0..2_000 {
                        let mut held = lock(&mutex);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        *held += 1;
                        if i % 64 == 0 {
                            std::thread::yield_now();
                        }
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(*lock(&mutex), 8_000);
        assert_eq!(mutex.waiters.load(Ordering::Relaxed), 0);
    }
}
