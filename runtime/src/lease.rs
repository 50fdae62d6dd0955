//! Heap objects that handlers borrow: lent as `'static`, taken back when nobody can look any more.
//!
//! # Context: control plane; what is lent is read in any

#![expect(unsafe_code, reason = "the one place where a heap object's borrow is lengthened")]

use softfault_platform::sparse::Sparse;
use softfault_platform::sys::{Errno, mem};

/// A boxed value whose borrows may be published to handlers.
///
/// # Invariants
/// The owner drops the lease only after it has withdrawn every published borrow and waited for the sections and claims
/// that may hold one.
pub(crate) struct Lease<T: ?Sized>(*mut T);

// SAFETY: a lease is a Box: it moves between threads if its value may, and is shared if its value may be.
unsafe impl<T: ?Sized + Send> Send for Lease<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Sync> Sync for Lease<T> {}

impl<T: ?Sized> Lease<T> {
    pub(crate) fn new(value: Box<T>) -> Self {
        Self(Box::into_raw(value))
    }

    /// Lends the value for as long as the lease's invariant holds.
    ///
    /// # Safety
    /// The borrow, and everything it is published to, ends before the lease is dropped.
    pub(crate) unsafe fn lend(&self) -> &'static T {
        // SAFETY: the pointer comes from a Box that is freed only by our Drop; the caller vouches for the lifetime.
        unsafe { &*self.0 }
    }

    /// Gives the value up for ever: somebody may still look at it.
    pub(crate) fn leak(self) {
        std::mem::forget(self);
    }
}

impl<T: ?Sized> std::ops::Deref for Lease<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: as in `lend`, for the length of our own borrow.
        unsafe { &*self.0 }
    }
}

impl<T: ?Sized> Drop for Lease<T> {
    fn drop(&mut self) {
        // SAFETY: made by Box::into_raw, freed once; the invariant says that nobody borrows it.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

impl<T: ?Sized> std::fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lease")
    }
}

/// Zeroed memory for tables of atomics, lent to handlers; unmapped on drop under the same invariant.
pub(crate) struct Table<T: 'static> {
    words: &'static [T],
    memory: Sparse,
}

impl<T> std::fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// Types for which zeroed memory is a value and which are only ever shared.
///
/// # Safety
/// All-zero bytes are a valid `Self`, and `Self` consists of atomics.
pub(crate) unsafe trait ZeroedAtomics {}
// SAFETY: an atomic integer.
unsafe impl ZeroedAtomics for std::sync::atomic::AtomicU64 {}
// SAFETY: an atomic integer.
unsafe impl ZeroedAtomics for std::sync::atomic::AtomicU32 {}
#[cfg(feature = "userfaultfd")]
// SAFETY: made of atomic integers.
unsafe impl ZeroedAtomics for softfault_platform::store::exclusive::Filled {}
// SAFETY: made of atomic integers; its documentation says that zero is trapped and unmapped.
unsafe impl ZeroedAtomics for softfault_mm::extent::Extent {}

impl<T: ZeroedAtomics> Table<T> {
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let table = Self::closed(len)?;
        table.open_to(len)?;
        Ok(table)
    }
    /// Makes a table that is to be opened as it is used. Nobody looks at a word that is closed.
    pub(crate) fn closed(len: usize) -> Result<Self, Errno> {
        let memory = Sparse::new();
        memory.reserve(Self::bytes(len))?;
        // SAFETY: zeroed, page-aligned memory for `len` values as soon as they are open; zero is valid for T.
        let words = unsafe { std::slice::from_raw_parts(memory.base() as *const T, len) };
        Ok(Self { words, memory })
    }
    /// Makes the first `len` words accessible. Under the caller's lock.
    pub(crate) fn open_to(&self, len: usize) -> Result<(), Errno> {
        self.memory.open_to(Self::bytes(len.min(self.words.len())))
    }
    /// Returns the bytes of memory the table takes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        mem::resident_bytes(self.memory.base(), self.memory.open_bytes())
    }
    /// Lends the words; they stay until the table is dropped.
    pub(crate) fn lend(&self) -> &'static [T] {
        self.words
    }
}

impl<T> Table<T> {
    /// Returns how many bytes are mapped for `len` words.
    pub(crate) fn bytes(len: usize) -> usize {
        (len.max(1) * size_of::<T>()).next_multiple_of(4096)
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: reserved by `closed`; the owner has withdrawn every borrow it published.
        unsafe { mem::release(self.memory.base(), self.memory.len_bytes()) };
    }
}
