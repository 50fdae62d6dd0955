//! The `syscall` instruction and the error number it returns.

use core::arch::asm;
use core::fmt;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("softfault supports Linux on x86_64 only: 4 KiB pages, 2 MiB extents, x86 signal frames");

/// An error number as the kernel returned it (positive; `ENOENT` is 2).
///
/// Source: errno(3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Errno = Errno(libc::EPERM);
    /// No such range, or range not registered.
    pub const ENOENT: Errno = Errno(libc::ENOENT);
    /// Interrupted by a signal.
    pub const EINTR: Errno = Errno(libc::EINTR);
    /// Input/output error.
    pub const EIO: Errno = Errno(libc::EIO);
    /// Try again; for userfaultfd ioctls: partly done.
    pub const EAGAIN: Errno = Errno(libc::EAGAIN);
    /// Out of memory or of mappings.
    pub const ENOMEM: Errno = Errno(libc::ENOMEM);
    /// In use.
    pub const EBUSY: Errno = Errno(libc::EBUSY);
    /// Bad address.
    pub const EFAULT: Errno = Errno(libc::EFAULT);
    /// Already there.
    pub const EEXIST: Errno = Errno(libc::EEXIST);
    /// Invalid argument.
    pub const EINVAL: Errno = Errno(libc::EINVAL);
    /// No space on the device.
    pub const ENOSPC: Errno = Errno(libc::ENOSPC);
    /// Too large a file.
    pub const EFBIG: Errno = Errno(libc::EFBIG);
    /// Not supported.
    pub const EOPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);
    /// No such system call.
    pub const ENOSYS: Errno = Errno(libc::ENOSYS);
    /// Bad file descriptor.
    pub const EBADF: Errno = Errno(libc::EBADF);
    /// No descriptor left.
    pub const EMFILE: Errno = Errno(libc::EMFILE);
    /// Not a descriptor for this request.
    pub const ENOTTY: Errno = Errno(libc::ENOTTY);
    /// No such process.
    pub const ESRCH: Errno = Errno(libc::ESRCH);
    /// Timed out.
    pub const ETIMEDOUT: Errno = Errno(libc::ETIMEDOUT);
    /// Bad message: stored data failed its check.
    pub const EBADMSG: Errno = Errno(libc::EBADMSG);

    /// Returns the number's symbolic name, or `"errno"` for the rarer ones.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EPERM => "EPERM",
            Self::ENOENT => "ENOENT",
            Self::EINTR => "EINTR",
            Self::EIO => "EIO",
            Self::EAGAIN => "EAGAIN",
            Self::ENOMEM => "ENOMEM",
            Self::EBUSY => "EBUSY",
            Self::EFAULT => "EFAULT",
            Self::EEXIST => "EEXIST",
            Self::EINVAL => "EINVAL",
            Self::ENOSPC => "ENOSPC",
            Self::EFBIG => "EFBIG",
            Self::EOPNOTSUPP => "EOPNOTSUPP",
            Self::ENOSYS => "ENOSYS",
            Self::EBADF => "EBADF",
            Self::EMFILE => "EMFILE",
            Self::ENOTTY => "ENOTTY",
            Self::ESRCH => "ESRCH",
            Self::ETIMEDOUT => "ETIMEDOUT",
            Self::EBADMSG => "EBADMSG",
            _ => "errno",
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

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
