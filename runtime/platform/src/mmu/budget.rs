//! How many kernel VMAs promotions may cost the process.
//!
//! A native extent between trapped ones splits the arena's VMA in three; at `vm.max_map_count` the next `mmap` of
//! anybody fails. So promotions spend from a quarter of the limit, read at start.
//!
//! # Context: handler

use crate::sys::{Errno, file, mem};
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

static LEFT: AtomicI64 = AtomicI64::new(0);
static READY: AtomicI64 = AtomicI64::new(0);

/// Changes the count by `delta` vmas; `false`: over budget, nothing changed.
///
/// # Context: handler
pub fn charge(delta: i64) -> bool {
    let before = LEFT.fetch_sub(delta, Ordering::Relaxed);
    if delta > 0 && before < delta {
        LEFT.fetch_add(delta, Ordering::Relaxed);
        return false;
    }
    true
}

/// Sets the budget from `max_map_count`, once a process.
///
/// # Context: control plane
pub fn init(max_map_count: i64) {
    if READY.swap(1, Ordering::Relaxed) == 0 {
        LEFT.store(max_map_count / 4, Ordering::Relaxed);
    }
}

/// Returns what is left.
///
/// # Context: handler
#[must_use]
pub fn left() -> i64 {
    LEFT.load(Ordering::Relaxed)
}

/// What exposures cost the process at most: each call is counted as two, until `crowd` counts what is there.
static EXPOSED: AtomicI64 = AtomicI64::new(0);
static EXPOSED_MAX: AtomicI64 = AtomicI64::new(i64::MAX);
/// The kernel has refused an exposure since somebody looked.
static FULL: AtomicBool = AtomicBool::new(false);
static HIDDEN: AtomicU64 = AtomicU64::new(0);
/// Address of the reserve; 0: none was made.
static RESERVE: AtomicUsize = AtomicUsize::new(0);
/// Whether the reserve is there.
static RESERVED: AtomicBool = AtomicBool::new(false);
/// Exposures that the reserve is good for.
const RESERVE_PAGES: usize = 32;
const PAGE_BYTES: usize = 4096;

/// Returns whether one more page may be exposed beside hidden ones.
///
/// # Context: handler
#[inline]
pub fn may_expose() -> bool {
    EXPOSED.load(Ordering::Relaxed) < EXPOSED_MAX.load(Ordering::Relaxed)
}

/// Counts an exposure.
///
/// # Context: handler
#[inline]
pub fn note_exposed() {
    EXPOSED.fetch_add(2, Ordering::Relaxed);
}

/// The kernel has no mapping left.
///
/// # Context: handler
pub fn note_full() {
    FULL.store(true, Ordering::Relaxed);
}

/// Returns whether the kernel had none left since the last call.
///
/// # Context: handler
pub fn take_full() -> bool {
    FULL.swap(false, Ordering::Relaxed)
}

/// Returns the mappings that exposures cost, as far as is known: at most so many.
///
/// # Context: handler
#[must_use]
pub fn exposed() -> i64 {
    EXPOSED.load(Ordering::Relaxed)
}

/// Returns how many they may cost.
///
/// # Context: handler
#[must_use]
pub fn exposed_max() -> i64 {
    EXPOSED_MAX.load(Ordering::Relaxed)
}

/// Returns how many mappings were given back by hiding.
///
/// # Context: handler
#[must_use]
pub fn hidden() -> u64 {
    HIDDEN.load(Ordering::Relaxed)
}

/// Corrects the count of exposures.
///
/// # Context: handler
pub fn correct(delta: i64) {
    EXPOSED.fetch_add(delta, Ordering::Relaxed);
}

/// Counts mappings that were given back.
///
/// # Context: handler
pub fn note_hidden(nr: i64) {
    EXPOSED.fetch_sub(nr, Ordering::Relaxed);
    HIDDEN.fetch_add(nr.max(0).unsigned_abs(), Ordering::Relaxed);
}

/// Sets what exposures may cost: half of what the process has left of `max_map_count`, `in_use` being what it has. So the
/// program, whose allocator needs mappings too, finds as many.
///
/// # Context: control plane
pub fn bound_exposures(max_map_count: i64, in_use: i64) {
    let others = (in_use - EXPOSED.load(Ordering::Relaxed)).max(0);
    EXPOSED_MAX.store(((max_map_count - others) / 2).max(2 * RESERVE_PAGES as i64), Ordering::Relaxed);
}

/// Takes some mappings that are given up when the program has taken all others before the first page was exposed: without any
/// no page could be.
///
/// # Context: control plane, under the caller's lock
pub fn make_reserve() {
    if RESERVE.load(Ordering::Relaxed) == 0 {
        let Ok(at) = mem::reserve(2 * RESERVE_PAGES * PAGE_BYTES, PAGE_BYTES) else { return };
        // Release pairs with `release_reserve`.
        RESERVE.store(at, Ordering::Release);
    }
    if RESERVED.swap(true, Ordering::Relaxed) {
        return;
    }
    let base = RESERVE.load(Ordering::Relaxed);
    for i in 0..RESERVE_PAGES {
        // SAFETY: a page of the range reserved above, which holds nothing.
        if unsafe { mem::mprotect(base + 2 * i * PAGE_BYTES, PAGE_BYTES, mem::PROT_READ) }.is_err() {
            // So there are none to be had; what was had is given up when it is needed.
            return;
        }
    }
}

/// Gives the reserve up; `false`: there is none.
///
/// # Context: handler
pub fn release_reserve() -> bool {
    if !RESERVED.swap(false, Ordering::Relaxed) {
        return false;
    }
    // Acquire pairs with `make_reserve`.
    let base = RESERVE.load(Ordering::Acquire);
    // SAFETY: the range of `make_reserve`, which holds nothing; to close all of it splits nothing.
    unsafe { mem::mprotect(base, 2 * RESERVE_PAGES * PAGE_BYTES, mem::PROT_NONE) }.is_ok()
}

/// Reads `vm.max_map_count` through an open descriptor's text.
///
/// # Context: control plane
///
/// # Errors
/// The kernel's.
pub fn parse_max_map_count(fd: i32) -> Result<i64, Errno> {
    let mut buf = [0u8; 32];
    let n = file::read(fd, &mut buf)?;
    let digits = buf.iter().take(n).take_while(|b| b.is_ascii_digit());
    Ok(digits.fold(0i64, |a, b| a.saturating_mul(10).saturating_add(i64::from(b - b'0'))))
}
