//! What the control plane makes visible and takes away: arenas, vmas, objects, delegations.
//!
//! # Context: control plane, under the caller's lock

use super::tables::{SPLIT_BIT, Trap, arena, delegation_entry, mapping_entry, record, split};
use super::{granules, page_map};
use crate::section;
use crate::sys::Errno;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use softfault_mm::delegation::Delegation;
use softfault_mm::mapping::Mapping;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SHIFT, EXTENT_SIZE, PAGE_SHIFT};
use softfault_mm::vma::Vma;
use softfault_mm::vmstat::VmStat;

/// The facts of one arena, for [`publish_arena`].
#[derive(Debug, Clone, Copy)]
pub struct ArenaFacts {
    /// First address, a multiple of 2 MiB.
    pub base: usize,
    /// Length in bytes, a multiple of 2 MiB.
    pub len_bytes: usize,
    /// Zeroed words, [`granule_words`](super::granule_words) of them, alive until the arena is withdrawn and drained.
    pub granules: &'static [AtomicU64],
    /// How its faults arrive.
    pub trap: Trap,
    /// Where they are counted.
    pub stat: &'static VmStat,
}

/// Slots below this were published once: who goes through all of them looks at no others.
static SLOTS_USED: AtomicU32 = AtomicU32::new(0);

/// Makes an arena visible.
///
/// # Context: control plane, under the caller's lock
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
    let nr = facts.len_bytes >> EXTENT_SHIFT;
    debug_assert_eq!(facts.granules.len(), granules::granule_words(nr));
    a.nr_granules.store(nr, Ordering::Relaxed);
    a.stat.store(core::ptr::from_ref(facts.stat).cast_mut(), Ordering::Relaxed);
    // Release pairs with `arena_info`, `each_arena` and `each_exposable`: the other fields are there.
    a.trap.store(facts.trap as u32, Ordering::Release);
    page_map::set(facts.base, facts.len_bytes, slot + 1);
    Ok(())
}

/// Makes an arena invisible and waits until no section can see it.
///
/// # Context: control plane, under the caller's lock; the caller is in no section
pub fn withdraw_arena(slot: u32) {
    let Some(a) = arena(slot) else { return };
    let base = a.base.load(Ordering::Relaxed);
    page_map::set(base, a.nr_granules.load(Ordering::Relaxed) << EXTENT_SHIFT, 0);
    section::synchronize();
    // Release pairs with `arena_info`, which finds no arena.
    a.trap.store(0, Ordering::Release);
    a.stat.store(core::ptr::null_mut(), Ordering::Relaxed);
    a.granules.store(core::ptr::null_mut(), Ordering::Relaxed);
    a.nr_granules.store(0, Ordering::Relaxed);
}

/// Calls `f(base, len_bytes)` for each published arena whose faults arrive by `trap`, which stays published meanwhile or is
/// unmapped by nobody: the caller is a helper, and ends them.
///
/// # Context: a helper thread
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

/// Writes a vma into a free record.
///
/// # Context: control plane
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
    ///
    /// # Context: control plane, under the caller's lock
    fn get(&mut self) -> Option<u32>;
}

/// Gives the granule at `address` a split table, in which each page has the vma that it had. `true`: it had none before, and
/// [`join_granule`] takes the table back.
///
/// What may fail of a publication is here, before anything of it is visible: so a publication has nothing to undo.
///
/// # Context: control plane, under the caller's lock
///
/// # Errors
/// `ENOMEM`: no table is left. Nothing was changed.
pub fn split_granule(slot: u32, address: usize, pool: &mut dyn SplitPool) -> Result<bool, Errno> {
    let word = granules::fine(slot, address).ok_or(Errno::EINVAL)?;
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
///
/// # Context: control plane, under the caller's lock
///
/// # Safety
/// The table is not reused before [`section::synchronize`] has returned.
pub unsafe fn join_granule(slot: u32, address: usize) -> Option<u32> {
    let word = granules::fine(slot, granules::next_split(slot, address, address + 1)?)?;
    let seen = word.load(Ordering::Relaxed);
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

/// Points every page of `start..end` of an arena at vma `index`, or at none.
///
/// Granules that the range covers in part have split tables ([`split_granule`]). Nothing here fails.
///
/// # Context: control plane, under the caller's lock
///
/// # Safety
/// Record `index` was filled by [`write_vma`], and is not reused before the range points elsewhere and
/// [`section::synchronize`] has returned.
pub unsafe fn publish_range(slot: u32, start: usize, end: usize, index: Option<u32>) {
    let code = index.map_or(0, |i| i + 1);
    let mut at = start;
    while at < end {
        if let Some(next) = granules::publish_whole(slot, at, end, code) {
            at = next;
            continue;
        }
        let granule_start = at & !(EXTENT_SIZE - 1);
        let next = (granule_start + EXTENT_SIZE).min(end);
        let Some(word) = granules::fine(slot, at) else { return };
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

/// Publishes an object under its number, or withdraws it (`None`; every user is gone then).
///
/// # Context: control plane
pub fn publish_mapping(id: u32, mapping: Option<&'static Mapping<'static>>) {
    if let Some(e) = mapping_entry(id) {
        // SeqCst pairs with `lookup::mapping` and `Lists::mapping`: a withdrawal, before the loads of `synchronize`.
        e.store(mapping.map_or(core::ptr::null_mut(), |m| core::ptr::from_ref(m).cast_mut()), Ordering::SeqCst);
    }
}

/// Publishes a delegation under its number, or withdraws it.
///
/// # Context: control plane
pub fn publish_delegation(id: u32, delegation: Option<&'static Delegation<'static>>) {
    if let Some(e) = delegation_entry(id) {
        let ptr = delegation.map_or(core::ptr::null_mut(), |d| core::ptr::from_ref(d).cast_mut());
        // Release pairs with `lookup::delegation`.
        e.store(ptr, Ordering::Release);
    }
}
