//! The vtable of cached objects. Linux: `shmem_vm_ops`.

use crate::cache::filemap;
use crate::folio::{DIRTY, DSYNCED, Folio, State};
use crate::huge_memory;
use crate::map_pages;
use crate::page::PAGE_SHIFT;
use crate::types::{FaultFlags, FillError, VmFaultReason, VmFlags};
use crate::vma::{VmFault, VmOps, Work};
use crate::vmstat::Event;

/// Faults of objects in the page cache: files, anonymous memory, user stores.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShmemVmOps {
    /// Call [`VmOps::page_mkwrite`] before the first store to a page (synchronous write protection).
    pub mkwrite: bool,
}

impl VmOps for ShmemVmOps {
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        fault(vmf)
    }
    fn map_pages(&self, vmf: &mut VmFault<'_>, start: u64, end: u64) -> VmFaultReason {
        // A granule is exposed at once, so a store makes all of it dirty; under userfaultfd only the page itself.
        let granule = vmf.vma().granule_pages != 0 && vmf.is_shared_write();
        map_pages::map_pages(vmf, start, end, if granule { DIRTY } else { 0 })
    }
    fn huge_fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        huge_memory::huge_fault(vmf)
    }
    fn has_page_mkwrite(&self) -> bool {
        self.mkwrite
    }
}

/// Finds, claims or delegates the fault's page. Linux: `shmem_fault`.
///
/// # Context: handler
pub fn fault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    let vma = vmf.vma();
    let mapping = vma.mapping;
    let seen = mapping.folio(vmf.pgoff()).map(crate::folio::FolioWord::load);
    if seen.is_some_and(Folio::is_mappable) {
        if vmf.pgoff() >= mapping.nr_pages() {
            return vmf.ctx().fail(FillError::PastEnd);
        }
        let first = what_comes_first(vmf);
        if !first.is_empty() {
            return first;
        }
    } else {
        // A page that a delegate is rewriting is `filling`, and yet not missing.
        let missing = seen.is_some_and(|w| matches!(w.state(), State::Absent | State::Poisoned));
        if missing && vma.flags.intersects(VmFlags::UFFD_MINOR) && !vmf.flags().intersects(FaultFlags::TRIED) {
            mapping.stat.add(vmf.ctx().stripe, Event::UFFD_MISSING, 1);
        }
        if let Some(reason) = private_copy(vmf) {
            return reason;
        }
    }
    let r = filemap::fault(vmf, if vmf.is_shared_write() { DIRTY } else { 0 });
    // The page may be another than the one looked at: a filler published it meanwhile, or it was dropped and filled
    // again. What holds under the pin counts.
    let Some(word) = vmf.folio else { return r };
    let first = what_comes_first(vmf);
    if first.is_empty() {
        return r;
    }
    vmf.folio = None;
    word.unpin();
    first
}

/// Returns what must happen before a cached page may be mapped: `UFFD_MINOR`, `NEEDDSYNC`, or nothing.
fn what_comes_first(vmf: &VmFault<'_>) -> VmFaultReason {
    let vma = vmf.vma();
    let untold = || vma.delegation.is_some_and(|d| !d.is_told(vmf.address().wrapping_sub(d.base) >> PAGE_SHIFT));
    if vma.flags.intersects(VmFlags::UFFD_MINOR) && untold() {
        return VmFaultReason::UFFD_MINOR;
    }
    let durable = || vma.mapping.folio(vmf.pgoff()).is_some_and(|w| w.load().has(DSYNCED));
    if vma.flags.intersects(VmFlags::SYNC) && vmf.is_shared_write() && !durable() {
        return VmFaultReason::NEEDDSYNC;
    }
    VmFaultReason::empty()
}

/// Answers a first private store to an uncached page without filling the cache: `DONE_COW`, or the read it needs.
///
/// ```text
/// this fault                              others
/// note the version, if it is absent
/// read the store into a staging page
///                                         fill, write, write back, evict: absent again
/// same version? no: start over            (else: a stale or torn copy)
/// COPY straight to the private page
/// ```
fn private_copy(vmf: &mut VmFault<'_>) -> Option<VmFaultReason> {
    let vma = vmf.vma();
    let mapping = vma.mapping;
    let private_write = vmf.is_write() && !vma.flags.intersects(VmFlags::SHARED);
    if !private_write || !mapping.staging || vma.granule_pages != 0 || vma.flags.intersects(VmFlags::UFFD_MINOR) {
        return None;
    }
    let word = mapping.folio(vmf.pgoff())?;
    let seen = word.load();
    if seen.state() != State::Absent || vmf.pgoff() >= mapping.nr_pages() {
        return None;
    }
    let Some(cow) = vmf.cow else {
        if vmf.flags().intersects(FaultFlags::TRIED | FaultFlags::RETRY_NOWAIT) || vmf.ctx().nested {
            return None;
        }
        vmf.work = Work::Cow(filemap::hold(mapping, vmf.pgoff()));
        return Some(VmFaultReason::MAJOR | VmFaultReason::RETRY);
    };
    crate::failpoint!(COW_STAGED);
    if cow.version != word.load().version() {
        return None;
    }
    match vma.mmu.set_private(vmf.address(), cow.staged) {
        crate::ops::Installed::All => {
            mapping.stat.add(vmf.ctx().stripe, Event::PGCOW_STAGED, 1);
            vma.note_mapped(vmf.address(), 1);
            Some(VmFaultReason::DONE_COW)
        }
        crate::ops::Installed::Exists => Some(VmFaultReason::NOPAGE),
        crate::ops::Installed::NoMemory => Some(vmf.ctx().fail(FillError::NoMemory)),
        _ => None,
    }
}
