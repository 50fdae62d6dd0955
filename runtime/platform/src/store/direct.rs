//! A file's two descriptors: one through the kernel's page cache, one past it.
//!
//! Direct I/O moves whole pages between the device and the cache's own pages, so that nothing is cached twice. What
//! it cannot move goes through the buffered descriptor: the last, partial page; memory or positions that are not
//! aligned; everything, from the first `EINVAL` or `EOPNOTSUPP` on. The kernel keeps the two coherent: a direct read
//! writes back what is dirty in the range first, a direct write drops what is cached there.
//!
//! A direct write is of a copy. Threads may store to the cache's pages meanwhile, and a device that reads them while they
//! change takes a block that was never in memory: where the file system (btrfs), the array (RAID) or the device (T10 PI)
//! computes something over the block first, the two do not agree, and the block cannot be read again. Linux makes writers
//! wait (`folio_wait_stable`); ours do not fault, and so they cannot. Where no buffer is free the pages go through the
//! kernel's cache, which copies them too.
//!
//! # Context: handler, as far as a store that waits for a device may be called there; opening: control plane

use super::bounce::{self, BUFFER_BYTES, Buffer};
use super::{PageMut, PageRef, StoreError};
use crate::sys::fd::Descriptor;
use crate::sys::{Errno, file, mem};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use softfault_mm::page::{PAGE_MASK, PAGE_SIZE};

/// Logical blocks are at most a page; memory must be aligned to this.
const DMA_ALIGN: usize = 512;

static FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// Returns how many files of the process were to be read directly and are read through the kernel's cache instead.
///
/// # Context: handler
#[must_use]
pub fn fallbacks() -> u64 {
    FALLBACKS.load(Ordering::Relaxed)
}

/// An open file, read and written by position. Owns its descriptors.
#[derive(Debug)]
pub struct DirectFile {
    fd: Descriptor,
    direct_fd: Descriptor,
    is_direct: AtomicBool,
    close: fn(i32),
}

impl DirectFile {
    /// Takes over `fd`; everything goes through the kernel's page cache.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn buffered(fd: i32) -> Self {
        Self::new(fd, Descriptor::NONE)
    }

    fn new(fd: i32, direct_fd: Descriptor) -> Self {
        let is_direct = AtomicBool::new(direct_fd.is_some());
        Self { fd: Descriptor::new(fd), direct_fd, is_direct, close: file::close }
    }

    /// Takes over `fd` and opens it again for direct I/O; buffered, and counted in [`fallbacks`], where that cannot be had.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn direct(fd: i32, write: bool) -> Self {
        match file::reopen(fd, write, true) {
            Ok(direct_fd) => {
                bounce::init();
                Self::new(fd, Descriptor::new(direct_fd))
            }
            Err(_) => {
                FALLBACKS.fetch_add(1, Ordering::Relaxed);
                Self::buffered(fd)
            }
        }
    }

    /// Has `close` called with each descriptor in the end, instead of close(2).
    ///
    /// # Context: control plane
    #[must_use]
    pub fn closed_by(mut self, close: fn(i32)) -> Self {
        self.close = close;
        self
    }
    /// Returns the numbers of its descriptors; -1: none.
    ///
    /// # Context: handler
    #[must_use]
    pub fn numbers(&self) -> [i32; 2] {
        [self.fd.number(), self.direct_fd.number()]
    }
    /// Returns whether whole pages go past the kernel's cache.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct.load(Ordering::Relaxed)
    }
    /// Returns the buffered descriptor.
    ///
    /// # Context: handler
    #[must_use]
    pub fn fd(&self) -> Descriptor {
        self.fd
    }

    /// Returns how many of `len_bytes` bytes may go directly: whole pages.
    fn direct_len(&self, ptr: *const u8, len_bytes: usize, pos_bytes: u64) -> usize {
        let aligned = pos_bytes.is_multiple_of(PAGE_SIZE as u64) && (ptr as usize).is_multiple_of(DMA_ALIGN);
        if self.is_direct() && aligned { len_bytes & !PAGE_MASK } else { 0 }
    }

    /// Calls `io(done)` until `len_bytes` are done; returns how many are, whole pages, if the rest must go buffered.
    fn transfer(&self, len_bytes: usize, io: &dyn Fn(usize) -> Result<usize, Errno>) -> Result<usize, StoreError> {
        let mut done = 0;
        while done < len_bytes {
            match io(done) {
                Ok(n) => {
                    done += n;
                    // The end of the file, or of the disk: the buffered call says which.
                    if n == 0 || done & PAGE_MASK != 0 {
                        break;
                    }
                }
                Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                    if self.is_direct.swap(false, Ordering::Relaxed) {
                        FALLBACKS.fetch_add(1, Ordering::Relaxed);
                    }
                    break;
                }
                Err(e) => return Err(StoreError::Io(e)),
            }
        }
        Ok(done.min(len_bytes) & !PAGE_MASK)
    }

    /// Reads up to `len_bytes` bytes at `pos_bytes` into the buffer.
    fn read_into(&self, buffer: &Buffer, pos_bytes: u64, len_bytes: usize) -> Result<usize, Errno> {
        // SAFETY: at most `BUFFER_BYTES` bytes of a buffer that is ours until it is dropped.
        unsafe { file::pread(self.direct_fd.number(), buffer.address(), len_bytes.min(BUFFER_BYTES), pos_bytes) }
    }

    /// Fills all of `page` from `pos_bytes` on.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`StoreError::Short`] at the end of the file, [`StoreError::Io`].
    pub fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let (ptr, memory) = (page.as_mut_ptr(), page.memory());
        let whole = self.direct_len(ptr, page.len_bytes(), pos_bytes);
        let buffer = if is_worth_copying(whole, memory.0.is_some()) { bounce::get() } else { None };
        let done = self.transfer(whole, &|done| {
            let (at, left) = (pos_bytes + done as u64, whole - done);
            if let Some(buffer) = &buffer {
                let read = self.read_into(buffer, at, left.min(BUFFER_BYTES))?;
                let copied = match memory.0.is_some() {
                    true => buffer.copy_to(read, (memory.0, memory.1 + done as u64)),
                    false => Err(Errno::EBADF),
                };
                if copied == Err(Errno::EBADF) {
                    // SAFETY: `read` bytes of a buffer of ours, to the page's own bytes behind those that are filled.
                    unsafe { mem::copy_racy(ptr.wrapping_add(done), buffer.address() as *const u8, read) };
                    return Ok(read);
                }
                return copied.map(|()| read);
            }
            // SAFETY: `whole` bytes of the page's own exclusive bytes, of which `done` are filled.
            unsafe { file::pread(self.direct_fd.number(), ptr as usize + done, left, at) }
        })?;
        drop(buffer);
        if done > 0 {
            self.direct_fd.check().map_err(StoreError::Io)?;
        }
        if done == page.len_bytes() {
            return Ok(());
        }
        let filled = page.part(done, usize::MAX).fill_from(self.fd.number(), pos_bytes + done as u64);
        // Before the outcome: another file's end, or its error, is not ours.
        self.fd.check().map_err(StoreError::Io)?;
        filled
    }

    /// Writes all of `pages` at `pos_bytes`.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`StoreError::Io`]; `EBADF`: the program has closed the file; `EFBIG` past `RLIMIT_FSIZE`, where the kernel would send
    /// `SIGXFSZ`.
    pub fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        self.fd.check().map_err(StoreError::Io)?;
        self.write_known(pos_bytes, pages)
    }

    /// The same, of whom has just looked what the buffered descriptor names.
    pub(super) fn write_known(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        if file::rlimit_fsize() < pos_bytes.saturating_add(pages.len_bytes() as u64) {
            return Err(StoreError::Io(Errno::EFBIG));
        }
        let whole = self.direct_len(pages.as_ptr(), pages.len_bytes(), pos_bytes);
        // What has no descriptor is a copy already.
        let is_copy = !pages.memory().0.is_some();
        let buffer = if whole > 0 && !is_copy { bounce::get() } else { None };
        let whole = if is_copy || buffer.is_some() { whole } else { 0 };
        let direct_fd = if whole > 0 { self.direct_fd.check_writing().map_err(StoreError::Io)? } else { -1 };
        let done = self.transfer(whole, &|done| {
            let (at, left) = (pos_bytes + done as u64, whole - done);
            let part = pages.part(done, left.min(BUFFER_BYTES));
            let (src, len) = match &buffer {
                Some(buffer) => (copy_of(buffer, &part)?, part.len_bytes()),
                None => (pages.as_ptr() as usize + done, left),
            };
            // SAFETY: `len` readable bytes that nobody else stores to.
            unsafe { file::pwrite(direct_fd, src, len, at) }
        })?;
        drop(buffer);
        if done == pages.len_bytes() {
            return Ok(());
        }
        let fd = self.fd.check_flags().map_err(StoreError::Io)?;
        pages.part(done, usize::MAX).write_within_limit(fd, pos_bytes + done as u64)
    }
}

/// Copies pages of the cache, at most a buffer's length, to the buffer; returns its address.
fn copy_of(buffer: &Buffer, pages: &PageRef<'_>) -> Result<usize, Errno> {
    match buffer.copy_from(pages.len_bytes(), pages.memory()) {
        // The program has closed the memfd: the alias is left.
        // SAFETY: the pages are readable for as long as they are borrowed; the buffer is ours, and as long.
        Err(Errno::EBADF) => unsafe { mem::copy_racy(buffer.address() as *mut u8, pages.as_ptr(), pages.len_bytes()) },
        r => r?,
    }
    Ok(buffer.address())
}

/// Returns whether a read of `whole_bytes` goes through a buffer: into the memfd always, since it saves a fault a page; into
/// memory that is mapped already where it makes fewer segments.
fn is_worth_copying(whole_bytes: usize, into_memfd: bool) -> bool {
    if !into_memfd {
        return whole_bytes > PAGE_SIZE;
    }
    whole_bytes > 0 && bounce::may_copy()
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        for fd in [self.direct_fd, self.fd] {
            // Not what is the program's by now.
            if fd.is_some() && fd.check().is_ok() {
                (self.close)(fd.number());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::os::fd::IntoRawFd;

    /// The pages' own address is closed to everybody: who has the device read from there gets EFAULT, and who copies the
    /// bytes by their descriptor does not notice.
    #[test]
    fn the_device_reads_a_copy_of_the_caches_pages() -> std::io::Result<()> {
        let os = |e: Errno| std::io::Error::from_raw_os_error(e.0);
        const LEN: usize = BUFFER_BYTES + 3 * PAGE_SIZE;
        let path = std::env::temp_dir().join(std::format!("softfault-test-direct-{}", std::process::id()));
        let mut options = std::fs::OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(true).open(&path)?;
        let file = DirectFile::direct(opened.into_raw_fd(), true);
        if !file.is_direct() {
            std::println!("skipped: {} has no direct I/O", path.display());
            let _ = std::fs::remove_file(&path);
            return Ok(());
        }
        let bytes: std::vec::Vec<u8> = (0..LEN).map(|i| (i / 7) as u8).collect();
        let memory = mem::memfd_create(c"softfault-test-direct").map_err(os)?;
        // SAFETY: a whole vector, into a memfd of ours.
        assert_eq!(unsafe { file::pwrite(memory, bytes.as_ptr() as usize, LEN, 0) }, Ok(LEN));
        let closed = mem::reserve(LEN, PAGE_SIZE).map_err(os)?;
        // SAFETY: not readable, which is the point: nobody but the kernel is to be told the address.
        let pages = unsafe { PageRef::new(closed as *const u8, LEN, Descriptor::new(memory), 0) };
        assert_eq!(file.write(0, &pages), Ok(()));
        assert!(file.is_direct(), "it went past the kernel's cache");
        assert_eq!(std::fs::read(&path)?, bytes);
        // SAFETY: reserved above.
        unsafe { mem::munmap(closed, LEN) }.map_err(os)?;
        file::close(memory);
        let _ = std::fs::remove_file(&path);
        Ok(())
    }
}
