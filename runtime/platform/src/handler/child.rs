//! Are we a forked child? A page that the kernel wipes in children tells.
//!
//! A child inherits our handlers and our userfaultfd descriptors, but not the arenas (`MADV_DONTFORK`). Its ioctls
//! would act on the *parent's* memory: a CONTINUE made there installed the page in the parent while the child trapped
//! for ever. So the handler looks here first and makes no ioctl in a child.
//!
//! # Context: handler

use crate::sys::{Errno, mem};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub(crate) static PAGE: AtomicUsize = AtomicUsize::new(0);
pub(crate) const ALIVE: u64 = 0x5f0f_7fa0_17c0_ffee;

/// Makes the page, once a process.
///
/// # Context: control plane, under the caller's lock
///
/// # Errors
/// The kernel's, if the page cannot be had.
pub fn init() -> Result<(), Errno> {
    if PAGE.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    let page = mem::map_zeroed(4096)?;
    // SAFETY: the page mapped above, private and unshared.
    if let Err(e) = unsafe { mem::madvise(page, 4096, mem::MADV_WIPEONFORK) } {
        // SAFETY: as above; nobody has seen it.
        let _ = unsafe { mem::munmap(page, 4096) };
        return Err(e);
    }
    word(page).store(ALIVE, Ordering::Relaxed);
    // Release pairs with `in_child`: who sees the page sees the word in it.
    PAGE.store(page, Ordering::Release);
    Ok(())
}

fn word(page: usize) -> &'static AtomicU64 {
    // SAFETY: `page` is the page that `init` mapped; it is never unmapped, is aligned, and holds only this atomic.
    unsafe { &*(page as *const AtomicU64) }
}

/// Returns whether this process is a forked child of the one that made the page.
///
/// # Context: handler
#[inline]
#[must_use]
pub fn in_child() -> bool {
    // Acquire pairs with `child::init`.
    let page = PAGE.load(Ordering::Acquire);
    page != 0 && word(page).load(Ordering::Relaxed) != ALIVE
}
