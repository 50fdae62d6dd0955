//! The first and the last instructions of the handler: onto a walk stack, and back.
//!
//! Not a byte is written to the stack that the kernel put us on: its frame is all that has to fit there. What is needed on
//! the other side lies at the top of a walk stack, in a [`Trip`]; while the thread sleeps it has no walk stack, and the trip
//! waits in the registers that a system call leaves alone.
//!
//! ```text
//! kernel's stack             on_signal                                   walk stack
//! frame                      claim a walk stack (none: sleep a little)
//!                            save what a C caller would miss      -->    Trip
//!                            step(trip)                                  judge, walk
//!                  RESUME    restore, give the stack back, return
//!                  PASS      the same, and jump to `pass`: the previous handler runs where it would without us
//!                  SLEEP     Trip -> xmm0..8, give the stack back
//!                            futex(word, seen, slice)                    (somebody else's)
//!                            claim a walk stack, xmm0..8 -> Trip
//!                            step(trip) again
//! ```
//! So there may be more sleepers than walk stacks.
//!
//! # Called as a function
//!
//! A handler that was installed later may call us, or jump to us, with its own arguments. So the registers that a callee saves
//! are put back; for the kernel's frame that would not be needed. And its mask need not be ours: with another signal open, that
//! one's frame would begin at the top of the alternate stack, over the live one, while we are on a walk stack (`stack`).
//! ```text
//! our caller, a handler with an empty mask    on_signal                  SIGALRM
//! calls us                                    walk stack, sp elsewhere
//!                                                                        its frame: at the top of the alternate stack
//! its frame and its locals: overwritten
//! ```
//! So the entry looks where it would return to. The kernel returns through the restorer that our disposition was installed with,
//! which nobody else's has: who comes with another return address was not entered with our mask, and goes the way at the end,
//! which masks every signal first and puts the mask back last. That way needs 48 bytes of its caller's stack, as a function may.
//! The stack pointer would not tell: a handler that ends in a call of ours jumps here, with the kernel's frame above.
//!
//! # Context: handler

use super::entry;
use super::trip::{SLEEP, TRIP_BYTES, Trip};
use crate::stack::{BASE, BUSY, BUSY_BYTES, NR_LONG, NR_STACKS, STRIDE_BYTES};
use crate::sys::futex::{NR_FUTEX, WAIT_PRIVATE};
use crate::sys::signal::{self, EVERY_SIGNAL, NR_SIGPROCMASK, SET_MASK, SigInfo};
use crate::sys::thread::{NR_NANOSLEEP, Timespec};
use crate::{child, leave};
use core::arch::naked_asm;
use core::ffi::c_void;
use core::mem::offset_of;

const _: () = assert!(BUSY_BYTES == 64 && NR_LONG.is_power_of_two() && NR_STACKS == 2 * NR_LONG);

/// How long an entry sleeps when every walk stack is in use.
static CROWDED: Timespec = Timespec { sec: 0, nsec: 20_000 };

/// What is masked before the stack is changed.
static MASK: u64 = EVERY_SIGNAL;

/// Claims a walk stack: its number is in r9, our stack pointer in r11, and rsp at the place for a trip. Uses rax, rcx and
/// r8 to r11. `$crowded`: what to do each time that none is free.
///
/// First the one that this thread had last, of the lower ones, then the others, then the upper ones in the same order:
/// threads that fault at once do not meet.
macro_rules! claim {
    ($crowded:literal) => {
        concat!(
            "20:\n",
            "mov r11, rsp\n",
            "mov r8, qword ptr [rip + {busy}@GOTPCREL]\n",
            "mov r10, qword ptr fs:[0]\n",
            "shr r10, 6\n",
            "movabs rax, {spread}\n",
            "imul r10, rax\n",
            "shr r10, 58\n",
            "xor ecx, ecx\n",
            "21:\n",
            "lea eax, [r10 + rcx]\n",
            "and eax, {nr_long} - 1\n",
            "mov r9d, ecx\n",
            "and r9d, {nr_long}\n",
            "or r9d, eax\n",
            "mov eax, r9d\n",
            "shl eax, 6\n",
            "cmp dword ptr [r8 + rax], 0\n",
            "jne 22f\n",
            "lock bts dword ptr [r8 + rax], 0\n",
            "jnc 23f\n",
            "22:\n",
            "inc ecx\n",
            "cmp ecx, {nr}\n",
            "jb 21b\n",
            $crowded,
            "jmp 20b\n",
            "23:\n",
            "lea eax, [r9 + 1]\n",
            "imul rax, rax, {stride}\n",
            "mov rcx, qword ptr [rip + {base}@GOTPCREL]\n",
            "add rax, qword ptr [rcx]\n",
            ".cfi_def_cfa r11, 8\n",
            "lea rsp, [rax - {trip}]\n",
        )
    };
}

/// The handler of SIGBUS and SIGSEGV.
///
/// # Context: handler
///
/// # Safety
/// Called by the kernel, as a handler installed with `SA_SIGINFO` and every signal in its mask, after `stack::init`; or by
/// another handler installed with `SA_SIGINFO`, whatever its mask, with its own arguments.
#[unsafe(naked)]
pub unsafe extern "C" fn on_signal(signo: i32, info: *mut SigInfo, uc: *mut c_void) {
    naked_asm!(
        ".cfi_startproc",
        "mov rax, qword ptr [rip + {restorer}@GOTPCREL]",
        "add rax, {restorer_skips}",
        "cmp qword ptr [rsp], rax",
        "jne 60f",
        "12:",
        // In: edi, rsi, rdx. Crowded: a forked child inherits claims whose threads it has not.
        claim!(
            "mov rax, qword ptr [rip + {child}@GOTPCREL]
            mov rax, qword ptr [rax]
            movabs rcx, {alive}
            cmp qword ptr [rax], rcx
            jne 41f
            mov r8, rdi
            mov r9, rsi
            mov rdi, qword ptr [rip + {crowded}@GOTPCREL]
            xor esi, esi
            mov eax, {nanosleep}
            syscall
            mov rdi, r8
            mov rsi, r9
            "
        ),
        "mov dword ptr [rsp + {slice}], -1",
        "mov dword ptr [rsp + {signo}], edi",
        "mov qword ptr [rsp + {info}], rsi",
        "mov qword ptr [rsp + {uc}], rdx",
        "mov qword ptr [rsp + {saved}], rbx",
        "mov qword ptr [rsp + {saved} + 8], r12",
        "mov qword ptr [rsp + {saved} + 16], r13",
        "mov qword ptr [rsp + {saved} + 24], r14",
        "mov qword ptr [rsp + {saved} + 32], r15",
        "mov qword ptr [rsp + {from}], r11",
        "mov qword ptr [rsp + {frame}], rbp",
        "mov rax, qword ptr [r11]",
        "mov qword ptr [rsp + {frame} + 8], rax",
        "30:",
        "lea rbp, [rsp + {frame}]",
        // The frame's address is what `from` says, plus 8; the caller's rbp is where rbp points, its r12 40 bytes below:
        // DW_CFA_def_cfa_expression {{breg6 -8, deref, plus_uconst 8}}, DW_CFA_expression rbp {{breg6 0}}, r12 {{breg6 -40}}.
        ".cfi_escape 0x0f, 0x05, 0x76, 0x78, 0x06, 0x23, 0x08",
        ".cfi_escape 0x10, 0x06, 0x02, 0x76, 0x00",
        ".cfi_escape 0x10, 0x0c, 0x02, 0x76, 0x58",
        "mov r12d, r9d",
        "mov rdi, rsp",
        "mov esi, r12d",
        "call {step}",
        "mov rcx, qword ptr [rip + {busy}@GOTPCREL]",
        "shl r12d, 6",
        "add rcx, r12",
        "cmp eax, {sleep}",
        "je 40f",
        // Back, with nothing in our hands: the last load from the stack, then the store that gives it away.
        "mov edi, dword ptr [rsp + {passed}]",
        "mov rsi, qword ptr [rsp + {info}]",
        "mov rdx, qword ptr [rsp + {uc}]",
        "mov rbx, qword ptr [rsp + {saved}]",
        "mov r12, qword ptr [rsp + {saved} + 8]",
        "mov r13, qword ptr [rsp + {saved} + 16]",
        "mov r14, qword ptr [rsp + {saved} + 24]",
        "mov r15, qword ptr [rsp + {saved} + 32]",
        "mov r11, qword ptr [rsp + {from}]",
        ".cfi_remember_state",
        "mov rbp, qword ptr [rsp + {frame}]",
        ".cfi_def_cfa r11, 8",
        ".cfi_restore rbp",
        ".cfi_restore r12",
        "mov rsp, r11",
        ".cfi_def_cfa rsp, 8",
        "mov dword ptr [rcx], 0",
        "test eax, eax",
        "jnz 41f",
        "ret",
        "41:",
        "jmp {pass}",
        ".cfi_restore_state",
        // A slice of sleep. The kernel keeps every register but rax, rcx and r11. The caller's rbp and r12 are back in their places
        // meanwhile, for who looks at the stack of a thread that waits.
        "40:",
        "movaps xmm0, xmmword ptr [rsp]",
        "movaps xmm1, xmmword ptr [rsp + 16]",
        "movaps xmm2, xmmword ptr [rsp + 32]",
        "movaps xmm3, xmmword ptr [rsp + 48]",
        "movaps xmm4, xmmword ptr [rsp + 64]",
        "movaps xmm5, xmmword ptr [rsp + 80]",
        "movaps xmm6, xmmword ptr [rsp + 96]",
        "movaps xmm7, xmmword ptr [rsp + 112]",
        "movaps xmm8, xmmword ptr [rsp + 128]",
        "mov rdi, qword ptr [rsp + {addr}]",
        "mov edx, dword ptr [rsp + {seen}]",
        "mov r10d, dword ptr [rsp + {slice}]",
        "shl r10d, 4",
        "add r10, qword ptr [rip + {slices}@GOTPCREL]",
        "mov esi, {wait}",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "mov r12, qword ptr [rsp + {saved} + 8]",
        "mov r11, qword ptr [rsp + {from}]",
        "mov rbp, qword ptr [rsp + {frame}]",
        ".cfi_def_cfa r11, 8",
        ".cfi_restore rbp",
        ".cfi_restore r12",
        "mov rsp, r11",
        ".cfi_def_cfa rsp, 8",
        "mov dword ptr [rcx], 0",
        "mov eax, {futex}",
        "syscall",
        "movq xmm9, rax",
        claim!(
            "mov rdi, qword ptr [rip + {crowded}@GOTPCREL]
            xor esi, esi
            mov eax, {nanosleep}
            syscall
            "
        ),
        "movaps xmmword ptr [rsp], xmm0",
        "movaps xmmword ptr [rsp + 16], xmm1",
        "movaps xmmword ptr [rsp + 32], xmm2",
        "movaps xmmword ptr [rsp + 48], xmm3",
        "movaps xmmword ptr [rsp + 64], xmm4",
        "movaps xmmword ptr [rsp + 80], xmm5",
        "movaps xmmword ptr [rsp + 96], xmm6",
        "movaps xmmword ptr [rsp + 112], xmm7",
        "movaps xmmword ptr [rsp + 128], xmm8",
        "movq qword ptr [rsp + {slept}], xmm9",
        "jmp 30b",
        // Called as a function: the same with every signal masked. What is pushed keeps the stack where a call expects it.
        "60:",
        ".cfi_def_cfa rsp, 8",
        "sub rsp, 40",
        ".cfi_def_cfa_offset 48",
        "mov qword ptr [rsp + 8], rdi",
        "mov qword ptr [rsp + 16], rsi",
        "mov qword ptr [rsp + 24], rdx",
        "mov edi, {set_mask}",
        "mov rsi, qword ptr [rip + {mask}@GOTPCREL]",
        "mov rdx, rsp",
        "mov r10d, 8",
        "mov eax, {sigprocmask}",
        "syscall",
        "mov rdi, qword ptr [rsp + 8]",
        "mov rsi, qword ptr [rsp + 16]",
        "mov rdx, qword ptr [rsp + 24]",
        "call 12b",
        "mov edi, {set_mask}",
        "mov rsi, rsp",
        "xor edx, edx",
        "mov r10d, 8",
        "mov eax, {sigprocmask}",
        "syscall",
        "add rsp, 40",
        ".cfi_def_cfa_offset 8",
        "ret",
        ".cfi_endproc",
        restorer = sym signal::restorer,
        restorer_skips = const signal::RESTORER_SKIPS,
        mask = sym MASK,
        set_mask = const SET_MASK,
        sigprocmask = const NR_SIGPROCMASK,
        busy = sym BUSY,
        base = sym BASE,
        child = sym child::PAGE,
        alive = const child::ALIVE,
        crowded = sym CROWDED,
        slices = sym leave::SLICES,
        step = sym entry::step,
        pass = sym entry::pass,
        spread = const 0x9e37_79b9_7f4a_7c15_u64 as i64,
        nr_long = const NR_LONG,
        nr = const NR_STACKS,
        stride = const STRIDE_BYTES,
        trip = const TRIP_BYTES,
        sleep = const SLEEP,
        wait = const WAIT_PRIVATE,
        futex = const NR_FUTEX,
        nanosleep = const NR_NANOSLEEP,
        addr = const offset_of!(Trip, addr),
        seen = const offset_of!(Trip, seen),
        slice = const offset_of!(Trip, slice),
        slept = const offset_of!(Trip, slept),
        passed = const offset_of!(Trip, passed),
        signo = const offset_of!(Trip, signo),
        info = const offset_of!(Trip, info),
        uc = const offset_of!(Trip, uc),
        saved = const offset_of!(Trip, saved),
        from = const offset_of!(Trip, from),
        frame = const offset_of!(Trip, frame),
    )
}
