//! The vma that handlers see of a mapping: its flags, its page tables, and what it refers to.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "lends a delegation to the record that its entry publishes")]

use super::state::ArenaInner;
use super::vma::VmaEntry;
use crate::process::registry;
use crate::types::{Prot, Sharing};
use softfault_mm::ops::Mmu;
use softfault_mm::types::VmFlags;
use softfault_mm::vma::Vma;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd::{self, Kind};

/// Returns the vma that handlers see.
pub(super) fn vma_of(arena: &ArenaInner, v: &VmaEntry) -> Vma<'static> {
    let (mmu, tracking) = mmu_of(arena, v);
    Vma {
        start: arena.address(v.range.start),
        end: arena.address(v.range.end),
        pgoff: v.pgoff,
        flags: flags_of(arena, v, tracking),
        ops: v.object.vm_ops(),
        mapping: v.object.mapping(),
        mmu,
        extents: arena.extents.lend(),
        arena_base: arena.base,
        granule_pages: if v.delegation.is_some() { arena.granule_pages.min(1) } else { arena.granule_pages },
        // SAFETY: the entry holds the delegation, and outlives its publication.
        delegation: v.delegation.as_ref().and_then(|d| unsafe { d.lend() }),
    }
}

fn flags_of(arena: &ArenaInner, v: &VmaEntry, tracking: VmFlags) -> VmFlags {
    if v.object.is_exclusive() {
        return flags_of_exclusive(v);
    }
    let mut flags = tracking | v.advice;
    if arena.capturable && tracking.intersects(VmFlags::WP_SYNC) {
        flags |= VmFlags::CAPTURABLE;
    }
    if v.is_changing {
        flags |= VmFlags::CHANGING;
    }
    if v.is_direct {
        flags |= VmFlags::DIRECT;
    }
    flags |= match v.prot {
        Prot::None => VmFlags::empty(),
        Prot::Read => VmFlags::READ,
        Prot::ReadWrite => VmFlags::READ | VmFlags::WRITE,
    };
    if v.sharing == Sharing::Shared {
        flags |= VmFlags::SHARED;
    }
    if v.sharing == Sharing::Private || v.may_write {
        flags |= VmFlags::MAYWRITE;
    }
    if v.object.dsync && v.sharing == Sharing::Shared {
        flags |= VmFlags::SYNC;
    }
    if arena.native_extents && v.prot != Prot::None && !v.is_direct {
        flags |= VmFlags::NATIVE_OK;
    }
    if !arena.fault_around {
        flags |= VmFlags::MAP_SINGLE;
    }
    if v.delegation.is_some() {
        flags |= VmFlags::UFFD_MINOR;
        if arena.lookup_first {
            flags |= VmFlags::UFFD_LOOKUP_FIRST;
        }
    }
    flags
}

/// Returns the flags of an exclusive object's vma.
///
/// `SHARED` without `MAYWRITE`: a store reaches the object (its page is this one) and makes the page dirty; nothing is
/// protected for its sake. No fault-around: what is cached is mapped.
fn flags_of_exclusive(v: &VmaEntry) -> VmFlags {
    let write = if v.prot == Prot::ReadWrite { VmFlags::WRITE } else { VmFlags::empty() };
    VmFlags::READ | VmFlags::SHARED | VmFlags::MAP_SINGLE | v.advice | write
}

/// Returns the page tables and the tracking flags of a vma.
pub(super) fn mmu_of(arena: &ArenaInner, v: &VmaEntry) -> (&'static dyn Mmu, VmFlags) {
    #[cfg(feature = "userfaultfd")]
    if v.object.is_exclusive()
        && let Ok(mmu) = registry::exclusive_mmu()
    {
        return (mmu, VmFlags::empty());
    }
    #[cfg(feature = "userfaultfd")]
    if let Some(kind) = v.kind(arena.trap, arena.capturable)
        && let Some(mmu) = uffd::context(kind)
    {
        let wp = match kind {
            _ if !v.may_write_shared() || !mmu.has_wp() => VmFlags::empty(),
            Kind::Sync => VmFlags::WP_SYNC,
            Kind::Async | Kind::Monitor => VmFlags::WP_ASYNC,
        };
        return (mmu, wp);
    }
    #[cfg(not(feature = "userfaultfd"))]
    let _ = arena;
    // By protection a first store to a granule that was exposed for reading is a fault again.
    let wp = if v.may_write_shared() { VmFlags::WP_SYNC } else { VmFlags::empty() };
    (registry::segv_mmu(), wp)
}
