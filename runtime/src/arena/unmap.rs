//! Unmapping and protecting: each leaves everything as it was if it fails.

#![expect(unsafe_code, reason = "protects the arena's own address range")]

use super::ArenaInner;
use super::exclusive;
use super::publish::{Successors, Swap};
use super::set::VmaSet;
use super::vma::{VmaEntry, prot_bits};
use crate::error::{Error, Result, system};
use crate::types::{Prot, Sharing};
use softfault_platform::sys::{Errno, mem};
use softfault_platform::vmatree::Trap;
use std::ops::Range;

impl ArenaInner {
    pub(crate) fn unmap_locked(&self, vmas: &mut VmaSet, range: &Range<usize>) -> Result<()> {
        let op = "Arena::unmap";
        vmas.check_pins(op, range)?;
        let _ = self.settle(op, range);
        let hit = vmas.overlapping(range);
        if hit.is_empty() {
            return Ok(());
        }
        let is_cut = |v: &VmaEntry| v.range.start < range.start || range.end < v.range.end;
        if hit.iter().any(|v| v.object.is_exclusive() && is_cut(v)) {
            return Err(Error::Denied { op, what: "an exclusive object is unmapped whole" });
        }
        let stay = self.cut_around(op, &hit, range)?;
        let demote = |hit: &[VmaEntry]| hit.iter().try_for_each(|v| self.demote_entry(v, range).map(drop));
        demote(&hit)?;
        let swap = self.replace(op, vmas, hit, stay, range)?;
        // Nobody can promote or install in the range any more: its own vmas are gone, the neighbours are narrower. What was
        // promoted since the first look is taken back here.
        if let Err(error) = demote(&swap.old) {
            self.restore(vmas, swap);
            return Err(error);
        }
        let left = self.take_out(swap, range);
        self.join(range);
        left
    }

    /// What was unpublished goes: its stores are noted, its records end, the kernel lets go of it.
    ///
    /// # Errors
    /// [`Error::Fault`] of pages whose stores an exclusive object's store did not take.
    fn take_out(&self, swap: Swap, range: &Range<usize>) -> Result<()> {
        swap.old.iter().for_each(|v| self.harvest_for_good(v, range));
        // Who reclaims or writes back leaves the range alone from here on.
        let old = self.retire(swap);
        let mut result = Ok(());
        for v in &old {
            if let Err(error) = exclusive::leave(&v.object) {
                result = Err(error);
            }
            self.unmap_or_owe(v, &(v.range.start.max(range.start)..v.range.end.min(range.end)));
        }
        result
    }

    /// Takes everything out of an arena that ends, where nothing can be refused; [`ArenaInner::end_vmas`] is to follow.
    pub(crate) fn take_out_all(&self, vmas: &mut VmaSet) -> Vec<VmaEntry> {
        let everything = 0..self.len_bytes;
        let hit = vmas.overlapping(&everything);
        // Nothing of it begins or ends inside a granule that is not split already: this cannot fail.
        let swap = self.replace("Arena::drop", vmas, hit, Successors::default(), &everything);
        let Ok(swap) = swap else { return Vec::new() };
        for v in &swap.old {
            let _ = self.demote_entry(v, &everything);
            self.harvest_for_good(v, &everything);
        }
        let old = self.retire(swap);
        for v in &old {
            // Of pages that a store did not take their object says that they are lost.
            let _ = exclusive::leave(&v.object);
        }
        self.join(&everything);
        old
    }

    /// Ends what was taken out of an arena. `gone`: its address space was given back; else the kernel goes on mapping the
    /// objects there, and they stay for ever.
    pub(crate) fn end_vmas(&self, old: Vec<VmaEntry>, gone: bool) {
        if gone {
            // Extents that could not be taken back must not keep their chunks in the cache.
            old.iter().for_each(|v| self.forget_native(v));
        } else {
            std::mem::forget(old);
        }
        self.end_owed(gone);
    }

    pub(crate) fn protect(&self, range: &Range<usize>, prot: Prot) -> Result<()> {
        let op = "Arena::protect";
        let mut vmas = self.vmas();
        vmas.check_pins(op, range)?;
        let hit = vmas.covering(op, range)?;
        if prot == Prot::ReadWrite && hit.iter().any(|v| v.sharing == Sharing::Shared && !v.may_write) {
            return Err(Error::Denied { op, what: "shared stores need an object that was made writable" });
        }
        if hit.iter().any(|v| v.object.is_exclusive()) {
            return Err(Error::Denied { op, what: "an exclusive object's protection is what it was mapped with" });
        }
        let swap = self.replace_inside(op, &mut vmas, hit, range, |v| v.prot = prot)?;
        if let Err(errno) = self.protect_kernel(range, prot) {
            self.unprotect_kernel(&swap.old, range);
            self.restore(&mut vmas, swap);
            return Err(system(op, "mprotect")(errno));
        }
        self.retire(swap);
        Ok(())
    }

    /// Replaces the entries of a range that is mapped throughout by ones that `change` has changed there. An extent that
    /// two vmas share then does not stay native.
    pub(super) fn replace_inside(
        &self,
        op: &'static str,
        vmas: &mut VmaSet,
        hit: Vec<VmaEntry>,
        range: &Range<usize>,
        change: impl Fn(&mut VmaEntry),
    ) -> Result<Swap> {
        let mut new = self.cut_around(op, &hit, range)?;
        for v in &hit {
            change(new.cut(op, v, v.range.start.max(range.start)..v.range.end.min(range.end))?);
        }
        let demote = |hit: &[VmaEntry]| hit.iter().try_for_each(|v| self.demote_borders(v, range));
        demote(&hit)?;
        let swap = self.replace(op, vmas, hit, new, range)?;
        // What was promoted since the first look.
        if let Err(error) = demote(&swap.old) {
            self.restore(vmas, swap);
            return Err(error);
        }
        Ok(swap)
    }

    fn protect_kernel(&self, range: &Range<usize>, prot: Prot) -> std::result::Result<(), Errno> {
        // By protection, what is exposed is hidden again and comes back with the next touch, as the vma says.
        let bits = if self.trap == Trap::Segv { mem::PROT_NONE } else { prot_bits(prot) };
        // SAFETY: the arena's own range, wholly mapped (the caller checked).
        let r = self.with_room(|| unsafe { mem::mprotect(self.address(range.start), range.len(), bits) });
        if self.trap == Trap::Segv && r.is_ok() {
            self.forget_mapped(range);
        }
        r
    }

    /// Gives a range back the protection that its entries have. The kernel may have got through a part of the range: that
    /// part lies between borders that it has made already, and the rest is as it was.
    pub(super) fn unprotect_kernel(&self, old: &[VmaEntry], range: &Range<usize>) {
        for v in old.iter().filter(|_| self.trap != Trap::Segv) {
            let piece = v.range.start.max(range.start)..v.range.end.min(range.end);
            // SAFETY: as above.
            let _ = unsafe { mem::mprotect(self.address(piece.start), piece.len(), prot_bits(v.prot)) };
        }
    }
}
