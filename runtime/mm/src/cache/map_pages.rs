//! Cached pages are mapped around a fault, by as few calls as can be. Linux: `filemap_map_pages`.
//!
//! The rule of runs: a window is pinned page by page and maps only what it pinned; the pins are dropped when the ioctl has
//! returned.
//!
//! # Context: handler, inside a section

use super::capture;
use super::filemap::account_pinned;
use crate::extent::Extent;
use crate::failpoint;
use crate::folio::{DIRTY, READAHEAD, REFERENCED};
use crate::ops::{Installed, Prot};
use crate::page::PAGE_SHIFT;
use crate::types::{FaultFlags, VmFaultReason, VmFlags};
use crate::vma::{VmFault, Vma};
use crate::vmstat::Event;

/// Returns how pages of `vma` are installed; `noted`: they are dirty, pinned, and being written.
///
/// # Context: handler, inside a section
#[must_use]
pub fn prot_of(vma: &Vma<'_>, noted: bool) -> Prot {
    Prot { write: vma.flags.intersects(VmFlags::WRITE), wp: vma.is_wp() && !noted }
}

/// As [`prot_of`], for what a fault installs: while a capture is open everything is protected, but for the page of a store that
/// is noted, or whose bytes are saved.
///
/// # Context: handler, inside a section
#[must_use]
pub(crate) fn prot_for(vmf: &VmFault<'_>, noted: bool) -> Prot {
    let prot = prot_of(vmf.vma(), noted);
    Prot { wp: prot.wp || (!noted && capture::wants_wp(vmf)), ..prot }
}

/// Maps the cached pages of `start..end` around the fault, run by run. Linux: `filemap_map_pages`.
///
/// Returns `NOPAGE` if the faulting page is mapped now. Pages that may be mapped already are skipped, the faulting one
/// excepted; `set` is put on every page that is pinned (the whole granule is dirty when it is exposed for writing).
///
/// # Context: handler, inside a section
pub fn map_pages(vmf: &mut VmFault<'_>, start: u64, end: u64, set: u64) -> VmFaultReason {
    let vma = vmf.vma();
    let noted = set & DIRTY != 0;
    let set = if vma.is_unseen() { set | DIRTY } else { set };
    let mut result = VmFaultReason::empty();
    let mut run = start;
    for p in start..=end {
        if p < end && pin_for_window(vmf, p, set) {
            continue;
        }
        if run < p {
            result |= map_run(vmf, run, p, prot_for(vmf, noted));
        }
        run = p.saturating_add(1);
    }
    if !result.is_empty() && !vmf.flags().intersects(FaultFlags::TRIED) {
        vma.mapping.ra.note_hit();
    }
    result
}

/// Pins page `p` for a window; `false` ends the run. A marker on it is taken and noted.
fn pin_for_window(vmf: &mut VmFault<'_>, p: u64, set: u64) -> bool {
    let vma = vmf.vma();
    let addr = vma.address_of(p);
    // By granule a window that exposes for stores takes along what is exposed for loads alone; one for loads leaves
    // what is exposed already: protecting again would take the stores away, from system calls on pinned pages too.
    let hint = (vma.granule_pages == 0 || set & DIRTY == 0)
        && p != vmf.pgoff()
        && vma.extent(addr).is_some_and(|e| e.maybe_mapped(Extent::page_index(addr)));
    let told = vma.delegation.is_none_or(|d| d.is_told(addr.wrapping_sub(d.base) >> PAGE_SHIFT));
    if hint || !told {
        return false;
    }
    let Some(word) = vma.mapping.folio(p) else { return false };
    let own = p == vmf.pgoff();
    let pinned = if own { word.try_pin(set | REFERENCED) } else { word.try_pin_around(set) };
    let Ok(old) = pinned else { return false };
    account_pinned(vma.mapping, old, set);
    if old.has(READAHEAD) && word.take_marker() {
        vmf.marker = p;
    }
    true
}

/// Installs the pinned pages `from..to`, unpins them, and says whether the faulting one is among the mapped.
fn map_run(vmf: &VmFault<'_>, from: u64, to: u64, prot: Prot) -> VmFaultReason {
    let vma = vmf.vma();
    let (first, all) = (vma.address_of(from), crate::page::pgoff_index(to - from));
    vma.keep_notes(first, all);
    vma.note_install(first, all);
    failpoint!(PINNED_MAP);
    let mut p = from;
    let mut result = VmFaultReason::empty();
    let mut covers = |a: u64, b: u64| {
        if (a..b).contains(&vmf.pgoff()) {
            result = VmFaultReason::NOPAGE;
        }
    };
    let (mut mapped, mut calls, mut exists) = (0u64, 0u64, 0u64);
    while p < to {
        let nr = usize::try_from(to - p).unwrap_or(0);
        let addr = vma.address_of(p);
        calls += 1;
        let installed = vma.mmu.set_ptes(addr, nr, prot);
        failpoint!(MAP_DONE);
        let done = match installed {
            Installed::All => nr,
            Installed::Partial(n) => n.clamp(1, nr),
            Installed::Exists => {
                exists += 1;
                vma.mmu.wake(addr, 1);
                vma.note_mapped(addr, 1);
                covers(p, p.saturating_add(1));
                p += 1;
                continue;
            }
            // The range went away, the map is changing or memory is short: what is left is not needed for progress.
            _ => {
                vma.forget_install(addr, nr);
                break;
            }
        };
        vma.note_mapped(addr, done);
        vma.note_split(addr, prot);
        covers(p, p.saturating_add(done as u64));
        mapped += done as u64;
        p += done as u64;
    }
    failpoint!(MAP_UNPIN);
    for q in from..to {
        if let Some(word) = vma.mapping.folio(q) {
            word.unpin();
        }
    }
    let (stat, stripe) = (vma.mapping.stat, vmf.ctx().stripe);
    stat.add(stripe, Event::MAP_CALLS, calls);
    stat.add(stripe, Event::PGMAPPED_AROUND, mapped.saturating_sub(u64::from(!result.is_empty())));
    stat.add(stripe, Event::PGMAPPED, u64::from(!result.is_empty() && mapped > 0));
    if exists > 0 {
        stat.add(stripe, Event::MAP_EEXIST, exists);
    }
    result
}
