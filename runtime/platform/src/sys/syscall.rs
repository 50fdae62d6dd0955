//! The `syscall` instruction.

use core::arch::asm;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("softfault supports Linux on x86_64 only: 4 KiB pages, 2 MiB extents, x86 signal frames");

pub use softfault_mm::errno::Errno;

/// Makes the system call `nr` with six arguments; unused ones are 0.
///
/// # Context: handler
///
/// # Errors
/// The kernel's error number, when the result lies in `-4095..0`.
///
/// # Safety
/// The caller guarantees whatever the system call itself demands of its arguments: that memory it writes belongs to
/// the caller and is not borrowed, and that mappings it changes are not in use by safe code.
#[inline(always)]
pub unsafe fn syscall6(nr: libc::c_long, args: [usize; 6]) -> Result<usize, Errno> {
    #[cfg(debug_assertions)]
    if let Some(errno) = super::inject::error_of(nr, &args) {
        return Err(errno);
    }
    let ret: isize;
    let [a, b, c, d, e, f] = args;
    // SAFETY: the x86-64 system-call convention: number in rax, arguments in rdi, rsi, rdx, r10, r8, r9; rcx and r11
    // are clobbered; what the call does to memory is the caller's contract. See syscall(2).
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr as isize => ret,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    if (-4095..0).contains(&ret) {
        #[expect(clippy::cast_possible_truncation, reason = "the range was checked: -4095..0")]
        return Err(Errno(-ret as i32));
    }
    Ok(ret.cast_unsigned())
}
