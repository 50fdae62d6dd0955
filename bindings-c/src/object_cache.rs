//! `softfault_object`: what of it is cached, what is durable, what was lost.
//!
//! # Context: control plane

use crate::args::{Out, known, range};
use crate::consts;
use crate::error::{copy_ranges, entry, softfault_range};
use crate::handle::{self, softfault_held, softfault_object};
use softfault::Object;
use std::ffi::c_int;
use std::ops::Range;
use std::sync::Arc;

/// Runs `f` on an object and a range of it.
fn on_range(
    object: *mut softfault_object,
    offset: u64,
    len: u64,
    f: impl FnOnce(&Object, Range<u64>) -> softfault::Result<()>,
) -> c_int {
    entry(|| Ok(f(&handle::get(object)?, range(offset, len)?)?))
}

/// As `on_range`, with a number as the result.
///
/// # Safety
/// `out` may be written, or is null.
unsafe fn count_in_range(
    object: *mut softfault_object,
    offset: u64,
    len: u64,
    out: *mut u64,
    f: impl FnOnce(&Object, Range<u64>) -> softfault::Result<u64>,
) -> c_int {
    entry(|| {
        let nr = f(&handle::get(object)?, range(offset, len)?)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(out) }.put(nr);
        Ok(())
    })
}

/// Reads the range into the cache, and waits for it.
///
/// Errors: SOFTFAULT_ERROR_FAULT naming the first byte that could not be had. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_populate(object: *mut softfault_object, offset: u64, len: u64) -> c_int {
    on_range(object, offset, len, Object::populate)
}

/// Writes how many of the object's pages are cached.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// pages may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_cached_pages(object: *mut softfault_object, pages: *mut u64) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(pages, "pages") }?;
        out.put(handle::get(object)?.cached_pages());
        Ok(())
    })
}

/// Writes whether the page of that byte is cached: readable without asking the store.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// cached may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_is_cached(
    object: *mut softfault_object,
    offset: u64,
    cached: *mut bool,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(cached, "cached") }?;
        out.put(handle::get(object)?.is_cached(offset));
        Ok(())
    })
}

/// Changes the object's own limit. Pages above a lower one leave as others come.
///
/// Errors: -EACCES: the object was made without a limit of its own. -EINVAL for NULL, -EBADF.
///
/// Context: program, filler. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_set_cache_limit(object: *mut softfault_object, bytes: u64) -> c_int {
    entry(|| Ok(handle::get(object)?.set_cache_limit(bytes)?))
}

/// Says how the range will be used, or what is to be done with it now: SOFTFAULT_ADVICE_*. NORMAL, SEQUENTIAL and RANDOM
/// hold for the whole object.
///
/// Errors: -EACCES for POPULATE_WRITE on an object that is not writable. SOFTFAULT_ERROR_FAULT. -EBUSY for DONTNEED and
/// COLD over a pin. -EINVAL, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_advise(object: *mut softfault_object, offset: u64, len: u64, advice: u32) -> c_int {
    entry(|| {
        let advice = known(consts::advice(advice), "advice", advice)?;
        Ok(handle::get(object)?.advise(range(offset, len)?, advice)?)
    })
}

/// Drops clean, unpinned pages of the range from the cache; evicted (may be NULL) gets how many went. Pages that were
/// written since they were last written back stay: softfault_object_sync() first.
///
/// Errors: -ENOMEM: an extent cannot be taken back. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// evicted may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_evict(
    object: *mut softfault_object,
    offset: u64,
    len: u64,
    evicted: *mut u64,
) -> c_int {
    // SAFETY: the caller's contract.
    unsafe { count_in_range(object, offset, len, evicted, Object::evict) }
}

/// Makes the complete 2 MiB of the range huge pages, now; collapsed (may be NULL) gets how many are huge then. Needs
/// SOFTFAULT_OBJECT_HUGE_PAGES; what cannot be is left as it is.
///
/// Errors: -EACCES in a forked child. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// collapsed may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_collapse(
    object: *mut softfault_object,
    offset: u64,
    len: u64,
    collapsed: *mut u64,
) -> c_int {
    // SAFETY: the caller's contract.
    unsafe { count_in_range(object, offset, len, collapsed, Object::collapse) }
}

/// Forgets that pages of the range were poisoned: the next touch asks the store anew. healed (may be NULL) gets how many
/// were. Touches heal pages by themselves; this is for system calls on monitor arenas.
///
/// Errors: -EINVAL, -EBADF, or what unpoisoning said.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// healed may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_heal(
    object: *mut softfault_object,
    offset: u64,
    len: u64,
    healed: *mut u64,
) -> c_int {
    // SAFETY: the caller's contract.
    unsafe { count_in_range(object, offset, len, healed, Object::heal) }
}

/// Drops what is cached of the range, because the store's content was changed by somebody else. dropped and kept (may be
/// NULL) get the pages that went, and that stayed because they were written here, or are pinned.
///
/// Errors: -ENOMEM: an extent cannot be taken back. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// dropped and kept may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_invalidate(
    object: *mut softfault_object,
    offset: u64,
    len: u64,
    dropped: *mut u64,
    kept: *mut u64,
) -> c_int {
    entry(|| {
        let done = handle::get(object)?.invalidate(range(offset, len)?)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(dropped) }.put(done.dropped);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(kept) }.put(done.kept);
        Ok(())
    })
}

/// Makes the range read as zeros, in the cache and in the store, and gives its storage back where the store can.
///
/// Errors: -EACCES: the object is not writable, or a page stays pinned. The store's error. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_punch_hole(object: *mut softfault_object, offset: u64, len: u64) -> c_int {
    on_range(object, offset, len, Object::punch_hole)
}

/// Gives the store every byte of the range that was written before the call, and does not flush it: other readers of a file
/// see the bytes, and a crash may still take them.
///
/// Errors: SOFTFAULT_ERROR_WRITEBACK. -EBUSY: a page of the range is held and dirty; the others were written. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_write_back(object: *mut softfault_object, offset: u64, len: u64) -> c_int {
    on_range(object, offset, len, Object::write_back)
}

/// Makes durable every byte of the range that was written before the call, through whatever mapping or call.
///
/// Errors: SOFTFAULT_ERROR_WRITEBACK and _FLUSH: nothing is promised, and the next call tries again.
/// SOFTFAULT_ERROR_LOST: writes are gone that a failed flush took away; so says every call over them until they are
/// written again, or softfault_object_forget_lost(). SOFTFAULT_ERROR_HELD. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_sync(object: *mut softfault_object, offset: u64, len: u64) -> c_int {
    on_range(object, offset, len, Object::sync)
}

/// Makes everything durable that was written before the call. Errors: as softfault_object_sync().
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_sync_all(object: *mut softfault_object) -> c_int {
    entry(|| Ok(handle::get(object)?.sync_all()?))
}

/// Makes everything that was written before the call, and is not held, durable before anything that is written after it.
/// Errors: as softfault_object_sync(), but for SOFTFAULT_ERROR_HELD.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_barrier(object: *mut softfault_object) -> c_int {
    entry(|| Ok(handle::get(object)?.barrier()?))
}

/// Keeps the pages of the range from being written back until the hold is freed: a write-ahead log must be durable before
/// the pages it describes. Held dirty pages count against the cache's limit.
///
/// The handle is the caller's: softfault_held_free(). It keeps the object.
///
/// Errors: -EBUSY: a page is held already. -EACCES on exclusive objects. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_hold_dirty(
    object: *mut softfault_object,
    offset: u64,
    len: u64,
    out: *mut *mut softfault_held,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let held = handle::get(object)?.hold_dirty(range(offset, len)?)?;
        out.put(handle::insert(Arc::new(held))?);
        Ok(())
    })
}

/// Writes the bytes that are held: whole pages.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// range may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_held_range(held: *mut softfault_held, range: *mut softfault_range) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(range, "range") }?;
        out.put(softfault_range::from(&handle::get(held)?.range()));
        Ok(())
    })
}

/// Lets the pages be written back again.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_held_free(held: *mut softfault_held) -> c_int {
    entry(|| handle::free(held))
}

/// Copies up to nr of the ranges whose writes failed flushes took away; total (may be NULL) gets how many there are.
/// ranges may be NULL if nr is 0.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// ranges has room for nr elements; total may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_lost(
    object: *mut softfault_object,
    ranges: *mut softfault_range,
    nr: usize,
    total: *mut usize,
) -> c_int {
    entry(|| {
        if nr > 0 && ranges.is_null() {
            return Err(crate::error::Failure::argument("ranges is NULL"));
        }
        let lost: Vec<_> = handle::get(object)?.lost().iter().map(softfault_range::from).collect();
        // SAFETY: the caller's contract.
        unsafe { copy_ranges(&lost, ranges, nr) };
        // SAFETY: the caller's contract.
        unsafe { Out::optional(total) }.put(lost.len());
        Ok(())
    })
}

/// Accepts the loss of what was written to the range: softfault_object_sync() does not report it any more.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_object_forget_lost(object: *mut softfault_object, offset: u64, len: u64) -> c_int {
    entry(|| {
        handle::get(object)?.forget_lost(range(offset, len)?);
        Ok(())
    })
}
