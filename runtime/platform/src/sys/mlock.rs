//! Memory that the kernel does not reclaim: mlock(2), and what limits it.
//!
//! # Context: control plane

use super::syscall::{Errno, syscall6};

/// `MLOCK_ONFAULT`: what is there is locked, and what comes is locked as it comes. Since Linux 4.4.
const MLOCK_ONFAULT: usize = 1;

/// Locks `len_bytes` at `addr`, both multiples of the page, and faults them in.
///
/// # Context: control plane
///
/// # Errors
/// `ENOMEM`: past `RLIMIT_MEMLOCK`, a split would pass `vm.max_map_count`, or a part is not mapped. `EPERM`: the limit is 0.
/// `EAGAIN`: a page could not be faulted in; the range counts as locked then.
pub fn mlock(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    // SAFETY: no byte changes: pages are faulted in and stay.
    unsafe { syscall6(libc::SYS_mlock, [addr, len_bytes, 0, 0, 0, 0]) }.map(drop)
}

/// Locks what is there of `len_bytes` at `addr`, and what will be.
///
/// # Context: control plane
///
/// # Errors
/// As [`mlock`] but for `EAGAIN`.
pub fn mlock_onfault(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    // SAFETY: no byte changes: pages stay.
    unsafe { syscall6(libc::SYS_mlock2, [addr, len_bytes, MLOCK_ONFAULT, 0, 0, 0]) }.map(drop)
}

/// Unlocks a range, however often it was locked; see munlock(2).
///
/// # Context: control plane
///
/// # Errors
/// `ENOMEM`: as [`mlock`].
pub fn munlock(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    // SAFETY: no byte changes.
    unsafe { syscall6(libc::SYS_munlock, [addr, len_bytes, 0, 0, 0, 0]) }.map(drop)
}

/// Returns the bytes of swap that the machine has, used or not; see sysinfo(2).
///
/// # Context: control plane
#[must_use]
pub fn swap_bytes() -> u64 {
    let mut info = core::mem::MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: sysinfo writes one structure, exclusively borrowed.
    if unsafe { syscall6(libc::SYS_sysinfo, [info.as_mut_ptr() as usize, 0, 0, 0, 0, 0]) }.is_err() {
        return 0;
    }
    // SAFETY: zeroed, then written: numbers, of which every value is one.
    let info = unsafe { info.assume_init() };
    info.totalswap.saturating_mul(u64::from(info.mem_unit.max(1)))
}
