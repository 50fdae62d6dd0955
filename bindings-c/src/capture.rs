//! `softfault_capture`: arenas as an image, while threads go on storing to them.
//!
//! # Context: control plane

use crate::args::{Out, bytes, elements, path, text};
use crate::error::{Failure, entry, softfault_digest};
use crate::handle::{self, softfault_arena, softfault_capture, softfault_runtime};
use crate::image_options::{
    SOFTFAULT_CAPTURE_NO_WAIT, softfault_capture_options, softfault_capture_state, softfault_excluded,
};
use crate::options::{Report, read};
use softfault::{Arena, CaptureBuilder};
use std::ffi::{c_char, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

/// Makes a consistent cut of nr arenas, each made with SOFTFAULT_ARENA_CAPTURABLE, and returns after it; the image is written
/// meanwhile, until softfault_capture_commit(). Threads go on storing, but for the last moment before the cut (a millisecond or
/// two). options may be NULL.
///
/// at_cut (may be NULL) is called with ctx in that moment, on this thread: what it reads of the program's state is of the same moment
/// as the memory. It must not wait for a thread that stores to the arenas (for a lock of such a thread, malloc's included), nor store
/// to them itself, nor unwind; it may be called again, three times in all, if it takes a tenth of a second. What it returns, if not 0,
/// ends the capture.
///
/// The handle is the caller's: softfault_capture_free(), which cancels what is not committed.
///
/// Errors: -EACCES: an arena is not capturable, or something is mapped in a way that no capture can hold. -EBUSY: a pin for writing
/// is there, and SOFTFAULT_CAPTURE_NO_WAIT. SOFTFAULT_ERROR_CAPTURE: at_cut said no, or stores would have waited for too long.
/// SOFTFAULT_ERROR_IMAGE: the file cannot be made. -ENOMEM: a fifth capture at once, or memory. -EINVAL, -E2BIG, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string; arenas has nr elements; options, if not NULL, has the size that it says, and what it names may be read; at_cut may
/// be called so; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_capture_begin(
    runtime: *mut softfault_runtime,
    path: *const c_char,
    arenas: *const *mut softfault_arena,
    nr: usize,
    options: *const softfault_capture_options,
    at_cut: Option<unsafe extern "C" fn(ctx: *mut c_void) -> c_int>,
    ctx: *mut c_void,
    out: *mut *mut softfault_capture,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let runtime = handle::get(runtime)?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        // SAFETY: the caller's contract.
        let arenas = unsafe { elements(arenas, nr, "arenas") }?;
        let arenas = arenas.into_iter().map(handle::get).collect::<Result<Vec<_>, _>>()?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        // SAFETY: the caller's contract.
        let builder = unsafe { configure(runtime.capture(), &arenas, &options) }?;
        let capture = builder.begin(path, || {
            // SAFETY: the caller's contract.
            match at_cut.map_or(0, |at_cut| unsafe { at_cut(ctx) }) {
                0 => Ok(()),
                said => Err(format!("at_cut returned {said}")),
            }
        })?;
        out.put(handle::insert(Arc::new(Mutex::new(Some(capture))))?);
        Ok(())
    })
}

/// Says what is captured, and how.
///
/// # Safety
/// What the options name may be read.
unsafe fn configure(
    mut builder: CaptureBuilder,
    arenas: &[Arena],
    options: &softfault_capture_options,
) -> Result<CaptureBuilder, Failure> {
    let codec = options.codec()?;
    for arena in arenas {
        builder = builder.arena(arena);
    }
    // SAFETY: the caller's contract.
    let excluded = unsafe { elements(options.excluded, options.nr_excluded, "excluded") }?;
    for softfault_excluded { arena, offset, len_bytes } in excluded {
        builder = builder.exclude(&handle::get(arena)?, crate::args::arena_range(offset, len_bytes)?);
    }
    if options.budget_bytes != 0 {
        builder = builder.budget(options.budget_bytes);
    }
    if !options.parent.is_null() {
        builder = builder.over(Arc::clone(handle::get(options.parent)?.image()));
    }
    if let Some(codec) = codec {
        builder = builder.codec(codec);
    }
    Ok(builder.wait(options.flags & SOFTFAULT_CAPTURE_NO_WAIT == 0))
}

fn finished() -> Failure {
    Failure::argument("the capture is committed")
}

/// Keeps len bytes under a key beside the memory: what at_cut found, the registers, a version.
///
/// Errors: -EINVAL: the capture is committed. -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// key is a string; value has len bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_capture_key(
    capture: *mut softfault_capture,
    key: *const c_char,
    value: *const c_void,
    len: usize,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let key = unsafe { text(key, "key") }?;
        // SAFETY: the caller's contract.
        let value = unsafe { bytes(value, len) }?;
        let capture = handle::get(capture)?;
        let capture = capture.lock().unwrap_or_else(PoisonError::into_inner);
        capture.as_ref().ok_or_else(finished)?.key(key, value);
        Ok(())
    })
}

/// Writes how far the capture is. The caller sets progress->size.
///
/// Errors: -EINVAL: the capture is committed. -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// progress has the size that it says, and may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_capture_progress(
    capture: *mut softfault_capture,
    progress: *mut softfault_capture_state,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Report::new(progress) }?;
        let capture = handle::get(capture)?;
        let capture = capture.lock().unwrap_or_else(PoisonError::into_inner);
        let p = capture.as_ref().ok_or_else(finished)?.progress();
        out.put(softfault_capture_state {
            size: 0,
            done_pages: p.done_pages,
            nr_pages: p.nr_pages,
            spilled_pages: p.spilled_pages,
            last_pages: p.last_pages,
            held_ns: u64::try_from(p.held.as_nanos()).unwrap_or(u64::MAX),
        });
        Ok(())
    })
}

/// Waits until the image is whole, durable, and there under its name; digest (may be NULL) gets the digest of its file. The capture
/// is over, whether this succeeds or not.
///
/// Errors: SOFTFAULT_ERROR_CAPTURE, SOFTFAULT_ERROR_IMAGE: there is no image, and one that was there before is as it was. -EINVAL: the
/// capture is committed already. -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// digest may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_capture_commit(
    capture: *mut softfault_capture,
    digest: *mut softfault_digest,
) -> c_int {
    entry(|| {
        let capture = handle::get(capture)?;
        let capture = capture.lock().unwrap_or_else(PoisonError::into_inner).take();
        let made = capture.ok_or_else(finished)?.commit()?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(digest) }.put(made.into());
        Ok(())
    })
}

/// Frees the handle. A capture that is not committed is cancelled: there will be no image.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_capture_free(capture: *mut softfault_capture) -> c_int {
    entry(|| handle::free(capture))
}
