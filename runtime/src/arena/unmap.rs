//! Unmapping: everything is as it was if it fails.
//!
//! # Context: control plane

use super::publish::{self, Successors, Swap};
use super::set::VmaSet;
use super::state::ArenaInner;
use super::vma::VmaEntry;
use super::{exclusive, extents, owed, ready, zap};
use crate::error::{Error, Result};
use std::ops::Range;

/// Unmaps a range.
///
/// # Errors
/// As [`Arena::unmap`](crate::Arena::unmap), whose range was checked.
///
/// # Context: control plane
pub(super) fn unmap(arena: &ArenaInner, range: &Range<usize>) -> Result<()> {
    let op = "Arena::unmap";
    wait_for_reads(arena, range);
    let vmas = &mut *arena.vmas_thawed(op)?;
    vmas.check_pins(op, range)?;
    let _ = owed::settle(arena, op, range);
    let hit = vmas.overlapping(range);
    if hit.is_empty() {
        return Ok(());
    }
    let is_cut = |v: &VmaEntry| v.range.start < range.start || range.end < v.range.end;
    if hit.iter().any(|v| v.object.is_exclusive() && is_cut(v)) {
        return Err(Error::Denied { op, what: "an exclusive object is unmapped whole" });
    }
    let stay = publish::cut_around(arena, op, &hit, range)?;
    let demote = |hit: &[VmaEntry]| hit.iter().try_for_each(|v| extents::demote_entry(arena, v, range).map(drop));
    demote(&hit)?;
    let swap = publish::replace(arena, op, hit, stay, range)?;
    // Nobody can promote or install in the range any more: its own vmas are gone, the neighbours are narrower. What was
    // promoted since the first look is taken back here.
    if let Err(error) = demote(&swap.old) {
        publish::restore(arena, swap);
        return Err(error);
    }
    let left = take_out(arena, vmas, swap, range);
    publish::join(arena, range);
    left
}

/// Waits for reads, before anything is locked, that would be waited for under the lock of the mappings.
pub(super) fn wait_for_reads(arena: &ArenaInner, range: &Range<usize>) {
    let seen = arena.vmas().overlapping(range);
    ready::wait_for_reads(&seen);
}

/// What was unpublished goes: its stores are noted, its records end, the kernel lets go of it.
///
/// # Errors
/// [`Error::Fault`] of pages whose stores an exclusive object's store did not take.
fn take_out(arena: &ArenaInner, vmas: &mut VmaSet, swap: Swap, range: &Range<usize>) -> Result<()> {
    swap.old.iter().for_each(|v| zap::harvest_for_good(arena, v, range));
    // Who reclaims or writes back leaves the range alone from here on.
    let old = publish::retire(arena, vmas, swap);
    let mut result = Ok(());
    for v in &old {
        if let Err(error) = exclusive::leave(&v.object) {
            result = Err(error);
        }
        owed::unmap_or_owe(arena, v, &(v.range.start.max(range.start)..v.range.end.min(range.end)));
    }
    result
}

/// Takes everything out of an arena that ends, where nothing can be refused; [`end_vmas`] is to follow.
pub(super) fn take_out_all(arena: &ArenaInner, vmas: &mut VmaSet) -> Vec<VmaEntry> {
    let everything = 0..arena.len_bytes;
    let hit = vmas.overlapping(&everything);
    // Nothing of it begins or ends inside a granule that is not split already: this cannot fail.
    let swap = publish::replace(arena, "Arena::drop", hit, Successors::default(), &everything);
    let Ok(swap) = swap else { return Vec::new() };
    for v in &swap.old {
        let _ = extents::demote_entry(arena, v, &everything);
        zap::harvest_for_good(arena, v, &everything);
    }
    let old = publish::retire(arena, vmas, swap);
    for v in &old {
        // Of pages that a store did not take their object says that they are lost.
        let _ = exclusive::leave(&v.object);
    }
    publish::join(arena, &everything);
    old
}

/// Ends what was taken out of an arena. `gone`: its address space was given back; else the kernel goes on mapping the
/// objects there, and they stay for ever.
pub(super) fn end_vmas(arena: &ArenaInner, old: Vec<VmaEntry>, gone: bool) {
    if gone {
        // Extents that could not be taken back must not keep their chunks in the cache.
        old.iter().for_each(|v| extents::forget_native(arena, v));
    } else {
        std::mem::forget(old);
    }
    owed::end_owed(arena, gone);
}
