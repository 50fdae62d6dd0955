//! Minor delegates: registering one over a range, all of which is trapped from then on.
//!
//! # Context: control plane

use super::delegation::DelegationInner;
use super::state::ArenaInner;
use super::vma::VmaEntry;
use super::{change, extents, publish, zap};
use crate::error::{Error, Result, system};
use crate::object::capture;
use crate::types::Sharing;
use softfault_mm::delegation::MinorDelegate;
use softfault_mm::page::PAGE_SHIFT;
use std::ops::Range;
use std::sync::Arc;

/// The pages that one delegation may have.
const PAGES_MAX: u64 = 1 << u32::BITS;

/// Has `delegate` told of the first touch of each page of the range.
///
/// # Errors
/// As [`Arena::delegate_minor`](crate::Arena::delegate_minor), whose range was checked.
///
/// # Context: control plane
pub(super) fn delegate_minor(
    arena: &Arc<ArenaInner>,
    range: &Range<usize>,
    delegate: Box<dyn MinorDelegate>,
    handler_safe: bool,
) -> Result<()> {
    let op = "Arena::delegate_minor";
    if !cfg!(feature = "userfaultfd") {
        return Err(Error::Denied { op, what: "built without the feature `userfaultfd`" });
    }
    if (range.len() >> PAGE_SHIFT) as u64 > PAGES_MAX {
        let why = "at most 16 TiB can be delegated at once: a telling has 32 bits for a page";
        return Err(Error::Argument { op, arg: "range.end", value: range.end as u64, why });
    }
    let mut vmas = arena.vmas_thawed(op)?;
    vmas.check_pins(op, range)?;
    let hit = vmas.covering(op, range)?;
    // What a delegate rewrites no capture sees.
    hit.iter().try_for_each(|v| capture::refuse_captured(&v.object, op))?;
    if hit.iter().any(|v| v.sharing == Sharing::Private) {
        return Err(Error::Denied { op, what: "private mappings cannot be unmapped to catch first touches" });
    }
    let delegation =
        Arc::new(DelegationInner::new(op, (arena.address(range.start), range.len()), delegate, handler_safe)?);
    // The range stays trapped from here on, but for what is promoted until the new entries are published.
    let demote = |hit: &[VmaEntry]| hit.iter().try_for_each(|v| extents::demote_entry(arena, v, range).map(drop));
    demote(&hit)?;
    let swap = change::replace_inside(arena, op, hit, range, |v| v.delegation = Some(Arc::clone(&delegation)))?;
    if let Err(error) = demote(&swap.old) {
        publish::restore(arena, swap);
        return Err(error);
    }
    let new = swap.new.clone();
    publish::retire(arena, &mut vmas, swap);
    new.iter().try_for_each(|v| {
        let inside = v.range.start.max(range.start)..v.range.end.min(range.end);
        if inside.is_empty() { Ok(()) } else { zap::zap_kernel(arena, v, &inside).map_err(system(op, "madvise")) }
    })
}
