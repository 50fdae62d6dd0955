//! Ranges that are unmapped for the program, and that the kernel has not let go of yet.
//!
//! To unmap a part of a mapping the kernel may need a record more than the process is allowed (`vm.max_map_count`). For
//! the program the range is unmapped all the same: no vma is found there, so that a touch raises SIGSEGV. But the object's
//! memory stays visible there to the kernel, and must not become another object's: so the object stays until the range
//! has been let go of, which every later call that maps or unmaps in the arena tries again.

#![expect(unsafe_code, reason = "hides a range of the arena")]

use super::ArenaInner;
use super::vma::VmaEntry;
use crate::error::{Error, Result};
use crate::object::state::ObjectInner;
use softfault_platform::sys::mem;
use softfault_platform::vmatree::Trap;
use std::ops::Range;
use std::sync::{Arc, MutexGuard, PoisonError};

/// A range, and the object that the kernel maps there.
#[derive(Debug)]
pub(crate) struct Owed {
    range: Range<usize>,
    _object: Arc<ObjectInner>,
}

impl ArenaInner {
    fn owed(&self) -> MutexGuard<'_, Vec<Owed>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the kernel let go of a part of an entry, now or later. The caller has the lock of the arena's vmas.
    pub(super) fn unmap_or_owe(&self, v: &VmaEntry, range: &Range<usize>) {
        if self.unmap_kernel(range).is_ok() {
            return;
        }
        if self.trap == Trap::Segv && !self.has_user_pins(&v.range) {
            // Under userfaultfd the old mapping is trapped, and a touch finds no vma; by protection it must be hidden: with
            // the rest of its mapping, which splits nothing, and whose pages come back by touch. A pin of the program's on
            // the rest is worth more than the signal that a touch of what was unmapped should raise.
            let (addr, len) = (self.address(v.range.start), v.range.len());
            // SAFETY: the arena's own range; what is hidden comes back as its vma says.
            let _ = unsafe { mem::mprotect(addr, len, mem::PROT_NONE) };
            self.forget_mapped(&v.range);
        }
        self.owed().push(Owed { range: range.clone(), _object: Arc::clone(&v.object) });
    }

    /// Tries again what is owed. The caller has the lock of the arena's vmas.
    ///
    /// # Errors
    /// [`Error::Exhausted`]: some of `range` is owed yet.
    pub(super) fn settle(&self, op: &'static str, range: &Range<usize>) -> Result<()> {
        let mut owed = std::mem::take(&mut *self.owed());
        owed.retain(|o| self.unmap_kernel(&o.range).is_err());
        let overlaps = owed.iter().any(|o| o.range.start < range.end && range.start < o.range.end);
        self.owed().extend(owed);
        if overlaps {
            let what = "mappings (vm.max_map_count): the kernel has not let go of what was unmapped there";
            return Err(Error::Exhausted { op, what });
        }
        Ok(())
    }

    /// The arena's address space is gone (`true`), and with it all that was owed; or it is not, and the objects stay.
    pub(crate) fn end_owed(&self, gone: bool) {
        let owed = std::mem::take(&mut *self.owed());
        if !gone {
            std::mem::forget(owed);
        }
    }
}
