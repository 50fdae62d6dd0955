//! What faults do while a capture of their object is made, and what the cutter does to page tables.
//!
//! The invariant, from the end of arming until the cut: an entry of a captured page that lets stores through is noted in the half
//! that notes, or in the one that is being swept and whose sweep has not come to it. So at the cut, when stores wait and both
//! halves are swept, there is no such entry.
//!
//! # Context: handler, inside a section, unless a function says otherwise

use crate::cut::{Admitted, Capture, Captured, Lift, Phase, naive, tables};
use crate::extent::Extent;
use crate::host::{Rmap, Which};
use crate::mapping::Mapping;
use crate::ops::{Preserved, WaitKey};
use crate::page::{EXTENT_PAGES, PAGE_SHIFT};
use crate::rmap;
use crate::types::{VmFaultReason, VmFlags};
use crate::vma::{VmFault, Vma, Work};

/// What a fault, or a call that stores, finds of captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// It goes on, by this.
    Go(Admitted),
    /// It leaves its lift, sleeps on this word, and looks again.
    Wait(WaitKey),
}

/// Returns whether a fault may go on, and by what.
///
/// # Context: handler, inside a section, in a lift
pub(crate) fn admit(vmf: &VmFault<'_>, lift: &Lift<'_>) -> Admit {
    admit_at(vmf.vma().mapping, vmf.pgoff(), vmf.is_shared_write(), lift)
}

/// The same of a store to page `pgoff` by a call, which opens no mapping: before the cut it needs no note.
///
/// # Context: handler, in a lift
#[must_use]
pub fn admit_call(mapping: &Mapping<'_>, pgoff: u64, _lift: &Lift<'_>) -> Admit {
    let Some(capture) = of(&mapping.captured) else { return Admit::Go(Admitted::No) };
    match capture.phase() {
        Phase::Cutting if !naive::has(naive::NO_WRITE_AT) => wait_for_cut(capture),
        Phase::Copying if is_unsaved(mapping, pgoff) => Admit::Go(Admitted::Saving),
        _ => Admit::Go(Admitted::No),
    }
}

fn of(captured: &Captured<'_>) -> Option<&'static Capture> {
    tables()?.capture(captured.number()?)
}

fn admit_at(mapping: &Mapping<'_>, pgoff: u64, stores: bool, _lift: &Lift<'_>) -> Admit {
    let Some(capture) = of(&mapping.captured) else { return Admit::Go(Admitted::No) };
    let bits = &mapping.captured.bits;
    match capture.phase() {
        Phase::Idle | Phase::Failed => Admit::Go(Admitted::No),
        // Not `No`: the windows of all these map captured neighbours.
        _ if !stores => Admit::Go(Admitted::Open),
        Phase::Copying if pgoff < mapping.captured.end() => Admit::Go(Admitted::Saving),
        Phase::Copying => Admit::Go(Admitted::Open),
        // Before the cut only what is left out of it is said to be saved.
        _ if bits.is_saved(pgoff) => Admit::Go(Admitted::Open),
        Phase::Arming => note(mapping, capture, pgoff),
        Phase::Draining => {
            let key = key_of(capture.credit_key());
            // A page that is noted is on the list of the next round already.
            if !naive::has(naive::NO_CREDITS) && !bits.is_noted(capture.half(), pgoff) && !capture.take_credit() {
                return Admit::Wait(key);
            }
            note(mapping, capture, pgoff)
        }
        Phase::Cutting if naive::has(naive::NO_WAIT) => note(mapping, capture, pgoff),
        Phase::Cutting => wait_for_cut(capture),
    }
}

fn note(mapping: &Mapping<'_>, capture: &Capture, pgoff: u64) -> Admit {
    // The half may change before this and after: who sweeps it waits for us either way.
    mapping.captured.bits.note(capture.half(), pgoff);
    Admit::Go(Admitted::Noting)
}

fn wait_for_cut(capture: &Capture) -> Admit {
    Admit::Wait(key_of(capture.phase_key(Phase::Cutting)))
}

fn key_of((addr, seen): (usize, u32)) -> WaitKey {
    WaitKey { addr, seen }
}

/// Returns whether a capture wants the page's bytes, and does not have them.
///
/// # Context: handler, in a lift, after the cut
#[must_use]
pub fn is_unsaved(mapping: &Mapping<'_>, pgoff: u64) -> bool {
    pgoff < mapping.captured.end() && !mapping.captured.bits.is_saved(pgoff)
}

/// Has the bytes of page `pgoff`, which the caller has pinned, kept for the capture; `Some`: sleep on this word, and look again.
///
/// # Context: handler, in a lift by which the store is admitted as [`Admitted::Saving`]
#[must_use]
pub fn preserve_page(mapping: &Mapping<'_>, pgoff: u64) -> Option<WaitKey> {
    let number = mapping.captured.number()?;
    if !is_unsaved(mapping, pgoff) {
        return None;
    }
    let bits = &mapping.captured.bits;
    match mapping.a_ops.preserve(number, pgoff, &mut || bits.save(pgoff)) {
        Preserved::Done => None,
        Preserved::Full(seen) => Some(WaitKey { seen, ..key_of(tables()?.capture(number)?.room_key()) }),
    }
}

/// Has the bytes of the fault's page kept, which is pinned, before it is opened; not empty: there is no room yet.
///
/// # Context: handler, inside a section, in a lift
pub(crate) fn preserve(vmf: &mut VmFault<'_>) -> VmFaultReason {
    if vmf.admitted != Admitted::Saving {
        return VmFaultReason::empty();
    }
    match preserve_page(vmf.vma().mapping, vmf.pgoff()) {
        None => VmFaultReason::empty(),
        Some(key) => {
            vmf.work = Work::Wait(key, u64::MAX);
            VmFaultReason::RETRY
        }
    }
}

/// Returns whether what a fault installs, other than its own store, is to be protected.
///
/// # Context: handler, inside a section
#[inline]
pub(crate) fn wants_wp(vmf: &VmFault<'_>) -> bool {
    // Where the kernel has no protection registered it would refuse the install.
    vmf.admitted != Admitted::No && vmf.vma().flags.intersects(VmFlags::WP_SYNC) && !naive::has(naive::WP_OFF)
}

/// Calls `f` for every mapping whose stores reach the object, until one says `false`.
fn each_open(rmap: &dyn Rmap, mapping: &Mapping<'_>, f: &mut dyn FnMut(&Vma<'_>) -> bool) -> bool {
    let (mut done, mut nr) = (true, 0u32);
    rmap.for_each_vma(mapping.id, Which::Shared, &mut |vma| {
        nr += 1;
        let left_out = nr > 1 && naive::has(naive::ONE_VMA);
        if vma.flags.intersects(VmFlags::CAPTURABLE) && !left_out {
            done = done && f(vma);
        }
    });
    done
}

/// Calls `f(vma, addr, nr)` for what may be mapped of the chunk that begins with page `first`.
fn each_touched(
    rmap: &dyn Rmap,
    mapping: &Mapping<'_>,
    first: u64,
    f: &dyn Fn(&Vma<'_>, usize, usize) -> bool,
) -> bool {
    each_open(rmap, mapping, &mut |vma| {
        let Some((addr, nr)) = rmap::vma_range(vma, first, first.saturating_add(EXTENT_PAGES as u64)) else {
            return true;
        };
        let (mut done, mut at) = (true, addr);
        vma.each_extent(addr, nr, |extent, index, here| {
            if is_armed(extent, index, here) {
                done = done && f(vma, at, here);
            }
            at = at.saturating_add(here << PAGE_SHIFT);
        });
        done
    })
}

fn is_armed(extent: &Extent, index: usize, nr: usize) -> bool {
    if naive::has(naive::HINTS) {
        return (index..index.saturating_add(nr)).any(|i| extent.maybe_mapped(i));
    }
    extent.is_touched()
}

/// Protects what was ever mapped of the chunk that begins with page `first`, in every mapping; `false`: the host could not.
///
/// # Context: control plane, inside a section; a grace period after the capture was announced
#[must_use]
pub fn arm_chunk(rmap: &dyn Rmap, mapping: &Mapping<'_>, first: u64) -> bool {
    each_touched(rmap, mapping, first, &|vma, addr, nr| vma.mmu.write_protect(addr, nr))
}

/// Takes the protection off again, where it is not what tracks stores.
///
/// # Context: control plane, inside a section; a grace period after the capture was ended
pub fn disarm_chunk(rmap: &dyn Rmap, mapping: &Mapping<'_>, first: u64) {
    // Where it could not be taken off, the next store to a page takes it off.
    let _ = each_touched(rmap, mapping, first, &|vma, addr, nr| {
        let tracks = vma.is_wp() && !naive::has(naive::UNWP_FILES);
        if !tracks && !naive::has(naive::KEEP_WP) {
            let _ = vma.mmu.write_unprotect(addr, nr);
        }
        true
    });
}

/// Protects, in every mapping, the pages `64 * word..64 * word + 64` whose stores half `half` has noted, and counts them in
/// `nr`; `false`: the host could not.
///
/// # Context: control plane, inside a section; a grace period after the halves were swapped
#[must_use]
pub fn sweep_word(rmap: &dyn Rmap, mapping: &Mapping<'_>, half: usize, word: usize, nr: &mut u64) -> bool {
    let mut left = mapping.captured.bits.take_noted(half, word);
    *nr += u64::from(left.count_ones());
    let first = (word as u64).saturating_mul(64);
    while left != 0 {
        let skip = left.trailing_zeros();
        let run = (left >> skip).trailing_ones();
        let from = first.saturating_add(u64::from(skip));
        let done = each_open(rmap, mapping, &mut |vma| {
            rmap::vma_range(vma, from, from.saturating_add(u64::from(run)))
                .is_none_or(|(addr, nr)| vma.mmu.write_protect(addr, nr))
        });
        if !done {
            return false;
        }
        left &= if skip + run < 64 { u64::MAX << (skip + run) } else { 0 };
    }
    true
}
