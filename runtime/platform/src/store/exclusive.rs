//! The `AddressSpaceOps` of an exclusive object: its pages lie in the one arena that maps it, and nowhere else.
//!
//! ```text
//! read_folio   frame from the pool - store reads into it - digest - MOVE into the arena      then `uptodate`
//! punch        MOVE out into a frame - changed? then write it - the frame is free            then `absent`
//! ```
//! So a page is mapped by its fill, before anybody is told that it is there, and an uptodate page is mapped. Between the
//! MOVE and `uptodate` a thread may already load and store: the bytes are whole, and stores are found by the digest.
//!
//! # Written pages
//! `out` tells how a page that was stored to is found, and written before it goes.
//!
//! # Unmapping
//! `leave` clears the address and waits for the MOVEs under way, not for stores: a read that is still under way then finds
//! no place for its pages and fails (`Refused`). Who calls it waits before for reads of which a part is in place
//! (`may_be_stored_to`). Pages that were published after their mapping went are forgotten by the
//! next `enter`.
//!
//! # Context: handler; `enter` and `leave`: control plane

mod fill;
mod out;
mod pages;
mod place;

use crate::sys::{mem, pagemap};
use core::sync::atomic::Ordering;
use pages::Pages;
pub use pages::{Facts, Filled, Parts};
use place::is_there;
use softfault_mm::ops::{AddressSpaceOps, Staged, Zap};
use softfault_mm::page::{PAGE_SHIFT, PAGE_SIZE, pgoff_index};
use softfault_mm::types::FillError;

/// An exclusive object: its place in an arena, and its store.
pub struct ExclusiveOps<'s> {
    pages: Pages<'s>,
}

impl core::fmt::Debug for ExclusiveOps<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ExclusiveOps")
            .field("place", &self.pages.place)
            .field("facts", &self.pages.facts)
            .finish_non_exhaustive()
    }
}

impl<'s> ExclusiveOps<'s> {
    /// Joins a pool of frames with a store.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn new(parts: Parts<'s>) -> Self {
        Self { pages: Pages::new(parts) }
    }

    /// Sets the end past which the store is not asked.
    ///
    /// # Context: control plane
    pub fn set_len(&self, len_bytes: u64) {
        // Release pairs with `Source::wanted`.
        self.pages.source.i_size.store(len_bytes, Ordering::Release);
    }

    /// Returns what the object does with written pages.
    ///
    /// # Context: handler
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.pages.facts
    }

    /// Returns how many writes of changed pages the store refused.
    ///
    /// # Context: handler
    #[must_use]
    pub fn write_errors(&self) -> u64 {
        self.pages.write_errors()
    }

    /// Publishes where pages `first..first + nr` are mapped.
    ///
    /// # Context: control plane, with no claim on the object
    ///
    /// # Safety
    /// `base` and `nr` pages from it are private anonymous memory, registered, without a page, and this object's until
    /// `leave` has returned; open to stores if `writable`, else to loads.
    pub unsafe fn enter(&self, base: usize, first: u64, nr: u64, writable: bool) {
        self.pages.place.enter(base, first, nr, writable);
    }

    /// Forgets where the object is mapped; waits for MOVEs under way, not for reads. What still lies there goes with the
    /// mapping.
    ///
    /// # Context: control plane
    pub fn leave(&self) {
        self.pages.leave();
    }

    /// Returns whether the object is mapped.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.pages.place.is_somewhere()
    }

    /// Returns the address of page `pgoff`, and whether it may be stored to. The caller has pinned the page: as long as it
    /// is, the mapping stays.
    ///
    /// # Context: handler
    #[must_use]
    pub fn address(&self, pgoff: u64) -> Option<(usize, bool)> {
        let held = self.pages.place.hold()?;
        Some((held.address(pgoff, 1)?, self.pages.place.is_writable()))
    }
}

impl AddressSpaceOps for ExclusiveOps<'_> {
    fn read_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        // Without a place for the pages the store need not be asked.
        if !self.is_mapped() {
            return Err((0, FillError::Refused));
        }
        fill::fill(&self.pages, pgoff, nr, &mut |at, pages| self.pages.source.read(at, pages))
    }

    fn zero_folio(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        let zero = &mut |_, pages: &mut [u8]| {
            pages.fill(0);
            Ok(())
        };
        fill::fill(&self.pages, pgoff, nr, zero).map_err(|(_, error)| error)
    }

    /// Never asked: there is no copy of an exclusive page but itself.
    fn read_staged(&self, _pgoff: u64, _staged: &Staged) -> Result<(), FillError> {
        Err(FillError::Refused)
    }

    fn dsync(&self, _pgoff: u64, _nr: u32) -> Result<(), FillError> {
        Ok(())
    }

    fn write_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        out::write_folio(&self.pages, pgoff, nr)
    }

    fn is_written(&self, pgoff: u64) -> bool {
        if !self.pages.is_tracked() {
            return false;
        }
        let Some(held) = self.pages.place.hold() else { return false };
        let (Some(address), Some(filled)) = (held.address(pgoff, 1), self.pages.digest_of(pgoff)) else { return false };
        // SAFETY: the caller pinned the page, so it is mapped; `held` keeps the mapping.
        let now = unsafe { self.pages.frames.key().digest_racy(address as *const u8) };
        now != filled
    }

    fn may_be_stored_to(&self, pgoff: u64) -> bool {
        let Some(held) = self.pages.place.hold() else { return false };
        self.pages.is_tracked() && held.address(pgoff, 1).is_some_and(is_there)
    }

    fn each_missing(&self, pgoff: u64, nr: u64, found: &mut dyn FnMut(u64, bool)) {
        let Some(held) = self.pages.place.hold() else { return };
        let (first, mapped) = self.pages.place.pages();
        let (from, to) = (pgoff.max(first), pgoff.saturating_add(nr).min(first + mapped));
        let Some(addr) = held.address(from, to.saturating_sub(from)) else { return };
        // Where the kernel cannot say it (before Linux 6.7) nobody knows.
        let _ = pagemap::each_missing(addr, pgoff_index(to.saturating_sub(from)) << PAGE_SHIFT, &mut |at, len| {
            for page in (at..at + len).step_by(PAGE_SIZE) {
                found(from + ((page - addr) >> PAGE_SHIFT) as u64, self.pages.is_tracked());
            }
        });
    }

    fn rereads_unflushed(&self) -> bool {
        self.pages.source.store.rereads_unflushed()
    }

    fn punch(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        out::punch(&self.pages, pgoff, nr)
    }

    fn punch_pages(&self, id: u32, pages: &[(u32, u64)], zaps: &mut [Zap]) -> bool {
        out::punch_pages(&self.pages, id, pages, zaps)
    }

    fn discard(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        out::discard(&self.pages, pgoff, nr)
    }

    fn with_page_mut(&self, pgoff: u64, f: &mut dyn FnMut(&mut [u8])) {
        let _ = fill::fill(&self.pages, pgoff, 1, &mut |_, page| {
            f(page);
            Ok(())
        });
    }

    fn copy_from_page(&self, pgoff: u64, offset: usize, dst: &mut [u8]) {
        let Some((address, _)) = self.address(pgoff) else { return };
        let len = dst.len().min(PAGE_SIZE.saturating_sub(offset));
        let src = (address as *const u8).wrapping_add(offset);
        // SAFETY: the caller pinned the page, so it is mapped; `dst` is an exclusive slice of at least `len` bytes.
        unsafe { mem::copy_racy(dst.as_mut_ptr(), src, len) };
    }
}
