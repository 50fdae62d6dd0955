//! Buffers in huge pages between stores and the cache's pages. Linux: bounce buffers (`mm/bounce.c`, `swiotlb`), for devices
//! that cannot reach a page; here they could, but slowly.
//!
//! A page of the cache that is filled through the alias is cleared first, costs a fault, and leaves an entry in the page
//! table that is `dirty`: the punch takes it away with a flush of the other processors' TLBs, and the kernel gives no page
//! with such an entry a part in a common one. A copy by pwrite(2) has none of this. Of a page that is filled by a copy of
//! 4 KiB and punched: 8.6 us instead of 11.2, and 6.9 instead of 13.1 while another thread of the process runs. What is
//! written back is copied out likewise.
//!
//! A direct read into the cache's own pages first allocates, clears and maps each of them (a fault a page inside the read),
//! gives the device one segment a page, and leaves the alias mapped, to be unmapped again when the page is punched. A
//! buffer in one huge page is a single segment, mapped for good; the copy from there to the memfd needs no mapping and
//! clears nothing. The copy costs less than what it saves: 256 KiB of cold file took 4.9 us a page instead of 10.4, and
//! 3.1 us of processor time instead of 5.5 (two processors, virtio disk, Linux 6.18).
//!
//! The pool is mapped once a process, with the first store that needs it. A buffer belongs to who took its bit:
//! ```text
//! bit clear: anybody's --get(): CAS, Acquire--> bit set: one reader's --drop: Release--> clear
//! ```
//! Who finds none uses the cache's pages.
//!
//! # Context: handler

use crate::bits::Bits;
use crate::sys::fd::Descriptor;
use crate::sys::{Errno, file, mem};
use core::sync::atomic::{AtomicUsize, Ordering};
use softfault_mm::page::{EXTENT_SIZE, PAGE_SIZE};

/// Bytes of a buffer: more in one read gained nothing.
pub const BUFFER_BYTES: usize = 256 << 10;
const NR_BUFFERS: usize = 16;
/// Bytes of memory that the pool takes.
pub const POOL_BYTES: usize = NR_BUFFERS * BUFFER_BYTES;

/// The first buffer's address; 0: no pool.
static BASE: AtomicUsize = AtomicUsize::new(0);
/// One bit a buffer: in use.
static USED: Bits = Bits::new();

/// A buffer, until it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    nr: usize,
    base: usize,
}

/// Maps the pool, once a process. Who cannot have it reads without it.
///
/// # Context: control plane
pub fn init() {
    if BASE.load(Ordering::Relaxed) != 0 {
        return;
    }
    let Ok(base) = map() else { return };
    // Release pairs with `get`: who sees the address may use what is mapped there.
    if BASE.compare_exchange(0, base, Ordering::Release, Ordering::Relaxed).is_err() {
        // SAFETY: another thread's pool was first; nobody has seen this one.
        let _ = unsafe { mem::munmap(base, POOL_BYTES) };
    }
}

/// Returns the bytes of memory that the buffers take; 0: no store has needed them yet.
///
/// # Context: control plane
#[must_use]
pub fn pool_bytes() -> u64 {
    if BASE.load(Ordering::Relaxed) == 0 { 0 } else { POOL_BYTES as u64 }
}

/// Maps the buffers, resident, in huge pages where the system has any to give, and in small ones elsewhere.
fn map() -> Result<usize, Errno> {
    let base = mem::reserve(POOL_BYTES, EXTENT_SIZE)?;
    let open = || {
        // SAFETY: the range reserved above, which nobody has seen; likewise below.
        unsafe { mem::mprotect(base, POOL_BYTES, mem::PROT_READ | mem::PROT_WRITE) }?;
        // SAFETY: as above. A forked child has no use for it.
        unsafe { mem::madvise(base, POOL_BYTES, mem::MADV_DONTFORK) }?;
        // SAFETY: as above. Nor a dump, as of the cache.
        unsafe { mem::madvise(base, POOL_BYTES, mem::MADV_DONTDUMP) }?;
        // SAFETY: as above. Not every kernel has huge pages.
        let _ = unsafe { mem::madvise(base, POOL_BYTES, mem::MADV_HUGEPAGE) };
        // SAFETY: as above.
        unsafe { mem::madvise(base, POOL_BYTES, mem::MADV_POPULATE_WRITE) }
    };
    open().map(|()| base).inspect_err(|_| {
        // SAFETY: as above.
        let _ = unsafe { mem::munmap(base, POOL_BYTES) };
    })
}

/// Takes a buffer; `None`: all are in use, there is no pool, or this is a forked child.
pub(super) fn get() -> Option<Buffer> {
    // Acquire pairs with `init`.
    let base = BASE.load(Ordering::Acquire);
    if base == 0 || crate::child::in_child() {
        return None;
    }
    USED.take(NR_BUFFERS).map(|nr| Buffer { nr, base })
}

/// Returns whether buffers may be copied to the memfd: past a limit on the size of files the kernel would send SIGXFSZ. A
/// store to its pages through a mapping is no write.
pub(super) fn may_copy() -> bool {
    file::rlimit_fsize() == u64::MAX
}

/// Copies bytes to pages of the cache that are the caller's to fill; `EBADF` as [`Buffer::copy_to`].
///
/// # Safety
/// `len_bytes` bytes may be read at `address`.
pub(super) unsafe fn copy_to(
    address: usize,
    len_bytes: usize,
    (memfd, fd_offset): (Descriptor, u64),
) -> Result<(), Errno> {
    let fd = memfd.check()?;
    let mut done = 0;
    while done < len_bytes {
        // SAFETY: the caller's contract, `done` bytes of them are copied; the pages are the caller's.
        match unsafe { file::pwrite(fd, address + done, len_bytes - done, fd_offset + done as u64) }? {
            0 => return Err(Errno::EIO),
            n => done += n,
        }
    }
    memfd.check().map(drop)
}

impl Buffer {
    /// Returns the address of its [`BUFFER_BYTES`] bytes, a multiple of the page size.
    pub(super) fn address(&self) -> usize {
        self.base + self.nr * BUFFER_BYTES
    }

    /// Copies its first `len_bytes` bytes, at most all, to pages of the cache that are the caller's to fill.
    ///
    /// `EBADF`: the program has closed the descriptor, now or meanwhile.
    pub(super) fn copy_to(&self, len_bytes: usize, to: (Descriptor, u64)) -> Result<(), Errno> {
        // SAFETY: the buffer's bytes, which are the caller's.
        unsafe { copy_to(self.address(), len_bytes, to) }
    }

    /// Copies pages of the cache, `len_bytes` bytes, at most all, to its beginning.
    /// `EBADF`, as above: what was copied is another file's.
    pub(super) fn copy_from(&self, len_bytes: usize, (memfd, fd_offset): (Descriptor, u64)) -> Result<(), Errno> {
        let fd = memfd.number();
        let mut done = 0;
        while done < len_bytes {
            // SAFETY: `len_bytes` bytes of the buffer, which is the caller's, of which `done` are filled.
            match unsafe { file::pread(fd, self.address() + done, len_bytes - done, fd_offset + done as u64) } {
                // The end of the program's file, or a socket of its own: the look below says so.
                Ok(0) | Err(_) => break,
                Ok(n) => done += n,
            }
        }
        memfd.check()?;
        if done < len_bytes { Err(Errno::EIO) } else { Ok(()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        USED.put(self.nr);
    }
}

const _: () = assert!(BUFFER_BYTES.is_multiple_of(PAGE_SIZE) && NR_BUFFERS <= 64);

#[cfg(test)]
mod tests {
    use super::{BUFFER_BYTES, NR_BUFFERS, get, init};

    #[test]
    fn each_buffer_is_one_readers() {
        init();
        let mut all: [_; NR_BUFFERS] = core::array::from_fn(|_| get());
        let mut last = 0;
        for at in all.each_ref().map(|b| b.as_ref().map_or(0, super::Buffer::address)) {
            assert!(at >= last, "a buffer is missing, or shares bytes with another: {at:#x} after {last:#x}");
            last = at + BUFFER_BYTES;
        }
        assert!(get().is_none(), "none is left");
        let third = all.get_mut(3).and_then(Option::take);
        drop(third);
        assert!(get().is_some_and(|b| b.nr == 3), "what was given back is had again");
    }
}
