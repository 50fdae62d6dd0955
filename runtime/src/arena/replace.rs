//! Replacing what is mapped in a range, in one step for whoever touches it. Linux: mmap(2) with `MAP_FIXED`.
//!
//! ```text
//! control plane                                    who touches the range
//! check, take what is needed
//! publish CHANGING, drain sections                 old bytes by old entries; a fault: sleeps, and looks again
//! demote; close the range; harvest old stores      SIGSEGV: finds CHANGING, sleeps
//! mmap(PROT_NONE) over it, REGISTER                the same
//! publish the new vma, mprotect                    faults the new page in
//! wake                                             looks again at once
//! ```
//! A store that is through before the range is closed is the old object's, any other one the new object's.

#![expect(unsafe_code, reason = "maps an object over the arena's own address range, and drops private copies")]

use super::ArenaInner;
use super::map::open;
use super::mapper;
use super::publish::Swap;
use super::set::VmaSet;
use super::vma::VmaEntry;
use crate::arena::Arena;
use crate::error::{Error, Result, system};
use crate::object::Object;
use crate::types::{Prot, Sharing};
use softfault_mm::failpoint;
use softfault_mm::memory;
use softfault_mm::page::PAGE_SHIFT;
use softfault_platform::section;
use softfault_platform::sys::{futex, mem};
use softfault_platform::vmatree::Trap;
use std::ops::Range;
use std::sync::Arc;

impl Arena {
    /// Maps `len_bytes` bytes of `object` from `object_offset` on at `offset`, instead of whatever is mapped there, or of
    /// nothing. Linux: `mmap` with `MAP_FIXED`.
    ///
    /// A thread that loads from the range meanwhile sees what was there or what is there now, and is never told that nothing
    /// is: it waits for the moments in between. A store that ends before the call belongs to what was there. System calls on
    /// the range may fail with `EFAULT` meanwhile, in every mode. Mappings are split at the ends of the range; what was
    /// written to private ones is gone.
    ///
    /// # Errors
    /// As [`Arena::map`] but for [`Error::Occupied`], [`Error::Pinned`], and [`Error::Denied`] where an exclusive object is
    /// or would be mapped: nothing was changed. [`Error::Exhausted`] and [`Error::System`]: the kernel had no room for the
    /// new mapping. What was there is there, unless it refused a step after it had taken that away: nothing is mapped then.
    pub fn replace(
        &self,
        offset: usize,
        object: &Object,
        object_offset: u64,
        len_bytes: usize,
        prot: Prot,
        sharing: Sharing,
    ) -> Result<()> {
        self.inner.map_over(object, (offset, object_offset, len_bytes), prot, sharing)
    }
}

const OP: &str = "Arena::replace";

impl ArenaInner {
    fn map_over(
        self: &Arc<Self>,
        object: &Object,
        at: (usize, u64, usize),
        prot: Prot,
        sharing: Sharing,
    ) -> Result<()> {
        let (entry, number) = self.asked(OP, object, at, (prot, sharing))?;
        let range = entry.range.clone();
        // The gate before the lock, as in `map`.
        let _gate = object.inner.i_mmap().gate();
        let mut vmas = self.vmas();
        vmas.check_pins(OP, &range)?;
        let hit = vmas.overlapping(&range);
        if object.inner.is_exclusive() || hit.iter().any(|v| v.object.is_exclusive()) {
            return Err(Error::Denied {
                op: OP,
                what: "an exclusive object is unmapped whole, and mapped where nothing is",
            });
        }
        self.settle(OP, &range)?;
        let demote = |hit: &[VmaEntry]| hit.iter().try_for_each(|v| self.demote_entry(v, &range).map(drop));
        let standin = VmaEntry { is_changing: true, ..entry.clone() };
        let mut new = self.cut_around(OP, &hit, &range)?;
        new.add(OP, standin)?;
        demote(&hit)?;
        object.inner.i_mmap().add(mapper::weak(self));
        let swap = self.replace(OP, &mut vmas, hit, new, &range)?;
        // What was promoted since the first look.
        let changed = match demote(&swap.old) {
            Ok(()) => self.put_in_place(&mut vmas, swap, entry).map(|()| number.keep()),
            Err(error) => {
                self.restore(&mut vmas, swap);
                Err(error)
            }
        };
        drop(vmas);
        futex::wake_all(memory::end_change());
        changed
    }

    /// Puts `entry` where its stand-in keeps everybody waiting, and takes out what was there.
    fn put_in_place(&self, vmas: &mut VmaSet, swap: Swap, entry: VmaEntry) -> Result<()> {
        let range = entry.range.clone();
        swap.old.iter().for_each(|v| self.harvest_for_good(v, &range));
        failpoint!(REPLACE_CLOSED);
        // The step that is likely to be refused: the table of mappings is full, or there is no memory.
        if let Err(error) = self.mmap_closed(OP, &entry) {
            self.unprotect_kernel(&swap.old, &range);
            self.restore(vmas, swap);
            return Err(error);
        }
        let standin: Vec<_> = swap.new.iter().filter(|v| v.is_changing).cloned().collect();
        // Who reclaims or writes back leaves the range alone from here on.
        let old = self.retire(swap);
        let mapped = self.open_up(&entry);
        if mapped.is_err() {
            // The new mapping could not be had: nothing is mapped there.
            self.point(&range, None);
            old.iter()
                .for_each(|v| self.unmap_or_owe(v, &(v.range.start.max(range.start)..v.range.end.min(range.end))));
        }
        vmas.map.remove(&range.start);
        section::synchronize();
        self.end(&standin);
        let (mmu, _) = self.mmu_of(&entry);
        // Who waited for the old mapping's pages (Monitor) looks at the new one's.
        mmu.wake(self.address(range.start), range.len() >> PAGE_SHIFT);
        if mapped.is_ok() {
            vmas.map.insert(range.start, entry);
        }
        self.join(&range);
        mapped
    }

    /// Registers what is mapped there now, publishes and opens it.
    fn open_up(&self, entry: &VmaEntry) -> Result<()> {
        let opened = open(entry);
        let mapped = self.make_ours(OP, entry)?;
        self.forget_mapped(&entry.range);
        let (listed, published) = self.publish(OP, entry)?;
        published.keep();
        listed.keep();
        mapped.keep();
        opened.keep();
        Ok(())
    }

    /// Linux: `MADV_DONTNEED`. Of private mappings what was written to them goes, and the next touch shows the object.
    pub(crate) fn dont_need(&self, op: &'static str, range: &Range<usize>) -> Result<()> {
        let vmas = self.vmas();
        vmas.check_pins(op, range)?;
        let hit = vmas.overlapping(range);
        if hit.iter().any(|v| v.object.is_exclusive()) {
            return Err(Error::Denied { op, what: "an exclusive object's pages are nowhere else" });
        }
        for v in &hit {
            let piece = v.range.start.max(range.start)..v.range.end.min(range.end);
            let dropped = if v.is_private() { self.drop_copies(&piece) } else { self.zap_kernel(v, &piece) };
            dropped.map_err(system(op, "madvise"))?;
        }
        Ok(())
    }

    /// Drops a private mapping's own pages, and its entries of the cache's.
    ///
    /// The hints go first: one that is set for a page which is not mapped says "maybe", one that is missing for a page which
    /// is would be wrong. By protection they say what is exposed, which stays so: below it are the cache's pages.
    fn drop_copies(&self, range: &Range<usize>) -> std::result::Result<(), softfault_platform::sys::Errno> {
        if self.trap != Trap::Segv {
            self.forget_mapped(range);
        }
        // SAFETY: the arena's own range; its private copies are what the caller gives up.
        unsafe { mem::drop_pages(self.address(range.start), range.len()) }
    }
}
