//! Ranges that are unmapped for the program, and that the kernel has not let go of yet.
//!
//! To unmap a part of a mapping the kernel may need a record more than the process is allowed (`vm.max_map_count`). For
//! the program the range is unmapped all the same: no vma is found there, so that a touch raises SIGSEGV. But the object's
//! memory stays visible there to the kernel, and must not become another object's: so the object stays until the range
//! has been let go of, which every later call that maps or unmaps in the arena tries again.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "unmaps and hides ranges of the arena")]

use super::set::Owed;
use super::state::ArenaInner;
use super::vma::VmaEntry;
use super::{extents, room};
use crate::error::{Error, Result};
use softfault_platform::sys::{Errno, mem};
use softfault_platform::vmatree::Trap;
use std::ops::Range;
use std::sync::Arc;

/// Has the kernel let go of a part of an entry, now or later. The caller has the lock of the arena's vmas.
pub(super) fn unmap_or_owe(arena: &ArenaInner, v: &VmaEntry, range: &Range<usize>) {
    if unmap_kernel(arena, range).is_ok() {
        return;
    }
    if arena.trap == Trap::Segv && !extents::has_user_pins(arena, &v.range) {
        // Under userfaultfd the old mapping is trapped, so a touch comes to us and finds no vma. Under protection the pages must
        // be hidden for that. They are hidden with the rest of their mapping, because that splits nothing, and the rest
        // comes back by touch. Where the program holds a pin on the rest, the pin is worth more than the signal that
        // a touch of what was unmapped should raise.
        let (addr, len) = (arena.address(v.range.start), v.range.len());
        // SAFETY: the arena's own range; what is hidden comes back as its vma says.
        let _ = unsafe { mem::mprotect(addr, len, mem::PROT_NONE) };
        extents::forget_mapped(arena, &v.range);
    }
    arena.owed().push(Owed { range: range.clone(), _object: Arc::clone(&v.object) });
}

/// Tries again what is owed. The caller has the lock of the arena's vmas.
///
/// # Errors
/// [`Error::Exhausted`]: some of `range` is owed yet.
pub(super) fn settle(arena: &ArenaInner, op: &'static str, range: &Range<usize>) -> Result<()> {
    let mut owed = std::mem::take(&mut *arena.owed());
    owed.retain(|o| unmap_kernel(arena, &o.range).is_err());
    let overlaps = owed.iter().any(|o| o.range.start < range.end && range.start < o.range.end);
    arena.owed().extend(owed);
    if overlaps {
        let what = "mappings (vm.max_map_count): the kernel has not let go of what was unmapped there";
        return Err(Error::Exhausted { op, what });
    }
    Ok(())
}

/// Puts the bare reservation back over a range that no vma covers any more.
///
/// # Errors
/// The kernel's, which then goes on mapping the object there.
pub(super) fn unmap_kernel(arena: &ArenaInner, range: &Range<usize>) -> std::result::Result<(), Errno> {
    let flags = mem::MAP_PRIVATE | mem::MAP_ANONYMOUS | mem::MAP_NORESERVE | mem::MAP_FIXED;
    // SAFETY: the arena's own range; its vmas are unpublished and drained.
    room::with_room(arena, || unsafe {
        mem::mmap(arena.address(range.start), range.len(), mem::PROT_NONE, flags, -1, 0)
    })?;
    extents::forget_mapped(arena, range);
    extents::forget_unknown(arena, range);
    Ok(())
}

/// Ends what is owed when the arena ends: if its address space is `gone`, nothing maps the objects any more; if not, the kernel
/// still does, and they are kept for ever.
pub(super) fn end_owed(arena: &ArenaInner, gone: bool) {
    let owed = std::mem::take(&mut *arena.owed());
    if !gone {
        std::mem::forget(owed);
    }
}
