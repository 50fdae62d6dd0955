//! Dropping page-table entries of shared mappings.

#![expect(unsafe_code, reason = "drops entries of the arena's own address range")]

use super::{ArenaInner, range_of};
use crate::arena::Sharing;
use crate::error::{Error, Result, system};
use crate::object::ObjectInner;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd;
use softfault_platform::sys::{Errno, mem};
use softfault_platform::vmatree::Trap;
use std::ops::Range;
use std::sync::Arc;

impl ArenaInner {
    pub(crate) fn zap(&self, range: &Range<usize>) -> Result<()> {
        let op = "Arena::zap";
        let vmas = self.vmas();
        vmas.check_pins(op, range)?;
        let hit = vmas.overlapping(range);
        if hit.iter().any(|v| v.sharing == Sharing::Private) {
            return Err(Error::Denied { op, what: "a private mapping's written pages would be lost" });
        }
        for v in &hit {
            self.zap_kernel(&(v.range.start.max(range.start)..v.range.end.min(range.end)))
                .map_err(system(op, "madvise"))?;
        }
        Ok(())
    }

    /// Drops the page-table entries of a shared range.
    pub(super) fn zap_kernel(&self, range: &Range<usize>) -> std::result::Result<(), Errno> {
        let (addr, len) = (self.address(range.start), range.len());
        if self.trap == Trap::Segv {
            // SAFETY: the arena's own range; touching it faults again.
            unsafe { mem::mprotect(addr, len, mem::PROT_NONE) }?;
        } else {
            #[cfg(feature = "userfaultfd")]
            // SAFETY: shared mappings only (the callers check): pages stay in the cache.
            unsafe { uffd::zap(addr, len) }?;
        }
        self.forget_mapped(range);
        Ok(())
    }

    /// Removes poison markers that system calls would meet (Monitor).
    pub(crate) fn unpoison(&self, object: &Arc<ObjectInner>, from: u64, to: u64) -> Result<()> {
        let vmas = self.vmas();
        for v in vmas.iter().filter(|v| Arc::ptr_eq(&v.object, object) && v.sharing == Sharing::Shared) {
            if let Some(range) = range_of(v, from, to) {
                vmas.check_pins("Object::heal", &range)?;
                self.zap_kernel(&range).map_err(system("Object::heal", "madvise"))?;
            }
        }
        Ok(())
    }
}
