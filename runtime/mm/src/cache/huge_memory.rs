//! Promotion and demotion of extents: stepping aside where the whole 2 MiB is cached.
//!
//! A 2 MiB extent whose pages are all in the cache is unregistered, and the kernel then faults at its own speed. The
//! order of steps is the rule (see [`crate::extent`] for the race it answers):
//! ```text
//! promote: extent trapped->changing; chunk native+1 (evicting = 0); read 512 words [, pin, all dirty]; UNREGISTER;
//!          [unpin]; ->native
//! demote:  extent native->changing;  REGISTER [, WRITEPROTECT]; ->trapped; chunk native-1
//! ```
//! A shared writable extent is `tracked` rather than native: the kernel goes on noting first stores. All its pages are
//! marked dirty before it is unregistered, because in between nobody notes anything; and they stay pinned until it is
//! handed over, as under every change of a mapping:
//! ```text
//! promoter                         flusher
//! marks all pages dirty
//!                                  dirty -> writeback, protects, copies out, -> uptodate and clean
//! UNREGISTER (drops the protection)
//! a native store, unseen
//!                                  clean: later dropped, the store is lost
//! ```
//! Over a huge page (see [`crate::khugepaged`]) a native extent is mapped by one entry. A tracked one never is: protecting
//! a range takes a huge entry in it apart, since a shared mapping notes its protections page by page (Linux 6.18: huge 512
//! of 512 before UFFDIO_WRITEPROTECT, 0 after, and 0 after each touch that follows).
//!
//! A tracked extent is taken back without WRITEPROTECT: protecting anew would wipe out what the kernel has noted. What it has
//! mapped, and perhaps emptied since, nobody knows: the extent is marked unknown (see [`Extent`]).
//! (tests/loom_extent.rs)
//!
//! # Context: handler (promotion); demotion is the control plane's

use crate::chunk::ChunkWord;
use crate::extent::{Extent, ExtentState};
use crate::failpoint;
use crate::folio::{DIRTY, FolioWord, UNMAPPED};
use crate::ops::{Installed, Zap};
use crate::page::{EXTENT_PAGES, EXTENT_SIZE, PAGE_SHIFT};
use crate::types::{VmFaultReason, VmFlags};
use crate::vma::{VmFault, Vma};
use crate::vmstat::Event;

/// How many neighbouring extents one promotion may take along: it bounds the handler's work.
const RUN_MAX: usize = 16;
/// A native run between trapped extents splits a vma of the kernel's in three.
const RUN_COST_MAX: i64 = 2;

/// Hands the fault's extent, and complete neighbours above it, to the kernel: `NOPAGE`, or `FALLBACK` to small pages.
///
/// Linux: `->huge_fault`.
///
/// # Context: handler, inside a section
pub fn huge_fault(vmf: &VmFault<'_>) -> VmFaultReason {
    let vma = vmf.vma();
    let base = vmf.address() & !(EXTENT_SIZE - 1);
    if !may_promote(vma, base) || promote_run(vma, vmf.ctx().stripe, base, RUN_MAX) == 0 {
        return VmFaultReason::FALLBACK;
    }
    VmFaultReason::NOPAGE
}

/// Returns whether the extent at `base` could be native: a look without a claim, cheap enough for every fault.
///
/// # Context: handler
#[must_use]
pub fn may_promote(vma: &Vma<'_>, base: usize) -> bool {
    vma.flags.intersects(VmFlags::NATIVE_OK)
        && !vma.flags.intersects(VmFlags::UFFD_MINOR | VmFlags::WP_SYNC | VmFlags::SYNC)
        && base >= vma.start
        && base.checked_add(EXTENT_SIZE).is_some_and(|end| end <= vma.end)
        && vma.is_congruent()
        && vma.mapping.chunk(vma.pgoff_at(base)).is_some_and(|c| c.nr_uptodate() >= EXTENT_PAGES as u64)
        && vma.extent(base).is_some_and(|e| e.state() == ExtentState::Trapped)
}

/// Promotes up to `max` extents from `base` on, which lie in `vma`, as one run; returns how many.
///
/// # Context: handler, inside a section
pub fn promote_run(vma: &Vma<'_>, stripe: usize, base: usize, max: usize) -> usize {
    let stat = vma.mapping.stat;
    // What a run in the middle of a vma costs at most, before any word is touched: where the budget is spent, a fault in
    // a complete extent must not pin and dirty 512 pages only to give up.
    if !vma.mmu.charge_vmas(RUN_COST_MAX) {
        stat.add(stripe, Event::EXTENT_PROMOTE_FAIL, 1);
        return 0;
    }
    let mut nr = 0;
    let mut at = base;
    while nr < max && may_promote(vma, at) && claim_extent(vma, at) {
        nr += 1;
        at = at.saturating_add(EXTENT_SIZE);
    }
    if nr == 0 {
        let _ = vma.mmu.charge_vmas(-RUN_COST_MAX);
        stat.add(stripe, Event::EXTENT_PROMOTE_FAIL, 1);
        return 0;
    }
    failpoint!(PROMOTE_CHECKED);
    let tracked = vma.flags.contains(VmFlags::SHARED) && vma.is_wp();
    let cost = run_cost(vma, base, nr);
    let released = vma.mmu.release_extents(base, nr * EXTENT_SIZE, tracked).is_ok();
    let _ = vma.mmu.charge_vmas(if released { cost - RUN_COST_MAX } else { -RUN_COST_MAX });
    if takes_pins(vma) {
        for i in 0..nr {
            unpin(extent_words(vma, vma.pgoff_at(base + i * EXTENT_SIZE)));
        }
    }
    if released && !tracked {
        (0..nr).for_each(|i| make_room_for_pmd(vma, base + i * EXTENT_SIZE));
    }
    let to = if !released {
        ExtentState::Trapped
    } else if tracked {
        ExtentState::Tracked
    } else {
        ExtentState::Native
    };
    for i in 0..nr {
        settle_extent(vma, base + i * EXTENT_SIZE, to);
    }
    stat.add(stripe, if released { Event::EXTENT_PROMOTE } else { Event::EXTENT_PROMOTE_FAIL }, nr as u64);
    if released { nr } else { 0 }
}

/// Over a huge page, lets the kernel map an extent that was just handed to it by one entry: it does so only where no page
/// table is left of the time when it was trapped. In private mappings nothing is taken away; see [`map_huge`].
///
/// Not under a pin of the program's: a system call must find its pages mapped, and the extent may be taken back.
fn make_room_for_pmd(vma: &Vma<'_>, base: usize) {
    let huge = vma.mapping.chunk(vma.pgoff_at(base)).is_some_and(ChunkWord::is_huge);
    if huge && vma.flags.contains(VmFlags::SHARED) && vma.extent(base).is_some_and(|e| e.user_pins() == 0) {
        let _ = vma.mmu.zap(&[Zap { addr: base, len_bytes: EXTENT_SIZE }]);
    }
}

/// Maps the native extents among `nr` from `base` on that lie over huge pages by one entry each, without a touch.
///
/// The chunk is counted native meanwhile: taken back and evicted in between, the host would map a hole.
///
/// # Context: control plane; the caller keeps the vma from being unmapped
pub fn map_huge(vma: &Vma<'_>, stripe: usize, base: usize, nr: usize) {
    for i in 0..nr {
        let addr = base + i * EXTENT_SIZE;
        let (Some(extent), Some(chunk)) = (vma.extent(addr), vma.mapping.chunk(vma.pgoff_at(addr))) else { break };
        if extent.state() != ExtentState::Native || !chunk.try_get_native() {
            continue;
        }
        if chunk.is_huge() && extent.state() == ExtentState::Native && !vma.mmu.map_huge(addr, EXTENT_SIZE) {
            vma.mapping.stat.add(stripe, Event::THP_FAULT_FALLBACK, 1);
        }
        chunk.put_native();
    }
}

/// Owns the extent and counts the chunk native, if all its 512 words are uptodate.
fn claim_extent(vma: &Vma<'_>, base: usize) -> bool {
    let pgoff = vma.pgoff_at(base);
    let (Some(extent), Some(chunk)) = (vma.extent(base), vma.mapping.chunk(pgoff)) else { return false };
    if !extent.begin(ExtentState::Trapped) {
        return false;
    }
    if chunk.try_get_native() {
        failpoint!(PROMOTE_COUNTED);
        if all_uptodate(vma, pgoff) {
            return true;
        }
        chunk.put_native();
    }
    extent.finish(ExtentState::Trapped);
    false
}

/// Returns whether stores through the vma reach the object: its pages are pinned while the extent changes sides.
fn takes_pins(vma: &Vma<'_>) -> bool {
    vma.flags.contains(VmFlags::SHARED | VmFlags::MAYWRITE)
}

/// Returns the words of the extent whose first page is `pgoff`, or none if the object has not so many.
fn extent_words<'a>(vma: &'a Vma<'_>, pgoff: u64) -> &'a [FolioWord] {
    let first = crate::page::pgoff_index(pgoff);
    vma.mapping.folios.get(first..first.saturating_add(EXTENT_PAGES)).unwrap_or(&[])
}

/// Reads the 512 words; where stores will go unseen, pins them and marks them dirty.
fn all_uptodate(vma: &Vma<'_>, pgoff: u64) -> bool {
    // The end of the object is read after native was counted: truncate lowers it first and demotes then. Acquire pairs with
    // `i_size_write`.
    let end = pgoff.saturating_add(EXTENT_PAGES as u64);
    if end << PAGE_SHIFT > vma.mapping.i_size.load(crate::sync::Ordering::Acquire) {
        return false;
    }
    let words = extent_words(vma, pgoff);
    if words.is_empty() {
        return false;
    }
    if !takes_pins(vma) {
        return words.iter().map(FolioWord::load).all(|w| w.is_mappable() && !w.has(UNMAPPED));
    }
    for (i, word) in words.iter().enumerate() {
        // A page in write-back becomes dirty again.
        match word.try_pin_around(DIRTY) {
            Ok(old) => vma.mapping.account_dirtied(u64::from(!old.has(DIRTY))),
            Err(_) => {
                unpin(words.get(..i).unwrap_or(&[]));
                return false;
            }
        }
    }
    true
}

fn unpin(words: &[FolioWord]) {
    for word in words {
        word.unpin();
    }
}

/// Leaves `changing`, taking the chunk's count back where the extent stays trapped.
fn settle_extent(vma: &Vma<'_>, base: usize, to: ExtentState) {
    let pgoff = vma.pgoff_at(base);
    let (Some(extent), Some(chunk)) = (vma.extent(base), vma.mapping.chunk(pgoff)) else { return };
    if to == ExtentState::Trapped {
        chunk.put_native();
        // It was unregistered for a while, perhaps.
        extent.mark_unknown();
    }
    extent.finish(to);
}

/// Returns how many vmas more the process has when `nr` extents from `base` change sides.
fn run_cost(vma: &Vma<'_>, base: usize, nr: usize) -> i64 {
    let native =
        |addr: usize| vma.extent(addr).is_some_and(|e| matches!(e.state(), ExtentState::Native | ExtentState::Tracked));
    let below = if base > vma.start && !native(base.wrapping_sub(EXTENT_SIZE)) { 1 } else { -1 };
    let end = base + nr * EXTENT_SIZE;
    let above = if end < vma.end && !native(end) { 1 } else { -1 };
    // At the borders of the vma nothing is split.
    (if base <= vma.start { 0 } else { below }) + (if end >= vma.end { 0 } else { above })
}

/// Takes back the native extents of `vma` from `base` on, `nr` of them; returns how many were demoted.
///
/// At the vma limit the whole native run around an extent is taken instead, which needs no new vma. Extents that somebody is
/// promoting right now are skipped: who must not miss one keeps promoters out first.
///
/// # Context: control plane
///
/// # Errors
/// What the host said when even that failed; such extents stay native.
pub fn demote_run(vma: &Vma<'_>, stripe: usize, base: usize, nr: usize) -> Result<usize, Installed> {
    let mut demoted = 0;
    for i in 0..nr {
        let addr = base + i * EXTENT_SIZE;
        demoted += match demote_extents(vma, addr, 1) {
            Err(Installed::NoMemory) => {
                let (first, len) = native_run(vma, addr);
                demote_extents(vma, first, len)?
            }
            r => r?,
        };
    }
    vma.mapping.stat.add(stripe, Event::EXTENT_DEMOTE, demoted as u64);
    Ok(demoted)
}

/// Returns the run of native extents around `addr`, as far as it lies in the vma: first address and length.
fn native_run(vma: &Vma<'_>, addr: usize) -> (usize, usize) {
    let native = |a: usize| a >= vma.start && a < vma.end && vma.extent(a).is_some_and(is_native);
    let mut first = addr;
    while first >= EXTENT_SIZE && native(first - EXTENT_SIZE) {
        first -= EXTENT_SIZE;
    }
    let mut end = addr.saturating_add(EXTENT_SIZE);
    while native(end) {
        end = end.saturating_add(EXTENT_SIZE);
    }
    (first, (end - first) / EXTENT_SIZE)
}

fn is_native(extent: &Extent) -> bool {
    matches!(extent.state(), ExtentState::Native | ExtentState::Tracked)
}

/// Takes `nr` extents from `base` on back with one call; those at the front and the end that are not native are left.
fn demote_extents(vma: &Vma<'_>, base: usize, nr: usize) -> Result<usize, Installed> {
    let mut owned = 0;
    let mut tracked = false;
    while owned < nr {
        let Some(extent) = vma.extent(base + owned * EXTENT_SIZE) else { break };
        let from = extent.state();
        if !matches!(from, ExtentState::Native | ExtentState::Tracked) || !extent.begin(from) {
            break;
        }
        tracked |= from == ExtentState::Tracked;
        owned += 1;
    }
    if owned == 0 {
        return Ok(0);
    }
    // A tracked extent's protection bits are the kernel's record of who wrote: protecting again would erase it.
    let wp = vma.is_wp() && vma.flags.contains(VmFlags::SHARED);
    let taken = vma.mmu.take_extents(base, owned * EXTENT_SIZE, wp, wp && !tracked);
    failpoint!(DEMOTE_REGISTERED);
    let back = if tracked { ExtentState::Tracked } else { ExtentState::Native };
    let cost = if taken.is_ok() { run_cost(vma, base, owned) } else { 0 };
    let _ = vma.mmu.charge_vmas(-cost);
    for i in 0..owned {
        let addr = base + i * EXTENT_SIZE;
        let Some(extent) = vma.extent(addr) else { continue };
        if taken.is_err() {
            extent.finish(back);
            continue;
        }
        forget_hints(vma, extent);
        extent.finish(ExtentState::Trapped);
        if let Some(chunk) = vma.mapping.chunk(vma.pgoff_at(addr)) {
            chunk.put_native();
        }
    }
    taken.map(|()| owned)
}

/// Forgets the native extents among the `nr` from `base` on: their mapping is gone, and with it what the host maps there.
/// Extents that could not be taken back before would keep their chunks in the cache for ever.
///
/// # Context: control plane
pub fn forget_run(vma: &Vma<'_>, base: usize, nr: usize) {
    for i in 0..nr {
        let addr = base + i * EXTENT_SIZE;
        let Some(extent) = vma.extent(addr) else { break };
        if extent.begin(ExtentState::Native) || extent.begin(ExtentState::Tracked) {
            let _ = vma.mmu.charge_vmas(-run_cost(vma, addr, 1));
            forget_hints(vma, extent);
            settle_extent(vma, addr, ExtentState::Trapped);
        }
    }
}

/// Nobody knows what the kernel mapped meanwhile: windows try everything and skip what they meet. Where an empty entry may
/// have held a store, all of them have from now on; the bits stay, since somebody may just be installing what he has noted.
fn forget_hints(vma: &Vma<'_>, extent: &Extent) {
    if vma.is_noted() {
        extent.mark_unknown();
    } else {
        extent.note_zapped(0, EXTENT_PAGES);
    }
}
