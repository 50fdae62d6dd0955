//! `softfault_pin`: ranges that stay resident.

use crate::args::{Out, arena_range, known};
use crate::consts;
use crate::error::entry;
use crate::handle::{self, softfault_arena, softfault_pin};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// Makes the range resident and keeps it so until the pin is freed: system calls, O_DIRECT, futexes and asynchronous I/O
/// may use it. access is SOFTFAULT_ACCESS_*; pinned for writing, the range counts as dirty.
///
/// The handle is the caller's: softfault_pin_free(). The pin keeps the arena.
///
/// Errors: SOFTFAULT_ERROR_FAULT, -ENXIO: not wholly mapped, -EACCES, -EINVAL, -EBADF.
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

/// Lets the range go. Asynchronous I/O on it must be over.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_pin_free(pin: *mut softfault_pin) -> c_int {
    entry(|| handle::free(pin))
}
