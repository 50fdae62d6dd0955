//! What monitor threads share: how they wait for the next page-fault message and how they take it.
//!
//! As handlers on the crate `userfaultfd` are written: poll, read one 32-byte message. The calls are raw, which is a
//! little kinder to them than the crate would be.

use crate::{Context, PAGE, Result};
use softfault_platform::sys::uffd::{Uffd, bits};
use softfault_platform::sys::{Errno, file};

/// How a monitor waits for its next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// In poll(2).
    Poll,
    /// By reading again.
    Spin,
}

/// A page fault that waits for its monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The page's address.
    pub page: usize,
    /// It is mapped, but protected against the store.
    pub protected: bool,
}

/// Waits for messages; `Spin` returns at once.
///
/// # Errors
/// The kernel's; see poll(2).
pub fn wait_for(uffd: &Uffd, wait: Wait) -> Result<()> {
    if wait == Wait::Poll {
        match file::poll_in([uffd.fd(), -1], -1) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
    }
    Ok(())
}

/// Takes the next page fault, if there is one.
///
/// # Errors
/// The kernel's.
pub fn next_fault(uffd: &Uffd, wait: Wait) -> Result<Option<Fault>> {
    wait_for(uffd, wait)?;
    // `struct uffd_msg`: flags and address of a page fault are the second and third word.
    let mut message = [0u8; 32];
    match file::read(uffd.fd(), &mut message) {
        Ok(_) => {}
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno).context("reading a message"),
    }
    let [_, flags, addr, _] = message.as_chunks::<8>().0 else { return Ok(None) };
    if message[0] != bits::EVENT_PAGEFAULT {
        return Ok(None);
    }
    let protected = u64::from_ne_bytes(*flags) & bits::PAGEFAULT_FLAG_WP != 0;
    Ok(Some(Fault { page: usize::from_ne_bytes(*addr) & !(PAGE - 1), protected }))
}
