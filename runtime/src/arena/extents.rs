//! Extents: handing them to the kernel and taking them back, for the control plane.
//!
//! # Context: control plane

use super::record;
use super::state::ArenaInner;
use super::vma::{VmaEntry, range_of};
use crate::error::{Error, Result};
use softfault_mm::extent::Extent;
use softfault_mm::huge_memory;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SHIFT, EXTENT_SIZE, PAGE_SHIFT, PAGE_SIZE, chunk_of};
use softfault_mm::types::VmFlags;
use softfault_mm::vma::Vma;
use softfault_platform::vmatree::Trap;
use std::ops::Range;

/// Hands the fully cached extents of a range to the kernel; returns how many went.
///
/// # Context: control plane
pub(super) fn promote(arena: &ArenaInner, range: &Range<usize>) -> usize {
    let vmas = arena.vmas();
    let mut nr = 0;
    for v in vmas.overlapping(range) {
        let mut vma = record::vma_of(arena, &v);
        if arena.trap == Trap::Segv || v.object.is_exclusive() || v.is_direct {
            continue;
        }
        // The user asks for it, so it is done also where it is not done by itself.
        vma.flags |= VmFlags::NATIVE_OK;
        let end = arena.address(range.end.min(v.range.end));
        let mut at = arena.address(range.start.max(v.range.start)).next_multiple_of(EXTENT_SIZE);
        while at + EXTENT_SIZE <= end {
            let run = if huge_memory::may_promote(&vma, at) {
                huge_memory::promote_run(&vma, 0, at, (end - at) / EXTENT_SIZE)
            } else {
                0
            };
            if v.is_private() {
                // Nothing could be taken away there to make room for a huge entry.
                huge_memory::map_huge(&vma, 0, at, run);
            }
            nr += run;
            at += run.max(1) * EXTENT_SIZE;
        }
    }
    nr
}

/// Takes back the native extents of a range; returns how many came.
///
/// # Errors
/// [`Error::Exhausted`] when the process has no mapping left to split.
///
/// # Context: control plane
pub(super) fn demote(arena: &ArenaInner, range: &Range<usize>) -> Result<usize> {
    let vmas = arena.vmas();
    let mut nr = 0;
    for v in vmas.overlapping(range) {
        nr += demote_entry(arena, &v, range)?;
    }
    Ok(nr)
}

/// Takes back the extents of `object`'s pages `from..to` in this arena.
pub(super) fn demote_object(arena: &ArenaInner, object: u32, from: u64, to: u64) -> Result<usize> {
    let vmas = arena.vmas();
    let (from, to) = (chunk_of(from) * EXTENT_PAGES as u64, to.next_multiple_of(EXTENT_PAGES as u64));
    let mut nr = 0;
    for v in vmas.iter().filter(|v| v.is_of(object)) {
        if let Some(range) = range_of(v, from, to) {
            nr += demote_entry(arena, v, &range)?;
        }
    }
    Ok(nr)
}

/// Takes back every extent that `range` touches within the entry.
pub(super) fn demote_entry(arena: &ArenaInner, v: &VmaEntry, range: &Range<usize>) -> Result<usize> {
    let vma = record::vma_of(arena, v);
    let mut nr = 0;
    for (base, nr_extents) in maybe_native(arena, v, &vma, range) {
        nr += huge_memory::demote_run(&vma, 0, base, nr_extents)
            .map_err(|_| Error::Exhausted { op: "demote", what: "mappings (vm.max_map_count)" })?;
    }
    Ok(nr)
}

/// Forgets the native extents of an entry whose address range is gone.
pub(super) fn forget_native(arena: &ArenaInner, v: &VmaEntry) {
    let vma = record::vma_of(arena, v);
    maybe_native(arena, v, &vma, &v.range).for_each(|(base, nr)| huge_memory::forget_run(&vma, base, nr));
}

/// Returns the runs of extents, their first addresses and lengths, among which are all those of the entry that `range` touches and
/// the kernel serves by itself. It does where all pages of a chunk are in the cache, and keeps them there: so the chunk has a
/// node, and what was never touched is not looked at.
fn maybe_native<'a>(
    arena: &'a ArenaInner,
    v: &'a VmaEntry,
    vma: &Vma<'_>,
    range: &Range<usize>,
) -> impl Iterator<Item = (usize, usize)> + use<'a> {
    let range = range.start.max(v.range.start)..range.end.min(v.range.end).next_multiple_of(PAGE_SIZE);
    let may_be = arena.trap != Trap::Segv && !v.is_direct && vma.is_congruent() && range.start < range.end;
    let pages = if may_be { v.pgoff_at(range.start)..v.pgoff_at(range.end) } else { 0..0 };
    v.object.mapping().nodes.runs(pages.start, pages.end, usize::MAX).filter_map(move |(from, to)| {
        let run = range_of(v, from, to)?;
        let start = run.start & !(EXTENT_SIZE - 1);
        Some((arena.address(start), (run.end - start).div_ceil(EXTENT_SIZE)))
    })
}

/// Returns whether a pin of the program's touches an extent of the range.
pub(super) fn has_user_pins(arena: &ArenaInner, range: &Range<usize>) -> bool {
    let last = (range.end - 1) >> EXTENT_SHIFT;
    arena.extents.lend()[range.start >> EXTENT_SHIFT..=last].iter().any(|e| e.user_pins() != 0)
}

/// Counts a pin in or out of the extents that `range` touches.
pub(super) fn count_user_pins(arena: &ArenaInner, range: &Range<usize>, more: bool) {
    let last = (range.end - 1) >> EXTENT_SHIFT;
    arena.extents.lend()[range.start >> EXTENT_SHIFT..=last].iter().for_each(|e| e.count_user_pin(more));
}

/// Takes back the extents at both ends of `range`, where a vma begins or ends inside one now.
pub(super) fn demote_borders(arena: &ArenaInner, v: &VmaEntry, range: &Range<usize>) -> Result<()> {
    for edge in [range.start, range.end] {
        if !edge.is_multiple_of(EXTENT_SIZE) && v.range.start < edge && edge < v.range.end {
            demote_entry(arena, v, &(edge..edge + 1))?;
        }
    }
    Ok(())
}

/// Clears the maybe-mapped hints of a range.
pub(super) fn forget_mapped(arena: &ArenaInner, range: &Range<usize>) {
    let mut at = range.start;
    while at < range.end {
        let next = (((at >> EXTENT_SHIFT) + 1) << EXTENT_SHIFT).min(range.end);
        if let Some(extent) = arena.extents.lend().get(at >> EXTENT_SHIFT) {
            extent.note_zapped((at % EXTENT_SIZE) >> PAGE_SHIFT, (next - at) >> PAGE_SHIFT);
            extent.reset_window();
        }
        at = next;
    }
}

/// Forgets, of the extents that lie in a range whole, that the kernel mapped pages of theirs: it does no more.
pub(super) fn forget_unknown(arena: &ArenaInner, range: &Range<usize>) {
    let (first, end) = (range.start.div_ceil(EXTENT_SIZE), range.end >> EXTENT_SHIFT);
    let whole = arena.extents.lend().get(first..end.max(first)).unwrap_or(&[]);
    whole.iter().for_each(Extent::forget_unknown);
}
