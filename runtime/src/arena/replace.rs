//! Replacing what is mapped in a range, in one step for whoever touches it. Linux: mmap(2) with `MAP_FIXED`.
//!
//! ```text
//! control plane                                    who touches the range
//! check, take what is needed
//! publish CHANGING, drain sections                 old bytes by old entries; a fault: sleeps, and looks again
//! demote; close the range; harvest old stores      SIGSEGV: finds CHANGING, sleeps
//! mmap(PROT_NONE) over it, REGISTER                the same
//! publish the new vma, mprotect                    faults the new page in
//! wake                                             looks again at once
//! ```
//! A store that is through before the range is closed is the old object's, any other one the new object's.
//!
//! # Context: control plane

use super::map::{self, open};
use super::publish::{self, Swap};
use super::set::VmaSet;
use super::state::ArenaInner;
use super::vma::MapRequest;
use super::vma::VmaEntry;
use super::{extents, mapper, owed, protect, record, zap};
use crate::error::{Error, Result};
use softfault_mm::failpoint;
use softfault_mm::memory;
use softfault_mm::page::PAGE_SHIFT;
use softfault_platform::section;
use softfault_platform::sys::futex;
use std::sync::Arc;

const OP: &str = "Arena::replace";

/// Maps an object instead of whatever is mapped there.
///
/// # Errors
/// As [`Arena::replace`](crate::Arena::replace).
///
/// # Context: control plane
pub(super) fn replace(arena: &Arc<ArenaInner>, request: &MapRequest<'_>) -> Result<()> {
    let (entry, number) = map::asked(arena, OP, request)?;
    let range = entry.range.clone();
    // The gate is taken before the lock, as in `map`.
    let (_gate, mut vmas) = map::lock_thawed(arena, OP, request.object)?;
    map::refuse_uncapturable(arena, OP, &entry)?;
    vmas.check_pins(OP, &range)?;
    let hit = vmas.overlapping(&range);
    if request.object.is_exclusive() || hit.iter().any(|v| v.object.is_exclusive()) {
        return Err(Error::Denied {
            op: OP,
            what: "an exclusive object is unmapped whole, and mapped where nothing is",
        });
    }
    owed::settle(arena, OP, &range)?;
    let demote = |hit: &[VmaEntry]| hit.iter().try_for_each(|v| extents::demote_entry(arena, v, &range).map(drop));
    let standin = VmaEntry { is_changing: true, ..entry.clone() };
    let mut new = publish::cut_around(arena, OP, &hit, &range)?;
    new.add(OP, standin)?;
    demote(&hit)?;
    request.object.i_mmap().add(mapper::weak(arena));
    let swap = publish::replace(arena, OP, hit, new, &range)?;
    // What was promoted since the first look is taken back, too.
    let changed = match demote(&swap.old) {
        Ok(()) => put_in_place(arena, &mut vmas, swap, entry).map(|()| number.keep()),
        Err(error) => {
            publish::restore(arena, swap);
            Err(error)
        }
    };
    drop(vmas);
    futex::wake_all(memory::end_change());
    changed
}

/// Puts `entry` where its stand-in keeps everybody waiting, and takes out what was there.
fn put_in_place(arena: &ArenaInner, vmas: &mut VmaSet, swap: Swap, entry: VmaEntry) -> Result<()> {
    let range = entry.range.clone();
    swap.old.iter().for_each(|v| zap::harvest_for_good(arena, v, &range));
    failpoint!(REPLACE_CLOSED);
    // The step that is likely to be refused: the table of mappings is full, or there is no memory.
    if let Err(error) = map::mmap_closed(arena, OP, &entry) {
        protect::unprotect_kernel(arena, &swap.old, &range);
        publish::restore(arena, swap);
        return Err(error);
    }
    let standin: Vec<_> = swap.new.iter().filter(|v| v.is_changing).cloned().collect();
    // Who reclaims or writes back leaves the range alone from here on.
    let old = publish::retire(arena, vmas, swap);
    let mapped = open_up(arena, &entry);
    if mapped.is_err() {
        // The new mapping could not be had: nothing is mapped there.
        publish::point(arena, &range, None);
        old.iter()
            .for_each(|v| owed::unmap_or_owe(arena, v, &(v.range.start.max(range.start)..v.range.end.min(range.end))));
    }
    vmas.map.remove(&range.start);
    section::synchronize();
    publish::end(arena, &standin);
    let (mmu, _) = record::mmu_of(arena, &entry);
    // Who waited for the old mapping's pages (Monitor) looks at the new one's.
    mmu.wake(arena.address(range.start), range.len() >> PAGE_SHIFT);
    if mapped.is_ok() {
        vmas.map.insert(range.start, entry);
    }
    publish::join(arena, &range);
    mapped
}

/// Registers what is mapped there now, publishes and opens it.
fn open_up(arena: &ArenaInner, entry: &VmaEntry) -> Result<()> {
    let opened = open(entry);
    let mapped = map::make_ours(arena, OP, entry)?;
    extents::forget_mapped(arena, &entry.range);
    let (listed, published) = publish::publish(arena, OP, entry)?;
    published.keep();
    listed.keep();
    mapped.keep();
    opened.keep();
    Ok(())
}
