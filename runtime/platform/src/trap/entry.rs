//! From a signal to the walk and back: whose fault is it, what kind of access, and what is the answer.
//!
//! ```text
//! on_signal
//!   sent by a process? forked child? no arena there?        -> the previous handler
//!   helper thread? third fault inside two others?           -> refused: the previous handler, counted
//!   SIGSEGV on a userfaultfd arena                          -> protection: spurious, or the previous handler
//!   else mm::fault::do_user_addr_fault                      -> return, or the previous handler with the right signal
//! ```
//! The stack: an 8 KiB alternate stack (Rust's own size) holds the frame and this code; what is deep runs on a walk stack
//! (`stack`). A store that may fault is read only where a second frame and this code fit too; the third fault is refused.
//!
//! # Context: handler

use super::{chain, spurious};
use crate::host::Host;
use crate::section::{Refused, Slot};
use crate::sys::signal::{BUS_ADRERR, Frame, SEGV_ACCERR, SEGV_MAPERR, SIGBUS, SIGSEGV, SigInfo};
use crate::sys::thread;
use crate::vmatree::{self, Trap};
use crate::{child, section};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use softfault_mm::ctx::Ctx;
use softfault_mm::fault;
use softfault_mm::types::{FaultFlags, VmFaultReason, VmFlags};
use softfault_mm::vmstat::{Event, Stage, VmStat};

/// Counts what belongs to no runtime: signals passed on.
pub static PROCESS_STAT: VmStat = VmStat::new();

/// Why the last refused fault was refused: bit 0 too deep, bit 1 in a section, bit 2 on a helper thread, bit 3
/// no room on the stack.
static REFUSALS: AtomicU64 = AtomicU64::new(0);

/// Returns why faults were refused since the process began: a mask of 1 (nested too deep), 2 (the runtime's own code
/// touched an arena inside a section), 4 (raised on a helper thread) and 8 (no room on the alternate stack for a store
/// that may fault itself).
#[must_use]
pub fn refusals() -> u64 {
    REFUSALS.load(Ordering::Relaxed)
}

/// The thread (by pointer) whose next entry is to be stamped, and the stamp.
static STAMP_FOR: AtomicUsize = AtomicUsize::new(0);
static STAMP: AtomicU64 = AtomicU64::new(0);

/// Asks that the calling thread's next fault on an arena notes when its handler was entered.
pub fn stamp_next() {
    STAMP.store(0, Ordering::Relaxed);
    STAMP_FOR.store(thread::thread_pointer(), Ordering::Relaxed);
}

/// Returns the stamp that [`stamp_next`] asked for, in clock ticks; 0 if there was no fault.
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
}

/// The handler of SIGBUS and SIGSEGV.
///
/// # Safety
/// Called by the kernel, as a handler installed with `SA_SIGINFO`.
pub unsafe extern "C" fn on_signal(signo: i32, info: *mut SigInfo, uc: *mut c_void) {
    // SAFETY: the kernel's second argument, for an SA_SIGINFO handler; nobody writes to it before `chain`. By
    // reference: 128 bytes are much on a stack of 8 KiB that holds two of us.
    let si = unsafe { &*info };
    // SAFETY: the kernel's third argument.
    let frame = unsafe { Frame::new(uc) };
    match judge(signo, si, &frame) {
        Verdict::Resume => {}
        Verdict::Pass(as_signo) => {
            PROCESS_STAT.add(0, Event::HANDLER_CHAINED, 1);
            // SAFETY: our own arguments; `judge` has returned, so nothing is held.
            unsafe { chain::chain(as_signo, info, uc) };
        }
    }
}

/// Finds out whose fault it is.
fn judge(signo: i32, si: &SigInfo, frame: &Frame) -> Verdict {
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
        Ok(slot) => resolve(signo, si, frame, slot),
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
// What comes before the walk and after it has frames of its own: without optimisation their sum would lie below it.
fn resolve(signo: i32, si: &SigInfo, frame: &Frame, slot: Slot) -> Verdict {
    let mut ctx = Ctx::handler(slot.stripe(), slot.is_nested(), frame.mask(), clock_of(&slot));
    let began = ctx.now();
    let (trap, stat, flags) = match access(signo, si, frame, &slot, &mut ctx) {
        Ok(access) => access,
        Err(verdict) => return verdict,
    };
    let host = Host::new(slot, true);
    let r = fault::do_user_addr_fault(host.env(), &ctx, si.addr, flags);
    #[cfg(not(feature = "userfaultfd"))]
    let _ = trap;
    #[cfg(feature = "userfaultfd")]
    if trap == Trap::Monitor && r.is_some_and(|r| r.intersects(VmFaultReason::NOPAGE)) {
        forget_poison(&host, si.addr);
    }
    drop(host);
    if ctx.clock.is_some() {
        stat.stage(ctx.stripe, Stage::Total, ctx.now().wrapping_sub(began));
    }
    settle(signo, si.addr, &ctx, r)
}

fn clock_of(slot: &Slot) -> Option<fn() -> u64> {
    slot.is_sampled().then_some(thread::rdtsc as fn() -> u64)
}

/// Returns what kind of access it was, and to what kind of arena; or the verdict, where no walk is needed for one.
#[inline(never)]
fn access(
    signo: i32,
    si: &SigInfo,
    frame: &Frame,
    slot: &Slot,
    ctx: &mut Ctx<'_>,
) -> Result<(Trap, &'static VmStat, FaultFlags), Verdict> {
    let Some((trap, stat)) = arena_of_fault(slot, si.addr) else { return Err(Verdict::Pass(signo)) };
    ctx.cramped = is_cramped(frame);
    stat.add(ctx.stripe, Event::HANDLER_ENTRY, 1);
    if ctx.nested {
        stat.add(ctx.stripe, Event::HANDLER_NESTED, 1);
    }
    if frame.is_instruction() {
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
    if frame.is_write() {
        flags |= FaultFlags::WRITE;
    }
    Ok((trap, stat, flags))
}

/// Turns the walk's bits into a verdict.
fn settle(signo: i32, address: usize, ctx: &Ctx<'_>, r: Option<VmFaultReason>) -> Verdict {
    if ctx.is_refused() {
        return refuse(SIGBUS, 8);
    }
    if ctx.is_gone() && !spurious::may_retry(address) {
        // Nothing of ours is in the way of this access, and yet it comes back.
        return Verdict::Pass(signo);
    }
    r.map_or(Verdict::Pass(SIGSEGV), verdict_of)
}

/// The bytes of stack that one fault needs: the kernel's frame, and ours.
static FAULT_BYTES: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Looks up how large signal frames are here, once a process. Control plane.
pub fn init() {
    let ours = if cfg!(debug_assertions) { 7 << 10 } else { 2560 };
    FAULT_BYTES.store(crate::sys::signal::min_frame_bytes() + ours, Ordering::Relaxed);
}

/// Returns whether the alternate stack that this handler runs on has no room for another fault.
fn is_cramped(frame: &Frame) -> bool {
    let here = 0u8;
    let sp = core::ptr::from_ref(&here) as usize;
    let Some((base, len)) = frame.altstack() else { return false };
    let on_it = (base..base.saturating_add(len)).contains(&sp);
    on_it && sp - base < FAULT_BYTES.load(Ordering::Relaxed)
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
                && let Ok(old) = word.try_pin(softfault_mm::folio::DIRTY)
            {
                vma.mapping.account_dirtied(u64::from(!old.has(softfault_mm::folio::DIRTY)));
                word.unpin();
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

/// A SIGSEGV where userfaultfd would have raised SIGBUS: the protection, or a change of it under way.
#[cold]
fn protection_fault(address: usize, frame: &Frame, slot: &Slot, ctx: &Ctx<'_>, stat: &VmStat) -> Verdict {
    let need = if frame.is_write() { VmFlags::WRITE } else { VmFlags::READ };
    let permitted = vmatree::with_vma(slot, address, |vma| vma.flags.contains(need)).unwrap_or(false);
    if permitted && spurious::may_retry(address) {
        stat.add(ctx.stripe, Event::FAULT_SPURIOUS, 1);
        return Verdict::Resume;
    }
    stat.reason(ctx.stripe, VmFaultReason::SIGSEGV);
    Verdict::Pass(SIGSEGV)
}
