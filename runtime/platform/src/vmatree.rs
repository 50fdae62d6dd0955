//! The published address space: from an address to its vma in three loads, without a lock.
//!
//! ```text
//! page map   one u32 for each 2 MiB of the address space      -> arena slot; in leaves of 32 GiB
//! granules   one u64 for each 2 MiB of an arena               -> vma, or a split table
//! split      one u32 for each 4 KiB of a granule that is shared by several vmas
//! records    the vmas themselves
//! lists      for each object the vmas that map it, shared and private: who is next, by vma number
//! ```
//! The tables are process-wide, since signal dispositions are, and are never unmapped. The control plane writes them
//! under one lock (the caller's); handlers read them inside a section. An entry that is cleared or replaced may be
//! reused only after [`section::synchronize`].
//!
//! # Context: handler (lookup)

mod page_map;
mod tables;

pub use tables::{NR_ARENAS, NR_DELEGATIONS, NR_MAPPINGS, NR_SPLITS, NR_VMAS, Numbered, Trap, init, table_bytes_min};

use crate::section::{self, Slot};
use crate::sys::Errno;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use softfault_mm::delegation::Delegation;
use softfault_mm::host::{Rmap, Which};
use softfault_mm::mapping::Mapping;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SHIFT, EXTENT_SIZE, PAGE_SHIFT};
use softfault_mm::vma::Vma;
use softfault_mm::vmstat::VmStat;
use tables::{Link, arena, delegation_entry, head, link, mapping_entry, record, split};

/// The first address behind what an arena may cover.
pub const ADDRESS_END: usize = 1 << page_map::ADDRESS_BITS;

/// Adds vma `index` to an object's list, before it is published. Control plane, under the object's gate.
///
/// # Safety
/// Record `index` was filled by [`write_vma`] and stays so until [`rmap_remove`] and [`section::synchronize`] have
/// returned.
pub unsafe fn rmap_add(id: u32, which: Which, index: u32) {
    let (Some(head), Some(link)) = (head(id, which), link(index)) else { return };
    debug_assert!(!is_listed(head, link, index), "vma {index} is listed already");
    let first = head.load(Ordering::Relaxed);
    link.next.store(first, Ordering::Relaxed);
    link.prev.store(0, Ordering::Relaxed);
    if let Some(next) = first.checked_sub(1).and_then(tables::link) {
        next.prev.store(index + 1, Ordering::Relaxed);
    }
    // SeqCst pairs with `for_each_vma`, and comes before the publication of the vma: who finds a page unpinned after an install
    // through it finds it here.
    head.store(index + 1, Ordering::SeqCst);
}

/// Takes vma `index` off its object's list. Who walks the list may still see it until [`section::synchronize`] has
/// returned: its own link stays. Control plane, under the object's gate.
pub fn rmap_remove(id: u32, which: Which, index: u32) {
    let (Some(head), Some(link)) = (head(id, which), link(index)) else { return };
    if !is_listed(head, link, index) {
        // Its links are of an earlier list, of whichever object: following them would empty that one.
        debug_assert!(false, "vma {index} is not on the list of object {id}");
        return;
    }
    let (next, prev) = (link.next.load(Ordering::Relaxed), link.prev.load(Ordering::Relaxed));
    if let Some(next) = next.checked_sub(1).and_then(tables::link) {
        next.prev.store(prev, Ordering::Relaxed);
    }
    // SeqCst pairs with `for_each_vma`: an unpublication, before the loads of `synchronize`.
    match prev.checked_sub(1).and_then(tables::link) {
        Some(prev) => prev.next.store(next, Ordering::SeqCst),
        None => head.store(next, Ordering::SeqCst),
    }
}

/// Returns whether what stands before the vma on its list, a vma or the head, points at it.
fn is_listed(head: &AtomicU32, link: &Link, index: u32) -> bool {
    let before = match link.prev.load(Ordering::Relaxed).checked_sub(1).and_then(tables::link) {
        Some(prev) => &prev.next,
        None => head,
    };
    before.load(Ordering::Relaxed) == index + 1
}

/// The lists, for the length of a section.
#[derive(Debug)]
pub struct Lists<'a>(core::marker::PhantomData<&'a Slot>);

impl<'a> Lists<'a> {
    /// Lends the lists inside the section that `slot` is in.
    pub(crate) fn new(_inside: &'a Slot) -> Self {
        Self(core::marker::PhantomData)
    }
}

impl Rmap for Lists<'_> {
    fn mapping(&self, id: u32) -> Option<&Mapping<'_>> {
        // SeqCst pairs with `publish_mapping`, after the section's entry.
        let ptr = mapping_entry(id)?.load(Ordering::SeqCst);
        // SAFETY: null, or published from a `&'static`; an object is freed only after it was withdrawn and the sections
        // that may have seen it have ended, ours among them.
        unsafe { ptr.as_ref() }
    }
    fn for_each_vma<'f>(&self, id: u32, which: Which, f: &mut (dyn FnMut(&Vma<'_>) + 'f)) {
        // SeqCst pairs with `rmap_add` and `rmap_remove`, after the section's entry.
        let mut at = head(id, which).map_or(0, |h| h.load(Ordering::SeqCst));
        while let Some(index) = at.checked_sub(1) {
            let (Some(record), Some(link)) = (record(index), link(index)) else { return };
            // SAFETY: `rmap_add`'s contract: the record is filled, and not reused before our section ends.
            f(unsafe { record.assume_init_ref() });
            at = link.next.load(Ordering::SeqCst);
        }
    }
}

/// Returns the arena slot that holds `address`, if any: one load.
///
/// # Context: handler
#[inline]
#[must_use]
pub fn arena_of(address: usize) -> Option<u32> {
    // SeqCst pairs with `publish_arena` and `withdraw_arena`.
    let slot = page_map::entry(address >> EXTENT_SHIFT)?.load(Ordering::SeqCst);
    slot.checked_sub(1)
}

/// Returns whether any page of the range lies in an arena.
#[must_use]
pub fn overlaps_arena(address: usize, len_bytes: usize) -> bool {
    let last = address.saturating_add(len_bytes.saturating_sub(1));
    ((address >> EXTENT_SHIFT)..=(last >> EXTENT_SHIFT))
        .any(|g| page_map::entry(g).is_some_and(|e| e.load(Ordering::Relaxed) != 0))
}

/// Returns how an arena's faults arrive, and where they are counted. Inside a section.
///
/// # Context: handler
#[must_use]
pub fn arena_info(_inside: &Slot, slot: u32) -> Option<(Trap, &VmStat)> {
    let a = arena(slot)?;
    // Acquire pairs with `publish_arena`: the other fields are there.
    let trap = match a.trap.load(Ordering::Acquire) {
        1 => Trap::Uffd,
        2 => Trap::Segv,
        3 => Trap::Monitor,
        _ => return None,
    };
    // SAFETY: set by `publish_arena` from a `&'static`, before `trap`; null until then.
    let stat = unsafe { a.stat.load(Ordering::Relaxed).as_ref() }?;
    Some((trap, stat))
}

/// The facts of one arena, for [`publish_arena`].
#[derive(Debug, Clone, Copy)]
pub struct ArenaFacts {
    /// First address, a multiple of 2 MiB.
    pub base: usize,
    /// Length in bytes, a multiple of 2 MiB.
    pub len_bytes: usize,
    /// One zeroed word for each 2 MiB, alive until the arena is withdrawn and drained.
    pub granules: &'static [AtomicU64],
    /// How its faults arrive.
    pub trap: Trap,
    /// Where they are counted.
    pub stat: &'static VmStat,
}

/// Slots below this were published once: who goes through all of them looks at no others.
static SLOTS_USED: AtomicU32 = AtomicU32::new(0);

/// Makes an arena visible. Control plane, under the caller's lock.
///
/// # Errors
/// `ENOMEM`: the page map cannot be had there. Nothing is visible.
///
/// # Safety
/// `slot` is free: never published, or withdrawn. The facts are true until [`withdraw_arena`] returns.
pub unsafe fn publish_arena(slot: u32, facts: &ArenaFacts) -> Result<(), Errno> {
    ARENAS_END.fetch_max(slot + 1, Ordering::Relaxed);
    let a = arena(slot).ok_or(Errno::EINVAL)?;
    SLOTS_USED.fetch_max(slot + 1, Ordering::Relaxed);
    page_map::open(facts.base, facts.len_bytes)?;
    a.base.store(facts.base, Ordering::Relaxed);
    a.granules.store(facts.granules.as_ptr().cast_mut(), Ordering::Relaxed);
    a.nr_granules.store(facts.granules.len(), Ordering::Relaxed);
    a.stat.store(core::ptr::from_ref(facts.stat).cast_mut(), Ordering::Relaxed);
    // Release pairs with `arena_info`, `each_arena` and `each_exposable`: the other fields are there. SeqCst of the entries pairs with
    // `arena_of`.
    a.trap.store(facts.trap as u32, Ordering::Release);
    for g in (facts.base >> EXTENT_SHIFT)..((facts.base + facts.len_bytes) >> EXTENT_SHIFT) {
        if let Some(e) = page_map::entry(g) {
            e.store(slot + 1, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// Makes an arena invisible and waits until no section can see it. Control plane, under the caller's lock; the caller is
/// in no section.
pub fn withdraw_arena(slot: u32) {
    let Some(a) = arena(slot) else { return };
    let base = a.base.load(Ordering::Relaxed);
    let nr = a.nr_granules.load(Ordering::Relaxed);
    // SeqCst pairs with `arena_of`, before the loads of `synchronize`; Release below with `arena_info`, which finds no arena.
    for g in (base >> EXTENT_SHIFT)..(base >> EXTENT_SHIFT) + nr {
        if let Some(e) = page_map::entry(g) {
            e.store(0, Ordering::SeqCst);
        }
    }
    section::synchronize();
    a.trap.store(0, Ordering::Release);
    a.stat.store(core::ptr::null_mut(), Ordering::Relaxed);
    a.granules.store(core::ptr::null_mut(), Ordering::Relaxed);
    a.nr_granules.store(0, Ordering::Relaxed);
}

/// Calls `f(base, len_bytes)` for each published arena whose faults arrive by `trap`, which stays published meanwhile or is
/// unmapped by nobody: the caller is a helper, and ends them.
pub fn each_arena(trap: Trap, f: &mut dyn FnMut(usize, usize)) {
    for a in (0..SLOTS_USED.load(Ordering::Relaxed)).map_while(arena) {
        let len_bytes = a.nr_granules.load(Ordering::Relaxed) << EXTENT_SHIFT;
        // Acquire pairs with `publish_arena`.
        if a.trap.load(Ordering::Acquire) == trap as u32 && len_bytes > 0 {
            f(a.base.load(Ordering::Relaxed), len_bytes);
        }
    }
}

/// The number behind the greatest that an arena ever had.
static ARENAS_END: AtomicU32 = AtomicU32::new(0);

/// Returns the number behind the greatest that an arena ever had.
pub(crate) fn arenas_end() -> u32 {
    ARENAS_END.load(Ordering::Relaxed)
}

/// Calls `f(vma, lo, hi)` for each piece of a mapping in the granules `range` of an arena that is served by SIGSEGV, inside one
/// section; returns how many granules the arena has, 0 for none.
///
/// # Context: handler
pub(crate) fn each_exposable(
    inside: &Slot,
    slot: u32,
    range: core::ops::Range<usize>,
    f: &mut dyn FnMut(&Vma<'_>, usize, usize),
) -> usize {
    let Some(a) = arena(slot) else { return 0 };
    // Acquire pairs with `publish_arena`.
    if a.trap.load(Ordering::Acquire) != Trap::Segv as u32 {
        return 0;
    }
    inside.section(|| {
        let (base, nr) = (a.base.load(Ordering::Relaxed), a.nr_granules.load(Ordering::Relaxed));
        // An arena that is found by address in our section has its tables until that ends.
        if arena_of(base) != Some(slot) {
            return 0;
        }
        for g in range.start..range.end.min(nr) {
            let (mut at, end) = (base + (g << EXTENT_SHIFT), base + ((g + 1) << EXTENT_SHIFT));
            while at < end {
                // SAFETY: as in `with_vma`: published, and in our section.
                let vma = vma_index(at).and_then(record).map(|r| unsafe { r.assume_init_ref() });
                let found = vma.filter(|v| v.granule_pages != 0 && v.start <= at && at < v.end);
                let split = granule(slot, at).is_some_and(|w| w.load(Ordering::Relaxed) & SPLIT_BIT != 0);
                let to = match found {
                    Some(v) => v.end.min(end),
                    None if split => at + (1 << PAGE_SHIFT),
                    None => end,
                };
                if let Some(v) = found {
                    f(v, at, to);
                }
                at = to;
            }
        }
        nr
    })
}

fn granule(slot: u32, address: usize) -> Option<&'static AtomicU64> {
    let a = arena(slot)?;
    let index = address.checked_sub(a.base.load(Ordering::Relaxed))? >> EXTENT_SHIFT;
    if index >= a.nr_granules.load(Ordering::Relaxed) {
        return None;
    }
    let ptr = a.granules.load(Ordering::Relaxed).cast_const();
    if ptr.is_null() {
        return None;
    }
    // SAFETY: `publish_arena` was given a slice of that many words, which outlives the arena's publication and every
    // section that saw it; the caller is in a section or is the control plane.
    Some(unsafe { &*ptr.wrapping_add(index) })
}

const SPLIT_BIT: u64 = 1;

/// Writes a vma into a free record. Control plane.
///
/// # Safety
/// 1. Record `index` is not published, and every section that may have seen it has been left.
/// 2. Everything `vma` refers to outlives its publication and the [`section::synchronize`] that follows its end.
pub unsafe fn write_vma(index: u32, vma: Vma<'static>) {
    if let Some(r) = record(index) {
        let ptr = core::ptr::from_ref(r).cast_mut();
        // SAFETY: (1) of the contract: nobody reads the record.
        unsafe { ptr.write(MaybeUninit::new(vma)) };
    }
}

/// Free split tables.
pub trait SplitPool {
    /// Returns a free, zeroed table.
    fn get(&mut self) -> Option<u32>;
}

/// Gives the granule at `address` a split table, in which each page has the vma that it had. `true`: it had none before,
/// and [`join_granule`] takes the table back. Control plane, under the caller's lock.
///
/// What may fail of a publication is here, before anything of it is visible: so a publication has nothing to undo.
///
/// # Errors
/// `ENOMEM`: no table is left. Nothing was changed.
pub fn split_granule(slot: u32, address: usize, pool: &mut dyn SplitPool) -> Result<bool, Errno> {
    let word = granule(slot, address).ok_or(Errno::EINVAL)?;
    let seen = word.load(Ordering::Relaxed);
    if seen & SPLIT_BIT != 0 {
        return Ok(false);
    }
    let index = pool.get().ok_or(Errno::ENOMEM)?;
    let table = split(index).ok_or(Errno::ENOMEM)?;
    let code = u32::try_from(seen >> 1).unwrap_or(0);
    // SeqCst pairs with `vma_index`: who reads the word finds the table filled.
    table.iter().for_each(|e| e.store(code, Ordering::SeqCst));
    word.store((u64::from(index) << 1) | SPLIT_BIT, Ordering::SeqCst);
    Ok(true)
}

/// Takes the split table from the granule at `address` if its pages have one vma, or none, between them; returns it.
/// Control plane, under the caller's lock.
///
/// # Safety
/// The table is not reused before [`section::synchronize`] has returned.
pub unsafe fn join_granule(slot: u32, address: usize) -> Option<u32> {
    let word = granule(slot, address)?;
    let seen = word.load(Ordering::Relaxed);
    if seen & SPLIT_BIT == 0 {
        return None;
    }
    let index = u32::try_from(seen >> 1).ok()?;
    let table = split(index)?;
    let code = table.first()?.load(Ordering::Relaxed);
    if table.iter().any(|e| e.load(Ordering::Relaxed) != code) {
        return None;
    }
    // SeqCst pairs with `vma_index`: who has read the old word reads the same code in the table.
    word.store(u64::from(code) << 1, Ordering::SeqCst);
    Some(index)
}

/// Points every page of `start..end` of an arena at vma `index`, or at none. Control plane, under the caller's lock.
///
/// Granules that the range covers in part have split tables ([`split_granule`]). Nothing here fails.
///
/// # Safety
/// Record `index` was filled by [`write_vma`], and is not reused before the range points elsewhere and
/// [`section::synchronize`] has returned.
pub unsafe fn publish_range(slot: u32, start: usize, end: usize, index: Option<u32>) {
    let code = index.map_or(0, |i| i + 1);
    let mut at = start;
    while at < end {
        let granule_start = at & !(EXTENT_SIZE - 1);
        let next = (granule_start + EXTENT_SIZE).min(end);
        let Some(word) = granule(slot, at) else { return };
        let seen = word.load(Ordering::Relaxed);
        let table = if seen & SPLIT_BIT == 0 { None } else { split(u32::try_from(seen >> 1).unwrap_or(0)) };
        let pages = (at - granule_start) >> PAGE_SHIFT..(next - granule_start) >> PAGE_SHIFT;
        debug_assert!(table.is_some() || pages.len() == EXTENT_PAGES, "a granule that is cut has no split table");
        // SeqCst pairs with `vma_index`: an unpublication, before the loads of `synchronize`.
        match table {
            Some(table) => table.iter().take(pages.end).skip(pages.start).for_each(|e| e.store(code, Ordering::SeqCst)),
            None => word.store(u64::from(code) << 1, Ordering::SeqCst),
        }
        at = next;
    }
}

/// Publishes an object under its number, or withdraws it (`None`; every user is gone then). Control plane.
pub fn publish_mapping(id: u32, mapping: Option<&'static Mapping<'static>>) {
    if let Some(e) = mapping_entry(id) {
        // SeqCst pairs with `vmatree::mapping` and `Lists::mapping`: a withdrawal, before the loads of `synchronize`.
        e.store(mapping.map_or(core::ptr::null_mut(), |m| core::ptr::from_ref(m).cast_mut()), Ordering::SeqCst);
    }
}

/// Publishes a delegation under its number, or withdraws it. Control plane.
pub fn publish_delegation(id: u32, delegation: Option<&'static Delegation<'static>>) {
    if let Some(e) = delegation_entry(id) {
        let ptr = delegation.map_or(core::ptr::null_mut(), |d| core::ptr::from_ref(d).cast_mut());
        // Release pairs with `vmatree::delegation`.
        e.store(ptr, Ordering::Release);
    }
}

/// Returns the object with this number. The caller holds a claim on it, which keeps it alive.
pub(crate) fn mapping(id: u32) -> Option<&'static Mapping<'static>> {
    // Acquire pairs with `publish_mapping`.
    let ptr = mapping_entry(id)?.load(Ordering::Acquire);
    // SAFETY: null, or published from a `&'static`; the claim the caller holds (`users` > 0) keeps the object from
    // being withdrawn and freed.
    unsafe { ptr.as_ref() }
}

/// Returns the delegation with this number. The caller holds a telling of it.
pub(crate) fn delegation(id: u32) -> Option<&'static Delegation<'static>> {
    // Acquire pairs with `publish_delegation`.
    let ptr = delegation_entry(id)?.load(Ordering::Acquire);
    // SAFETY: null, or published from a `&'static`; a delegation is withdrawn only when no page of it is `telling`.
    unsafe { ptr.as_ref() }
}

/// Runs `f` on the vma that holds `address`, inside a section of `slot`'s thread.
///
/// # Context: handler
#[inline]
pub fn with_vma<R>(inside: &Slot, address: usize, f: impl FnOnce(&Vma<'_>) -> R) -> Option<R> {
    inside.section(|| {
        let index = vma_index(address)?;
        let r = record(index)?;
        // SAFETY: a published index names a record that `write_vma` has filled (SeqCst store, SeqCst load), and the
        // section keeps the control plane from reusing it.
        let vma = unsafe { r.assume_init_ref() };
        // A record is narrowed only by publishing another one: the address was inside when its entry was written.
        // No closure: in builds without optimisation each frame counts on a signal stack of 8 KiB.
        if vma.start <= address && address < vma.end { Some(f(vma)) } else { None }
    })
}

fn vma_index(address: usize) -> Option<u32> {
    let slot = arena_of(address)?;
    // SeqCst pairs with `publish_range`, `split_granule` and `join_granule`, after the section's entry.
    let seen = granule(slot, address)?.load(Ordering::SeqCst);
    let value = u32::try_from(seen >> 1).unwrap_or(0);
    let code = if seen & SPLIT_BIT == 0 {
        value
    } else {
        split(value)?.get((address >> PAGE_SHIFT) % EXTENT_PAGES)?.load(Ordering::SeqCst)
    };
    code.checked_sub(1)
}

/// Lengthens the borrow of an arena's statistics beyond the section it was found in.
pub(crate) fn outlives_fault(stat: &VmStat) -> &'static VmStat {
    // SAFETY: `ArenaFacts::stat` is a `&'static`: blocks of counters are recycled between runtimes, never freed.
    unsafe { &*core::ptr::from_ref(stat) }
}
