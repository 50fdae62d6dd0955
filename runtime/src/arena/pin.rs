//! Pins for users: ranges that stay resident.
//!
//! # Context: control plane

use super::state::ArenaInner;
use super::vma::VmaEntry;
use super::{extents, fault_in, room};
use crate::error::{Error, Result};
use crate::memory;
use crate::object::collapse;
use crate::object::io;
use crate::object::state::ObjectInner;
use crate::process::mlock::{How, Locked, Refusal};
use crate::types::Access;
use crate::types::{Prot, Sharing};
use softfault_mm::folio::{DIRTY, FolioWord};
use softfault_mm::page::{PAGE_SHIFT, PAGE_SIZE};
use softfault_platform::section;
use softfault_platform::vmatree::Trap;
use std::ops::Range;
use std::sync::Arc;

/// Keeps a range of an arena resident, mapped and safe for system calls until it is dropped.
///
/// Its pages are locked in memory, as mlock(2) does it, so that the kernel does not take them either: neither for swap, nor on
/// another process's request (`MADV_PAGEOUT`). They count against `RLIMIT_MEMLOCK` unless the process has `CAP_IPC_LOCK`;
/// [`Pin::is_locked`] tells where they could not be.
pub struct Pin {
    arena: Arc<ArenaInner>,
    range: Range<usize>,
    pages: Vec<PinnedPage>,
    locks: Vec<Locked>,
    is_locked: bool,
    /// Counted in the extents.
    counted: bool,
    access: Access,
}

#[derive(Debug)]
struct PinnedPage {
    object: Arc<ObjectInner>,
    pgoff: u64,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin").field("range", &self.range).field("pages", &self.pages.len()).finish_non_exhaustive()
    }
}

impl PinnedPage {
    fn word(&self) -> Option<&'static FolioWord> {
        self.object.mapping().folio(self.pgoff)
    }
}

impl Pin {
    /// Pins a range and locks it in memory.
    pub(crate) fn new(arena: &Arc<ArenaInner>, range: Range<usize>, access: Access) -> Result<Self> {
        Self::with(arena, range, access, true)
    }

    /// Pins a range; without a lock a touch of it may fault yet, if the kernel reclaims its memory.
    pub(super) fn with(arena: &Arc<ArenaInner>, range: Range<usize>, access: Access, locks: bool) -> Result<Self> {
        let op = "Arena::pin";
        let mut vmas = if access == Access::Write { arena.vmas_thawed(op)? } else { arena.vmas() };
        let covering = vmas.covering(op, &range)?;
        // From here nothing unmaps, protects or zaps the range.
        vmas.pins.push((range.clone(), access));
        drop(vmas);
        let counted = arena.trap == Trap::Segv || covering.iter().any(|v| v.object.huge);
        if counted {
            // Reclaim that looked for pins before this one was counted may still hide a whole granule or huge page. It does
            // that inside its section, so we wait for the sections that are under way.
            extents::count_user_pins(arena, &range, true);
            section::synchronize();
            for v in covering.iter().filter(|v| v.object.huge) {
                let page = |at: usize| v.pgoff + ((at - v.range.start) >> PAGE_SHIFT) as u64;
                let piece = v.range.start.max(range.start)..v.range.end.min(range.end);
                collapse::wait_for_collapse(v.object.mapping(), page(piece.start), page(piece.end));
            }
        }
        let mut pin = Self {
            arena: Arc::clone(arena),
            range: range.clone(),
            pages: Vec::new(),
            locks: Vec::new(),
            is_locked: locks,
            counted,
            access,
        };
        let pages = range
            .clone()
            .step_by(PAGE_SIZE)
            .filter_map(|at| covering.iter().find(|v| v.range.contains(&at)).map(|v| (at, v)));
        for (at, v) in pages {
            if access == Access::Write && v.prot != Prot::ReadWrite {
                return Err(Error::Denied { op, what: "the mapping does not permit stores" });
            }
            let pgoff = v.pgoff + ((at - v.range.start) >> PAGE_SHIFT) as u64;
            let reaches = v.sharing == Sharing::Shared || v.object.is_exclusive();
            let set = if access == Access::Write && reaches { DIRTY } else { 0 };
            let failed = |e| v.call(op).error(v.object.mapping(), access, pgoff << PAGE_SHIFT, e);
            io::get_pinned(&v.object, pgoff, set).map_err(failed)?;
            pin.pages.push(PinnedPage { object: Arc::clone(&v.object), pgoff });
        }
        if locks {
            // They are locked before they are mapped, so that what is mapped afterwards stays mapped.
            covering.iter().try_for_each(|v| pin.lock(op, v))?;
        }
        fault_in::fault_in(arena, op, &range, access, true)?;
        fault_in::make_present(arena, op, &range, access)?;
        Ok(pin)
    }

    /// Locks the pinned pages of a mapping in memory; what cannot be locked is refused where it may be swapped out.
    fn lock(&mut self, op: &'static str, v: &VmaEntry) -> Result<()> {
        if v.object.is_locked() && (v.sharing == Sharing::Shared || v.object.is_exclusive()) {
            return Ok(());
        }
        let piece = v.range.start.max(self.range.start)..v.range.end.min(self.range.end);
        let (range, how) = if v.sharing == Sharing::Private {
            (self.arena.address(piece.start)..self.arena.address(piece.end), How::OnFault)
        } else {
            let page = |at: usize| v.pgoff + ((at - v.range.start) >> PAGE_SHIFT) as u64;
            (v.object.lockable(page(piece.start)..page(piece.end)), How::Populate)
        };
        let lock = &mut || Locked::new(range.clone(), how);
        match room::with_room_for(&self.arena, |refusal| *refusal == Refusal::Mappings, lock) {
            Ok(locked) => self.locks.push(locked),
            Err(refusal) if memory::can_swap() => return Err(refusal.into_error(op)),
            Err(_) => self.is_locked = false,
        }
        Ok(())
    }

    /// Returns whether the range is locked in memory. Where it is not, because `RLIMIT_MEMLOCK` or the number of mappings
    /// did not permit it on a machine without swap, `MADV_PAGEOUT` of this or another process can still unmap pages of a
    /// shared mapping, and a system call on them fails with `EFAULT` until somebody touches them.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }
    /// Returns the address of the pinned range's first byte.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        (self.arena.base + self.range.start) as *mut u8
    }
    /// Returns the length of the pinned range in bytes.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }
    /// Returns `false`: a pin holds at least one page.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if softfault_platform::child::in_child() {
            // The lock may have been held by a thread that does not exist here, and there is nothing to unpin.
            return;
        }
        // The locks go while the pages are pinned yet, so that nothing which moves pages meets the ends of a locked range.
        self.locks.clear();
        let mut vmas = self.arena.vmas();
        if let Some(i) = vmas.pins.iter().position(|(p, access)| *p == self.range && *access == self.access) {
            vmas.pins.swap_remove(i);
        }
        drop(vmas);
        if self.counted {
            extents::count_user_pins(&self.arena, &self.range, false);
        }
        for page in self.pages.drain(..) {
            if let Some(word) = page.word() {
                word.unpin();
            }
        }
    }
}
