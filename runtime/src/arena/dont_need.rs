//! Forgetting what a range has. Linux: `madvise(2)`, `MADV_DONTNEED`.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "drops private copies of the arena's own range")]

use super::state::ArenaInner;
use super::{extents, zap};
use crate::error::{Error, Result, system};
use softfault_platform::sys::mem;
use softfault_platform::vmatree::Trap;
use std::ops::Range;

/// Linux: `MADV_DONTNEED`. Of private mappings what was written to them goes, and the next touch shows the object.
pub(super) fn dont_need(arena: &ArenaInner, op: &'static str, range: &Range<usize>) -> Result<()> {
    let vmas = arena.vmas();
    vmas.check_pins(op, range)?;
    let hit = vmas.overlapping(range);
    if hit.iter().any(|v| v.object.is_exclusive()) {
        return Err(Error::Denied { op, what: "an exclusive object's pages are nowhere else" });
    }
    for v in &hit {
        let piece = v.range.start.max(range.start)..v.range.end.min(range.end);
        let dropped = if v.is_private() { drop_copies(arena, &piece) } else { zap::zap_kernel(arena, v, &piece) };
        dropped.map_err(system(op, "madvise"))?;
    }
    Ok(())
}

/// Drops a private mapping's own pages, and its entries of the cache's.
///
/// The hints go first: one that is set for a page which is not mapped says "maybe", one that is missing for a page which
/// is would be wrong. By protection they say what is exposed, which stays so: below it are the cache's pages.
fn drop_copies(arena: &ArenaInner, range: &Range<usize>) -> std::result::Result<(), softfault_platform::sys::Errno> {
    if arena.trap != Trap::Segv {
        extents::forget_mapped(arena, range);
    }
    // SAFETY: the arena's own range; its private copies are what the caller gives up.
    unsafe { mem::drop_pages(arena.address(range.start), range.len()) }
}
