//! Taking pages out of an arena while they stay cached, without losing the kernel's notes of who wrote.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "drops page-table entries of the arena's own range")]

use super::state::ArenaInner;
use super::vma::{VmaEntry, range_of};
use super::{extents, record, room};
use crate::error::{Error, Result, system};
use crate::types::Sharing;
use crossbeam_utils::Backoff;
use softfault_mm::folio::{FolioWord, Wake};
use softfault_mm::host::{BATCH, Batch};
use softfault_mm::page::PAGE_SIZE;
use softfault_mm::rmap;
use softfault_platform::host::Host;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd;
use softfault_platform::sys::{Errno, mem};
use softfault_platform::vmatree::Trap;
use std::ops::Range;
use std::time::Duration;

/// Drops the page-table entries of a range.
///
/// # Errors
/// As [`Arena::zap`](crate::Arena::zap), whose range was checked.
///
/// # Context: control plane
pub(super) fn zap(arena: &ArenaInner, op: &'static str, range: &Range<usize>) -> Result<()> {
    let vmas = arena.vmas();
    vmas.check_pins(op, range)?;
    let hit = vmas.overlapping(range);
    if hit.iter().any(|v| v.sharing == Sharing::Private) {
        return Err(Error::Denied { op, what: "a private mapping's written pages would be lost" });
    }
    for v in &hit {
        zap_kernel(arena, v, &(v.range.start.max(range.start)..v.range.end.min(range.end)))
            .map_err(system(op, "madvise"))?;
    }
    Ok(())
}

/// Drops the page-table entries of the object's pages `from..to` from this arena's shared mappings.
pub(super) fn zap_object(arena: &ArenaInner, op: &'static str, object: u32, from: u64, to: u64) -> Result<()> {
    let vmas = arena.vmas();
    let ours = |v: &&VmaEntry| v.is_of(object) && v.sharing == Sharing::Shared;
    let ranges: Vec<_> = vmas.iter().filter(ours).filter_map(|v| Some((v, range_of(v, from, to)?))).collect();
    ranges.iter().try_for_each(|(_, range)| vmas.check_pins(op, range))?;
    ranges.iter().try_for_each(|(v, range)| zap_kernel(arena, v, range)).map_err(system(op, "madvise"))
}

/// Drops the page-table entries of a range of a shared mapping.
pub(super) fn zap_kernel(arena: &ArenaInner, v: &VmaEntry, range: &Range<usize>) -> std::result::Result<(), Errno> {
    if v.may_write_shared() && arena.trap != Trap::Segv {
        // The entries are the kernel's notes of who wrote: they are read on the way.
        let (from, to) = (v.pgoff_at(range.start), v.pgoff_at(range.end));
        let mut batch = Box::new(Batch::new());
        let (host, vma) = (Host::detached(), record::vma_of(arena, v));
        for first in (from..to).step_by(BATCH) {
            let end = to.min(first + BATCH as u64);
            // A page pinned for a moment, by a fault next to it, is unpinned in the next.
            let backoff = Backoff::new();
            for turn in 0..64 {
                let mut left = 0;
                host.env().mm.with_rmap(&mut |_| left = rmap::zap_vma(&vma, first, end, &mut batch, turn == 63));
                if left == 0 {
                    break;
                }
                backoff.snooze();
            }
        }
        return Ok(());
    }
    zap_plain(arena, range)
}

/// Drops the page-table entries of a range, whatever they note.
fn zap_plain(arena: &ArenaInner, range: &Range<usize>) -> std::result::Result<(), Errno> {
    let (addr, len) = (arena.address(range.start), range.len());
    if arena.trap == Trap::Segv {
        // SAFETY: the arena's own range; touching it faults again.
        room::with_room(arena, || unsafe { mem::mprotect(addr, len, mem::PROT_NONE) })?;
    } else {
        #[cfg(feature = "userfaultfd")]
        // SAFETY: shared mappings only (the callers check): pages stay in the cache.
        unsafe { uffd::zap(addr, len) }?;
    }
    extents::forget_mapped(arena, range);
    Ok(())
}

/// Removes poison markers that system calls would meet (Monitor).
pub(super) fn unpoison_object(arena: &ArenaInner, op: &'static str, object: u32, from: u64, to: u64) -> Result<()> {
    let vmas = arena.vmas();
    for v in vmas.iter().filter(|v| v.is_of(object) && v.sharing == Sharing::Shared) {
        if let Some(range) = range_of(v, from, to) {
            vmas.check_pins(op, &range)?;
            unpoison_vma(arena, v, &range).map_err(system(op, "madvise"))?;
        }
    }
    Ok(())
}

/// Drops the entries of pages that are not cached: markers, if anything.
fn unpoison_vma(arena: &ArenaInner, v: &VmaEntry, range: &Range<usize>) -> std::result::Result<(), Errno> {
    for at in range.clone().step_by(PAGE_SIZE) {
        let word = v.object.mapping().folio(v.pgoff_at(at));
        if let Some(word) = word.filter(|w| !w.load().is_mappable()) {
            unpoison_page(arena, v, word, &(at..at + PAGE_SIZE))?;
        }
    }
    Ok(())
}

fn unpoison_page(
    arena: &ArenaInner,
    v: &VmaEntry,
    word: &FolioWord,
    page: &Range<usize>,
) -> std::result::Result<(), Errno> {
    let mut patience = 2_000;
    // While the page is ours nobody maps it.
    while word.try_claim().is_err() {
        // One that was filled since the look may have been written too, and the note of that is in the entry.
        if word.load().is_mappable() || patience == 0 {
            return zap_kernel(arena, v, page);
        }
        // It is being filled, or evicted.
        std::thread::sleep(Duration::from_micros(100));
        patience -= 1;
    }
    let zapped = zap_plain(arena, page);
    if word.abandon() == Wake::Needed {
        Host::detached().env().park.wake(word.futex_addr());
    }
    zapped
}

/// Finds out what was written through a mapping that is going away, while nobody can write through it any more.
pub(super) fn harvest_for_good(arena: &ArenaInner, v: &VmaEntry, range: &Range<usize>) {
    let gone = v.range.start.max(range.start)..v.range.end.min(range.end);
    if arena.trap == Trap::Segv || !v.may_write_shared() {
        return;
    }
    // SAFETY: the arena's own range, unpublished and drained. Where the kernel cannot split its vma a thread may still
    // be storing, to memory that is being unmapped below it.
    let _ = unsafe { mem::mprotect(arena.address(gone.start), gone.len(), mem::PROT_NONE) };
    let (from, to) = (v.pgoff_at(gone.start), v.pgoff_at(gone.end));
    rmap::harvest_vma(&record::vma_of(arena, v), from, to);
}
