//! Reading an object's pages from its store into memory, with retries and the policy for the end of the object.

use super::blocks::Blocks;
use super::retry::{self, Retries};
use super::{PageMut, PageRef, Store, StoreError};
use crate::sys::fd::Descriptor;
use crate::sys::mem;
use core::sync::atomic::{AtomicU64, Ordering};
use softfault_mm::mapping::FailurePolicy;
use softfault_mm::page::{PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::types::FillError;

/// An object's store, and how it is asked.
pub(super) struct Source<'s> {
    pub(super) store: &'s dyn Store,
    pub(super) blocks: Blocks,
    /// The end of the object: the store is never asked for bytes past it.
    pub(super) i_size: AtomicU64,
    pub(super) retries: Retries,
    pub(super) handler_safe: bool,
    pub(super) policy: FailurePolicy,
    pub(super) name: u64,
}

impl Source<'_> {
    /// Returns how many bytes of the pages lie inside the object.
    pub(super) fn wanted(&self, pgoff: u64, nr: u32) -> usize {
        let pos = pgoff << PAGE_SHIFT;
        // Acquire pairs with `set_len`.
        let end = (pos + (u64::from(nr) << PAGE_SHIFT)).min(self.i_size.load(Ordering::Acquire));
        end.saturating_sub(pos) as usize
    }

    /// Reads whole pages into `into`; bytes past the end become zero. On failure says how many pages are good.
    pub(super) fn read(&self, pgoff: u64, into: &mut [u8]) -> Result<(), (u32, FillError)> {
        let nr = (into.len() / PAGE_SIZE) as u32;
        if nr > 1 && self.read_once(pgoff, into).is_ok() {
            return Ok(());
        }
        // A window with one bad page is read page by page (or block by block), so that only that page fails.
        let (mut done, mut rest) = (0, into);
        while done < nr {
            let at = pgoff + u64::from(done);
            let some = self.blocks.first_part(at, nr - done);
            let (part, behind) = rest.split_at_mut(rest.len().min(some as usize * PAGE_SIZE));
            if let Err(error) = self.read_retrying(at, part) {
                if self.policy == FailurePolicy::Abort {
                    retry::abort(self.name, at);
                }
                return Err((done, error.fill_error()));
            }
            (done, rest) = (done + some, behind);
        }
        Ok(())
    }

    /// Reads whole pages, block by block where only a part of one is wanted.
    fn read_once(&self, pgoff: u64, into: &mut [u8]) -> Result<(), StoreError> {
        // Acquire pairs with `set_len`.
        let (blocks, size) = (self.blocks, self.i_size.load(Ordering::Acquire));
        let (mut at, mut rest) = (pgoff, into);
        while !rest.is_empty() {
            let piece = blocks.next_piece(at, (rest.len() / PAGE_SIZE) as u32, size);
            let (part, behind) = rest.split_at_mut(rest.len().min(piece.nr as usize * PAGE_SIZE));
            match piece.of {
                None => self.read_whole(at, size, part)?,
                Some(block) => self.read_part(block, at, part)?,
            }
            (at, rest) = (at + u64::from(piece.nr), behind);
        }
        Ok(())
    }

    fn read_part(&self, block: (u64, usize), pgoff: u64, into: &mut [u8]) -> Result<(), StoreError> {
        let skip = ((pgoff - block.0) as usize) << PAGE_SHIFT;
        self.blocks.read(self.store, block, |bytes| {
            // SAFETY: whole pages of the block, all of which are there, into a slice of as many bytes that is exclusively borrowed.
            unsafe { mem::copy_racy(into.as_mut_ptr(), bytes.wrapping_add(skip), into.len()) };
            Ok(())
        })
    }

    fn read_whole(&self, pgoff: u64, size: u64, into: &mut [u8]) -> Result<(), StoreError> {
        let len = size.saturating_sub(pgoff << PAGE_SHIFT).min(into.len() as u64) as usize;
        if len > 0 {
            // SAFETY: `len` bytes of a slice that is exclusively borrowed. They have no descriptor.
            let mut page = unsafe { PageMut::new(into.as_mut_ptr(), len, Descriptor::NONE, 0) };
            self.store.read(pgoff << PAGE_SHIFT, &mut page)?;
        }
        if let Some(tail) = into.get_mut(len..) {
            tail.fill(0);
        }
        Ok(())
    }

    fn read_retrying(&self, pgoff: u64, into: &mut [u8]) -> Result<(), StoreError> {
        self.retries.read(self.handler_safe, || self.read_once(pgoff, into))
    }

    /// Gives `nr` pages at `address`, which nobody changes meanwhile, to the store, as far as they lie inside the object.
    ///
    /// # Safety
    /// They are readable for the length of the call.
    pub(super) unsafe fn write(&self, pgoff: u64, address: usize, nr: u32) -> Result<(), StoreError> {
        let len = self.wanted(pgoff, nr);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the caller's contract.
        let pages = unsafe { PageRef::new(address as *const u8, len, Descriptor::NONE, 0) };
        self.store.write(pgoff << PAGE_SHIFT, &pages)
    }
}
