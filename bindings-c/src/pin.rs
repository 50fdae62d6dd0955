//! `softfault_pin`: ranges that stay resident.
//!
//! # Context: control plane

use crate::args::{Out, arena_range, known};
use crate::consts;
use crate::error::entry;
use crate::handle::{self, softfault_arena, softfault_pin};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// Makes the range resident and keeps it so until the pin is freed: system calls, O_DIRECT, futexes and asynchronous I/O
/// may use it. Its pages are locked in memory, as mlock(2) does it, and count against RLIMIT_MEMLOCK. access is SOFTFAULT_ACCESS_*; pinned for writing, the range counts as dirty.
///
/// The handle is the caller's: softfault_pin_free(). The pin keeps the arena.
///
/// Errors: SOFTFAULT_ERROR_FAULT, -ENXIO: not wholly mapped, -EACCES, -EINVAL, -EBADF. SOFTFAULT_ERROR_LIMIT, -ENOMEM:
/// the limit forbids the lock, and there is swap.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_pin(
    arena: *mut softfault_arena,
    offset: usize,
    len: usize,
    access: u32,
    out: *mut *mut softfault_pin,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let access = known(consts::access(access), "access", access)?;
        let pin = handle::get(arena)?.pin(arena_range(offset, len)?, access)?;
        out.put(handle::insert(Arc::new(pin))?);
        Ok(())
    })
}

/// Writes address and length of the pinned range; each may be NULL.
///
/// Errors: -EINVAL for a NULL pin, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// addr and len_bytes may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_pin_data(
    pin: *mut softfault_pin,
    addr: *mut *mut c_void,
    len_bytes: *mut usize,
) -> c_int {
    entry(|| {
        let pin = handle::get(pin)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(addr) }.put(pin.as_ptr().cast());
        // SAFETY: the caller's contract.
        unsafe { Out::optional(len_bytes) }.put(pin.len());
        Ok(())
    })
}

/// Tells whether the range is locked in memory. Where it is not, because RLIMIT_MEMLOCK did not permit it on a machine without
/// swap, MADV_PAGEOUT can still unmap pages of a shared mapping, and system calls on them fail with EFAULT.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// locked may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_pin_is_locked(pin: *mut softfault_pin, locked: *mut bool) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(locked, "locked") }?;
        out.put(handle::get(pin)?.is_locked());
        Ok(())
    })
}

/// Lets the range go. Asynchronous I/O on it must be over.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_pin_free(pin: *mut softfault_pin) -> c_int {
    entry(|| handle::free(pin))
}
