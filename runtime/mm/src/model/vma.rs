//! `Vma` (a range of an arena over a mapping), `VmFault` and `VmOps` (the vtable that a vma's faults go through).
//!
//! All of it is borrowed: the platform owns the tables and lends them for the length of a fault section.
//!
//! # Context: handler, inside a section

use crate::claim::{Claim, Telling};
use crate::ctx::Ctx;
use crate::cut::Admitted;
use crate::delegation::Delegation;
use crate::extent::Extent;
use crate::folio::{DIRTY, FolioWord};
use crate::mapping::Mapping;
use crate::ops::{Mmu, Pte, Staged, WaitKey};
use crate::page::{EXTENT_PAGES, EXTENT_SHIFT, PAGE_SHIFT, page_align_down, pgoff_index};
use crate::readahead::{Mode, NO_MARKER};
use crate::types::{FaultFlags, VmFaultReason, VmFlags};

/// A range of an arena over (part of) an object. Linux: `struct vm_area_struct`.
pub struct Vma<'g> {
    /// First address.
    pub start: usize,
    /// First address behind it.
    pub end: usize,
    /// The object's page at `start`.
    pub pgoff: u64,
    /// What it is and permits.
    pub flags: VmFlags,
    /// The vtable its faults go through.
    pub ops: &'g dyn VmOps,
    /// The object.
    pub mapping: &'g Mapping<'g>,
    /// The page tables.
    pub mmu: &'g dyn Mmu,
    /// The arena's extents; index 0 lies at `arena_base`.
    pub extents: &'g [Extent],
    /// The arena's first address, a multiple of the extent.
    pub arena_base: usize,
    /// Pages exposed at once (SIGSEGV delivery), a power of two; 0 otherwise.
    pub granule_pages: usize,
    /// Who is told of first touches.
    pub delegation: Option<&'g Delegation<'g>>,
}

impl core::fmt::Debug for Vma<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Not the tables, of which the arena has a word for each 2 MiB.
        f.debug_struct("Vma")
            .field("start", &format_args!("{:#x}", self.start))
            .field("end", &format_args!("{:#x}", self.end))
            .field("pgoff", &self.pgoff)
            .field("flags", &self.flags)
            .field("mapping", &self.mapping)
            .finish_non_exhaustive()
    }
}

impl Vma<'_> {
    /// Returns the object's page at `addr`, which lies in the vma.
    ///
    /// # Context: handler, inside a section
    #[inline]
    #[must_use]
    pub fn pgoff_at(&self, addr: usize) -> u64 {
        self.pgoff.wrapping_add((addr.wrapping_sub(self.start) >> PAGE_SHIFT) as u64)
    }

    /// Returns the address of page `pgoff`, which lies in the vma.
    ///
    /// # Context: handler, inside a section
    #[inline]
    #[must_use]
    pub fn address_of(&self, pgoff: u64) -> usize {
        self.start.wrapping_add(pgoff_index(pgoff.wrapping_sub(self.pgoff)) << PAGE_SHIFT)
    }

    /// Returns the page behind the vma's last one.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn pgoff_end(&self) -> u64 {
        self.pgoff.wrapping_add((self.end.wrapping_sub(self.start) >> PAGE_SHIFT) as u64)
    }

    /// Returns the extent that holds `addr`.
    ///
    /// # Context: handler, inside a section
    #[inline]
    #[must_use]
    pub fn extent(&self, addr: usize) -> Option<&Extent> {
        self.extents.get(addr.wrapping_sub(self.arena_base) >> EXTENT_SHIFT)
    }

    /// By granule: notes that a range was exposed for stores where others are exposed for loads.
    ///
    /// # Context: handler, inside a section
    pub fn note_split(&self, addr: usize, prot: crate::ops::Prot) {
        if self.granule_pages != 0
            && self.is_wp()
            && prot.write
            && !prot.wp
            && let Some(extent) = self.extent(addr)
        {
            extent.note_split();
        }
    }

    /// Calls `f(extent, index, nr)` for each part of the `nr` pages from `addr` that lies in one extent.
    ///
    /// # Context: handler, inside a section
    pub fn each_extent(&self, addr: usize, nr: usize, mut f: impl FnMut(&Extent, usize, usize)) {
        let (mut left, mut at) = (nr, addr);
        while left > 0 {
            let index = Extent::page_index(at);
            let here = left.min(EXTENT_PAGES - index);
            if let Some(extent) = self.extent(at) {
                f(extent, index, here);
            }
            left -= here;
            at = at.saturating_add(here << PAGE_SHIFT);
        }
    }

    /// Notes in the arena's extents that `nr` pages from `addr` were mapped.
    ///
    /// # Context: handler, inside a section
    pub fn note_mapped(&self, addr: usize, nr: usize) {
        self.each_extent(addr, nr, |extent, index, here| extent.note_mapped(index, here));
    }

    /// Looks at entries before pages are mapped there, pinned and protected: one that is empty, and may have held a store, would
    /// say from then on that there was none; so the word says it. Before the install is noted.
    ///
    /// # Context: handler
    pub(crate) fn keep_notes(&self, addr: usize, nr: usize) {
        if self.is_noted() {
            let mut from = addr;
            self.each_extent(addr, nr, |extent, index, here| {
                if !extent.are_untouched(index, here) {
                    (0..here).for_each(|i| self.keep_note(extent, from + (i << PAGE_SHIFT)));
                }
                from += here << PAGE_SHIFT;
            });
        }
    }

    #[cold]
    fn keep_note(&self, extent: &Extent, addr: usize) {
        if !extent.is_untouched(Extent::page_index(addr))
            // One that cannot be looked at counts as written, and so may be empty.
            && matches!(self.mmu.pte(addr), Pte::None | Pte::Written)
            && let Some(word) = self.mapping.folio(self.pgoff_at(addr))
        {
            self.mapping.account_dirtied(u64::from(!word.set(DIRTY).has(DIRTY)));
        }
    }

    /// Notes pages that are about to be mapped, where the host may empty an entry and a store with it: see [`Extent`].
    /// Where captures protect what was ever mapped, that something was.
    pub(crate) fn note_install(&self, addr: usize, nr: usize) {
        if self.flags.intersects(VmFlags::CAPTURABLE) {
            self.each_extent(addr, nr, |extent, _, _| extent.mark_touched());
        }
        if self.is_noted() {
            self.each_extent(addr, nr, |extent, index, here| extent.note_install(index, here));
        }
    }

    /// Takes that back where the install failed, or windows would pass over the pages for ever. Somebody else may have noted the
    /// same pages, and have mapped them: so the extent is unknown from here on.
    #[cold]
    pub(crate) fn forget_install(&self, addr: usize, nr: usize) {
        if self.is_noted() {
            self.each_extent(addr, nr, |extent, index, here| {
                extent.mark_unknown();
                extent.note_zapped(index, here);
            });
        }
    }

    /// Returns whether extents of the vma coincide with chunks of its object.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn is_congruent(&self) -> bool {
        let extent_pages = EXTENT_PAGES as u64;
        (self.start >> PAGE_SHIFT) as u64 % extent_pages == self.pgoff % extent_pages
    }

    /// Returns how the vma is said to be read, or else its object.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn read_mode(&self) -> Mode {
        if self.flags.intersects(VmFlags::RAND_READ) {
            Mode::Random
        } else if self.flags.intersects(VmFlags::SEQ_READ) {
            Mode::Sequential
        } else {
            self.mapping.ra.mode()
        }
    }

    /// Returns whether a store through the vma may reach the object without anybody noting it.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn is_unseen(&self) -> bool {
        self.flags.may_write_shared() && !self.is_wp()
    }

    /// Returns whether the host notes first stores in its page tables, and an empty entry may have held such a note.
    ///
    /// # Context: handler, inside a section
    #[inline]
    #[must_use]
    pub fn is_noted(&self) -> bool {
        self.flags.contains(VmFlags::WP_ASYNC) && !self.mapping.always_dirty
    }

    /// Returns whether stores are noted or faulted on when pages are installed.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn is_wp(&self) -> bool {
        self.flags.intersects(VmFlags::WP_ASYNC.union(VmFlags::WP_SYNC)) && !self.mapping.always_dirty
    }
}

/// What must be done outside the section before the fault can go on.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    #[default]
    None,
    /// Read the claimed pages.
    Fill(Claim),
    /// Read the missing page that the claim, which is of no pages, names, and what readahead adds to it.
    Read(Claim, Mode),
    /// Read one page into a staging page, for a private copy; the claim is of no pages, it keeps the object alive.
    Cow(Claim),
    /// Make a page's block durable; as above.
    Dsync(Claim),
    /// Make room in the cache; as above.
    Reclaim(Claim),
    /// The store is through; let its thread wait for write-back, with `COMPLETED`. As above.
    Throttle(Claim),
    /// Call the delegate.
    Tell(Telling),
    /// Sleep on a word.
    Wait(WaitKey, u64),
    /// Hide what is exposed elsewhere: the host has no room for more.
    Crowded,
    /// Sleep on a word that moves when a mapping has been exchanged; no deadline is in question.
    Change(WaitKey),
}

/// A private copy under way: the staging page, and the version the cache page had before it was read.
#[derive(Debug)]
pub struct CowPage<'a> {
    /// The bytes.
    pub staged: &'a Staged,
    /// What must not have moved.
    pub version: u32,
}

/// How a vtable that fills pages itself wakes whoever waits for them: by the address of the folio word.
#[derive(Clone, Copy)]
pub struct Waker<'a>(pub &'a dyn Fn(usize));

impl core::fmt::Debug for Waker<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Waker")
    }
}

/// One fault. Linux: `struct vm_fault`; the upper part is constant, the lower is what `fault` answers.
#[derive(Debug)]
pub struct VmFault<'a> {
    ctx: &'a Ctx<'a>,
    vma: &'a Vma<'a>,
    pgoff: u64,
    real_address: usize,
    flags: FaultFlags,
    /// Wakes sleepers of a folio word; the walk sets it, a fault made by hand may have nobody to wake.
    pub waker: Option<Waker<'a>>,
    /// A private copy that was read for this fault.
    pub cow: Option<&'a CowPage<'a>>,
    /// The deadline passed while this fault waited.
    pub timed_out: bool,
    /// The page `fault` found, pinned; it goes with `LOCKED`.
    pub folio: Option<&'a FolioWord>,
    /// What `RETRY` asks for.
    pub work: Work,
    /// The marker of a readahead window that was mapped or pinned, or `NO_MARKER`.
    pub marker: u64,
    /// What was found of a capture when this attempt began, which goes on by it.
    pub(crate) admitted: Admitted,
}

impl<'a> VmFault<'a> {
    /// Returns a fault at `real_address`, which lies in `vma`.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn new(ctx: &'a Ctx<'a>, vma: &'a Vma<'a>, real_address: usize, flags: FaultFlags) -> Self {
        let pgoff = vma.pgoff_at(page_align_down(real_address));
        Self {
            ctx,
            vma,
            pgoff,
            real_address,
            flags,
            waker: None,
            cow: None,
            timed_out: false,
            folio: None,
            work: Work::None,
            marker: NO_MARKER,
            admitted: Admitted::No,
        }
    }
    /// Returns the context.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn ctx(&self) -> &'a Ctx<'a> {
        self.ctx
    }
    /// Returns the vma.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn vma(&self) -> &'a Vma<'a> {
        self.vma
    }
    /// Returns the object's page.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn pgoff(&self) -> u64 {
        self.pgoff
    }
    /// Returns the address, page-aligned.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn address(&self) -> usize {
        page_align_down(self.real_address)
    }
    /// Returns the exact address.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn real_address(&self) -> usize {
        self.real_address
    }
    /// Returns how the access was made.
    ///
    /// # Context: handler, inside a section
    pub fn flags(&self) -> FaultFlags {
        self.flags
    }
    /// Returns whether the access is a store.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.flags.intersects(FaultFlags::WRITE)
    }
    /// Returns whether the access is a store that reaches the object.
    ///
    /// # Context: handler, inside a section
    #[must_use]
    pub fn is_shared_write(&self) -> bool {
        self.is_write() && self.vma.flags.contains(VmFlags::SHARED)
    }
}

/// The vtable of a vma. Linux: `struct vm_operations_struct`.
///
/// Every method runs inside a fault section, perhaps in a signal handler: it must not sleep, allocate, lock, print or
/// panic, and must not touch arena memory. What takes longer is returned as `RETRY` with [`VmFault::work`].
pub trait VmOps: Send + Sync + core::fmt::Debug {
    /// A vma with this vtable came to be.
    ///
    /// # Context: control plane: in the call that maps or splits
    fn open(&self, _mapping: &Mapping<'_>) {}

    /// A vma with this vtable is gone.
    ///
    /// # Context: control plane: in the call that splits or unmaps
    fn close(&self, _mapping: &Mapping<'_>) {}

    /// Finds the page: `LOCKED` with `vmf.folio` pinned, or bits that say why not.
    ///
    /// # Context: handler
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason;

    /// Maps pages `start..end` of the object that are in the cache; `NOPAGE` if the faulting one is mapped now.
    ///
    /// # Context: handler
    fn map_pages(&self, _vmf: &mut VmFault<'_>, _start: u64, _end: u64) -> VmFaultReason {
        VmFaultReason::empty()
    }

    /// Hands the extent to the kernel if it can: `NOPAGE`, else `FALLBACK`.
    ///
    /// # Context: handler
    fn huge_fault(&self, _vmf: &mut VmFault<'_>) -> VmFaultReason {
        VmFaultReason::FALLBACK
    }

    /// A clean page is about to be written through a shared mapping; any error bit refuses.
    ///
    /// # Context: handler
    fn page_mkwrite(&self, _vmf: &mut VmFault<'_>) -> VmFaultReason {
        VmFaultReason::empty()
    }

    /// Returns whether `page_mkwrite` is to be called at all.
    ///
    /// # Context: handler
    fn has_page_mkwrite(&self) -> bool {
        false
    }

    /// Returns whether page `pgoff` is in the cache and before the end, without side effects: what the kernel's later design
    /// (`vm_uffd_ops::get_folio_noalloc`) asks before `fault`.
    ///
    /// # Context: handler
    fn get_folio_noalloc(&self, mapping: &Mapping<'_>, pgoff: u64) -> bool {
        pgoff < mapping.nr_pages() && mapping.folio(pgoff).is_some_and(|w| w.load().is_mappable())
    }
}
