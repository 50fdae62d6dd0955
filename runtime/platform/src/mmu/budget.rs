//! How many kernel VMAs promotions may cost the process.
//!
//! A native extent between trapped ones splits the arena's VMA in three; at `vm.max_map_count` the next `mmap` of
//! anybody fails. So promotions spend from a quarter of the limit, read at start.
//!
//! # Context: handler

use crate::sys::{Errno, file};
use core::sync::atomic::{AtomicI64, Ordering};

static LEFT: AtomicI64 = AtomicI64::new(0);
static READY: AtomicI64 = AtomicI64::new(0);

/// Changes the count by `delta` vmas; `false`: over budget, nothing changed.
pub fn charge(delta: i64) -> bool {
    let before = LEFT.fetch_sub(delta, Ordering::Relaxed);
    if delta > 0 && before < delta {
        LEFT.fetch_add(delta, Ordering::Relaxed);
        return false;
    }
    true
}

/// Sets the budget from `max_map_count`, once a process. Control plane.
pub fn init(max_map_count: i64) {
    if READY.swap(1, Ordering::Relaxed) == 0 {
        LEFT.store(max_map_count / 4, Ordering::Relaxed);
    }
}

/// Returns what is left.
#[must_use]
pub fn left() -> i64 {
    LEFT.load(Ordering::Relaxed)
}

/// Reads `vm.max_map_count` through an open descriptor's text. Control plane.
///
/// # Errors
/// The kernel's.
pub fn parse_max_map_count(fd: i32) -> Result<i64, Errno> {
    let mut buf = [0u8; 32];
    let n = file::read(fd, &mut buf)?;
    let digits = buf.iter().take(n).take_while(|b| b.is_ascii_digit());
    Ok(digits.fold(0i64, |a, b| a.saturating_mul(10).saturating_add(i64::from(b - b'0'))))
}
