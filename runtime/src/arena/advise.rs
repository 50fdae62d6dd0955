//! What advice changes in the mappings of an arena: how they are read, and which page-table entries go.

use super::ArenaInner;
use super::vma::{VmaEntry, range_of};
use crate::error::{Result, system};
use crate::object::advise;
use softfault_mm::readahead::Mode;
use std::ops::Range;

impl ArenaInner {
    /// Says how the range, which is mapped throughout, is read. As `protect`: new records in place of the old.
    pub(crate) fn set_read_mode(&self, op: &'static str, range: &Range<usize>, mode: Mode) -> Result<()> {
        let advice = advise::mode_flag(mode);
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
