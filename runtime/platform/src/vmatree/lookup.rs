//! From an address to its vma, in a few loads; from a number to its object.
//!
//! # Context: handler, inside a section

use super::tables::{SPLIT_BIT, Trap, arena, delegation_entry, mapping_entry, record, split};
use super::{granules, page_map};
use crate::section::Slot;
use core::sync::atomic::Ordering;
use softfault_mm::delegation::Delegation;
use softfault_mm::mapping::Mapping;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SHIFT, PAGE_SHIFT};
use softfault_mm::vma::Vma;
use softfault_mm::vmstat::VmStat;

/// Returns the arena slot that holds `address`, if any: two loads.
///
/// # Context: handler
#[inline]
#[must_use]
pub fn arena_of(address: usize) -> Option<u32> {
    page_map::slot_code(address >> EXTENT_SHIFT).checked_sub(1)
}

/// Returns whether any page of the range lies in an arena.
///
/// # Context: handler
#[must_use]
pub fn overlaps_arena(address: usize, len_bytes: usize) -> bool {
    let last = address.saturating_add(len_bytes.saturating_sub(1));
    ((address >> EXTENT_SHIFT)..=(last >> EXTENT_SHIFT)).any(|g| page_map::slot_code(g) != 0)
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
                let split = granules::word(slot, at).is_some_and(|w| w & SPLIT_BIT != 0);
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
    let seen = granules::word(slot, address)?;
    let value = u32::try_from(seen >> 1).unwrap_or(0);
    let code = if seen & SPLIT_BIT == 0 {
        value
    } else {
        // SeqCst pairs with `publish_range`.
        split(value)?.get((address >> PAGE_SHIFT) % EXTENT_PAGES)?.load(Ordering::SeqCst)
    };
    code.checked_sub(1)
}

/// Lengthens the borrow of an arena's statistics beyond the section it was found in.
pub(crate) fn outlives_fault(stat: &VmStat) -> &'static VmStat {
    // SAFETY: `ArenaFacts::stat` is a `&'static`: blocks of counters are recycled between runtimes, never freed.
    unsafe { &*core::ptr::from_ref(stat) }
}
