//! The hot store below every cache: bytes in memory that are copied in on a miss and copied back when dirty.

use softfault_benches::area::{Mapping, Memfd};
use softfault_benches::{Error, PAGE, Result};
use softfault_platform::sys::mem::{MADV_POPULATE_WRITE, PROT_READ, PROT_WRITE, copy_racy};
use softfault_platform::sys::{Errno, file};

/// How bytes leave and enter the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// A copy between two mapped pages.
    Copy,
    /// pread(2) and pwrite(2), as from a file that is hot in the kernel's page cache.
    Pread,
}

/// An object's bytes, all of them in memory and mapped. Each side that stores needs one of its own: a store that one side
/// loses must not be found because another side kept it.
#[derive(Debug)]
pub(crate) struct Source {
    map: Mapping,
    memfd: Memfd,
    transfer: Transfer,
}

impl Source {
    /// Makes `len_bytes` of the pattern.
    pub(crate) fn new(len_bytes: usize, transfer: Transfer) -> Result<Self> {
        let memfd = Memfd::filled(len_bytes)?;
        let map = Mapping::shared(memfd.fd(), len_bytes, PROT_READ | PROT_WRITE)?;
        map.advise(MADV_POPULATE_WRITE)?;
        Ok(Self { map, memfd, transfer })
    }

    /// Returns the size.
    pub(crate) fn len_bytes(&self) -> usize {
        self.memfd.len_bytes()
    }

    /// Returns where the bytes at `pos_bytes` are mapped.
    pub(crate) fn addr(&self, pos_bytes: usize) -> usize {
        self.map.base() + pos_bytes
    }

    /// Copies `len_bytes` bytes from `pos_bytes` on to `dst`.
    ///
    /// # Context: handler
    ///
    /// # Safety
    /// `dst..dst + len_bytes` is writable and the caller's alone.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, pos_bytes: usize, dst: usize, len_bytes: usize) -> std::result::Result<(), Errno> {
        self.check(pos_bytes, len_bytes)?;
        if self.transfer == Transfer::Pread {
            // SAFETY: the caller's contract.
            let read = unsafe { file::pread(self.memfd.fd(), dst, len_bytes, pos_bytes as u64) }?;
            return if read == len_bytes { Ok(()) } else { Err(Errno::EIO) };
        }
        // SAFETY: inside our mapping (`check`); the caller vouches for `dst`.
        unsafe { copy_racy(dst as *mut u8, self.addr(pos_bytes) as *const u8, len_bytes) };
        Ok(())
    }

    /// Copies `len_bytes` bytes from `src` to `pos_bytes` and on.
    ///
    /// # Context: handler
    ///
    /// # Safety
    /// `src..src + len_bytes` is readable; no other thread transfers the same range meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn write(
        &self,
        pos_bytes: usize,
        src: usize,
        len_bytes: usize,
    ) -> std::result::Result<(), Errno> {
        self.check(pos_bytes, len_bytes)?;
        if self.transfer == Transfer::Pread {
            // SAFETY: the caller's contract.
            let written = unsafe { file::pwrite(self.memfd.fd(), src, len_bytes, pos_bytes as u64) }?;
            return if written == len_bytes { Ok(()) } else { Err(Errno::EIO) };
        }
        // SAFETY: inside our mapping (`check`), to which no reference exists; the caller vouches for `src`.
        unsafe { copy_racy(self.addr(pos_bytes) as *mut u8, src as *const u8, len_bytes) };
        Ok(())
    }

    fn check(&self, pos_bytes: usize, len_bytes: usize) -> std::result::Result<(), Errno> {
        let end = pos_bytes.checked_add(len_bytes);
        if end.is_some_and(|e| e <= self.memfd.len_bytes()) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Returns how many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.len_bytes() / PAGE
    }
}

/// Says which page a side could not transfer.
pub(crate) fn failed(page: usize, errno: Errno) -> Error {
    Error::Wrong(format!("transferring page {page}: {errno}"))
}
