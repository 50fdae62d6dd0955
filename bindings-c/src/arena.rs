//! `softfault_arena`: making one, mapping objects into it, and its bytes.
//!
//! # Context: control plane

use crate::args::{Out, arena_range, bytes, bytes_mut, known, path};
use crate::consts;
use crate::error::entry;
use crate::handle::{self, softfault_arena, softfault_object, softfault_runtime};
use crate::object::file_options;
use crate::options::{read, softfault_arena_options, softfault_object_options};
use softfault::{Arena, Object, Prot, Sharing};
use std::ffi::{c_char, c_int, c_void};

/// Opens a file, reserves an arena that is as long, and maps it whole and shared, from the arena's offset 0 on: what mmap(2)
/// does. options are the object's, and may be NULL: to be read; with SOFTFAULT_OBJECT_WRITABLE also to be written.
///
/// Both handles are the caller's: softfault_arena_free(), softfault_object_free(), in either order. softfault_arena_base() is the
/// address, softfault_object_len() the length.
///
/// Errors: as softfault_object_open(), softfault_arena_new() and softfault_arena_map(); nothing is made then.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// path is a string; options, if not NULL, has the size that it says; arena and object may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_map_file(
    runtime: *mut softfault_runtime,
    path: *const c_char,
    options: *const softfault_object_options,
    arena: *mut *mut softfault_arena,
    object: *mut *mut softfault_object,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let arena = unsafe { Out::new(arena, "arena") }?;
        // SAFETY: the caller's contract.
        let object = unsafe { Out::new(object, "object") }?;
        let runtime = handle::get(runtime)?;
        // SAFETY: the caller's contract.
        let path = unsafe { self::path(path) }?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        options.check()?;
        let mapped = runtime.map_object(file_options(&runtime, &options).open(path)?)?;
        let mapped_arena = handle::insert(mapped.arena().clone())?;
        let mapped_object = handle::insert(mapped.object().clone()).inspect_err(|_| _ = handle::free(mapped_arena))?;
        arena.put(mapped_arena);
        object.put(mapped_object);
        Ok(())
    })
}

/// Reserves an arena that is as long as the object, and maps it whole and shared, from the arena's offset 0 on; to be written, if
/// the handle permits that. The handle is the caller's: softfault_arena_free().
///
/// Errors: as softfault_arena_new() and softfault_arena_map(); nothing is made then.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// arena may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_map_object(
    runtime: *mut softfault_runtime,
    object: *mut softfault_object,
    arena: *mut *mut softfault_arena,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let arena = unsafe { Out::new(arena, "arena") }?;
        let runtime = handle::get(runtime)?;
        let object = handle::get(object)?;
        let mapped = runtime.map_object(object)?;
        arena.put(handle::insert(mapped.arena().clone())?);
        Ok(())
    })
}

/// Reserves len_bytes of address space, rounded up to 2 MiB. options may be NULL.
///
/// The handle is the caller's: softfault_arena_free(). The arena keeps its runtime, and what is mapped in it.
///
/// Arenas with SOFTFAULT_DELIVERY_IN_THREAD or _SEGV hold plain data: a system call that touches a page which is not
/// resident fails with EFAULT. Pin such ranges, use softfault_arena_read_at() and _write_at(), or ask for
/// SOFTFAULT_ARENA_KERNEL_ACCESS.
///
/// Errors: -EOPNOTSUPP: the delivery cannot be had. -EEXIST: something is mapped at the address asked for. -EINVAL, -E2BIG,
/// -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// options, if not NULL, has the size that it says; out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_new(
    runtime: *mut softfault_runtime,
    len_bytes: usize,
    options: *const softfault_arena_options,
    out: *mut *mut softfault_arena,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let runtime = handle::get(runtime)?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        let mut b = options.choice()?.apply(runtime.arena(len_bytes));
        if !options.address.is_null() {
            b = b.at(options.address as usize);
        }
        out.put(handle::insert(b.build()?)?);
        Ok(())
    })
}

/// Frees the handle. The arena ends with its last pin: everything in it is unmapped, and its addresses are used for other
/// things.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_arena_free(arena: *mut softfault_arena) -> c_int {
    entry(|| handle::free(arena))
}

/// Runs `f` on an arena and a range of it.
fn on_range(
    arena: *mut softfault_arena,
    offset: usize,
    len: usize,
    f: impl FnOnce(&Arena, std::ops::Range<usize>) -> softfault::Result<()>,
) -> c_int {
    entry(|| Ok(f(&handle::get(arena)?, arena_range(offset, len)?)?))
}

/// Maps by [`Arena::map`] or another call with its parameters.
fn map_by(
    call: impl FnOnce(&Arena, usize, &Object, u64, usize, Prot, Sharing) -> softfault::Result<()>,
    (arena, offset): (*mut softfault_arena, usize),
    (object, object_offset): (*mut softfault_object, u64),
    len: usize,
    (prot, sharing): (u32, u32),
) -> c_int {
    entry(|| {
        let arena = handle::get(arena)?;
        let object = handle::get(object)?;
        let prot = known(consts::prot(prot), "prot", prot)?;
        let sharing = known(consts::sharing(sharing), "sharing", sharing)?;
        Ok(call(&arena, offset, &object, object_offset, len, prot, sharing)?)
    })
}

/// As `on_range`, with a number as the result.
///
/// # Safety
/// `out` may be written, or is null.
unsafe fn count_in_range(
    arena: *mut softfault_arena,
    offset: usize,
    len: usize,
    out: *mut usize,
    f: impl FnOnce(&Arena, std::ops::Range<usize>) -> softfault::Result<usize>,
) -> c_int {
    entry(|| {
        let nr = f(&handle::get(arena)?, arena_range(offset, len)?)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(out) }.put(nr);
        Ok(())
    })
}

/// Writes the arena's first address. It is the arena's as long as the arena lives; what may be read or written there is
/// what is mapped.
///
/// Calls that change mappings (mprotect, mmap, munmap, mremap, madvise) are softfault's alone there. With
/// SOFTFAULT_DELIVERY_SEGV an mprotect(2) of the program's shows zeros where nothing is cached: softfault_stats_read() and
/// softfault_runtime_audit_threads() find it afterwards, and close what was opened. Use softfault_arena_protect().
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// base may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_base(arena: *mut softfault_arena, base: *mut *mut c_void) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(base, "base") }?;
        out.put(handle::get(arena)?.as_ptr().cast());
        Ok(())
    })
}

/// Writes the arena's length in bytes: what was asked for, rounded up to 2 MiB.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// len_bytes may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_len(arena: *mut softfault_arena, len_bytes: *mut usize) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(len_bytes, "len_bytes") }?;
        out.put(handle::get(arena)?.len());
        Ok(())
    })
}

/// Writes how the arena's faults arrive: SOFTFAULT_DELIVERY_*, never AUTO.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// mode may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_delivery(arena: *mut softfault_arena, mode: *mut u32) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(mode, "mode") }?;
        out.put(consts::delivery_number(handle::get(arena)?.delivery()));
        Ok(())
    })
}

/// Maps len bytes of object from object_offset on at offset. prot is SOFTFAULT_PROT_*, sharing SOFTFAULT_MAP_*.
///
/// Offsets are multiples of 4096; the length is rounded up to one. Bytes past the object's end read as zero in its last
/// page, whole pages past it raise SIGBUS. Extents can be handed to the kernel where offset and object_offset agree modulo
/// 2 MiB.
///
/// Errors: -EEXIST: something is mapped there. -EACCES: shared stores to an object that is not writable. -EINVAL, -EBADF,
/// -ENOMEM. Nothing is mapped then.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_arena_map(
    arena: *mut softfault_arena,
    offset: usize,
    object: *mut softfault_object,
    object_offset: u64,
    len: usize,
    prot: u32,
    sharing: u32,
) -> c_int {
    map_by(Arena::map, (arena, offset), (object, object_offset), len, (prot, sharing))
}

/// Maps as softfault_arena_map(), instead of whatever is mapped in the range, or of nothing: mmap(2) with MAP_FIXED. A thread
/// that touches the range meanwhile sees what was there or what is there now; it waits for the moments in between. System
/// calls on it may fail with EFAULT meanwhile. What was written to private mappings in the range is gone.
///
/// Errors: as softfault_arena_map(), but for -EEXIST; -EBUSY: a pin holds it; -EACCES: an exclusive object is mapped there,
/// or is to be. Nothing was changed then. -ENOMEM: the kernel had no room; nothing may be mapped in the range then.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_arena_replace(
    arena: *mut softfault_arena,
    offset: usize,
    object: *mut softfault_object,
    object_offset: u64,
    len: usize,
    prot: u32,
    sharing: u32,
) -> c_int {
    map_by(Arena::replace, (arena, offset), (object, object_offset), len, (prot, sharing))
}

/// Unmaps the range, splitting mappings at its ends. Touching it afterwards raises SIGSEGV. Waits for faults that are being
/// resolved in it.
///
/// Errors: -EBUSY: a pin holds it. -EINVAL, -EBADF, -ENOMEM. Nothing is unmapped then.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_arena_unmap(arena: *mut softfault_arena, offset: usize, len: usize) -> c_int {
    on_range(arena, offset, len, Arena::unmap)
}

/// Changes what the range permits (SOFTFAULT_PROT_*), splitting mappings at its ends.
///
/// Errors: -ENXIO: not wholly mapped. -EBUSY: pinned. -EACCES, -EINVAL, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_arena_protect(arena: *mut softfault_arena, offset: usize, len: usize, prot: u32) -> c_int {
    entry(|| {
        let prot = known(consts::prot(prot), "prot", prot)?;
        Ok(handle::get(arena)?.protect(arena_range(offset, len)?, prot)?)
    })
}

/// Says how the range will be used, or what is to be done with it now: SOFTFAULT_ADVICE_*, as madvise(2).
///
/// Errors: -ENXIO: not wholly mapped. -EBUSY and -EACCES as softfault_arena_zap(), for DONTNEED and COLD.
/// SOFTFAULT_ERROR_FAULT naming the first page that cannot be populated. -EINVAL, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_arena_advise(arena: *mut softfault_arena, offset: usize, len: usize, advice: u32) -> c_int {
    entry(|| {
        let advice = known(consts::advice(advice), "advice", advice)?;
        Ok(handle::get(arena)?.advise(arena_range(offset, len)?, advice)?)
    })
}

/// Makes the range resident, as touching each page (SOFTFAULT_ACCESS_*) would. It may be evicted again at any time.
///
/// Errors: SOFTFAULT_ERROR_FAULT naming the first page that cannot be had; those before it are resident. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_arena_fault_in(
    arena: *mut softfault_arena,
    offset: usize,
    len: usize,
    access: u32,
) -> c_int {
    entry(|| {
        let access = known(consts::access(access), "access", access)?;
        Ok(handle::get(arena)?.fault_in(arena_range(offset, len)?, access)?)
    })
}

/// Drops the page-table entries of shared mappings in the range; the pages stay cached.
///
/// Errors: -EBUSY: pinned. -EACCES: a private mapping lies there, whose written pages would be lost. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_arena_zap(arena: *mut softfault_arena, offset: usize, len: usize) -> c_int {
    on_range(arena, offset, len, Arena::zap)
}

/// Hands every fully cached extent (2 MiB) of the range to the kernel; promoted (may be NULL) gets how many went.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// promoted may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_promote(
    arena: *mut softfault_arena,
    offset: usize,
    len: usize,
    promoted: *mut usize,
) -> c_int {
    // SAFETY: the caller's contract.
    unsafe { count_in_range(arena, offset, len, promoted, Arena::promote) }
}

/// Takes the range's extents back from the kernel; demoted (may be NULL) gets how many came.
///
/// Errors: -ENOMEM: the process has no mapping left to split. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// demoted may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_demote(
    arena: *mut softfault_arena,
    offset: usize,
    len: usize,
    demoted: *mut usize,
) -> c_int {
    // SAFETY: the caller's contract.
    unsafe { count_in_range(arena, offset, len, demoted, Arena::demote) }
}

/// Writes how many of the arena's extents are the kernel's now.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// nr may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_native_extents(arena: *mut softfault_arena, nr: *mut usize) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(nr, "nr") }?;
        out.put(handle::get(arena)?.native_extents());
        Ok(())
    })
}

/// Reads mapped bytes without a fault of the caller's: errors are results instead of signals. buf may lie in an arena.
///
/// Errors: -ENXIO: not wholly mapped. -EACCES: the mapping does not permit loads. SOFTFAULT_ERROR_FAULT. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// buf has room for len bytes, which nobody else uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_read_at(
    arena: *mut softfault_arena,
    offset: usize,
    buf: *mut c_void,
    len: usize,
) -> c_int {
    entry(|| {
        let arena = handle::get(arena)?;
        // SAFETY: the caller's contract.
        let buf = unsafe { bytes_mut(buf, len) }?;
        Ok(arena.read_at(offset, buf)?)
    })
}

/// Writes mapped bytes without a fault of the caller's. buf may lie in an arena.
///
/// Errors: -ENXIO, -EACCES: the mapping does not permit stores. SOFTFAULT_ERROR_FAULT. -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// len bytes of buf may be read, and nobody changes them meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_write_at(
    arena: *mut softfault_arena,
    offset: usize,
    buf: *const c_void,
    len: usize,
) -> c_int {
    entry(|| {
        let arena = handle::get(arena)?;
        // SAFETY: the caller's contract.
        let buf = unsafe { bytes(buf, len) }?;
        Ok(arena.write_at(offset, buf)?)
    })
}
