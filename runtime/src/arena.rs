//! `Arena`: a range of address space over which objects are mapped.
//!
//! The face: each method checks its range, and passes the call on to the file that is named after it.
//!
//! # Context: control plane

mod advise;
mod builder;
mod bytes;
mod change;
mod check;
mod delegate;
mod delegation;
pub(crate) mod direct;
mod dont_need;
mod end;
mod exclusive;
mod extents;
mod fault_in;
mod map;
mod mapper;
mod number;
mod owed;
pub(crate) mod pin;
mod place;
mod protect;
mod publish;
mod ready;
mod record;
mod replace;
mod room;
mod set;
mod state;
mod unmap;
mod vma;
mod zap;

pub use crate::types::{Prot, Sharing};
pub use builder::ArenaBuilder;

use crate::delivery::Delivery;
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Result, parent_only};
use crate::object::Object;
use crate::types::{Access, Advice};
use pin::Pin;
use softfault_mm::extent::{Extent, ExtentState};
use softfault_platform::vmatree::Trap;
use state::ArenaInner;
use std::ops::Range;
use std::sync::Arc;
use vma::MapRequest;

/// A range of address space over which objects are mapped. Cheap to clone; the last clone unmaps everything.
///
/// Offsets and ranges are bytes from the arena's first. **`InThread` and `Segv` arenas hold plain data**: a system call
/// that touches a page which is not resident fails with `EFAULT`, so locks, system-call buffers, paths and stacks need
/// [`Arena::pin`] or an arena with [`ArenaBuilder::kernel_access`].
#[derive(Clone, Debug)]
pub struct Arena {
    pub(crate) inner: Arc<ArenaInner>,
}

impl Arena {
    /// Returns the arena's first address. Safe: what may be done with it is up to who dereferences it.
    ///
    /// System calls that change mappings (mprotect, mmap, munmap, mremap, madvise) are the arena's alone. **Under `Segv` an
    /// mprotect(2) of the program's shows zeros where nothing is cached**: pages are told from holes by their protection there.
    /// It cannot be prevented; [`Stats`](crate::Stats) and [`Runtime::audit_threads`](crate::Runtime::audit_threads) find it,
    /// close what was opened, and count (`process_opened_pages`). Use [`Arena::protect`].
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.inner.base as *mut u8
    }
    /// Returns the arena's length in bytes.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.len_bytes
    }
    /// Returns `false`: an arena has at least 2 MiB.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
    /// Returns how the arena's faults arrive.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn delivery(&self) -> Delivery {
        match self.inner.trap {
            Trap::Uffd => Delivery::InThread,
            Trap::Segv => Delivery::Segv,
            Trap::Monitor => Delivery::Monitor,
        }
    }

    /// Lends mapped bytes as a slice. Loads fault pages in; a page that cannot be had raises SIGBUS.
    ///
    /// # Context: program
    ///
    /// # Safety
    /// 1. The range is mapped readable, and stays so, for as long as the slice lives.
    /// 2. Nobody writes to it meanwhile: no thread, mapping, process, `write_at`, delegate, or change of the object.
    #[must_use]
    #[expect(unsafe_code, reason = "the unsafe half of the API: as_slice")]
    pub unsafe fn as_slice(&self, range: Range<usize>) -> &[u8] {
        debug_assert!(range.start <= range.end && range.end <= self.inner.len_bytes);
        let first = self.as_ptr().wrapping_add(range.start).cast_const();
        // SAFETY: the caller's contract; the arena keeps the address range while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(first, range.len()) }
    }

    /// Maps `len_bytes` bytes of `object` from `object_offset` on at `offset`.
    ///
    /// Offsets are multiples of 4096; the length is rounded up to one. Bytes past the object's end read as zero in its
    /// last page, whole pages past it raise SIGBUS. Extents can be handed to the kernel only where `offset` and
    /// `object_offset` agree modulo 2 MiB.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Occupied`], [`Error::Denied`] for shared stores to an object that is not
    /// writable, [`Error::Exhausted`], [`Error::System`]. Nothing is mapped then. A calling thread that blocks our signals is
    /// named by [`Runtime::warnings`](crate::Runtime::warnings).
    pub fn map(
        &self,
        offset: usize,
        object: &Object,
        object_offset: u64,
        len_bytes: usize,
        prot: Prot,
        sharing: Sharing,
    ) -> Result<()> {
        map::map(&self.inner, &request(object, (offset, object_offset, len_bytes), prot, sharing))
    }

    /// Unmaps the range, splitting mappings at its ends. Waits for faults that are being resolved in it.
    ///
    /// Touching it afterwards raises SIGSEGV. A range with nothing in it is fine.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Pinned`], [`Error::Exhausted`]. Nothing is unmapped then. [`Error::Fault`] naming the
    /// first page of an exclusive object that its store did not take: unmapped it is all the same.
    pub fn unmap(&self, range: Range<usize>) -> Result<()> {
        self.inner.check_range("Arena::unmap", &range)?;
        unmap::unmap(&self.inner, &range)
    }

    /// Changes what the range permits, splitting mappings at its ends.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::NotMapped`], [`Error::Pinned`], [`Error::Denied`], [`Error::Exhausted`]. Nothing is
    /// changed then.
    pub fn protect(&self, range: Range<usize>, prot: Prot) -> Result<()> {
        self.inner.check_range("Arena::protect", &range)?;
        protect::protect(&self.inner, &range, prot)
    }

    /// Makes the range resident, as touching each page with `access` would; it may be evicted again at any time.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Fault`] naming the first page that cannot be had; those before it are resident.
    pub fn fault_in(&self, range: Range<usize>, access: Access) -> Result<()> {
        self.inner.check_range("Arena::fault_in", &range)?;
        fault_in::fault_in(&self.inner, "Arena::fault_in", &range, access, false)
    }

    /// Makes the range resident and keeps it so until the pin is dropped: system calls, `O_DIRECT`, futexes and
    /// asynchronous I/O may use it. Pinned for writing, it counts as dirty. Its pages are locked in memory (mlock(2)), if that
    /// may be: [`Pin::is_locked`].
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Fault`], [`Error::NotMapped`], [`Error::Argument`]; [`Error::Denied`] for stores that the mapping does not
    /// permit. Where the machine can swap, what forbids the lock: [`Error::Limit`] with the `RLIMIT_MEMLOCK` that is needed,
    /// [`Error::Exhausted`] for want of mappings. Nothing is pinned then.
    pub fn pin(&self, range: Range<usize>, access: Access) -> Result<Pin> {
        self.inner.check_range("Arena::pin", &range)?;
        Pin::new(&self.inner, range, access)
    }

    /// Reads mapped bytes without a fault of the caller's: errors are results instead of signals.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::NotMapped`], [`Error::Fault`].
    pub fn read_at(&self, offset: usize, buf: &mut [u8]) -> Result<()> {
        parent_only("Arena::read_at")?;
        bytes::read_at(&self.inner, offset, buf)
    }

    /// Writes mapped bytes without a fault of the caller's.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::NotMapped`], [`Error::Denied`], [`Error::Fault`].
    pub fn write_at(&self, offset: usize, buf: &[u8]) -> Result<()> {
        parent_only("Arena::write_at")?;
        bytes::write_at(&self.inner, offset, buf)
    }

    /// Drops the page-table entries of shared mappings in the range; the pages stay cached. Linux:
    /// `madvise(MADV_DONTNEED)`.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Pinned`], [`Error::Denied`] where a private mapping lies in the range: its
    /// written pages would be lost.
    pub fn zap(&self, range: Range<usize>) -> Result<()> {
        self.inner.check_range("Arena::zap", &range)?;
        zap::zap(&self.inner, "Arena::zap", &range)
    }

    /// Hands every fully cached extent of the range to the kernel; returns how many went.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn promote(&self, range: Range<usize>) -> Result<usize> {
        self.inner.check_range("Arena::promote", &range)?;
        Ok(extents::promote(&self.inner, &range))
    }

    /// Takes the native extents of the range back; returns how many came.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Exhausted`] when the process has no mapping left to split.
    pub fn demote(&self, range: Range<usize>) -> Result<usize> {
        self.inner.check_range("Arena::demote", &range)?;
        extents::demote(&self.inner, &range)
    }

    /// Tells `delegate` of the first touch of each page of the range, before it is mapped; a worker thread calls it.
    ///
    /// Pages of the range that are mapped already are unmapped first, so that nothing escapes. The range stays trapped.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::NotMapped`], [`Error::Denied`] over private mappings or without the feature
    /// `userfaultfd`, [`Error::Exhausted`]; nothing changed. [`Error::System`] when a page that is mapped already cannot be
    /// unmapped: the delegate is in place, and such pages may be touched untold.
    pub fn delegate_minor(
        &self,
        range: Range<usize>,
        delegate: Box<dyn softfault_mm::delegation::MinorDelegate>,
    ) -> Result<()> {
        self.inner.check_range("Arena::delegate_minor", &range)?;
        delegate::delegate_minor(&self.inner, &range, delegate, false)
    }

    /// As [`Arena::delegate_minor`]; the delegate runs in the faulting thread, in a signal handler.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// As [`Arena::delegate_minor`].
    ///
    /// # Safety
    /// The delegate is async-signal-safe: no allocation, no lock, no libc function outside signal-safety(7), no panic,
    /// no access to arenas.
    #[expect(unsafe_code, reason = "the caller promises a handler-safe delegate")]
    pub unsafe fn delegate_minor_in_handler(
        &self,
        range: Range<usize>,
        delegate: Box<dyn softfault_mm::delegation::MinorDelegate>,
    ) -> Result<()> {
        self.inner.check_range("Arena::delegate_minor_in_handler", &range)?;
        delegate::delegate_minor(&self.inner, &range, delegate, true)
    }

    /// Returns how many of the range's extents are the kernel's now.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn native_extents(&self) -> usize {
        let native = |e: &&Extent| matches!(e.state(), ExtentState::Native | ExtentState::Tracked);
        self.inner.extents.lend().iter().filter(native).count()
    }

    /// Returns whether all of a range is mapped from a file itself.
    pub(crate) fn is_direct(&self, range: &Range<usize>) -> bool {
        self.inner.vmas().covering("Arena::is_direct", range).is_ok_and(|hit| hit.iter().all(|v| v.is_direct))
    }

    /// Says how a range will be used, or what is to be done with it now. Linux: `madvise(2)`.
    ///
    /// `Normal`, `Sequential` and `Random` split mappings at the range's ends. The range must be mapped throughout.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::NotMapped`], [`Error::Exhausted`]: nothing was changed. [`Error::Pinned`] and
    /// [`Error::Denied`] over an exclusive object, for `DontNeed`. For `PageOut` [`Error::Writeback`] and as [`Object::evict`].
    /// [`Error::Fault`] naming the first page that cannot be populated; those before it are resident.
    pub fn advise(&self, range: Range<usize>, advice: Advice) -> Result<()> {
        let op = "Arena::advise";
        self.inner.check_range(op, &range)?;
        advise::advise(&self.inner, op, &range, advice)
    }

    /// Maps `len_bytes` bytes of `object` from `object_offset` on at `offset`, instead of whatever is mapped there, or of
    /// nothing. Linux: `mmap` with `MAP_FIXED`.
    ///
    /// A thread that loads from the range meanwhile sees what was there or what is there now, and is never told that nothing
    /// is: it waits for the moments in between. A store that ends before the call belongs to what was there. System calls on
    /// the range may fail with `EFAULT` meanwhile, in every mode. Mappings are split at the ends of the range; what was
    /// written to private ones is gone.
    ///
    /// # Context: program
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
        let at = (offset, object_offset, len_bytes);
        replace::replace(&self.inner, &request(object, at, prot, sharing))
    }
}

/// Says what a call asks to map.
fn request(object: &Object, at: (usize, u64, usize), prot: Prot, sharing: Sharing) -> MapRequest<'_> {
    let (offset, object_offset, len_bytes) = at;
    MapRequest { object: &object.inner, may_write: object.writable, offset, object_offset, len_bytes, prot, sharing }
}
