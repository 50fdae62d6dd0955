//! From a signal to the walk and back: whose fault is it, what kind of access, and what is the answer.
//!
//! ```text
//! trampoline::on_signal -> step, on a walk stack
//!   sent by a process? forked child? no arena there?        -> the previous handler
//!   helper thread? third fault inside two others?           -> refused: the previous handler, counted
//!   SIGSEGV on a userfaultfd arena                          -> protection: spurious, or the previous handler
//!   else mm::fault::resume_user_addr_fault                  -> return, or the previous handler with the right signal
//!                                                           -> wait: sleep a slice, step again (`leave`)
//! ```
//! A signal that waits holds nothing: it walks anew each time it is woken, and returns to the instruction as soon as a
//! signal is pending that the interrupted code has not blocked.
//!
//! # Context: handler

use super::trip::{FRESH, PASS, RESUME, SLEEP, Trip};
use super::{blame, chain, direction, spurious};
use crate::host::Host;
use crate::section::{Refused, Slot};
use crate::sys::signal::{self, BUS_ADRERR, Frame, SEGV_ACCERR, SEGV_MAPERR, SIGBUS, SIGSEGV, SigInfo};
use crate::sys::{Errno, thread};
use crate::vmatree::{self, Trap};
use crate::{child, leave, section, stack};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use softfault_mm::ctx::Ctx;
use softfault_mm::fault;
use softfault_mm::ops::WaitKey;
use softfault_mm::types::{FaultFlags, VmFaultReason, VmFlags};
use softfault_mm::vmstat::{Event, Stage, VmStat};

/// Counts what belongs to no runtime: signals passed on.
pub static PROCESS_STAT: VmStat = VmStat::new();

/// Why the last refused fault was refused: bit 0 too deep, bit 1 in a section, bit 2 on a helper thread.
static REFUSALS: AtomicU64 = AtomicU64::new(0);

/// Returns why faults were refused since the process began: a mask of 1 (nested too deep), 2 (the runtime's own code
/// touched an arena inside a section) and 4 (raised on a helper thread).
///
/// # Context: handler
#[must_use]
pub fn refusals() -> u64 {
    REFUSALS.load(Ordering::Relaxed)
}

/// The thread (by pointer) whose next entry is to be stamped, and the stamp.
static STAMP_FOR: AtomicUsize = AtomicUsize::new(0);
static STAMP: AtomicU64 = AtomicU64::new(0);

/// Asks that the calling thread's next fault on an arena notes when its handler was entered.
///
/// # Context: control plane
pub fn stamp_next() {
    STAMP.store(0, Ordering::Relaxed);
    STAMP_FOR.store(thread::thread_pointer(), Ordering::Relaxed);
}

/// Returns the stamp that [`stamp_next`] asked for, in clock ticks; 0 if there was no fault.
///
/// # Context: control plane
#[must_use]
pub fn take_stamp() -> u64 {
    STAMP_FOR.store(0, Ordering::Relaxed);
    STAMP.load(Ordering::Relaxed)
}

#[cold]
fn stamp() {
    if STAMP_FOR.load(Ordering::Relaxed) == thread::thread_pointer() {
        STAMP.store(thread::rdtsc(), Ordering::Relaxed);
        STAMP_FOR.store(0, Ordering::Relaxed);
    }
}

/// What the handler decided.
enum Verdict {
    /// The instruction runs again.
    Resume,
    /// The previous handler gets this signal.
    Pass(i32),
    /// The trip says what to sleep on; then the walk goes on.
    Sleep,
}

/// One step of a signal's way, on walk stack `number`: up to the answer, or to the next slice of sleep.
///
/// # Safety
/// `trip` is the trampoline's, at the top of that stack, with the arguments of a handler that is running.
pub(super) unsafe extern "C" fn step(trip: *mut Trip, number: u32) -> u32 {
    // SAFETY: the caller's contract; nobody else knows where it is.
    let trip = unsafe { &mut *trip };
    // SAFETY: the kernel's second argument, for an SA_SIGINFO handler; nobody writes to it before `chain`.
    let si = unsafe { &*trip.info };
    // SAFETY: the kernel's third argument.
    let frame = unsafe { Frame::new(trip.uc) };
    let timed_out = match woken(trip, frame.mask()) {
        Some(timed_out) => timed_out,
        None if trip.slice == LEAVE => return RESUME,
        None => return SLEEP,
    };
    match judge(trip, si, &frame, number, timed_out) {
        Verdict::Resume => RESUME,
        Verdict::Sleep => SLEEP,
        Verdict::Pass(signo) => {
            trip.passed = signo;
            PASS
        }
    }
}

/// Gives the signal to the previous handler, on the stack that the kernel put us on: as if we were not there.
///
/// # Safety
/// The trampoline's last instruction: the arguments of a handler that is running; nothing is held.
pub(super) unsafe extern "C" fn pass(signo: i32, info: *mut SigInfo, uc: *mut c_void) {
    PROCESS_STAT.add(0, Event::HANDLER_CHAINED, 1);
    // SAFETY: the caller's contract.
    unsafe { chain::chain(signo, info, uc) };
}

/// In [`Trip::slice`]: no slice, but the way out.
const LEAVE: u32 = FRESH - 1;

/// Looks at a trip that has slept, or is new: walk (`Some`: whether the wait's deadline passed), or sleep on, or leave.
fn woken(trip: &mut Trip, mask: u64) -> Option<bool> {
    if trip.slice == FRESH {
        return Some(false);
    }
    if trip.slept != -(Errno::ETIMEDOUT.0 as isize) {
        // The word moved, or has moved before we slept; or there was no cause at all. The walk says.
        return Some(false);
    }
    if trip.end_ns != u64::MAX && thread::monotonic_ns() >= trip.end_ns {
        return Some(true);
    }
    trip.slice = (trip.slice + 1).min(leave::SLICES.len() as u32 - 1);
    sleep_or_leave(trip, mask);
    None
}

/// Readies the next slice of sleep; where a signal is pending that the interrupted code takes, the way out instead.
fn sleep_or_leave(trip: &mut Trip, mask: u64) {
    if signal::pending() & !mask != 0 {
        leave::end(trip.addr, trip.end_ns);
        leave::count();
        trip.slice = LEAVE;
    }
}

/// Finds out whose fault it is.
fn judge(trip: &mut Trip, si: &SigInfo, frame: &Frame, number: u32, timed_out: bool) -> Verdict {
    let signo = trip.signo;
    // Only the kernel's own signals carry an address; kill(2) and sigqueue(3) come with code <= 0.
    if si.code <= 0 || child::in_child() || vmatree::arena_of(si.addr).is_none() {
        return Verdict::Pass(signo);
    }
    if section::is_helper() {
        return refuse(signo, 4);
    }
    if STAMP_FOR.load(Ordering::Relaxed) != 0 {
        stamp();
    }
    match Slot::enter() {
        Ok(slot) => resolve(trip, si, frame, slot, (number, timed_out)),
        // The instruction runs again, and there will be room.
        Err(Refused::Crowded) => {
            thread::sched_yield();
            Verdict::Resume
        }
        Err(Refused::TooDeep) => refuse(signo, 1),
        Err(Refused::InSection) => refuse(signo, 2),
    }
}

#[cold]
fn refuse(signo: i32, why: u64) -> Verdict {
    REFUSALS.fetch_or(why, Ordering::Relaxed);
    PROCESS_STAT.add(0, Event::HANDLER_REFUSED, 1);
    Verdict::Pass(signo)
}

/// Runs the walk and turns its bits into a verdict.
fn resolve(trip: &mut Trip, si: &SigInfo, frame: &Frame, slot: Slot, (number, timed_out): (u32, bool)) -> Verdict {
    let signo = trip.signo;
    let fresh = trip.slice == FRESH;
    let sampled = if fresh { slot.is_sampled() } else { trip.began != 0 };
    let clock = sampled.then_some(thread::rdtsc as fn() -> u64);
    let mut ctx = Ctx::handler(slot.stripe(), slot.is_nested(), frame.mask(), clock);
    ctx.cramped = !stack::is_for_long(number as usize);
    if fresh {
        trip.began = ctx.now();
        trip.before = VmFaultReason::empty();
    }
    let (trap, stat, flags) = match access(signo, si, frame, &slot, &ctx, fresh) {
        Ok(access) => access,
        Err(verdict) => return verdict,
    };
    trip.flags = if fresh { flags } else { trip.flags | FaultFlags::TRIED };
    let host = Host::in_handler(slot);
    let r = fault::resume_user_addr_fault(host.env(), &ctx, si.addr, trip.flags, trip.before, timed_out);
    #[cfg(not(feature = "userfaultfd"))]
    let _ = trap;
    #[cfg(feature = "userfaultfd")]
    if trap == Trap::Monitor && r.is_some_and(|r| r.intersects(VmFaultReason::NOPAGE)) {
        forget_poison(&host, si.addr);
    }
    if r.is_some_and(|r| r.intersects(VmFaultReason::ERROR) && !r.intersects(VmFaultReason::SIGSEGV)) {
        blame::note(&host, &ctx, si.addr);
    }
    let waits = host.waits_for();
    drop(host);
    if let Some((key, timeout_ns)) = waits
        && let Some(before) = r.filter(|r| r.intersects(VmFaultReason::RETRY) && !r.intersects(VmFaultReason::ERROR))
    {
        return wait(trip, key, timeout_ns, before, frame.mask());
    }
    if ctx.clock.is_some() {
        stat.stage(ctx.stripe, Stage::Total, ctx.now().wrapping_sub(trip.began));
    }
    if r.is_some_and(|r| !r.intersects(VmFaultReason::RETRY)) {
        direction::served(si.addr, frame);
    }
    settle(signo, si.addr, &ctx, r)
}

/// Begins a wait: nothing is held any more.
fn wait(trip: &mut Trip, key: WaitKey, timeout_ns: u64, before: VmFaultReason, mask: u64) -> Verdict {
    trip.addr = key.addr;
    trip.seen = key.seen;
    trip.before = before;
    trip.slice = 0;
    trip.end_ns = leave::begin(key.addr, timeout_ns);
    sleep_or_leave(trip, mask);
    if trip.slice == LEAVE { Verdict::Resume } else { Verdict::Sleep }
}

/// Returns what kind of access it was, and to what kind of arena; or the verdict, where no walk is needed for one.
#[inline(never)]
fn access(
    signo: i32,
    si: &SigInfo,
    frame: &Frame,
    slot: &Slot,
    ctx: &Ctx<'_>,
    fresh: bool,
) -> Result<(Trap, &'static VmStat, FaultFlags), Verdict> {
    let Some((trap, stat)) = arena_of_fault(slot, si.addr) else { return Err(Verdict::Pass(signo)) };
    if !fresh {
        return Ok((trap, stat, FaultFlags::empty()));
    }
    stat.add(ctx.stripe, Event::HANDLER_ENTRY, 1);
    if ctx.nested {
        stat.add(ctx.stripe, Event::HANDLER_NESTED, 1);
    }
    if direction::is_instruction(si.addr, frame) {
        return Err(Verdict::Pass(SIGSEGV));
    }
    if !is_translation(signo, si.code, trap) {
        return Err(Verdict::Pass(signo));
    }
    // While a mapping is exchanged it is closed to everybody: the walk waits until it is over.
    let is_changing = || vmatree::with_vma(slot, si.addr, |vma| vma.flags.contains(VmFlags::CHANGING)) == Some(true);
    if signo == SIGSEGV && trap != Trap::Segv && !is_changing() {
        return Err(protection_fault(si.addr, frame, slot, ctx, stat));
    }
    let mut flags = FaultFlags::USER | FaultFlags::ALLOW_RETRY;
    if direction::is_write(si.addr, frame, || permits(slot, si.addr, VmFlags::WRITE)) {
        flags |= FaultFlags::WRITE;
    }
    Ok((trap, stat, flags))
}

/// Turns the walk's bits into a verdict.
fn settle(signo: i32, address: usize, ctx: &Ctx<'_>, r: Option<VmFaultReason>) -> Verdict {
    if ctx.is_gone() && !spurious::may_retry(address) {
        // Nothing of ours is in the way of this access, and yet it comes back.
        return Verdict::Pass(signo);
    }
    r.map_or(Verdict::Pass(SIGSEGV), verdict_of)
}

/// Returns whether the signal is about a missing page or its protection, and not about broken memory
/// (`BUS_MCEERR_*`, which on a monitored arena is our own poison), a protection key, or the like.
fn is_translation(signo: i32, code: i32, trap: Trap) -> bool {
    if signo == SIGSEGV {
        return code == SEGV_MAPERR || code == SEGV_ACCERR;
    }
    code == BUS_ADRERR || trap == Trap::Monitor
}

/// Removes the poison marker of a page that has healed, where the kernel would not install over it (7.2 and later).
///
/// A signal on a monitored arena means that the page holds a marker: nothing of a private mapping's own is lost, but
/// another thread may have mapped it meanwhile, so only shared mappings are touched.
#[cfg(feature = "userfaultfd")]
#[cold]
fn forget_poison(host: &Host, address: usize) {
    let _ = host.env().mm.with_vma(address, &mut |vma| {
        if vma.flags.intersects(VmFlags::SHARED) {
            let page = softfault_mm::page::page_align_down(address);
            // SAFETY: one page of a shared mapping of an arena, inside a section.
            let _ = unsafe { crate::mmu::uffd::zap(page, softfault_mm::page::PAGE_SIZE) };
            // It may have been mapped and written since the fault, and the note of that went with the entry.
            if let Some(word) = vma.mapping.folio(vma.pgoff_at(page))
                && vma.flags.may_write_shared()
            {
                vma.mapping.mark_dirty(word);
            }
        }
        VmFaultReason::empty()
    });
}

/// Linux: the end of `do_user_addr_fault`.
fn verdict_of(r: VmFaultReason) -> Verdict {
    if !r.intersects(VmFaultReason::ERROR) {
        return Verdict::Resume;
    }
    if r.intersects(VmFaultReason::SIGSEGV) {
        return Verdict::Pass(SIGSEGV);
    }
    Verdict::Pass(SIGBUS)
}

fn arena_of_fault(slot: &Slot, address: usize) -> Option<(Trap, &'static VmStat)> {
    slot.section(|| {
        let arena = vmatree::arena_of(address)?;
        let (trap, stat) = vmatree::arena_info(slot, arena)?;
        Some((trap, vmatree::outlives_fault(stat)))
    })
}

fn permits(slot: &Slot, address: usize, need: VmFlags) -> bool {
    vmatree::with_vma(slot, address, |vma| vma.flags.contains(need)).unwrap_or(false)
}

/// A SIGSEGV where userfaultfd would have raised SIGBUS: the protection, or a change of it under way.
#[cold]
fn protection_fault(address: usize, frame: &Frame, slot: &Slot, ctx: &Ctx<'_>, stat: &VmStat) -> Verdict {
    let write = direction::is_write(address, frame, || permits(slot, address, VmFlags::WRITE));
    let permitted = permits(slot, address, if write { VmFlags::WRITE } else { VmFlags::READ });
    if permitted && spurious::may_retry(address) {
        stat.add(ctx.stripe, Event::FAULT_SPURIOUS, 1);
        return Verdict::Resume;
    }
    stat.reason(ctx.stripe, VmFaultReason::SIGSEGV);
    Verdict::Pass(SIGSEGV)
}
