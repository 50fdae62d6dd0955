//! The fixed pool of staging pages, for private copies that do not go through the cache.
//!
//! # Context: handler

use crate::bits::Bits;
use crate::sys::{Errno, mem};
use core::sync::atomic::{AtomicUsize, Ordering};
use softfault_mm::ops::Staged;
use softfault_mm::page::PAGE_SIZE;

const NR_PAGES: usize = 64;
static BASE: AtomicUsize = AtomicUsize::new(0);
/// One bit a page: in use.
static USED: Bits = Bits::new();

/// Maps the pool, once a process.
///
/// # Context: control plane, under the caller's lock
///
/// # Errors
/// The kernel's.
pub fn init() -> Result<(), Errno> {
    if BASE.load(Ordering::Relaxed) == 0 {
        // Release pairs with `get` and `address`: who sees the address may use the pages.
        BASE.store(mem::map_zeroed(NR_PAGES * PAGE_SIZE)?, Ordering::Release);
    }
    Ok(())
}

/// Takes a page from the pool; `None`: all are in use, or there is no pool.
///
/// # Context: handler
pub fn get() -> Option<Staged> {
    // Acquire pairs with `init`.
    if BASE.load(Ordering::Acquire) == 0 {
        return None;
    }
    USED.take(NR_PAGES).map(|at| Staged(at as u32))
}

/// Gives a page back.
///
/// # Context: handler
pub fn put(staged: &Staged) {
    USED.put(staged.0 as usize);
}

/// Returns the address of a page that the caller has taken.
///
/// # Context: handler
#[must_use]
pub fn address(staged: &Staged) -> usize {
    // Acquire pairs with `init`.
    BASE.load(Ordering::Acquire) + (staged.0 as usize % NR_PAGES) * PAGE_SIZE
}
