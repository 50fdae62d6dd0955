//! A heap in an arena: where it lies, and what the two allocators have in common.
//!
//! ```text
//! AT                                 the address of the index; behind it, what an allocator keeps here
//! AT + HEAD_BYTES ..                 the heap
//! ```
//! `AT` is far from where the kernel puts a program and what it maps, so that it is free in the next process too.

use crate::index::Index;
use crate::units::Result;
use allocator_api2::alloc::Allocator;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where the arena lies in each process: what is in it are addresses.
pub(crate) const AT: usize = 0x5000_0000_0000;
/// What lies in front of the heap; mimalloc wants its memory aligned so.
pub(crate) const HEAD_BYTES: usize = 64 << 10;
/// Where in the head an allocator may keep its state.
pub(crate) const STATE: usize = 64;

/// An allocator whose blocks lie in an arena. The type has no fields: what is in the arena says nothing of this process.
pub(crate) trait Heap: Allocator + Copy + Default + 'static {
    const NAME: &'static str;
    /// What was restored can be freed, and is given out again.
    const FREES: bool;

    /// Begins an empty heap in an arena.
    ///
    /// # Safety
    /// All of `memory` is mapped for loads and stores, zero, this heap's alone, and stays so while the process lives.
    unsafe fn begin(memory: *mut [u8]) -> Result<()>;

    /// Goes on with a heap that another process began.
    ///
    /// # Safety
    /// `memory` is what `begin` was given, at the same address, with what lay there when no thread was in the allocator; `more`
    /// is as `begin` wants it.
    unsafe fn resume(memory: *mut [u8], more: *mut [u8]) -> Result<()>;

    /// Says what has become of blocks since then.
    fn told() -> String;
}

/// Returns the heap's part of an arena.
pub(crate) fn behind_head(arena: *mut u8, len_bytes: usize) -> *mut [u8] {
    std::ptr::slice_from_raw_parts_mut(arena.wrapping_add(HEAD_BYTES), len_bytes - HEAD_BYTES)
}

/// Says where the index lies, for whoever restores the arena.
///
/// # Safety
/// The first bytes of the arena are mapped for stores, and nobody else uses them.
pub(crate) unsafe fn set_index<H: Heap>(arena: *mut u8, index: *mut Index<H>) {
    // SAFETY: mapped, says the caller, and aligned as arenas are.
    unsafe { arena.cast::<*mut Index<H>>().write(index) }
}

/// Returns where the index lies.
///
/// # Safety
/// The first bytes of the arena are those that `set_index` of this build of the program stored, for the same `H`, and the arena lies
/// where it lay.
pub(crate) unsafe fn index<H: Heap>(arena: *mut u8) -> *mut Index<H> {
    // SAFETY: stored by `set_index`, says the caller.
    unsafe { arena.cast::<*mut Index<H>>().read() }
}

/// Blocks, for people.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
    pub(crate) fn add(&self, nr: u64) {
        self.0.fetch_add(nr, Ordering::Relaxed);
    }
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
