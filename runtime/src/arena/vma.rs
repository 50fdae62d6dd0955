//! Map, unmap, protect: the control plane's side of the published vmas.
//!
//! The order of steps is the rule; each is there because a touch in between must never reach an unregistered hole:
//! ```text
//! map      mmap(PROT_NONE) - REGISTER - list - publish - mprotect
//! unmap    demote - publish what stays - drain sections - demote - mmap(PROT_NONE) over it
//! protect  demote - publish - drain - demote - mprotect
//! ```
//! A record is never changed while published: a split or a change of flags is a new record.
//!
//! A call that fails leaves everything as it was. What may fail comes before what is visible (extents are taken back, and
//! split tables had, before anything is published; an extent that is promoted in between is taken back again), and what
//! was done is undone by the step itself ([`crate::undo`]), or by [`publish::Swap`], which exists once it was done.

#![expect(unsafe_code, reason = "lends a delegation to the record that its entry publishes")]

use super::delegate::DelegationInner;
use super::exclusive;
use crate::arena::ArenaInner;
use crate::object::Object;
use crate::object::fault::Call;
use crate::object::state::ObjectInner;
use crate::process::registry;
use crate::types::{Prot, Sharing};
use softfault_mm::host::Which;
use softfault_mm::ops::Mmu;
use softfault_mm::page::PAGE_SHIFT;
use softfault_mm::sync::Ordering;
use softfault_mm::types::VmFlags;
use softfault_mm::vma::Vma;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd::{self, Kind};
use softfault_platform::sys::mem;
use softfault_platform::vmatree::Trap;
use std::ops::Range;
use std::sync::Arc;

/// One mapping of an arena, as the control plane knows it. Addresses are arena offsets.
#[derive(Clone, Debug)]
pub(crate) struct VmaEntry {
    pub(crate) range: Range<usize>,
    pub(crate) pgoff: u64,
    pub(crate) object: Arc<ObjectInner>,
    pub(crate) prot: Prot,
    pub(crate) sharing: Sharing,
    /// The value that was mapped permits writing.
    pub(crate) may_write: bool,
    /// How it is said to be read: `RAND_READ`, `SEQ_READ` or nothing.
    pub(crate) advice: VmFlags,
    pub(super) index: u32,
    /// It stands in for one that is being put there: nothing is mapped through it, and who touches it waits.
    pub(super) is_changing: bool,
    pub(super) delegation: Option<Arc<DelegationInner>>,
    pub(super) _map: Arc<MapCount>,
}

/// One call of `map`, shared by the pieces that splits make of it; counted in the object for as long as one is left.
#[derive(Debug)]
pub(super) struct MapCount(Arc<ObjectInner>);

impl MapCount {
    fn new(object: &Arc<ObjectInner>) -> Arc<Self> {
        object.mapping().nr_maps.fetch_add(1, Ordering::SeqCst);
        Arc::new(Self(Arc::clone(object)))
    }
}

impl Drop for MapCount {
    fn drop(&mut self) {
        self.0.mapping().nr_maps.fetch_sub(1, Ordering::SeqCst);
    }
}

impl VmaEntry {
    /// A call of `map`: `pgoff` of an object at a range.
    pub(super) fn new(what: (Range<usize>, u64, &Object), (prot, sharing): (Prot, Sharing), index: u32) -> Self {
        let (range, pgoff, Object { inner, writable: may_write, .. }) = what;
        let (_map, object, may_write) = (MapCount::new(inner), Arc::clone(inner), *may_write);
        let (advice, is_changing, delegation) = (VmFlags::empty(), false, None);
        Self { range, pgoff, object, prot, sharing, may_write, advice, index, is_changing, delegation, _map }
    }
    pub(crate) fn may_write_shared(&self) -> bool {
        self.sharing == Sharing::Shared && self.may_write
    }
    /// Returns whether it maps the object with this number.
    pub(super) fn is_of(&self, object: u32) -> bool {
        self.object.mapping().id == object
    }
    pub(crate) fn is_private(&self) -> bool {
        self.sharing == Sharing::Private
    }
    pub(super) fn which(&self) -> Which {
        if self.sharing == Sharing::Shared { Which::Shared } else { Which::Private }
    }
    pub(super) fn pgoff_at(&self, offset: usize) -> u64 {
        self.pgoff + ((offset - self.range.start) >> PAGE_SHIFT) as u64
    }
    pub(super) fn cut(&self, range: Range<usize>) -> Self {
        Self { pgoff: self.pgoff_at(range.start), range, ..self.clone() }
    }
}

pub(super) fn prot_bits(prot: Prot) -> i32 {
    match prot {
        Prot::None => mem::PROT_NONE,
        Prot::Read => mem::PROT_READ,
        Prot::ReadWrite => mem::PROT_READ | mem::PROT_WRITE,
    }
}

impl ArenaInner {
    pub(crate) fn address(&self, offset: usize) -> usize {
        self.base + offset
    }

    /// Returns the page tables and the tracking flags of a vma.
    pub(super) fn mmu_of(&self, v: &VmaEntry) -> (&'static dyn Mmu, VmFlags) {
        #[cfg(feature = "userfaultfd")]
        if v.object.is_exclusive()
            && let Ok(mmu) = registry::exclusive_mmu()
        {
            return (mmu, VmFlags::empty());
        }
        #[cfg(feature = "userfaultfd")]
        if let Some(kind) = self.kind_of(v)
            && let Some(mmu) = uffd::context(kind)
        {
            let wp = match kind {
                _ if !v.may_write_shared() || !mmu.has_wp() => VmFlags::empty(),
                Kind::Sync => VmFlags::WP_SYNC,
                Kind::Async | Kind::Monitor => VmFlags::WP_ASYNC,
            };
            return (mmu, wp);
        }
        // By protection a first store to a granule that was exposed for reading is a fault again.
        let wp = if v.may_write_shared() { VmFlags::WP_SYNC } else { VmFlags::empty() };
        (registry::segv_mmu(), wp)
    }

    #[cfg(feature = "userfaultfd")]
    pub(super) fn kind_of(&self, v: &VmaEntry) -> Option<Kind> {
        match self.trap {
            Trap::Uffd if v.object.sync_wp && v.sharing == Sharing::Shared => Some(Kind::Sync),
            Trap::Uffd => Some(Kind::Async),
            Trap::Monitor => Some(Kind::Monitor),
            Trap::Segv => None,
        }
    }

    /// Returns whether the first store to a page of a shared mapping can be made to fault.
    pub(super) fn faults_on_first_store(&self) -> bool {
        #[cfg(feature = "userfaultfd")]
        if self.trap == Trap::Uffd {
            return uffd::context(Kind::Sync).is_some_and(uffd::UffdMmu::has_wp);
        }
        self.trap == Trap::Segv
    }

    fn flags_of(&self, v: &VmaEntry, tracking: VmFlags) -> VmFlags {
        if v.object.is_exclusive() {
            return exclusive::flags_of(v);
        }
        let mut flags = tracking | v.advice;
        if v.is_changing {
            flags |= VmFlags::CHANGING;
        }
        flags |= match v.prot {
            Prot::None => VmFlags::empty(),
            Prot::Read => VmFlags::READ,
            Prot::ReadWrite => VmFlags::READ | VmFlags::WRITE,
        };
        if v.sharing == Sharing::Shared {
            flags |= VmFlags::SHARED;
        }
        if v.sharing == Sharing::Private || v.may_write {
            flags |= VmFlags::MAYWRITE;
        }
        if v.object.dsync && v.sharing == Sharing::Shared {
            flags |= VmFlags::SYNC;
        }
        if self.native_extents && v.prot != Prot::None {
            flags |= VmFlags::NATIVE_OK;
        }
        if !self.fault_around {
            flags |= VmFlags::MAP_SINGLE;
        }
        if v.delegation.is_some() {
            flags |= VmFlags::UFFD_MINOR;
            if self.lookup_first {
                flags |= VmFlags::UFFD_LOOKUP_FIRST;
            }
        }
        flags
    }

    /// Returns the vma that handlers see.
    pub(crate) fn vma_of(&self, v: &VmaEntry) -> Vma<'static> {
        let (mmu, tracking) = self.mmu_of(v);
        Vma {
            start: self.address(v.range.start),
            end: self.address(v.range.end),
            pgoff: v.pgoff,
            flags: self.flags_of(v, tracking),
            ops: v.object.vm_ops(),
            mapping: v.object.mapping(),
            mmu,
            extents: self.extents.lend(),
            arena_base: self.base,
            granule_pages: if v.delegation.is_some() { self.granule_pages.min(1) } else { self.granule_pages },
            // SAFETY: the entry holds the delegation, and outlives its publication.
            delegation: v.delegation.as_ref().and_then(|d| unsafe { d.lend() }),
        }
    }
}

impl VmaEntry {
    /// Returns how an error of `op` on the arena names bytes of the object.
    pub(crate) fn call(&self, op: &'static str) -> Call {
        Call { op, arena: Some(self.range.start.wrapping_sub((self.pgoff << PAGE_SHIFT) as usize)) }
    }
}

/// Returns the arena range of the object's pages `from..to`, as far as the entry maps them.
pub(crate) fn range_of(v: &VmaEntry, from: u64, to: u64) -> Option<Range<usize>> {
    let nr = (v.range.len() >> PAGE_SHIFT) as u64;
    let lo = from.max(v.pgoff);
    let hi = to.min(v.pgoff + nr);
    (lo < hi).then(|| {
        let start = v.range.start + (((lo - v.pgoff) as usize) << PAGE_SHIFT);
        start..start + (((hi - lo) as usize) << PAGE_SHIFT)
    })
}
