//! A file's two descriptors: one through the kernel's page cache, one past it.
//!
//! Direct I/O moves whole pages between the device and the cache's own pages, so that nothing is cached twice. What
//! it cannot move goes through the buffered descriptor: the last, partial page; memory or positions that are not
//! aligned; everything, from the first `EINVAL` or `EOPNOTSUPP` on. The kernel keeps the two coherent: a direct read
//! writes back what is dirty in the range first, a direct write drops what is cached there.

use super::bounce::{self, BUFFER_BYTES, Buffer};
use super::{PageMut, PageRef, StoreError};
use crate::sys::{Errno, file, mem};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use softfault_mm::page::{PAGE_MASK, PAGE_SIZE};

/// Logical blocks are at most a page; memory must be aligned to this.
const DMA_ALIGN: usize = 512;

static FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// Returns how many files of the process were to be read directly and are read through the kernel's cache instead.
#[must_use]
pub fn fallbacks() -> u64 {
    FALLBACKS.load(Ordering::Relaxed)
}

/// An open file, read and written by position. Owns its descriptors.
#[derive(Debug)]
pub struct DirectFile {
    fd: i32,
    /// -1: none.
    direct_fd: i32,
    is_direct: AtomicBool,
}

impl DirectFile {
    /// Takes over `fd`; everything goes through the kernel's page cache.
    #[must_use]
    pub fn buffered(fd: i32) -> Self {
        Self { fd, direct_fd: -1, is_direct: AtomicBool::new(false) }
    }

    /// Takes over `fd` and opens it again for direct I/O; buffered, and counted in [`fallbacks`], where that cannot be
    /// had. Control plane.
    #[must_use]
    pub fn direct(fd: i32, write: bool) -> Self {
        match file::reopen(fd, write, true) {
            Ok(direct_fd) => {
                bounce::init();
                Self { fd, direct_fd, is_direct: AtomicBool::new(true) }
            }
            Err(_) => {
                FALLBACKS.fetch_add(1, Ordering::Relaxed);
                Self::buffered(fd)
            }
        }
    }

    /// Returns whether whole pages go past the kernel's cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct.load(Ordering::Relaxed)
    }
    /// Returns the buffered descriptor.
    #[must_use]
    pub fn fd(&self) -> i32 {
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
        unsafe { file::pread(self.direct_fd, buffer.address(), len_bytes.min(BUFFER_BYTES), pos_bytes) }
    }

    /// Fills all of `page` from `pos_bytes` on.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`StoreError::Short`] at the end of the file, [`StoreError::Io`].
    pub fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let (ptr, memory) = (page.as_mut_ptr(), page.fd_offset());
        let whole = self.direct_len(ptr, page.len_bytes(), pos_bytes);
        let buffer = if is_worth_copying(whole, memory.0) { bounce::get() } else { None };
        let done = self.transfer(whole, &|done| {
            let (at, left) = (pos_bytes + done as u64, whole - done);
            if let Some(buffer) = &buffer {
                let read = self.read_into(buffer, at, left.min(BUFFER_BYTES))?;
                if memory.0 >= 0 {
                    buffer.copy_to(read, (memory.0, memory.1 + done as u64))?;
                } else {
                    // SAFETY: `read` bytes of a buffer of ours, to the page's own bytes behind those that are filled.
                    unsafe { mem::copy_racy(ptr.wrapping_add(done), buffer.address() as *const u8, read) };
                }
                return Ok(read);
            }
            // SAFETY: `whole` bytes of the page's own exclusive bytes, of which `done` are filled.
            unsafe { file::pread(self.direct_fd, ptr as usize + done, left, at) }
        })?;
        drop(buffer);
        if done == page.len_bytes() {
            return Ok(());
        }
        page.part(done, usize::MAX).fill_from(self.fd, pos_bytes + done as u64)
    }

    /// Writes all of `pages` at `pos_bytes`.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`StoreError::Io`]; `EFBIG` past `RLIMIT_FSIZE`, where the kernel would send `SIGXFSZ`.
    pub fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        if file::rlimit_fsize() < pos_bytes.saturating_add(pages.len_bytes() as u64) {
            return Err(StoreError::Io(Errno::EFBIG));
        }
        let whole = self.direct_len(pages.as_ptr(), pages.len_bytes(), pos_bytes);
        let done = self.transfer(whole, &|done| {
            let src = pages.as_ptr() as usize + done;
            // SAFETY: `whole` readable bytes of the pages, of which `done` are written.
            unsafe { file::pwrite(self.direct_fd, src, whole - done, pos_bytes + done as u64) }
        })?;
        pages.part(done, usize::MAX).write_to(self.fd, pos_bytes + done as u64)
    }
}

/// Returns whether a read of `whole_bytes` goes through a buffer: into the memfd `fd` always, since it saves a fault a page;
/// into memory that is mapped already (-1) where it makes fewer segments.
fn is_worth_copying(whole_bytes: usize, fd: i32) -> bool {
    if fd < 0 {
        return whole_bytes > PAGE_SIZE;
    }
    whole_bytes > 0 && bounce::may_copy()
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        if self.direct_fd >= 0 {
            file::close(self.direct_fd);
        }
        file::close(self.fd);
    }
}
