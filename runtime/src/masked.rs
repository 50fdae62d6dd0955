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

use softfault_platform::host::Uninterrupted;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock that is held, with the program's asynchronous signals masked.
#[derive(Debug)]
pub(crate) struct Masked<'a, T> {
    // Given back before signals come again.
    guard: MutexGuard<'a, T>,
    _uninterrupted: Uninterrupted,
}

/// Takes the lock. A panic under it left nothing half done that its users do not look at again.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> Masked<'_, T> {
    let uninterrupted = Uninterrupted::new();
    Masked { guard: mutex.lock().unwrap_or_else(PoisonError::into_inner), _uninterrupted: uninterrupted }
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
