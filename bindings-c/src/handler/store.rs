//! `softfault_store_operations`: a store of the program's, and what its callbacks may do with their pages.
//!
//! # Context: handler, or a filler for a store that is not handler-safe

use super::{Mark, PAGE, PAGES, look};
use crate::api::{Errno, HandlerStore, PageMut, PageRef, Store, StoreError};
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

/// A page, or several, that a softfault_store_operations read is to fill; good for the length of the call.
#[derive(Debug)]
pub struct softfault_page {
    mark: Mark,
    page: Cell<*mut c_void>,
}

/// Pages that a softfault_store_operations write is to take; good for the length of the call.
#[derive(Debug)]
pub struct softfault_pages {
    mark: Mark,
    pages: *const c_void,
}

/// read, dsync and write are called in the faulting thread, inside a signal handler; see softfault_store_operations.
pub const SOFTFAULT_STORE_HANDLER_SAFE: u32 = 0x1;
/// A handler-safe store touches arena memory in read or dsync, and so may fault.
pub const SOFTFAULT_STORE_TOUCHES_ARENAS: u32 = 0x2;
/// write must see bytes that nobody changes meanwhile (it checksums, compresses, encrypts): it gets a copy.
pub const SOFTFAULT_STORE_STABLE: u32 = 0x4;
/// write waits for a device: it is called by fillers, several at once, and never in a handler.
pub const SOFTFAULT_STORE_WRITE_BLOCKS: u32 = 0x8;
/// read does not give what write took before the next flush: such pages stay cached until then.
pub const SOFTFAULT_STORE_NO_REREAD: u32 = 0x10;
/// read and write move bytes between descriptors (softfault_page_fill_from() and its neighbours) rather than through memory:
/// they get the cache's own pages. Else they usually get a buffer without a descriptor, of up to 256 KiB, and the runtime
/// copies, which is faster for what goes through memory.
pub const SOFTFAULT_STORE_USES_DESCRIPTORS: u32 = 0x20;

/// Where an object's pages come from and go to. NULL means the default.
///
/// Functions return 0 or a negative errno: -ENODATA where the store ends before the object does, -EBADMSG for content that
/// failed its check (the page is poisoned, never shown), -ENOMEM, -EOPNOTSUPP, else an error of input or output.
///
/// They run on filler threads, where they may sleep, allocate and lock, but wait for nothing that a faulting thread may
/// hold, and touch no arena. With SOFTFAULT_STORE_HANDLER_SAFE they run in the faulting thread under the rules of
/// softfault_vm_operations. None may unwind: a C++ exception that leaves one ends the process. They may run in several
/// threads at once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_store_operations {
    /// sizeof(struct softfault_store_operations).
    pub size: usize,
    /// SOFTFAULT_STORE_* together.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Fills the len bytes at dst with the object's from pos on: whole pages, except at the object's end. What was there
    /// before is unspecified. page is for softfault_page_fill_from(). Must not be NULL.
    pub read: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            pos: u64,
            dst: *mut c_void,
            len: usize,
            page: *mut softfault_page,
        ) -> c_int,
    >,
    /// Takes the len bytes at src as the object's from pos on; not durable before flush. Other threads may store to them
    /// meanwhile (they are written again then), unless SOFTFAULT_STORE_STABLE. Default: -EOPNOTSUPP.
    pub write: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            pos: u64,
            src: *const c_void,
            len: usize,
            pages: *const softfault_pages,
        ) -> c_int,
    >,
    /// Makes durable what write, punch and set_len were given before the call. Default: nothing to do.
    pub flush: Option<unsafe extern "C" fn(ctx: *mut c_void) -> c_int>,
    /// Makes the range read as zeros. Default: -EOPNOTSUPP, upon which zeros are written.
    pub punch: Option<unsafe extern "C" fn(ctx: *mut c_void, pos: u64, len: u64) -> c_int>,
    /// The object's end moved. Default: nothing to do.
    pub set_len: Option<unsafe extern "C" fn(ctx: *mut c_void, len_bytes: u64) -> c_int>,
    /// Makes the blocks of a range durable before the first store to them (SOFTFAULT_OBJECT_DSYNC). Default: nothing to do.
    pub dsync: Option<unsafe extern "C" fn(ctx: *mut c_void, pos: u64, len: u64) -> c_int>,
    /// The object is gone: nothing is called with ctx any more. Called by whoever held it last.
    pub drop: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
    /// What reads are aligned to, in bytes: read is asked for whole blocks of as many, from a multiple of that on; only the
    /// last block is cut where the object ends. For content that is made by blocks: frames that are compressed or encrypted.
    /// A power of two, 4096 to 2 MiB; 0 is 4096. What is missing of a block of which some is cached costs a read of the
    /// whole, and a block that fails, fails for all pages of it that were asked for. Writes come by pages as before.
    pub read_align_bytes: u64,
}

/// A store of C functions; `O` is who calls `drop`.
#[derive(Debug)]
pub struct CStore<O> {
    pub(crate) ops: softfault_store_operations,
    pub(crate) ctx: *mut c_void,
    pub(crate) _owner: O,
}

// SAFETY: the context goes only to the program's functions, which promise to be called from any thread.
unsafe impl<O: Send> Send for CStore<O> {}
// SAFETY: as above, and from several at once.
unsafe impl<O: Sync> Sync for CStore<O> {}

/// Reads what a function of a store returned.
fn result(returned: c_int) -> Result<(), StoreError> {
    match returned {
        0 => Ok(()),
        -61 => Err(StoreError::Short),
        -74 => Err(StoreError::Corrupt),
        -12 => Err(StoreError::NoMemory),
        -95 => Err(StoreError::Unsupported),
        n if n < 0 && n > -4096 => Err(StoreError::Io(Errno(n.wrapping_neg()))),
        _ => Err(StoreError::Io(Errno::EIO)),
    }
}

fn number(error: StoreError) -> c_int {
    match error {
        StoreError::Short => -61,
        StoreError::Corrupt => -74,
        StoreError::NoMemory => -12,
        StoreError::Unsupported => -95,
        StoreError::Io(errno) => errno.0.wrapping_neg(),
    }
}

impl<O> CStore<O> {
    fn has(&self, flag: u32) -> bool {
        self.ops.flags & flag != 0
    }
}

impl<O: Send + Sync> Store for CStore<O> {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let Some(read) = self.ops.read else { return Err(StoreError::Unsupported) };
        let (dst, len) = (page.as_mut_ptr().cast::<c_void>(), page.len_bytes());
        let mut lent = softfault_page { mark: Mark::new(PAGE), page: Cell::new(core::ptr::from_mut(page).cast()) };
        // SAFETY: the program's function and its context; `len` writable bytes at `dst`, which are ours for the call.
        result(unsafe { read(self.ctx, pos_bytes, dst, len, &raw mut lent) })
    }
    fn dsync(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        let Some(dsync) = self.ops.dsync else { return Ok(()) };
        // SAFETY: the program's function and its context.
        result(unsafe { dsync(self.ctx, pos_bytes, len_bytes) })
    }
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        let Some(write) = self.ops.write else { return Err(StoreError::Unsupported) };
        let lent = softfault_pages { mark: Mark::new(PAGES), pages: core::ptr::from_ref(pages).cast() };
        // SAFETY: as in `dsync`; the bytes may be read for the length of the call.
        result(unsafe { write(self.ctx, pos_bytes, pages.as_ptr().cast(), pages.len_bytes(), &raw const lent) })
    }
    fn flush(&self) -> Result<(), StoreError> {
        let Some(flush) = self.ops.flush else { return Ok(()) };
        // SAFETY: as in `dsync`.
        result(unsafe { flush(self.ctx) })
    }
    fn punch(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        let Some(punch) = self.ops.punch else { return Err(StoreError::Unsupported) };
        // SAFETY: as in `dsync`.
        result(unsafe { punch(self.ctx, pos_bytes, len_bytes) })
    }
    fn set_len(&self, len_bytes: u64) -> Result<(), StoreError> {
        let Some(set_len) = self.ops.set_len else { return Ok(()) };
        // SAFETY: as in `dsync`.
        result(unsafe { set_len(self.ctx, len_bytes) })
    }
    fn is_stable(&self) -> bool {
        self.has(SOFTFAULT_STORE_STABLE)
    }
    fn read_align_bytes(&self) -> u64 {
        if self.ops.read_align_bytes == 0 { 4096 } else { self.ops.read_align_bytes }
    }
    fn uses_descriptors(&self) -> bool {
        self.has(SOFTFAULT_STORE_USES_DESCRIPTORS)
    }
    fn write_blocks(&self) -> bool {
        self.has(SOFTFAULT_STORE_WRITE_BLOCKS)
    }
    fn rereads_unflushed(&self) -> bool {
        !self.has(SOFTFAULT_STORE_NO_REREAD)
    }
}

// SAFETY: made a handler store only where the program says SOFTFAULT_STORE_HANDLER_SAFE, whose rules are these.
unsafe impl<O: Send + Sync> HandlerStore for CStore<O> {
    fn touches_arenas(&self) -> bool {
        self.has(SOFTFAULT_STORE_TOUCHES_ARENAS)
    }
}

/// Fills all of the page from fd at pos_bytes, inside the kernel where that can be (SOFTFAULT_STORE_USES_DESCRIPTORS): about
/// half the time of a read(2) into its bytes. Returns 0 or a negative errno, -ENODATA at the end of the file: what read is to return.
///
/// Context: filler, handler: in the read callback that got page.
///
/// # Safety
/// page is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_page_fill_from(page: *mut softfault_page, fd: c_int, pos_bytes: u64) -> c_int {
    // SAFETY: the caller's contract.
    let Some(lent) = (unsafe { look(page.cast_const(), |p| &p.mark, PAGE) }) else { return -22 };
    let inner = lent.page.replace(null_mut());
    if inner.is_null() {
        return -22;
    }
    // SAFETY: made by `read` of a borrow that lasts as long as our mark; null for everybody else until it is put back.
    let filled = unsafe { &mut *inner.cast::<PageMut<'_>>() }.fill_from(fd, pos_bytes);
    lent.page.set(inner);
    filled.map_or_else(number, |()| 0)
}

/// Writes descriptor and offset of the page's bytes, for stores that move data between descriptors; the descriptor stays
/// the library's, and is -1 where there is none: usually, without SOFTFAULT_STORE_USES_DESCRIPTORS. Returns 0, or -EINVAL.
///
/// Context: filler, handler: in the read callback that got page.
///
/// # Safety
/// page is what the callback got; fd and offset may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_page_fd(page: *mut softfault_page, fd: *mut c_int, offset: *mut u64) -> c_int {
    // SAFETY: the caller's contract.
    let Some(lent) = (unsafe { look(page.cast_const(), |p| &p.mark, PAGE) }) else { return -22 };
    let inner = lent.page.get();
    if inner.is_null() || fd.is_null() || offset.is_null() {
        return -22;
    }
    // SAFETY: as in `softfault_page_fill_from`.
    let (port, at) = unsafe { &*inner.cast::<PageMut<'_>>() }.fd_offset();
    // SAFETY: the caller's contract.
    unsafe { fd.write_unaligned(port) };
    // SAFETY: the caller's contract.
    unsafe { offset.write_unaligned(at) };
    0
}

/// Writes all of the pages to fd at pos_bytes. Returns 0 or a negative errno: what write is to return.
///
/// Context: filler, handler: in the write callback that got pages.
///
/// # Safety
/// pages is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_pages_write_to(pages: *const softfault_pages, fd: c_int, pos_bytes: u64) -> c_int {
    // SAFETY: the caller's contract.
    let Some(lent) = (unsafe { look(pages, |p| &p.mark, PAGES) }) else { return -22 };
    // SAFETY: made by `write` of a borrow that lasts as long as our mark.
    let pages = unsafe { &*lent.pages.cast::<PageRef<'_>>() };
    pages.write_to(fd, pos_bytes).map_or_else(number, |()| 0)
}

/// Writes descriptor and offset of the pages' bytes; -1: a copy, which has none (usually, without
/// SOFTFAULT_STORE_USES_DESCRIPTORS). Returns 0, or -EINVAL.
///
/// Context: filler, handler: in the write callback that got pages.
///
/// # Safety
/// pages is what the callback got; fd and offset may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_pages_fd(pages: *const softfault_pages, fd: *mut c_int, offset: *mut u64) -> c_int {
    // SAFETY: the caller's contract.
    let Some(lent) = (unsafe { look(pages, |p| &p.mark, PAGES) }) else { return -22 };
    if fd.is_null() || offset.is_null() {
        return -22;
    }
    // SAFETY: as in `softfault_pages_write_to`.
    let (port, at) = unsafe { &*lent.pages.cast::<PageRef<'_>>() }.fd_offset();
    // SAFETY: the caller's contract.
    unsafe { fd.write_unaligned(port) };
    // SAFETY: the caller's contract.
    unsafe { offset.write_unaligned(at) };
    0
}
