//! Protection as the page table: an arena is mapped `PROT_NONE`, and a granule is exposed at once by mprotect(2).
//!
//! It works where userfaultfd is forbidden. What the kernel maps below an exposed range is its own affair: every page
//! of the range is pinned uptodate while it is exposed, so the kernel finds them all in the memfd.

use super::budget;
use crate::sys::{Errno, mem};
use softfault_mm::ops::{Installed, Mmu, Prot, Pte, Staged, Zap};
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

impl Mmu for SegvMmu {
    fn set_ptes(&self, addr: usize, nr: usize, prot: Prot) -> Installed {
        protect(addr, nr, prot.write && !prot.wp)
    }
    fn set_private(&self, _addr: usize, _staged: &Staged) -> Installed {
        // A private page cannot be placed by protection; the walk fills the cache and the kernel copies.
        Installed::Gone
    }
    fn is_crowded(&self) -> bool {
        budget::exposed() > budget::exposed_max() / 2
    }
    fn unprotect(&self, addr: usize) -> Installed {
        protect(addr, 1, true)
    }
    fn wake(&self, _addr: usize, _nr: usize) {}
    fn release_extents(&self, _addr: usize, _len_bytes: usize, _tracked: bool) -> Result<(), Installed> {
        // An exposed range is the kernel's already.
        Err(Installed::Gone)
    }
    fn take_extents(&self, _addr: usize, _len_bytes: usize, _wp: bool, _protect: bool) -> Result<(), Installed> {
        Err(Installed::Gone)
    }
    fn zap(&self, ranges: &[Zap]) -> bool {
        ranges.iter().all(|r| {
            // SAFETY: the walk names ranges of published vmas, inside a section; a touch faults again.
            unsafe { mem::mprotect(r.addr, r.len_bytes, mem::PROT_NONE) }.is_ok()
        })
    }
    fn write_protect(&self, _addr: usize, _nr: usize) -> bool {
        // By hiding: `zap`. Exposing for loads would expose pages that are not there.
        false
    }
    fn unprotected(&self, _addr: usize, _nr: usize, _found: &mut dyn FnMut(usize, usize, Pte)) {}
    fn pte(&self, _addr: usize) -> Pte {
        Pte::None
    }
    fn charge_vmas(&self, delta: i64) -> bool {
        budget::charge(delta)
    }
}
