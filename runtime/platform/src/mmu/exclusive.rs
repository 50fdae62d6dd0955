//! userfaultfd as the page table of exclusive objects: private anonymous memory, whose pages come with their fill.
//!
//! A context of its own, with SIGBUS and without asynchronous write-protection: where MOVE is missing a page that leaves
//! is first protected, so that stores to it fault and wait until it is gone or stays (`store::exclusive`).
//!
//! # Context: handler; what opens the context: control plane

use super::budget;
use crate::sys::Errno;
use crate::sys::uffd::{Uffd, bits};
use softfault_mm::ops::{Installed, Mmu, Prot, Zap};
use softfault_mm::page::PAGE_SIZE;

/// The page tables of arenas, as far as exclusive objects lie in them.
#[derive(Debug)]
pub struct ExclusiveMmu {
    uffd: Uffd,
    can_move: bool,
}

impl ExclusiveMmu {
    /// Opens the context.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `EPERM`, `ENOSYS`, or `EINVAL` where the kernel cannot raise SIGBUS or protect pages (before Linux 5.7).
    pub fn open() -> Result<Self, Errno> {
        let have = Uffd::probe(bits::USER_MODE_ONLY)?;
        let need = bits::FEATURE_SIGBUS | bits::FEATURE_PAGEFAULT_FLAG_WP;
        if have & need != need {
            return Err(Errno::EINVAL);
        }
        let moves = have & bits::FEATURE_MOVE;
        Ok(Self { uffd: Uffd::open(bits::USER_MODE_ONLY, need | moves)?, can_move: moves != 0 })
    }

    /// Returns the context.
    ///
    /// # Context: handler
    #[must_use]
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// Returns whether pages can be moved (since Linux 6.8).
    ///
    /// # Context: handler
    #[must_use]
    pub fn can_move(&self) -> bool {
        self.can_move
    }

    /// Registers a fresh range of private anonymous memory.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// The kernel's.
    pub fn register(&self, addr: usize, len_bytes: usize) -> Result<(), Errno> {
        self.uffd.register(addr, len_bytes, bits::REGISTER_MISSING | bits::REGISTER_WP)
    }
}

/// What is refused, as the trait does: nobody sleeps in a context with the SIGBUS feature; of a range that is handed over the
/// kernel would fill what is not there with zeros; nothing is noted of stores, since the pages' digests tell.
impl Mmu for ExclusiveMmu {
    /// The page is pinned uptodate, and an uptodate page of an exclusive object is mapped: its fill mapped it, and it is
    /// unmapped as `evicting`.
    #[inline]
    fn set_ptes(&self, _addr: usize, _nr: usize, _prot: Prot) -> Installed {
        Installed::All
    }
    fn unprotect(&self, addr: usize) -> Installed {
        match self.uffd.writeprotect(addr, PAGE_SIZE, false) {
            Ok(()) => Installed::All,
            Err(Errno::EAGAIN) => Installed::Again,
            Err(_) => Installed::Gone,
        }
    }
    /// A page that is zapped is gone: only `punch` takes pages out.
    fn zap(&self, _ranges: &[Zap]) -> bool {
        false
    }
    fn charge_vmas(&self, delta: i64) -> bool {
        budget::charge(delta)
    }
}
