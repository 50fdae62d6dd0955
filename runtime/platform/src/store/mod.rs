//! Stores: where pages come from and go to.
//!
//! A [`Store`] is called by a filler thread and may do what it likes. A [`HandlerStore`] promises to be callable in a
//! signal handler and is then called in the faulting thread: no thread switch, but also no deadline.
//!
//! # Context: a filler ([`Store`]); a handler ([`HandlerStore`], and what the pages offer)

pub mod blocks;
pub mod bounce;
pub mod direct;
#[cfg(feature = "userfaultfd")]
pub mod exclusive;
pub mod file;
#[cfg(feature = "std")]
mod io_error;
pub mod object;
mod part;
pub mod retry;
#[cfg(feature = "userfaultfd")]
mod source;
pub mod swap;
pub mod swapfile;
pub mod zero;

pub use bounce::BUFFER_BYTES;

use crate::cache::Ports;
use crate::sys::fd::Descriptor;
use crate::sys::{Errno, file as sys_file};
use core::cell::Cell;
use core::marker::PhantomData;
use softfault_mm::page::PAGE_SIZE;
use softfault_mm::types::FillError;

/// Why a store could not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The system's or device's error.
    Io(Errno),
    /// The store ends before the object does.
    Short,
    /// The content failed its check: the page is poisoned, never shown.
    Corrupt,
    /// No memory.
    NoMemory,
    /// The store cannot do this (write, say).
    Unsupported,
}

impl StoreError {
    /// Returns the fault path's word for it.
    ///
    /// # Context: handler
    #[must_use]
    pub fn fill_error(self) -> FillError {
        match self {
            Self::Short => FillError::Short,
            Self::Corrupt => FillError::Corrupt,
            Self::NoMemory => FillError::NoMemory,
            Self::Io(errno) => FillError::Io(errno),
            Self::Unsupported => FillError::Io(Errno::EOPNOTSUPP),
        }
    }
}

impl core::fmt::Display for StoreError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Io(e) => core::fmt::Display::fmt(e, f),
            Self::Short => f.write_str("the store ends before the object"),
            Self::Corrupt => f.write_str("the content failed its check"),
            Self::NoMemory => f.write_str("no memory"),
            Self::Unsupported => f.write_str("not supported by the store"),
        }
    }
}

impl core::error::Error for StoreError {}

/// The bytes a store is to fill: a range of the cache, or of a buffer, that nobody else can see until the fill is
/// published.
#[derive(Debug)]
pub struct PageMut<'a> {
    ptr: *mut u8,
    len_bytes: usize,
    fd: Descriptor,
    fd_offset: u64,
    ports: Option<&'a Ports>,
    handed: Option<&'a Cell<bool>>,
    owner: PhantomData<&'a mut [u8]>,
}

impl<'a> PageMut<'a> {
    /// # Safety
    /// `ptr..ptr + len_bytes` is writable, is `fd` at `fd_offset` (or `fd` is none), and belongs to the caller alone (a claim)
    /// for as long as the value lives.
    pub(crate) unsafe fn new(ptr: *mut u8, len_bytes: usize, fd: Descriptor, fd_offset: u64) -> Self {
        Self { ptr, len_bytes, fd, fd_offset, ports: None, handed: None, owner: PhantomData }
    }
    /// Adds descriptors that a fill may borrow, and has it noted in `handed` that a store was told one.
    pub(crate) fn with_ports(mut self, ports: &'a Ports, handed: &'a Cell<bool>) -> Self {
        self.ports = Some(ports);
        self.handed = Some(handed);
        self
    }
    /// Returns how many bytes are wanted: whole pages, except at the end of the object.
    ///
    /// # Context: handler
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
    /// Returns the bytes. What was there before is unspecified.
    ///
    /// # Context: handler
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `new`'s contract: writable, exclusively owned for our lifetime; `&mut self` keeps it to one borrow.
        // The memory is the memfd's, or a buffer's, which the kernel has filled with zeros: hence initialised.
        unsafe { core::slice::from_raw_parts_mut(self.ptr, self.len_bytes) }
    }
    /// Returns the address of the bytes, for system calls that fill them.
    ///
    /// # Context: handler
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr
    }
    /// Fills all of it from `fd` at `pos_bytes` inside the kernel, without mapping a page: about half the time of a read
    /// into the mapped bytes, which faults once a page. Reads into the bytes where the kernel, the file or the store (see
    /// [`Store::uses_descriptors`]) cannot.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`StoreError::Short`] at the end of the file, [`StoreError::Io`].
    pub fn fill_from(&mut self, fd: i32, pos_bytes: u64) -> Result<(), StoreError> {
        // What went astray, since the program has closed the port meanwhile, is read again.
        let mut done = self.send_from(fd, pos_bytes).unwrap_or(0);
        while done < self.len_bytes {
            let dst = self.ptr as usize + done;
            // SAFETY: `len_bytes` exclusive writable bytes at `ptr` (`new`'s contract), of which `done` are filled.
            match unsafe { sys_file::pread(fd, dst, self.len_bytes - done, pos_bytes + done as u64) } {
                Ok(0) => return Err(StoreError::Short),
                Ok(n) => done += n,
                Err(e) => return Err(StoreError::Io(e)),
            }
        }
        Ok(())
    }

    /// Moves what it can between descriptors; returns how much. Nothing where a limit on the size of files lies below: it is the
    /// cache's position that counts, and the kernel would send SIGXFSZ. A store to a mapping is no write.
    fn send_from(&self, fd: i32, pos_bytes: u64) -> Result<usize, Errno> {
        if sys_file::rlimit_fsize() < self.fd_offset.saturating_add(self.len_bytes as u64) {
            return Ok(0);
        }
        let Some(port) = self.ports.and_then(Ports::get) else { return Ok(0) };
        let to = port.fd().check()?;
        sys_file::seek(to, self.fd_offset)?;
        let mut done = 0;
        while done < self.len_bytes {
            // SAFETY: the port's position is inside the range we own, `len_bytes - done` bytes before its end.
            match unsafe { sys_file::sendfile(to, fd, pos_bytes + done as u64, self.len_bytes - done) } {
                Ok(n) if n > 0 => done += n,
                _ => break,
            }
        }
        port.fd().check()?;
        Ok(done)
    }

    /// Returns the descriptor and offset of the same bytes, for stores that move data between descriptors; -1: a buffer,
    /// see [`Store::uses_descriptors`], or the program has closed what it did not know, and the bytes alone are left.
    ///
    /// # Context: handler
    #[must_use]
    pub fn fd_offset(&self) -> (i32, u64) {
        self.handed.into_iter().for_each(|h| h.set(true));
        let number = if self.fd.is_some() { self.fd.check().unwrap_or(-1) } else { -1 };
        (number, self.fd_offset)
    }

    /// Returns the same, without a look whether it is still ours.
    fn memory(&self) -> (Descriptor, u64) {
        (self.fd, self.fd_offset)
    }
}

/// Pages that a store is to take: bytes that other threads may be storing to meanwhile.
///
/// There is no `&[u8]` over them: what is copied out may be torn, and is then written again.
#[derive(Debug)]
pub struct PageRef<'a> {
    ptr: *const u8,
    len_bytes: usize,
    fd: Descriptor,
    fd_offset: u64,
    handed: Option<&'a Cell<bool>>,
    owner: PhantomData<&'a [u8]>,
}

impl<'a> PageRef<'a> {
    /// # Safety
    /// `ptr..ptr + len_bytes` stays readable for as long as the value lives, and is `fd` at `fd_offset` (or `fd` is none).
    pub(crate) unsafe fn new(ptr: *const u8, len_bytes: usize, fd: Descriptor, fd_offset: u64) -> Self {
        Self { ptr, len_bytes, fd, fd_offset, handed: None, owner: PhantomData }
    }
    /// Has it noted in `handed` that a store was told the descriptor.
    pub(crate) fn noting(mut self, handed: &'a Cell<bool>) -> Self {
        self.handed = Some(handed);
        self
    }
    /// Returns how many bytes there are: whole pages, except at the end of the object.
    ///
    /// # Context: handler
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
    /// Returns the address of the bytes, for system calls that read them.
    ///
    /// # Context: handler
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr
    }
    /// Returns the descriptor and offset of the same bytes, for stores that move data between descriptors; -1: a copy, or
    /// the program has closed it.
    ///
    /// # Context: handler
    #[must_use]
    pub fn fd_offset(&self) -> (i32, u64) {
        self.handed.into_iter().for_each(|h| h.set(true));
        let number = if self.fd.is_some() { self.fd.check().unwrap_or(-1) } else { -1 };
        (number, self.fd_offset)
    }
    /// Returns the same, without a look whether it is still ours.
    fn memory(&self) -> (Descriptor, u64) {
        (self.fd, self.fd_offset)
    }
    /// Copies the bytes from `offset` on; returns how many there were.
    ///
    /// # Context: handler
    pub fn copy_to(&self, offset: usize, dst: &mut [u8]) -> usize {
        let len = dst.len().min(self.len_bytes.saturating_sub(offset));
        // SAFETY: `offset + len` bytes are readable (`new`'s contract); `dst` is an exclusive slice of at least `len`.
        unsafe { crate::sys::mem::copy_racy(dst.as_mut_ptr(), self.ptr.wrapping_add(offset), len) };
        len
    }
    /// Writes all of it to `fd` at `pos_bytes`; see pwrite(2).
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`StoreError::Io`]; `EFBIG` past `RLIMIT_FSIZE`, where the kernel would send SIGXFSZ, whether or not the file is that long
    /// already. Nothing was written then.
    pub fn write_to(&self, fd: i32, pos_bytes: u64) -> Result<(), StoreError> {
        if sys_file::rlimit_fsize() < pos_bytes.saturating_add(self.len_bytes as u64) {
            return Err(StoreError::Io(Errno::EFBIG));
        }
        self.write_within_limit(fd, pos_bytes)
    }

    /// The same by who has asked for `RLIMIT_FSIZE`.
    fn write_within_limit(&self, fd: i32, pos_bytes: u64) -> Result<(), StoreError> {
        let mut done = 0;
        while done < self.len_bytes {
            let src = self.ptr as usize + done;
            // SAFETY: `len_bytes` readable bytes at `ptr` (`new`'s contract), of which `done` are written.
            match unsafe { sys_file::pwrite(fd, src, self.len_bytes - done, pos_bytes + done as u64) } {
                Ok(0) => return Err(StoreError::Io(Errno::EIO)),
                Ok(n) => done += n,
                Err(e) => return Err(StoreError::Io(e)),
            }
        }
        Ok(())
    }
}

/// Where an object's pages come from, and go to.
///
/// # Context: a filler thread, or one that calls the runtime
/// `read`, `flush`, `punch` and `set_len` may sleep and lock, but must not wait for anything that a faulting thread may
/// hold: they run while program threads wait inside a load instruction, whatever locks those hold (malloc's included).
pub trait Store: Send + Sync {
    /// Fills `page` with the object's bytes from `pos_bytes` on.
    ///
    /// # Context: a filler, or a thread that calls the runtime; of a [`HandlerStore`] a handler, too
    ///
    /// # Errors
    /// Why not; what was written to `page` is discarded.
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError>;

    /// Makes the blocks and metadata of a range durable before its first store lands (`MAP_SYNC` semantics). Errors of
    /// other bytes that it meets on the way are still to be said by the next [`Store::flush`].
    ///
    /// # Context: a filler, or a thread that calls the runtime; of a [`HandlerStore`] a handler, too
    ///
    /// # Errors
    /// Why not.
    fn dsync(&self, _pos_bytes: u64, _len_bytes: u64) -> Result<(), StoreError> {
        Ok(())
    }

    /// Takes the bytes of `pages` as the object's from `pos_bytes` on. They need not be durable before [`Store::flush`].
    ///
    /// Called with runs as long as the dirty pages permit, in ascending order where there is a choice. Threads of the
    /// program may be storing to the pages meanwhile (unless [`Store::is_stable`]): the page is written again then.
    ///
    /// # Context: a filler, or a thread that calls the runtime; of a [`HandlerStore`] that does not wait a handler, too
    ///
    /// # Errors
    /// Why not; the pages stay dirty.
    fn write(&self, _pos_bytes: u64, _pages: &PageRef<'_>) -> Result<(), StoreError> {
        Err(StoreError::Unsupported)
    }

    /// Makes everything that `write`, `punch` and `set_len` were given before the call durable, data before metadata.
    ///
    /// # Context: a filler, or a thread that calls the runtime
    ///
    /// # Errors
    /// Why not. What was written since the last flush that succeeded counts as not durable, and is written again where it
    /// is still cached.
    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Makes the range read as zeros, giving its storage back where there is any; see fallocate(2).
    ///
    /// # Context: a filler, or a thread that calls the runtime
    ///
    /// # Errors
    /// [`StoreError::Unsupported`]: zeros are written instead.
    fn punch(&self, _pos_bytes: u64, _len_bytes: u64) -> Result<(), StoreError> {
        Err(StoreError::Unsupported)
    }

    /// The object's end moved.
    ///
    /// # Context: a filler, or a thread that calls the runtime
    ///
    /// # Errors
    /// Why the store cannot follow.
    fn set_len(&self, _len_bytes: u64) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns whether `write` must see bytes that nobody changes meanwhile (it checksums, compresses, encrypts): it is
    /// then given a copy.
    ///
    /// # Context: as [`Store::write`]
    fn is_stable(&self) -> bool {
        false
    }

    /// Returns whether `read` and `write` move bytes between descriptors ([`PageMut::fill_from`], `fd_offset`) rather than
    /// through memory: they are then given the cache's own pages. Else they usually get a buffer, of up to 256 KiB, with which
    /// the runtime copies: a page of the cache that is touched through a mapping of the cache's own costs a fault, and when
    /// it leaves a flush of the other processors' TLBs.
    ///
    /// # Context: as [`Store::read`] and [`Store::write`]
    fn uses_descriptors(&self) -> bool {
        false
    }

    /// Returns what reads are aligned to: `read` is then asked for whole blocks of as many bytes, or several in a row, from a
    /// multiple of that on; only the object's last block is cut where the object ends. For content that is made by blocks: of
    /// frames that are compressed or encrypted, records with a checksum. A power of two, from 4096 (the default: any pages)
    /// to 2 MiB; the object is refused elsewhere. It is asked once, when the object is made.
    ///
    /// The pages of a block come into the cache together, but leave it one by one. What is missing of a block of which some is
    /// cached costs a read of the whole, of which the rest is dropped (`fill_discarded` of the statistics, in pages), so that
    /// what was stored to in the cache is never read over. A block that fails, fails for all pages of it that were asked for.
    /// Writes come by pages as before.
    ///
    /// # Context: the call that makes the object
    fn read_align_bytes(&self) -> u64 {
        PAGE_SIZE as u64
    }

    /// Returns whether `read` gives parts of blocks, too: then [`Store::read_align_bytes`] says what costs least, and not what
    /// must be. Missing pages of a block still come together, but a page that fails, fails alone, and of a block that is cached
    /// in part only the rest is asked for.
    ///
    /// # Context: the call that makes the object
    fn reads_parts(&self) -> bool {
        false
    }

    /// Returns whether `write` waits for a device: reclaim then has fillers call it, several at once, also where it might
    /// call it itself.
    ///
    /// # Context: the call that makes the object
    fn write_blocks(&self) -> bool {
        false
    }

    /// Returns whether `read` gives what `write` took before the next flush: if not, a page that was written back stays
    /// in the cache until a flush has succeeded.
    ///
    /// # Context: a handler, of every store: it returns what is known without a lock
    fn rereads_unflushed(&self) -> bool {
        true
    }
}

/// What of a store that is for fillers can be read in a handler: some pages, at some times.
///
/// # Safety
/// As of [`HandlerStore::read`](Store::read): async-signal-safe, with at most 16 KiB of stack; it touches no arena.
pub unsafe trait ReadHere: Send + Sync + core::fmt::Debug {
    /// Returns whether [`ReadHere::read_here`] might fill these pages.
    ///
    /// # Context: handler
    fn reads_here(&self, pos_bytes: u64, len_bytes: usize) -> bool;

    /// Fills whole pages; `false`: it cannot, or something is wrong. Whatever it has written then does not count, and a filler is
    /// to read them.
    ///
    /// # Context: handler
    fn read_here(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> bool;
}

/// A store that may be called in a signal handler.
///
/// # Safety
/// `read` and `dsync`, and `write` unless [`Store::write_blocks`] says that it waits, are async-signal-safe: no allocation, no lock, no lazily initialised thread-local, no libc
/// function outside signal-safety(7), no panic, no use of `errno`; they need at most 16 KiB of stack, and touch arena
/// memory only if [`HandlerStore::touches_arenas`] says so.
pub unsafe trait HandlerStore: Store {
    /// Returns whether `read` or `dsync` touch arena memory, and so may fault while they run.
    ///
    /// The signals of instructions are open while such a store runs, and the thread has no alternate stack: the frame of a
    /// fault goes to the stack that the store is on, which has room for it. 64 such reads run at once; others wait.
    ///
    /// # Context: the call that makes the object
    fn touches_arenas(&self) -> bool {
        false
    }
}
