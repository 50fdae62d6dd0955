//! Parts of what a store is to fill or take, and what both can do without a store.

use super::{PageMut, PageRef, StoreError, bounce};
use crate::cache;
use crate::sys::fd::Descriptor;
use crate::sys::{Errno, file, mem};
use core::marker::PhantomData;
use core::ops::Range;
use softfault_mm::page::PAGE_SIZE;

/// Bytes of one's own, to ask a store outside the cache: a test of it, say.
impl<'a> From<&'a mut [u8]> for PageMut<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        // SAFETY: an exclusive slice for `'a`; there is no descriptor.
        unsafe { Self::new(bytes.as_mut_ptr(), bytes.len(), Descriptor::NONE, 0) }
    }
}

/// Bytes of one's own, to give to a store outside the cache.
impl<'a> From<&'a [u8]> for PageRef<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        // SAFETY: a slice that is readable for `'a`; there is no descriptor.
        unsafe { Self::new(bytes.as_ptr(), bytes.len(), Descriptor::NONE, 0) }
    }
}

impl PageMut<'_> {
    /// Borrows up to `len_bytes` bytes from `offset` on; none past the end.
    ///
    /// # Context: handler
    #[must_use]
    pub fn part(&mut self, offset: usize, len_bytes: usize) -> PageMut<'_> {
        let offset = offset.min(self.len_bytes);
        PageMut {
            ptr: self.ptr.wrapping_add(offset),
            len_bytes: len_bytes.min(self.len_bytes - offset),
            fd: self.fd,
            fd_offset: self.fd_offset + offset as u64,
            ports: self.ports,
            handed: self.handed,
            owner: PhantomData,
        }
    }

    /// Makes bytes that nothing was written to since their pages were holes zeros: by allocation alone, which costs
    /// half of writing them. The cache's pages are holes when a fill begins. Memory that is not the cache's is written.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`StoreError::NoMemory`], [`StoreError::Io`].
    pub fn allocate_zeros(&mut self) -> Result<(), StoreError> {
        let (fd, offset) = self.fd_offset();
        if fd < 0 {
            self.write_zeros();
            return Ok(());
        }
        match mem::allocate(fd, offset, self.len_bytes.next_multiple_of(PAGE_SIZE) as u64) {
            Ok(()) => Ok(()),
            Err(Errno::ENOMEM | Errno::ENOSPC) => Err(StoreError::NoMemory),
            Err(e) => Err(StoreError::Io(e)),
        }
    }

    /// Copies as many of `bytes` as there is room for. Of the cache's own pages none is touched through a mapping: that would
    /// cost a fault each.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`StoreError::NoMemory`], [`StoreError::Io`].
    pub fn copy_from(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let bytes = bytes.get(..self.len_bytes).unwrap_or(bytes);
        if self.fd.is_some() && bounce::may_copy() {
            // SAFETY: a slice that lives; the pages are the caller's (`new`'s contract).
            match unsafe { bounce::copy_to(bytes.as_ptr() as usize, bytes.len(), (self.fd, self.fd_offset)) } {
                Err(Errno::ENOMEM | Errno::ENOSPC) => return Err(StoreError::NoMemory),
                // The program has closed the descriptor: the mapping is left.
                Err(Errno::EBADF) => {}
                r => return r.map_err(StoreError::Io),
            }
        }
        // SAFETY: no more than `len_bytes` exclusive writable bytes at `ptr` (`new`'s contract), which no slice of others is.
        unsafe { mem::copy_racy(self.ptr, bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Fills it with bytes of `fd` that are looked at first, in a copy which nobody else changes: `range` of the file is read, at most
    /// [`BUFFER_BYTES`](super::BUFFER_BYTES), and if `is_good` says so it gets those from byte `skip` of them on.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]: they are not good. [`StoreError::Short`]: the file, or the range, ends before.
    /// [`StoreError::NoMemory`]: there is no buffer. [`StoreError::Io`].
    pub fn fill_verified(
        &mut self,
        fd: i32,
        range: Range<u64>,
        skip: usize,
        is_good: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let buffer = bounce::get().ok_or(StoreError::NoMemory)?;
        let len = (range.end.saturating_sub(range.start) as usize).min(bounce::BUFFER_BYTES);
        let mut done = 0;
        while done < len {
            // SAFETY: the buffer is ours until it is dropped, and `done` of its first `len` bytes are filled.
            match unsafe { file::pread(fd, buffer.address() + done, len - done, range.start + done as u64) } {
                Ok(0) => return Err(StoreError::Short),
                Ok(n) => done += n,
                Err(e) => return Err(StoreError::Io(e)),
            }
        }
        // SAFETY: the buffer's bytes, of which nobody else has any before it is dropped.
        let bytes = unsafe { core::slice::from_raw_parts(buffer.address() as *const u8, len) };
        if !is_good(bytes) {
            return Err(StoreError::Corrupt);
        }
        let wanted = bytes.get(skip..).and_then(|b| b.get(..self.len_bytes)).ok_or(StoreError::Short)?;
        self.copy_from(wanted)
    }

    /// Writes zeros, whatever was there.
    ///
    /// # Context: handler
    pub fn write_zeros(&mut self) {
        // SAFETY: `len_bytes` exclusive writable bytes at `ptr` (`new`'s contract).
        unsafe { self.ptr.write_bytes(0, self.len_bytes) };
    }

    /// Makes holes of the pages again, after a fill that failed half way: a later one may rely on holes.
    ///
    /// # Context: handler
    pub(super) fn make_holes(&mut self) {
        if self.fd.is_some() && self.len_bytes > 0 {
            let len = self.len_bytes.next_multiple_of(PAGE_SIZE);
            // SAFETY: the caller owns the pages (`new`'s contract) and gives their bytes up. If it fails, the punch of
            // whoever gives up the claim fails too, and the word says that nobody may look.
            let _ = unsafe { cache::punch(self.ptr as usize, len, (self.fd, self.fd_offset)) };
        }
    }
}

impl PageRef<'_> {
    /// Borrows up to `len_bytes` bytes from `offset` on; none past the end.
    ///
    /// # Context: handler
    #[must_use]
    pub fn part(&self, offset: usize, len_bytes: usize) -> PageRef<'_> {
        let offset = offset.min(self.len_bytes);
        PageRef {
            ptr: self.ptr.wrapping_add(offset),
            len_bytes: len_bytes.min(self.len_bytes - offset),
            fd: self.fd,
            fd_offset: if self.fd.is_some() { self.fd_offset + offset as u64 } else { 0 },
            handed: self.handed,
            owner: PhantomData,
        }
    }

    /// Returns whether every byte was zero when it was looked at.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_zero(&self) -> bool {
        // SAFETY: `len_bytes` readable bytes at `ptr` (`new`'s contract).
        unsafe { mem::is_zero_racy(self.ptr, self.len_bytes) }
    }
}
