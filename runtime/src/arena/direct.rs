//! Mapping a file itself in place of the object whose pages are the file's: the kernel's page cache serves the range, with no fault
//! of ours.
//!
//! What changes sides is seen by everybody, so nothing that a program has stored may be lost. That a range has no page of its own is
//! true only while nobody can store to it:
//! ```text
//! this                                        a thread
//! new record: the file's; old ones drained    (no install is in progress, none begins)
//! mprotect(READ)                              a store: SIGSEGV, waits (`trap::changing`)
//! is any page anonymous, or swapped?          (without mprotect: a store here is in a page that nobody looks at again)
//! no:  mmap(MAP_FIXED)
//! yes: the old record, the old protection
//! the change is over                          stores
//! ```
//! A range with a private page stays as it is, for ever. The way back is none either: what was stored since is the kernel's.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "maps files over the arena's own address range")]

use super::protect::unprotect_kernel;
use super::publish::{self, Swap};
use super::state::ArenaInner;
use super::vma::{VmaEntry, prot_bits};
use super::{change, extents};
use crate::error::Result;
use softfault_mm::failpoint;
use softfault_mm::page::PAGE_SHIFT;
use softfault_platform::sys::fd::Descriptor;
use softfault_platform::sys::{mem, pagemap};
use softfault_platform::vmatree::Trap;
use std::ops::Range;

/// Which bytes of which file, and which bytes of which object they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Same {
    pub(crate) object: u32,
    pub(crate) object_offset: u64,
    pub(crate) file: Descriptor,
    pub(crate) file_offset: u64,
}

/// Maps a file over a range that one private mapping has, of the bytes that are said to be the same. `false`: it is left as it is,
/// because it is pinned, or something else is mapped there by now, or a page of it is the mapping's own; or the kernel could not.
///
/// # Errors
/// [`Error::Exhausted`](crate::Error::Exhausted), and [`Error::Denied`](crate::Error::Denied) in the closure of a cut: nothing was
/// changed.
///
/// # Context: control plane
pub(crate) fn map(arena: &ArenaInner, op: &'static str, range: &Range<usize>, same: &Same) -> Result<bool> {
    let mut vmas = arena.vmas_thawed(op)?;
    if arena.trap != Trap::Uffd || vmas.check_pins(op, range).is_err() {
        return Ok(false);
    }
    let hit = vmas.overlapping(range);
    let is_it = |v: &VmaEntry| {
        let covers = v.range.start <= range.start && range.end <= v.range.end;
        covers
            && v.is_private()
            && !v.is_direct
            && v.delegation.is_none()
            && v.is_of(same.object)
            && v.pgoff_at(range.start) == same.object_offset >> PAGE_SHIFT
    };
    let [entry] = &hit[..] else { return Ok(false) };
    if !is_it(entry) {
        return Ok(false);
    }
    let prot = prot_bits(entry.prot);
    extents::demote_entry(arena, entry, range)?;
    let swap = change::change_inside(arena, op, hit, range, |v| v.is_direct = true)?;
    if exchange(arena, &swap, range, prot, same) {
        publish::retire(arena, &mut vmas, swap);
        return Ok(true);
    }
    unprotect_kernel(arena, &swap.old, range);
    publish::restore(arena, swap);
    Ok(false)
}

/// Does it, if no page of the range is the mapping's own. `false`: it is what it was, but for its protection. Allocates nothing, since
/// who waits for the end of the change may have the allocator's lock.
fn exchange(arena: &ArenaInner, swap: &Swap, range: &Range<usize>, prot: i32, same: &Same) -> bool {
    // What was promoted before the new records were published; nothing is from here on.
    if swap.old.iter().any(|v| extents::demote_entry(arena, v, range).is_err()) {
        return false;
    }
    let (addr, len) = (arena.address(range.start), range.len());
    // SAFETY: the arena's own range. Stores are held from here on.
    if unsafe { mem::mprotect(addr, len, prot & mem::PROT_READ) }.is_err() {
        return false;
    }
    if pagemap::has_private(addr, len) != Ok(false) {
        return false;
    }
    failpoint!(DIRECT_LOOKED);
    let Ok(fd) = same.file.check() else { return false };
    let flags = mem::MAP_FIXED | mem::MAP_PRIVATE | mem::MAP_NORESERVE;
    // SAFETY: the arena's own range, of which no page is anybody's own, and none becomes it while stores are held.
    if unsafe { mem::mmap(addr, len, prot, flags, fd, same.file_offset) }.is_err() {
        return false;
    }
    for advice in [mem::MADV_DONTFORK, mem::MADV_DONTDUMP] {
        // SAFETY: mapped above; the advice concerns children and core dumps.
        let _ = unsafe { mem::madvise(addr, len, advice) };
    }
    true
}
