//! Stores of the user's on filler threads: their panics end no filler.
//!
//! # Context: fillers, and calls on the object

use softfault_platform::store::{PageMut, PageRef, Store, StoreError};
use softfault_platform::sys::Errno;

/// A store whose panics are errors of the page: a filler that unwound would keep its pages `filling` for ever.
pub(crate) struct Guarded(pub(crate) Box<dyn Store>);

impl Store for Guarded {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        guarded(|| self.0.read(pos_bytes, page))
    }
    fn dsync(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        guarded(|| self.0.dsync(pos_bytes, len_bytes))
    }
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        guarded(|| self.0.write(pos_bytes, pages))
    }
    fn flush(&self) -> Result<(), StoreError> {
        guarded(|| self.0.flush())
    }
    fn punch(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        guarded(|| self.0.punch(pos_bytes, len_bytes))
    }
    fn set_len(&self, len_bytes: u64) -> Result<(), StoreError> {
        guarded(|| self.0.set_len(len_bytes))
    }
    fn uses_descriptors(&self) -> bool {
        self.0.uses_descriptors()
    }
    fn read_align_bytes(&self) -> u64 {
        self.0.read_align_bytes()
    }
    fn reads_parts(&self) -> bool {
        self.0.reads_parts()
    }
    fn write_blocks(&self) -> bool {
        self.0.write_blocks()
    }
    fn is_stable(&self) -> bool {
        self.0.is_stable()
    }
    fn rereads_unflushed(&self) -> bool {
        self.0.rereads_unflushed()
    }
}

/// Runs a store's method; a panic of it is an error of the store.
fn guarded(f: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(Err(StoreError::Io(Errno::EIO)))
}
