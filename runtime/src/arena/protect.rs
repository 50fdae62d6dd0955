//! Changing what a range permits: everything is as it was if it fails.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "protects the arena's own address range")]

use super::state::ArenaInner;
use super::vma::{VmaEntry, prot_bits};
use super::{change, extents, publish, room};
use crate::error::{Error, Result, system};
use crate::types::{Prot, Sharing};
use softfault_mm::failpoint;
use softfault_platform::sys::{Errno, mem};
use softfault_platform::vmatree::Trap;
use std::ops::Range;

/// Changes what a range permits.
///
/// # Errors
/// As [`Arena::protect`](crate::Arena::protect), whose range was checked.
///
/// # Context: control plane
pub(super) fn protect(arena: &ArenaInner, range: &Range<usize>, prot: Prot) -> Result<()> {
    let op = "Arena::protect";
    let mut vmas = arena.vmas_thawed(op)?;
    vmas.check_pins(op, range)?;
    let hit = vmas.covering(op, range)?;
    if prot == Prot::ReadWrite && hit.iter().any(|v| v.sharing == Sharing::Shared && !v.may_write) {
        return Err(Error::Denied { op, what: "shared stores need an object that was made writable" });
    }
    if hit.iter().any(|v| v.object.is_exclusive()) {
        return Err(Error::Denied { op, what: "an exclusive object's protection is what it was mapped with" });
    }
    let swap = change::change_inside(arena, op, hit, range, |v| v.prot = prot)?;
    failpoint!(PROTECT_PUBLISHED);
    if let Err(errno) = protect_kernel(arena, range, prot) {
        unprotect_kernel(arena, &swap.old, range);
        publish::restore(arena, swap);
        return Err(system(op, "mprotect")(errno));
    }
    publish::retire(arena, &mut vmas, swap);
    Ok(())
}

fn protect_kernel(arena: &ArenaInner, range: &Range<usize>, prot: Prot) -> std::result::Result<(), Errno> {
    // By protection, what is exposed is hidden again and comes back with the next touch, as the vma says.
    let bits = if arena.trap == Trap::Segv { mem::PROT_NONE } else { prot_bits(prot) };
    // SAFETY: the arena's own range, wholly mapped (the caller checked).
    let r = room::with_room(arena, || unsafe { mem::mprotect(arena.address(range.start), range.len(), bits) });
    if arena.trap == Trap::Segv && r.is_ok() {
        extents::forget_mapped(arena, range);
    }
    r
}

/// Gives a range back the protection that its entries have. The kernel may have got through a part of the range: that
/// part lies between borders that it has made already, and the rest is as it was.
pub(super) fn unprotect_kernel(arena: &ArenaInner, old: &[VmaEntry], range: &Range<usize>) {
    for v in old.iter().filter(|_| arena.trap != Trap::Segv) {
        let piece = v.range.start.max(range.start)..v.range.end.min(range.end);
        // SAFETY: as above.
        let _ = unsafe { mem::mprotect(arena.address(piece.start), piece.len(), prot_bits(v.prot)) };
    }
}
