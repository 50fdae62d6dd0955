//! Faults that no instruction makes: the walk, made by a call, which has an error where an instruction could only wait.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "populates and opens the arena's own page tables")]

use super::room;
use super::state::ArenaInner;
use super::vma::VmaEntry;
use crate::error::{Error, Result, system};
use crate::object::fault::{self as failed, Place};
use crate::types::{Access, Prot};
use softfault_mm::extent::{Extent, ExtentState};
use softfault_mm::fault;
use softfault_mm::page::{EXTENT_SHIFT, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::types::{FaultFlags, FillError, VmFaultReason};
use softfault_platform::host::Host;
use softfault_platform::section;
use softfault_platform::sys::{Errno, mem};
use softfault_platform::vmatree::Trap;
use std::ops::Range;

/// What a walk without an instruction found.
#[derive(Default)]
struct Faulted {
    /// `None`: no vma of ours is there.
    reason: Option<VmFaultReason>,
    cause: Option<FillError>,
    /// There was no room to expose the page.
    crowded: bool,
}

/// How often, and with which pauses, a call looks for room to expose its page: other threads may be hiding some, and the
/// program may give mappings back. A fifth of a second.
const CROWDED_ROUNDS: u32 = 100;
const CROWDED_PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

/// Faults each page of the range in; `exact`: also those that a hint says are mapped.
pub(super) fn fault_in(
    arena: &ArenaInner,
    op: &'static str,
    range: &Range<usize>,
    access: Access,
    exact: bool,
) -> Result<()> {
    // What is resident may be protected from loads by now: the walk says so.
    let refused = !exact && access == Access::Read && !permits_loads(arena, op, range);
    let exact = exact || refused;
    let mut at = range.start;
    while at < range.end {
        let extent = arena.extents.lend().get(at >> EXTENT_SHIFT);
        let native = extent.is_some_and(|e| matches!(e.state(), ExtentState::Native | ExtentState::Tracked));
        let hinted = extent.is_some_and(|e| e.maybe_mapped(Extent::page_index(arena.base + at)));
        if native && !refused {
            at = ((at >> EXTENT_SHIFT) + 1) << EXTENT_SHIFT;
            continue;
        }
        if exact || !hinted || access == Access::Write || arena.trap == Trap::Segv {
            fault_patiently(arena, op, at, access)?;
        }
        at += PAGE_SIZE;
    }
    Ok(())
}

fn permits_loads(arena: &ArenaInner, op: &'static str, range: &Range<usize>) -> bool {
    arena.vmas().covering(op, range).is_ok_and(|hit| hit.iter().all(|v| v.prot != Prot::None))
}

/// Makes sure that a range which is pinned has its page-table entries: extents that were native when it was faulted
/// in have none for pages nobody touched, and would miss them when they are demoted.
pub(super) fn make_present(arena: &ArenaInner, op: &'static str, range: &Range<usize>, access: Access) -> Result<()> {
    if arena.trap == Trap::Segv {
        if access == Access::Read {
            // What is exposed stays so: nothing hides a pinned page.
            return Ok(());
        }
        // A window for loads leaves alone what is noted as exposed; one that looked before has left its section.
        let mut at = range.start;
        while at < range.end {
            if let Some(extent) = arena.extents.lend().get(at >> EXTENT_SHIFT) {
                extent.note_mapped(Extent::page_index(arena.base + at), 1);
            }
            at += PAGE_SIZE;
        }
        section::synchronize();
        let (addr, prot) = (arena.base + range.start, mem::PROT_READ | mem::PROT_WRITE);
        // SAFETY: the arena's own range; its mapping permits stores, and its pages are pinned, uptodate and dirty.
        let opened = room::with_room(arena, || unsafe { mem::mprotect(addr, range.len(), prot) });
        return opened.map_err(system(op, "mprotect"));
    }
    let advice = if access == Access::Write { mem::MADV_POPULATE_WRITE } else { mem::MADV_POPULATE_READ };
    let mut patience = 1_000;
    loop {
        // SAFETY: the arena's own range; populating maps what a touch would map.
        match unsafe { mem::madvise(arena.base + range.start, range.len(), advice) } {
            Ok(()) => return Ok(()),
            // An extent came back from the kernel meanwhile: its pages are ours to map.
            Err(Errno::EFAULT | Errno::EAGAIN | Errno::EINTR) if patience > 0 => patience -= 1,
            Err(errno) => return Err(system(op, "madvise")(errno)),
        }
        // The walk is made also where an extent is said to be the kernel's: one that it did not let go of may be trapped all the
        // same.
        for at in range.clone().step_by(PAGE_SIZE) {
            fault_patiently(arena, op, at, access)?;
        }
    }
}

/// Makes the error of an access at arena byte `at`, with what is mapped there.
fn fault_error(
    arena: &ArenaInner,
    op: &'static str,
    at: usize,
    access: Access,
    cause: Option<FillError>,
    reason: Option<VmFaultReason>,
) -> Error {
    let found = arena.vmas().covering(op, &(at..at + 1)).ok().and_then(|hit| hit.into_iter().next());
    let byte = |v: &VmaEntry| (v.pgoff << PAGE_SHIFT) + (at - v.range.start) as u64;
    let object_offset = found.as_ref().map(byte);
    let place = Place { mapping: found.as_ref().map(|v| v.object.mapping()), object_offset, arena_offset: Some(at) };
    failed::fault(op, access, place, cause, reason)
}

/// Resolves a touch of `offset` without touching.
fn fault_one(arena: &ArenaInner, offset: usize, access: Access) -> Faulted {
    let Ok(host) = Host::enter() else { return Faulted::default() };
    let ctx = host.ctx();
    let mut flags = FaultFlags::ALLOW_RETRY | FaultFlags::REMOTE;
    if access == Access::Write {
        flags |= FaultFlags::WRITE;
    }
    let reason = fault::do_user_addr_fault(host.env(), &ctx, arena.base + offset, flags);
    Faulted { reason, cause: ctx.cause(), crowded: ctx.is_crowded() }
}

/// A walk that ran out of attempts is made again: here no instruction does it for us. Nor need it wait for ever: where
/// the kernel has no mapping to expose the page by, and none can be given back, that is an error after a while.
pub(super) fn fault_patiently(arena: &ArenaInner, op: &'static str, at: usize, access: Access) -> Result<()> {
    let mut patience = CROWDED_ROUNDS;
    loop {
        let Faulted { reason, cause, crowded } = fault_one(arena, at, access);
        match reason {
            None => return Err(fault_error(arena, op, at, access, Some(FillError::NotMapped), None)),
            Some(r) if r.intersects(VmFaultReason::ERROR) => {
                return Err(fault_error(arena, op, at, access, cause, Some(r)));
            }
            Some(r) if !r.intersects(VmFaultReason::RETRY) => return Ok(()),
            Some(_) if crowded && patience == 0 => return Err(system(op, "mprotect")(Errno::ENOMEM)),
            Some(_) if crowded => {
                patience -= 1;
                std::thread::sleep(CROWDED_PAUSE);
            }
            Some(_) => {}
        }
    }
}
