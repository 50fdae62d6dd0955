//! A file as a store: straight into the cache page and out of it.
//!
//! Reads are sendfile(2) or pread(2), writes pwrite(2) from the cache's own pages, or both past the kernel's page cache
//! ([`FileStore::direct`]).

use super::direct::DirectFile;
use super::{HandlerStore, PageMut, PageRef, Store, StoreError};
use crate::sys::{Errno, file, mem};

/// An object that is a range of an open file. Owns its descriptors.
#[derive(Debug)]
pub struct FileStore {
    file: DirectFile,
    base_bytes: u64,
}

impl FileStore {
    /// Takes over `fd`; the object's byte 0 is the file's byte `base_bytes`.
    #[must_use]
    pub fn new(fd: i32, base_bytes: u64) -> Self {
        Self { file: DirectFile::buffered(fd), base_bytes }
    }

    /// As [`FileStore::new`], with whole pages read (and, if `write`, written) past the kernel's page cache where the
    /// file system can; `base_bytes` that is no multiple of the page size makes everything buffered. Control plane.
    #[must_use]
    pub fn direct(fd: i32, base_bytes: u64, write: bool) -> Self {
        Self { file: DirectFile::direct(fd, write), base_bytes }
    }

    /// Returns whether whole pages go past the kernel's cache: not, once the file system has refused it.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.file.is_direct()
    }

    /// Returns where the object's byte is in the file.
    fn position(&self, pos_bytes: u64) -> Result<u64, StoreError> {
        self.base_bytes.checked_add(pos_bytes).ok_or(StoreError::Io(Errno::EFBIG))
    }
}

/// Says that the file system cannot, where it cannot.
fn error_of(e: Errno) -> StoreError {
    if e == Errno::EOPNOTSUPP { StoreError::Unsupported } else { StoreError::Io(e) }
}

impl Store for FileStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        self.file.read(self.position(pos_bytes)?, page)
    }

    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        self.file.write(self.position(pos_bytes)?, pages)
    }

    /// Allocates the blocks, then makes that durable; [`StoreError::Unsupported`] where the file system cannot allocate
    /// ahead. The file does not grow by it: its length is the object's.
    fn dsync(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        if len_bytes == 0 {
            return Ok(());
        }
        file::allocate_blocks(self.file.fd(), self.position(pos_bytes)?, len_bytes).map_err(error_of)?;
        self.flush()
    }

    fn write_blocks(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), StoreError> {
        file::fdatasync(self.file.fd()).map_err(StoreError::Io)
    }

    fn punch(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        let at = self.position(pos_bytes)?;
        if len_bytes == 0 {
            return Ok(());
        }
        loop {
            // SAFETY: bytes of a file, of which the program maps none through us; the object gives them up.
            match unsafe { mem::punch_hole(self.file.fd(), at, len_bytes) } {
                Err(Errno::EINTR) => {}
                r => return r.map_err(error_of),
            }
        }
    }

    fn set_len(&self, len_bytes: u64) -> Result<(), StoreError> {
        let end = self.position(len_bytes)?;
        // ftruncate(2) past the limit sends SIGXFSZ, which ends the process.
        if file::rlimit_fsize() < end {
            return Err(StoreError::Io(Errno::EFBIG));
        }
        file::ftruncate(self.file.fd(), end).map_err(StoreError::Io)
    }
}

// SAFETY: raw system calls alone (sendfile, lseek, pread, pwrite, prlimit, fallocate, fdatasync, ftruncate); they may
// sleep for the disk, as a kernel fault on a file does.
unsafe impl HandlerStore for FileStore {}
