//! Changing mappings in a range, by new entries in place of the old ones, split at its ends.
//!
//! # Context: control plane

use super::extents;
use super::publish::{self, Successors, Swap};
use super::state::ArenaInner;
use super::vma::VmaEntry;
use crate::error::Result;
use std::ops::Range;

/// Replaces the entries of a range that is mapped throughout by ones that `change` has changed there. An extent that
/// two vmas share then does not stay native.
pub(super) fn replace_inside(
    arena: &ArenaInner,
    op: &'static str,
    hit: Vec<VmaEntry>,
    range: &Range<usize>,
    change: impl Fn(&mut VmaEntry),
) -> Result<Swap> {
    let new = cut(arena, op, &hit, range, change)?;
    let swap = publish::replace(arena, op, hit, new, range)?;
    demote_again(arena, swap, range)
}

/// The same where `change` is of what the range permits, which the caller tells the kernel before it ends the swap. It allocates
/// nothing in between, as [`publish::change_over`] says.
pub(super) fn change_inside(
    arena: &ArenaInner,
    op: &'static str,
    hit: Vec<VmaEntry>,
    range: &Range<usize>,
    change: impl Fn(&mut VmaEntry),
) -> Result<Swap> {
    let new = cut(arena, op, &hit, range, change)?;
    let mut swap = publish::prepare(arena, op, hit, new, range)?;
    publish::change_over(arena, &mut swap, range);
    demote_again(arena, swap, range)
}

/// Makes the entries that are to take the place of `hit`, which has no native extent over an end of the range then.
fn cut(
    arena: &ArenaInner,
    op: &'static str,
    hit: &[VmaEntry],
    range: &Range<usize>,
    change: impl Fn(&mut VmaEntry),
) -> Result<Successors> {
    let mut new = publish::cut_around(arena, op, hit, range)?;
    for v in hit {
        change(new.cut(op, v, v.range.start.max(range.start)..v.range.end.min(range.end))?);
    }
    hit.iter().try_for_each(|v| extents::demote_borders(arena, v, range))?;
    Ok(new)
}

/// Takes back what was promoted since the first look.
fn demote_again(arena: &ArenaInner, swap: Swap, range: &Range<usize>) -> Result<Swap> {
    match swap.old.iter().try_for_each(|v| extents::demote_borders(arena, v, range)) {
        Ok(()) => Ok(swap),
        Err(error) => {
            publish::restore(arena, swap);
            Err(error)
        }
    }
}
