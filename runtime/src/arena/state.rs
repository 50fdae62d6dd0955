//! The state of an arena: where it lies, what is mapped there, and what handlers know of its extents.
//!
//! # Context: control plane

use super::set::{Owed, VmaSet};
use crate::cache::state::RuntimeInner;
use crate::error::{Error, Result, parent_only};
use crate::lease::Table;
use crate::masked::{self, Masked};
use crate::object::capture;
use softfault_mm::extent::Extent;
use softfault_mm::page::PAGE_SIZE;
use softfault_mm::sync::AtomicU64;
use softfault_platform::vmatree::{self, Trap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long who wants to change mappings waits for a cut before it looks again.
const THAW: Duration = Duration::from_micros(500);

/// An arena, whichever values refer to it. `runtime/README.md` has the order of its locks and others.
pub(crate) struct ArenaInner {
    /// Keeps the runtime (its counters, contexts and handlers) for as long as the arena lives.
    pub(super) rt: Arc<RuntimeInner>,
    /// The arena's number, and what locks of several are ordered by. Set when it is made, as the next ones are that name no
    /// protection.
    pub(super) slot: u32,
    /// The first address.
    pub(super) base: usize,
    pub(crate) len_bytes: usize,
    /// How its faults arrive.
    pub(super) trap: Trap,
    pub(super) fault_around: bool,
    pub(super) native_extents: bool,
    /// Pages that are exposed at once, by protection; 0 where faults arrive by userfaultfd.
    pub(super) granule_pages: usize,
    pub(super) lookup_first: bool,
    /// Stores through its shared mappings fault before they come through: a capture can hold them.
    pub(crate) capturable: bool,
    /// One word for each extent. Lent to handlers; protected by nothing: atomics, whose table is in `softfault_mm::extent`.
    pub(super) extents: Table<Extent>,
    /// Which vma is where, an entry for each extent, and for each GiB. Lent to handlers; written under the registry's lock.
    pub(super) _granules: Table<AtomicU64>,
    /// What is mapped, and pinned. Who has it may change the kernel's mappings of the range, too.
    pub(super) vmas: masked::Mutex<VmaSet>,
    /// What the kernel has not let go of yet. Taken under `vmas`, a leaf.
    pub(super) owed: Mutex<Vec<Owed>>,
    /// The process that made it: a forked child has no arena.
    pub(super) pid: u32,
}

impl std::fmt::Debug for ArenaInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena")
            .field("base", &format_args!("{:#x}", self.base))
            .field("len_bytes", &self.len_bytes)
            .field("trap", &self.trap)
            .finish_non_exhaustive()
    }
}

impl ArenaInner {
    /// Locks the arena's mappings. A fault waits for an extent that is on its way from one side to the other.
    pub(crate) fn vmas(&self) -> Masked<'_, VmaSet> {
        masked::lock(&self.vmas)
    }

    /// Locks the arena's mappings for who changes what is mapped: while a cut is being made that stays as it is.
    ///
    /// # Errors
    /// [`Error::Denied`] in the closure of the cut.
    pub(super) fn vmas_thawed(&self, op: &'static str) -> Result<Masked<'_, VmaSet>> {
        loop {
            let vmas = self.vmas();
            if vmas.frozen.is_none() {
                return Ok(vmas);
            }
            drop(vmas);
            self.wait_for_thaw(op)?;
        }
    }

    /// Waits a little for a cut, with nothing in hand.
    ///
    /// # Errors
    /// [`Error::Denied`] in the closure of the cut.
    pub(super) fn wait_for_thaw(&self, op: &'static str) -> Result<()> {
        capture::refuse_in_cut(op)?;
        std::thread::sleep(THAW);
        Ok(())
    }

    /// Returns what the kernel has not let go of yet. The caller has the lock of the mappings.
    pub(super) fn owed(&self) -> MutexGuard<'_, Vec<Owed>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the address of an offset.
    pub(crate) fn address(&self, offset: usize) -> usize {
        self.base + offset
    }

    /// Checks a byte range of the arena: page-aligned, not empty, inside.
    pub(crate) fn check_range(&self, op: &'static str, range: &Range<usize>) -> Result<()> {
        parent_only(op)?;
        let bad = |arg, value: usize, why| Err(Error::Argument { op, arg, value: value as u64, why });
        if !range.start.is_multiple_of(PAGE_SIZE) {
            return bad("range.start", range.start, "must be a multiple of the page size (4096)");
        }
        if !range.end.is_multiple_of(PAGE_SIZE) {
            return bad("range.end", range.end, "must be a multiple of the page size (4096)");
        }
        if range.start >= range.end {
            return bad("range.end", range.end, "must lie behind range.start");
        }
        if range.end > self.len_bytes {
            return bad("range.end", range.end, "lies outside the arena");
        }
        Ok(())
    }
}

/// Returns the bytes of the tables of an arena of `nr` extents.
pub(super) fn table_bytes(nr: usize) -> u64 {
    (Table::<AtomicU64>::bytes(vmatree::granule_words(nr)) + Table::<Extent>::bytes(nr)) as u64
}
