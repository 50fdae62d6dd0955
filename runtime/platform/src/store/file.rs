//! A file as a store: straight into the cache page, by sendfile(2) or pread(2).

use super::{HandlerStore, PageMut, Store, StoreError};
use crate::sys::file;

/// Reads an object from a range of an open file. Owns its descriptor.
#[derive(Debug)]
pub struct FileStore {
    fd: i32,
    base_bytes: u64,
}

impl FileStore {
    /// Takes over `fd`; the object's byte 0 is the file's byte `base_bytes`.
    #[must_use]
    pub fn new(fd: i32, base_bytes: u64) -> Self {
        Self { fd, base_bytes }
    }
}

impl Store for FileStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.fill_from(self.fd, self.base_bytes + pos_bytes)
    }
}

// SAFETY: raw sendfile(2), lseek(2) and pread(2) alone; they may sleep for the disk, as a kernel fault on a file does.
unsafe impl HandlerStore for FileStore {}

impl Drop for FileStore {
    fn drop(&mut self) {
        file::close(self.fd);
    }
}
