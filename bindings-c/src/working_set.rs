//! `softfault_working_set`: which pages of an image a program needs first.
//!
//! # Context: control plane

use crate::args::{Out, elements, give_text, path};
use crate::error::{Failure, copy_ranges, entry, softfault_range};
use crate::handle::{self, softfault_image, softfault_working_set};
use crate::image::no_entry;
use crate::image_options::softfault_working_set_properties;
use crate::options::Report;
use softfault::image::PAGE_SIZE;
use softfault::image::workingset::{self, Suspicion, Window, WorkingSet};
use std::ffi::{c_char, c_int};
use std::sync::Arc;

/// Opens the file of a working set. The handle is the caller's: softfault_working_set_free().
///
/// Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_open(
    path: *const c_char,
    out: *mut *mut softfault_working_set,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        out.put(handle::insert(Arc::new(WorkingSet::open(path)?))?);
        Ok(())
    })
}

/// Opens the working set that lies beside an image (softfault_working_set_save_beside()); NULL in out: there is none.
///
/// Errors: SOFTFAULT_ERROR_IMAGE; -EOPNOTSUPP: the image knows no digest of its contents. -EINVAL, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_find(
    image: *mut softfault_image,
    out: *mut *mut softfault_working_set,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        out.put(match WorkingSet::find(handle::get(image)?.image())? {
            Some(set) => handle::insert(Arc::new(set))?,
            None => std::ptr::null_mut(),
        });
        Ok(())
    })
}

/// Frees the set.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_working_set_free(set: *mut softfault_working_set) -> c_int {
    entry(|| handle::free(set))
}

/// Saves the set as a file, instead of one that is there: the old one or the new one, at any moment.
///
/// Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_save(set: *mut softfault_working_set, path: *const c_char) -> c_int {
    entry(|| {
        let set = handle::get(set)?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        Ok(set.save(path)?)
    })
}

/// Saves the set in the folder of the image that it is of, where softfault_working_set_find() looks.
///
/// Errors: SOFTFAULT_ERROR_IMAGE, -EINVAL where the set is of other contents. -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_working_set_save_beside(
    set: *mut softfault_working_set,
    image: *mut softfault_image,
) -> c_int {
    entry(|| {
        handle::get(set)?.save_beside(handle::get(image)?.image())?;
        Ok(())
    })
}

/// Writes what the set is. The caller sets properties->size.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// properties has the size that it says, and may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_info(
    set: *mut softfault_working_set,
    properties: *mut softfault_working_set_properties,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Report::new(properties) }?;
        let set = handle::get(set)?;
        out.put(softfault_working_set_properties {
            size: 0,
            nr_pages: set.nr_pages(),
            image_pages: set.image_pages(),
            nr_windows: set.windows().len(),
            resolution_pages: set.resolution().pages() as u32,
            recordings: set.recordings(),
            content_digest: set.content().into(),
        });
        Ok(())
    })
}

fn window(set: &WorkingSet, index: usize) -> Result<&Window, Failure> {
    set.window(index).ok_or_else(|| no_entry(format_args!("the working set has no window {index}")))
}

/// Writes window number index, the earliest first: its time, from when the session was restored on, and how many pages were touched in
/// it first. Each may be NULL.
///
/// Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// start_ns, end_ns and nr_pages may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_window(
    set: *mut softfault_working_set,
    index: usize,
    start_ns: *mut u64,
    end_ns: *mut u64,
    nr_pages: *mut u64,
) -> c_int {
    entry(|| {
        let set = handle::get(set)?;
        let window = window(&set, index)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(start_ns) }.put(window.time_ns().start);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(end_ns) }.put(window.time_ns().end);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(nr_pages) }.put(window.nr_pages());
        Ok(())
    })
}

/// Copies up to nr ranges of the image's bytes that were touched first in window number index, in the order of their places; full
/// (may be NULL) gets how many there are.
///
/// Errors: -ENOENT: no such window. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// ranges has room for nr elements; full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_ranges(
    set: *mut softfault_working_set,
    index: usize,
    ranges: *mut softfault_range,
    nr: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let set = handle::get(set)?;
        let page = PAGE_SIZE as u64;
        let of = |run: std::ops::Range<u64>| softfault_range { start: run.start * page, end: run.end * page };
        let runs: Vec<softfault_range> = window(&set, index)?.runs().map(of).collect();
        // SAFETY: the caller's contract.
        unsafe { copy_ranges(&runs, ranges, nr) };
        // SAFETY: the caller's contract.
        unsafe { Out::optional(full) }.put(runs.len());
        Ok(())
    })
}

/// Makes one set of nr recordings of the same contents: what was touched in least of them at least, 1 for everything, each page as
/// early as in any of those. The handle is the caller's: softfault_working_set_free().
///
/// Errors: SOFTFAULT_ERROR_IMAGE, -EINVAL: they are of different contents, or tell different numbers of pages apart. -EINVAL: there are
/// fewer than least. -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// sets has nr elements; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_merge(
    sets: *const *mut softfault_working_set,
    nr: usize,
    least: usize,
    out: *mut *mut softfault_working_set,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        // SAFETY: the caller's contract.
        let sets = unsafe { elements(sets, nr, "sets") }?;
        let sets = sets.into_iter().map(handle::get).collect::<Result<Vec<_>, _>>()?;
        let sets: Vec<&WorkingSet> = sets.iter().map(|set| &**set).collect();
        out.put(handle::insert(Arc::new(workingset::merge(&sets, least)?))?);
        Ok(())
    })
}

/// Compares a set with what was touched afterwards: how many pages are in both, only foretold, only touched. Each may be NULL.
///
/// Errors: SOFTFAULT_ERROR_IMAGE, -EINVAL: as softfault_working_set_merge(). -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// both, only_foretold and only_touched may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_compare(
    foretold: *mut softfault_working_set,
    touched: *mut softfault_working_set,
    both: *mut u64,
    only_foretold: *mut u64,
    only_touched: *mut u64,
) -> c_int {
    entry(|| {
        let drift = workingset::compare(&*handle::get(foretold)?, &*handle::get(touched)?)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(both) }.put(drift.both);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(only_foretold) }.put(drift.foretold);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(only_touched) }.put(drift.touched);
        Ok(())
    })
}

/// Carries a set from the image that it is of to another, of the program's next build say: each group of four pages is looked for by its
/// digest. stayed, moved and lost (each may be NULL) get how many groups are where they were, elsewhere, and gone. The
/// handle is the caller's: softfault_working_set_free().
///
/// Errors: SOFTFAULT_ERROR_IMAGE: -EINVAL where the set is not of from; -EOPNOTSUPP where to has no content digest. -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// out, stayed, moved and lost may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_carry(
    set: *mut softfault_working_set,
    from: *mut softfault_image,
    to: *mut softfault_image,
    out: *mut *mut softfault_working_set,
    stayed: *mut u64,
    moved: *mut u64,
    lost: *mut u64,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let carried = workingset::carry(&*handle::get(set)?, handle::get(from)?.image(), handle::get(to)?.image())?;
        out.put(handle::insert(Arc::new(carried.set))?);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(stayed) }.put(carried.stayed);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(moved) }.put(carried.moved);
        // SAFETY: the caller's contract.
        unsafe { Out::optional(lost) }.put(carried.lost);
        Ok(())
    })
}

/// Writes why the set should be looked at before it is replayed over the image, as softfault_last_error(): it is most of the image, or
/// far larger than before (may be NULL), the set of before. An empty text: nothing is strange. full may be NULL.
///
/// Errors: SOFTFAULT_ERROR_IMAGE, -EINVAL where the set is of other contents. -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// buf has room for len bytes; full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_working_set_suspicion(
    set: *mut softfault_working_set,
    image: *mut softfault_image,
    before: *mut softfault_working_set,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let before = if before.is_null() { None } else { Some(handle::get(before)?) };
        let found = handle::get(set)?.suspicion(handle::get(image)?.image(), before.as_deref())?;
        let words = match found {
            None => String::new(),
            Some(Suspicion::MostOfTheImage { touched, stored }) => {
                format!("most of the image: {touched} of the {stored} pages that it stores")
            }
            Some(Suspicion::Grew { from, to }) => format!("grew from {from} to {to} pages"),
        };
        // SAFETY: the caller's contract.
        unsafe { give_text(&words, buf, len, full) }
    })
}
