//! The dispositions of SIGBUS and SIGSEGV: the one thing that is process-wide, in the one file that touches it.
//!
//! Ours are installed with the first runtime and taken back with the last. What was there before gets every signal that
//! is not ours, with its own mask and flags, as if we were not there. Flags, and why:
//! - `SA_SIGINFO`: the address and the cause are in the second argument.
//! - `SA_ONSTACK`: the stack may be what overflowed (Rust's own handler needs this too).
//! - mask: everything waits. A handler that jumps out of ours would leak what we hold, and any handler on the alternate
//!   stack would overwrite us while we are on a walk stack (`stack` draws that). The host opens the signals of
//!   instructions again where user code runs that may fault.
//! - no `SA_RESTART`: synchronous signals restart nothing.
//!
//! # Context: control plane; passing a signal on: handler

use crate::sys::signal::{
    self, BUS_ADRERR, EVERY_SIGNAL, Frame, KernelSigaction, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_SIGINFO,
    SEGV_ACCERR, SIG_DFL, SIG_IGN, SIGBUS, SIGSEGV, SigInfo,
};
use crate::sys::{Errno, thread};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A previous disposition, readable from a handler without a lock: written once before ours is installed.
struct Previous {
    handler: AtomicUsize,
    flags: AtomicU64,
    restorer: AtomicUsize,
    mask: AtomicU64,
}

impl Previous {
    const fn new() -> Self {
        Self {
            handler: AtomicUsize::new(SIG_DFL),
            flags: AtomicU64::new(0),
            restorer: AtomicUsize::new(0),
            mask: AtomicU64::new(0),
        }
    }
    fn store(&self, act: &KernelSigaction) {
        self.flags.store(act.flags, Ordering::Relaxed);
        // Its flags say that it has one: put back without, it could not return.
        self.restorer.store(act.restorer, Ordering::Relaxed);
        self.mask.store(act.mask, Ordering::Relaxed);
        // Release pairs with `Previous::load`: flags and mask belong to this handler.
        self.handler.store(act.handler, Ordering::Release);
    }
    fn load(&self) -> KernelSigaction {
        // Acquire pairs with `Previous::store`.
        let handler = self.handler.load(Ordering::Acquire);
        KernelSigaction {
            handler,
            flags: self.flags.load(Ordering::Relaxed),
            restorer: self.restorer.load(Ordering::Relaxed),
            mask: self.mask.load(Ordering::Relaxed),
        }
    }
}

static PREVIOUS: [Previous; 2] = [Previous::new(), Previous::new()];
/// What was there before our first installation: [`PREVIOUS`] may be a later handler that calls ours in turn.
static ORIGINAL: [Previous; 2] = [Previous::new(), Previous::new()];
/// Whether [`ORIGINAL`] is set: from our first installation until ours are taken out again.
static HAS_ORIGINAL: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
/// Signals being passed on right now.
static PASSING: [Passing; 16] = [const { Passing::new() }; 16];

/// A signal being passed on: by whom, which, with which context, and how deep on the stack.
struct Passing {
    tp: AtomicUsize,
    signo: AtomicUsize,
    uc: AtomicUsize,
    sp: AtomicUsize,
}

impl Passing {
    const fn new() -> Self {
        Self { tp: AtomicUsize::new(0), signo: AtomicUsize::new(0), uc: AtomicUsize::new(0), sp: AtomicUsize::new(0) }
    }
}

fn has_original(signo: i32) -> &'static AtomicUsize {
    if signo == SIGBUS { &HAS_ORIGINAL[0] } else { &HAS_ORIGINAL[1] }
}

fn original(signo: i32) -> &'static Previous {
    if signo == SIGBUS { &ORIGINAL[0] } else { &ORIGINAL[1] }
}

/// Returns whether this signal has been passed on already and came back: a handler that was installed after ours found
/// us in front of it, and calls us as its predecessor. Or it puts us back as its predecessor and sends itself the signal
/// again (`sent`), as Python's faulthandler does: it would get that one, too, and send the next, for ever.
///
/// A handler that jumped away left its note behind, and the kernel may build the next frame at the same address. But
/// who calls us back stands deeper on the stack than we did when we called.
fn came_back(signo: i32, sent: bool, uc: usize, sp: usize) -> bool {
    let tp = thread::thread_pointer();
    let is_it = |p: &Passing| {
        p.uc.load(Ordering::Relaxed) == uc || sent && p.signo.load(Ordering::Relaxed) == signo.unsigned_abs() as usize
    };
    PASSING.iter().any(|p| p.tp.load(Ordering::Relaxed) == tp && sp < p.sp.load(Ordering::Relaxed) && is_it(p))
}

/// Notes that a signal is being passed on, for the length of `f`.
fn passing(signo: i32, uc: usize, sp: usize, f: impl FnOnce()) {
    let tp = thread::thread_pointer();
    let mine = PASSING.iter().find(|p| p.tp.load(Ordering::Relaxed) == tp);
    let free = || PASSING.iter().find(|p| p.tp.compare_exchange(0, tp, Ordering::Relaxed, Ordering::Relaxed).is_ok());
    let Some(note) = mine.or_else(free) else { return f() };
    // The thread's own: a signal inside the handler of another puts the outer note back.
    let outer_signo = note.signo.swap(signo.unsigned_abs() as usize, Ordering::Relaxed);
    let outer = (note.uc.swap(uc, Ordering::Relaxed), note.sp.swap(sp, Ordering::Relaxed));
    f();
    note.signo.store(outer_signo, Ordering::Relaxed);
    note.uc.store(outer.0, Ordering::Relaxed);
    note.sp.store(outer.1, Ordering::Relaxed);
    if mine.is_none() {
        note.tp.store(0, Ordering::Relaxed);
    }
}

fn previous(signo: i32) -> &'static Previous {
    if signo == SIGBUS { &PREVIOUS[0] } else { &PREVIOUS[1] }
}

type Handler = unsafe extern "C" fn(i32, *mut SigInfo, *mut c_void);

fn ours(handler: Handler) -> KernelSigaction {
    let flags = SA_SIGINFO | SA_ONSTACK;
    KernelSigaction { handler: handler as usize, flags, restorer: 0, mask: EVERY_SIGNAL }
}

/// Installs `handler` for SIGBUS and SIGSEGV, remembering what was there.
///
/// Called again (a program's runtime may have installed its own handlers after ours) it chains to the newcomer, and
/// where the newcomer calls ours in turn, to what was there before our first installation.
///
/// # Context: control plane, under the caller's lock
///
/// # Errors
/// The kernel's; the first of the two may be installed then: [`uninstall`] takes it back.
pub fn install(handler: Handler) -> Result<(), Errno> {
    for signo in [SIGBUS, SIGSEGV] {
        install_for(signo, handler)?;
    }
    Ok(())
}

fn install_for(signo: i32, handler: Handler) -> Result<(), Errno> {
    let before = signal::current(signo)?;
    if before.handler == handler as usize {
        return Ok(());
    }
    // Remembered before ours is in place: a signal in between still finds it.
    let is_first = has_original(signo).swap(1, Ordering::Relaxed) == 0;
    if is_first {
        original(signo).store(&before);
    }
    let behind = previous(signo).load();
    previous(signo).store(&before);
    // SAFETY: `handler` handles these signals with these flags for ever: it is never unloaded while installed
    // (`uninstall` runs before the last runtime is gone).
    let set = unsafe { signal::set(signo, &ours(handler)) }.map(drop);
    if set.is_err() {
        previous(signo).store(&behind);
        if is_first {
            has_original(signo).store(0, Ordering::Relaxed);
        }
    }
    set
}

/// Puts the previous dispositions back, where ours are still in place.
///
/// If somebody installed a handler after us it stays, and goes on finding ours behind it, which passes everything on.
///
/// # Context: control plane, under the caller's lock
pub fn uninstall(handler: Handler) {
    for signo in [SIGBUS, SIGSEGV] {
        if signal::current(signo).is_ok_and(|c| c.handler == handler as usize) {
            let before = previous(signo).load();
            // SAFETY: what was installed before us, with its own flags, is as fit as it was.
            let _ = unsafe { signal::set(signo, &before) };
            has_original(signo).store(0, Ordering::Relaxed);
        }
    }
}

/// Returns whether `handler` is what the kernel calls for both signals.
///
/// # Context: control plane
#[must_use]
pub fn is_installed(handler: Handler) -> bool {
    [SIGBUS, SIGSEGV].iter().all(|s| signal::current(*s).is_ok_and(|c| c.handler == handler as usize))
}

/// Raises `signo` for the interrupted instruction, as the kernel would have: by the previous disposition.
///
/// `info.signo` is what arrived; it differs from `signo` where protection stood in for the page table.
///
/// # Context: handler
///
/// # Safety
/// `info` and `uc` are the arguments of the handler that is running; the thread holds no slot, pin or claim, because
/// the previous handler may jump away.
pub unsafe fn chain(signo: i32, info: *mut SigInfo, uc: *mut c_void) {
    let here = 0u8;
    let sp = core::ptr::from_ref(&here) as usize;
    // SAFETY: the running handler's second argument.
    let arrived = unsafe { info.read() };
    let sent = arrived.code <= 0;
    let from = if came_back(signo, sent, uc as usize, sp) { original(signo) } else { previous(signo) };
    let prev = from.load();
    // SAFETY: the running handler's third argument.
    let frame = unsafe { Frame::new(uc) };
    match prev.handler {
        SIG_IGN if arrived.code <= 0 => {}
        SIG_DFL | SIG_IGN => die(signo, &arrived),
        handler => {
            if prev.flags & SA_RESETHAND != 0 {
                from.store(&KernelSigaction::default());
            }
            let own = if prev.flags & SA_NODEFER == 0 { signal::mask_bit(signo) } else { 0 };
            let ours = signal::set_mask(frame.mask() | prev.mask | own);
            let mut told = arrived;
            if told.signo != signo {
                told.signo = signo;
                told.code = if signo == SIGBUS { BUS_ADRERR } else { SEGV_ACCERR };
            }
            passing(signo, uc as usize, sp, || call(handler, prev.flags, signo, &mut told, uc));
            signal::set_mask(ours);
            if arrived.signo != signo && signal::current(signo).is_ok_and(|c| c.handler == SIG_DFL) {
                // It chose the default action (Rust's own does, for all but stack overflows) and counts on the
                // instruction to raise its signal again; ours raises the one that arrived, for ever.
                die(signo, &arrived);
            }
        }
    }
}

/// Calls a previous handler with the number of arguments it was installed for.
fn call(handler: usize, flags: u64, signo: i32, info: &mut SigInfo, uc: *mut c_void) {
    if flags & SA_SIGINFO != 0 {
        // SAFETY: whoever installed it with SA_SIGINFO promised a function of this type.
        let f: extern "C" fn(i32, *mut SigInfo, *mut c_void) = unsafe { core::mem::transmute(handler) };
        f(signo, info, uc);
    } else {
        // SAFETY: whoever installed it without SA_SIGINFO promised a function of this type.
        let f: extern "C" fn(i32) = unsafe { core::mem::transmute(handler) };
        f(signo);
    }
}

/// Lets the default action happen: with the right signal, and at the faulting instruction where that is possible.
fn die(signo: i32, arrived: &SigInfo) {
    // SAFETY: the default disposition is no function.
    let _ = unsafe { signal::set(signo, &KernelSigaction::default()) };
    if arrived.code <= 0 || arrived.signo != signo {
        // Sent by a process, or another signal than the instruction will raise again: raise it here.
        signal::set_mask(0);
        signal::raise(signo);
    }
    // Else the instruction runs again, faults again, and finds the default disposition.
}
