//! The vma that handlers see of a mapping: its flags, its page tables, and what it refers to.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "lends a delegation to the record that its entry publishes")]

use super::exclusive;
use super::state::ArenaInner;
use super::vma::VmaEntry;
use crate::process::registry;
use crate::types::{Prot, Sharing};
use softfault_mm::ops::Mmu;
use softfault_mm::types::VmFlags;
use softfault_mm::vma::Vma;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd::{self, Kind};
use softfault_platform::vmatree::Trap;

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
        return exclusive::flags_of(v);
    }
    let mut flags = tracking | v.advice;
    if v.is_changing {
        flags |= VmFlags::CHANGING;
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
    if arena.native_extents && v.prot != Prot::None {
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

/// Returns the page tables and the tracking flags of a vma.
pub(super) fn mmu_of(arena: &ArenaInner, v: &VmaEntry) -> (&'static dyn Mmu, VmFlags) {
    #[cfg(feature = "userfaultfd")]
    if v.object.is_exclusive()
        && let Ok(mmu) = registry::exclusive_mmu()
    {
        return (mmu, VmFlags::empty());
    }
    #[cfg(feature = "userfaultfd")]
    if let Some(kind) = kind_of(arena, v)
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

/// Returns which userfaultfd context traps a vma; `None`: it is trapped by protection.
#[cfg(feature = "userfaultfd")]
pub(super) fn kind_of(arena: &ArenaInner, v: &VmaEntry) -> Option<Kind> {
    match arena.trap {
        Trap::Uffd if v.object.sync_wp && v.sharing == Sharing::Shared => Some(Kind::Sync),
        Trap::Uffd => Some(Kind::Async),
        Trap::Monitor => Some(Kind::Monitor),
        Trap::Segv => None,
    }
}

/// Returns whether the first store to a page of a shared mapping can be made to fault.
pub(super) fn faults_on_first_store(arena: &ArenaInner) -> bool {
    #[cfg(feature = "userfaultfd")]
    if arena.trap == Trap::Uffd {
        return uffd::context(Kind::Sync).is_some_and(uffd::UffdMmu::has_wp);
    }
    arena.trap == Trap::Segv
}
