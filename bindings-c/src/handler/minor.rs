//! `softfault_minor_operations`: a delegate of the program's, and what it may do with a page.
//!
//! # Context: handler, or a filler for a delegate that is not handler-safe

use super::{MINOR, Mark, look};
use crate::api::{MinorDelegate, MinorError, MinorFault, MinorVerdict};
use core::ffi::{c_int, c_void};

/// The first touch of a page that a softfault_minor_operations callback is told of; good for the length of the call.
#[derive(Debug)]
pub struct softfault_minor_fault {
    mark: Mark,
    fault: *const c_void,
}

/// The delegate runs in the faulting thread, inside a signal handler, under the rules of softfault_vm_operations.
pub const SOFTFAULT_MINOR_HANDLER_SAFE: u32 = 0x1;

/// Map the page; the delegate is not asked again.
pub const SOFTFAULT_MINOR_CONTINUE: u32 = 0;
/// Never map it: each touch is SIGBUS.
pub const SOFTFAULT_MINOR_REFUSE: u32 = 1;
/// Not now: the access is made again, and the delegate asked again.
pub const SOFTFAULT_MINOR_DELAY: u32 = 2;

/// Who is told of the first touch of each cached page of a range.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_minor_operations {
    /// sizeof(struct softfault_minor_operations).
    pub size: usize,
    /// SOFTFAULT_MINOR_HANDLER_SAFE, or 0: called on filler threads.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Decides about one page: SOFTFAULT_MINOR_CONTINUE, _REFUSE or _DELAY. May look at it and rewrite it. Must not be
    /// NULL, and must not unwind. Runs in several threads at once, but once for each page.
    pub minor_fault: Option<unsafe extern "C" fn(ctx: *mut c_void, fault: *const softfault_minor_fault) -> u32>,
    /// The range is unmapped, wholly or in part: nothing is called with ctx any more once its last part is.
    pub drop: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
}

/// A delegate of C functions; `O` is who calls `drop`.
#[derive(Debug)]
pub struct CMinor<O> {
    pub(crate) ops: softfault_minor_operations,
    pub(crate) ctx: *mut c_void,
    pub(crate) _owner: O,
}

// SAFETY: the context goes only to the program's functions, which promise to be called from any thread.
unsafe impl<O: Send> Send for CMinor<O> {}
// SAFETY: as above, and from several at once.
unsafe impl<O: Sync> Sync for CMinor<O> {}

impl<O: Send + Sync> MinorDelegate for CMinor<O> {
    fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
        let Some(decide) = self.ops.minor_fault else { return MinorVerdict::Continue };
        let lent = softfault_minor_fault { mark: Mark::new(MINOR), fault: core::ptr::from_ref(fault).cast() };
        // SAFETY: the program's function and its context; the fault is good for the call.
        match unsafe { decide(self.ctx, &raw const lent) } {
            SOFTFAULT_MINOR_CONTINUE => MinorVerdict::Continue,
            SOFTFAULT_MINOR_DELAY => MinorVerdict::Delay,
            _ => MinorVerdict::Refuse,
        }
    }
}

/// # Safety
/// As `look`.
unsafe fn minor_of<'a>(fault: *const softfault_minor_fault) -> Option<&'a MinorFault<'a>> {
    // SAFETY: the caller's contract.
    let lent = unsafe { look(fault, |f| &f.mark, MINOR) }?;
    // SAFETY: made by `minor_fault` of a borrow that lasts as long as our mark.
    Some(unsafe { &*lent.fault.cast::<MinorFault<'_>>() })
}

/// Returns the page's number in its object; 0 for NULL.
///
/// Context: filler, handler: in the callback that got fault.
///
/// # Safety
/// fault is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_minor_fault_pgoff(fault: *const softfault_minor_fault) -> u64 {
    // SAFETY: the caller's contract.
    unsafe { minor_of(fault) }.map_or(0, MinorFault::pgoff)
}

/// Returns the touched page's address in the arena; 0 for NULL.
///
/// Context: filler, handler: in the callback that got fault.
///
/// # Safety
/// fault is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_minor_fault_address(fault: *const softfault_minor_fault) -> usize {
    // SAFETY: the caller's contract.
    unsafe { minor_of(fault) }.map_or(0, MinorFault::address)
}

/// Returns whether the touch is a store; false for NULL.
///
/// Context: filler, handler: in the callback that got fault.
///
/// # Safety
/// fault is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_minor_fault_is_write(fault: *const softfault_minor_fault) -> bool {
    // SAFETY: the caller's contract.
    unsafe { minor_of(fault) }.is_some_and(MinorFault::is_write)
}

fn minor_number(error: MinorError) -> c_int {
    match error {
        MinorError::Busy => -16,
        MinorError::Gone => -2,
        MinorError::Range => -22,
    }
}

/// Copies len bytes from offset in the page on to dst. Returns 0; -EINVAL if that leaves the page; -ENOENT if it has left
/// the cache meanwhile. softfault_last_error() says nothing of it.
///
/// Context: filler, handler: in the callback that got fault.
///
/// # Safety
/// fault is what the callback got; dst has room for len bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_minor_fault_read(
    fault: *const softfault_minor_fault,
    offset: usize,
    dst: *mut c_void,
    len: usize,
) -> c_int {
    // SAFETY: the caller's contract.
    let Some(fault) = (unsafe { minor_of(fault) }) else { return -22 };
    if dst.is_null() || len > 4096 {
        return -22;
    }
    // SAFETY: the caller's contract.
    let dst = unsafe { core::slice::from_raw_parts_mut(dst.cast::<u8>(), len) };
    fault.read(offset, dst).map_or_else(minor_number, |()| 0)
}

/// Lends the page's bytes to rewrite for rewriting; it is dirty afterwards. Returns 0; -EBUSY unless the object is mapped
/// this once and nobody has pinned the page; -ENOENT if it has left the cache meanwhile; -EINVAL.
///
/// Context: filler, handler: in the callback that got fault. rewrite runs within the call, under the same rules.
///
/// # Safety
/// fault is what the callback got. rewrite may be called with ctx and the len writable bytes at page, and does not unwind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_minor_fault_rewrite(
    fault: *const softfault_minor_fault,
    rewrite: Option<unsafe extern "C" fn(ctx: *mut c_void, page: *mut c_void, len: usize)>,
    ctx: *mut c_void,
) -> c_int {
    // SAFETY: the caller's contract.
    let (Some(fault), Some(rewrite)) = (unsafe { minor_of(fault) }, rewrite) else { return -22 };
    let rewritten = fault.rewrite(&mut |page| {
        // SAFETY: the caller's contract; the bytes are exclusively ours for the length of the call.
        unsafe { rewrite(ctx, page.as_mut_ptr().cast(), page.len()) };
    });
    rewritten.map_or_else(minor_number, |()| 0)
}
