//! What is done with images: other files of the same memory, differences, exchange with others.
//!
//! # Context: control plane

use crate::args::{Out, give_text, known, path, range, text};
use crate::error::{Failure, copy_ranges, entry, softfault_digest, softfault_range};
use crate::handle::{self, softfault_image};
use crate::image_options::softfault_image_writer_options;
use crate::image_writer::whole_pages;
use crate::options::read;
use softfault::image::{self, Digest, Image, PAGE_SIZE, ops};
use std::ffi::{c_char, c_int};
use std::path::Path;
use std::sync::Arc;

/// Pages are compared by the digests of their contents, where both images have them.
pub const SOFTFAULT_COMPARE_DIGESTS: u32 = 0;
/// Pages are read, verified and compared.
pub const SOFTFAULT_COMPARE_PAGES: u32 = 1;

/// Makes a new file of an image, by `make`.
///
/// # Safety
/// As [`softfault_image_convert`].
unsafe fn new_file(
    image: *mut softfault_image,
    path: *const c_char,
    options: *const softfault_image_writer_options,
    digest: *mut softfault_digest,
    make: impl FnOnce(&Image, &Path, &ops::Stored) -> Result<Digest, Failure>,
) -> c_int {
    entry(|| {
        let image = handle::get(image)?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        if !options.parent.is_null() || options.flags != 0 {
            return Err(Failure::argument("softfault_image_writer_options.parent and flags are for writers"));
        }
        let made = make(image.image(), path, &options.stored()?)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(digest) }.put(made.into());
        Ok(())
    })
}

/// Writes an image as one .sfi file that needs no other, whatever it was before. options may be NULL; digest (may be NULL) gets the
/// digest of the new file.
///
/// Errors: SOFTFAULT_ERROR_IMAGE: pages cannot be read, or are not what was saved; -EEXIST: there is such a file. -EINVAL, -E2BIG, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string; options, if not NULL, has the size that it says; digest may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_convert(
    image: *mut softfault_image,
    path: *const c_char,
    options: *const softfault_image_writer_options,
    digest: *mut softfault_digest,
) -> c_int {
    let make = |image: &Image, path: &Path, stored: &ops::Stored| Ok(ops::convert(image, path, stored)?);
    // SAFETY: the caller's contract.
    unsafe { new_file(image, path, options, digest, make) }
}

/// As softfault_image_convert(), with no more than budget pieces in any 2 MiB: what a chain of images costs each fault is gone.
///
/// Errors: as softfault_image_convert().
///
/// Context: program. Thread-safe.
///
/// # Safety
/// As softfault_image_convert().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_compact(
    image: *mut softfault_image,
    path: *const c_char,
    options: *const softfault_image_writer_options,
    budget: u32,
    digest: *mut softfault_digest,
) -> c_int {
    let make = |image: &Image, path: &Path, stored: &ops::Stored| Ok(ops::compact(image, path, stored, budget)?);
    // SAFETY: the caller's contract.
    unsafe { new_file(image, path, options, digest, make) }
}

/// Writes an image as a child of parent: the pages that differ. The memory is the image's, whatever the parent is.
///
/// Errors: as softfault_image_convert(); -EINVAL: a file of the parent lies in another folder.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// As softfault_image_convert().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_rebase(
    image: *mut softfault_image,
    parent: *mut softfault_image,
    path: *const c_char,
    options: *const softfault_image_writer_options,
    digest: *mut softfault_digest,
) -> c_int {
    let make = |image: &Image, path: &Path, stored: &ops::Stored| {
        let parent = handle::get(parent)?;
        Ok(ops::rebase(image, parent.image(), path, stored)?)
    };
    // SAFETY: the caller's contract.
    unsafe { new_file(image, path, options, digest, make) }
}

/// Compares two images by SOFTFAULT_COMPARE_*, and copies up to nr ranges of bytes that differ, in order; full (may be NULL) gets how many
/// there are, and differ_bytes (may be NULL) their sum.
///
/// Errors: SOFTFAULT_ERROR_IMAGE: a page of either cannot be read. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// ranges has room for nr elements; full and differ_bytes may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_diff(
    old: *mut softfault_image,
    new: *mut softfault_image,
    compare: u32,
    ranges: *mut softfault_range,
    nr: usize,
    full: *mut usize,
    differ_bytes: *mut u64,
) -> c_int {
    entry(|| {
        let by = match compare {
            SOFTFAULT_COMPARE_DIGESTS => ops::Compare::Digests,
            SOFTFAULT_COMPARE_PAGES => ops::Compare::Pages,
            other => return known(None, "compare", other),
        };
        let diff = ops::diff(handle::get(old)?.image(), handle::get(new)?.image(), by)?;
        let page = PAGE_SIZE as u64;
        let of = |run: &std::ops::Range<u64>| softfault_range { start: run.start * page, end: run.end * page };
        let runs: Vec<softfault_range> = diff.runs().iter().map(of).collect();
        // SAFETY: the caller's contract.
        unsafe { copy_ranges(&runs, ranges, nr) };
        // SAFETY: the caller's contract.
        unsafe { Out::optional(full) }.put(runs.len());
        // SAFETY: the caller's contract.
        unsafe { Out::optional(differ_bytes) }.put(diff.nr_pages() * page);
        Ok(())
    })
}

/// Writes len bytes of an image from offset on, whole pages, into a raw file that begins with them; zero pages are holes. No file is
/// replaced.
///
/// Errors: SOFTFAULT_ERROR_IMAGE: as softfault_image_convert(). -EINVAL: past the end, not whole pages. -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_extract(
    image: *mut softfault_image,
    offset: u64,
    len: u64,
    path: *const c_char,
) -> c_int {
    entry(|| {
        let image = handle::get(image)?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        let pages = range(whole_pages("offset", offset)?, whole_pages("len", len)?)?;
        Ok(ops::extract(image.image(), pages, path)?)
    })
}

/// Writes the pages of new that differ from old into a sparse file as long as the image: what Firecracker calls a diff snapshot, and
/// softfault_image_options.diffs takes.
///
/// Errors: as softfault_image_extract(); -EINVAL: the images are not of one length.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_extract_diff(
    old: *mut softfault_image,
    new: *mut softfault_image,
    path: *const c_char,
) -> c_int {
    entry(|| {
        let (old, new) = (handle::get(old)?, handle::get(new)?);
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        Ok(ops::extract_diff(old.image(), new.image(), path)?)
    })
}

/// Writes digests of an image that has none into an .sfi file of their own, in the same folder: opened, that is the same memory, verified.
/// digest may be NULL.
///
/// Errors: as softfault_image_convert().
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string; digest may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_write_sidecar(
    image: *mut softfault_image,
    path: *const c_char,
    digest: *mut softfault_digest,
) -> c_int {
    entry(|| {
        let image = handle::get(image)?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        let made = image::write_sidecar(&Arc::clone(image.image()), path)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(digest) }.put(made.into());
        Ok(())
    })
}

/// Writes an image into a folder of OCI's layout, as registries understand it, under a name; the digest of its manifest is written as
/// softfault_last_error() does. full may be NULL.
///
/// Errors: as softfault_image_convert().
///
/// Context: program. Thread-safe.
///
/// # Safety
/// folder and name are strings; buf has room for len bytes; full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_export_oci(
    image: *mut softfault_image,
    folder: *const c_char,
    name: *const c_char,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let image = handle::get(image)?;
        // SAFETY: the caller's contract.
        let folder = unsafe { path(folder) }?;
        // SAFETY: the caller's contract.
        let name = unsafe { text(name, "name") }?;
        let manifest = image::oci::export(image.image(), folder, name)?;
        // SAFETY: the caller's contract.
        unsafe { give_text(&manifest, buf, len, full) }
    })
}

/// Takes the image of that name out of a folder of OCI's layout, verified, into another folder; the file that it is there is written as
/// softfault_last_error() does. full may be NULL.
///
/// Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// folder, name and into are strings; buf has room for len bytes; full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_image_import_oci(
    folder: *const c_char,
    name: *const c_char,
    into: *const c_char,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let folder = unsafe { path(folder) }?;
        // SAFETY: the caller's contract.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: the caller's contract.
        let into = unsafe { path(into) }?;
        let made = image::oci::import(folder, name, into)?;
        // SAFETY: the caller's contract.
        unsafe { give_text(&made.display().to_string(), buf, len, full) }
    })
}
