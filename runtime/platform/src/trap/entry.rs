//! From a signal to the walk and back: whose fault is it, what kind of access, and what is the answer.
//!
//! ```text
//! on_signal
//!   sent by a process? forked child? no arena there?        -> the previous handler
//!   helper thread? third fault inside two others?           -> refused: the previous handler, counted
//!   SIGSEGV on a userfaultfd arena                          -> protection: spurious, or the previous handler
//!   else mm::fault::do_user_addr_fault                      -> return, or the previous handler with the right signal
//! ```
//! The stack: an 8 KiB alternate stack (Rust's own size) holds two signal frames and this code twice; the third fault
//! is refused before it needs room that is not there.
//!
//! # Context: handler

use super::{chain, spurious};
use crate::host::Host;
use crate::section::{Refused, Slot};
use crate::sys::signal::{Frame, SIGBUS, SIGSEGV, SigInfo};
use crate::sys::thread;
use crate::vmatree::{self, Trap};
use crate::{child, section};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, Ordering};
use softfault_mm::ctx::Ctx;
use softfault_mm::fault;
use softfault_mm::types::{FaultFlags, VmFaultReason, VmFlags};
use softfault_mm::vmstat::{Event, Stage, VmStat};

/// Counts what belongs to no runtime: signals passed on.
pub static PROCESS_STAT: VmStat = VmStat::new();

/// Why the last refused fault was refused: bit 0 too deep, bit 1 in a section, bit 2 on a helper thread.
static REFUSALS: AtomicU64 = AtomicU64::new(0);

/// Returns why faults were refused since the process began: a mask of 1 (nested too deep), 2 (the runtime's own code
/// touched an arena inside a section) and 4 (raised on a helper thread).
#[must_use]
pub fn refusals() -> u64 {
    REFUSALS.load(Ordering::Relaxed)
}

/// What the handler decided.
enum Verdict {
    /// The instruction runs again.
    Resume,
    /// The previous handler gets this signal.
    Pass(i32),
}

/// The handler of SIGBUS and SIGSEGV.
pub extern "C" fn on_signal(signo: i32, info: *mut SigInfo, uc: *mut c_void) {
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
fn resolve(signo: i32, si: &SigInfo, frame: &Frame, slot: Slot) -> Verdict {
    let clock: Option<fn() -> u64> = if slot.is_sampled() { Some(thread::rdtsc) } else { None };
    let began = clock.map_or(0, |c| c());
    let Some((trap, stat)) = arena_of_fault(&slot, si.addr) else { return Verdict::Pass(signo) };
    let ctx = Ctx::handler(slot.stripe(), slot.is_nested(), frame.mask(), clock);
    stat.add(ctx.stripe, Event::HANDLER_ENTRY, 1);
    if ctx.nested {
        stat.add(ctx.stripe, Event::HANDLER_NESTED, 1);
    }
    if frame.is_instruction() {
        return Verdict::Pass(SIGSEGV);
    }
    if signo == SIGSEGV && trap != Trap::Segv {
        return protection_fault(si.addr, frame, &slot, &ctx, stat);
    }
    let mut flags = FaultFlags::USER | FaultFlags::ALLOW_RETRY;
    if frame.is_write() {
        flags |= FaultFlags::WRITE;
    }
    let host = Host::new(slot, true);
    let r = fault::do_user_addr_fault(host.env(), &ctx, si.addr, flags);
    drop(host);
    if let Some(c) = clock {
        stat.stage(ctx.stripe, Stage::Total, c().wrapping_sub(began));
    }
    r.map_or(Verdict::Pass(SIGSEGV), verdict_of)
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
