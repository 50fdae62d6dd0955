//! Errors of bytes that could not be had: what a call says, with what keeps the cache full where that is why.
//!
//! # Context: control plane

use crate::error::{self, Error};
use crate::in_the_way::InTheWay;
use crate::process::registry;
use crate::types::Access;
use softfault_mm::mapping::Mapping;
use softfault_mm::page::PAGE_SHIFT;
use softfault_mm::types::{FillError, VmFaultReason};
use softfault_platform::host::Host;

/// Which byte an access failed at.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The object's mapping; `None` where no object is mapped.
    pub(crate) mapping: Option<&'a Mapping<'a>>,
    pub(crate) object_offset: Option<u64>,
    pub(crate) arena_offset: Option<usize>,
}

/// The call that an error names, and where its object lies in the arena that it was made on.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) op: &'static str,
    /// The arena offset of the object's byte 0, which may lie before the arena: modulo 2^64.
    pub(crate) arena: Option<usize>,
}

impl Call {
    /// Returns a call on an object.
    pub(crate) fn on_object(op: &'static str) -> Self {
        Self { op, arena: None }
    }

    /// Makes the error of byte `at` of the object.
    ///
    /// # Context: control plane
    pub(crate) fn error(self, m: &Mapping<'_>, access: Access, at: u64, cause: FillError) -> Error {
        let arena_offset = self.arena.map(|base| base.wrapping_add(at as usize));
        let place = Place { mapping: Some(m), object_offset: Some(at), arena_offset };
        fault(self.op, access, place, Some(cause), None)
    }
}

/// Makes the error of an access that failed for `cause`; `reason` are the bits, where the walk has said them.
///
/// # Context: control plane
pub(crate) fn fault(
    op: &'static str,
    access: Access,
    place: Place<'_>,
    cause: Option<FillError>,
    reason: Option<VmFaultReason>,
) -> Error {
    let is_full = cause == Some(FillError::CacheFull);
    Error::Fault {
        op,
        access,
        offset: place.arena_offset.map_or(place.object_offset, |at| Some(at as u64)).unwrap_or(0),
        reason: reason.or_else(|| cause.map(FillError::reason)).unwrap_or_default(),
        cause,
        object: place.mapping.map(|m| m.label.into()),
        object_offset: place.object_offset,
        arena_offset: place.arena_offset,
        in_the_way: place.mapping.filter(|_| is_full).map(|m| Box::new(look(m))),
        source: cause.and_then(FillError::errno).map(error::io),
    }
}

/// Objects looked at in one section: unmapping waits for sections.
const IDS: u32 = 16;

/// Looks at the pages that count against the limit which an object has met.
///
/// # Context: control plane
fn look(m: &Mapping<'_>) -> InTheWay {
    let is_own_limit = m.is_over_own_limit();
    let limit = if is_own_limit { m.own_limit() } else { m.account.limit() };
    let mut found = InTheWay { limit_bytes: limit << PAGE_SHIFT, is_own_limit, ..InTheWay::default() };
    if is_own_limit {
        found.count(m);
        return found;
    }
    let end = registry::lock().mappings.bound();
    let host = Host::detached();
    for first in (0..end).step_by(IDS as usize) {
        host.env().mm.with_rmap(&mut |r| {
            let here = (first..end.min(first + IDS)).filter_map(|id| r.mapping(id));
            here.filter(|other| std::ptr::addr_eq(other.account, m.account)).for_each(|other| found.count(other));
        });
    }
    found
}
