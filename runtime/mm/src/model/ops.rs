//! The interfaces this crate owns and the layers above implement.
//!
//! [`Mmu`] installs and removes; [`AddressSpaceOps`] reads and drops an object's pages. `VmOps`, the `fault` vtable, is
//! in `vma`, beside the vma it serves; what lends vmas and puts threads to sleep is in `host`.

use crate::errno::Errno;
use crate::types::FillError;

/// What an install did. Counts are pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// Every page.
    All,
    /// The first `n`; ask again for the rest to learn what is in the way.
    Partial(usize),
    /// Nothing: the memory map is changing; the access may simply be made again.
    Again,
    /// Nothing: the first page is mapped already.
    Exists,
    /// Nothing: the range is not ours any more, or the kernel's own (unregistered).
    Gone,
    /// Nothing: the host has no room for another border between what is mapped and what is not. Others are to be hidden.
    Crowded,
    /// Nothing: no memory for page tables.
    NoMemory,
    /// Nothing, although the page is pinned uptodate: an invariant is broken.
    Broken,
}

/// The host's page tables, as far as one arena may change them.
///
/// Every call is made under a pin of each page it names (that is the caller's duty) and inside a section. What has a body here is
/// the answer of a host that cannot do it.
pub trait Mmu: Sync + core::fmt::Debug {
    /// Maps `nr` pages at `addr` from the page cache; `wp`: write-protected.
    ///
    /// # Context: handler
    fn set_ptes(&self, addr: usize, nr: usize, prot: Prot) -> Installed;

    /// Maps one page at `addr` with a private copy of staging page `staged`.
    ///
    /// # Context: handler
    fn set_private(&self, _addr: usize, _staged: &Staged) -> Installed {
        Installed::Gone
    }

    /// Returns whether a border between what is mapped and what is not costs the host what it is short of.
    ///
    /// # Context: handler
    fn is_crowded(&self) -> bool {
        false
    }

    /// Lifts the write protection of one mapped page.
    ///
    /// # Context: handler
    fn unprotect(&self, addr: usize) -> Installed;

    /// Wakes threads (or a guest) that wait for a fault in the range; nothing where nobody can wait.
    ///
    /// # Context: handler
    fn wake(&self, _addr: usize, _nr: usize) {}

    /// Hands `len_bytes` at `addr` to the kernel; `tracked`: it goes on noting first stores.
    ///
    /// # Errors
    /// `Installed::NoMemory` at the vma limit, `Installed::Gone` where the range is no longer ours.
    ///
    /// # Context: handler
    fn release_extents(&self, _addr: usize, _len_bytes: usize, _tracked: bool) -> Result<(), Installed> {
        Err(Installed::Gone)
    }

    /// Takes `len_bytes` at `addr` back; `wp`: the range is registered for write protection (what the kernel noted and
    /// protected in a tracked range stays as it is); `protect`: and everything mapped is write-protected anew.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// As `release_extents`.
    fn take_extents(&self, _addr: usize, _len_bytes: usize, _wp: bool, _protect: bool) -> Result<(), Installed> {
        Err(Installed::Gone)
    }

    /// Takes the mappings of these ranges (address, pages) away; the pages stay cached. The ranges are of shared mappings,
    /// and one call flushes each processor's TLB about once for all entries that are not dirty.
    ///
    /// # Context: handler
    ///
    /// `false`: a range could not be taken away (a host that hides by protection is out of vmas); its pages stay.
    fn zap(&self, ranges: &[Zap]) -> bool;

    /// Maps a range of whole extents, which are native and lie over huge pages, by one entry each, if it can. The caller
    /// keeps the pages cached and the mapping where it is.
    ///
    /// # Context: control plane; it may sleep
    fn map_huge(&self, _addr: usize, _len_bytes: usize) -> bool {
        false
    }

    /// Makes the next store to each of the `nr` pages at `addr` be noted, or fault; where the host notes stores, an empty entry
    /// has a marker afterwards. `false`: the host could not.
    ///
    /// # Context: handler
    fn write_protect(&self, _addr: usize, _nr: usize) -> bool {
        false
    }

    /// Takes the write protection of the `nr` pages at `addr` off, and markers with it. `false`: the host could not.
    ///
    /// # Context: handler
    fn write_unprotect(&self, _addr: usize, _nr: usize) -> bool {
        false
    }

    /// Calls `found(addr, nr, pte)` for the runs among the `nr` pages at `addr` that are not protected: `Written`, or `None`,
    /// of which the host knows nothing; where it notes nothing, because stores fault, never.
    ///
    /// # Context: handler
    fn unprotected(&self, _addr: usize, _nr: usize, _found: &mut dyn FnMut(usize, usize, Pte)) {}

    /// Calls `found(addr, nr)` for the same runs, without saying which of their pages are `Written`: a host may know that
    /// sooner.
    ///
    /// # Context: handler
    fn maybe_written(&self, addr: usize, nr: usize, found: &mut dyn FnMut(usize, usize)) {
        self.unprotected(addr, nr, &mut |addr, nr, _| found(addr, nr));
    }

    /// Returns what the host's page table has of the page at `addr`, where first stores are noted.
    ///
    /// # Context: handler
    fn pte(&self, _addr: usize) -> Pte {
        Pte::None
    }

    /// The same where many are looked at: what was said is to be believed only if [`Mmu::vouches`] afterwards for
    /// what [`Mmu::asked`] returned before.
    ///
    /// # Context: handler
    fn pte_glanced(&self, addr: usize) -> Pte {
        self.pte(addr)
    }

    /// Returns by what the next [`Mmu::pte_glanced`] will be answered, if that does not change meanwhile.
    ///
    /// # Context: handler
    fn asked(&self) -> u64 {
        0
    }

    /// Returns whether what [`Mmu::pte_glanced`] has said was of this process's page table: the host may have answered by a
    /// file that the program has closed, and whose number it has given to the same file of another process.
    ///
    /// # Context: handler
    fn vouches(&self, asked: u64) -> bool {
        let _ = asked;
        true
    }

    /// Changes the count of vmas that promotions cost the process; `false`: over budget, nothing changed.
    ///
    /// # Context: handler
    fn charge_vmas(&self, delta: i64) -> bool;
}

/// How many pages one batch of reclaim takes: they are unmapped by one call.
pub const BATCH: usize = 64;

/// A range to be unmapped: address and pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Zap {
    /// First address.
    pub addr: usize,
    /// Length in bytes, a multiple of the page.
    pub len_bytes: usize,
}

/// A page-table entry, as far as dirtiness goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pte {
    /// Nothing there: never mapped, or emptied by whomever after a store.
    None,
    /// Mapped, no store since it was protected.
    Clean,
    /// Mapped, or on its way to another place in memory, and stored to.
    Written,
    /// Not mapped, and the host remembers that it was protected: no store before it was zapped. (Or it is protected, and on
    /// its way to another place in memory.)
    Marker,
}

/// How a page is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prot {
    /// Stores are permitted (they reach the page, or the kernel copies it).
    pub write: bool,
    /// The first store must be noted or fault.
    pub wp: bool,
}

/// A page outside the cache that holds the bytes of a private copy; claimed from a fixed pool.
#[must_use = "a staging page goes back to its pool"]
#[derive(Debug, PartialEq, Eq)]
pub struct Staged(pub u32);

/// What became of a page's bytes that a capture wants kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preserved {
    /// They are kept, by the caller or by somebody else.
    Done,
    /// There is no room until the capture's word for that, which was this before it was looked for, moves.
    Full(u32),
}

/// What an object can do with its pages: Linux's `address_space_operations`, towards the store.
///
/// `nr` pages from `pgoff` always lie inside the object. `read_folio` and `zero_folio` are called by the owner of those
/// pages' claims, so nobody else reads or writes their bytes.
pub trait AddressSpaceOps: Sync + core::fmt::Debug {
    /// Fills the pages from the store; on failure says how many whole pages before the bad one are good.
    ///
    /// # Context: handler if the object says so, else a thread that may sleep
    ///
    /// # Errors
    /// The number of good pages, and why the next one is not.
    fn read_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)>;

    /// Fills the pages with zeros instead (failure policy `Zero`).
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// No memory.
    fn zero_folio(&self, pgoff: u64, nr: u32) -> Result<(), FillError>;

    /// Reads one page into a staging page, past the cache.
    ///
    /// # Context: as `read_folio`
    ///
    /// # Errors
    /// Why not.
    fn read_staged(&self, pgoff: u64, staged: &Staged) -> Result<(), FillError>;

    /// Returns whether [`AddressSpaceOps::read_here`] ever does anything.
    ///
    /// # Context: handler
    fn reads_here(&self) -> bool {
        false
    }

    /// Fills the pages, where that can be done at once, in a handler, although it cannot be of all pages of the object; `false`:
    /// nothing was done. What is wrong, if anything is, who reads them by `read_folio` says.
    ///
    /// # Context: handler
    fn read_here(&self, _pgoff: u64, _nr: u32) -> bool {
        false
    }

    /// The same of one page, into a staging page, past the cache.
    ///
    /// # Context: handler
    fn read_staged_here(&self, _pgoff: u64, _staged: &Staged) -> bool {
        false
    }

    /// Makes the blocks and metadata of the pages durable (`NEEDDSYNC`).
    ///
    /// # Context: as `read_folio`
    ///
    /// # Errors
    /// Why not.
    fn dsync(&self, pgoff: u64, nr: u32) -> Result<(), FillError>;

    /// Gives the pages' bytes to the store; they are `writeback`, and others may be storing to them. On failure says how
    /// many whole pages before the bad one the store has taken.
    ///
    /// # Context: as `read_folio`
    ///
    /// # Errors
    /// The number of pages taken, and why the next one was not.
    fn write_folio(&self, _pgoff: u64, _nr: u32) -> Result<(), (u32, FillError)> {
        Err((0, FillError::Io(Errno::EIO)))
    }

    /// Keeps the bytes of page `pgoff`, which the caller has pinned, for capture `number`: copies them, calls `won`, and keeps
    /// the copy if that says `true`.
    ///
    /// # Context: handler
    fn preserve(&self, _number: u32, _pgoff: u64, _won: &mut dyn FnMut() -> bool) -> Preserved {
        Preserved::Full(0)
    }

    /// Returns whether what the store took can be read from it before it is flushed.
    ///
    /// # Context: handler
    fn rereads_unflushed(&self) -> bool {
        true
    }

    /// Drops the pages from the cache's memory; they are `evicting`, owned by the caller. (Or they are `filling`: a fill
    /// that failed, or whose pages lie past the end by now.)
    ///
    /// # Context: handler; of an exclusive object, as its store
    ///
    /// # Errors
    /// At least one page must stay. Others of the run may be gone: asking again page by page says which, since dropping a
    /// page that is gone is no error. Of a single page: it is still there, whole.
    fn punch(&self, pgoff: u64, nr: u32) -> Result<(), FillError>;

    /// As `punch`, of all those of `pages` (object and page number) that are object `id`'s, by one call; `false`: that cannot
    /// be done, and nothing was. `zaps` is room for it.
    ///
    /// # Context: handler
    fn punch_pages(&self, _id: u32, _pages: &[(u32, u64)], _zaps: &mut [Zap]) -> bool {
        false
    }

    /// As `punch`, of pages whose bytes are void: nothing of them is written.
    ///
    /// # Context: handler; of an exclusive object, as its store
    ///
    /// # Errors
    /// As `punch`.
    fn discard(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        self.punch(pgoff, nr)
    }

    /// Returns whether a page of an exclusive object, which the caller has pinned, was stored to since it was filled or
    /// written; others may be storing to it.
    ///
    /// # Context: handler
    fn is_written(&self, _pgoff: u64) -> bool {
        false
    }

    /// Returns whether page `pgoff`, which is `filling`, is where the program's stores reach it already, and may have to be written.
    ///
    /// # Context: handler
    fn may_be_stored_to(&self, _pgoff: u64) -> bool {
        false
    }

    /// Calls `found(pgoff, may_be_stored_to)` for each of `nr` pages from `pgoff` on, of an exclusive object that is mapped there,
    /// that lies in no memory. `may_be_stored_to`: stores to it would have had to be written.
    ///
    /// # Context: handler
    fn each_missing(&self, _pgoff: u64, _nr: u64, _found: &mut dyn FnMut(u64, bool)) {}

    /// Makes a chunk of cached pages, from `pgoff` on, one huge page. Their bytes stay; their mappings may go away. The
    /// caller keeps every page of it cached.
    ///
    /// # Context: control plane; milliseconds
    ///
    /// # Errors
    /// Nothing changed: `NoMemory`, or `Io` for any other reason.
    fn collapse(&self, _pgoff: u64) -> Result<(), FillError> {
        Err(FillError::Io(Errno::EIO))
    }

    /// Lends the bytes of one page that the caller owns (`filling`).
    ///
    /// # Context: handler
    fn with_page_mut(&self, pgoff: u64, f: &mut dyn FnMut(&mut [u8]));

    /// Copies bytes out of one page that the caller has pinned; others may be writing to it.
    ///
    /// # Context: handler
    fn copy_from_page(&self, pgoff: u64, offset: usize, dst: &mut [u8]);
}

/// What a sleeper compares: the address of a 32-bit word that is never unmapped, and the value it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitKey {
    /// Address of the word.
    pub addr: usize,
    /// Value to sleep on.
    pub seen: u32,
}
