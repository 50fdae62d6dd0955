//! The end of the process: atexit(3).
//!
//! # Context: control plane

use super::syscall::Errno;

/// Has `f` called when the process ends by exit(3) or by the return of `main`, and when the library that this code is linked
/// into is closed for good.
///
/// # Context: control plane
///
/// # Errors
/// `ENOMEM`.
pub fn at_exit(f: extern "C" fn()) -> Result<(), Errno> {
    // SAFETY: a function that takes nothing and stays for as long as the code does: the C library forgets it with the
    // library that it is in.
    if unsafe { libc::atexit(f) } == 0 { Ok(()) } else { Err(Errno::ENOMEM) }
}
