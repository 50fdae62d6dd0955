//! Anonymous memory: every page begins as zeros.

use super::{HandlerStore, PageMut, Store, StoreError};

/// The store of anonymous objects.
#[derive(Clone, Copy, Debug, Default)]
pub struct ZeroStore;

impl Store for ZeroStore {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        // Allocation alone gives zeros where the page is a hole; a page that was left behind by a failed punch is not
        // one, so the bytes are asked for explicitly only there.
        page.allocate_zeros()
    }
    fn uses_descriptors(&self) -> bool {
        true
    }
}

// SAFETY: one raw fallocate(2), or stores to the page.
unsafe impl HandlerStore for ZeroStore {}
