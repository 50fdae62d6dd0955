//! Walk stacks: where a handler runs what is too deep for the thread's alternate signal stack.
//!
//! std gives each thread 8 KiB for signals. The kernel's frame takes up to 3.3 KiB of them, a fault inside a store's read
//! puts a second frame there, and without optimisation one walk alone needs more than what is left. So the deep parts run
//! on a stack of a fixed pool: an attempt inside its section, planning what is read ahead, the read of a handler store that
//! touches no arena, publishing what was read, and a batch of reclaim.
//! ```text
//! alternate stack, 8 KiB                        walk stack, 64 KiB
//! +-----------------------------+ <- top        +-----------------------------+ <- top
//! | the kernel's frame: what    |               | call_it                     |
//! | sigreturn(2) restores       |               |   with_vma, the section     |
//! | on_signal, do_user_addr_..  |               |     handle_mm_fault ..      |
//! | with_vma -> switch ---------+-------------> |                             |
//! |  (frames of a nested fault) |               +-----------------------------+
//! +-----------------------------+               | guard page                  |
//! | the thread's own memory     |               +-----------------------------+
//! ```
//! Why not the whole handler. While the stack pointer is elsewhere, the kernel takes the alternate stack for free:
//! ```text
//! on a walk stack                               a signal with SA_ONSTACK comes
//!   sp is not inside the alternate stack          the kernel begins at its top, over the live frame above
//!   back; sigreturn restores                      what that signal's handler left there
//! ```
//! So nothing may come meanwhile, and the rules are:
//! - Every signal is masked: those sent by processes, and those of instructions. An instruction that faults on a walk
//!   stack ends the process by the default action. Handlers are entered like this (`trap::chain`); the host opens the
//!   signals of instructions where user code runs that may fault, and closes them before it comes here.
//! - Nothing sleeps with the program's mask in force: its handlers would run then.
//! - Nothing touches an arena: no store that may fault on another arena is read here, and no delegate runs here. In the
//!   section that holds anyway, and a batch of reclaim calls only stores that touch none.
//! - Nothing unwinds: a panic ends the process at the switch.
//!
//! A nested fault finds its thread on the alternate stack, below the outer fault's frames, and takes a walk stack as any
//! other: the outer one holds none while it runs a store that may fault.
//!
//! Who holds a stack, and how many:
//! ```text
//! numbers 0..64      a read, for as long as the device takes     or a walk
//! numbers 64..128                                                a walk, for microseconds; a batch of reclaim, longer
//! ```
//! So reads leave 64 to the others, and of those batches, which may write, take 16 at most (`reclaim`). A read that finds
//! none is a filler's. A walk waits a little: who holds the others is walking, and waits for nothing. Only when that is in
//! vain (more threads than that were taken off their processors in the middle of walks) it goes on where it is.
//!
//! # Context: handler

use crate::sys::{Errno, mem, thread};
use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use softfault_mm::page::PAGE_SIZE;

const NR_STACKS: usize = 128;
/// The first of them, which reads use too.
const NR_READ_STACKS: usize = 64;
const STACK_BYTES: usize = 64 << 10;
/// A guard page, and the stack above it.
const STRIDE_BYTES: usize = PAGE_SIZE + STACK_BYTES;
/// How often a thread gives way when all stacks are in use, before it goes on without one.
const PATIENCE: usize = 1 << 10;
/// The same for a read, which somebody else can do.
const READ_PATIENCE: usize = 16;

/// Whether a stack is in use. A cache line each: threads that fault at once do not meet.
#[repr(align(64))]
struct Busy(AtomicU32);

static BUSY: [Busy; NR_STACKS] = [const { Busy(AtomicU32::new(0)) }; NR_STACKS];
/// Address of the first guard page; 0: no pool.
static BASE: AtomicUsize = AtomicUsize::new(0);

/// Maps the pool, once a process; memory is taken as stacks are used. Control plane, under the caller's lock.
///
/// # Errors
/// The kernel's.
pub fn init() -> Result<(), Errno> {
    if BASE.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    let len_bytes = NR_STACKS * STRIDE_BYTES;
    let base = mem::reserve(len_bytes, PAGE_SIZE)?;
    if let Err(e) = (0..NR_STACKS).try_for_each(|i| open(base + i * STRIDE_BYTES)) {
        // SAFETY: the range reserved above, which nobody has seen.
        let _ = unsafe { mem::munmap(base, len_bytes) };
        return Err(e);
    }
    // Release pairs with the Acquire in claim(): who sees the pool may use it.
    BASE.store(base, Ordering::Release);
    Ok(())
}

/// Makes the stack above the guard page at `guard` accessible.
fn open(guard: usize) -> Result<(), Errno> {
    let stack = guard + PAGE_SIZE;
    // SAFETY: a part of the range that `init` reserved and has shown nobody.
    unsafe { mem::mprotect(stack, STACK_BYTES, mem::PROT_READ | mem::PROT_WRITE) }?;
    // A stack holds addresses of the program, and nothing that a core dump could explain. Advice may be refused.
    // SAFETY: as above; no page is dropped.
    let _ = unsafe { mem::madvise(stack, STACK_BYTES, mem::MADV_DONTDUMP) };
    Ok(())
}

/// A stack of the pool, the caller's until it is dropped.
struct Claimed {
    busy: &'static Busy,
    top: usize,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // Release pairs with the Acquire in claim(): our frames are dead before the next user's are made.
        self.busy.0.store(0, Ordering::Release);
    }
}

/// Claims the first free stack: of those that reads use from number `hint` on, then, unless it is for a read, of the others.
/// `None`: all are in use, or there is no pool.
#[inline]
fn claim(hint: usize, read: bool) -> Option<Claimed> {
    // Acquire pairs with the Release in init().
    let base = BASE.load(Ordering::Acquire);
    if base == 0 {
        return None;
    }
    for i in 0..if read { NR_READ_STACKS } else { NR_STACKS } {
        let shared = hint.wrapping_add(i) % NR_READ_STACKS;
        let at = if i < NR_READ_STACKS { shared } else { shared + NR_READ_STACKS };
        let busy = BUSY.get(at)?;
        // Acquire pairs with the Release in Claimed's drop: the last user's frames are dead.
        if busy.0.load(Ordering::Relaxed) == 0
            && busy.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            return Some(Claimed { busy, top: base + (at + 1) * STRIDE_BYTES });
        }
    }
    None
}

/// Claims a stack where there was none a moment ago: walks end in microseconds, and only reads take longer.
#[cold]
fn claim_patiently(hint: usize, read: bool) -> Option<Claimed> {
    if BASE.load(Ordering::Relaxed) == 0 {
        return None;
    }
    (0..if read { READ_PATIENCE } else { PATIENCE }).find_map(|_| {
        thread::sched_yield();
        claim(hint, read)
    })
}

/// Runs `f` on a stack of the pool; on the current one when there is none.
///
/// `hint` says which stack to look at first: threads that pass different numbers do not meet. In a signal handler every
/// signal is masked until the call returns, see the module's rules for `f`. A panic in `f` ends the process.
///
/// # Context: handler
#[inline]
pub fn on_walk_stack(hint: usize, f: &mut dyn FnMut()) {
    match claim(hint, false).or_else(|| claim_patiently(hint, false)) {
        Some(stack) => run(&stack, f),
        None => f(),
    }
}

/// The same for a read, which may hold its stack for long; `false`: none of those that reads may have is free, or there is
/// no pool, and `f` was not run.
///
/// # Context: handler
#[inline]
#[must_use]
pub fn on_read_stack(hint: usize, f: &mut dyn FnMut()) -> bool {
    let stack = claim(hint, true).or_else(|| claim_patiently(hint, true));
    if let Some(stack) = &stack {
        run(stack, f);
    }
    stack.is_some()
}

#[inline]
fn run(stack: &Claimed, mut f: &mut dyn FnMut()) {
    // SAFETY: `call_it` gets the `f` that lives until `switch` returns; the claim keeps everybody else away from
    // `STACK_BYTES` writable bytes below `top`, which is a multiple of the page size.
    unsafe { switch((&raw mut f).cast(), call_it, stack.top) };
}

/// The first frame of a walk stack.
///
/// # Safety
/// `f` points at a `&mut dyn FnMut()` that nobody else uses meanwhile.
unsafe extern "C" fn call_it(f: *mut core::ffi::c_void) {
    // SAFETY: the caller's contract.
    let f: &mut &mut dyn FnMut() = unsafe { &mut *f.cast() };
    f();
}

/// Calls `f(data)` with the stack pointer at `top`, and comes back. Unwinders find their way by rbp.
///
/// # Safety
/// `top` is a multiple of 16, and the end of writable memory that is the caller's and enough for `f`; `f` may be called
/// with `data`.
#[unsafe(naked)]
unsafe extern "C" fn switch(data: *mut core::ffi::c_void, f: unsafe extern "C" fn(*mut core::ffi::c_void), top: usize) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "mov rsp, rdx",
        "call rsi",
        "mov rsp, rbp",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> usize {
        let local = 0u8;
        core::ptr::from_ref(&local) as usize
    }

    /// Returns the number of the stack that `at` lies in.
    fn stack_of(at: usize) -> Option<usize> {
        let inside = at.checked_sub(BASE.load(Ordering::Relaxed))?;
        (inside < NR_STACKS * STRIDE_BYTES && inside % STRIDE_BYTES >= PAGE_SIZE).then_some(inside / STRIDE_BYTES)
    }

    fn run(hint: usize) -> Option<usize> {
        let mut at = None;
        on_walk_stack(hint, &mut || at = Some(here()));
        at.and_then(stack_of)
    }

    #[test]
    fn it_runs_there_and_comes_back() {
        assert_eq!(init(), Ok(()));
        assert_eq!(run(NR_READ_STACKS + 5), Some(5));
        assert_eq!(run(5), Some(5), "free again");
        let mut inner = None;
        let mut outer = None;
        on_walk_stack(5, &mut || {
            outer = stack_of(here());
            inner = run(5);
        });
        assert_eq!((outer, inner), (Some(5), Some(6)), "a stack in use is not taken");
        assert_eq!(stack_of(here()), None);

        let reads: [_; NR_READ_STACKS] = core::array::from_fn(|i| claim(i, true));
        assert!(reads.iter().all(Option::is_some), "all are free");
        let mut ran = false;
        assert!(!on_read_stack(7, &mut || ran = true) && !ran, "reads take no more than their share");
        assert_eq!(run(7), Some(NR_READ_STACKS + 7), "what is left is for the others");
        let walks: [_; NR_STACKS - NR_READ_STACKS] = core::array::from_fn(|i| claim(i, false));
        assert!(walks.iter().all(Option::is_some));
        assert_eq!(run(0), None, "on the current stack when all are in use");
        drop(reads);
        assert_eq!(run(9), Some(9));
        let mut at = None;
        assert!(on_read_stack(9, &mut || at = stack_of(here())));
        assert_eq!(at, Some(9));
        drop(walks);
        assert!(run(0).is_some());
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let half = |w: u64| {
            let mut out = 0.0;
            on_walk_stack(20, &mut || out = core::hint::black_box(w as f64) * 0.5);
            out
        };
        let sum: f64 = (0..16).map(half).sum();
        assert!((sum - 60.0).abs() < f64::EPSILON, "registers survive: {sum}");
    }
}
