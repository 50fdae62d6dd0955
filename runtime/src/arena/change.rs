//! Changing mappings in a range, by new entries in place of the old ones, split at its ends.
//!
//! # Context: control plane

use super::extents;
use super::publish::{self, Swap};
use super::set::VmaSet;
use super::state::ArenaInner;
use super::vma::VmaEntry;
use crate::error::Result;
use std::ops::Range;

/// Replaces the entries of a range that is mapped throughout by ones that `change` has changed there. An extent that
/// two vmas share then does not stay native.
pub(super) fn replace_inside(
    arena: &ArenaInner,
    op: &'static str,
    vmas: &mut VmaSet,
    hit: Vec<VmaEntry>,
    range: &Range<usize>,
    change: impl Fn(&mut VmaEntry),
) -> Result<Swap> {
    let mut new = publish::cut_around(arena, op, &hit, range)?;
    for v in &hit {
        change(new.cut(op, v, v.range.start.max(range.start)..v.range.end.min(range.end))?);
    }
    let demote = |hit: &[VmaEntry]| hit.iter().try_for_each(|v| extents::demote_borders(arena, v, range));
    demote(&hit)?;
    let swap = publish::replace(arena, op, vmas, hit, new, range)?;
    // What was promoted since the first look is taken back, too.
    if let Err(error) = demote(&swap.old) {
        publish::restore(arena, vmas, swap);
        return Err(error);
    }
    Ok(swap)
}
