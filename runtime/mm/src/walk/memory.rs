//! The walk of one fault. Linux: `mm/memory.c`.
//!
//! ```text
//! handle_mm_fault
//!   handle_pte_fault
//!     do_wp_page                        a store to a page that is mapped write-protected
//!     do_fault
//!       do_read_fault    do_fault_around -> map_pages      __do_fault -> fault -> finish_fault
//!       do_cow_fault     __do_fault -> fault (DONE_COW)  or finish_fault: the kernel copies
//!       do_shared_fault  __do_fault -> fault -> page_mkwrite -> finish_fault
//! ```
//! Everything runs inside one fault section and returns bits. What cannot be done inside is `RETRY` with
//! [`VmFault::work`]; `fault` does it and calls again with `TRIED`.
//!
//! # Context: handler

use crate::cache::filemap;
use crate::capture::{self, Admit};
use crate::ctx::Ctx;
use crate::cut;
use crate::extent::Extent;
use crate::failpoint;
use crate::folio::{DIRTY, FolioWord};
use crate::map_pages;
use crate::ops::{Installed, Prot, WaitKey};
use crate::page::{EXTENT_PAGES, EXTENT_SIZE, PAGE_SHIFT};
use crate::types::{FaultFlags, FillError, VmFaultReason, VmFlags};
use crate::vma::{VmFault, Work};
use crate::vmstat::{Event, VmStat};
use crate::writeback;
use core::sync::atomic::{AtomicU32, Ordering};

/// Resolves one fault, or says what is in the way. Linux: `handle_mm_fault`.
///
/// Called identically from every delivery. The vma holds the fault's address.
///
/// # Context: handler, inside a section
pub fn handle_mm_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    let vma = vmf.vma();
    if vma.flags.intersects(VmFlags::CHANGING) {
        vmf.work = Work::Change(wait_for_change());
        return VmFaultReason::RETRY;
    }
    let need = if vmf.is_write() { VmFlags::WRITE } else { VmFlags::READ };
    if !vma.flags.contains(need) {
        return vmf.ctx().fail(FillError::NotPermitted);
    }
    if vma.flags.intersects(VmFlags::DIRECT) {
        // It was not yet when the access was made, or the file is shorter by now: then the access comes back, and is told.
        vmf.ctx().note_gone();
        return VmFaultReason::NOPAGE;
    }
    let mut huge = VmFaultReason::empty();
    if vma.flags.intersects(VmFlags::NATIVE_OK) {
        huge = vma.ops.huge_fault(vmf);
        if !huge.intersects(VmFaultReason::FALLBACK) {
            return huge;
        }
        // FALLBACK is consumed here: small pages it is. It stays countable, and is no error of the access.
        vma.mapping.stat.reason(vmf.ctx().stripe, VmFaultReason::FALLBACK);
        huge = huge.without(VmFaultReason::FALLBACK);
    }
    huge | handle_pte_fault(vmf)
}

/// Moves with each exchange of mappings that is over ([`VmFlags::CHANGING`]); threads that touch one meanwhile sleep on it.
static CHANGES: AtomicU32 = AtomicU32::new(0);

fn wait_for_change() -> WaitKey {
    // Read inside the section, in which the exchange was seen under way: it ends later, and moves the word. SeqCst pairs with
    // `end_change`.
    WaitKey { addr: CHANGES.as_ptr() as usize, seen: CHANGES.load(Ordering::SeqCst) }
}

/// Says that an exchange of mappings is over; returns the address that is to be woken.
///
/// # Context: control plane
pub fn end_change() -> usize {
    // SeqCst pairs with `wait_for_change`, and comes after the publication of what is there now: who loads the new number sees
    // that, too.
    CHANGES.fetch_add(1, Ordering::SeqCst);
    CHANGES.as_ptr() as usize
}

/// Linux: `handle_pte_fault`.
fn handle_pte_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    if vmf.vma().flags.intersects(VmFlags::CAPTURABLE) { captured_pte_fault(vmf) } else { pte_fault(vmf) }
}

/// As [`pte_fault`], where stores can be held: all of it is one lift, which looks once whether a capture is made, so that nothing
/// is installed or opened by what was true before the capture's last grace period.
#[inline(never)]
fn captured_pte_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    let Some(tables) = cut::tables() else { return pte_fault(vmf) };
    let Some(lift) = tables.lifts.enter(vmf.ctx().stripe) else { return pte_fault(vmf) };
    match capture::admit(vmf, &lift) {
        Admit::Go(admitted) => vmf.admitted = admitted,
        Admit::Wait(key) => {
            // Left first: who waits inside would be waited for.
            drop(lift);
            failpoint!(CAPTURE_HELD);
            vmf.work = Work::Wait(key, u64::MAX);
            return VmFaultReason::RETRY;
        }
    }
    failpoint!(CAPTURE_ADMITTED);
    let r = pte_fault(vmf);
    drop(lift);
    r
}

/// Whether a page is mapped is the host's knowledge: the hint stands in for the PTE.
fn pte_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    let vma = vmf.vma();
    let hinted = || vma.extent(vmf.address()).is_some_and(|e| e.maybe_mapped(Extent::page_index(vmf.address())));
    if vmf.is_shared_write() && vma.flags.intersects(VmFlags::WP_SYNC) && hinted() {
        return do_wp_page(vmf);
    }
    do_fault(vmf)
}

/// Linux: `do_fault`.
fn do_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    if !vmf.is_write() {
        do_read_fault(vmf)
    } else if vmf.is_shared_write() {
        do_shared_fault(vmf)
    } else {
        do_cow_fault(vmf)
    }
}

/// A load. Linux: `do_read_fault`.
fn do_read_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    if should_fault_around(vmf) {
        let r = do_fault_around(vmf);
        if !r.is_empty() {
            return r;
        }
    }
    let r = __do_fault(vmf);
    if r.intersects(VmFaultReason::ERROR | VmFaultReason::NOPAGE | VmFaultReason::RETRY) {
        return r;
    }
    r | finish_fault(vmf)
}

/// A store to a private mapping. Linux: `do_cow_fault`.
///
/// A cached page is mapped read-only and the kernel copies it when the instruction runs again; an uncached one is
/// copied from the store straight into the private page (`DONE_COW`).
fn do_cow_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    if vmf.vma().granule_pages != 0 && should_fault_around(vmf) {
        let r = do_fault_around(vmf);
        if !r.is_empty() {
            return r;
        }
    }
    let r = __do_fault(vmf);
    let done = VmFaultReason::ERROR | VmFaultReason::NOPAGE | VmFaultReason::RETRY | VmFaultReason::DONE_COW;
    if r.intersects(done) {
        return r;
    }
    r | finish_fault(vmf)
}

/// A store to a shared mapping. Linux: `do_shared_fault`.
fn do_shared_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    if let Some(refused) = refuse_store(vmf) {
        return refused;
    }
    let r = __do_fault(vmf);
    if r.intersects(VmFaultReason::ERROR | VmFaultReason::NOPAGE | VmFaultReason::RETRY) {
        return r;
    }
    let kept = preserve(vmf);
    if !kept.is_empty() {
        return kept;
    }
    let refused = do_page_mkwrite(vmf);
    if refused.intersects(VmFaultReason::ERROR) {
        put_folio(vmf);
        return refused;
    }
    let r = r | finish_fault(vmf);
    let r = r | fault_dirty_shared_page(vmf, r);
    if should_fault_around(vmf) && !r.intersects(VmFaultReason::ERROR | VmFaultReason::RETRY) {
        // The neighbours, write-protected; by granule: the rest of it, dirty. The faulting page is mapped already, so
        // the answer says nothing new.
        let _ = do_fault_around(vmf);
    }
    r
}

/// Returns the store's error for a store to one more page, where it fails and the object has its share of dirty pages. The
/// flusher is asked to try it again.
#[inline]
fn refuse_store(vmf: &VmFault<'_>) -> Option<VmFaultReason> {
    let mapping = vmf.vma().mapping;
    let error = mapping.refuses_stores()?;
    let dirty = mapping.folio(vmf.pgoff()).is_some_and(|w| w.load().is_mappable() && w.load().has(DIRTY));
    if dirty {
        return None;
    }
    if let Some(waker) = vmf.waker {
        (waker.0)(mapping.account.ring_flusher());
    }
    Some(vmf.ctx().fail(error))
}

/// A page was made dirty: where there are too many, the thread waits for write-back once its store is through. Linux:
/// `fault_dirty_shared_page`, whose `VM_FAULT_COMPLETED` says the same.
fn fault_dirty_shared_page(vmf: &mut VmFault<'_>, r: VmFaultReason) -> VmFaultReason {
    let mapping = vmf.vma().mapping;
    let full = writeback::is_dirty_full(mapping);
    let nowait = vmf.flags().intersects(FaultFlags::RETRY_NOWAIT) || vmf.ctx().nested;
    if !full || nowait || r.intersects(VmFaultReason::ERROR | VmFaultReason::RETRY) {
        return VmFaultReason::empty();
    }
    vmf.work = Work::Throttle(filemap::hold(mapping, vmf.pgoff()));
    VmFaultReason::COMPLETED
}

/// A store to a page that is mapped write-protected (or was, a moment ago). Linux: `do_wp_page`.
///
/// If the hint was wrong, or the page has left the cache, the protection is not what stopped the store: the hint is
/// cleared and the ordinary way goes on.
fn do_wp_page(vmf: &mut VmFault<'_>) -> VmFaultReason {
    if let Some(refused) = refuse_store(vmf) {
        return refused;
    }
    let vma = vmf.vma();
    let r = __do_fault(vmf);
    if r.intersects(VmFaultReason::ERROR | VmFaultReason::NOPAGE | VmFaultReason::RETRY) {
        return r;
    }
    let kept = preserve(vmf);
    if !kept.is_empty() {
        return kept;
    }
    let refused = do_page_mkwrite(vmf);
    if refused.intersects(VmFaultReason::ERROR) {
        put_folio(vmf);
        return refused;
    }
    vma.mapping.stat.add(vmf.ctx().stripe, Event::UFFD_WP, 1);
    // Cleared first: should the page turn out to be unmapped, the next attempt installs it instead of coming here.
    if let Some(extent) = vma.extent(vmf.address()) {
        extent.note_zapped(Extent::page_index(vmf.address()), 1);
    }
    let done = vma.mmu.unprotect(vmf.address());
    if vma.granule_pages != 0 && done == Installed::All {
        // By protection it is exposed now, whatever it was: one that is, and is not noted, the program would have opened.
        vma.note_mapped(vmf.address(), 1);
        vma.note_split(vmf.address(), Prot { write: true, wp: false });
    }
    put_folio(vmf);
    match done {
        Installed::All | Installed::Partial(_) | Installed::Exists => r | fault_dirty_shared_page(vmf, r),
        other => reason_of(vmf, other),
    }
}

/// Has a capture keep the bytes of the page that was pinned, before it is opened to a store; not empty: there is no room for
/// them now.
fn preserve(vmf: &mut VmFault<'_>) -> VmFaultReason {
    let kept = capture::preserve(vmf);
    if !kept.is_empty() {
        put_folio(vmf);
    }
    kept
}

/// Linux: `do_page_mkwrite`. Runs under the page's pin, with `DIRTY` set.
fn do_page_mkwrite(vmf: &mut VmFault<'_>) -> VmFaultReason {
    let ops = vmf.vma().ops;
    if !ops.has_page_mkwrite() {
        return VmFaultReason::empty();
    }
    vmf.vma().mapping.stat.add(vmf.ctx().stripe, Event::PAGE_MKWRITE, 1);
    ops.page_mkwrite(vmf)
}

/// Asks the vtable for the page. Linux: `__do_fault`.
///
/// The bit design is the default; a vma with `UFFD_LOOKUP_FIRST` asks the delegate before `fault`, as the kernel's
/// later design does.
fn __do_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    #[cfg(feature = "userfaultfd")]
    if vmf.vma().flags.contains(VmFlags::UFFD_LOOKUP_FIRST | VmFlags::UFFD_MINOR)
        && vmf.vma().ops.get_folio_noalloc(vmf.vma().mapping, vmf.pgoff())
    {
        let r = crate::userfaultfd::handle_userfault(vmf);
        if !r.is_empty() {
            return r;
        }
    }
    let r = vmf.vma().ops.fault(vmf);
    debug_assert!(r.check(vmf.folio.is_some()), "fault returned {r:?}, folio {:?}", vmf.folio);
    let special = VmFaultReason::ERROR
        | VmFaultReason::NOPAGE
        | VmFaultReason::RETRY
        | VmFaultReason::DONE_COW
        | VmFaultReason::NEEDDSYNC
        | VmFaultReason::UFFD_MINOR;
    if !r.intersects(special) {
        return r;
    }
    #[cfg(feature = "userfaultfd")]
    if r.intersects(VmFaultReason::UFFD_MINOR) {
        let told = crate::userfaultfd::handle_userfault(vmf);
        // Told by somebody between the two looks: the page can be mapped at the next attempt.
        return if told.is_empty() { r | VmFaultReason::RETRY } else { r | told };
    }
    if r.intersects(VmFaultReason::NEEDDSYNC) {
        vmf.work = Work::Dsync(filemap::hold(vmf.vma().mapping, vmf.pgoff()));
        return r | VmFaultReason::RETRY;
    }
    r
}

/// Installs the page that `fault` pinned, and drops the pin. Linux: `finish_fault`.
fn finish_fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    let vma = vmf.vma();
    let (stat, stripe) = (vma.mapping.stat, vmf.ctx().stripe);
    vma.keep_notes(vmf.address(), 1);
    vma.note_install(vmf.address(), 1);
    failpoint!(PINNED_MAP);
    let prot = map_pages::prot_for(vmf, vmf.is_shared_write());
    stat.add(stripe, Event::MAP_CALLS, 1);
    let mut done = vma.mmu.set_ptes(vmf.address(), 1, prot);
    failpoint!(MAP_DONE);
    let is_protected = vma.is_wp() || vma.flags.intersects(VmFlags::CAPTURABLE);
    if done == Installed::Exists && vmf.is_shared_write() && is_protected {
        // Mapped and protected by somebody's window: what stopped the store (or would be noted) is the protection.
        done = unprotect_existing(vmf, prot);
    }
    let r = match done {
        Installed::All | Installed::Partial(_) => {
            vma.note_mapped(vmf.address(), 1);
            vma.note_split(vmf.address(), prot);
            stat.add(stripe, Event::PGMAPPED, 1);
            VmFaultReason::empty()
        }
        Installed::Exists => {
            vma.note_mapped(vmf.address(), 1);
            stat.add(stripe, Event::MAP_EEXIST, 1);
            vma.mmu.wake(vmf.address(), 1);
            VmFaultReason::NOPAGE
        }
        other => reason_of(vmf, other),
    };
    failpoint!(MAP_UNPIN);
    put_folio(vmf);
    r
}

#[cold]
fn unprotect_existing(vmf: &VmFault<'_>, prot: Prot) -> Installed {
    let vma = vmf.vma();
    if vma.flags.intersects(VmFlags::WP_SYNC) && !prot.wp {
        vma.mapping.stat.add(vmf.ctx().stripe, Event::UFFD_WP, 1);
        return match vma.mmu.unprotect(vmf.address()) {
            Installed::All => Installed::Exists,
            other => other,
        };
    }
    Installed::Exists
}

/// Linux: what `vmf_error` and the PTE checks answer.
fn reason_of(vmf: &mut VmFault<'_>, done: Installed) -> VmFaultReason {
    match done {
        Installed::All | Installed::Partial(_) | Installed::Exists => VmFaultReason::empty(),
        // The range went away or is the kernel's own by now: the instruction finds out.
        Installed::Again | Installed::Gone => {
            vmf.ctx().note_gone();
            VmFaultReason::NOPAGE
        }
        Installed::Crowded => {
            vmf.work = Work::Crowded;
            VmFaultReason::RETRY
        }
        Installed::NoMemory => vmf.ctx().fail(FillError::NoMemory),
        // EFAULT under a pin: the cache's memory is not what the words say.
        Installed::Broken => vmf.ctx().fail(FillError::Broken),
    }
}

fn put_folio(vmf: &mut VmFault<'_>) {
    if let Some(word) = vmf.folio.take() {
        FolioWord::unpin(word);
    }
}

/// Linux: `should_fault_around`. Delegated ranges map only what was told, random ones only what was touched.
fn should_fault_around(vmf: &VmFault<'_>) -> bool {
    let vma = vmf.vma();
    let single = VmFlags::RAND_READ | VmFlags::MAP_SINGLE | VmFlags::UFFD_MINOR | VmFlags::SYNC;
    let by_page = vma.granule_pages != 0 && vmf.is_write() && vma.ops.has_page_mkwrite();
    !vma.flags.intersects(single) && !by_page && !vmf.flags().intersects(FaultFlags::INSTRUCTION)
}

/// Maps the cached pages of a window around the fault. Linux: `do_fault_around`.
///
/// The window is 16 pages and doubles up to the extent while faults in the extent repeat; by granule it is the granule.
fn do_fault_around(vmf: &mut VmFault<'_>) -> VmFaultReason {
    let vma = vmf.vma();
    let around = vmf.flags().intersects(FaultFlags::REMOTE);
    let pages = if vma.granule_pages != 0 {
        vma.granule_pages
    } else if around {
        EXTENT_PAGES
    } else {
        let window = vma.extent(vmf.address()).map_or(16, Extent::next_window);
        // What this fault has just read is mapped with it.
        let filled = if vmf.flags().intersects(FaultFlags::TRIED) {
            vma.mapping.fill_window.max(vma.mapping.read_align) as usize
        } else {
            0
        };
        window.max(filled)
    };
    let window = pages.clamp(1, EXTENT_PAGES) << PAGE_SHIFT;
    // Aligned in address space, so that a window never leaves its extent (and its page table).
    let lo = (vmf.address() & !(window - 1)).max(vma.start);
    let hi = (vmf.address() & !(window - 1)).saturating_add(window).min(vma.end);
    debug_assert!(window <= EXTENT_SIZE);
    let start = vma.pgoff_at(lo);
    let end = start.saturating_add(((hi - lo) >> PAGE_SHIFT) as u64).min(vma.mapping.nr_pages());
    if end <= vmf.pgoff() {
        return VmFaultReason::empty();
    }
    let (start, end) =
        if vma.granule_pages != 0 && vma.mmu.is_crowded() { run_around(vmf, start, end) } else { (start, end) };
    vma.ops.map_pages(vmf, start, end)
}

/// Returns the cached pages of a window that lie side by side with the fault's own: exposing others with it would cost two
/// borders for each run of them.
#[cold]
fn run_around(vmf: &VmFault<'_>, start: u64, end: u64) -> (u64, u64) {
    let cached = |p: u64| vmf.vma().mapping.folio(p).is_some_and(|w| w.load().is_mappable());
    let (mut lo, mut hi) = (vmf.pgoff(), vmf.pgoff().saturating_add(1));
    while lo > start && cached(lo - 1) {
        lo -= 1;
    }
    while hi < end && cached(hi) {
        hi += 1;
    }
    (lo, hi)
}

/// Counts one attempt, and the fault when it is finished. Linux: `mm_account_fault`.
///
/// `before` are the bits of the attempts before: a fault is major if any attempt of it was.
///
/// # Context: handler
pub fn account_fault(ctx: &Ctx<'_>, stat: &VmStat, r: VmFaultReason, before: VmFaultReason) {
    stat.reason(ctx.stripe, r);
    if r.intersects(VmFaultReason::RETRY) {
        return;
    }
    stat.add(ctx.stripe, Event::PGFAULT, 1);
    if !r.intersects(VmFaultReason::ERROR) {
        let major = (r | before).intersects(VmFaultReason::MAJOR);
        stat.add(ctx.stripe, if major { Event::PGMAJFAULT } else { Event::PGMINFAULT }, 1);
    }
}
