//! Random numbers from the kernel: getrandom(2).
//!
//! # Context: control plane

use super::syscall::{Errno, syscall6};

/// Fills `out` with random bits.
///
/// # Context: control plane: it may wait for the system's first entropy
///
/// # Errors
/// `ENOSYS`.
pub fn fill(out: &mut [u64]) -> Result<(), Errno> {
    for word in out {
        let at = core::ptr::from_mut(word) as usize;
        loop {
            // SAFETY: writes at most 8 bytes of a word that is exclusively borrowed.
            match unsafe { syscall6(libc::SYS_getrandom, [at, size_of::<u64>(), 0, 0, 0, 0]) } {
                Err(Errno::EINTR) => {}
                r => break r.map(drop)?,
            }
        }
    }
    Ok(())
}
