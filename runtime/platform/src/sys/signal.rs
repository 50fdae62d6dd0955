//! Signal dispositions, masks and the machine context of an interrupted instruction.
//!
//! sigaction(2), rt_sigprocmask(2), rt_sigreturn(2). The kernel's own structures are used (`struct kernel_sigaction`
//! has a 64-bit mask), because libc's wrapper hides signals 32 and 33 from masks.
//!
//! # Context: handler; dispositions: control plane

use super::syscall::{Errno, syscall6};
use core::arch::naked_asm;
use core::mem::offset_of;

/// Bus error.
pub const SIGBUS: i32 = libc::SIGBUS;
/// Segmentation violation.
pub const SIGSEGV: i32 = libc::SIGSEGV;
/// `si_code` of SIGBUS: non-existent physical address, also of a userfaultfd with the SIGBUS feature.
pub const BUS_ADRERR: i32 = 2;
/// `si_code` of SIGSEGV: no mapping.
pub const SEGV_MAPERR: i32 = 1;
/// `si_code` of SIGSEGV: protection.
pub const SEGV_ACCERR: i32 = 2;
/// The handler takes three arguments.
pub const SA_SIGINFO: u64 = 4;
/// The handler runs on the alternate stack, where one is set.
pub const SA_ONSTACK: u64 = 0x0800_0000;
/// The signal is not masked while its handler runs.
pub const SA_NODEFER: u64 = 0x4000_0000;
/// The disposition returns to the default when the handler is entered.
pub const SA_RESETHAND: u64 = 0x8000_0000;
const SA_RESTORER: u64 = 0x0400_0000;
/// The default disposition.
pub const SIG_DFL: usize = 0;
/// The ignoring disposition.
pub const SIG_IGN: usize = 1;

/// Every signal: the mask that our handlers are entered with. SIGKILL and SIGSTOP cannot be masked, the kernel leaves
/// them out.
pub const EVERY_SIGNAL: u64 = !0;

/// The mask while user code runs in our handlers: open are the signals that an instruction of that code can raise.
///
/// Everything else waits: an asynchronous handler that left ours by `siglongjmp` would leak pins and claims.
pub const HANDLER_MASK: u64 =
    !(bit(libc::SIGBUS) | bit(libc::SIGSEGV) | bit(libc::SIGFPE) | bit(libc::SIGILL) | bit(libc::SIGTRAP));

const fn bit(signo: i32) -> u64 {
    1 << (signo - 1)
}

/// Returns the mask bit of signal `signo` (1..=64).
///
/// # Context: handler
#[must_use]
pub const fn mask_bit(signo: i32) -> u64 {
    bit(signo)
}

/// A disposition, laid out as the kernel's `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelSigaction {
    /// `SIG_DFL`, `SIG_IGN` or a function's address.
    pub handler: usize,
    /// `SA_*`.
    pub flags: u64,
    /// Return trampoline.
    pub restorer: usize,
    /// Signals masked while the handler runs.
    pub mask: u64,
}

/// The number of rt_sigprocmask(2) and its request to replace the mask, for instructions that call it without a stack.
pub(crate) const NR_SIGPROCMASK: i32 = libc::SYS_rt_sigprocmask as i32;
/// See [`NR_SIGPROCMASK`].
pub(crate) const SET_MASK: i32 = libc::SIG_SETMASK;

/// Where the kernel's frame has the interrupted thread's register of this DWARF number, for unwinders: as an expression over
/// the stack pointer, which the handler's return has left at the frame's `struct ucontext`.
macro_rules! cfi_saved {
    ($register:literal, $offset:literal) => {
        // DW_CFA_expression, the register, three bytes: DW_OP_breg7 and two of the offset.
        concat!(".cfi_escape 0x10, ", $register, ", 3, 0x77, ", $offset, " & 0x7f | 0x80, ", $offset, " >> 7")
    };
}

/// Returns from a signal handler. The kernel returns through it from what [`set`] installs without another restorer, and from
/// nothing else: so the handler knows by whom it was entered. It begins at [`RESTORER_SKIPS`]: unwinders look a return address
/// up by the byte before it.
///
/// Debuggers know the C library's restorer by its name; ours says where the interrupted registers are.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn restorer() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_signal_frame",
        // The frame begins where the interrupted stack ends: DW_CFA_def_cfa_expression of its saved stack pointer.
        ".cfi_escape 0x0f, 4, 0x77, 160 & 0x7f | 0x80, 160 >> 7, 0x06",
        cfi_saved!("8", "40"),
        cfi_saved!("9", "48"),
        cfi_saved!("10", "56"),
        cfi_saved!("11", "64"),
        cfi_saved!("12", "72"),
        cfi_saved!("13", "80"),
        cfi_saved!("14", "88"),
        cfi_saved!("15", "96"),
        cfi_saved!("5", "104"),
        cfi_saved!("4", "112"),
        cfi_saved!("6", "120"),
        cfi_saved!("3", "128"),
        cfi_saved!("1", "136"),
        cfi_saved!("0", "144"),
        cfi_saved!("2", "152"),
        cfi_saved!("7", "160"),
        cfi_saved!("16", "168"),
        "nop",
        "mov rax, 15",
        "syscall",
        ".cfi_endproc",
    )
}

/// Bytes of [`restorer`] that are never run.
pub(crate) const RESTORER_SKIPS: usize = 1;

/// Returns the disposition of `signo`.
///
/// # Context: handler
///
/// # Errors
/// `EINVAL` for no signal.
pub fn current(signo: i32) -> Result<KernelSigaction, Errno> {
    let mut old = KernelSigaction::default();
    let args = [signo as usize, 0, core::ptr::from_mut(&mut old) as usize, 8, 0, 0];
    // SAFETY: writes one kernel `struct sigaction`, exclusively borrowed; changes nothing.
    unsafe { syscall6(libc::SYS_rt_sigaction, args) }?;
    Ok(old)
}

/// Sets the disposition of `signo`, returning the former one.
///
/// # Context: handler
///
/// # Errors
/// `EINVAL` for no signal.
///
/// # Safety
/// `act.handler` is `SIG_DFL`, `SIG_IGN`, or a function fit to handle `signo` with `act.flags` for as long as it stays
/// installed.
pub unsafe fn set(signo: i32, act: &KernelSigaction) -> Result<KernelSigaction, Errno> {
    let mut act = *act;
    if act.handler > SIG_IGN && act.flags & SA_RESTORER == 0 {
        act.flags |= SA_RESTORER;
        act.restorer = restorer as *const () as usize + RESTORER_SKIPS;
    }
    let mut old = KernelSigaction::default();
    let args = [signo as usize, core::ptr::from_ref(&act) as usize, core::ptr::from_mut(&mut old) as usize, 8, 0, 0];
    // SAFETY: reads one and writes one kernel `struct sigaction`; the caller vouches for the handler.
    unsafe { syscall6(libc::SYS_rt_sigaction, args) }?;
    Ok(old)
}

/// Replaces the calling thread's signal mask, returning the former one.
///
/// # Context: handler
pub fn set_mask(mask: u64) -> u64 {
    procmask(libc::SIG_SETMASK, mask)
}

/// Adds `mask` to the calling thread's signal mask, returning the former one.
///
/// # Context: handler
pub fn block(mask: u64) -> u64 {
    procmask(libc::SIG_BLOCK, mask)
}

/// Returns the signals that have come for the calling thread, or for its process, and are masked here; see
/// rt_sigpending(2).
///
/// # Context: handler
#[must_use]
pub fn pending() -> u64 {
    let mut set = 0u64;
    // SAFETY: writes one 64-bit mask of ours.
    let _ = unsafe { syscall6(libc::SYS_rt_sigpending, [core::ptr::from_mut(&mut set) as usize, 8, 0, 0, 0, 0]) };
    set
}

/// An alternate signal stack, as the kernel's `stack_t`.
#[expect(missing_debug_implementations, reason = "libc's has none")]
pub struct AltStack(libc::stack_t);

/// Disables the calling thread's alternate stack, returning what it was; see sigaltstack(2).
///
/// Refused by the kernel while the thread is on that stack, and then nothing changes.
///
/// # Context: handler
#[must_use = "to be put back"]
pub fn disable_altstack() -> AltStack {
    let none = libc::stack_t { ss_sp: core::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    let mut old = AltStack(none);
    let args = [core::ptr::from_ref(&none) as usize, core::ptr::from_mut(&mut old.0) as usize, 0, 0, 0, 0];
    // SAFETY: reads and writes one `stack_t` each, ours. A frame of a later signal goes to the stack the thread is on.
    let _ = unsafe { syscall6(libc::SYS_sigaltstack, args) };
    old
}

/// Makes `was` the calling thread's alternate stack again.
///
/// # Context: handler
pub fn restore_altstack(was: &AltStack) {
    let mut to = was.0;
    // As sigreturn(2) does: whether the thread was on it is nothing that can be set.
    to.ss_flags &= !libc::SS_ONSTACK;
    // SAFETY: reads one `stack_t` of ours: what the thread had before.
    let _ = unsafe { syscall6(libc::SYS_sigaltstack, [core::ptr::from_ref(&to) as usize, 0, 0, 0, 0, 0]) };
}

fn procmask(how: i32, mask: u64) -> u64 {
    let mut old = 0u64;
    let args = [how as usize, core::ptr::from_ref(&mask) as usize, core::ptr::from_mut(&mut old) as usize, 8, 0, 0];
    // SAFETY: reads one and writes one 64-bit mask, both ours.
    let _ = unsafe { syscall6(libc::SYS_rt_sigprocmask, args) };
    old
}

/// Sends `signo` to the calling thread; see tgkill(2).
///
/// # Context: handler
pub fn raise(signo: i32) {
    let pid = super::thread::getpid().cast_unsigned() as usize;
    let tid = super::thread::gettid() as usize;
    // SAFETY: a signal to ourselves; its disposition decides what happens.
    let _ = unsafe { syscall6(libc::SYS_tgkill, [pid, tid, signo as usize, 0, 0, 0]) };
}

/// The kernel's `siginfo_t` of a fault.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SigInfo {
    /// Signal number.
    pub signo: i32,
    /// Always 0 for faults.
    pub errno: i32,
    /// Positive when the kernel raised it; 0 or negative when a process did.
    pub code: i32,
    pad: i32,
    /// The faulting address, for faults only.
    pub addr: usize,
    rest: [u64; 13],
}

/// What the kernel saved of the interrupted instruction.
#[derive(Debug)]
pub struct Frame {
    uc: *mut libc::ucontext_t,
}

const ERR_WRITE: i64 = 1 << 1;
const ERR_USER: i64 = 1 << 2;
const ERR_INSTR: i64 = 1 << 4;

impl Frame {
    /// Wraps the third argument of a signal handler.
    ///
    /// # Context: handler
    ///
    /// # Safety
    /// `uc` is the `ucontext_t` that the kernel passed to the handler which is still running.
    #[must_use]
    pub unsafe fn new(uc: *mut core::ffi::c_void) -> Self {
        Self { uc: uc.cast() }
    }

    /// Returns the address of the field at `offset_bytes` of the context.
    fn field<T>(&self, offset_bytes: usize) -> *mut T {
        self.uc.cast::<u8>().wrapping_add(offset_bytes).cast()
    }

    /// Returns the address of a general register; `index` is one of libc's `REG_*`.
    fn greg_at(&self, index: i32) -> *mut i64 {
        let gregs: *mut i64 = self.field(offset_of!(libc::ucontext_t, uc_mcontext.gregs));
        gregs.wrapping_add(index.cast_unsigned() as usize)
    }

    fn greg(&self, index: i32) -> i64 {
        // SAFETY: `new`'s contract: the kernel's context of a handler that is running; the callers pass constants of
        // libc's for this architecture, which lie inside `gregs`.
        unsafe { self.greg_at(index).read() }
    }

    /// Returns whether the page-fault error code is there: a program's own fault has bit 2 set. Some hosts (gVisor) give 0.
    ///
    /// # Context: handler
    #[must_use]
    pub fn knows_access(&self) -> bool {
        self.greg(libc::REG_ERR) & ERR_USER != 0
    }

    /// Returns whether the access was a store (page-fault error code, bit 1).
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.greg(libc::REG_ERR) & ERR_WRITE != 0
    }

    /// Returns whether the access was an instruction fetch (page-fault error code, bit 4).
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_instruction(&self) -> bool {
        self.greg(libc::REG_ERR) & ERR_INSTR != 0
    }

    /// Returns the interrupted stack pointer.
    ///
    /// # Context: handler
    #[must_use]
    pub fn sp(&self) -> usize {
        self.greg(libc::REG_RSP).cast_unsigned() as usize
    }

    /// Returns the interrupted instruction's address.
    ///
    /// # Context: handler
    #[must_use]
    pub fn ip(&self) -> usize {
        self.greg(libc::REG_RIP).cast_unsigned() as usize
    }

    /// Continues at `ip` when the handler returns (benchmarks and tests skip an instruction with it).
    ///
    /// # Context: handler
    ///
    /// # Safety
    /// Execution at `ip` with the interrupted registers is sound.
    pub unsafe fn set_ip(&self, ip: usize) {
        // SAFETY: as in `greg`; the caller vouches for the new address.
        unsafe { self.greg_at(libc::REG_RIP).write((ip as u64).cast_signed()) };
    }

    /// Sets the interrupted context's `rax` (tests return an error from a probing load with it).
    ///
    /// # Context: handler
    ///
    /// # Safety
    /// The interrupted code expects `rax` to change.
    pub unsafe fn set_rax(&self, value: u64) {
        // SAFETY: as in `greg`; the caller vouches for the register.
        unsafe { self.greg_at(libc::REG_RAX).write(value.cast_signed()) };
    }

    /// Returns the signal mask of the interrupted code.
    ///
    /// # Context: handler
    #[must_use]
    pub fn mask(&self) -> u64 {
        // SAFETY: as in `greg`; the kernel's mask is the first 8 bytes of `uc_sigmask`.
        unsafe { self.field::<u64>(offset_of!(libc::ucontext_t, uc_sigmask)).read() }
    }
}

/// Ends the process with SIGABRT, past any handler.
///
/// # Context: handler
pub fn abort() -> ! {
    loop {
        // SAFETY: the default disposition is no function.
        let _ = unsafe { set(libc::SIGABRT, &KernelSigaction::default()) };
        set_mask(0);
        raise(libc::SIGABRT);
    }
}
