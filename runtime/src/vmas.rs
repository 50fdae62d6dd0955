//! Map, unmap, protect: the control plane's side of the published vmas.
//!
//! The order of steps is the rule; each is there because a touch in between must never reach an unregistered hole:
//! ```text
//! map      mmap(PROT_NONE) - REGISTER - publish - mprotect
//! unmap    publish what stays - drain sections - demote - mmap(PROT_NONE) over it
//! protect  publish - drain - mprotect
//! ```
//! A record is never changed while published: a split or a change of flags is a new record.

#![expect(unsafe_code, reason = "maps objects over the arena's own address range")]

mod advice;
mod check;
mod delegations;
mod extents;
mod replace;
mod set;
mod zap;

pub(crate) use set::VmaSet;

use crate::arena::{ArenaInner, Prot, Sharing};
use crate::error::{Error, Result, system};
use crate::exclusive;
use crate::io::Call;
use crate::object::{Object, ObjectInner};
use crate::registry;
use delegations::DelegationInner;
use softfault_mm::failpoint;
use softfault_mm::host::Which;
use softfault_mm::ops::Mmu;
use softfault_mm::page::{EXTENT_SIZE, PAGE_SHIFT};
use softfault_mm::sync::Ordering;
use softfault_mm::types::VmFlags;
use softfault_mm::vma::Vma;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd::{self, Kind};
use softfault_platform::section;
use softfault_platform::sys::mem;
use softfault_platform::thp;
use softfault_platform::vmatree::{self, Trap};
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
    index: u32,
    /// It stands in for one that is being put there: nothing is mapped through it, and who touches it waits.
    is_changing: bool,
    delegation: Option<Arc<DelegationInner>>,
    _map: Arc<MapCount>,
}

/// One call of `map`, shared by the pieces that splits make of it; counted in the object for as long as one is left.
#[derive(Debug)]
struct MapCount(Arc<ObjectInner>);

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
    fn new(what: (Range<usize>, u64, &Object), (prot, sharing): (Prot, Sharing), index: u32) -> Self {
        let (range, pgoff, Object { inner, writable: may_write, .. }) = what;
        let (_map, object, may_write) = (MapCount::new(inner), Arc::clone(inner), *may_write);
        let (advice, is_changing, delegation) = (VmFlags::empty(), false, None);
        Self { range, pgoff, object, prot, sharing, may_write, advice, index, is_changing, delegation, _map }
    }
    pub(crate) fn may_write_shared(&self) -> bool {
        self.sharing == Sharing::Shared && self.may_write
    }
    pub(crate) fn is_private(&self) -> bool {
        self.sharing == Sharing::Private
    }
    fn which(&self) -> Which {
        if self.sharing == Sharing::Shared { Which::Shared } else { Which::Private }
    }
    /// Lets reclaim and write-back find the vma, whose record is written.
    fn list(&self) {
        if self.is_changing {
            return;
        }
        let _lists = self.object.i_mmap().lists();
        // SAFETY: `write_record` filled the record; `unlist` and `section::synchronize` come before the number is free.
        unsafe { vmatree::rmap_add(self.object.mapping().id, self.which(), self.index) };
    }
    /// Takes the vma off that list again; readers may still see it until `section::synchronize` has returned.
    fn unlist(&self) {
        if self.is_changing {
            return;
        }
        let _lists = self.object.i_mmap().lists();
        vmatree::rmap_remove(self.object.mapping().id, self.which(), self.index);
    }
    fn pgoff_at(&self, offset: usize) -> u64 {
        self.pgoff + ((offset - self.range.start) >> PAGE_SHIFT) as u64
    }
    fn cut(&self, range: Range<usize>) -> Self {
        Self { pgoff: self.pgoff_at(range.start), range, ..self.clone() }
    }
}

fn prot_bits(prot: Prot) -> i32 {
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
    fn mmu_of(&self, v: &VmaEntry) -> (&'static dyn Mmu, VmFlags) {
        #[cfg(feature = "userfaultfd")]
        if v.object.is_exclusive()
            && let Ok(mmu) = exclusive::mmu()
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
    fn kind_of(&self, v: &VmaEntry) -> Option<Kind> {
        match self.trap {
            Trap::Uffd if v.object.sync_wp && v.sharing == Sharing::Shared => Some(Kind::Sync),
            Trap::Uffd => Some(Kind::Async),
            Trap::Monitor => Some(Kind::Monitor),
            Trap::Segv => None,
        }
    }

    /// Returns whether the first store to a page of a shared mapping can be made to fault.
    fn faults_on_first_store(&self) -> bool {
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

    pub(crate) fn map(
        self: &Arc<Self>,
        object: &Object,
        offset: usize,
        object_offset: u64,
        len_bytes: usize,
        prot: Prot,
        sharing: Sharing,
    ) -> Result<()> {
        let op = "Arena::map";
        let range = self.check_map(op, object, (offset, object_offset, len_bytes), prot, sharing)?;
        let index = registry::lock().vmas.get().ok_or_else(registry::exhausted(op, "vmas (1048576)"))?;
        let entry = VmaEntry::new((range.clone(), object_offset >> PAGE_SHIFT, object), (prot, sharing), index);
        // The gate before the lock: evictions hold it while they look who maps the object.
        let gate = entry.object.i_mmap().gate();
        let mut vmas = self.vmas();
        let occupied = vmas.overlapping(&range).first().map(|v| Error::Occupied { range: v.range.clone() });
        let refused = occupied.or_else(|| exclusive::refusal(&entry.object));
        let opened = refused.is_none();
        let mapped = match refused {
            Some(error) => Err(error),
            None => {
                entry.object.i_mmap().add(self);
                entry.object.vm_ops().open(entry.object.mapping());
                self.map_and_publish(&entry)
            }
        };
        if let Err(error) = mapped {
            if opened {
                entry.object.vm_ops().close(entry.object.mapping());
            }
            registry::lock().vmas.put(index);
            return Err(error);
        }
        drop(gate);
        vmas.map.insert(range.start, entry);
        Ok(())
    }

    /// Maps, publishes and opens a new entry, or leaves the reservation as it was.
    fn map_and_publish(&self, v: &VmaEntry) -> Result<()> {
        let r = self.map_kernel(v).and_then(|()| {
            self.write_record(v);
            v.list();
            self.point(&v.range, Some(v.index))?;
            if self.trap == Trap::Segv {
                return Ok(());
            }
            // SAFETY: the range is this arena's, mapped and registered above.
            unsafe { mem::mprotect(self.address(v.range.start), v.range.len(), prot_bits(v.prot)) }
                .map_err(system("Arena::map", "mprotect"))
        });
        if r.is_err() {
            // Pointing at nothing needs no new table where the range was pointed at something.
            let _ = self.point(&v.range, None);
            v.unlist();
            section::synchronize();
            let _ = exclusive::leave(&v.object);
            if !self.unmap_kernel(&v.range, &v.range) {
                std::mem::forget(Arc::clone(&v.object));
            }
        }
        r
    }

    /// mmap(PROT_NONE) and REGISTER.
    fn map_kernel(&self, v: &VmaEntry) -> Result<()> {
        let op = "Arena::map";
        #[cfg(feature = "userfaultfd")]
        if v.object.is_exclusive() {
            return exclusive::map_kernel(self, v);
        }
        let (addr, len) = (self.address(v.range.start), v.range.len());
        let share = if v.sharing == Sharing::Shared { mem::MAP_SHARED } else { mem::MAP_PRIVATE };
        let flags = share | mem::MAP_FIXED | mem::MAP_NORESERVE;
        let region = &v.object.space.region;
        let at = v.object.offset + (v.pgoff << PAGE_SHIFT);
        let fd = region.fd().check().map_err(system(op, "fstat"))?;
        // SAFETY: the range is the arena's own reservation and holds no mapping (checked under the lock).
        unsafe { mem::mmap(addr, len, mem::PROT_NONE, flags, fd, at) }.map_err(system(op, "mmap"))?;
        failpoint!(MAP_REGISTER);
        #[cfg(feature = "userfaultfd")]
        if let Some(kind) = self.kind_of(v) {
            let mmu = uffd::context(kind).ok_or(Error::Exhausted { op, what: "userfaultfd contexts" })?;
            mmu.register(addr, len, v.may_write_shared()).map_err(system(op, "UFFDIO_REGISTER"))?;
        }
        for advice in [mem::MADV_DONTFORK, mem::MADV_DONTDUMP] {
            // SAFETY: the range mapped above; the advice concerns children and core dumps.
            unsafe { mem::madvise(addr, len, advice) }.map_err(system(op, "madvise"))?;
        }
        if !v.object.huge {
            // SAFETY: as above; the kernel's own collapser would take what is noted in the page table away.
            unsafe { thp::permit(addr, len, false) }.map_err(system(op, "madvise"))?;
        }
        Ok(())
    }

    /// Puts the bare reservation back over a range that no vma covers any more; it was part of the mapping `whole`.
    ///
    /// `false`: the kernel is out of vmas and goes on mapping the object there.
    fn unmap_kernel(&self, range: &Range<usize>, whole: &Range<usize>) -> bool {
        let flags = mem::MAP_PRIVATE | mem::MAP_ANONYMOUS | mem::MAP_NORESERVE | mem::MAP_FIXED;
        // SAFETY: the arena's own range; its vmas are unpublished and drained.
        let r = unsafe { mem::mmap(self.address(range.start), range.len(), mem::PROT_NONE, flags, -1, 0) };
        if r.is_err() {
            // The kernel is out of vmas. Under userfaultfd the old mapping stays, trapped, and a touch finds no vma;
            // by protection it must be hidden: all of it, which splits nothing and comes back by touch.
            if self.trap == Trap::Segv {
                let (addr, len) = (self.address(whole.start), whole.len());
                // SAFETY: as above, and the rest of the mapping is the arena's too.
                let _ = unsafe { mem::mprotect(addr, len, mem::PROT_NONE) };
            }
        }
        self.forget_mapped(range);
        if r.is_ok() {
            self.forget_unknown(range);
        }
        r.is_ok()
    }

    /// Writes the entry's record, which nobody points at yet.
    fn write_record(&self, v: &VmaEntry) {
        // SAFETY: the index was free (its former users are drained); the entry keeps what the vma refers to.
        unsafe { vmatree::write_vma(v.index, self.vma_of(v)) };
    }

    /// Points the range at a record, or at nothing.
    fn point(&self, range: &Range<usize>, index: Option<u32>) -> Result<()> {
        let (start, end) = (self.address(range.start), self.address(range.end));
        let mut registry = registry::lock();
        // SAFETY: `write_record` filled the record; `retire` gives its number back only after `synchronize`.
        unsafe { vmatree::publish_range(self.slot, start, end, index, &mut registry.splits) }
            .map_err(|_| Error::Exhausted { op: "publish", what: "split tables (65536 granules shared by vmas)" })
    }

    /// Gives the split tables of the range's granules back, where no vma is left in them. Drained by the caller.
    fn reclaim_splits(&self, range: &Range<usize>) {
        let mut registry = registry::lock();
        let mut at = range.start & !(EXTENT_SIZE - 1);
        let mut empty = Vec::new();
        while at < range.end {
            if let Some(split) = vmatree::split_of(self.slot, self.address(at))
                && vmatree::split_is_empty(split)
            {
                // SAFETY: the numbers go back to the pool below, after `synchronize`.
                unsafe { vmatree::detach_split(self.slot, self.address(at)) };
                empty.push(split);
            }
            at += EXTENT_SIZE;
        }
        if !empty.is_empty() {
            section::synchronize();
            empty.into_iter().for_each(|s| registry.splits.put(s));
        }
    }

    pub(crate) fn unmap_locked(&self, vmas: &mut VmaSet, range: &Range<usize>) -> Result<()> {
        let op = "Arena::unmap";
        vmas.check_pins(op, range)?;
        let hit = vmas.overlapping(range);
        if hit.is_empty() {
            return Ok(());
        }
        let is_cut = |v: &VmaEntry| v.range.start < range.start || range.end < v.range.end;
        if hit.iter().any(|v| v.object.is_exclusive() && is_cut(v)) {
            return Err(Error::Denied { op, what: "an exclusive object is unmapped whole" });
        }
        let stay = self.cut_around(op, &hit, range)?;
        self.replace(vmas, &hit, &stay, range)?;
        // Nobody can promote or install in the range any more: its own vmas are gone, the neighbours are narrower.
        let mut result = Ok(());
        for v in &hit {
            if let Err(error) = self.demote_entry(v, range) {
                // The extents that could not be registered again go with the mapping, if the kernel lets it go.
                result = Err(error);
            }
            self.harvest_for_good(v, range);
        }
        // Who reclaims or writes back leaves the range alone from here on.
        self.retire(&hit);
        for v in &hit {
            if let Err(error) = exclusive::leave(&v.object) {
                result = Err(error);
            }
        }
        for v in &hit {
            let gone = v.range.start.max(range.start)..v.range.end.min(range.end);
            if !self.unmap_kernel(&gone, &v.range) {
                // The kernel still maps the object there: its memory must never become another object's.
                std::mem::forget(Arc::clone(&v.object));
            }
        }
        self.reclaim_splits(range);
        result
    }

    /// Makes the entries for what stays on both sides of `range`.
    fn cut_around(&self, op: &'static str, hit: &[VmaEntry], range: &Range<usize>) -> Result<Vec<VmaEntry>> {
        let mut stay = Vec::new();
        for v in hit {
            for piece in [v.range.start..range.start, range.end..v.range.end] {
                if piece.start < piece.end {
                    let mut cut = v.cut(piece);
                    cut.index = self.fresh_index(op, &stay)?;
                    stay.push(cut);
                }
            }
        }
        Ok(stay)
    }

    fn fresh_index(&self, op: &'static str, taken: &[VmaEntry]) -> Result<u32> {
        let mut registry = registry::lock();
        registry.vmas.get().ok_or_else(|| {
            taken.iter().for_each(|v| registry.vmas.put(v.index));
            Error::Exhausted { op, what: "vmas (1048576)" }
        })
    }

    /// Publishes `new` in place of `old`, with nothing in `hole`, and waits until nobody walks the old ones.
    fn replace(&self, vmas: &mut VmaSet, old: &[VmaEntry], new: &[VmaEntry], hole: &Range<usize>) -> Result<()> {
        new.iter().for_each(|v| v.object.vm_ops().open(v.object.mapping()));
        if let Err(error) = self.point_all(old, new, hole) {
            // Every granule that was to be split either is, or still points at the old record: this cannot fail.
            for v in old {
                let _ = self.point(&v.range, Some(v.index));
            }
            unlist_all(new);
            for v in new {
                v.object.vm_ops().close(v.object.mapping());
                registry::lock().vmas.put(v.index);
            }
            return Err(error);
        }
        failpoint!(UNMAP_DRAIN);
        section::synchronize();
        for v in old {
            vmas.map.remove(&v.range.start);
        }
        for v in new {
            vmas.map.insert(v.range.start, v.clone());
        }
        Ok(())
    }

    /// Points the pages of `new` at their records, and what is left of `old` in `hole` at nothing.
    fn point_all(&self, old: &[VmaEntry], new: &[VmaEntry], hole: &Range<usize>) -> Result<()> {
        for v in new {
            self.write_record(v);
            v.list();
        }
        for v in new {
            self.point(&v.range, Some(v.index))?;
        }
        for v in old {
            let gone = v.range.start.max(hole.start)..v.range.end.min(hole.end);
            let covered = new.iter().any(|n| n.range.start <= gone.start && gone.end <= n.range.end);
            if gone.start < gone.end && !covered {
                self.point(&gone, None)?;
            }
        }
        Ok(())
    }

    /// Ends entries whose records nobody can see any more.
    fn retire(&self, old: &[VmaEntry]) {
        unlist_all(old);
        for v in old {
            registry::lock().vmas.put(v.index);
            v.object.vm_ops().close(v.object.mapping());
        }
    }

    pub(crate) fn protect(&self, range: &Range<usize>, prot: Prot) -> Result<()> {
        let op = "Arena::protect";
        let mut vmas = self.vmas();
        vmas.check_pins(op, range)?;
        let hit = vmas.covering(op, range)?;
        if prot == Prot::ReadWrite && hit.iter().any(|v| v.sharing == Sharing::Shared && !v.may_write) {
            return Err(Error::Denied { op, what: "shared stores need an object that was made writable" });
        }
        if hit.iter().any(|v| v.object.is_exclusive()) {
            return Err(Error::Denied { op, what: "an exclusive object's protection is what it was mapped with" });
        }
        let mut new = self.cut_around(op, &hit, range)?;
        for v in &hit {
            let mut cut = v.cut(v.range.start.max(range.start)..v.range.end.min(range.end));
            cut.index = self.fresh_index(op, &new)?;
            cut.prot = prot;
            new.push(cut);
        }
        self.replace(&mut vmas, &hit, &new, range)?;
        // An extent that two vmas share now cannot stay native. What can still fail is remembered, not returned at once:
        // the old records must be retired, and the kernel told, either way.
        let demoted: Result<()> = hit.iter().try_for_each(|v| self.demote_borders(v, range));
        self.retire(&hit);
        // By protection, what is exposed is hidden again and comes back with the next touch, as the vma says.
        let bits = if self.trap == Trap::Segv { mem::PROT_NONE } else { prot_bits(prot) };
        // SAFETY: the arena's own range, wholly mapped (checked above).
        let r = unsafe { mem::mprotect(self.address(range.start), range.len(), bits) };
        if self.trap == Trap::Segv {
            self.forget_mapped(range);
        }
        let protected = r.map_err(system(op, "mprotect"));
        demoted.and(protected)
    }
}

/// Has reclaim and write-back leave the vmas alone: nobody sees them any more when this returns.
fn unlist_all(old: &[VmaEntry]) {
    old.iter().for_each(VmaEntry::unlist);
    section::synchronize();
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
