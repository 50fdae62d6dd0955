//! Arguments: what a pointer, a range or a buffer must be before anything is done with it.
//!
//! # Context: control plane

use crate::error::{Failure, copy_text};
use std::ffi::{CStr, OsStr, c_char, c_void};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// An out-parameter that was looked at before the work, and is written after it.
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// `ptr` may be written for the length of the call, or is null.
    pub(crate) unsafe fn new(ptr: *mut T, name: &str) -> Result<Self, Failure> {
        if ptr.is_null() {
            return Err(Failure::argument(format_args!("{name} is NULL")));
        }
        Ok(Self(ptr))
    }
    /// As `new`, for a parameter that may be left out.
    ///
    /// # Safety
    /// As `new`.
    pub(crate) unsafe fn optional(ptr: *mut T) -> Self {
        Self(ptr)
    }
    pub(crate) fn put(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: not null, so it may be written: the contract of `new` and `optional`. It need not be aligned.
            unsafe { self.0.write_unaligned(value) };
        }
    }
}

fn check_buffer(addr: usize, len: usize) -> Result<(), Failure> {
    if addr == 0 {
        return Err(Failure::argument("the buffer is NULL"));
    }
    if isize::try_from(len).is_err() || addr.checked_add(len).is_none() {
        return Err(Failure::argument(format_args!("the buffer's length is {len:#x}: it leaves the address space")));
    }
    Ok(())
}

/// Lends the caller's buffer for reading.
///
/// # Safety
/// `len` bytes from `buf` on may be read for as long as `'a`.
pub(crate) unsafe fn bytes<'a>(buf: *const c_void, len: usize) -> Result<&'a [u8], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    check_buffer(buf.addr(), len)?;
    // SAFETY: the caller's contract; not null, and no longer than isize::MAX.
    Ok(unsafe { std::slice::from_raw_parts(buf.cast(), len) })
}

/// Lends the caller's buffer for writing.
///
/// # Safety
/// `len` bytes from `buf` on may be written, and are the caller's alone, for as long as `'a`.
pub(crate) unsafe fn bytes_mut<'a>(buf: *mut c_void, len: usize) -> Result<&'a mut [u8], Failure> {
    if len == 0 {
        return Ok(&mut []);
    }
    check_buffer(buf.addr(), len)?;
    // SAFETY: the caller's contract; not null, and no longer than isize::MAX.
    Ok(unsafe { std::slice::from_raw_parts_mut(buf.cast(), len) })
}

/// Lends the caller's string.
///
/// # Safety
/// `text` is null, or ends with a NUL and may be read for as long as `'a`.
pub(crate) unsafe fn string<'a>(text: *const c_char, name: &str) -> Result<&'a CStr, Failure> {
    if text.is_null() {
        return Err(Failure::argument(format_args!("{name} is NULL")));
    }
    // SAFETY: the caller's contract.
    Ok(unsafe { CStr::from_ptr(text) })
}

/// Lends the caller's file name.
///
/// # Safety
/// As [`string`].
pub(crate) unsafe fn path<'a>(text: *const c_char) -> Result<&'a Path, Failure> {
    // SAFETY: the caller's contract.
    let text = unsafe { string(text, "path") }?;
    Ok(Path::new(OsStr::from_bytes(text.to_bytes())))
}

/// Copies the caller's array.
///
/// # Safety
/// `nr` elements from `ptr` on may be read, or `nr` is 0; any bytes there are values.
pub(crate) unsafe fn elements<T: Copy>(ptr: *const T, nr: usize, name: &str) -> Result<Vec<T>, Failure> {
    if nr > 0 && ptr.is_null() {
        return Err(Failure::argument(format_args!("{name} is NULL, and there are {nr}")));
    }
    // SAFETY: the index is below `nr`: the caller's contract. They need not be aligned.
    Ok((0..nr).map(|i| unsafe { ptr.wrapping_add(i).read_unaligned() }).collect())
}

/// Lends the caller's text.
///
/// # Safety
/// As [`string`].
pub(crate) unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's contract.
    let text = unsafe { string(text, name) }?;
    text.to_str().map_err(|_| Failure::argument(format_args!("{name} is no UTF-8")))
}

/// Returns the range of `len` units from `start` on.
pub(crate) fn range<T: Copy + Into<u64> + TryFrom<u64>>(start: T, len: T) -> Result<Range<T>, Failure> {
    let (from, nr) = (start.into(), len.into());
    let end = from.checked_add(nr).and_then(|end| T::try_from(end).ok());
    let end = end.ok_or_else(|| {
        Failure::argument(format_args!("offset {from:#x} and length {nr:#x}: the sum is larger than 64 bits"))
    })?;
    Ok(start..end)
}

/// Returns the range of an arena.
pub(crate) fn arena_range(offset: usize, len: usize) -> Result<Range<usize>, Failure> {
    let r = range(offset as u64, len as u64)?;
    Ok(r.start as usize..r.end as usize)
}

/// Looks a number of the ABI up.
pub(crate) fn known<T>(value: Option<T>, name: &str, number: u32) -> Result<T, Failure> {
    value.ok_or_else(|| Failure::argument(format_args!("{name} is {number}: no such value")))
}

/// Gives text to a caller's buffer, as snprintf(3) does, and its length to `full`.
///
/// # Safety
/// `buf` has room for `len` bytes, or `len` is 0; `full` may be written, or is null.
pub(crate) unsafe fn give_text(text: &str, buf: *mut c_char, len: usize, full: *mut usize) -> Result<(), Failure> {
    if len > 0 {
        check_buffer(buf.addr(), len)?;
    }
    // SAFETY: the caller's contract.
    unsafe { copy_text(text, buf, len) };
    // SAFETY: the caller's contract.
    unsafe { Out::optional(full) }.put(text.len());
    Ok(())
}
