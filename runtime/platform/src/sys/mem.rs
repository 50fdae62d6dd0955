//! Address space: mmap(2), mprotect(2), madvise(2), memfd_create(2), fallocate(2).
//!
//! # Context: handler; what maps for good: control plane

use super::syscall::{Errno, syscall6};
use core::ffi::CStr;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// No access.
pub const PROT_NONE: i32 = libc::PROT_NONE;
/// Loads allowed.
pub const PROT_READ: i32 = libc::PROT_READ;
/// Stores allowed.
pub const PROT_WRITE: i32 = libc::PROT_WRITE;
/// Stores reach the object.
pub const MAP_SHARED: i32 = libc::MAP_SHARED;
/// Stores stay in this mapping.
pub const MAP_PRIVATE: i32 = libc::MAP_PRIVATE;
/// No object.
pub const MAP_ANONYMOUS: i32 = libc::MAP_ANONYMOUS;
/// At exactly this address, replacing what is there.
pub const MAP_FIXED: i32 = libc::MAP_FIXED;
/// At exactly this address, unless something is there: `EEXIST` then. Since Linux 4.17.
pub const MAP_FIXED_NOREPLACE: i32 = libc::MAP_FIXED_NOREPLACE;
/// No commit charge: sizes here are address space, not memory.
pub const MAP_NORESERVE: i32 = libc::MAP_NORESERVE;
/// Drop the range's page-table entries.
pub const MADV_DONTNEED: i32 = libc::MADV_DONTNEED;
/// As `MADV_DONTNEED`, also on locked ranges (under `mlockall` the plain advice is `EINVAL`). Since Linux 5.18.
pub const MADV_DONTNEED_LOCKED: i32 = 24;
/// Punch a hole into what a shared mapping maps.
pub const MADV_REMOVE: i32 = libc::MADV_REMOVE;
/// The range does not exist in a forked child.
pub const MADV_DONTFORK: i32 = libc::MADV_DONTFORK;
/// The range reads as zero in a forked child.
pub const MADV_WIPEONFORK: i32 = libc::MADV_WIPEONFORK;
/// Leave the range out of core dumps.
pub const MADV_DONTDUMP: i32 = libc::MADV_DONTDUMP;
/// Never use huge pages in the range.
pub const MADV_NOHUGEPAGE: i32 = libc::MADV_NOHUGEPAGE;
/// See madvise(2): huge pages where the system has any to give.
pub const MADV_HUGEPAGE: i32 = libc::MADV_HUGEPAGE;
/// Make each whole 2 MiB of the range a huge page, now, whatever the system's settings but `deny`. Since Linux 6.1.
pub const MADV_COLLAPSE: i32 = 25;
/// Fault the range in for reading.
pub const MADV_POPULATE_READ: i32 = 22;
/// Fault the range in for writing.
pub const MADV_POPULATE_WRITE: i32 = 23;

/// Copies `len_bytes` bytes that other threads, mappings or the kernel may be writing or reading meanwhile.
///
/// One string instruction, opaque to the compiler: no reference is made and nothing is assumed about the bytes, so a
/// concurrent store gives torn bytes and nothing worse.
///
/// # Context: handler
///
/// # Safety
/// `src..src + len_bytes` is mapped readable, `dst..dst + len_bytes` writable and not borrowed by anyone else.
pub unsafe fn copy_racy(dst: *mut u8, src: *const u8, len_bytes: usize) {
    // SAFETY: the caller's contract; the direction flag is clear by the x86-64 ABI.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rdi") dst => _, inout("rsi") src => _, inout("rcx") len_bytes => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Returns whether `len_bytes` bytes, which others may be storing to meanwhile, are all zero. Each is looked at once.
///
/// # Context: handler
///
/// # Safety
/// `src..src + len_bytes` is mapped readable.
#[must_use]
pub unsafe fn is_zero_racy(src: *const u8, len_bytes: usize) -> bool {
    let end = src as usize + len_bytes;
    let mut at = src.cast_mut();
    while (at as usize) < end {
        let is_word = (at as usize).is_multiple_of(8) && end - at as usize >= 8;
        let is_zero = if is_word {
            // SAFETY: eight aligned readable bytes (checked, and the contract); the loads are atomic.
            unsafe { AtomicU64::from_ptr(at.cast()) }.load(Ordering::Relaxed) == 0
        } else {
            // SAFETY: one readable byte (contract).
            unsafe { AtomicU8::from_ptr(at) }.load(Ordering::Relaxed) == 0
        };
        if !is_zero {
            return false;
        }
        at = at.wrapping_add(if is_word { 8 } else { 1 });
    }
    true
}

/// Maps `len_bytes` bytes; see mmap(2).
///
/// # Context: handler
///
/// # Errors
/// `ENOMEM` (address space or `vm.max_map_count` exhausted), `EINVAL`, `EACCES`, `EPERM`.
///
/// # Safety
/// With `MAP_FIXED` the caller owns `addr..addr+len_bytes`, and no reference into it is alive.
pub unsafe fn mmap(addr: usize, len_bytes: usize, prot: i32, flags: i32, fd: i32, offset: u64) -> Result<usize, Errno> {
    let args = [
        addr,
        len_bytes,
        prot.cast_unsigned() as usize,
        flags.cast_unsigned() as usize,
        fd as isize as usize,
        offset as usize,
    ];
    // SAFETY: the caller's contract is exactly mmap's.
    unsafe { syscall6(libc::SYS_mmap, args) }
}

/// Reserves `len_bytes` bytes of address space without access, at an address that is a multiple of `align_bytes`.
///
/// # Context: control plane
///
/// # Errors
/// As [`mmap`].
pub fn reserve(len_bytes: usize, align_bytes: usize) -> Result<usize, Errno> {
    let padded = len_bytes.checked_add(align_bytes).ok_or(Errno::ENOMEM)?;
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel chooses a free range; nothing that exists changes.
    let raw = unsafe { mmap(0, padded, PROT_NONE, flags, -1, 0) }?;
    let base = raw.next_multiple_of(align_bytes);
    // The tail first: while it fails, the whole range is as it was mapped.
    let (end, raw_end) = (base + len_bytes, raw + padded);
    let trim = |from: usize, to: usize| {
        if from == to {
            return Ok(());
        }
        // SAFETY: a part of the range mapped above, which nobody has seen.
        unsafe { munmap(from, to - from) }
    };
    let trimmed = trim(end, raw_end).inspect_err(|_| _ = trim(raw, raw_end));
    trimmed.and_then(|()| trim(raw, base).inspect_err(|_| _ = trim(raw, end)))?;
    Ok(base)
}

/// Reserves `len_bytes` bytes of address space without access at exactly `addr`, if nothing is mapped in the range.
///
/// # Context: control plane
///
/// # Errors
/// `EEXIST`: something is; as [`mmap`].
pub fn reserve_at(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    // SAFETY: the flag has the kernel refuse what would change a mapping that exists; before Linux 4.17 it is a hint.
    let at = unsafe { mmap(addr, len_bytes, PROT_NONE, flags, -1, 0) }?;
    if at == addr {
        return Ok(());
    }
    // SAFETY: mapped in the line above, which nobody has seen.
    unsafe { munmap(at, len_bytes) }?;
    Err(Errno::EEXIST)
}

/// Maps `len_bytes` bytes of zeroed private memory that costs nothing until it is touched, and is in no core dump. For what is
/// small, or used whole: see [`crate::sparse`].
///
/// # Context: handler
///
/// # Errors
/// As [`mmap`].
pub fn map_zeroed(len_bytes: usize) -> Result<usize, Errno> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel chooses a free range; nothing that exists changes.
    let base = unsafe { mmap(0, len_bytes, PROT_READ | PROT_WRITE, flags, -1, 0) }?;
    leave_out_of_dumps(base, len_bytes);
    Ok(base)
}

/// Leaves a range out of core dumps. Advice may be refused.
///
/// # Context: control plane
pub fn leave_out_of_dumps(addr: usize, len_bytes: usize) {
    // SAFETY: the advice changes no byte and no access.
    let _ = unsafe { madvise(addr, len_bytes, MADV_DONTDUMP) };
}

/// Returns whether what the process maps from now on is populated at once, since it is locked: mlockall(2), `MCL_FUTURE`
/// without `MCL_ONFAULT`. Found out by a page of its own.
///
/// # Context: control plane
///
/// # Errors
/// As [`mmap`]: `EAGAIN` past `RLIMIT_MEMLOCK`.
pub fn is_populated_at_once() -> Result<bool, Errno> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: as in `map_zeroed`.
    let page = unsafe { mmap(0, 4096, PROT_READ | PROT_WRITE, flags, -1, 0) }?;
    let is_there = is_resident(page);
    // SAFETY: the page mapped above, which nobody has seen.
    unsafe { release(page, 4096) };
    Ok(is_there)
}

/// Unmaps a range; see munmap(2).
///
/// # Context: handler
///
/// # Errors
/// `EINVAL`, `ENOMEM` (a split would pass `vm.max_map_count`).
///
/// # Safety
/// The caller owns the range and nothing refers to it.
pub unsafe fn munmap(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    // SAFETY: the caller's contract is exactly munmap's.
    unsafe { syscall6(libc::SYS_munmap, [addr, len_bytes, 0, 0, 0, 0]) }.map(drop)
}

/// Gives a whole mapping back, when there is nobody to tell that it could not be: for that the kernel may need memory that it
/// has not at the moment, so it is asked again. `false`: in vain; it stays.
///
/// # Context: handler
///
/// # Safety
/// As [`munmap`].
pub unsafe fn release(addr: usize, len_bytes: usize) -> bool {
    // SAFETY: the caller's contract.
    (0..4).any(|_| unsafe { munmap(addr, len_bytes) }.is_ok())
}

/// Changes a range's protection; see mprotect(2).
///
/// # Context: handler
///
/// # Errors
/// `ENOMEM` (a split would pass `vm.max_map_count`, or part is unmapped), `EACCES`.
///
/// # Safety
/// The caller owns the range; no safe reference relies on an access that is taken away.
pub unsafe fn mprotect(addr: usize, len_bytes: usize, prot: i32) -> Result<(), Errno> {
    // SAFETY: the caller's contract is exactly mprotect's.
    unsafe { syscall6(libc::SYS_mprotect, [addr, len_bytes, prot.cast_unsigned() as usize, 0, 0, 0]) }.map(drop)
}

/// Gives advice about a range; see madvise(2).
///
/// # Context: handler
///
/// # Errors
/// The kernel's, by advice.
///
/// # Safety
/// The caller owns the range; advice that drops pages (`MADV_DONTNEED` on private memory) drops what nobody needs.
pub unsafe fn madvise(addr: usize, len_bytes: usize, advice: i32) -> Result<(), Errno> {
    // SAFETY: the caller's contract is exactly madvise's.
    unsafe { syscall6(libc::SYS_madvise, [addr, len_bytes, advice.cast_unsigned() as usize, 0, 0, 0]) }.map(drop)
}

/// Drops the page-table entries of a range, whatever they point at, in memory or swapped out, and also where the range is
/// locked in memory (before Linux 5.18 that cannot be): of private memory the pages are gone, of shared mappings they stay
/// in their object.
///
/// # Context: handler
///
/// # Errors
/// The kernel's; a part of the range may be gone then.
///
/// # Safety
/// The caller owns the range, and nobody needs its bytes.
pub unsafe fn drop_pages(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    // SAFETY: the caller's contract.
    match unsafe { madvise(addr, len_bytes, MADV_DONTNEED) } {
        // SAFETY: as above; the range is locked.
        Err(Errno::EINVAL) => unsafe { madvise(addr, len_bytes, MADV_DONTNEED_LOCKED) },
        r => r,
    }
}

/// Returns whether a page lies at `addr`, a multiple of the page, of private anonymous memory; see mincore(2). One that was
/// swapped out may count as not there.
///
/// # Context: handler
#[must_use]
pub fn is_resident(addr: usize) -> bool {
    let mut page = 0u8;
    // SAFETY: mincore writes one byte a page, for one page, to a byte that is exclusively borrowed; it touches no page.
    let r = unsafe { syscall6(libc::SYS_mincore, [addr, 4096, core::ptr::from_mut(&mut page) as usize, 0, 0, 0]) };
    r.is_ok() && page & 1 != 0
}

/// Returns how many bytes of private anonymous memory lie in `addr..addr + len_bytes`, both multiples of the page; see
/// mincore(2).
///
/// # Context: control plane
#[must_use]
pub fn resident_bytes(addr: usize, len_bytes: usize) -> u64 {
    /// What one call tells of, eight pages a word.
    const CALL_PAGES: usize = 8 * 512;
    let mut nr = 0;
    for at in (0..len_bytes).step_by(CALL_PAGES * 4096) {
        let mut pages = [0u64; CALL_PAGES / 8];
        let len = (len_bytes - at).min(CALL_PAGES * 4096);
        // SAFETY: mincore writes one byte a page, for as many pages as the buffer has room for; it touches no page.
        let r = unsafe { syscall6(libc::SYS_mincore, [addr + at, len, pages.as_mut_ptr() as usize, 0, 0, 0]) };
        if r.is_ok() {
            // The other bits of a byte are reserved.
            nr += pages.iter().map(|eight| u64::from((eight & 0x0101_0101_0101_0101).count_ones())).sum::<u64>();
        }
    }
    nr * 4096
}

/// Names the calling process to calls that take a process's descriptor, since Linux 6.14.
const PIDFD_SELF: isize = -10_000;

/// Drops the page-table entries of several ranges with one flush of the other processors' TLBs, where the kernel can (Linux
/// 6.16); one by one elsewhere. Pages of shared mappings stay in their object. `false`: one could not be dropped.
///
/// # Context: handler
///
/// # Safety
/// The ranges are the caller's, of shared mappings.
pub unsafe fn zap_ranges(ranges: &[softfault_mm::ops::Zap]) -> bool {
    // A `Zap` is a `struct iovec`: address and length, `repr(C)`.
    let args =
        [PIDFD_SELF as usize, ranges.as_ptr() as usize, ranges.len(), MADV_DONTNEED.cast_unsigned() as usize, 0, 0];
    let wanted: usize = ranges.iter().map(|r| r.len_bytes).sum();
    // SAFETY: the slice is borrowed for the call; the caller owns what is dropped.
    if unsafe { syscall6(libc::SYS_process_madvise, args) } == Ok(wanted) {
        return true;
    }
    // SAFETY: the caller owns what is dropped.
    ranges.iter().all(|r| unsafe { drop_pages(r.addr, r.len_bytes) }.is_ok())
}

/// Creates a memfd, close-on-exec, sealable; see memfd_create(2).
///
/// # Context: control plane
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn memfd_create(name: &CStr) -> Result<i32, Errno> {
    let flags = (libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) as usize;
    // SAFETY: the name is a valid C string for the length of the call; a new descriptor harms nobody.
    let fd = unsafe { syscall6(libc::SYS_memfd_create, [name.as_ptr() as usize, flags, 0, 0, 0, 0]) }?;
    Ok(i32::try_from(fd).unwrap_or(i32::MAX))
}

/// Seals a memfd's size: `F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL`; see fcntl(2).
///
/// # Context: control plane
///
/// # Errors
/// `EPERM` when it is sealed against sealing.
pub fn seal_size(fd: i32) -> Result<(), Errno> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    let args = [fd as usize, libc::F_ADD_SEALS as usize, seals as usize, 0, 0, 0];
    // SAFETY: touches no memory of ours.
    unsafe { syscall6(libc::SYS_fcntl, args) }.map(drop)
}

/// Returns whether what `fd` names is a memfd that nobody can write or shrink any more; see fcntl(2), `F_GET_SEALS`.
///
/// # Context: handler
#[must_use]
pub fn is_sealed_for_good(fd: i32) -> bool {
    let wanted = (libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK) as usize;
    // SAFETY: touches no memory of ours.
    let seals = unsafe { syscall6(libc::SYS_fcntl, [fd as usize, libc::F_GET_SEALS as usize, 0, 0, 0, 0]) };
    seals.is_ok_and(|seals| seals & wanted == wanted)
}

/// Gives `offset..offset+len_bytes` of a memfd back to the kernel: unmapped everywhere, zero when next allocated.
///
/// # Context: handler
///
/// # Errors
/// `EPERM` on a write-sealed memfd, `EINTR`.
///
/// # Safety
/// The caller owns the range's folios (evicting, or filling): no one relies on their bytes.
pub unsafe fn punch_hole(fd: i32, offset: u64, len_bytes: u64) -> Result<(), Errno> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the caller owns the bytes that go away.
    unsafe { syscall6(libc::SYS_fallocate, [fd as usize, mode as usize, offset as usize, len_bytes as usize, 0, 0]) }
        .map(drop)
}

/// Gives the pages of a shared mapping of a memfd back to the kernel, as [`punch_hole`] does, without naming a descriptor
/// of it, which may be another file's by now; see madvise(2), `MADV_REMOVE`.
///
/// # Context: handler
///
/// # Errors
/// `EINVAL` where the range is locked in memory; `ENOMEM` in a forked child, which has no such mapping; `EINTR`.
///
/// # Safety
/// As for [`punch_hole`].
pub unsafe fn remove_pages(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    // SAFETY: the caller owns the bytes that go away.
    unsafe { madvise(addr, len_bytes, MADV_REMOVE) }
}

/// Allocates zeroed pages for `offset..offset+len_bytes` of a memfd; pages that exist keep their bytes.
///
/// # Context: handler
///
/// # Errors
/// `ENOSPC`, `ENOMEM`, `EINTR`.
pub fn allocate(fd: i32, offset: u64, len_bytes: u64) -> Result<(), Errno> {
    // SAFETY: allocation changes no byte that anybody can have read otherwise: holes read as zeros.
    unsafe { syscall6(libc::SYS_fallocate, [fd as usize, 0, offset as usize, len_bytes as usize, 0, 0]) }.map(drop)
}
