//! `softfault_session`: an image as memory.
//!
//! # Context: control plane

use crate::args::{Out, give_text, text};
use crate::error::{Failure, entry, softfault_range};
use crate::handle::{self, AnyImage, softfault_arena, softfault_image, softfault_session, softfault_working_set};
use crate::image::{no_entry, open_image};
use crate::image_options::{
    SOFTFAULT_RESTORE_AT_ORIGINAL_ADDRESSES, SOFTFAULT_RESTORE_DIRECT, softfault_completion, softfault_progress,
    softfault_restore_options,
};
use crate::options::{Report, read};
use softfault::{Restore, Session};
use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

/// Makes an image memory again: its regions are mapped, private to the session, and filled as they are touched, verified as the image
/// was opened for. options may be NULL. Nothing is read but what overlays need.
///
/// The handle is the caller's: softfault_session_free(). The session keeps its image and its runtime.
///
/// Errors: -EEXIST: the words name what is in the way of an original address. -ENODATA, SOFTFAULT_ERROR_OVERLAY: the image needs
/// an overlay that was not given. SOFTFAULT_ERROR_IMAGE: the working set is of another image, or there can be none of this one.
/// SOFTFAULT_ERROR_FAULT: a page below an overlay cannot be had. -EINVAL: overlays are not whole pages of one region, or the
/// image has no regions or no runtime. -EACCES: direct extents of files that may change, or an overlay where
/// nobody may store. -E2BIG, -EBADF, -EOPNOTSUPP, -ENOMEM. There is no session then.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// options, if not NULL, has the size that it says, and what it names may be read; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_restore(
    image: *mut softfault_image,
    options: *const softfault_restore_options,
    out: *mut *mut softfault_session,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let image = open_image(image, "softfault_restore")?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        // SAFETY: the caller's contract.
        let arena = unsafe { options.check() }?;
        let original = options.has(SOFTFAULT_RESTORE_AT_ORIGINAL_ADDRESSES);
        let mut restore =
            Restore::new(&image).at_original_addresses(original).direct(options.has(SOFTFAULT_RESTORE_DIRECT));
        if let Some(choice) = arena {
            restore = restore.arena(move |b| choice.apply(b));
        }
        // SAFETY: the caller's contract.
        for (name, offset, bytes) in unsafe { options.overlays() }? {
            restore = restore.overlay(name, offset, bytes);
        }
        if options.record_window_ns != 0 {
            restore = restore.record(Duration::from_nanos(options.record_window_ns));
        }
        if !options.replay.is_null() {
            restore = restore.replay((*handle::get(options.replay)?).clone());
        }
        out.put(handle::insert(restore.build()?)?);
        Ok(())
    })
}

/// Frees the handle. The session's memory ends with it, but for arenas that the program has handles or pins of.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_session_free(session: *mut softfault_session) -> c_int {
    entry(|| handle::free(session))
}

fn region(session: &Session, index: usize) -> Result<&softfault::snapshot::SessionRegion, Failure> {
    session.regions().get(index).ok_or_else(|| no_entry(format_args!("the session has no region {index}")))
}

/// Writes the address and the length of region number index, in the image's order; each may be NULL. softfault_image_region() has what
/// the image says of it.
///
/// Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// base and len_bytes may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_session_region(
    session: *mut softfault_session,
    index: usize,
    base: *mut *mut c_void,
    len_bytes: *mut usize,
) -> c_int {
    entry(|| {
        let session = handle::get(session)?;
        let region = region(&session, index)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(base) }.put(region.as_ptr().cast());
        // SAFETY: the caller's contract.
        unsafe { Out::optional(len_bytes) }.put(region.len());
        Ok(())
    })
}

/// Writes the number of the region of that name.
///
/// Errors: -ENOENT: there is none. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// name is a string; index may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_session_find(
    session: *mut softfault_session,
    name: *const c_char,
    index: *mut usize,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(index, "index") }?;
        // SAFETY: the caller's contract.
        let name = unsafe { text(name, "name") }?;
        let session = handle::get(session)?;
        let found = session.regions().iter().position(|r| r.region().name == name);
        out.put(found.ok_or_else(|| no_entry(format_args!("the session has no region {name:?}")))?);
        Ok(())
    })
}

/// Writes a handle of the arena that region number index lies in, perhaps with others, and where in it (may be NULL): for
/// softfault_arena_read_at(), pins, advice. The handle is the caller's: softfault_arena_free().
///
/// Errors: -ENOENT: there are not so many. -EINVAL, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// out and offset may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_session_arena(
    session: *mut softfault_session,
    index: usize,
    out: *mut *mut softfault_arena,
    offset: *mut usize,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let session = handle::get(session)?;
        let region = region(&session, index)?;
        out.put(handle::insert(region.arena().clone())?);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(offset) }.put(region.range().start);
        Ok(())
    })
}

/// Writes a handle of the session's image. The handle is the caller's: softfault_image_free().
///
/// Errors: -EINVAL, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_session_image(
    session: *mut softfault_session,
    out: *mut *mut softfault_image,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        out.put(handle::insert(AnyImage::Open(handle::get(session)?.image().clone()))?);
        Ok(())
    })
}

/// Writes the name and the image's bytes of overlay number index that the session was given: who restores a capture of it must
/// give one of the same name and place. name, full and bytes may be left out.
///
/// Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// name has room for len bytes; full and bytes may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_session_overlay(
    session: *mut softfault_session,
    index: usize,
    name: *mut c_char,
    len: usize,
    full: *mut usize,
    bytes: *mut softfault_range,
) -> c_int {
    entry(|| {
        let session = handle::get(session)?;
        let overlay = session.overlays().get(index);
        let overlay = overlay.ok_or_else(|| no_entry(format_args!("the session has no overlay {index}")))?;
        // SAFETY: the caller's contract.
        unsafe { give_text(&overlay.name, name, len, full) }?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(bytes) }.put((&overlay.range).into());
        Ok(())
    })
}

/// Writes how far the session has come. Nobody is stopped. The caller sets progress->size.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// progress has the size that it says, and may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_session_progress(
    session: *mut softfault_session,
    progress: *mut softfault_progress,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Report::new(progress) }?;
        let p = handle::get(session)?.progress();
        out.put(softfault_progress {
            size: 0,
            pages: p.pages,
            cached: p.cached,
            native_extents: p.native_extents,
            direct_extents: p.direct_extents,
            replayed: p.replayed,
            replay_ended: u32::from(p.replay_ended),
            reserved: 0,
        });
        Ok(())
    })
}

/// Says that the session is ready, and ends the recording that softfault_restore_options.record_window_ns began: set gets the pages
/// that were touched first, or NULL if nothing was being recorded. The handle is the caller's: softfault_working_set_free().
///
/// Errors: SOFTFAULT_ERROR_IMAGE: there are more windows than a set may have. -EINVAL, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// set may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_session_mark(
    session: *mut softfault_session,
    set: *mut *mut softfault_working_set,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(set, "set") }?;
        out.put(match handle::get(session)?.mark()? {
            Some(set) => handle::insert(Arc::new(set))?,
            None => std::ptr::null_mut(),
        });
        Ok(())
    })
}

/// Makes all of the session resident and verified, and has the kernel serve what it can. Other threads may touch it meanwhile.
/// completion may be NULL; else the caller sets completion->size.
///
/// Errors: SOFTFAULT_ERROR_LIMIT: the cache's limit cannot hold the pages, and nothing was done. SOFTFAULT_ERROR_FAULT naming
/// the first page that cannot be had: softfault_image_read_failure() says why. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// completion, if not NULL, has the size that it says, and may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_session_complete(
    session: *mut softfault_session,
    completion: *mut softfault_completion,
) -> c_int {
    entry(|| {
        let out = if completion.is_null() {
            None
        } else {
            // SAFETY: the caller's contract.
            Some(unsafe { Report::new(completion) }?)
        };
        let c = handle::get(session)?.complete()?;
        if let Some(out) = out {
            out.put(softfault_completion {
                size: 0,
                resident_bytes: c.resident_bytes,
                native_extents: c.native_extents,
                trapped_extents: c.trapped_extents,
                direct_extents: c.direct_extents,
            });
        }
        Ok(())
    })
}
