//! Reads of stores that give whole blocks alone: what is wanted of a block that is wanted in part goes through memory of its
//! own. Linux has no such thing: there a folio is as large as the block.
//!
//! A page is what leaves the cache, and what of a block is still there may be newer than the store's: it must not be read
//! over. So a part of a block is read as the whole block, into a buffer of [`bounce`]'s or, where there is none, or it is too
//! small, into a mapping that lasts as long as the read, and what is wanted is copied from there. No one waits for memory:
//! with stores that hang, waiting would never end.
//!
//! # Context: handler

use super::bounce::{self, BUFFER_BYTES, Buffer};
use super::{PageMut, Store, StoreError};
use crate::sys::fd::Descriptor;
use crate::sys::mem;
use softfault_mm::page::{EXTENT_SIZE, PAGE_SHIFT, PAGE_SIZE};

/// The pages of a store's block: a power of two, at most an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks(u64);

/// A run of pages, as the store is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) pgoff: u64,
    pub(super) nr: u32,
    /// The block that it is a part of, first page and length in bytes; `None`: it is whole blocks.
    pub(super) of: Option<(u64, usize)>,
}

/// Returns whether reads can be aligned to this: a power of two, of a page at least and an extent at most.
///
/// # Context: handler
#[must_use]
pub fn is_alignment(bytes: u64) -> bool {
    bytes.is_power_of_two() && (PAGE_SIZE as u64..=EXTENT_SIZE as u64).contains(&bytes)
}

impl Blocks {
    /// The blocks of a store; single pages where what it says [is none](is_alignment), or where it gives parts of them.
    pub(super) fn of(store: &dyn Store) -> Self {
        let bytes = store.read_align_bytes();
        Self(if is_alignment(bytes) && !store.reads_parts() { bytes >> PAGE_SHIFT } else { 1 })
    }

    /// Returns the first of the pages `pgoff..pgoff + nr` that lie in one block.
    pub(super) fn first_part(self, pgoff: u64, nr: u32) -> u32 {
        u64::from(nr).min(self.0 - (pgoff & (self.0 - 1))) as u32
    }

    /// Returns the next piece of `pgoff..pgoff + nr`, which are not none: all whole blocks that it begins with, or the part of
    /// one. `size_bytes`: where the object ends, and with it its last block.
    pub(super) fn next_piece(self, pgoff: u64, nr: u32, size_bytes: u64) -> Piece {
        let (mask, end) = (self.0 - 1, pgoff + u64::from(nr));
        let is_last = end << PAGE_SHIFT >= size_bytes;
        let whole = if is_last { end } else { end & !mask };
        if pgoff & mask == 0 && whole > pgoff {
            return Piece { pgoff, nr: (whole - pgoff) as u32, of: None };
        }
        let nr = self.first_part(pgoff, nr);
        let (first, behind) = (pgoff & !mask, (pgoff & !mask) + self.0);
        let len = (behind << PAGE_SHIFT).min(size_bytes).saturating_sub(first << PAGE_SHIFT);
        Piece { pgoff, nr, of: Some((first, len as usize)) }
    }

    /// Reads the `len` bytes that there are of the block from page `first` on, and has `take` have all its pages: what lies past
    /// `len` is zeros.
    pub(super) fn read(
        self,
        store: &dyn Store,
        (first, len): (u64, usize),
        take: impl FnOnce(*const u8) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let scratch = Scratch::of((self.0 << PAGE_SHIFT) as usize).ok_or(StoreError::NoMemory)?;
        let ptr = scratch.address() as *mut u8;
        if len > 0 {
            // SAFETY: at most a block of bytes, which are ours until `scratch` is dropped. They have no descriptor.
            let mut page = unsafe { PageMut::new(ptr, len, Descriptor::NONE, 0) };
            store.read(first << PAGE_SHIFT, &mut page)?;
        }
        take(ptr)
    }
}

/// Memory for one block: zeros at first.
enum Scratch {
    Buffer(Buffer),
    Mapped { addr: usize, len: usize },
}

impl Scratch {
    fn of(len: usize) -> Option<Self> {
        if len <= BUFFER_BYTES
            && let Some(buffer) = bounce::get()
        {
            // SAFETY: the buffer is ours, and as long. Not what another object's store has left there.
            unsafe { (buffer.address() as *mut u8).write_bytes(0, len) };
            return Some(Self::Buffer(buffer));
        }
        let addr = mem::map_zeroed(len).ok()?;
        Some(Self::Mapped { addr, len })
    }

    fn address(&self) -> usize {
        match self {
            Self::Buffer(buffer) => buffer.address(),
            Self::Mapped { addr, .. } => *addr,
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Self::Mapped { addr, len } = *self {
            // SAFETY: mapped by `of`, and lent to nobody any more.
            unsafe { mem::release(addr, len) };
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{Blocks, Piece, is_alignment};
    use std::vec::Vec;

    #[test]
    fn alignments_are_powers_of_two_from_a_page_to_an_extent() {
        let good = [4096, 8192, 65536, 2 << 20];
        assert!(good.into_iter().all(is_alignment));
        assert!([0, 1, 512, 4095, 12288, 4 << 20, u64::MAX].into_iter().all(|b| !is_alignment(b)));
    }

    #[test]
    fn pieces_are_whole_blocks_or_parts_of_one() {
        let blocks = Blocks(4);
        let size = 18 * 4096 - 5;
        let all = |mut pgoff: u64, nr: u32| {
            let end = pgoff + u64::from(nr);
            let mut found = Vec::new();
            while pgoff < end {
                let piece = blocks.next_piece(pgoff, (end - pgoff) as u32, size);
                assert_eq!(piece.pgoff, pgoff, "pieces lie side by side");
                pgoff += u64::from(piece.nr);
                found.push((piece.pgoff, piece.nr, piece.of));
            }
            found
        };
        assert_eq!(all(4, 8), [(4, 8, None)]);
        assert_eq!(all(2, 8), [(2, 2, Some((0, 16384))), (4, 4, None), (8, 2, Some((8, 16384)))]);
        assert_eq!(all(5, 2), [(5, 2, Some((4, 16384)))]);
        assert_eq!(all(16, 2), [(16, 2, None)], "the object's last block is as long as the object");
        assert_eq!(all(17, 1), [(17, 1, Some((16, 2 * 4096 - 5)))]);
        assert_eq!(all(16, 1), [(16, 1, Some((16, 2 * 4096 - 5)))], "the last page is not asked for: not whole");
        assert_eq!(Blocks(1).next_piece(7, 9, size), Piece { pgoff: 7, nr: 9, of: None }, "any pages are whole blocks");
    }
}
