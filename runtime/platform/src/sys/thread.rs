//! Who and when: thread identity, clocks, yielding.
//!
//! # Context: handler; affinity: control plane

pub use super::current::thread_pointer;
use super::syscall::{Errno, syscall6};

/// A set of processors, bit `n % 64` of word `n / 64` for processor `n`: the kernel's `cpumask`, 1024 processors.
pub type CpuMask = [u64; 16];

/// Returns the processors that the calling thread may run on; see sched_getaffinity(2).
///
/// # Context: control plane
///
/// # Errors
/// `EINVAL` on a machine with more processors than the mask has bits.
pub fn affinity() -> Result<CpuMask, Errno> {
    let mut mask: CpuMask = [0; 16];
    let args = [0, size_of::<CpuMask>(), core::ptr::from_mut(&mut mask) as usize, 0, 0, 0];
    // SAFETY: writes at most `size_of::<CpuMask>()` bytes of a mask that is exclusively borrowed.
    unsafe { syscall6(libc::SYS_sched_getaffinity, args) }?;
    Ok(mask)
}

/// Moves the calling thread to the processors of `mask`; see sched_setaffinity(2).
///
/// Threads created later inherit the mask.
///
/// # Context: control plane
///
/// # Errors
/// `EINVAL` when no processor of the mask may be used.
pub fn set_affinity(mask: &CpuMask) -> Result<(), Errno> {
    let args = [0, size_of::<CpuMask>(), core::ptr::from_ref(mask) as usize, 0, 0, 0];
    // SAFETY: reads one mask, borrowed for the length of the call.
    unsafe { syscall6(libc::SYS_sched_setaffinity, args) }.map(drop)
}

/// Returns the calling thread's id.
///
/// # Context: control plane and failpoints
#[must_use]
pub fn gettid() -> u32 {
    // SAFETY: touches no memory.
    let r = unsafe { syscall6(libc::SYS_gettid, [0; 6]) };
    r.map_or(0, |t| u32::try_from(t).unwrap_or(0))
}

/// Returns the process id as the kernel says it, not as libc cached it.
///
/// # Context: handler
#[must_use]
pub fn getpid() -> i32 {
    // SAFETY: touches no memory.
    let r = unsafe { syscall6(libc::SYS_getpid, [0; 6]) };
    r.map_or(0, |t| i32::try_from(t).unwrap_or(0))
}

/// Gives the processor away once; see sched_yield(2).
///
/// # Context: handler
pub fn sched_yield() {
    // SAFETY: touches no memory.
    let _ = unsafe { syscall6(libc::SYS_sched_yield, [0; 6]) };
}

/// Returns nanoseconds of `CLOCK_MONOTONIC`, by the system call (about 0.2 µs here).
///
/// # Context: handler
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let args = [libc::CLOCK_MONOTONIC as usize, core::ptr::from_mut(&mut ts) as usize, 0, 0, 0, 0];
    // SAFETY: writes one `struct timespec`, exclusively borrowed.
    let _ = unsafe { syscall6(libc::SYS_clock_gettime, args) };
    ts.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(ts.tv_nsec.cast_unsigned())
}

/// The number of nanosleep(2), for instructions that call it without a stack.
pub(crate) const NR_NANOSLEEP: i32 = libc::SYS_nanosleep as i32;

/// The kernel's `struct __kernel_timespec`.
#[repr(C)]
#[derive(Debug)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds below a second.
    pub nsec: i64,
}

/// Sleeps for `ns` nanoseconds or until a signal; see nanosleep(2).
///
/// # Context: handler
pub fn sleep_ns(ns: u64) {
    let ts = libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    };
    // SAFETY: reads one `struct timespec`, borrowed for the length of the call.
    let _ = unsafe { syscall6(libc::SYS_nanosleep, [core::ptr::from_ref(&ts) as usize, 0, 0, 0, 0, 0]) };
}

/// Returns the time-stamp counter.
///
/// # Context: handler
#[inline(always)]
#[must_use]
pub fn rdtsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC; Linux leaves it open to user mode.
    unsafe { core::arch::x86_64::_rdtsc() }
}
