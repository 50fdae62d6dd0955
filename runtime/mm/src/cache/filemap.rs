//! The page cache: a page is found and pinned, or claimed to be filled. Linux: `mm/filemap.c`.
//!
//! Called by the `fault` vtables and, outside sections, by whoever holds a claim. Calls the store through
//! `AddressSpaceOps` (`fill`) and the page tables through `Mmu` (`map_pages`).
//!
//! # Context: handler

use crate::claim::Claim;
use crate::discarded;
use crate::failpoint;
use crate::folio::{DIRTY, Folio, FolioWord, OVERDUE, READAHEAD, REFERENCED, State};
use crate::mapping::Mapping;
use crate::ops::WaitKey;
use crate::page::{EXTENT_SHIFT, PAGE_SHIFT};
use crate::readahead::Mode;
use crate::sync::Ordering;
use crate::types::{FaultFlags, FillError, VmFaultReason};
use crate::vma::{VmFault, Vma, Work};
use crate::vmstat::Event;
use crate::workingset::Shadow;

/// The longest run that one claim covers: an extent.
pub const CLAIM_MAX: u32 = 1 << (EXTENT_SHIFT - PAGE_SHIFT);

/// What [`get_folio`] found.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// The page, pinned.
    Pinned(&'a FolioWord),
    /// Past the end of the object, or of its tables.
    PastEnd,
    /// Not there: claim it.
    Absent,
    /// The store failed before: claim it again, or report.
    Poisoned(FillError),
    /// Somebody is filling or evicting it: sleep on the key.
    Busy(WaitKey),
    /// It is being filled, and for too long.
    Overdue,
    /// The pins are exhausted.
    NoPins,
}

/// Finds page `pgoff` and pins it, setting `set`. Linux: `filemap_get_folio`.
///
/// # Context: handler
pub fn get_folio<'a>(mapping: &'a Mapping<'_>, pgoff: u64, set: u64) -> Lookup<'a> {
    if pgoff >= mapping.nr_pages() {
        return Lookup::PastEnd;
    }
    let Some(word) = mapping.folio(pgoff) else { return Lookup::PastEnd };
    failpoint!(LOOKUP_PIN);
    let seen = match word.try_pin(set | REFERENCED) {
        Ok(old) => {
            account_pinned(mapping, old, set);
            return Lookup::Pinned(word);
        }
        Err(seen) => seen,
    };
    match seen.state() {
        State::Absent => Lookup::Absent,
        State::Poisoned => Lookup::Poisoned(seen.error()),
        State::Uptodate | State::Writeback => Lookup::NoPins,
        State::Filling if seen.has(OVERDUE) => Lookup::Overdue,
        State::Filling | State::Evicting => match word.mark_waiter(seen.state()) {
            Some(low) => Lookup::Busy(WaitKey { addr: word.futex_addr(), seen: low }),
            // It moved on between the two looks; an impossible key makes the sleeper look again at once.
            None => Lookup::Busy(WaitKey { addr: word.futex_addr(), seen: !word.load().low() }),
        },
    }
}

/// Counts a page that a pin has made dirty.
#[inline]
pub(crate) fn account_pinned(mapping: &Mapping<'_>, old: Folio, set: u64) {
    if set & DIRTY != 0 && !old.has(DIRTY) {
        mapping.account_dirtied(1);
    }
}

/// Returns the fault path's answer to what [`get_folio`] found, preparing the work it asks for.
///
/// - `Pinned`: `LOCKED`, with `vmf.folio` set.
/// - `Absent`: a claim over the fill window and `MAJOR | RETRY`.
/// - `Poisoned`: the first attempt tries the store again (so a page heals when its store does), the next reports.
///
/// # Context: handler, inside a section
pub fn fault(vmf: &mut VmFault<'_>, set: u64) -> VmFaultReason {
    let mapping = vmf.vma().mapping;
    let set = if vmf.vma().is_unseen() { set | DIRTY } else { set };
    match get_folio(mapping, vmf.pgoff(), set) {
        Lookup::Pinned(word) if mapping.exclusive && discarded::is_met(vmf, word) => VmFaultReason::RETRY,
        Lookup::Pinned(word) => {
            vmf.folio = Some(word);
            if !vmf.flags().intersects(FaultFlags::TRIED) {
                mapping.ra.note_hit();
            }
            if word.take_marker() {
                vmf.marker = vmf.pgoff();
            }
            VmFaultReason::LOCKED
        }
        Lookup::PastEnd => vmf.ctx().fail(FillError::PastEnd),
        Lookup::Absent => fault_missing(vmf),
        Lookup::Poisoned(error) if vmf.flags().intersects(FaultFlags::TRIED) => vmf.ctx().fail(error),
        Lookup::Poisoned(_) => fault_missing(vmf),
        Lookup::Overdue => vmf.ctx().fail(FillError::Deadline),
        Lookup::NoPins => vmf.ctx().fail(FillError::NoPins),
        Lookup::Busy(key) => {
            // The deadline is the store's. Who waits for an eviction waits for this process, and the page is well.
            let filling = mapping.folio(vmf.pgoff()).filter(|w| w.load().state() == State::Filling);
            if let Some(word) = filling
                && vmf.timed_out
            {
                mapping.stat.add(vmf.ctx().stripe, Event::FILL_OVERDUE, 1);
                word.mark_overdue();
                return vmf.ctx().fail(FillError::Deadline);
            }
            mapping.stat.add(vmf.ctx().stripe, Event::FILL_WAITS, 1);
            vmf.work = Work::Wait(key, if filling.is_some() { mapping.deadline_ns } else { u64::MAX });
            VmFaultReason::RETRY
        }
    }
}

/// Marks the window's page that sets the next one off, if it is among those just claimed.
///
/// # Context: handler
pub fn set_marker(mapping: &Mapping<'_>, claim: &Claim, marker: u64) {
    let end = claim.pgoff().saturating_add(u64::from(claim.nr()));
    if (claim.pgoff()..end).contains(&marker)
        && let Some(word) = mapping.folio(marker)
    {
        word.set(READAHEAD);
    }
}

/// Asks for the missing page and what readahead adds to it, unless it is off or was asked before.
#[inline(never)]
fn ask_readahead(vmf: &mut VmFault<'_>) -> bool {
    let (mapping, mode) = (vmf.vma().mapping, vmf.vma().read_mode());
    let asks = mapping.ra.is_on() && mode != Mode::Random && !vmf.flags().intersects(FaultFlags::TRIED);
    if asks {
        vmf.work = Work::Read(hold(mapping, vmf.pgoff()), mode);
    }
    asks
}

/// Returns the pages that a miss reads where nothing is read ahead.
#[inline(never)]
fn window_of(vma: &Vma<'_>) -> u64 {
    if vma.read_mode() == Mode::Random { 1 } else { u64::from(vma.mapping.fill_window_pages()) }
}

/// Asks for the missing page, and what readahead adds; where it is off, and at a second attempt, claims the run of
/// missing pages around the fault, within the fill window, the vma, the extent and the object.
///
/// Readahead plans outside the section: its arithmetic needs stack that the section's frames have used.
fn fault_missing(vmf: &mut VmFault<'_>) -> VmFaultReason {
    if vmf.flags().intersects(FaultFlags::RETRY_NOWAIT) {
        return VmFaultReason::RETRY;
    }
    let (vma, mapping) = (vmf.vma(), vmf.vma().mapping);
    if ask_readahead(vmf) {
        return VmFaultReason::MAJOR | VmFaultReason::RETRY;
    }
    let window = window_of(vma);
    let start = (vmf.pgoff() & !(window - 1)).max(vma.pgoff);
    let end = (vmf.pgoff() & !(window - 1)).saturating_add(window).min(vma.pgoff_end()).min(mapping.nr_pages());
    match claim_run(mapping, vmf.pgoff(), start, end) {
        Ok(Some(claim)) => {
            vmf.work = Work::Fill(claim);
            VmFaultReason::MAJOR | VmFaultReason::RETRY
        }
        // Somebody else claimed it between the look and the claim: look again.
        Ok(None) => VmFaultReason::RETRY,
        Err(FillError::NoMemory) => {
            // The cache is full: pages have to go first, and that is done outside the section.
            vmf.work = Work::Reclaim(hold(mapping, vmf.pgoff()));
            VmFaultReason::RETRY
        }
        Err(error) => vmf.ctx().fail(error),
    }
}

/// Claims page `pgoff` and the missing pages beside it within `start..end`; `None`: `pgoff` is no longer missing.
///
/// The window rises from `pgoff` first (sequential reads go up), then falls. The rest of the page's own block comes before
/// that, and other blocks only where they are absent whole: a part of one costs the store all of it.
///
/// # Context: handler
///
/// # Errors
/// [`FillError::NoMemory`] when the cache's limit does not allow even one page.
pub fn claim_run(mapping: &Mapping<'_>, pgoff: u64, start: u64, end: u64) -> Result<Option<Claim>, FillError> {
    if !mapping.charge(1) {
        // Who has claimed the page since the caller looked has paid for it: there is nothing to reclaim for.
        let missing = mapping.folio(pgoff).is_some_and(|w| is_missing(w.load()));
        return if missing { Err(FillError::NoMemory) } else { Ok(None) };
    }
    if !try_claim(mapping, pgoff) {
        mapping.uncharge(1);
        return Ok(None);
    }
    // From here the object is kept: its last vma may go while we read. Relaxed: the section we are in (or the
    // caller's own reference) orders it before any look that could free the object.
    mapping.users.fetch_add(1, Ordering::Relaxed);
    let (lo, hi) = claim_beside(mapping, pgoff, start, end);
    mapping.fill_begins(hi - lo);
    failpoint!(FILL_CLAIMED);
    Ok(Some(Claim::new(mapping.id, lo, u32::try_from(hi - lo).unwrap_or(0))))
}

/// Claims what is missing beside a page that is claimed; returns the run.
fn claim_beside(mapping: &Mapping<'_>, pgoff: u64, start: u64, end: u64) -> (u64, u64) {
    let more = |p: u64| {
        if !mapping.charge(1) {
            return false;
        }
        let won = try_claim(mapping, p);
        if !won {
            mapping.uncharge(1);
        }
        won
    };
    // The page's own block: the store gives all of it or nothing, so what is poisoned there heals with the page, or fails
    // with it.
    let (first, behind) = mapping.whole_blocks(pgoff, pgoff.saturating_add(1));
    // Where it gives parts, a poisoned page fails alone, and must not fail a healthy fill.
    let can_heal = |seen: Folio| is_missing(seen) && (!mapping.reads_parts || seen.state() == State::Absent);
    let missing = |p: u64| mapping.folio(p).is_some_and(|w| can_heal(w.load()));
    let (mut lo, mut hi) = (pgoff, pgoff.saturating_add(1));
    while hi < behind && missing(hi) && more(hi) {
        hi += 1;
    }
    while lo > first && missing(lo - 1) && more(lo - 1) {
        lo -= 1;
    }
    // Neighbours only where they are simply absent: a poisoned neighbour must not fail a healthy fill.
    let absent = |p: u64| mapping.folio(p).is_some_and(|w| w.load().state() == State::Absent);
    let fits = |from: u64, to: u64| to - from <= u64::from(CLAIM_MAX);
    let mut stop = behind;
    while hi == stop && hi < end {
        let to = mapping.whole_blocks(hi, hi.saturating_add(1)).1;
        if !fits(lo, to) || !(hi..to).all(absent) {
            break;
        }
        stop = to;
        while hi < stop && more(hi) {
            hi += 1;
        }
    }
    let mut stop = first;
    while lo == stop && lo > start {
        let from = mapping.whole_blocks(lo - 1, lo).0;
        if !fits(from, hi) || !(from..lo).all(absent) {
            break;
        }
        stop = from;
        while lo > stop && more(lo - 1) {
            lo -= 1;
        }
    }
    (lo, hi)
}

/// Returns whether a page can be claimed.
pub(crate) fn is_missing(seen: Folio) -> bool {
    matches!(seen.state(), State::Absent | State::Poisoned)
}

/// Claims one page. If it went so lately that it belongs to the working set, it is referenced from the start.
fn try_claim(mapping: &Mapping<'_>, pgoff: u64) -> bool {
    let Some(word) = mapping.folio(pgoff) else { return false };
    let Ok(old) = word.try_claim() else { return false };
    mapping.nodes.insert(pgoff);
    let shadow = Shadow(old.shadow());
    if shadow.is_some() && mapping.account.lru.refault(shadow, mapping.account.limit()) {
        word.set(REFERENCED);
        mapping.stat.add(0, Event::WORKINGSET_ACTIVATE, 1);
    }
    true
}

/// Holds the object and names pages of it, for work on a thread that found it by its number; `None`: it is being ended.
///
/// The caller is in a section. The pages are not claimed.
///
/// # Context: handler, inside a section
#[must_use]
pub fn try_hold_pages(mapping: &Mapping<'_>, pgoff: u64, nr: u64) -> Option<Claim> {
    mapping.try_hold().then(|| Claim::new(mapping.id, pgoff, u32::try_from(nr).unwrap_or(0)))
}

/// The same for pages that are to be written: who asks whether the object is being written finds the claim, also while it
/// waits in a queue. It is spent by [`release_written`].
///
/// # Context: handler, inside a section
#[must_use]
pub fn try_hold_to_write(mapping: &Mapping<'_>, pgoff: u64, nr: u64) -> Option<Claim> {
    let claim = try_hold_pages(mapping, pgoff, nr)?;
    // Relaxed: the number is a hint for who might wait; what was written is ordered by the pages' words.
    mapping.nr_writers.fetch_add(1, Ordering::Relaxed);
    Some(claim)
}

/// Spends a claim for write-back.
///
/// # Context: handler
pub fn release_written(mapping: &Mapping<'_>, claim: Claim) {
    mapping.nr_writers.fetch_sub(1, Ordering::Relaxed);
    release(mapping, claim);
}

/// Takes a claim of no pages: it keeps the object alive for work outside the section.
///
/// # Context: handler
pub fn hold(mapping: &Mapping<'_>, pgoff: u64) -> Claim {
    mapping.users.fetch_add(1, Ordering::Relaxed);
    Claim::new(mapping.id, pgoff, 0)
}

/// Spends a claim whose pages, if any, were left.
///
/// # Context: handler
pub fn release(mapping: &Mapping<'_>, claim: Claim) {
    debug_assert_eq!(claim.mapping_id(), mapping.id, "a claim is spent on its own object");
    // Release pairs with `ObjectInner::drop`: everything done under the claim happened before whoever waits for users = 0 goes on.
    mapping.users.fetch_sub(1, Ordering::Release);
    drop(claim);
}
