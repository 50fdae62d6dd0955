//! The memory of the page cache: memfds, each with one alias mapping and the words of its pages.
//!
//! A region is created sparse at its full size, sealed against resizing, and never resized: the end of an object is a
//! number in the object. Objects are ranges of a region, in units of a chunk (2 MiB), so that ten thousand objects need
//! one descriptor. What touches the bytes itself does so through the alias, which is registered nowhere.
//!
//! # Context: control plane; [`punch`] and the alias: handler

use crate::bits::Bits;
use crate::sparse::{self, Sparse};
use crate::sys::fd::{self, Descriptor};
use crate::sys::{Errno, file, mem, text};
use crate::thp;
use core::sync::atomic::AtomicU64;
use softfault_mm::chunk::ChunkWord;
use softfault_mm::cut::CaptureBits;
use softfault_mm::folio::FolioWord;
use softfault_mm::page::{EXTENT_SIZE, PAGE_SIZE};

/// One memfd with its alias and tables. Unmapped on drop: whoever drops it guarantees that no object is left in it.
#[derive(Debug)]
pub struct Region {
    fd: Descriptor,
    alias: usize,
    len_bytes: usize,
    folios: usize,
    chunks: Sparse,
    /// Four tables of one bit a page, closed until a capture needs them.
    bits: usize,
    ports: Ports,
}

/// Tables of [`CaptureBits`].
const NR_PLANES: usize = 4;

/// How many fills of a region may move data between descriptors at once; more go through the alias.
const NR_PORTS: usize = 4;

/// Descriptors of the same memfd with positions of their own, each lent to one fill at a time.
#[derive(Debug)]
pub struct Ports {
    fds: [Descriptor; NR_PORTS],
    nr: usize,
    /// One bit a port: lent.
    lent: Bits,
}

impl Ports {
    fn none() -> Self {
        Self { fds: [Descriptor::NONE; NR_PORTS], nr: 0, lent: Bits::new() }
    }

    /// Opens the memfd anew through `/proc`; where that is not there, no port is. Control plane.
    fn open(memfd: i32) -> Self {
        let mut ports = Self::none();
        let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0";
        text::put_decimal(path.get_mut(14..24), u64::from(memfd.unsigned_abs()));
        let Ok(path) = core::ffi::CStr::from_bytes_until_nul(&path) else { return ports };
        for port in &mut ports.fds {
            match file::open_rdwr(path) {
                Ok(opened) => *port = Descriptor::new(fd::raise(opened)),
                Err(_) => break,
            }
            ports.nr += 1;
        }
        ports
    }

    /// Lends a port; `None`: all are lent.
    ///
    /// # Context: handler
    #[must_use]
    pub fn get(&self) -> Option<Port<'_>> {
        let index = self.lent.take(self.nr)?;
        Some(Port { ports: self, index, fd: *self.fds.get(index)? })
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.fds.iter().take(self.nr).for_each(|fd| fd.close());
    }
}

/// A lent port; goes back on drop.
#[derive(Debug)]
pub struct Port<'a> {
    ports: &'a Ports,
    index: usize,
    fd: Descriptor,
}

impl Port<'_> {
    /// Returns the descriptor.
    ///
    /// # Context: handler
    #[must_use]
    pub fn fd(&self) -> Descriptor {
        self.fd
    }
}

impl Drop for Port<'_> {
    fn drop(&mut self) {
        self.ports.lent.put(self.index);
    }
}

impl Region {
    /// Creates a region of `len_bytes` bytes, a multiple of 2 MiB.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `EFBIG` past `RLIMIT_FSIZE`, `ENOMEM` past `RLIMIT_AS` or the overcommit limit, `EMFILE`; and which system call said so.
    pub fn new(len_bytes: usize) -> Result<Self, (&'static str, Errno)> {
        let of = |call: &'static str| move |errno: Errno| (call, errno);
        if file::rlimit_fsize() < len_bytes as u64 {
            return Err(("ftruncate", Errno::EFBIG));
        }
        let fd = fd::raise(mem::memfd_create(c"softfault-cache").map_err(of("memfd_create"))?);
        let ports = Ports::none();
        let mut region =
            Self { fd: Descriptor::new(fd), alias: 0, len_bytes, folios: 0, chunks: Sparse::new(), bits: 0, ports };
        file::ftruncate(fd, len_bytes as u64).map_err(of("ftruncate"))?;
        mem::seal_size(fd).map_err(of("fcntl"))?;
        // Every fill looks at it twice. Its position is nobody's: ports have their own.
        region.fd = region.fd.mark();
        // Congruent to the memfd modulo 2 MiB, or nothing of it could be made a huge page.
        region.alias = mem::reserve(len_bytes, EXTENT_SIZE).map_err(of("mmap"))?;
        let flags = mem::MAP_SHARED | mem::MAP_NORESERVE | mem::MAP_FIXED;
        // Without access, which mlockall(2) passes over: opened as objects come.
        // SAFETY: the range reserved above, which nobody has seen; the memfd is ours alone.
        unsafe { mem::mmap(region.alias, len_bytes, mem::PROT_NONE, flags, fd, 0) }.map_err(of("mmap"))?;
        for advice in [mem::MADV_DONTFORK, mem::MADV_DONTDUMP] {
            // SAFETY: the alias mapped above; a child must not write the shared cache through it.
            unsafe { mem::madvise(region.alias, len_bytes, advice) }.map_err(of("madvise"))?;
        }
        // SAFETY: the alias mapped above.
        unsafe { thp::permit(region.alias, len_bytes, false) }.map_err(of("madvise"))?;
        thp::look();
        region.folios = sparse::reserve_closed(region.folios_len()).map_err(of("mmap"))?;
        region.chunks.reserve(region.chunks_len()).map_err(of("mmap"))?;
        region.bits = sparse::reserve_closed(NR_PLANES * region.plane_len()).map_err(of("mmap"))?;
        region.ports = Ports::open(fd);
        Ok(region)
    }

    /// Returns the address space that a region of `len_bytes` takes, a multiple of 2 MiB.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn address_space_bytes(len_bytes: usize) -> usize {
        let words = len_bytes / PAGE_SIZE * size_of::<FolioWord>() + len_bytes / EXTENT_SIZE * size_of::<ChunkWord>();
        len_bytes + EXTENT_SIZE + words + NR_PLANES * Self::plane_of(len_bytes)
    }

    /// Makes a range accessible, its bytes and its words, before an object is there. Multiples of 2 MiB.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `ENOMEM`: of the mappings' number, `RLIMIT_DATA`, or what may be committed. Some of it may be accessible then.
    pub fn open(&self, offset: u64, len_bytes: usize) -> Result<(), Errno> {
        let end = offset as usize + len_bytes;
        self.chunks.open_to(end / EXTENT_SIZE * size_of::<ChunkWord>())?;
        let (first, words_len) = Self::folio_bytes(offset, len_bytes);
        sparse::open_range(self.folios + first, words_len)?;
        sparse::open_range(self.alias_at(offset), len_bytes)
    }

    /// Takes access to a range away.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `ENOMEM`: of the mappings' number. Some of it may be inaccessible then: open it before it is used.
    ///
    /// # Safety
    /// No object uses the range: nobody reads its words or bytes before it is opened again.
    pub unsafe fn close(&self, offset: u64, len_bytes: usize) -> Result<(), Errno> {
        let (first, words_len) = Self::folio_bytes(offset, len_bytes);
        // SAFETY: the caller's contract; likewise below.
        unsafe { mem::mprotect(self.alias_at(offset), len_bytes, mem::PROT_NONE) }?;
        // SAFETY: as above.
        unsafe { mem::mprotect(self.folios + first, words_len, mem::PROT_NONE) }
    }

    /// Where the words of the pages of a range lie among all, in bytes, and how many: whole pages of the table.
    fn folio_bytes(offset: u64, len_bytes: usize) -> (usize, usize) {
        (offset as usize / PAGE_SIZE * size_of::<FolioWord>(), len_bytes / PAGE_SIZE * size_of::<FolioWord>())
    }

    fn folios_len(&self) -> usize {
        self.len_bytes / PAGE_SIZE * size_of::<FolioWord>()
    }
    fn plane_of(len_bytes: usize) -> usize {
        (len_bytes / PAGE_SIZE / 8).next_multiple_of(PAGE_SIZE)
    }
    fn plane_len(&self) -> usize {
        Self::plane_of(self.len_bytes)
    }
    fn chunks_len(&self) -> usize {
        (self.len_bytes / EXTENT_SIZE * size_of::<ChunkWord>()).next_multiple_of(PAGE_SIZE)
    }
    /// Returns the memfd.
    ///
    /// # Context: handler
    #[must_use]
    pub fn fd(&self) -> Descriptor {
        self.fd
    }
    /// Returns the descriptors that fills may borrow.
    ///
    /// # Context: handler
    #[must_use]
    pub fn ports(&self) -> &Ports {
        &self.ports
    }
    /// Returns the region's length.
    ///
    /// # Context: handler
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
    /// Returns the address of the alias of `offset`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn alias_at(&self, offset: u64) -> usize {
        self.alias + offset as usize
    }
    /// Returns the bytes of memory the region occupies.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.fd.check().and_then(file::allocated_bytes).unwrap_or(0)
    }

    /// Returns the bytes of memory that the tables of the region's first `len_bytes` take, a multiple of 2 MiB.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn table_bytes_resident(&self, len_bytes: usize) -> u64 {
        let folios = len_bytes / PAGE_SIZE * size_of::<FolioWord>();
        let chunks = (len_bytes / EXTENT_SIZE * size_of::<ChunkWord>()).next_multiple_of(PAGE_SIZE);
        mem::resident_bytes(self.folios, folios) + mem::resident_bytes(self.chunks.base(), chunks)
    }

    /// Lends the words of the pages of `offset..offset + len_bytes`, both multiples of 2 MiB inside the region.
    ///
    /// # Context: control plane
    ///
    /// # Safety
    /// The words are not used after the region is dropped.
    #[must_use]
    pub unsafe fn folios(&self, offset: u64, len_bytes: usize) -> &'static [FolioWord] {
        let first = (self.folios as *const FolioWord).wrapping_add(offset as usize / PAGE_SIZE);
        // SAFETY: the table has one zeroed (valid) word for each page of the region; the range is inside by contract,
        // and the words are atomics that are only ever shared.
        unsafe { core::slice::from_raw_parts(first, len_bytes / PAGE_SIZE) }
    }

    /// Lends the words of the chunks of the same range.
    ///
    /// # Context: control plane
    ///
    /// # Safety
    /// As [`Region::folios`].
    #[must_use]
    pub unsafe fn chunks(&self, offset: u64, len_bytes: usize) -> &'static [ChunkWord] {
        let first = (self.chunks.base() as *const ChunkWord).wrapping_add(offset as usize / EXTENT_SIZE);
        // SAFETY: as above, one zeroed word for each chunk.
        unsafe { core::slice::from_raw_parts(first, len_bytes / EXTENT_SIZE) }
    }

    /// Lends the bits of the pages of the same range, which nobody looks at before [`Region::open_bits`].
    ///
    /// # Context: control plane
    ///
    /// # Safety
    /// As [`Region::folios`].
    #[must_use]
    pub unsafe fn capture_bits(&self, offset: u64, len_bytes: usize) -> CaptureBits<'static> {
        let plane = |i: usize| {
            let first = self.bits + i * self.plane_len() + offset as usize / PAGE_SIZE / 8;
            // SAFETY: as above, one zeroed bit for each page; an object begins at a chunk, which has eight whole words.
            unsafe { core::slice::from_raw_parts(first as *const AtomicU64, len_bytes / PAGE_SIZE / 64) }
        };
        CaptureBits::new(plane(0), [plane(1), plane(2)], plane(3))
    }

    /// Makes the bits of a range accessible. They stay so: a page of a table has those of neighbours, too.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `ENOMEM`: of the mappings' number, `RLIMIT_DATA`, or what may be committed. Some may be accessible then.
    pub fn open_bits(&self, offset: u64, len_bytes: usize) -> Result<(), Errno> {
        let (from, to) = (offset as usize / PAGE_SIZE / 8, (offset as usize + len_bytes) / PAGE_SIZE / 8);
        let (from, to) = (from / PAGE_SIZE * PAGE_SIZE, to.next_multiple_of(PAGE_SIZE));
        (0..NR_PLANES).try_for_each(|i| sparse::open_range(self.bits + i * self.plane_len() + from, to - from))
    }

    /// Gives the range's memory back and makes its words new.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// The kernel's; the range must then not be used again: its bytes are still the old object's.
    ///
    /// # Safety
    /// No object uses the range any more: nobody reads its words or bytes.
    pub unsafe fn recycle(&self, offset: u64, len_bytes: usize) -> Result<(), Errno> {
        // SAFETY: nobody relies on the bytes (contract).
        unsafe { punch(self.alias_at(offset), len_bytes, (self.fd, offset)) }?;
        let table = self.folios + offset as usize / PAGE_SIZE * size_of::<FolioWord>();
        // 512 words of 8 bytes fill one page of the table exactly, so chunks are whole table pages.
        // SAFETY: nobody reads the words (contract); afterwards they are zero, `absent`.
        unsafe { mem::drop_pages(table, len_bytes / PAGE_SIZE * size_of::<FolioWord>()) }?;
        // SAFETY: the caller's contract covers the chunks' words too.
        for chunk in unsafe { self.chunks(offset, len_bytes) } {
            // With every count: an eviction that was never ended would keep the next object's extents from the kernel.
            chunk.reset();
        }
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if crate::child::in_child() {
            return;
        }
        for (at, len) in [
            (self.alias, self.len_bytes),
            (self.folios, self.folios_len()),
            (self.chunks.base(), self.chunks.len_bytes()),
            (self.bits, NR_PLANES * self.plane_len()),
        ] {
            if at != 0 {
                // SAFETY: mapped by `new`; no object is left in the region (the dropper's guarantee).
                let _ = unsafe { mem::munmap(at, len) };
            }
        }
        self.fd.close();
    }
}

/// Gives pages of the cache back to the kernel: through the alias at `alias`, which names no descriptor. Where it is locked
/// in memory, which the kernel refuses to punch, through the descriptor, if that still names the memfd.
///
/// # Context: handler
///
/// # Errors
/// `EBADF` where neither can be; the kernel's others.
///
/// # Safety
/// `alias` is the alias of the memfd's bytes from the offset on; the caller owns the pages (evicting, filling, or those of no
/// object): nobody relies on their bytes.
pub unsafe fn punch(alias: usize, len_bytes: usize, (memfd, offset): (Descriptor, u64)) -> Result<(), Errno> {
    // SAFETY: the caller's contract.
    match unsafe { mem::remove_pages(alias, len_bytes) } {
        // SAFETY: as above, and the number names the memfd.
        Err(Errno::EINVAL) => unsafe { mem::punch_hole(memfd.check()?, offset, len_bytes as u64) },
        r => r,
    }
}
