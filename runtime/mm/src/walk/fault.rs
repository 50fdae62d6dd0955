//! One fault from the trap to its answer: the walk, what it leaves to be done outside the section, and again.
//!
//! Linux: `do_user_addr_fault` (`arch/x86/mm/fault.c`), whose loop over `VM_FAULT_RETRY` this is.
//!
//! # Context: handler

use crate::cache::filemap;
use crate::claim::Claim;
use crate::ctx::Ctx;
use crate::failpoint;
use crate::fill;
use crate::folio::{DSYNCED, FolioWord, State};
pub use crate::host::Env;
use crate::host::Woken;
use crate::mapping::Mapping;
use crate::memcg;
use crate::memcontrol::CacheAccount;
use crate::memory;
use crate::ops::{Staged, WaitKey};
use crate::read_pages;
use crate::readahead::NO_MARKER;
use crate::types::{FaultFlags, FillError, VmFaultReason};
use crate::vma::{CowPage, VmFault, Waker, Work};
use crate::vmscan::Freed;
use crate::vmstat::Stage;
use crate::writeback;

/// How often one trap tries again before it returns to the instruction, which then traps anew.
///
/// Any number is correct; this one lets a fault that waits, fills and maps finish in one trap, and bounds the handler.
const MAX_ATTEMPTS: usize = 16;

/// What outside work left for the next attempt.
enum Next {
    /// Walk again.
    Again,
    /// Walk again; the store was not asked, so a poisoned page is still to be healed.
    Untried,
    /// Walk again with this private copy.
    WithCow(Staged, u32),
    /// Walk again; the deadline passed.
    TimedOut,
    /// Leave it for now.
    Later,
    /// No use walking: report.
    Fail(FillError),
}

/// What one attempt knows of the ones before it.
struct Attempt {
    flags: FaultFlags,
    /// A private copy that was read past the cache, and the version that the page had before; given back if it is not used.
    cow: Option<(Staged, u32)>,
    /// The wait between this attempt and the last one ended by the object's deadline.
    timed_out: bool,
    /// The bits of all attempts before, so that a fault is major if any attempt of it was.
    before: VmFaultReason,
}

/// Resolves the fault at `address`; `None`: no vma of ours is there.
///
/// Returns the bits of all attempts together; `RETRY` in the result means that the instruction should simply run
/// again (it will trap again).
///
/// # Context: handler
pub fn do_user_addr_fault(env: Env<'_>, ctx: &Ctx<'_>, address: usize, flags: FaultFlags) -> Option<VmFaultReason> {
    resume_user_addr_fault(env, ctx, address, flags, VmFaultReason::empty(), false)
}

/// Goes on with a fault that an earlier call answered with `RETRY`, `before` being its bits: so a fault whose page came
/// from the store counts as major, whichever call finds the page. `timed_out`: the deadline of the wait in between passed.
///
/// # Context: handler
pub fn resume_user_addr_fault(
    env: Env<'_>,
    ctx: &Ctx<'_>,
    address: usize,
    flags: FaultFlags,
    before: VmFaultReason,
    timed_out: bool,
) -> Option<VmFaultReason> {
    let mut attempt = Attempt { flags, cow: None, timed_out, before };
    let mut work = Work::None;
    for _ in 0..MAX_ATTEMPTS {
        let found = walk_once(env, ctx, address, &attempt, &mut work);
        let seen = match end_attempt(env, &mut attempt, found, &mut work) {
            Ok(seen) => seen,
            Err(answer) => return answer,
        };
        let next = do_work(env, ctx, &mut work);
        if seen.intersects(VmFaultReason::COMPLETED) {
            return Some(seen);
        }
        if let Some(answer) = attempt.go_on(ctx, next, seen) {
            return Some(answer);
        }
    }
    if let Some((staged, _)) = attempt.cow.take() {
        env.mm.put_staged(staged);
    }
    Some(attempt.before)
}

impl Attempt {
    /// Readies the next attempt, or returns the fault's answer.
    fn go_on(&mut self, ctx: &Ctx<'_>, next: Next, seen: VmFaultReason) -> Option<VmFaultReason> {
        self.timed_out = false;
        self.before = seen;
        match next {
            Next::Again => {}
            Next::Untried => return None,
            Next::WithCow(staged, version) => self.cow = Some((staged, version)),
            Next::TimedOut => self.timed_out = true,
            Next::Later => return Some(seen),
            Next::Fail(error) => return Some(seen.without(VmFaultReason::RETRY) | ctx.fail(error)),
        }
        self.flags |= FaultFlags::TRIED;
        None
    }
}

/// Adds an attempt's bits up: they are the answer (`Err`), or there is work to do first.
fn end_attempt(
    env: Env<'_>,
    attempt: &mut Attempt,
    found: Option<VmFaultReason>,
    work: &mut Work,
) -> Result<VmFaultReason, Option<VmFaultReason>> {
    if let Some((staged, _)) = attempt.cow.take() {
        env.mm.put_staged(staged);
    }
    let r = found.ok_or(None)?;
    let seen = attempt.before.without(VmFaultReason::RETRY) | r;
    if r.intersects(VmFaultReason::COMPLETED) {
        // The fault is resolved and holds nothing any more. The thread is to wait before it goes on: too many pages are dirty.
        return Ok(seen);
    }
    if !r.intersects(VmFaultReason::RETRY) || attempt.flags.intersects(FaultFlags::RETRY_NOWAIT) {
        drop_work(env, core::mem::take(work));
        return Err(Some(seen));
    }
    Ok(seen)
}

/// One attempt, inside one section.
fn walk_once(env: Env<'_>, ctx: &Ctx<'_>, address: usize, attempt: &Attempt, work: &mut Work) -> Option<VmFaultReason> {
    ctx.begin_attempt();
    let entered = ctx.now();
    let wake = |addr: usize| env.park.wake(addr);
    env.mm.with_vma(address, &mut |vma| {
        failpoint!(SECTION_ENTERED);
        let found = ctx.now();
        let copy = attempt.cow.as_ref().map(|(staged, version)| CowPage { staged, version: *version });
        let mut vmf = VmFault::new(ctx, vma, address, attempt.flags);
        vmf.waker = Some(Waker(&wake));
        vmf.cow = copy.as_ref();
        vmf.timed_out = attempt.timed_out;
        let r = memory::handle_mm_fault(&mut vmf);
        debug_assert!(vmf.folio.is_none(), "no pin leaves the section");
        *work = core::mem::take(&mut vmf.work);
        if vmf.marker != NO_MARKER {
            // The next window is read whatever became of the fault. This only claims pages and queues them, so it may be done
            // inside the section; and it is done here because the frames of the walk are gone from the stack by now.
            read_pages::do_async_readahead(vma.mapping, env.park, ctx.stripe, vmf.marker, 1);
        }
        let stat = vma.mapping.stat;
        memory::account_fault(ctx, stat, r, attempt.before);
        if ctx.clock.is_some() {
            stat.stage(ctx.stripe, Stage::Lookup, found.wrapping_sub(entered));
            stat.stage(ctx.stripe, Stage::Map, ctx.now().wrapping_sub(found));
        }
        r
    })
}

/// Does what the walk asked for. No section, pin or signal-mask change of ours is in force.
// Not inlined: a fault that nests in a store's read shares 8 KiB of stack with the outer one, and needs none of this. Reading
// and reclaim, which go deepest, stand apart from the rest, because without optimisation each arm has room of its own in
// the frame of the function that it stands in.
#[inline(never)]
fn do_work(env: Env<'_>, ctx: &Ctx<'_>, work: &mut Work) -> Next {
    if let Some(claim) = do_read(env, ctx, work) {
        return do_fill(env, ctx, claim);
    }
    match core::mem::take(work) {
        Work::Reclaim(claim) => do_reclaim(env, ctx, claim),
        work => do_other_work(env, ctx, work),
    }
}

#[inline(never)]
fn do_other_work(env: Env<'_>, ctx: &Ctx<'_>, work: Work) -> Next {
    match work {
        Work::None => {
            env.park.relax();
            Next::Again
        }
        Work::Fill(claim) => do_fill(env, ctx, claim),
        Work::Reclaim(claim) => do_reclaim(env, ctx, claim),
        // `do_read` takes such work, so none comes here; if it did, its claim would have to be spent, or the object never ends.
        Work::Read(held, _) => {
            release(env, held);
            Next::Again
        }
        Work::Cow(claim) => do_cow_read(env, ctx, claim),
        Work::Dsync(claim) => do_dsync(env, ctx, claim),
        Work::Throttle(claim) => do_throttle(env, ctx, claim),
        Work::Tell(telling) => {
            do_tell(env, ctx, telling);
            Next::Again
        }
        Work::Wait(key, timeout_ns) => do_wait(env, ctx, key, timeout_ns),
        Work::Crowded => {
            // It is noted even if there is room now. The next attempt forgets it; if the host refuses that one too, what seemed to
            // be room was none.
            ctx.note_crowded();
            do_crowded(env, ctx)
        }
        Work::Change(key) => match env.park.nap(ctx, key, CHANGE_NS) {
            Woken::NotNow => Next::Later,
            _ => Next::Again,
        },
    }
}

/// How long a thread sleeps at once while a mapping is exchanged, which takes a few system calls.
const CHANGE_NS: u64 = 1_000_000;

/// The shortest and the longest pause of a thread that finds no room to expose its page.
const CROWDED_NS: core::ops::RangeInclusive<u64> = 1_000_000..=8_000_000;

/// Makes room for a page to be exposed. Where none can be made, because the program has taken every mapping, the thread can
/// only wait. Looking for room costs time, so it pauses for four times as long as it looked, and its signals come in between.
/// A call returns instead, since it can report an error.
#[inline(never)]
fn do_crowded(env: Env<'_>, ctx: &Ctx<'_>) -> Next {
    let began_ns = env.park.now_ns();
    let Some(key) = env.mm.make_room() else { return Next::Again };
    if ctx.can_block {
        return Next::Later;
    }
    let looked_ns = env.park.now_ns().saturating_sub(began_ns);
    match env.park.nap(ctx, key, (4 * looked_ns).clamp(*CROWDED_NS.start(), *CROWDED_NS.end())) {
        Woken::NotNow => Next::Later,
        _ => Next::Again,
    }
}

/// Returns the claim of pages to be read, if that is the work; claims a missing page, and has the fillers read what lies
/// ahead of it first, where the walk has left both to be done.
#[inline(never)]
fn do_read(env: Env<'_>, ctx: &Ctx<'_>, work: &mut Work) -> Option<Claim> {
    let (held, mode) = match core::mem::take(work) {
        Work::Fill(claim) => return Some(claim),
        Work::Read(held, mode) => (held, mode),
        other => {
            *work = other;
            return None;
        }
    };
    let mut found = Ok(None);
    env.mm.with_claim(&held, &mut |m| {
        found = read_pages::do_sync_mmap_readahead(m, env.park, ctx.stripe, held.pgoff(), mode);
    });
    if found == Err(FillError::NoMemory) {
        *work = Work::Reclaim(held);
        return None;
    }
    release(env, held);
    // `None`: somebody else has claimed the page meanwhile, and asks the store for it.
    found.ok().flatten()
}

/// Undoes what the walk prepared for work that nobody will do: a token that is not spent keeps its object for ever, and
/// a page that is `telling` its range.
fn drop_work(env: Env<'_>, work: Work) {
    match work {
        Work::None | Work::Wait(..) | Work::Change(_) | Work::Crowded => {}
        Work::Fill(claim) => give_up(env, claim),
        Work::Cow(claim)
        | Work::Dsync(claim)
        | Work::Reclaim(claim)
        | Work::Throttle(claim)
        | Work::Read(claim, ..) => release(env, claim),
        Work::Tell(telling) => untell(env, telling),
    }
}

fn do_wait(env: Env<'_>, ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Next {
    failpoint!(PARK);
    match env.park.wait(ctx, key, timeout_ns) {
        Woken::LookAgain => Next::Again,
        Woken::TimedOut => Next::TimedOut,
        Woken::NotNow => Next::Later,
    }
}

/// Makes room in the cache: the fault's page is claimed by the next attempt.
#[inline(never)]
fn do_reclaim(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) -> Next {
    let (mut freed, mut error) = (Freed::Nothing, FillError::CacheFull);
    env.mm.with_claim(&claim, &mut |m| {
        freed = memcg::try_to_free_pages(env, ctx, m);
        // Nothing could be freed, but somebody else has brought this very page in with the last room there was.
        if freed == Freed::Nothing && !m.folio(claim.pgoff()).is_some_and(|w| filemap::is_missing(w.load())) {
            freed = Freed::Some;
        }
        if freed == Freed::Nothing {
            error = m.why_full();
            m.stat.reason(ctx.stripe, error.reason());
        }
    });
    release(env, claim);
    match freed {
        Freed::Some => Next::Untried,
        Freed::Later => Next::Later,
        Freed::Nothing => Next::Fail(error),
    }
}

/// Lets a writer wait for write-back. Linux: `balance_dirty_pages`.
#[inline(never)]
fn do_throttle(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) -> Next {
    env.mm.with_claim(&claim, &mut |m| writeback::balance_dirty_pages(env, ctx, m));
    release(env, claim);
    Next::Again
}

/// Wakes the background reclaimer when the cache has grown past its low watermark.
fn wake_kswapd(env: Env<'_>, account: &CacheAccount<'_>) {
    if account.wants_kswapd() {
        env.park.wake(account.bell_addr());
    }
}

/// Returns whether this thread may call the object's store itself.
fn may_call_store(env: Env<'_>, ctx: &Ctx<'_>, claim: &Claim) -> bool {
    let mut safe = false;
    env.mm.with_claim(claim, &mut |m| {
        // With a deadline the store is called by another thread: this one, inside the store, could not stop waiting for it.
        safe = !ctx.nested && (m.handler_safe || (ctx.can_block && m.deadline_ns == u64::MAX));
    });
    safe
}

/// Returns whether this thread is to read the claimed pages itself.
///
/// A call of the program's does so where that ends by itself. A store of the user's may hang: it is read by a filler, and
/// the call waits without the claim and with its signals open, so that a handler that touches the page waits for the
/// filler, not for the thread it interrupted. Helpers read whatever they are given: they would wait for each other.
fn may_fill(env: Env<'_>, ctx: &Ctx<'_>, claim: &Claim) -> bool {
    let mut may = false;
    env.mm.with_claim(claim, &mut |m| {
        may = !ctx.nested && (m.handler_safe || (ctx.is_helper && m.deadline_ns == u64::MAX));
    });
    may
}

/// Returns whether the object's store may itself fault, and this fault cannot stay where it is for as long as that takes.
///
/// A filler is no way out: a fault on an arena is refused there. The fault comes again, perhaps with another stack.
fn must_come_again(env: Env<'_>, ctx: &Ctx<'_>, claim: &Claim) -> bool {
    let mut faults = false;
    if ctx.cramped {
        env.mm.with_claim(claim, &mut |m| faults = m.store_faults);
    }
    faults
}

/// Reads the claimed pages here, or has a filler read them; the next attempt finds them, or waits.
fn do_fill(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) -> Next {
    if must_come_again(env, ctx, &claim) {
        give_up(env, claim);
        env.park.relax();
        return Next::Later;
    }
    let filled = if may_fill(env, ctx, &claim) { try_fill(env, ctx, claim) } else { fill_part_here(env, ctx, claim) };
    match filled {
        Ok(()) => Next::Again,
        Err(claim) => fill_elsewhere(env, claim),
    }
}

/// Has a filler read the claimed pages.
#[inline(never)]
fn fill_elsewhere(env: Env<'_>, claim: Claim) -> Next {
    if !pass_on(env, claim) {
        env.park.relax();
    }
    Next::Again
}

/// Gives the claimed pages to a filler; `false`: the queue is full, and the claim was given up.
fn pass_on(env: Env<'_>, claim: Claim) -> bool {
    let passed = env.park.submit(claim);
    passed.map_err(|claim| give_up(env, claim)).is_ok()
}

/// Has a filler read the pages that a call claimed, or reads them here; `false`: the fillers have as much to do as can be
/// queued, and the claim was given up.
///
/// # Context: control plane, outside of sections
pub fn fill(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) -> bool {
    let filled = if may_fill(env, ctx, &claim) { try_fill(env, ctx, claim) } else { fill_part_here(env, ctx, claim) };
    match filled {
        Ok(()) => true,
        Err(claim) => pass_on(env, claim),
    }
}

/// Reads the claimed pages on this thread.
///
/// # Context: as the object's store
pub fn fill_here(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) {
    // The read is refused in a handler alone, where too many are under way: the pages are given up, and the fault comes again.
    if let Err(claim) = try_fill(env, ctx, claim) {
        give_up(env, claim);
    }
}

/// As [`fill_here`]; gives the claim back, untouched, where there is no room for the read, because too many are under way.
#[inline]
fn try_fill(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) -> Result<(), Claim> {
    let lent = env.lend(claim, |m, claim| {
        if ctx.cramped {
            return Err(claim);
        }
        let (began, mut read) = (ctx.now(), None);
        env.mm.in_user_code(m.store_faults, &mut || read = Some(fill::read_folio(m, ctx.stripe, &claim)));
        let Some(read) = read else { return Err(claim) };
        end_fill(env, ctx, m, claim, read, began);
        Ok(())
    });
    lent.unwrap_or_else(Err)
}

/// Reads the claimed pages on this thread, where the object's store is for fillers, and these pages need none; else gives the claim
/// back, untouched.
#[inline(never)]
fn fill_part_here(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) -> Result<(), Claim> {
    let lent = env.lend(claim, |m, claim| {
        if !may_read_here(ctx, m) {
            return Err(claim);
        }
        let began = ctx.now();
        if !fill::read_folio_here(m, ctx.stripe, &claim) {
            return Err(claim);
        }
        end_fill(env, ctx, m, claim, Ok(()), began);
        Ok(())
    });
    lent.unwrap_or_else(Err)
}

/// Returns whether this thread may ask a store that is for fillers for what needs none.
fn may_read_here(ctx: &Ctx<'_>, m: &Mapping<'_>) -> bool {
    !ctx.nested && !ctx.cramped && m.deadline_ns == u64::MAX && m.a_ops.reads_here()
}

/// Publishes what was read.
fn end_fill(env: Env<'_>, ctx: &Ctx<'_>, m: &Mapping<'_>, claim: Claim, read: fill::Read, began: u64) {
    // The counters outlive every object; the object itself may be gone when the claim is spent, and the cache with it.
    let stat = m.stat;
    // The verdict is in the words; the next walk reads it there.
    let _ = fill::end_read(m, env.park, ctx.stripe, &claim, read);
    wake_kswapd(env, m.account);
    filemap::release(m, claim);
    if ctx.clock.is_some() {
        stat.stage(ctx.stripe, Stage::Fill, ctx.now().wrapping_sub(began));
    }
}

/// Gives a claim's pages up: no filler has room.
///
/// # Context: handler
pub fn give_up(env: Env<'_>, claim: Claim) {
    env.spend(claim, |m, claim| fill::abandon(m, env.park, claim));
}

fn release(env: Env<'_>, claim: Claim) {
    env.spend(claim, filemap::release);
}

/// Reads one page past the cache, for a private copy.
fn do_cow_read(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) -> Next {
    let whole = may_fill(env, ctx, &claim) && !ctx.cramped;
    let mut here = whole;
    env.mm.with_claim(&claim, &mut |m| here |= may_read_here(ctx, m));
    let staged = if here { env.mm.get_staged() } else { None };
    let Some(staged) = staged else {
        // No private copy is made: the next attempt has `TRIED` set, and fills the cache instead.
        release(env, claim);
        return Next::Again;
    };
    let mut version = None;
    env.mm.with_claim(&claim, &mut |m| {
        // The page must be absent when its version is read, before the store is asked: whatever brings it in afterwards moves
        // the version, which makes the copy void. Of a page that is cached by now the version would say nothing: it may be
        // stored to, written back and dropped while we read, all at the same version.
        let seen = m.folio(claim.pgoff()).map(FolioWord::load).filter(|w| w.state() == State::Absent);
        if let Some(before) = seen {
            let mut read = Err(FillError::Refused);
            if whole {
                env.mm.in_user_code(m.store_faults, &mut || read = m.a_ops.read_staged(claim.pgoff(), &staged));
            } else if m.a_ops.read_staged_here(claim.pgoff(), &staged) {
                read = Ok(());
            }
            version = read.is_ok().then_some(before.version());
        }
    });
    release(env, claim);
    match version {
        Some(version) => Next::WithCow(staged, version),
        None => {
            env.mm.put_staged(staged);
            Next::Again
        }
    }
}

/// Makes a page's block durable before its first store (`NEEDDSYNC`).
fn do_dsync(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) -> Next {
    let mut result = Err(FillError::Deadline);
    if ctx.cramped {
        release(env, claim);
        env.park.relax();
        return Next::Later;
    }
    if may_call_store(env, ctx, &claim) {
        env.mm.with_claim(&claim, &mut |m| {
            env.mm.in_user_code(m.store_faults, &mut || result = m.a_ops.dsync(claim.pgoff(), 1));
            if result.is_ok()
                && let Some(word) = m.folio(claim.pgoff())
                && word.try_pin(DSYNCED).is_ok()
            {
                word.unpin();
            }
        });
    }
    release(env, claim);
    match result {
        Ok(()) => Next::Again,
        Err(error) => Next::Fail(error),
    }
}

/// Calls the delegate here if that is allowed, or has a worker call it.
fn do_tell(env: Env<'_>, ctx: &Ctx<'_>, telling: crate::claim::Telling) {
    let mut here = ctx.is_helper;
    env.mm.with_telling(&telling, &mut |d, _| here |= d.handler_safe && !ctx.nested);
    if here && ctx.cramped {
        untell(env, telling);
        env.park.relax();
    } else if here {
        tell_here(env, ctx.stripe, telling);
    } else if let Err(telling) = env.park.submit_telling(telling) {
        untell(env, telling);
        env.park.relax();
    }
}

/// Calls the delegate on this thread.
///
/// # Context: a worker, or a handler if the delegation is handler-safe; no section
#[cfg_attr(not(feature = "userfaultfd"), expect(unused_variables, reason = "nobody is told without userfaultfd"))]
pub fn tell_here(env: Env<'_>, stripe: usize, telling: crate::claim::Telling) {
    #[cfg(feature = "userfaultfd")]
    {
        env.spend_telling(telling, |d, m, telling| crate::userfaultfd::tell(d, m, env, stripe, telling));
    }
}

/// Gives a telling up: the page is untold again.
fn untell(env: Env<'_>, telling: crate::claim::Telling) {
    env.mm.with_telling(&telling, &mut |d, _| {
        let index = telling.index() as usize;
        let sleepers = d.word(index).map(|word| core::ptr::from_ref(word).addr());
        d.finish(index, crate::delegation::MinorVerdict::Delay);
        sleepers.into_iter().for_each(|addr| env.park.wake(addr));
    });
    release(env, telling.into_claim());
}
