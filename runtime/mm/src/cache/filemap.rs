//! The page cache's protocols: finding a page, mapping a run, filling, dropping. Linux: `mm/filemap.c`.
//!
//! Called by the `fault` vtables and, outside sections, by whoever holds a claim. Calls the store through
//! `AddressSpaceOps` and the page tables through `Mmu`.
//!
//! # The rule of runs
//! A window is pinned page by page and maps only what it pinned; the pins are dropped when the ioctl has returned.
//!
//! # Fill
//! ```text
//! absent --claim_run--> filling --read_claimed--> uptodate | poisoned
//! ```
//! The claim keeps the object alive and is the only way out of `filling`, also after a deadline: an abandoned filler
//! must not scribble over a page that was healed meanwhile, so a page can be filled again only when its owner is back.
//!
//! # Context: handler

use crate::claim::Claim;
use crate::discarded;
use crate::extent::Extent;
use crate::failpoint;
use crate::failures::FailedOp;
use crate::folio::{DIRTY, Folio, FolioWord, OVERDUE, READAHEAD, REFERENCED, State, Wake};
use crate::host::Park;
use crate::lru::Entry;
use crate::mapping::{FailurePolicy, Mapping};
use crate::ops::{Installed, Prot, WaitKey};
use crate::page::{EXTENT_SHIFT, PAGE_SHIFT};
use crate::readahead::Mode;
use crate::sync::{Ordering, fence};
use crate::types::{FaultFlags, FillError, VmFaultReason, VmFlags};
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
fn account_pinned(mapping: &Mapping<'_>, old: Folio, set: u64) {
    if set & DIRTY != 0 && !old.has(DIRTY) {
        mapping.account_dirtied(1);
    }
}

/// Returns the fault path's answer to what [`get_folio`] found, preparing the work it asks for.
///
/// - `Pinned`: `LOCKED`, with `vmf.folio` set.
/// - `Absent`: a claim over the fill window and `MAJOR | RETRY`.
/// - `Poisoned`: the first attempt tries the store again (so a page heals when its store does), the next reports.
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
    let missing = |p: u64| mapping.folio(p).is_some_and(|w| is_missing(w.load()));
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
#[must_use]
pub fn try_hold_pages(mapping: &Mapping<'_>, pgoff: u64, nr: u64) -> Option<Claim> {
    mapping.try_hold().then(|| Claim::new(mapping.id, pgoff, u32::try_from(nr).unwrap_or(0)))
}

/// Takes a claim of no pages: it keeps the object alive for work outside the section.
pub fn hold(mapping: &Mapping<'_>, pgoff: u64) -> Claim {
    mapping.users.fetch_add(1, Ordering::Relaxed);
    Claim::new(mapping.id, pgoff, 0)
}

/// Spends a claim whose pages, if any, were left.
pub fn release(mapping: &Mapping<'_>, claim: Claim) {
    debug_assert_eq!(claim.mapping_id(), mapping.id, "a claim is spent on its own object");
    // Release pairs with `ObjectInner::drop`: everything done under the claim happened before whoever waits for users = 0 goes on.
    mapping.users.fetch_sub(1, Ordering::Release);
    drop(claim);
}

pub(crate) fn each(mapping: &Mapping<'_>, park: &dyn Park, from: u64, to: u64, leave: impl Fn(&FolioWord) -> Wake) {
    each_waking(mapping, &|addr| park.wake(addr), from, to, leave);
}

fn each_waking(mapping: &Mapping<'_>, wake: &dyn Fn(usize), from: u64, to: u64, leave: impl Fn(&FolioWord) -> Wake) {
    for p in from..to {
        if let Some(word) = mapping.folio(p)
            && leave(word) == Wake::Needed
        {
            wake(word.futex_addr());
        }
    }
}

/// Reads the pages of a claim from the store, publishes or poisons them, and spends the claim.
///
/// Whole pages before a bad one are published; only the bad page is poisoned, with what was asked for of its block; pages
/// behind become absent again, so that one bad page never hides its neighbours.
///
/// # Context: handler if the object is `handler_safe`, else a thread that may block
///
/// # Errors
/// Why the first page that is not there is not.
pub fn read_claimed(mapping: &Mapping<'_>, park: &dyn Park, stripe: usize, claim: Claim) -> Result<(), FillError> {
    let read = read_folio(mapping, stripe, &claim);
    let result = end_read(mapping, park, stripe, &claim, read);
    release(mapping, claim);
    result
}

/// What a store says of a read: or how many whole pages are good, and why the next one is not.
pub(crate) type Read = Result<(), (u32, FillError)>;

/// Reads the pages of a claim from the store. The first half of [`read_claimed`].
pub(crate) fn read_folio(mapping: &Mapping<'_>, stripe: usize, claim: &Claim) -> Read {
    let (from, to) = (claim.pgoff(), claim.pgoff().saturating_add(u64::from(claim.nr())));
    mapping.stat.add(stripe, Event::FILL_CALLS, 1);
    if mapping.read_align > 1 {
        let (first, end) = mapping.whole_blocks(from, to);
        mapping.stat.add(stripe, Event::FILL_DISCARDED, (end - first) - (to - from));
    }
    mapping.a_ops.read_folio(from, claim.nr())
}

/// Publishes what was read; the caller then releases the claim, and after that knows nothing of the object, nor of its
/// cache. The second half of [`read_claimed`]: it neither sleeps nor calls the store.
///
/// # Errors
/// As [`read_claimed`].
pub(crate) fn end_read(
    mapping: &Mapping<'_>,
    park: &dyn Park,
    stripe: usize,
    claim: &Claim,
    read: Read,
) -> Result<(), FillError> {
    let (pgoff, nr) = (claim.pgoff(), claim.nr());
    let end = pgoff.saturating_add(u64::from(nr));
    failpoint!(FILL_PUBLISH);
    match read {
        Ok(()) => {
            publish(mapping, park, stripe, pgoff, end);
            Ok(())
        }
        Err((good, error)) => {
            mapping.stat.add(stripe, Event::FILL_ERRORS, 1);
            let bad = pgoff.saturating_add(u64::from(good.min(nr.saturating_sub(1))));
            mapping.record_failure(FailedOp::Read, error, bad, 0, park.now_ns());
            publish(mapping, park, stripe, pgoff, bad);
            if claim.is_ahead() {
                // Nobody asked for the page: who does asks the store anew, and gets the verdict.
                abandon_read(mapping, park, bad, end);
                return Err(error);
            }
            let behind = mapping.whole_blocks(bad, bad.saturating_add(1)).1.min(end);
            let settled = settle_bad_pages(mapping, park, stripe, (bad, behind), error);
            abandon_read(mapping, park, behind, end);
            settled
        }
    }
}

/// filling -> absent for pages of a read that failed before it came to them, or in any of them: a store may have filled what
/// it likes of the whole run.
fn abandon_read(mapping: &Mapping<'_>, park: &dyn Park, from: u64, to: u64) {
    if from >= to {
        return;
    }
    // If it fails, memory is taken that nobody counts, until the pages are read again.
    let _ = mapping.a_ops.punch(from, u32::try_from(to - from).unwrap_or(0));
    each(mapping, park, from, to, FolioWord::abandon);
    mapping.uncharge(to - from);
}

/// Answers pages of one block (mostly one page) that the store could not give, by the object's policy.
fn settle_bad_pages(
    mapping: &Mapping<'_>,
    park: &dyn Park,
    stripe: usize,
    (pgoff, end): (u64, u64),
    error: FillError,
) -> Result<(), FillError> {
    let nr = u32::try_from(end - pgoff).unwrap_or(0);
    if mapping.policy == FailurePolicy::Zero && mapping.a_ops.zero_folio(pgoff, nr).is_ok() {
        publish(mapping, park, stripe, pgoff, end);
        return Ok(());
    }
    mapping.stat.add(stripe, Event::PGPOISON, u64::from(nr));
    // What the store left half-written goes away; if that fails the word still says that nobody may look.
    let _ = mapping.a_ops.punch(pgoff, nr);
    each(mapping, park, pgoff, end, |w| w.fail(error));
    mapping.uncharge(u64::from(nr));
    Err(error)
}

/// filling -> uptodate for `from..to`, with the chunks' counts; what lies past the end by now becomes absent instead.
fn publish(mapping: &Mapping<'_>, park: &dyn Park, stripe: usize, from: u64, to: u64) {
    publish_waking(mapping, &|addr| park.wake(addr), stripe, from, to);
}

fn publish_waking(mapping: &Mapping<'_>, wake: &dyn Fn(usize), stripe: usize, from: u64, to: u64) {
    // The fence pairs with `i_size_write`: either we see the new end here, or truncate sees our claim and waits.
    fence(Ordering::SeqCst);
    let all = to;
    let to = all.min(mapping.nr_pages().max(from));
    if to < all {
        let _ = mapping.a_ops.punch(to, u32::try_from(all - to).unwrap_or(0));
        each_waking(mapping, wake, to, all, FolioWord::abandon);
        mapping.uncharge(all - to);
    }
    // Where stores are not tracked every page must count as written from the start: its mappings are open to stores, and
    // what the word calls clean is dropped.
    let set = if mapping.always_dirty { DIRTY } else { 0 };
    let mut p = from;
    while p < to {
        let chunk_end = (p | (u64::from(CLAIM_MAX) - 1)).saturating_add(1).min(to);
        // Counted first: a page may be dropped, and uncounted, as soon as it is published.
        if let Some(chunk) = mapping.chunk(p) {
            chunk.add_uptodate(chunk_end - p);
        }
        for q in p..chunk_end {
            publish_one(mapping, wake, q, set);
        }
        p = chunk_end;
    }
    mapping.stat.add(stripe, Event::PGPGIN, to.saturating_sub(from));
}

/// filling -> uptodate for one page, and its place in the queues of reclaim.
fn publish_one(mapping: &Mapping<'_>, wake: &dyn Fn(usize), pgoff: u64, set: u64) {
    let Some(word) = mapping.folio(pgoff) else { return };
    let claimed = word.load();
    mapping.account_dirtied(u64::from(set & DIRTY != 0));
    if word.publish(set) == Wake::Needed {
        wake(word.futex_addr());
    }
    // Afterwards, under the name it was published by: who pops the entry of a page that is still being filled would take
    // it for a stale one. If the page has left again by now, it is one.
    mapping.enter(Entry::named(mapping.id, pgoff, claimed.version()), claimed.has(REFERENCED));
}

/// Gives up the pages of a claim without a verdict (no filler could be had), and spends it.
pub fn abandon(mapping: &Mapping<'_>, park: &dyn Park, claim: Claim) {
    let end = claim.pgoff().saturating_add(u64::from(claim.nr()));
    each(mapping, park, claim.pgoff(), end, FolioWord::abandon);
    mapping.uncharge(u64::from(claim.nr()));
    release(mapping, claim);
}

/// Fills one page by a closure that gets its bytes, as a custom `VmOps::fault` does: `LOCKED` with the page pinned.
///
/// `f` runs inside the section: it computes, it does not wait. Several threads on one page: one computes it, the others
/// sleep until the fault's waker wakes them.
pub fn fill_with(vmf: &mut VmFault<'_>, f: &mut dyn FnMut(&mut [u8])) -> VmFaultReason {
    let mapping = vmf.vma().mapping;
    let set = if vmf.is_shared_write() { DIRTY } else { 0 };
    let pgoff = vmf.pgoff();
    if !matches!(get_folio_state(mapping, pgoff), Some(State::Absent)) {
        return fault(vmf, set);
    }
    match claim_run(mapping, pgoff, pgoff, pgoff.saturating_add(1)) {
        Ok(None) => return fault(vmf, set),
        Err(FillError::NoMemory) => {
            vmf.work = Work::Reclaim(hold(mapping, pgoff));
            return VmFaultReason::RETRY;
        }
        Err(error) => return vmf.ctx().fail(error),
        Ok(Some(claim)) => {
            mapping.a_ops.with_page_mut(pgoff, f);
            let waker = vmf.waker;
            let wake = |addr: usize| {
                if let Some(waker) = waker {
                    (waker.0)(addr);
                }
            };
            publish_waking(mapping, &wake, vmf.ctx().stripe, pgoff, pgoff.saturating_add(1));
            release(mapping, claim);
        }
    }
    fault(vmf, set)
}

fn get_folio_state(mapping: &Mapping<'_>, pgoff: u64) -> Option<State> {
    (pgoff < mapping.nr_pages()).then(|| mapping.folio(pgoff).map(|w| w.load().state())).flatten()
}

/// Returns how pages of `vma` are installed; `noted`: they are dirty, pinned, and being written.
#[must_use]
pub fn prot_of(vma: &Vma<'_>, noted: bool) -> Prot {
    Prot { write: vma.flags.intersects(VmFlags::WRITE), wp: vma.is_wp() && !noted }
}

/// Maps the cached pages of `start..end` around the fault, run by run. Linux: `filemap_map_pages`.
///
/// Returns `NOPAGE` if the faulting page is mapped now. Pages that may be mapped already are skipped, the faulting one
/// excepted; `set` is put on every page that is pinned (the whole granule is dirty when it is exposed for writing).
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
            result |= map_run(vmf, run, p, prot_of(vma, noted));
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
