//! futex(2): sleeping on the low half of a state word.
//!
//! # Context: handler

use super::syscall::{Errno, syscall6};
use core::sync::atomic::AtomicU32;

const FUTEX_WAIT_PRIVATE: usize = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
/// The call's number, and the operation that sleeps: for instructions that call it without a stack.
pub(crate) const NR_FUTEX: i32 = libc::SYS_futex as i32;
pub(crate) const WAIT_PRIVATE: i32 = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
const FUTEX_WAKE_PRIVATE: usize = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;

/// Sleeps while the 32-bit word at `addr` equals `seen`, at most `timeout_ns` (`u64::MAX`: without limit).
///
/// Returns at once when the word differs; may also return without cause.
///
/// # Context: handler
///
/// # Errors
/// `EAGAIN` (the word differs), `EINTR`, `ETIMEDOUT`; none of them needs more than another look at the word.
pub fn wait(addr: usize, seen: u32, timeout_ns: u64) -> Result<(), Errno> {
    let ts = libc::timespec {
        tv_sec: i64::try_from(timeout_ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(timeout_ns % 1_000_000_000).unwrap_or(0),
    };
    let ts_ptr = if timeout_ns == u64::MAX { 0 } else { core::ptr::from_ref(&ts) as usize };
    // SAFETY: the kernel only reads the word; an address that is not mapped gives EFAULT, not harm.
    unsafe { syscall6(libc::SYS_futex, [addr, FUTEX_WAIT_PRIVATE, seen as usize, ts_ptr, 0, 0]) }.map(drop)
}

/// Wakes everyone who sleeps on the word at `addr`.
///
/// # Context: handler
pub fn wake_all(addr: usize) {
    // SAFETY: the kernel uses the address as a key; it neither reads nor writes it.
    let _ = unsafe { syscall6(libc::SYS_futex, [addr, FUTEX_WAKE_PRIVATE, i32::MAX as usize, 0, 0, 0]) };
}

/// [`wait`] on a plain atomic.
///
/// # Context: handler
///
/// # Errors
/// As [`wait`].
pub fn wait_word(word: &AtomicU32, seen: u32, timeout_ns: u64) -> Result<(), Errno> {
    wait(word.as_ptr() as usize, seen, timeout_ns)
}

/// [`wake_all`] on a plain atomic.
///
/// # Context: handler
pub fn wake_word(word: &AtomicU32) {
    wake_all(word.as_ptr() as usize);
}
