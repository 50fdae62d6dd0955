//! An object's `AddressSpaceOps`: its range of the cache's memory, and its store.
//!
//! # Context: handler, unless the store is for fillers

use super::blocks::Blocks;
use super::bounce::{self, BUFFER_BYTES, Buffer};
use super::retry::{self, Retries};
use super::{PageMut, PageRef, ReadHere, Store, StoreError};
use crate::area::{self, Key};
use crate::cache::{self, Ports};
use crate::staging;
use crate::sys::fd::Descriptor;
use crate::sys::{Errno, mem, thread};
use crate::thp;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use softfault_mm::mapping::FailurePolicy;
use softfault_mm::ops::{AddressSpaceOps, Preserved, Staged};
use softfault_mm::page::{EXTENT_SIZE, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::types::FillError;

/// The bytes behind an object's words.
#[derive(Debug)]
pub struct FolioMemory<'s> {
    /// Descriptors that fills may borrow.
    pub ports: &'s Ports,
    /// The memfd.
    pub fd: Descriptor,
    /// The object's offset in it.
    pub fd_offset: u64,
    /// Address of the object's alias.
    pub alias: usize,
    /// Length of the object's range.
    pub len_bytes: usize,
    /// The alias is locked in memory: what is mapped there stays.
    pub is_locked: bool,
}

/// An object's range of a region, and its store.
pub struct ObjectOps<'s> {
    memory: FolioMemory<'s>,
    store: &'s dyn Store,
    /// What of it can be read in a handler, where not everything can.
    here: Option<&'s dyn ReadHere>,
    blocks: Blocks,
    /// The end of the object: the store is never asked for bytes past it.
    i_size: AtomicU64,
    retries: Retries,
    handler_safe: bool,
    policy: FailurePolicy,
    name: u64,
}

impl core::fmt::Debug for ObjectOps<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ObjectOps").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl<'s> ObjectOps<'s> {
    /// Joins a range of the cache's memory with a store.
    ///
    /// # Context: control plane
    ///
    /// # Safety
    /// The memory is the object's alone: mapped writable at `memory.alias`, over its whole maximal size, for as long
    /// as the value lives.
    #[must_use]
    pub unsafe fn new(
        memory: FolioMemory<'s>,
        store: &'s dyn Store,
        len_bytes: u64,
        retries: Retries,
        handler_safe: bool,
        policy: FailurePolicy,
        name: u64,
    ) -> Self {
        let blocks = Blocks::of(store);
        Self {
            memory,
            store,
            here: None,
            blocks,
            i_size: AtomicU64::new(len_bytes),
            retries,
            handler_safe,
            policy,
            name,
        }
    }

    /// Adds what of the store can be read in a handler, although it is for fillers.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn with_here(mut self, here: Option<&'s dyn ReadHere>) -> Self {
        self.here = here;
        self
    }

    /// Sets the end past which the store is not asked.
    ///
    /// # Context: control plane
    pub fn set_len(&self, len_bytes: u64) {
        // Release pairs with `ObjectOps::wanted`.
        self.i_size.store(len_bytes, Ordering::Release);
    }

    fn address(&self, pgoff: u64) -> *mut u8 {
        (self.memory.alias + (pgoff << PAGE_SHIFT) as usize) as *mut u8
    }

    /// Returns how many bytes of the pages lie inside the object.
    fn wanted(&self, pgoff: u64, nr: u32) -> usize {
        let pos = pgoff << PAGE_SHIFT;
        // Acquire pairs with `set_len`.
        let end = (pos + (u64::from(nr) << PAGE_SHIFT)).min(self.i_size.load(Ordering::Acquire));
        end.saturating_sub(pos) as usize
    }

    /// Reads the pages, block by block where only a part of one is wanted. They are the caller's, here and below.
    fn read_once(&self, pgoff: u64, nr: u32) -> Result<(), StoreError> {
        // SAFETY: the caller owns the pages' claims, and `new` promised the memory.
        unsafe { thp::allocate_small(self.address(pgoff) as usize, nr as usize * PAGE_SIZE) };
        let (mut at, end) = (pgoff, pgoff + u64::from(nr));
        // Once: what is whole by this end is asked for by this end. Acquire pairs with `set_len`.
        let size = self.i_size.load(Ordering::Acquire);
        while at < end {
            let piece = self.blocks.next_piece(at, (end - at) as u32, size);
            match piece.of {
                None => self.read_whole(at, piece.nr, size)?,
                Some(block) => self.read_part(block, at, piece.nr)?,
            }
            at += u64::from(piece.nr);
        }
        Ok(())
    }

    /// Has the store fill memory of its own with a block, and copies what is wanted of it.
    fn read_part(&self, block: (u64, usize), pgoff: u64, nr: u32) -> Result<(), StoreError> {
        let (skip, len) = (((pgoff - block.0) as usize) << PAGE_SHIFT, nr as usize * PAGE_SIZE);
        self.blocks.read(self.store, block, |bytes| {
            // SAFETY: whole pages of the block, all of which are there.
            unsafe { self.place(pgoff, bytes.wrapping_add(skip), len) }
        })
    }

    fn read_whole(&self, pgoff: u64, nr: u32, size: u64) -> Result<(), StoreError> {
        let pos = pgoff << PAGE_SHIFT;
        let len = (pos + (u64::from(nr) << PAGE_SHIFT)).min(size).saturating_sub(pos) as usize;
        if let Some(buffer) = self.buffer(nr) {
            return self.read_bounced(&buffer, pgoff, nr as usize * PAGE_SIZE, len);
        }
        // SAFETY: the caller owns the pages' claims (`AddressSpaceOps`' contract), and `new` promised the memory.
        let mut page = unsafe { PageMut::new(self.address(pgoff), len, self.memory.fd, self.memory.fd_offset + pos) };
        if len > 0 {
            let handed = Cell::new(false);
            page = page.with_ports(self.memory.ports, &handed);
            self.store.read(pos, &mut page)?;
            if handed.get() {
                // What the store moved went to another file, if the program has closed the descriptor meanwhile.
                self.memory.fd.check().map_err(StoreError::Io)?;
            }
        }
        let tail = (nr as usize * PAGE_SIZE) - len;
        if tail > 0 {
            // Bytes past the end read as zero, whatever an earlier fill left there.
            // SAFETY: `len..len + tail` is the rest of the same pages.
            unsafe { self.address(pgoff).wrapping_add(len).write_bytes(0, tail) };
        }
        Ok(())
    }

    /// Takes a buffer for `nr` pages; `None`: the store wants the pages themselves, they are too many, or there is none.
    fn buffer(&self, nr: u32) -> Option<Buffer> {
        let fits = nr as usize * PAGE_SIZE <= BUFFER_BYTES;
        if fits && !self.store.uses_descriptors() { bounce::get() } else { None }
    }

    /// Has the store fill the first `len` of `all` bytes of a buffer, and copies them to the pages.
    fn read_bounced(&self, buffer: &Buffer, pgoff: u64, all: usize, len: usize) -> Result<(), StoreError> {
        let (pos, ptr) = (pgoff << PAGE_SHIFT, buffer.address() as *mut u8);
        // Zeros, where the store writes nothing, as holes are: not what another object's store has left there.
        // SAFETY: the buffer is ours until it is dropped, and as long.
        unsafe { ptr.write_bytes(0, all) };
        if len > 0 {
            // SAFETY: as above. It has no descriptor.
            let mut page = unsafe { PageMut::new(ptr, len, Descriptor::NONE, 0) };
            self.store.read(pos, &mut page)?;
        }
        // SAFETY: the buffer's bytes.
        unsafe { self.place(pgoff, ptr, all) }
    }

    /// Copies bytes to pages that are the caller's to fill.
    ///
    /// # Safety
    /// There are `len` of them, whole pages.
    unsafe fn place(&self, pgoff: u64, bytes: *const u8, len: usize) -> Result<(), StoreError> {
        // Asked here, since the store took its time.
        if bounce::may_copy() {
            let to = (self.memory.fd, self.memory.fd_offset + (pgoff << PAGE_SHIFT));
            // SAFETY: the caller's contract; the pages are the caller's.
            match unsafe { bounce::copy_to(bytes as usize, len, to) } {
                Err(Errno::ENOMEM | Errno::ENOSPC) => return Err(StoreError::NoMemory),
                // The program has closed the descriptor: the alias is left.
                Err(Errno::EBADF) => {}
                r => return r.map_err(StoreError::Io),
            }
        }
        // SAFETY: as above, to pages that are the caller's to fill.
        unsafe { mem::copy_racy(self.address(pgoff), bytes, len) };
        Ok(())
    }

    /// Maps pages that were filled past the alias there, where that is what keeps them in memory.
    fn lock(&self, pgoff: u64, nr: u32) {
        if !self.memory.is_locked {
            return;
        }
        for i in 0..u64::from(nr) {
            // SAFETY: the object's own range of the alias; the page is the caller's and filled, so it is there.
            unsafe { self.address(pgoff + i).read_volatile() };
        }
    }

    fn read_retrying(&self, pgoff: u64, nr: u32) -> Result<(), StoreError> {
        self.retries.read(self.handler_safe, || self.read_once(pgoff, nr))
    }

    /// Gives a copy of the pages to the store. They are `writeback`, or pinned, here and below.
    fn write_bounced(&self, buffer: &Buffer, pgoff: u64, nr: u32) -> Result<(), StoreError> {
        let (len, pos) = (self.wanted(pgoff, nr), pgoff << PAGE_SHIFT);
        if len == 0 {
            // Past the end by now: nobody may see these bytes again.
            return Ok(());
        }
        match buffer.copy_from(len, (self.memory.fd, self.memory.fd_offset + pos)) {
            // The program has closed the descriptor: the alias is left.
            Err(Errno::EBADF) => copy_out(self.address(pgoff).cast_const(), buffer.address() as *mut u8, len),
            r => r.map_err(StoreError::Io)?,
        }
        // SAFETY: the buffer is ours until it is dropped, and as long. It has no descriptor.
        let pages = unsafe { PageRef::new(buffer.address() as *const u8, len, Descriptor::NONE, 0) };
        self.store.write(pos, &pages)
    }

    /// Gives the pages themselves to the store.
    fn write_pages(&self, pgoff: u64, nr: u32) -> Result<(), StoreError> {
        let (len, pos) = (self.wanted(pgoff, nr), pgoff << PAGE_SHIFT);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the pages are `writeback` or pinned: they stay in the memfd until that ends, mapped at their alias.
        let pages = unsafe { PageRef::new(self.address(pgoff), len, self.memory.fd, self.memory.fd_offset + pos) };
        let handed = Cell::new(false);
        self.store.write(pos, &pages.noting(&handed))?;
        if handed.get() {
            // What the store moved was another file's, if the program has closed the descriptor meanwhile.
            self.memory.fd.check().map_err(StoreError::Io)?;
        }
        Ok(())
    }

    /// The same, page by page where the run is not taken: pages before the bad one are, and it is named.
    fn write_run(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        let whole = self.write_pages(pgoff, nr);
        if nr == 1 || whole.is_ok() {
            return whole.map_err(|e| (0, e.fill_error()));
        }
        (0..nr).try_for_each(|i| self.write_pages(pgoff + u64::from(i), 1).map_err(|e| (i, e.fill_error())))
    }

    /// Writes copies, page by page, for a store that must see bytes which nobody changes meanwhile.
    fn write_copies(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        let staged = loop {
            match staging::get() {
                Some(staged) => break staged,
                None => thread::sched_yield(),
            }
        };
        let mut result = Ok(());
        for i in 0..nr {
            let p = pgoff + u64::from(i);
            let len = self.wanted(p, 1);
            if len == 0 {
                break;
            }
            let copy = staging::address(&staged) as *mut u8;
            copy_out(self.address(p).cast_const(), copy, len);
            // SAFETY: the staging page is ours until it is put back. It has no descriptor.
            let page = unsafe { PageRef::new(copy, len, Descriptor::NONE, 0) };
            if let Err(e) = self.store.write(p << PAGE_SHIFT, &page) {
                result = Err((i, e.fill_error()));
                break;
            }
        }
        staging::put(&staged);
        result
    }
}

impl AddressSpaceOps for ObjectOps<'_> {
    fn read_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        if nr > 1 && self.read_once(pgoff, nr).is_ok() {
            self.lock(pgoff, nr);
            return Ok(());
        }
        // A window with one bad page is read page by page (or block by block), so that only that page fails.
        let mut done = 0;
        while done < nr {
            let at = pgoff + u64::from(done);
            let some = self.blocks.first_part(at, nr - done);
            if let Err(error) = self.read_retrying(at, some) {
                if self.policy == FailurePolicy::Abort {
                    retry::abort(self.name, at);
                }
                return Err((done, error.fill_error()));
            }
            self.lock(at, some);
            done += some;
        }
        Ok(())
    }

    fn zero_folio(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        // SAFETY: the caller owns the pages' claims; the memory is the object's.
        unsafe { self.address(pgoff).write_bytes(0, nr as usize * PAGE_SIZE) };
        Ok(())
    }

    fn reads_here(&self) -> bool {
        self.here.is_some()
    }

    fn read_here(&self, pgoff: u64, nr: u32) -> bool {
        let (pos, len) = (pgoff << PAGE_SHIFT, nr as usize * PAGE_SIZE);
        let Some(here) = self.here.filter(|h| self.wanted(pgoff, nr) == len && h.reads_here(pos, len)) else {
            return false;
        };
        // SAFETY: the caller owns the pages' claims, and `new` promised the memory.
        unsafe { thp::allocate_small(self.address(pgoff) as usize, len) };
        // SAFETY: as above.
        let page = unsafe { PageMut::new(self.address(pgoff), len, self.memory.fd, self.memory.fd_offset + pos) };
        let handed = Cell::new(false);
        let mut page = page.with_ports(self.memory.ports, &handed);
        // What was moved went to another file, if the program has closed the descriptor meanwhile.
        let is_read = here.read_here(pos, &mut page) && (!handed.get() || self.memory.fd.check().is_ok());
        if is_read {
            self.lock(pgoff, nr);
        } else {
            // Who reads them next relies on holes.
            page.make_holes();
        }
        is_read
    }

    fn read_staged_here(&self, pgoff: u64, staged: &Staged) -> bool {
        let (pos, ptr) = (pgoff << PAGE_SHIFT, staging::address(staged) as *mut u8);
        let Some(here) = self.here.filter(|h| self.wanted(pgoff, 1) == PAGE_SIZE && h.reads_here(pos, PAGE_SIZE))
        else {
            return false;
        };
        // SAFETY: the staging page was taken from the pool by the caller, so it is theirs alone. It has no descriptor.
        let mut page = unsafe { PageMut::new(ptr, PAGE_SIZE, Descriptor::NONE, 0) };
        here.read_here(pos, &mut page)
    }

    fn read_staged(&self, pgoff: u64, staged: &Staged) -> Result<(), FillError> {
        let ptr = staging::address(staged) as *mut u8;
        // Acquire pairs with `set_len`.
        let size = self.i_size.load(Ordering::Acquire);
        if let Some(block) = self.blocks.next_piece(pgoff, 1, size).of {
            let read = self.blocks.read(self.store, block, |bytes| {
                let page = bytes.wrapping_add(((pgoff - block.0) as usize) << PAGE_SHIFT);
                // SAFETY: a page of the block's memory, to the staging page, which is the caller's alone.
                unsafe { mem::copy_racy(ptr, page, PAGE_SIZE) };
                Ok(())
            });
            return read.map_err(StoreError::fill_error);
        }
        let len = self.wanted(pgoff, 1);
        // SAFETY: the staging page was taken from the pool by the caller, so it is theirs alone. It has no descriptor.
        let mut page = unsafe { PageMut::new(ptr, len, Descriptor::NONE, 0) };
        self.store.read(pgoff << PAGE_SHIFT, &mut page).map_err(StoreError::fill_error)?;
        // SAFETY: the rest of the same page.
        unsafe { ptr.wrapping_add(len).write_bytes(0, PAGE_SIZE - len) };
        Ok(())
    }

    fn dsync(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        let len = u64::from(nr) << PAGE_SHIFT;
        self.store.dsync(pgoff << PAGE_SHIFT, len).map_err(StoreError::fill_error)
    }

    fn write_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        let is_stable = self.store.is_stable();
        // One that is given copies is given them a buffer at a time; longer runs are others' as they are.
        let most = if is_stable { (BUFFER_BYTES / PAGE_SIZE) as u32 } else { nr };
        let mut done = 0;
        while done < nr {
            let (at, some) = (pgoff + u64::from(done), most.min(nr - done));
            let written = match self.buffer(some) {
                Some(buffer) => self.write_bounced(&buffer, at, some).map_err(|e| (0, e.fill_error())),
                None if is_stable => self.write_copies(at, some),
                None => self.write_run(at, some),
            };
            written.map_err(|(good, e)| (done + good, e))?;
            done += some;
        }
        Ok(())
    }

    fn preserve(&self, number: u32, pgoff: u64, won: &mut dyn FnMut() -> bool) -> Preserved {
        let key = Key { object: self.name as u32, pgoff };
        // SAFETY: the caller has pinned the page, so it is there, at its alias.
        unsafe { area::put(number, key, self.address(pgoff), won) }
    }

    fn rereads_unflushed(&self) -> bool {
        self.store.rereads_unflushed()
    }

    fn punch(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        let memory = (self.memory.fd, self.memory.fd_offset + (pgoff << PAGE_SHIFT));
        // SAFETY: the caller owns the pages (evicting, or a failed fill): nobody relies on their bytes. The alias is theirs.
        unsafe { cache::punch(self.address(pgoff) as usize, nr as usize * PAGE_SIZE, memory) }.map_err(FillError::Io)
    }

    fn collapse(&self, pgoff: u64) -> Result<(), FillError> {
        // The alias is congruent to the memfd modulo 2 MiB if the region's is; where it is not, this is EINVAL.
        let at = self.address(pgoff) as usize;
        // SAFETY: the object's own range of the alias; nothing is allocated there meanwhile, since every page is cached.
        unsafe { thp::permit(at, EXTENT_SIZE, true) }.map_err(|_| FillError::NoMemory)?;
        let collapsed = collapse_at(at);
        // If it cannot be taken back, faults in this chunk may bring huge pages.
        // SAFETY: as above.
        let _ = unsafe { thp::permit(at, EXTENT_SIZE, false) };
        collapsed
    }

    fn with_page_mut(&self, pgoff: u64, f: &mut dyn FnMut(&mut [u8])) {
        if pgoff >= (self.memory.len_bytes / PAGE_SIZE) as u64 {
            return;
        }
        // SAFETY: the caller owns the page (`filling`), so nobody else reads or writes it; the memory is the memfd's,
        // hence initialised.
        let bytes = unsafe { core::slice::from_raw_parts_mut(self.address(pgoff), PAGE_SIZE) };
        f(bytes);
    }

    fn copy_from_page(&self, pgoff: u64, offset: usize, dst: &mut [u8]) {
        if pgoff >= (self.memory.len_bytes / PAGE_SIZE) as u64 {
            return;
        }
        let len = dst.len().min(PAGE_SIZE.saturating_sub(offset));
        let src = self.address(pgoff).wrapping_add(offset).cast_const();
        copy_out(src, dst.as_mut_ptr(), len);
    }
}

/// Makes the chunk at `at` of the alias one huge page.
fn collapse_at(at: usize) -> Result<(), FillError> {
    // A page that the kernel holds for a moment, of a queue of its own say, is EAGAIN.
    let mut tries = 3;
    loop {
        tries -= 1;
        // SAFETY: the object's own range of the alias; the advice changes no byte, and every page is there (contract).
        match unsafe { mem::madvise(at, EXTENT_SIZE, mem::MADV_COLLAPSE) } {
            Err(Errno::EAGAIN | Errno::EBUSY) if tries > 0 => {}
            Err(Errno::ENOMEM) => return Err(FillError::NoMemory),
            r => return r.map_err(FillError::Io),
        }
    }
}

/// Copies from memory that others may be writing: no reference to it is made, and each byte is read once.
fn copy_out(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller pinned the page, so `src..src + len` is mapped; `dst` is a live exclusive slice of at least
    // `len` bytes outside the cache.
    unsafe { mem::copy_racy(dst, src, len) };
}

/// Copies into a page that the caller has pinned with `DIRTY`; others may be reading it.
///
/// # Context: handler
///
/// # Safety
/// `dst` is the address of a pinned page plus an offset, and `src.len()` bytes from it lie in pinned pages.
pub unsafe fn copy_in(dst: *mut u8, src: &[u8]) {
    // SAFETY: the caller's contract; `src` is a live slice that does not overlap the cache's alias.
    unsafe { mem::copy_racy(dst, src.as_ptr(), src.len()) };
}
