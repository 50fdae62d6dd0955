//! `Arena`: a range of address space over which objects are mapped.

mod advise;
mod check;
mod delegate;
mod end;
mod exclusive;
mod extents;
mod fault_in;
mod map;
mod mapper;
mod owed;
pub(crate) mod pin;
mod place;
mod publish;
mod replace;
mod room;
mod set;
mod unmap;
pub(crate) mod vma;
mod zap;

pub use crate::types::{Prot, Sharing};

use crate::cache::state::RuntimeInner;
use crate::delivery::Delivery;
use crate::error::{Error, Result, parent_only, system};
use crate::lease::Table;
use crate::masked;
use crate::object::Object;
use crate::object::fault::{self, Place};
use crate::process::registry;
use crate::types::{Access, Advice};
use owed::Owed;
use pin::Pin;
use set::VmaSet;
use softfault_mm::extent::{Extent, ExtentState};
use softfault_mm::page::{EXTENT_SHIFT, EXTENT_SIZE, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::sync::{AtomicU64, Ordering};
use softfault_mm::types::{FillError, VmFaultReason};
use softfault_platform::section;
use softfault_platform::sys::{Errno, mem};
use softfault_platform::vmatree::{self, ArenaFacts, Trap};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use vma::VmaEntry;

/// Options of an arena; see [`Runtime::arena`](crate::Runtime::arena).
#[derive(Debug)]
pub struct ArenaBuilder {
    rt: Arc<RuntimeInner>,
    len_bytes: usize,
    delivery: Delivery,
    kernel_access: bool,
    fault_around: bool,
    native_extents: bool,
    granule_bytes: usize,
    lookup_first: bool,
    at: Option<usize>,
}

impl ArenaBuilder {
    pub(crate) fn new(rt: Arc<RuntimeInner>, len_bytes: usize) -> Self {
        Self {
            rt,
            len_bytes,
            delivery: Delivery::Auto,
            kernel_access: false,
            fault_around: true,
            native_extents: true,
            granule_bytes: EXTENT_SIZE,
            lookup_first: false,
            at: None,
        }
    }
    /// Asks for one way of delivery; default [`Delivery::Auto`].
    #[must_use]
    pub fn delivery(mut self, mode: Delivery) -> Self {
        self.delivery = mode;
        self
    }
    /// Asks that system calls, `O_DIRECT` and KVM may touch the arena without [`Arena::pin`]: needs `Monitor`.
    #[must_use]
    pub fn kernel_access(mut self, yes: bool) -> Self {
        self.kernel_access = yes;
        self
    }
    /// Whether cached neighbours are mapped with a touched page; default yes.
    #[must_use]
    pub fn fault_around(mut self, yes: bool) -> Self {
        self.fault_around = yes;
        self
    }
    /// Whether fully cached extents are handed to the kernel on their own; default yes. [`Arena::promote`] does it on
    /// demand either way.
    #[must_use]
    pub fn native_extents(mut self, yes: bool) -> Self {
        self.native_extents = yes;
        self
    }
    /// Sets how much `Segv` delivery exposes at once (rounded to a power of two, 4 KiB to 2 MiB); default 2 MiB. Each
    /// exposed granule beside hidden ones costs kernel VMAs: 4 KiB granules over 256 MiB need 65,536.
    #[must_use]
    pub fn granule(mut self, bytes: usize) -> Self {
        self.granule_bytes = bytes.clamp(PAGE_SIZE, EXTENT_SIZE).next_power_of_two();
        self
    }
    /// Asks delegates before `fault` instead of by its `UFFD_MINOR` bit: the kernel's later design.
    #[must_use]
    pub fn lookup_first(mut self, yes: bool) -> Self {
        self.lookup_first = yes;
        self
    }

    /// Reserves the address space and makes the arena known to the handlers.
    ///
    /// # Errors
    /// [`Error::Delivery`] when the mode cannot be had, [`Error::Argument`] for no bytes or an address that is no multiple of
    /// 2 MiB, [`Error::AddressInUse`], [`Error::Exhausted`], [`Error::System`].
    #[expect(unsafe_code, reason = "publishes the arena to handlers")]
    pub fn build(self) -> Result<Arena> {
        let op = "ArenaBuilder::build";
        parent_only(op)?;
        let trap = self.choose()?;
        let len = self.len_bytes.checked_next_multiple_of(EXTENT_SIZE).filter(|l| *l > 0 && *l < 1 << 46);
        let len_bytes = len.ok_or(Error::Argument {
            op,
            arg: "len_bytes",
            value: self.len_bytes as u64,
            why: "must be between 1 byte and 64 TiB",
        })?;
        let nr = len_bytes >> EXTENT_SHIFT;
        let granules: Table<AtomicU64> = Table::new(nr).map_err(system(op, "mmap"))?;
        let extents: Table<Extent> = Table::new(nr).map_err(system(op, "mmap"))?;
        if trap == Trap::Segv {
            registry::lock().bound_exposures();
        }
        let mut registry = registry::lock();
        #[cfg(feature = "userfaultfd")]
        place::open_contexts(&mut registry, trap, self.mode_of(trap))?;
        let slot = registry.arenas.get().ok_or_else(registry::exhausted(op, "arenas (32768)"))?;
        let base = self.reserve(len_bytes).inspect_err(|_| registry.arenas.put(slot))?;
        let facts = ArenaFacts { base, len_bytes, granules: granules.lend(), trap, stat: self.rt.stat };
        // SAFETY: the slot's number was free; the arena withdraws it before its range and tables go.
        unsafe { vmatree::publish_arena(slot, &facts) }.map_err(|e| {
            registry.arenas.put(slot);
            // SAFETY: reserved above, and nobody has seen it.
            let _ = unsafe { mem::munmap(base, len_bytes) };
            system(op, "mmap")(e)
        })?;
        drop(registry);
        self.rt.arena_table_bytes.fetch_add(table_bytes(nr), Ordering::Relaxed);
        let inner = ArenaInner {
            rt: Arc::clone(&self.rt),
            slot,
            base,
            len_bytes,
            trap,
            fault_around: self.fault_around,
            native_extents: self.native_extents && trap != Trap::Segv,
            granule_pages: if trap == Trap::Segv { self.granule_bytes / PAGE_SIZE } else { 0 },
            lookup_first: self.lookup_first,
            extents,
            granules,
            vmas: masked::Mutex::new(VmaSet::default()),
            owed: Mutex::new(Vec::new()),
            pid: std::process::id(),
        };
        Ok(Arena { inner: Arc::new(inner) })
    }

    /// Settles the mode, and looks at no other. Auto never gives `InThread` to an arena that wants kernel access.
    fn choose(&self) -> Result<Trap> {
        let findings = &self.rt.findings;
        let mode = match (self.delivery, self.kernel_access) {
            (Delivery::Auto, true) => findings.choose_for_kernel_access().unwrap_or(Delivery::Monitor),
            (Delivery::Auto, false) => findings.choose(),
            (Delivery::Monitor, _) => Delivery::Monitor,
            (mode, true) => {
                let why = "kernel_access needs Monitor: in this mode system calls on the arena would fail with EFAULT";
                return Err(Error::Delivery { mode, why: why.into() });
            }
            (mode, false) => mode,
        };
        let finding = findings.of(mode);
        if !finding.available {
            return Err(Error::Delivery { mode, why: finding.why });
        }
        Ok(match mode {
            Delivery::Segv => Trap::Segv,
            Delivery::Monitor => Trap::Monitor,
            Delivery::InThread | Delivery::Auto => Trap::Uffd,
        })
    }

    #[cfg(feature = "userfaultfd")]
    fn mode_of(&self, trap: Trap) -> Delivery {
        match trap {
            Trap::Uffd => Delivery::InThread,
            Trap::Segv => Delivery::Segv,
            Trap::Monitor => Delivery::Monitor,
        }
    }
}

/// A range of address space over which objects are mapped. Cheap to clone; the last clone unmaps everything.
///
/// Offsets and ranges are bytes from the arena's first. **`InThread` and `Segv` arenas hold plain data**: a system call
/// that touches a page which is not resident fails with `EFAULT`, so locks, system-call buffers, paths and stacks need
/// [`Arena::pin`] or an arena with [`ArenaBuilder::kernel_access`].
#[derive(Clone, Debug)]
pub struct Arena {
    pub(crate) inner: Arc<ArenaInner>,
}

/// Lock order: an arena's `vmas` < an object's `i_mmap` < the registry.
pub(crate) struct ArenaInner {
    /// Keeps the runtime (its counters, contexts and handlers) for as long as the arena lives.
    pub(crate) rt: Arc<RuntimeInner>,
    pub(crate) slot: u32,
    pub(crate) base: usize,
    pub(crate) len_bytes: usize,
    pub(crate) trap: Trap,
    pub(crate) fault_around: bool,
    pub(crate) native_extents: bool,
    pub(crate) granule_pages: usize,
    pub(crate) lookup_first: bool,
    pub(crate) extents: Table<Extent>,
    granules: Table<AtomicU64>,
    pub(crate) vmas: masked::Mutex<VmaSet>,
    pub(crate) owed: Mutex<Vec<Owed>>,
    pid: u32,
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

    /// Counts a pin in or out of the extents that `range` touches.
    pub(crate) fn count_user_pins(&self, range: &Range<usize>, more: bool) {
        let last = (range.end - 1) >> EXTENT_SHIFT;
        self.extents.lend()[range.start >> EXTENT_SHIFT..=last].iter().for_each(|e| e.count_user_pin(more));
    }

    /// Faults each page of the range in; `exact`: also those that a hint says are mapped.
    pub(crate) fn fault_in(&self, op: &'static str, range: &Range<usize>, access: Access, exact: bool) -> Result<()> {
        // What is resident may be protected from loads by now: the walk says so.
        let refused = !exact && access == Access::Read && !self.permits_loads(op, range);
        let exact = exact || refused;
        let mut at = range.start;
        while at < range.end {
            let extent = self.extents.lend().get(at >> EXTENT_SHIFT);
            let native = extent.is_some_and(|e| matches!(e.state(), ExtentState::Native | ExtentState::Tracked));
            let hinted = extent.is_some_and(|e| e.maybe_mapped(Extent::page_index(self.base + at)));
            if native && !refused {
                at = ((at >> EXTENT_SHIFT) + 1) << EXTENT_SHIFT;
                continue;
            }
            if exact || !hinted || access == Access::Write || self.trap == Trap::Segv {
                self.fault_patiently(op, at, access)?;
            }
            at += PAGE_SIZE;
        }
        Ok(())
    }

    fn permits_loads(&self, op: &'static str, range: &Range<usize>) -> bool {
        self.vmas().covering(op, range).is_ok_and(|hit| hit.iter().all(|v| v.prot != Prot::None))
    }

    /// Makes sure that a range which is pinned has its page-table entries: extents that were native when it was faulted
    /// in have none for pages nobody touched, and would miss them when they are demoted.
    #[expect(unsafe_code, reason = "populates the arena's own page tables")]
    pub(crate) fn make_present(&self, op: &'static str, range: &Range<usize>, access: Access) -> Result<()> {
        if self.trap == Trap::Segv {
            if access == Access::Read {
                // What is exposed stays so: nothing hides a pinned page.
                return Ok(());
            }
            // A window for loads leaves alone what is noted as exposed; one that looked before has left its section.
            let mut at = range.start;
            while at < range.end {
                if let Some(extent) = self.extents.lend().get(at >> EXTENT_SHIFT) {
                    extent.note_mapped(Extent::page_index(self.base + at), 1);
                }
                at += PAGE_SIZE;
            }
            section::synchronize();
            let (addr, prot) = (self.base + range.start, mem::PROT_READ | mem::PROT_WRITE);
            // SAFETY: the arena's own range; its mapping permits stores, and its pages are pinned, uptodate and dirty.
            let opened = self.with_room(|| unsafe { mem::mprotect(addr, range.len(), prot) });
            return opened.map_err(system(op, "mprotect"));
        }
        let advice = if access == Access::Write { mem::MADV_POPULATE_WRITE } else { mem::MADV_POPULATE_READ };
        let mut patience = 1_000;
        loop {
            // SAFETY: the arena's own range; populating maps what a touch would map.
            match unsafe { mem::madvise(self.base + range.start, range.len(), advice) } {
                Ok(()) => return Ok(()),
                // An extent came back from the kernel meanwhile: its pages are ours to map.
                Err(Errno::EFAULT | Errno::EAGAIN | Errno::EINTR) if patience > 0 => patience -= 1,
                Err(errno) => return Err(system(op, "madvise")(errno)),
            }
            // Also where an extent is said to be the kernel's: one that it did not let go of may be trapped all the same.
            for at in range.clone().step_by(PAGE_SIZE) {
                self.fault_patiently(op, at, access)?;
            }
        }
    }

    /// Makes the error of an access at arena byte `at`, with what is mapped there.
    fn fault_error(
        &self,
        op: &'static str,
        at: usize,
        access: Access,
        cause: Option<FillError>,
        reason: Option<VmFaultReason>,
    ) -> Error {
        let found = self.vmas().covering(op, &(at..at + 1)).ok().and_then(|hit| hit.into_iter().next());
        let byte = |v: &VmaEntry| (v.pgoff << PAGE_SHIFT) + (at - v.range.start) as u64;
        let object_offset = found.as_ref().map(byte);
        let place =
            Place { mapping: found.as_ref().map(|v| v.object.mapping()), object_offset, arena_offset: Some(at) };
        fault::fault(op, access, place, cause, reason)
    }
}

/// Returns the bytes of the tables of an arena of `nr` extents.
fn table_bytes(nr: usize) -> u64 {
    (Table::<AtomicU64>::bytes(nr) + Table::<Extent>::bytes(nr)) as u64
}

impl Arena {
    /// Returns the arena's first address. Safe: what may be done with it is up to who dereferences it.
    ///
    /// System calls that change mappings (mprotect, mmap, munmap, mremap, madvise) are the arena's alone. **Under `Segv` an
    /// mprotect(2) of the program's shows zeros where nothing is cached**: pages are told from holes by their protection there.
    /// It cannot be prevented; [`Stats`](crate::Stats) and [`Runtime::audit_threads`](crate::Runtime::audit_threads) find it, close what was opened, and count
    /// (`process_opened_pages`). Use [`Arena::protect`].
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.inner.base as *mut u8
    }
    /// Returns the arena's length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.len_bytes
    }
    /// Returns `false`: an arena has at least 2 MiB.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
    /// Returns how the arena's faults arrive.
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
        self.inner.map(object, (offset, object_offset, len_bytes), prot, sharing)
    }

    /// Unmaps the range, splitting mappings at its ends. Waits for faults that are being resolved in it.
    ///
    /// Touching it afterwards raises SIGSEGV. A range with nothing in it is fine.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Pinned`], [`Error::Exhausted`]. Nothing is unmapped then. [`Error::Fault`] naming the
    /// first page of an exclusive object that its store did not take: unmapped it is all the same.
    pub fn unmap(&self, range: Range<usize>) -> Result<()> {
        self.inner.check_range("Arena::unmap", &range)?;
        self.inner.unmap_locked(&mut self.inner.vmas(), &range)
    }

    /// Changes what the range permits, splitting mappings at its ends.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::NotMapped`], [`Error::Pinned`], [`Error::Denied`], [`Error::Exhausted`]. Nothing is
    /// changed then.
    pub fn protect(&self, range: Range<usize>, prot: Prot) -> Result<()> {
        self.inner.check_range("Arena::protect", &range)?;
        self.inner.protect(&range, prot)
    }

    /// Makes the range resident, as touching each page with `access` would; it may be evicted again at any time.
    ///
    /// # Errors
    /// [`Error::Fault`] naming the first page that cannot be had; those before it are resident.
    pub fn fault_in(&self, range: Range<usize>, access: Access) -> Result<()> {
        self.inner.check_range("Arena::fault_in", &range)?;
        self.inner.fault_in("Arena::fault_in", &range, access, false)
    }

    /// Makes the range resident and keeps it so until the pin is dropped: system calls, `O_DIRECT`, futexes and
    /// asynchronous I/O may use it. Pinned for writing, it counts as dirty. Its pages are locked in memory (mlock(2)), if that
    /// may be: [`Pin::is_locked`].
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
    /// # Errors
    /// [`Error::NotMapped`], [`Error::Fault`].
    pub fn read_at(&self, offset: usize, buf: &mut [u8]) -> Result<()> {
        parent_only("Arena::read_at")?;
        pin::read_at(&self.inner, offset, buf)
    }

    /// Writes mapped bytes without a fault of the caller's.
    ///
    /// # Errors
    /// [`Error::NotMapped`], [`Error::Denied`], [`Error::Fault`].
    pub fn write_at(&self, offset: usize, buf: &[u8]) -> Result<()> {
        parent_only("Arena::write_at")?;
        pin::write_at(&self.inner, offset, buf)
    }

    /// Drops the page-table entries of shared mappings in the range; the pages stay cached. Linux:
    /// `madvise(MADV_DONTNEED)`.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Pinned`], [`Error::Denied`] where a private mapping lies in the range: its
    /// written pages would be lost.
    pub fn zap(&self, range: Range<usize>) -> Result<()> {
        self.inner.check_range("Arena::zap", &range)?;
        self.inner.zap("Arena::zap", &range)
    }

    /// Hands every fully cached extent of the range to the kernel; returns how many went.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn promote(&self, range: Range<usize>) -> Result<usize> {
        self.inner.check_range("Arena::promote", &range)?;
        Ok(self.inner.promote(&range))
    }

    /// Takes the native extents of the range back; returns how many came.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Exhausted`] when the process has no mapping left to split.
    pub fn demote(&self, range: Range<usize>) -> Result<usize> {
        self.inner.check_range("Arena::demote", &range)?;
        self.inner.demote(&range)
    }

    /// Tells `delegate` of the first touch of each page of the range, before it is mapped; a worker thread calls it.
    ///
    /// Pages of the range that are mapped already are unmapped first, so that nothing escapes. The range stays trapped.
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
        self.inner.delegate_minor(&range, delegate, false)
    }

    /// As [`Arena::delegate_minor`]; the delegate runs in the faulting thread, in a signal handler.
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
        self.inner.delegate_minor(&range, delegate, true)
    }

    /// Returns how many of the range's extents are the kernel's now.
    #[must_use]
    pub fn native_extents(&self) -> usize {
        let native = |e: &&Extent| matches!(e.state(), ExtentState::Native | ExtentState::Tracked);
        self.inner.extents.lend().iter().filter(native).count()
    }

    /// Says how a range will be used, or what is to be done with it now. Linux: `madvise(2)`.
    ///
    /// `Normal`, `Sequential` and `Random` split mappings at the range's ends. The range must be mapped throughout.
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
}
