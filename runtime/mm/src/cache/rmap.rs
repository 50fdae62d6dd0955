//! From the pages of an object to the addresses where they are mapped. Linux: `mm/rmap.c`.
//!
//! Everything here runs inside the section that lent the [`Rmap`].
//!
//! # Context: handler

use crate::extent::Extent;
use crate::failpoint;
use crate::folio::{DIRTY, REFERENCED};
use crate::host::{BATCH, Batch, Rmap, Which};
use crate::huge_memory;
use crate::mapping::Mapping;
use crate::ops::{Pte, Zap};
use crate::page::{EXTENT_PAGES, EXTENT_SIZE, PAGE_SHIFT, PAGE_SIZE};
use crate::types::VmFlags;
use crate::vma::Vma;

/// Returns where `vma` maps the pages `from..to`: the first address, and how many pages from there. Linux: `vma_address`.
///
/// # Context: handler
#[must_use]
pub fn vma_range(vma: &Vma<'_>, from: u64, to: u64) -> Option<(usize, usize)> {
    let lo = from.max(vma.pgoff);
    let hi = to.min(vma.pgoff_end());
    (lo < hi).then(|| (vma.address_of(lo), crate::page::pgoff_index(hi - lo)))
}

/// Takes back the native extents over the chunk that holds `pgoff`, in every mapping; `false`: one is left.
///
/// # Context: handler, inside a section
pub fn demote_chunk(rmap: &dyn Rmap, mapping: &Mapping<'_>, stripe: usize, pgoff: u64) -> bool {
    let Some(chunk) = mapping.chunk(pgoff) else { return false };
    let first = pgoff & !(EXTENT_PAGES as u64 - 1);
    for which in [Which::Shared, Which::Private] {
        if chunk.nr_native() == 0 {
            break;
        }
        rmap.for_each_vma(mapping.id, which, &mut |vma| {
            if let Some((addr, nr)) = vma_range(vma, first, first.saturating_add(EXTENT_PAGES as u64)) {
                let base = addr & !(EXTENT_SIZE - 1);
                let extents = (addr - base + (nr << PAGE_SHIFT)).div_ceil(EXTENT_SIZE);
                // What cannot be taken back stays counted, and its pages stay.
                let _ = huge_memory::demote_run(vma, stripe, base, extents);
            }
        });
    }
    chunk.nr_native() == 0
}

/// Counts an eviction in the chunk of `pgoff`, taking native extents back first; `false`: one is left.
///
/// # Context: handler, inside a section
pub fn get_evict(rmap: &dyn Rmap, mapping: &Mapping<'_>, stripe: usize, pgoff: u64) -> bool {
    let Some(chunk) = mapping.chunk(pgoff) else { return false };
    chunk.try_get_evict() || (demote_chunk(rmap, mapping, stripe, pgoff) && chunk.try_get_evict())
}

/// Returns whether the program holds a pin somewhere over the chunk that begins with page `first`, of an object whose pins
/// are counted: no part of a huge page can be unmapped or dropped without unmapping all of it.
///
/// The answer holds until the section is left: who counts a pin waits for the sections that were entered before.
///
/// # Context: handler, inside a section
#[must_use]
pub fn has_user_pins(rmap: &dyn Rmap, mapping: &Mapping<'_>, first: u64) -> bool {
    let mut pinned = false;
    each_in_chunk(rmap, mapping, first, &mut |_, vma, addr, nr| {
        let last = addr + ((nr - 1) << PAGE_SHIFT);
        // Where extents and chunks do not coincide, a chunk lies in two.
        pinned |= [addr, last].iter().any(|a| vma.extent(*a).is_some_and(|e| e.user_pins() != 0));
    });
    pinned
}

/// Calls `f(which, vma, addr, nr)` for every place where (part of) the chunk that begins with page `first` is mapped.
///
/// # Context: handler, inside a section
pub fn each_in_chunk(
    rmap: &dyn Rmap,
    mapping: &Mapping<'_>,
    first: u64,
    f: &mut dyn FnMut(Which, &Vma<'_>, usize, usize),
) {
    for which in [Which::Shared, Which::Private] {
        rmap.for_each_vma(mapping.id, which, &mut |vma| {
            if let Some((addr, nr)) = vma_range(vma, first, first.saturating_add(EXTENT_PAGES as u64)) {
                f(which, vma, addr, nr);
            }
        });
    }
}

/// Takes a whole chunk, in which nobody notes stores, out of every shared mapping by one call each. The caller has pinned
/// the pages that are to be missed, and in its section nobody else has.
///
/// # Context: handler, inside a section
pub fn unmap_chunk(rmap: &dyn Rmap, mapping: &Mapping<'_>, first: u64) {
    hide(rmap, mapping, first, first.saturating_add(EXTENT_PAGES as u64));
    each_in_chunk(rmap, mapping, first, &mut |which, vma, addr, nr| {
        if which == Which::Shared && vma.granule_pages == 0 {
            let _ = vma.mmu.zap(&[Zap { addr, len_bytes: nr << PAGE_SHIFT }]);
        }
    });
}

/// Takes `pages` of object `id` out of every shared mapping, and finds out whether they were written.
///
/// The pages were pinned by `try_unmap`. Under `WP_ASYNC` nothing stops a writer between two steps, so a page is clean
/// only if the host's marker says so when everything is over:
/// ```text
/// reclaim                          a thread
/// look: clean
///                                  writes: noted in the PTE
/// zap: the note is gone
/// look: no marker -> dirty
///
/// look: nothing mapped
///                                  maps it (REFERENCED), writes: noted
/// zap: the note is gone
/// look: no marker, REFERENCED -> dirty
/// ```
/// (probes: 777 lost writes in 20 s without the second look)
///
/// That nothing is mapped says little by itself: the host may have taken the page away, and the note of a store with it.
/// Whether a page was ever there the maybe-mapped bits say (see [`Extent`]), which are read before the zap clears them.
///
/// # Context: handler, inside a section
pub fn try_to_unmap(rmap: &dyn Rmap, mapping: &Mapping<'_>, pages: &[(u32, u64)], zaps: &mut [Zap; BATCH]) {
    rmap.for_each_vma(mapping.id, Which::Shared, &mut |vma| unmap_from(vma, mapping, pages, zaps));
    rmap.for_each_vma(mapping.id, Which::Private, &mut |vma| {
        if vma.granule_pages == 0 {
            // The punch takes the object's pages out of a private mapping and leaves the program's own copies.
            each_address(vma, mapping.id, pages, |_, _, addr| note_zapped(vma, addr, 1));
        } else {
            // A punch below a granule that is exposed would show zeros, so the pages are hidden first. Hiding is by protection, which
            // keeps the program's own copies.
            zap_pages(vma, mapping.id, pages, zaps);
        }
    });
}

fn unmap_from(vma: &Vma<'_>, mapping: &Mapping<'_>, pages: &[(u32, u64)], zaps: &mut [Zap; BATCH]) {
    let asked = vma.mmu.asked();
    let seen = vma.is_noted().then(|| look_before(vma, mapping, pages));
    zap_pages(vma, mapping.id, pages, zaps);
    failpoint!(UNMAP_ZAPPED);
    if let Some(seen) = seen {
        look_after(vma, mapping, pages, seen);
        if !vma.mmu.vouches(asked) {
            // The host did not answer of our memory, and the entries that it was asked about are gone by now: nobody knows
            // what was noted of stores here, so each page counts as written.
            each_address(vma, mapping.id, pages, |_, pgoff, _| mark_dirty(mapping, pgoff));
        }
    }
}

/// Takes the pages of `from..to`, at most a batch, out of one vma, which is shared, and keeps what was noted of stores.
/// Linux: `zap_vma_pages`. Pages that are pinned stay mapped, unless `force`; returns how many.
///
/// # Context: control plane, inside a section: who syncs waits for it. The vma stays as it is until the call returns.
pub fn zap_vma(vma: &Vma<'_>, from: u64, to: u64, batch: &mut Batch, force: bool) -> u64 {
    let mapping = vma.mapping;
    let Batch { pages, zaps } = batch;
    let mut left = 0;
    let (mut nr, mut held) = (0, 0u64);
    for q in from..to.min(from.saturating_add(BATCH as u64)) {
        let Some(word) = mapping.folio(q) else { break };
        let unmaps = word.try_unmap_again().is_ok();
        // The page is pinned through another mapping, perhaps for long, so it counts as written: no note of a store is missed.
        let holds = !unmaps
            && force
            && word.try_pin(DIRTY).is_ok_and(|old| {
                mapping.account_dirtied(u64::from(!old.has(DIRTY)));
                true
            });
        if (unmaps || holds)
            && let Some(at) = pages.get_mut(nr)
        {
            *at = (mapping.id, q);
            held |= u64::from(holds) << nr;
            nr += 1;
        } else if word.load().is_mappable() && word.load().pins() > 0 {
            left += 1;
        }
    }
    let pages = pages.get(..nr).unwrap_or(&[]);
    unmap_from(vma, mapping, pages, zaps);
    for (i, (_, q)) in pages.iter().enumerate() {
        if let Some(word) = mapping.folio(*q) {
            if held >> i & 1 == 0 {
                word.keep_pinned();
            }
            word.unpin();
        }
    }
    left
}

fn each_address(vma: &Vma<'_>, id: u32, pages: &[(u32, u64)], mut f: impl FnMut(usize, u64, usize)) {
    for (i, (of, pgoff)) in pages.iter().enumerate() {
        if *of == id
            && let Some((addr, _)) = vma_range(vma, *pgoff, pgoff.saturating_add(1))
        {
            f(i, *pgoff, addr);
        }
    }
}

/// What the first look saw: one bit a page of the batch.
#[derive(Clone, Copy, Default)]
struct Seen {
    protected: u64,
    nothing: u64,
}

fn look_before(vma: &Vma<'_>, mapping: &Mapping<'_>, pages: &[(u32, u64)]) -> Seen {
    let mut seen = Seen::default();
    each_address(vma, mapping.id, pages, |i, pgoff, addr| {
        if mapping.folio(pgoff).is_some_and(|w| w.load().has(DIRTY)) {
            // There is nothing to find out: the page stays dirty while we hold the pin.
            return;
        }
        match vma.mmu.pte_glanced(addr) {
            Pte::Written => mark_dirty(mapping, pgoff),
            Pte::Clean | Pte::Marker => seen.protected |= 1 << i,
            // There was a page, and the host has taken it away: it may have been stored to.
            Pte::None if !is_untouched(vma, addr) => mark_dirty(mapping, pgoff),
            Pte::None => seen.nothing |= 1 << i,
        }
    });
    failpoint!(UNMAP_LOOKED);
    seen
}

/// Returns whether an entry that was found empty never held a page.
fn is_untouched(vma: &Vma<'_>, addr: usize) -> bool {
    vma.extent(addr).is_some_and(|e| e.is_untouched(Extent::page_index(addr)))
}

/// Finds the pages that a thread came for between the first look and the zap: the zap may have taken the note of its store, and
/// its maybe-mapped bit. Such a page is made dirty, and nobody writes it back before that thread has unpinned it, which
/// it does after it has set the bit once more.
fn look_after(vma: &Vma<'_>, mapping: &Mapping<'_>, pages: &[(u32, u64)], seen: Seen) {
    each_address(vma, mapping.id, pages, |i, pgoff, addr| {
        let bit = 1u64 << i;
        // A thread that sets the flag after this look maps the page after the zap, so the note of its store is still there.
        let referenced = mapping.folio(pgoff).is_some_and(|w| w.load_latest().has(REFERENCED));
        if referenced {
            // The hint is set again: the zap may have been refused, so that the page is still mapped, or the thread set the
            // hint before the zap cleared it, and maps the page afterwards.
            vma.note_mapped(addr, 1);
        }
        // What looks like a marker may be a page that was mapped anew, protected, and is being moved by the host. Where nobody
        // came it is none of these.
        let kept = || vma.mmu.pte_glanced(addr) == Pte::Marker && !referenced;
        let lost = (seen.protected & bit != 0 && !kept())
            || (seen.nothing & bit != 0 && (referenced || !is_untouched(vma, addr)));
        if lost {
            mark_dirty(mapping, pgoff);
        }
    });
}

/// Sets `DIRTY` on a page that the caller has pinned, or that is `writeback` and the caller's.
fn mark_dirty(mapping: &Mapping<'_>, pgoff: u64) {
    if let Some(word) = mapping.folio(pgoff) {
        mapping.account_dirtied(u64::from(!word.set(DIRTY).has(DIRTY)));
    }
}

/// Unmaps the pages in one vma, neighbours in one range, by as few calls as their number permits.
fn zap_pages(vma: &Vma<'_>, id: u32, pages: &[(u32, u64)], zaps: &mut [Zap; BATCH]) {
    let mut nr = 0usize;
    each_address(vma, id, pages, |_, _, addr| {
        let (addr, len_bytes) = widen(vma, addr);
        note_zapped(vma, addr, len_bytes >> PAGE_SHIFT);
        let last = nr.wrapping_sub(1);
        if let Some(z) = zaps.get_mut(last)
            && z.addr <= addr
            && addr <= z.addr + z.len_bytes
        {
            z.len_bytes = z.len_bytes.max(addr + len_bytes - z.addr);
        } else if let Some(z) = zaps.get_mut(nr) {
            *z = Zap { addr, len_bytes };
            nr += 1;
        }
    });
    let zaps = zaps.get(..nr).unwrap_or(&[]);
    if !zaps.is_empty() && !vma.mmu.zap(zaps) && !zap_whole_unpinned(vma) {
        // The host refused, and the pages stay mapped. They count as touched, so that nobody drops them.
        each_address(vma, id, pages, |_, pgoff, _| {
            if let Some(word) = vma.mapping.folio(pgoff) {
                word.set(REFERENCED);
            }
        });
    }
}

/// As [`zap_whole`], unless a program holds a pin somewhere in the vma: a system call on that must find its pages mapped.
fn zap_whole_unpinned(vma: &Vma<'_>) -> bool {
    let mut bases = (vma.start & !(EXTENT_SIZE - 1)..vma.end).step_by(EXTENT_SIZE);
    // The answer holds until the section is left: who counts a pin waits for it.
    let pinned = bases.any(|base| vma.extent(base).is_some_and(|e| e.user_pins() != 0));
    !pinned && zap_whole(vma)
}

/// Hides the whole vma where the host is out of vmas for hiding a part: that splits nothing.
fn zap_whole(vma: &Vma<'_>) -> bool {
    if vma.granule_pages == 0 {
        return false;
    }
    note_zapped(vma, vma.start, (vma.end - vma.start) >> PAGE_SHIFT);
    vma.mmu.zap(&[Zap { addr: vma.start, len_bytes: vma.end - vma.start }])
}

/// Returns the whole granule where a page is exposed with its neighbours: hiding it alone would split a vma of the
/// kernel's. A granule in which a program holds a pin stays, but for the page.
fn widen(vma: &Vma<'_>, addr: usize) -> (usize, usize) {
    let pinned = vma.extent(addr).is_some_and(|e| e.user_pins() != 0);
    if vma.granule_pages <= 1 || pinned {
        return (addr, PAGE_SIZE);
    }
    let len = vma.granule_pages << PAGE_SHIFT;
    let start = (addr & !(len - 1)).max(vma.start);
    let end = (addr & !(len - 1)).saturating_add(len).min(vma.end);
    (start, end - start)
}

/// Forgets the hints about `nr` pages from `addr`, and lets the windows over them start anew.
///
/// # Context: handler
pub fn note_zapped(vma: &Vma<'_>, addr: usize, nr: usize) {
    vma.each_extent(addr, nr, |extent, index, here| {
        extent.note_zapped(index, here);
        extent.reset_window();
    });
}

/// Hides pages that are being dropped, dirty or not, where a punch would not: a granule that is exposed by protection
/// would be filled with zeros by the kernel.
///
/// # Context: handler, inside a section
pub fn hide(rmap: &dyn Rmap, mapping: &Mapping<'_>, from: u64, to: u64) {
    for which in [Which::Shared, Which::Private] {
        rmap.for_each_vma(mapping.id, which, &mut |vma| {
            let Some((addr, nr)) = vma_range(vma, from, to) else { return };
            note_zapped(vma, addr, nr);
            if vma.granule_pages == 0 {
                return;
            }
            let (start, _) = widen(vma, addr);
            let (last, len) = widen(vma, addr + ((nr - 1) << PAGE_SHIFT));
            note_zapped(vma, start, (last + len - start) >> PAGE_SHIFT);
            // Pins elsewhere in the vma do not stop this either: stores to what is being dropped would be lost.
            let hidden = vma.mmu.zap(&[Zap { addr: start, len_bytes: last + len - start }]) || zap_whole(vma);
            debug_assert!(hidden, "protecting a whole vma splits nothing");
        });
    }
}

/// Makes the next store to each of the pages `from..to`, which are `writeback`, be noted or fault, in every mapping
/// whose stores reach the object. Linux: `folio_mkclean`.
///
/// # Context: handler, inside a section
pub fn mkclean(rmap: &dyn Rmap, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) {
    rmap.for_each_vma(mapping.id, Which::Shared, &mut |vma| {
        let Some((addr, nr)) = vma_range(vma, from, to) else { return };
        if !vma.flags.intersects(VmFlags::MAYWRITE) {
            return;
        }
        if vma.is_wp() && vma.granule_pages == 0 {
            // Where nothing was ever mapped nothing is open to stores, and whoever maps a page from now on protects it or makes
            // it dirty. Protecting the range would only make page tables, to hold markers.
            let mut untouched = vma.is_noted();
            vma.each_extent(addr, nr, |extent, index, here| untouched &= extent.are_untouched(index, here));
            if !untouched && !vma.mmu.write_protect(addr, nr) {
                (from..to).for_each(|p| mark_dirty(mapping, p));
            }
            return;
        }
        // Stores through this mapping are not noted, so the pages are taken out of it: the next touch comes to us, and a store
        // makes its page dirty.
        let mut at = from;
        while vma.granule_pages == 0 && at < to {
            let next = (at | (EXTENT_PAGES as u64 - 1)).saturating_add(1).min(to);
            if !demote_chunk(rmap, mapping, stripe, at) {
                // The kernel goes on mapping the range, and we see none of it.
                (at..next).for_each(|p| mark_dirty(mapping, p));
            }
            at = (at | (EXTENT_PAGES as u64 - 1)).saturating_add(1);
        }
        note_zapped(vma, addr, nr);
        if !vma.mmu.zap(&[Zap { addr, len_bytes: nr << PAGE_SHIFT }]) && !zap_whole_unpinned(vma) {
            (from..to).for_each(|p| mark_dirty(mapping, p));
        }
    });
}

/// Marks the pages of `from..to` dirty that were written through some mapping; nothing is protected anew. Returns how
/// many were found.
///
/// A page is clean only if the host says that it protects it. All others count as written, also a page that the host has taken
/// away, unless there never was one (see [`Extent`]).
///
/// A page that reclaim is unmapping meanwhile may be missed: its note is gone, and its word is not dirty yet. A caller that must
/// not miss one waits for the sections that were entered before, and looks at the words afterwards.
///
/// # Context: handler, inside a section
pub fn harvest(rmap: &dyn Rmap, mapping: &Mapping<'_>, from: u64, to: u64) -> u64 {
    if mapping.exclusive {
        return harvest_exclusive(mapping, from, to);
    }
    let mut nr = 0;
    rmap.for_each_vma(mapping.id, Which::Shared, &mut |vma| {
        nr += harvest_vma(vma, from, to);
    });
    nr
}

/// As [`harvest`], for an exclusive object, whose pages show by their digests that they were stored to.
fn harvest_exclusive(mapping: &Mapping<'_>, from: u64, to: u64) -> u64 {
    let mut nr = 0;
    for p in from..to {
        let Some(word) = mapping.folio(p) else { break };
        // A page that is leaving is written on its way.
        if word.load().has(DIRTY) {
            continue;
        }
        match word.try_pin(0) {
            Ok(_) => {
                if mapping.a_ops.is_written(p) {
                    nr += u64::from(mapping.mark_dirty(word).is_some());
                }
                word.unpin();
            }
            // No pin is left for a look, so it counts as written; or it is not cached.
            Err(_) => nr += u64::from(mapping.mark_dirty(word).is_some()),
        }
    }
    nr
}

/// As [`harvest`], for one mapping.
///
/// # Context: handler
pub fn harvest_vma(vma: &Vma<'_>, from: u64, to: u64) -> u64 {
    let Some((addr, nr)) = vma_range(vma, from, to) else { return 0 };
    if !vma.is_noted() {
        return 0;
    }
    let mut found = 0;
    vma.mmu.maybe_written(addr, nr, &mut |addr, nr| {
        let end = addr.saturating_add(nr << PAGE_SHIFT);
        let mut at = addr;
        while at < end {
            // A page that was ever mapped counts as written, also where its entry is empty: the host has taken it away.
            if !is_untouched(vma, at) {
                found += u64::from(note_written(vma.mapping, vma.pgoff_at(at)));
                at = at.saturating_add(PAGE_SIZE);
                continue;
            }
            let first = at;
            while at < end && is_untouched(vma, at) {
                at = at.saturating_add(PAGE_SIZE);
            }
            found += harvest_untouched(vma, first, (at - first) >> PAGE_SHIFT);
        }
    });
    found
}

/// As [`harvest_vma`], for pages that were found neither protected nor touched: most entries are empty, and some are being
/// mapped.
///
/// ```text
/// who maps a page                         others
/// notes that it is touched
///                                         unmap it: untouched
/// maps it
///                                         store to it, and sync: here
/// notes it once more
/// ```
fn harvest_untouched(vma: &Vma<'_>, addr: usize, nr: usize) -> u64 {
    let mut found = 0;
    vma.mmu.unprotected(addr, nr, &mut |addr, nr, pte| {
        for at in (addr..addr.saturating_add(nr << PAGE_SHIFT)).step_by(PAGE_SIZE) {
            // Somebody took a page away here, if it was ever mapped.
            if pte != Pte::None || !is_untouched(vma, at) {
                found += u64::from(note_written(vma.mapping, vma.pgoff_at(at)));
            }
        }
    });
    found
}

/// Marks a page dirty to which a store was found; `false`: it is leaving, and was found dirty by who makes it leave.
fn note_written(mapping: &Mapping<'_>, pgoff: u64) -> bool {
    let Some(word) = mapping.folio(pgoff) else { return false };
    mapping.mark_dirty(word).is_some()
}
