//! A file as a store: pread(2) straight into the cache page.

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
        let len = page.len_bytes();
        let dst = page.as_mut_ptr() as usize;
        let mut done = 0;
        while done < len {
            let pos = self.base_bytes + pos_bytes + done as u64;
            // SAFETY: `page` lends `len` exclusive writable bytes at `dst`; `done < len`.
            match unsafe { file::pread(self.fd, dst + done, len - done, pos) } {
                Ok(0) => return Err(StoreError::Short),
                Ok(n) => done += n,
                Err(e) => return Err(StoreError::Io(e)),
            }
        }
        Ok(())
    }
}

// SAFETY: raw pread(2) alone; it may sleep for the disk, as a kernel fault on a file does.
unsafe impl HandlerStore for FileStore {}

impl Drop for FileStore {
    fn drop(&mut self) {
        file::close(self.fd);
    }
}
