//! What runs in the faulting thread, inside a signal handler: the program's callbacks, and what they may call.
//!
//! Nothing here allocates, locks, panics, or has a thread-local: loads of function pointers, and calls. `tests/nopanic`
//! links this file with a panic handler that does not link. So its imports are `crate::api`, which is another one there.
//!
//! A callback gets its fault, page or pages as an opaque pointer to something on our stack, good for the call. It has a
//! mark that is taken away when the call is over: a pointer that was kept finds nothing.
//!
//! # Context: handler

pub mod minor;
pub mod store;
pub mod vm_fault;

use core::cell::Cell;

/// Says that a value on our stack is alive, and of which type.
#[derive(Debug)]
pub struct Mark(Cell<u64>);

pub(crate) const VM_FAULT: u64 = 0x736f_6674_766d_6631;
pub(crate) const PAGE: u64 = 0x736f_6674_7061_6731;
pub(crate) const PAGES: u64 = 0x736f_6674_7061_6732;
pub(crate) const MINOR: u64 = 0x736f_6674_6d69_6e31;

impl Mark {
    pub(crate) fn new(what: u64) -> Self {
        Self(Cell::new(what))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: our own field. Volatile, because nobody who is allowed to will read it.
        unsafe { self.0.as_ptr().write_volatile(0) };
    }
}

/// Returns what a callback gave us back, if it is that.
///
/// # Safety
/// `ptr` is what a callback was given, or null, or readable bytes.
pub(crate) unsafe fn look<'a, T>(ptr: *const T, mark: fn(&T) -> &Mark, what: u64) -> Option<&'a T> {
    if ptr.is_null() || !ptr.is_aligned() {
        return None;
    }
    // SAFETY: the caller's contract: it is a T of ours, or bytes, whose mark is not the right one.
    let found = unsafe { &*ptr };
    (mark(found).0.get() == what).then_some(found)
}
