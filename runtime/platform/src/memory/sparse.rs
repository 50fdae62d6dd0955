//! Tables that are as long as what they may ever name, and opened as far as they are used.
//!
//! An untouched page costs no memory, as long as nobody asks for all of it. Some do, of whatever is accessible:
//! - mlockall(2) populates it, now (`MCL_CURRENT`) or when it is mapped (`MCL_FUTURE`);
//! - `vm.overcommit_memory=2` charges it, `MAP_NORESERVE` or not, if it is private and writable;
//! - `RLIMIT_DATA` counts it then, too.
//!
//! So a table begins as address space without access, which nobody populates, charges or counts, and the control plane opens a
//! step of it before it publishes the first number that lies there. A handler has its numbers from what was published, so it
//! never meets what is closed:
//! ```text
//! control plane                                a handler
//! mprotect: open to n
//! open_bytes = n (Release)
//! publishes a number below n (Release)   --->  loads the number (Acquire), and finds it below open_bytes
//! ```
//! Where what is mapped is populated at once (`MCL_FUTURE`), a table is locked as it is touched instead (`MLOCK_ONFAULT`).
//! `MCL_CURRENT` takes that away again, and populates what is open then.
//!
//! # Context: handler (lookup); what reserves and opens: control plane, under the caller's lock

use crate::sys::{Errno, mem, mlock};
use core::sync::atomic::{AtomicUsize, Ordering};
use softfault_mm::page::PAGE_SIZE;

/// What is opened at once, at least.
const STEP_BYTES: usize = 256 << 10;

/// Address space of which the first part is open: zeroed private memory. It stays until somebody unmaps it.
#[derive(Debug, Default)]
pub struct Sparse {
    base: AtomicUsize,
    len_bytes: AtomicUsize,
    open_bytes: AtomicUsize,
}

impl Sparse {
    /// Nothing yet.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn new() -> Self {
        Self { base: AtomicUsize::new(0), len_bytes: AtomicUsize::new(0), open_bytes: AtomicUsize::new(0) }
    }

    /// Takes `len_bytes` of address space, rounded up to pages, once.
    ///
    /// # Context: control plane, under the caller's lock
    ///
    /// # Errors
    /// `ENOMEM` past `RLIMIT_AS`, `EAGAIN` past `RLIMIT_MEMLOCK` where everything is locked.
    pub fn reserve(&self, len_bytes: usize) -> Result<(), Errno> {
        if self.base.load(Ordering::Relaxed) != 0 {
            return Ok(());
        }
        let len_bytes = len_bytes.next_multiple_of(PAGE_SIZE);
        let base = reserve_closed(len_bytes)?;
        self.len_bytes.store(len_bytes, Ordering::Relaxed);
        // Release pairs with `Sparse::base`.
        self.base.store(base, Ordering::Release);
        Ok(())
    }

    /// Opens at least the first `bytes`.
    ///
    /// # Context: control plane, under the caller's lock
    ///
    /// # Errors
    /// `ENOMEM`: past the end, `RLIMIT_DATA`, or what may be committed. What was open stays so.
    pub fn open_to(&self, bytes: usize) -> Result<(), Errno> {
        let (open, len) = (self.open_bytes.load(Ordering::Relaxed), self.len_bytes.load(Ordering::Relaxed));
        if bytes <= open {
            return Ok(());
        }
        if bytes > len {
            return Err(Errno::ENOMEM);
        }
        let to = bytes.max(open.saturating_add(STEP_BYTES)).next_multiple_of(PAGE_SIZE).min(len);
        open_range(self.base.load(Ordering::Relaxed) + open, to - open)?;
        // Release pairs with `Sparse::base` and the loads of whoever looks a number up: see the module's drawing.
        self.open_bytes.store(to, Ordering::Release);
        Ok(())
    }

    /// Returns the address; 0: nothing was reserved.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn base(&self) -> usize {
        // Acquire pairs with `reserve`.
        self.base.load(Ordering::Acquire)
    }

    /// Returns how many bytes are open.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.open_bytes.load(Ordering::Relaxed)
    }

    /// Returns how many bytes there may be.
    ///
    /// # Context: handler
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes.load(Ordering::Relaxed)
    }
}

/// Takes address space without access, which is in no core dump, and is never populated as a whole.
///
/// # Context: control plane
///
/// # Errors
/// As [`Sparse::reserve`].
pub fn reserve_closed(len_bytes: usize) -> Result<usize, Errno> {
    let on_fault = mem::is_populated_at_once()?;
    let base = mem::reserve(len_bytes, PAGE_SIZE)?;
    mem::leave_out_of_dumps(base, len_bytes);
    if on_fault && let Err(e) = mlock::mlock_onfault(base, len_bytes) {
        // SAFETY: reserved above, and nobody has seen it.
        let _ = unsafe { mem::munmap(base, len_bytes) };
        return Err(e);
    }
    Ok(base)
}

/// Opens a part of what [`reserve_closed`] gave.
///
/// # Context: control plane
///
/// # Errors
/// As [`Sparse::open_to`].
pub fn open_range(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    // SAFETY: an access is added; what is there stays.
    unsafe { mem::mprotect(addr, len_bytes, mem::PROT_READ | mem::PROT_WRITE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_in_steps_and_no_further_than_its_end() {
        let table = Sparse::new();
        let len = STEP_BYTES + 2 * PAGE_SIZE;
        assert_eq!((table.base(), table.open_to(1)), (0, Err(Errno::ENOMEM)), "nothing is there yet");
        assert_eq!(table.reserve(len), Ok(()));
        assert_eq!((table.open_bytes(), table.len_bytes()), (0, len));
        assert_eq!(table.open_to(1), Ok(()));
        assert_eq!(table.open_bytes(), STEP_BYTES);
        assert_eq!(table.open_to(STEP_BYTES + 1), Ok(()));
        assert_eq!((table.open_bytes(), table.open_to(len + 1)), (len, Err(Errno::ENOMEM)));
        // SAFETY: reserved above, and nobody looks at it.
        assert_eq!(unsafe { mem::munmap(table.base(), len) }, Ok(()));
    }
}
