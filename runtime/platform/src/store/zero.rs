//! Anonymous memory: every page begins as zeros.

use super::{HandlerStore, PageMut, Store, StoreError};
use crate::sys::{Errno, mem};

/// The store of anonymous objects.
#[derive(Clone, Copy, Debug, Default)]
pub struct ZeroStore;

impl Store for ZeroStore {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let (fd, offset) = page.fd_offset();
        if fd < 0 {
            // A recycled frame: it has no descriptor, and somebody's bytes.
            page.as_mut_slice().fill(0);
            return Ok(());
        }
        // Allocation alone gives zeros where the page is a hole; a page that was left behind by a failed punch is not
        // one, so the bytes are asked for explicitly only there.
        match mem::allocate(fd, offset, page.len_bytes().next_multiple_of(4096) as u64) {
            Ok(()) => Ok(()),
            Err(Errno::ENOMEM | Errno::ENOSPC) => Err(StoreError::NoMemory),
            Err(e) => Err(StoreError::Io(e)),
        }
    }
}

// SAFETY: one raw fallocate(2), or stores to the page.
unsafe impl HandlerStore for ZeroStore {}
