//! One mapping of an arena, as the control plane knows it.
//!
//! # Context: control plane

use super::delegation::DelegationInner;
use crate::object::fault::Call;
use crate::object::state::ObjectInner;
use crate::types::{Prot, Sharing};
use softfault_mm::host::Which;
use softfault_mm::page::PAGE_SHIFT;
use softfault_mm::sync::Ordering;
use softfault_mm::types::VmFlags;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd::Kind;
use softfault_platform::sys::mem;
#[cfg(feature = "userfaultfd")]
use softfault_platform::vmatree::Trap;
use std::ops::Range;
use std::sync::Arc;

/// What a call asks to map.
#[derive(Clone, Copy)]
pub(super) struct MapRequest<'a> {
    pub(super) object: &'a Arc<ObjectInner>,
    /// The value that is mapped permits writing.
    pub(super) may_write: bool,
    /// From which byte of the arena on.
    pub(super) offset: usize,
    /// From which byte of the object on.
    pub(super) object_offset: u64,
    pub(super) len_bytes: usize,
    pub(super) prot: Prot,
    pub(super) sharing: Sharing,
}

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
    /// The kernel maps a file there itself, of the same bytes: no page of the object's is.
    pub(crate) is_direct: bool,
    pub(super) delegation: Option<Arc<DelegationInner>>,
    pub(super) _map: Arc<MapCount>,
}

/// One call of `map`, shared by the pieces that splits make of it; counted in the object for as long as one is left.
#[derive(Debug)]
pub(super) struct MapCount {
    object: Arc<ObjectInner>,
    /// Stores through it reach the object, and no capture can hold them.
    is_uncapturable: bool,
}

impl MapCount {
    fn new(object: &Arc<ObjectInner>, is_uncapturable: bool) -> Arc<Self> {
        // SeqCst pairs with `MinorFault::rewrite`: who rewrites a page sees the mapping, or the mapping finds the page taken.
        object.mapping().nr_maps.fetch_add(1, Ordering::SeqCst);
        // Relaxed: a capture looks under the object's gate, and who maps looks for a capture under it.
        object.mapping().captured.nr_uncapturable.fetch_add(u32::from(is_uncapturable), Ordering::Relaxed);
        Arc::new(Self { object: Arc::clone(object), is_uncapturable })
    }
}

impl Drop for MapCount {
    fn drop(&mut self) {
        // SeqCst pairs with `MinorFault::rewrite`, as in `new`.
        let mapping = self.object.mapping();
        mapping.nr_maps.fetch_sub(1, Ordering::SeqCst);
        mapping.captured.nr_uncapturable.fetch_sub(u32::from(self.is_uncapturable), Ordering::Relaxed);
    }
}

impl VmaEntry {
    /// A call of `map`: `pgoff` of an object at a range.
    pub(super) fn new(request: &MapRequest<'_>, range: Range<usize>, index: u32, capturable: bool) -> Self {
        let MapRequest { object, may_write, object_offset, prot, sharing, .. } = *request;
        let pgoff = object_offset >> PAGE_SHIFT;
        let is_uncapturable = sharing == Sharing::Shared && may_write && !capturable;
        let (_map, object) = (MapCount::new(object, is_uncapturable), Arc::clone(object));
        let (advice, is_changing, delegation) = (VmFlags::empty(), false, None);
        let is_direct = false;
        Self { range, pgoff, object, prot, sharing, may_write, advice, index, is_changing, is_direct, delegation, _map }
    }
    /// Returns whether stores through the mapping may reach the object: the kernel's notes of them are looked at.
    pub(crate) fn may_write_shared(&self) -> bool {
        self.sharing == Sharing::Shared && self.may_write
    }
    /// Returns which userfaultfd context traps it in an arena of this kind; `None`: it is trapped by protection.
    #[cfg(feature = "userfaultfd")]
    pub(super) fn kind(&self, trap: Trap, capturable: bool) -> Option<Kind> {
        match trap {
            Trap::Uffd if capturable || (self.object.sync_wp && self.sharing == Sharing::Shared) => Some(Kind::Sync),
            Trap::Uffd => Some(Kind::Async),
            Trap::Monitor => Some(Kind::Monitor),
            Trap::Segv => None,
        }
    }
    /// Returns whether it maps the object with this number.
    pub(super) fn is_of(&self, object: u32) -> bool {
        self.object.mapping().id == object
    }
    /// Returns whether stores reach this mapping alone.
    pub(crate) fn is_private(&self) -> bool {
        self.sharing == Sharing::Private
    }
    /// Returns on which of the object's lists it stands.
    pub(super) fn which(&self) -> Which {
        if self.sharing == Sharing::Shared { Which::Shared } else { Which::Private }
    }
    /// Returns the object's page at an offset of the arena.
    pub(super) fn pgoff_at(&self, offset: usize) -> u64 {
        self.pgoff + ((offset - self.range.start) >> PAGE_SHIFT) as u64
    }
    /// Returns the part of the mapping that lies in `range`.
    pub(super) fn cut(&self, range: Range<usize>) -> Self {
        Self { pgoff: self.pgoff_at(range.start), range, ..self.clone() }
    }
}

/// Returns what mprotect(2) is told.
pub(super) fn prot_bits(prot: Prot) -> i32 {
    match prot {
        Prot::None => mem::PROT_NONE,
        Prot::Read => mem::PROT_READ,
        Prot::ReadWrite => mem::PROT_READ | mem::PROT_WRITE,
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
