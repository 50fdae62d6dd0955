//! What a call that maps must fulfil, checked before anything changes.
//!
//! # Context: control plane

use super::state::ArenaInner;
use super::vma::MapRequest;
use crate::error::{Error, Result};
use crate::types::{Prot, Sharing};
use softfault_mm::page::PAGE_SIZE;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd::{self, Kind};
use softfault_platform::vmatree::Trap;
use std::ops::Range;

/// Returns the arena range that is to be mapped.
pub(super) fn check_map(arena: &ArenaInner, op: &'static str, request: &MapRequest<'_>) -> Result<Range<usize>> {
    let MapRequest { object, may_write, offset, object_offset, len_bytes, prot, sharing } = *request;
    let argument = |arg, value, why| Err(Error::Argument { op, arg, value, why });
    if !object_offset.is_multiple_of(PAGE_SIZE as u64) {
        return argument("object_offset", object_offset, "must be a multiple of the page size (4096)");
    }
    let rounded = len_bytes.checked_next_multiple_of(PAGE_SIZE);
    let Some((len, end)) = rounded.and_then(|len| Some((len, offset.checked_add(len)?))) else {
        return argument("len_bytes", len_bytes as u64, "the range wraps around");
    };
    arena.check_range(op, &(offset..end))?;
    if object_offset.checked_add(len as u64).is_none_or(|e| e > object.len_max as u64) {
        let why = "the object's room ends before the range does (its maximal length, rounded up to 2 MiB)";
        return argument("object_offset + len_bytes", object_offset.saturating_add(len as u64), why);
    }
    check_exclusive(arena, op, request)?;
    if prot == Prot::ReadWrite && sharing == Sharing::Shared && !may_write {
        return Err(Error::Denied { op, what: "shared stores need an object that was made writable" });
    }
    if sharing == Sharing::Shared && may_write && object.is_synchronous() && !faults_on_first_store(arena.trap) {
        let what = "synchronous writes need InThread or Segv delivery: here the first store to a page is not seen";
        return Err(Error::Denied { op, what });
    }
    check_capturable(arena, op, request)?;
    Ok(offset..end)
}

/// Refuses to map an exclusive object in a way that it cannot be mapped.
fn check_exclusive(arena: &ArenaInner, op: &'static str, request: &MapRequest<'_>) -> Result<()> {
    let MapRequest { object, prot, sharing, .. } = *request;
    let denied = |what| Err(Error::Denied { op, what });
    if object.exclusive().is_none() {
        return Ok(());
    }
    if arena.trap != Trap::Uffd {
        return denied("an exclusive object needs an arena with InThread delivery");
    }
    if sharing != Sharing::Private {
        return denied("an exclusive object is mapped Sharing::Private: nobody else has its pages");
    }
    if prot == Prot::None {
        return denied("an exclusive object's mapping permits loads at least: its protection cannot be changed");
    }
    Ok(())
}

/// Returns whether the first store to a page of a shared mapping can be made to fault.
pub(super) fn faults_on_first_store(trap: Trap) -> bool {
    #[cfg(feature = "userfaultfd")]
    if trap == Trap::Uffd {
        return uffd::context(Kind::Sync).is_some_and(uffd::UffdMmu::has_wp);
    }
    trap == Trap::Segv
}

/// Refuses what a capture could not hold, in an arena that can be captured.
fn check_capturable(arena: &ArenaInner, op: &'static str, request: &MapRequest<'_>) -> Result<()> {
    let what = match request.object {
        _ if !arena.capturable => return Ok(()),
        _ if request.sharing == Sharing::Private => "a capturable arena maps objects shared",
        o if o.is_exclusive() => "an exclusive object is not captured; map it in another arena",
        o if o.huge => "an object of huge pages is not captured; map it in another arena",
        o if o.custom_ops => "a vtable of the program's may map pages as it likes; map the object in another arena",
        _ => return Ok(()),
    };
    Err(Error::Denied { op, what })
}
