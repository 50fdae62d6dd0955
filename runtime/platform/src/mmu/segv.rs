//! Protection as the page table: an arena is mapped `PROT_NONE`, and a granule is exposed at once by mprotect(2).
//!
//! It works where userfaultfd is forbidden. What the kernel maps below an exposed range is its own affair: every page
//! of the range is pinned uptodate while it is exposed, so the kernel finds them all in the memfd.

use super::budget;
use crate::sys::{Errno, mem};
use softfault_mm::ops::{Installed, Mmu, Prot, Zap};
use softfault_mm::page::PAGE_SIZE;

/// The page tables of arenas that are served by SIGSEGV.
#[derive(Debug)]
pub struct SegvMmu;

/// The one instance: it has no state.
pub static SEGV: SegvMmu = SegvMmu;

fn protect(addr: usize, nr: usize, write: bool) -> Installed {
    let prot = if write { mem::PROT_READ | mem::PROT_WRITE } else { mem::PROT_READ };
    if !budget::may_expose() {
        return Installed::Crowded;
    }
    // SAFETY: the walk names pages of a published vma, inside a section, so the range is an arena's; arenas are never
    // borrowed as references by safe code.
    match unsafe { mem::mprotect(addr, nr * PAGE_SIZE, prot) } {
        Ok(()) => {
            budget::note_exposed();
            Installed::All
        }
        // No mapping is left: what mprotect changes, it splits.
        Err(Errno::ENOMEM) => {
            budget::note_full();
            Installed::Crowded
        }
        Err(_) => Installed::Gone,
    }
}

/// What is refused, as the trait does: a private page cannot be placed by protection (the walk fills the cache, and the kernel
/// copies); an exposed range is the kernel's already; nothing is write-protected, since exposing for loads would expose pages
/// that are not there (stores are found by hiding, `zap`).
impl Mmu for SegvMmu {
    fn set_ptes(&self, addr: usize, nr: usize, prot: Prot) -> Installed {
        protect(addr, nr, prot.write && !prot.wp)
    }
    fn is_crowded(&self) -> bool {
        budget::exposed() > budget::exposed_max() / 2
    }
    fn unprotect(&self, addr: usize) -> Installed {
        protect(addr, 1, true)
    }
    fn zap(&self, ranges: &[Zap]) -> bool {
        ranges.iter().all(|r| {
            // SAFETY: the walk names ranges of published vmas, inside a section; a touch faults again.
            unsafe { mem::mprotect(r.addr, r.len_bytes, mem::PROT_NONE) }.is_ok()
        })
    }
    fn charge_vmas(&self, delta: i64) -> bool {
        budget::charge(delta)
    }
}
