//! `softfault_object`: making one of a file or of anonymous memory, and its bytes.
//!
//! # Context: control plane

use crate::args::{Out, bytes, bytes_mut, path, range};
use crate::error::{EBADF, Failure, SOFTFAULT_ERROR_IO, copy_text, entry};
use crate::handle::{self, softfault_object, softfault_runtime};
use crate::options::{SOFTFAULT_OBJECT_DIRECT, SOFTFAULT_OBJECT_WRITABLE, read, softfault_object_options};
use softfault::{FileOptions, Runtime};
use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;

/// Begins a file's object.
pub(crate) fn file_options(runtime: &Runtime, options: &softfault_object_options) -> FileOptions {
    let file = runtime.file_options().direct(options.has(SOFTFAULT_OBJECT_DIRECT));
    file.writable(options.has(SOFTFAULT_OBJECT_WRITABLE)).with(|b| options.apply(b))
}

/// Refuses what only files have.
pub(crate) fn check_no_direct(options: &softfault_object_options) -> Result<(), Failure> {
    if options.has(SOFTFAULT_OBJECT_DIRECT) {
        return Err(Failure::argument("SOFTFAULT_OBJECT_DIRECT is for files"));
    }
    Ok(())
}

/// Opens a file or a block device as an object; its length is what it is now. options may be NULL: read-only, all defaults.
/// A file that is open as an object already, by whatever name and in whatever runtime of the process, is that object, with the
/// rights that are asked for here; other options must be the same.
///
/// The handle is the caller's: softfault_object_free(). The object keeps the runtime that opened it first. The process's locks
/// on the file (fcntl(2)) stay.
///
/// Errors: what open(2) said; -ENODEV for what has no bytes that stay (a directory, a pipe, a file of procfs); -EBUSY where it is
/// open with other options; -EMFILE; -EINVAL, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string; options, if not NULL, has the size that it says; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_open(
    runtime: *mut softfault_runtime,
    path: *const c_char,
    options: *const softfault_object_options,
    out: *mut *mut softfault_object,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let runtime = handle::get(runtime)?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        options.check()?;
        out.put(handle::insert(file_options(&runtime, &options).open(path)?)?);
        Ok(())
    })
}

/// As softfault_object_open(), of a file that is open already: for reading and writing if the object is to be written. The
/// descriptor stays the caller's, and may be closed afterwards.
///
/// Errors: -EBADF for a descriptor that is none, too; -EACCES for one that does not permit what is asked; as
/// softfault_object_open().
///
/// Context: program. Thread-safe.
///
/// # Safety
/// options, if not NULL, has the size that it says; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_from_fd(
    runtime: *mut softfault_runtime,
    fd: c_int,
    options: *const softfault_object_options,
    out: *mut *mut softfault_object,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let runtime = handle::get(runtime)?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        options.check()?;
        let no_file =
            |e| Failure::new(EBADF, SOFTFAULT_ERROR_IO, format_args!("softfault_object_from_fd: fd {fd}: {e}"));
        if fd < 0 {
            return Err(no_file("is no descriptor".to_owned()));
        }
        // Not a duplicate: closing that would drop the caller's locks on the file.
        // SAFETY: not -1, and never closed here; the calls that are made say so if it is not open.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        file.metadata().map_err(|e| no_file(e.to_string()))?;
        out.put(handle::insert(file_options(&runtime, &options).file(&file)?)?);
        Ok(())
    })
}

/// Copies what the object is called in errors, and ends it with a NUL: what softfault_object_options.label said, or else the path of
/// a file, and a number of others. A longer one is cut. length (may be NULL) gets the full length without the NUL.
///
/// Errors: -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// buf has room for len bytes; length, if not NULL, may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_label(
    object: *mut softfault_object,
    buf: *mut c_char,
    len: usize,
    length: *mut usize,
) -> c_int {
    entry(|| {
        let label = handle::get(object)?.label();
        // SAFETY: the caller's contract.
        unsafe { copy_text(&label, buf, len) };
        if !length.is_null() {
            // SAFETY: the caller's contract.
            unsafe { length.write_unaligned(label.len()) };
        }
        Ok(())
    })
}

/// Makes len_bytes of anonymous memory, which begins as zeros, and may be written. options may be NULL.
///
/// Errors: -EINVAL, -E2BIG, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// options, if not NULL, has the size that it says; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_anonymous(
    runtime: *mut softfault_runtime,
    len_bytes: u64,
    options: *const softfault_object_options,
    out: *mut *mut softfault_object,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let runtime = handle::get(runtime)?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        options.check()?;
        check_no_direct(&options)?;
        out.put(handle::insert(options.apply(runtime.object(len_bytes)).anonymous()?)?);
        Ok(())
    })
}

/// Frees the handle. The object ends with its last mapping, pin or hold: what is dirty is written back then, but nobody
/// hears of errors; softfault_object_sync_all() before says them.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_free(object: *mut softfault_object) -> c_int {
    entry(|| handle::free(object))
}

/// Writes the end of the object, in bytes.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// len_bytes may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_len(object: *mut softfault_object, len_bytes: *mut u64) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(len_bytes, "len_bytes") }?;
        out.put(handle::get(object)?.len());
        Ok(())
    })
}

/// Sets the end of the object, up to the max_len_bytes it was made with. Pages past a lower end are dropped: touching them
/// is SIGBUS from then on.
///
/// Errors: -EINVAL past the maximum, -EACCES while a page past the end stays pinned, the store's error, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_set_len(object: *mut softfault_object, len_bytes: u64) -> c_int {
    entry(|| Ok(handle::get(object)?.set_len(len_bytes)?))
}

/// Takes the file's end for the object's, where others have appended to the file or cut it; len_bytes (may be NULL) gets it.
/// The file is not changed. What lies behind a lower end is dropped: touching it is SIGBUS from then on.
///
/// Errors: -EACCES: it is no file, or exclusive, or a page at the end stays pinned. -EINVAL: the file is longer than the maximum.
/// The file's error, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// len_bytes may be written, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_follow_len(object: *mut softfault_object, len_bytes: *mut u64) -> c_int {
    entry(|| {
        let end = handle::get(object)?.follow_len()?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(len_bytes) }.put(end);
        Ok(())
    })
}

/// Reads bytes through the cache, without a fault. Reads past the end are short; read_bytes (may be NULL) gets how many
/// were read. buf may lie in an arena.
///
/// Errors: SOFTFAULT_ERROR_FAULT naming the first byte that could not be had; those before it were read. -EINVAL, -EBADF.
///
/// Context: program. In filler callbacks only of objects whose own store is handler-safe. Thread-safe.
///
/// # Safety
/// buf has room for len bytes, which nobody else uses meanwhile; read_bytes may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_read_at(
    object: *mut softfault_object,
    offset: u64,
    buf: *mut c_void,
    len: usize,
    read_bytes: *mut usize,
) -> c_int {
    entry(|| {
        let object = handle::get(object)?;
        // SAFETY: the caller's contract.
        let buf = unsafe { bytes_mut(buf, len) }?;
        range(offset, len as u64)?;
        let nr = object.read_at(offset, buf)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(read_bytes) }.put(nr);
        Ok(())
    })
}

/// Writes bytes through the cache, without a fault. Does not grow the object: writes past the end are short;
/// written_bytes (may be NULL) gets how many were written. buf may lie in an arena.
///
/// Errors: -EACCES on an object that is not writable, SOFTFAULT_ERROR_FAULT, -EINVAL, -EBADF.
///
/// Context: as softfault_object_read_at(). Thread-safe.
///
/// # Safety
/// len bytes of buf may be read, and nobody changes them meanwhile; written_bytes may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_write_at(
    object: *mut softfault_object,
    offset: u64,
    buf: *const c_void,
    len: usize,
    written_bytes: *mut usize,
) -> c_int {
    entry(|| {
        let object = handle::get(object)?;
        // SAFETY: the caller's contract.
        let buf = unsafe { bytes(buf, len) }?;
        range(offset, len as u64)?;
        let nr = object.write_at(offset, buf)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(written_bytes) }.put(nr);
        Ok(())
    })
}
