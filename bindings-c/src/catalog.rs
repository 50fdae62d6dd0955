//! `softfault_catalog`: a folder of images, which has names for them and removes what nobody needs.
//!
//! # Context: control plane

use crate::args::{Out, give_text, path, text};
use crate::error::{Failure, entry, softfault_digest};
use crate::handle::{self, AnyImage, softfault_catalog, softfault_image, softfault_runtime};
use softfault::image::{Catalog, Digest, Kept, Plan};
use std::ffi::{c_char, c_int};
use std::fmt::Write;
use std::sync::Arc;

/// Opens a folder of .sfi files, which is made if there is none. The handle is the caller's: softfault_catalog_free().
///
/// Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// folder is a string; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_catalog_open(folder: *const c_char, out: *mut *mut softfault_catalog) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        // SAFETY: the caller's contract.
        let folder = unsafe { path(folder) }?;
        out.put(handle::insert(Catalog::open(folder)?)?);
        Ok(())
    })
}

/// Frees the handle. The folder stays as it is.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_catalog_free(catalog: *mut softfault_catalog) -> c_int {
    entry(|| handle::free(catalog))
}

/// Reads a caller's digest.
///
/// # Safety
/// `digest` may be read, or is null.
unsafe fn digest_of(digest: *const softfault_digest) -> Result<Digest, Failure> {
    if digest.is_null() {
        return Err(Failure::argument("digest is NULL"));
    }
    // SAFETY: not null, and the caller's contract. It need not be aligned.
    Ok(Digest::from_bytes(unsafe { digest.read_unaligned() }.bytes))
}

/// Has a tag name the image with this file digest, instead of what it named.
///
/// Errors: SOFTFAULT_ERROR_IMAGE, -ENOENT: there is no such image. -EINVAL: the text cannot be a tag. -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// tag is a string; digest may be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_catalog_tag(
    catalog: *mut softfault_catalog,
    tag: *const c_char,
    digest: *const softfault_digest,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let tag = unsafe { text(tag, "tag") }?;
        // SAFETY: the caller's contract.
        let digest = unsafe { digest_of(digest) }?;
        Ok(handle::get(catalog)?.tag(tag, &digest)?)
    })
}

/// Forgets a tag. The image stays until softfault_catalog_collect().
///
/// Errors: SOFTFAULT_ERROR_IMAGE: there is no such tag. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// tag is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_catalog_untag(catalog: *mut softfault_catalog, tag: *const c_char) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let tag = unsafe { text(tag, "tag") }?;
        Ok(handle::get(catalog)?.untag(tag)?)
    })
}

/// Writes the tags, a line each, digest and tag, as softfault_last_error() does, and how many they are; nr and full may be NULL.
///
/// Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// buf has room for len bytes; nr and full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_catalog_tags(
    catalog: *mut softfault_catalog,
    nr: *mut usize,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let tags = handle::get(catalog)?.tags()?;
        let lines: Vec<String> = tags.iter().map(|(tag, digest)| format!("{digest} {tag}")).collect();
        // SAFETY: the caller's contract.
        unsafe { give_text(&lines.join("\n"), buf, len, full) }?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(nr) }.put(tags.len());
        Ok(())
    })
}

/// Opens the image that a tag names, or that has the digest which the name is, as softfault_image_open() does; without a runtime, if
/// that is NULL, as softfault_image_open_file(). The handle is the caller's: softfault_image_free().
///
/// Errors: SOFTFAULT_ERROR_IMAGE, -ENOENT: there is none. -EINVAL, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// name is a string; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_catalog_image(
    catalog: *mut softfault_catalog,
    runtime: *mut softfault_runtime,
    name: *const c_char,
    out: *mut *mut softfault_image,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        // SAFETY: the caller's contract.
        let name = unsafe { text(name, "name") }?;
        let image = handle::get(catalog)?.image(name)?;
        let image = if runtime.is_null() {
            AnyImage::Files(Arc::new(image))
        } else {
            AnyImage::Open(handle::get(runtime)?.image(image)?)
        };
        out.put(handle::insert(image)?);
        Ok(())
    })
}

/// Returns a plan as lines.
fn lines_of(plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for entry in &plan.remove {
        let _ = writeln!(text, "remove {} {}", entry.len_bytes, entry.path.display());
    }
    for set in &plan.working_sets {
        let _ = writeln!(text, "remove-set {}", set.display());
    }
    for (entry, kept) in &plan.keep {
        let path = entry.path.display();
        let _ = match kept {
            Kept::Tagged => writeln!(text, "keep {path} tagged {}", entry.tags.join(" ")),
            Kept::Held => writeln!(text, "keep {path} held"),
            Kept::Needed(by) => writeln!(text, "keep {path} needed {}", by.display()),
        };
    }
    for (path, why) in &plan.damaged {
        let _ = writeln!(text, "damaged {} {why}", path.display());
    }
    text
}

/// Says what a collection would remove now, what it keeps and why, as softfault_last_error() does, a line each: "remove BYTES FILE",
/// "remove-set FILE", "keep FILE tagged TAG ..", "keep FILE held", "keep FILE needed FILE", "damaged FILE WHY". While a file is
/// damaged nothing is removed: nobody knows what it needs. removed gets how many images; it and full may be NULL.
///
/// Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// buf has room for len bytes; removed and full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_catalog_plan(
    catalog: *mut softfault_catalog,
    removed: *mut usize,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let plan = handle::get(catalog)?.plan()?;
        // SAFETY: the caller's contract.
        unsafe { give_text(&lines_of(&plan), buf, len, full) }?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(removed) }.put(plan.remove.len());
        Ok(())
    })
}

/// Removes what nothing names, holds or needs, and says what that was as softfault_catalog_plan() does.
///
/// Errors: SOFTFAULT_ERROR_IMAGE: a file could not be removed; those before it were. -EINVAL: buf is NULL, and len is not 0:
/// nothing was removed. -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// As softfault_catalog_plan().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_catalog_collect(
    catalog: *mut softfault_catalog,
    removed: *mut usize,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let catalog = handle::get(catalog)?;
        // What cannot be told is not done.
        // SAFETY: the caller's contract.
        unsafe { give_text("", buf, len, std::ptr::null_mut()) }?;
        let plan = catalog.collect()?;
        // SAFETY: the caller's contract.
        unsafe { give_text(&lines_of(&plan), buf, len, full) }?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(removed) }.put(plan.remove.len());
        Ok(())
    })
}

/// Removes the image with this file digest.
///
/// Errors: SOFTFAULT_ERROR_IMAGE, -EBUSY: the words name the tag or the image that needs it, or somebody holds it; -ENOENT: there is
/// none. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// digest may be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_catalog_remove(
    catalog: *mut softfault_catalog,
    digest: *const softfault_digest,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let digest = unsafe { digest_of(digest) }?;
        Ok(handle::get(catalog)?.remove(&digest)?)
    })
}
