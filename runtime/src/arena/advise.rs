//! What advice changes in the mappings of an arena: how they are read, and which page-table entries go.

use super::ArenaInner;
use super::vma::{VmaEntry, range_of};
use crate::error::{Result, system};
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
            arena.set_read_mode(op, range, advice.mode().unwrap_or_default())
        }
        Advice::WillNeed => {
            mapped()?.iter().for_each(|(object, p)| of_object::will_need(object, p.start, p.end));
            Ok(())
        }
        Advice::DontNeed => {
            mapped()?;
            arena.dont_need(op, range)
        }
        Advice::Cold => {
            mapped()?.iter().for_each(|(object, p)| of_object::deactivate(object, p.start, p.end));
            Ok(())
        }
        Advice::PageOut => mapped()?.iter().try_for_each(|(object, p)| of_object::page_out(object, op, p.start, p.end)),
        Advice::PopulateRead => {
            mapped()?;
            arena.fault_in(op, range, Access::Read, false)
        }
        Advice::PopulateWrite => {
            mapped()?;
            arena.fault_in(op, range, Access::Write, false)
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

impl ArenaInner {
    /// Says how the range, which is mapped throughout, is read. As `protect`: new records in place of the old.
    pub(crate) fn set_read_mode(&self, op: &'static str, range: &Range<usize>, mode: Mode) -> Result<()> {
        let advice = mode_flag(mode);
        let mut vmas = self.vmas();
        let hit = vmas.covering(op, range)?;
        if hit.iter().all(|v| v.advice == advice) {
            return Ok(());
        }
        let swap = self.replace_inside(op, &mut vmas, hit, range, |v| v.advice = advice)?;
        self.retire(swap);
        Ok(())
    }

    /// Drops the page-table entries of the object's pages `from..to` from this arena's shared mappings.
    pub(super) fn zap_object(&self, op: &'static str, object: u32, from: u64, to: u64) -> Result<()> {
        let vmas = self.vmas();
        let ours = |v: &&VmaEntry| v.is_of(object) && v.sharing == crate::types::Sharing::Shared;
        let ranges: Vec<_> = vmas.iter().filter(ours).filter_map(|v| Some((v, range_of(v, from, to)?))).collect();
        ranges.iter().try_for_each(|(_, range)| vmas.check_pins(op, range))?;
        ranges.iter().try_for_each(|(v, range)| self.zap_kernel(v, range)).map_err(system(op, "madvise"))
    }
}
