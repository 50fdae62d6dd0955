//! What advice changes in the mappings of an arena: how they are read, and which page-table entries go.
//!
//! # Context: control plane

use super::state::ArenaInner;
use super::vma::VmaEntry;
use super::{change, dont_need, fault_in, publish};
use crate::error::Result;
use crate::object::advise as of_object;
use crate::object::state::ObjectInner;
use crate::types::{Access, Advice};
use softfault_mm::readahead::Mode;
use softfault_mm::types::VmFlags;
use std::ops::Range;
use std::sync::Arc;

/// Does what the advice says for a range of the arena.
///
/// # Errors
/// As [`Arena::advise`](crate::Arena::advise), whose range was checked.
///
/// # Context: control plane
pub(super) fn advise(arena: &ArenaInner, op: &'static str, range: &Range<usize>, advice: Advice) -> Result<()> {
    let mapped = || pieces(arena, op, range);
    match advice {
        Advice::Normal | Advice::Sequential | Advice::Random => {
            set_read_mode(arena, op, range, advice.mode().unwrap_or_default())
        }
        Advice::WillNeed => {
            mapped()?.iter().for_each(|(object, p)| of_object::will_need(object, p.start, p.end));
            Ok(())
        }
        Advice::DontNeed => {
            mapped()?;
            dont_need::dont_need(arena, op, range)
        }
        Advice::Cold => {
            mapped()?.iter().for_each(|(object, p)| of_object::deactivate(object, p.start, p.end));
            Ok(())
        }
        Advice::PageOut => mapped()?.iter().try_for_each(|(object, p)| of_object::page_out(object, op, p.start, p.end)),
        Advice::PopulateRead => {
            mapped()?;
            fault_in::fault_in(arena, op, range, Access::Read, false)
        }
        Advice::PopulateWrite => {
            mapped()?;
            fault_in::fault_in(arena, op, range, Access::Write, false)
        }
    }
}

/// Returns the flag of a vma that is read so.
fn mode_flag(mode: Mode) -> VmFlags {
    match mode {
        Mode::Normal => VmFlags::empty(),
        Mode::Sequential => VmFlags::SEQ_READ,
        Mode::Random => VmFlags::RAND_READ,
    }
}

/// Returns the objects and their pages that the range maps, which it does throughout.
///
/// # Errors
/// [`Error::NotMapped`](crate::Error::NotMapped).
fn pieces(arena: &ArenaInner, op: &'static str, range: &Range<usize>) -> Result<Vec<(Arc<ObjectInner>, Range<u64>)>> {
    let hit = arena.vmas().covering(op, range)?;
    let piece = |v: &VmaEntry| {
        let (start, end) = (v.range.start.max(range.start), v.range.end.min(range.end));
        (Arc::clone(&v.object), v.pgoff_at(start)..v.pgoff_at(end))
    };
    Ok(hit.iter().map(piece).collect())
}

/// Says how the range, which is mapped throughout, is read. As `protect`: new records in place of the old.
pub(super) fn set_read_mode(arena: &ArenaInner, op: &'static str, range: &Range<usize>, mode: Mode) -> Result<()> {
    let advice = mode_flag(mode);
    let mut vmas = arena.vmas();
    let hit = vmas.covering(op, range)?;
    if hit.iter().all(|v| v.advice == advice) {
        return Ok(());
    }
    let swap = change::replace_inside(arena, op, hit, range, |v| v.advice = advice)?;
    publish::retire(arena, &mut vmas, swap);
    Ok(())
}
