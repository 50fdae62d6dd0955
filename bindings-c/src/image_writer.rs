//! `softfault_image_writer`: an image of pages that the program gives.
//!
//! # Context: control plane

use crate::args::{Out, bytes, path, text};
use crate::error::{Failure, entry, softfault_digest};
use crate::handle::{self, softfault_image_writer};
use crate::image_options::{
    SOFTFAULT_WRITER_DIGEST_PARENT, WRITER_FLAGS, softfault_image_writer_options, softfault_region,
};
use crate::options::{check_flags, read};
use softfault::image::{PAGE_SIZE, Writer};
use std::ffi::{c_char, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

/// Begins an image (.sfi) of len_bytes, whole pages, that will be called path: of a memory, or with options->parent of what has changed
/// since another image, whose files stay where they are, in the same folder, and are needed whenever this one is read. options may
/// be NULL. The file appears under its name in softfault_image_writer_finish(), and not before; no file is ever replaced.
///
/// The handle is the caller's: softfault_image_writer_free().
///
/// Errors: SOFTFAULT_ERROR_IMAGE: -EEXIST: there is such a file; no file could be made in the folder. -EINVAL, -E2BIG, -EBADF,
/// -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string; options, if not NULL, has the size that it says; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_writer_new(
    path: *const c_char,
    len_bytes: u64,
    options: *const softfault_image_writer_options,
    out: *mut *mut softfault_image_writer,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        check_flags("softfault_image_writer_options", options.flags, WRITER_FLAGS)?;
        let stored = options.stored()?;
        let nr_pages = whole_pages("len_bytes", len_bytes)?;
        let writer = if options.parent.is_null() {
            Writer::create(path, nr_pages)?
        } else {
            Writer::over(path, nr_pages, Arc::clone(handle::get(options.parent)?.image()))?
        };
        let mut writer = writer.codec(stored.codec).frame_bytes(stored.frame_bytes);
        if options.flags & SOFTFAULT_WRITER_DIGEST_PARENT != 0 {
            writer = writer.digest_parent();
        }
        out.put(handle::insert(Arc::new(Mutex::new(Some(writer))))?);
        Ok(())
    })
}

/// Returns how many pages so many bytes are.
pub(crate) fn whole_pages(name: &str, len_bytes: u64) -> Result<u64, Failure> {
    if !len_bytes.is_multiple_of(PAGE_SIZE as u64) {
        return Err(Failure::argument(format_args!("{name} is {len_bytes:#x}: not of whole pages (4096)")));
    }
    Ok(len_bytes / PAGE_SIZE as u64)
}

/// Runs `f` on a writer that is not finished.
fn on(writer: *mut softfault_image_writer, f: impl FnOnce(&mut Writer) -> Result<(), Failure>) -> Result<(), Failure> {
    let writer = handle::get(writer)?;
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    f(writer.as_mut().ok_or_else(|| Failure::argument("the writer is finished"))?)
}

/// Gives up what is not finished: nothing is left of it. What is finished stays.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_image_writer_free(writer: *mut softfault_image_writer) -> c_int {
    entry(|| handle::free(writer))
}

/// Says what a range of the image is of, in the order of the offsets.
///
/// Errors: SOFTFAULT_ERROR_IMAGE, -EBADMSG: it is not of whole pages, ends past the image, or overlaps the one before; the words say
/// which. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// region may be read, and its name is a string or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_writer_region(
    writer: *mut softfault_image_writer,
    region: *const softfault_region,
) -> c_int {
    entry(|| {
        if region.is_null() {
            return Err(Failure::argument("region is NULL"));
        }
        // SAFETY: not null, and the caller's contract. It need not be aligned.
        let region = unsafe { region.read_unaligned() };
        // SAFETY: the caller's contract.
        let region = unsafe { region.region() }?;
        on(writer, |writer| Ok(writer.region(region)?))
    })
}

/// Keeps len bytes under a key beside the memory: the application's version, registers.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// key is a string; value has len bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_writer_key(
    writer: *mut softfault_image_writer,
    key: *const c_char,
    value: *const c_void,
    len: usize,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let key = unsafe { text(key, "key") }?;
        // SAFETY: the caller's contract.
        let value = unsafe { bytes(value, len) }?;
        on(writer, |writer| {
            writer.key(key, value);
            Ok(())
        })
    })
}

/// Writes whole pages from byte offset of the image on, behind those that were written before. Pages that are zero take no room; those
/// that never are written are zero, or the parent's.
///
/// Errors: -EINVAL: not in order, past the end, not whole pages. SOFTFAULT_ERROR_IMAGE: the disk is full, and so on; the writer can
/// only be freed then. -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// buf has len bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_writer_write(
    writer: *mut softfault_image_writer,
    offset: u64,
    buf: *const c_void,
    len: usize,
) -> c_int {
    entry(|| {
        let page = whole_pages("offset", offset)?;
        // SAFETY: the caller's contract.
        let pages = unsafe { bytes(buf, len) }?;
        on(writer, |writer| Ok(writer.write(page, pages)?))
    })
}

/// Makes everything durable, and gives the file its name; digest (may be NULL) gets the digest of the file. The writer is done,
/// whether this succeeds or not.
///
/// Errors: SOFTFAULT_ERROR_IMAGE: nothing has got the name, or what has got it meanwhile has it still. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// digest may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_writer_finish(
    writer: *mut softfault_image_writer,
    digest: *mut softfault_digest,
) -> c_int {
    entry(|| {
        let writer = handle::get(writer)?;
        let writer = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let made = writer.ok_or_else(|| Failure::argument("the writer is finished"))?.finish()?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(digest) }.put(made.into());
        Ok(())
    })
}
