//! Pages are filled: by the store, outside of sections, or by a closure. Linux: `filemap_read_folio`.
//!
//! ```text
//! absent --claim_run--> filling --read_claimed--> uptodate | poisoned
//! ```
//! The claim keeps the object alive and is the only way out of `filling`, also after a deadline: an abandoned filler
//! must not scribble over a page that was healed meanwhile, so a page can be filled again only when its owner is back.
//!
//! # Context: handler, unless the object's store waits

use super::filemap::{CLAIM_MAX, claim_run, fault, hold, release};
use crate::claim::Claim;
use crate::failpoint;
use crate::failures::FailedOp;
use crate::folio::{DIRTY, FolioWord, REFERENCED, State, Wake};
use crate::host::Park;
use crate::lru::Entry;
use crate::mapping::{FailurePolicy, Mapping};
use crate::sync::{Ordering, fence};
use crate::types::{FillError, VmFaultReason};
use crate::vma::{VmFault, Work};
use crate::vmstat::Event;

/// Takes each page of `from..to` through the step `leave`, and wakes who waits for it.
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
        let (first, end) = mapping.read_together(from, to);
        mapping.stat.add(stripe, Event::FILL_DISCARDED, (end - first) - (to - from));
    }
    mapping.a_ops.read_folio(from, claim.nr())
}

/// Fills the pages of a claim where that can be done here and now. `false`: nothing was done.
///
/// # Context: handler
pub(crate) fn read_folio_here(mapping: &Mapping<'_>, stripe: usize, claim: &Claim) -> bool {
    let is_read = mapping.a_ops.read_here(claim.pgoff(), claim.nr());
    mapping.stat.add(stripe, Event::FILL_CALLS, u64::from(is_read));
    is_read
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
    let settled = settle_read(mapping, park, stripe, claim, read);
    mapping.fill_ends(u64::from(claim.nr()));
    settled
}

/// Takes the pages of a claim out of `filling`: they are published, poisoned, or absent again.
fn settle_read(
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
            let behind = mapping.read_together(bad, bad.saturating_add(1)).1.min(end);
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
    fail_together(mapping, park, (pgoff, end), error);
    mapping.uncharge(u64::from(nr));
    Err(error)
}

/// filling -> poisoned for pages of one block: first all of them, and only then is woken who waits. Whoever has been told the
/// verdict on one page, and mends the store and asks for the block again, would meet others that are still on their way to the
/// old verdict.
fn fail_together(mapping: &Mapping<'_>, park: &dyn Park, (pgoff, end): (u64, u64), error: FillError) {
    let mut waited_for = [0u64; CLAIM_MAX as usize / 64];
    let bit = |p: u64| (crate::page::pgoff_index((p - pgoff) / 64), 1u64 << ((p - pgoff) % 64));
    // The first page last: who reads in order looks at it first, and need not wait to see it.
    for p in (pgoff..end).rev() {
        let is = mapping.folio(p).is_some_and(|word| word.fail(error) == Wake::Needed);
        let (i, mask) = bit(p);
        if let Some(bits) = waited_for.get_mut(i).filter(|_| is) {
            *bits |= mask;
        }
    }
    for p in pgoff..end {
        let (i, mask) = bit(p);
        if waited_for.get(i).is_some_and(|bits| bits & mask != 0)
            && let Some(word) = mapping.folio(p)
        {
            park.wake(word.futex_addr());
        }
    }
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
///
/// # Context: handler
pub fn abandon(mapping: &Mapping<'_>, park: &dyn Park, claim: Claim) {
    let end = claim.pgoff().saturating_add(u64::from(claim.nr()));
    each(mapping, park, claim.pgoff(), end, FolioWord::abandon);
    mapping.uncharge(u64::from(claim.nr()));
    mapping.fill_ends(u64::from(claim.nr()));
    release(mapping, claim);
}

/// Fills one page by a closure that gets its bytes, as a custom `VmOps::fault` does: `LOCKED` with the page pinned.
///
/// `f` runs inside the section: it computes, it does not wait. Several threads on one page: one computes it, the others
/// sleep until the fault's waker wakes them.
///
/// # Context: handler, inside a section
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
            mapping.fill_ends(u64::from(claim.nr()));
            release(mapping, claim);
        }
    }
    fault(vmf, set)
}

fn get_folio_state(mapping: &Mapping<'_>, pgoff: u64) -> Option<State> {
    (pgoff < mapping.nr_pages()).then(|| mapping.folio(pgoff).map(|w| w.load().state())).flatten()
}
