//! Reading an object's pages from its store into memory, with retries and the policy for the end of the object.

use super::retry::{self, Retries};
use super::{PageMut, PageRef, Store, StoreError};
use crate::sys::fd::Descriptor;
use core::sync::atomic::{AtomicU64, Ordering};
use softfault_mm::mapping::FailurePolicy;
use softfault_mm::page::{PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::types::FillError;

/// An object's store, and how it is asked.
pub(super) struct Source<'s> {
    pub(super) store: &'s dyn Store,
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
        let end = (pos + (u64::from(nr) << PAGE_SHIFT)).min(self.i_size.load(Ordering::Acquire));
        end.saturating_sub(pos) as usize
    }

    /// Reads whole pages into `into`; bytes past the end become zero. On failure says how many pages are good.
    pub(super) fn read(&self, pgoff: u64, into: &mut [u8]) -> Result<(), (u32, FillError)> {
        let nr = (into.len() / PAGE_SIZE) as u32;
        if nr > 1 && self.read_once(pgoff, into).is_ok() {
            return Ok(());
        }
        // A window with one bad page is read page by page, so that only that page fails.
        for (i, page) in (0..nr).zip(into.chunks_exact_mut(PAGE_SIZE)) {
            if let Err(error) = self.read_retrying(pgoff + u64::from(i), page) {
                if self.policy == FailurePolicy::Abort {
                    retry::abort(self.name, pgoff + u64::from(i));
                }
                return Err((i, error.fill_error()));
            }
        }
        Ok(())
    }

    fn read_once(&self, pgoff: u64, into: &mut [u8]) -> Result<(), StoreError> {
        let len = self.wanted(pgoff, (into.len() / PAGE_SIZE) as u32).min(into.len());
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
