//! `softfault_image`: opening one, what it says, and its bytes.
//!
//! # Context: control plane

use crate::args::{Out, bytes_mut, give_text, path, range, text};
use crate::error::{
    ENOENT, Failure, SOFTFAULT_ERROR_NO_ENTRY, copy_text, entry, image_failure_of, softfault_image_failure,
};
use crate::handle::{self, AnyImage, softfault_image, softfault_object, softfault_runtime};
use crate::image_options::{
    SOFTFAULT_IMAGE_HAS_CONTENT_DIGEST, SOFTFAULT_IMAGE_HAS_FILE_DIGEST, integrity_number, softfault_image_options,
    softfault_image_properties, softfault_region,
};
use crate::options::{Report, read};
use softfault::OpenImage;
use softfault::image::{Image, PAGE_SIZE};
use std::ffi::{c_char, c_int, c_void};
use std::ops::Range;
use std::sync::Arc;

/// Pages that are read at once.
const CHUNK_PAGES: u64 = 256;

pub(crate) fn no_entry(what: impl std::fmt::Display) -> Failure {
    Failure::new(ENOENT, SOFTFAULT_ERROR_NO_ENTRY, what)
}

/// Returns the image of a handle that a runtime has open.
pub(crate) fn open_image(image: *mut softfault_image, op: &str) -> Result<OpenImage, Failure> {
    match handle::get(image)? {
        AnyImage::Open(open) => Ok(open),
        AnyImage::Files(_) => {
            Err(Failure::argument(format_args!("{op}: the image was opened without a runtime: softfault_image_open()")))
        }
    }
}

/// Opens an image of memory in a runtime, for sessions (softfault_restore()): an .sfi file, a raw one, or what options say. options
/// may be NULL. Nothing is read but its head. If the runtime has it open already, it is that one: its pages are in memory once,
/// for as long as a handle or a session is there.
///
/// The handle is the caller's: softfault_image_free(). It keeps its runtime.
///
/// Errors: SOFTFAULT_ERROR_IMAGE: softfault_last_image_failure() says what is wrong with which byte of the file. -EINVAL,
/// -E2BIG, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string; options, if not NULL, has the size that it says, and what it names may be read; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_open(
    runtime: *mut softfault_runtime,
    path: *const c_char,
    options: *const softfault_image_options,
    out: *mut *mut softfault_image,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let runtime = handle::get(runtime)?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        // SAFETY: the caller's contract.
        let image = unsafe { options.open(path) }?;
        out.put(handle::insert(AnyImage::Open(runtime.image(image)?))?);
        Ok(())
    })
}

/// As softfault_image_open(), without a runtime: to be looked at, read, verified, converted; not to be restored.
///
/// Errors: as softfault_image_open().
///
/// Context: program. Thread-safe.
///
/// # Safety
/// As softfault_image_open().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_open_file(
    path: *const c_char,
    options: *const softfault_image_options,
    out: *mut *mut softfault_image,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        // SAFETY: the caller's contract.
        let image = unsafe { options.open(path) }?;
        out.put(handle::insert(AnyImage::Files(Arc::new(image)))?);
        Ok(())
    })
}

/// Frees the handle. Sessions of the image keep what they need.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_image_free(image: *mut softfault_image) -> c_int {
    entry(|| handle::free(image))
}

/// Writes what the image is: its length, its digests, how many regions and keys it has. The caller sets properties->size.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// properties has the size that it says, and may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_info(
    image: *mut softfault_image,
    properties: *mut softfault_image_properties,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Report::new(properties) }?;
        let image = handle::get(image)?;
        let image = image.image();
        let (file, content) = (image.file_digest(), image.content_digest());
        let has_file = if file.is_some() { SOFTFAULT_IMAGE_HAS_FILE_DIGEST } else { 0 };
        let has_content = if content.is_some() { SOFTFAULT_IMAGE_HAS_CONTENT_DIGEST } else { 0 };
        out.put(softfault_image_properties {
            size: 0,
            len_bytes: image.nr_pages() * PAGE_SIZE as u64,
            nr_regions: image.regions().len(),
            nr_keys: image.keys().len(),
            integrity: integrity_number(image.integrity()),
            flags: has_file | has_content,
            file_digest: file.map(Into::into).unwrap_or_default(),
            content_digest: content.map(Into::into).unwrap_or_default(),
        });
        Ok(())
    })
}

/// Writes the image's file, as softfault_last_error() does; full may be NULL.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// buf has room for len bytes; full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_path(
    image: *mut softfault_image,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let text = handle::get(image)?.image().path().display().to_string();
        // SAFETY: the caller's contract.
        unsafe { give_text(&text, buf, len, full) }
    })
}

/// Writes the files that the image needs besides its own, a line each, and how many they are; nr and full may be NULL.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// buf has room for len bytes; nr and full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_needs(
    image: *mut softfault_image,
    nr: *mut usize,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let needs = handle::get(image)?.image().needs();
        let lines: Vec<String> = needs.iter().map(|p| p.display().to_string()).collect();
        // SAFETY: the caller's contract.
        unsafe { give_text(&lines.join("\n"), buf, len, full) }?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(nr) }.put(needs.len());
        Ok(())
    })
}

/// Tells whether bytes of every file of the image have digests: else nothing of it may be called verified.
///
/// Errors: SOFTFAULT_ERROR_IMAGE: a file below cannot be opened. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// verifiable may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_is_verifiable(image: *mut softfault_image, verifiable: *mut bool) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(verifiable, "verifiable") }?;
        out.put(handle::get(image)?.image().is_verifiable()?);
        Ok(())
    })
}

/// Writes region number index of the image, and its name. name, full and region may be left out.
///
/// Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// name has room for len bytes; full and region may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_region(
    image: *mut softfault_image,
    index: usize,
    name: *mut c_char,
    len: usize,
    full: *mut usize,
    region: *mut softfault_region,
) -> c_int {
    entry(|| {
        let image = handle::get(image)?;
        let found = image.image().regions().get(index);
        let found = found.ok_or_else(|| no_entry(format_args!("softfault_image_region: no region {index}")))?;
        // SAFETY: the caller's contract.
        unsafe { give_text(&found.name, name, len, full) }?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(region) }.put(found.into());
        Ok(())
    })
}

/// Writes the name of key number index, as softfault_last_error() does; full may be NULL.
///
/// Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// buf has room for len bytes; full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_key_name(
    image: *mut softfault_image,
    index: usize,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let image = handle::get(image)?;
        let (name, _) = image.image().keys().get(index).ok_or_else(|| no_entry(format_args!("no key {index}")))?;
        // SAFETY: the caller's contract.
        unsafe { give_text(name, buf, len, full) }
    })
}

/// Copies what the image keeps under a key beside its memory, cut to len bytes; full (may be NULL) gets the full length.
///
/// Errors: -ENOENT: no such key. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// key is a string; buf has room for len bytes; full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_key(
    image: *mut softfault_image,
    key: *const c_char,
    buf: *mut c_void,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let image = handle::get(image)?;
        // SAFETY: the caller's contract.
        let key = unsafe { text(key, "key") }?;
        let value = image.image().key(key);
        let value = value.ok_or_else(|| no_entry(format_args!("softfault_image_key: no key {key:?}")))?;
        // SAFETY: the caller's contract.
        let into = unsafe { bytes_mut(buf, len.min(value.len())) }?;
        into.copy_from_slice(&value[..into.len()]);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(full) }.put(value.len());
        Ok(())
    })
}

/// Reads bytes of an image, of whole pages or not.
fn read_image(image: &Image, at: Range<u64>, into: &mut [u8]) -> Result<(), Failure> {
    let page = PAGE_SIZE as u64;
    if at.end > image.nr_pages() * page {
        let len = image.nr_pages() * page;
        return Err(Failure::argument(format_args!(
            "softfault_image_read_at: {at:#x?} ends past the image ({len:#x})"
        )));
    }
    let (mut reader, mut pages) = (image.reader(), Vec::new());
    let (mut next, mut left) = (at.start, into);
    while !left.is_empty() {
        let first = next / page;
        let nr = (at.end.div_ceil(page) - first).min(CHUNK_PAGES);
        pages.resize((nr * page) as usize, 0);
        reader.read(first, &mut pages)?;
        let from = (next - first * page) as usize;
        let (head, tail) = left.split_at_mut((pages.len() - from).min(left.len()));
        head.copy_from_slice(&pages[from..from + head.len()]);
        next += head.len() as u64;
        left = tail;
    }
    Ok(())
}

/// Reads bytes of the image, verified as it was opened for, without a fault and without the cache.
///
/// Errors: SOFTFAULT_ERROR_IMAGE: these bytes are not what was saved; others can be read. -EINVAL: past the end; -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// buf has room for len bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_read_at(
    image: *mut softfault_image,
    offset: u64,
    buf: *mut c_void,
    len: usize,
) -> c_int {
    entry(|| {
        let image = handle::get(image)?;
        let at = range(offset, len as u64)?;
        // SAFETY: the caller's contract.
        let into = unsafe { bytes_mut(buf, len) }?;
        read_image(image.image(), at, into)
    })
}

/// Verifies everything of the image that has digests, as it lies in the files now. progress (may be NULL) is called on this thread,
/// seldom, with ctx and the bytes done so far; it must not unwind.
///
/// Errors: SOFTFAULT_ERROR_IMAGE: the first thing that is wrong; -EOPNOTSUPP: it has no digests, of which
/// softfault_image_write_sidecar() makes some; -ESTALE: the file's name is another file's. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// progress may be called so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_verify(
    image: *mut softfault_image,
    progress: Option<unsafe extern "C" fn(ctx: *mut c_void, bytes: u64)>,
    ctx: *mut c_void,
) -> c_int {
    entry(|| {
        let image = handle::get(image)?;
        let mut tell = |bytes| {
            if let Some(progress) = progress {
                // SAFETY: the caller's contract.
                unsafe { progress(ctx, bytes) };
            }
        };
        Ok(image.image().verify(&mut tell)?)
    })
}

/// Writes a handle of the object whose pages are the image's: to be mapped in an arena of the program's own, and never written. The
/// handle is the caller's: softfault_object_free().
///
/// Errors: -EINVAL: the image was opened without a runtime. -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_object(image: *mut softfault_image, out: *mut *mut softfault_object) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        out.put(handle::insert(open_image(image, "softfault_image_object")?.object().clone())?);
        Ok(())
    })
}

/// Writes why the last read of the image that failed did, for whichever session or touch, and the words, as
/// softfault_last_error(): a touch is only told SIGBUS. failure and full may be NULL.
///
/// Errors: -ENOENT: none has failed. -EINVAL: the image was opened without a runtime. -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// failure and full may be written; buf has room for len bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_read_failure(
    image: *mut softfault_image,
    failure: *mut softfault_image_failure,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let failed = open_image(image, "softfault_image_read_failure")?.last_failure();
        let failed = failed.ok_or_else(|| no_entry("softfault_image_read_failure: no read has failed"))?;
        let words = failed.to_string();
        // SAFETY: the caller's contract.
        unsafe { copy_text(&words, buf, len) };
        // SAFETY: the caller's contract.
        unsafe { Out::optional(full) }.put(words.len());
        let what = image_failure_of(&failed).map(|(what, _)| what).unwrap_or_default();
        // SAFETY: the caller's contract.
        unsafe { Out::optional(failure) }.put(what);
        Ok(())
    })
}
