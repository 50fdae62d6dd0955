//! Making a session whole: every page resident, and as few faults left as there can be.
//!
//! # Context: control plane

use super::state::{Progress, SessionInner, SessionRegion};
use crate::error::{Error, Result};
use crate::types::Access;
use softfault_image::PAGE_SIZE;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SIZE};
use std::sync::atomic::Ordering;

const OP: &str = "Session::complete";

/// What [`Session::complete`](crate::Session::complete) has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Bytes that are resident for the session: all of its regions.
    pub resident_bytes: u64,
    /// Extents (2 MiB) that the kernel serves by itself.
    pub native_extents: u64,
    /// Extents that are mapped from the image's file itself. They are not among the resident bytes.
    pub direct_extents: u64,
    /// Extents, or parts of such, whose pages are mapped but still ours: a page that the kernel unmaps is a fault again. Those at
    /// the ends of regions that are no whole extents, and all of them where faults are delivered by protection.
    pub trapped_extents: u64,
}

/// Returns how far a session has come.
pub(super) fn progress(session: &SessionInner) -> Progress {
    Progress {
        pages: session.nr_pages(),
        cached: session.object.cached_pages(),
        native_extents: native(session),
        direct_extents: session.direct_extents.load(Ordering::Relaxed),
        replayed: session.replayed.pages.load(Ordering::Relaxed),
        replay_ended: session.replayed.has_ended(),
    }
}

fn native(session: &SessionInner) -> u64 {
    let mut arenas: Vec<_> = session.regions.iter().map(SessionRegion::arena).collect();
    arenas.dedup_by_key(|arena| arena.as_ptr());
    arenas.iter().map(|arena| arena.native_extents() as u64).sum()
}

/// Makes a session whole.
///
/// # Errors
/// As [`Session::complete`](crate::Session::complete).
pub(super) fn complete(session: &SessionInner) -> Result<Completion> {
    let (pages, object) = (session.nr_pages(), &session.object);
    let limit = object.inner.rt.account.limit();
    let direct_extents = session.direct_extents.load(Ordering::Relaxed);
    let needed = pages.saturating_sub(direct_extents * EXTENT_PAGES as u64);
    if needed > limit {
        let what = "the cache's limit, in pages, below what the session has";
        return Err(Error::Limit { op: OP, what, limit, needed });
    }
    for r in &session.regions {
        let range = r.region().offset..r.region().offset + r.region().len_bytes;
        // Extent by extent, and each handed over before the next: it cannot be dropped meanwhile.
        let mut at = range.start;
        while at < range.end {
            let end = ((at / EXTENT_SIZE as u64 + 1) * EXTENT_SIZE as u64).min(range.end);
            let here = r.range().start + (at - range.start) as usize;
            let here = here..here + (end - at) as usize;
            if r.arena().is_direct(&here) {
                at = end;
                continue;
            }
            object.populate(at..end)?;
            if r.region().prot != softfault_image::Prot::NONE && r.arena().promote(here.clone())? == 0 {
                r.arena().fault_in(here, Access::Read)?;
            }
            at = end;
        }
    }
    let native_extents = native(session);
    let all: u64 = session.regions.iter().map(extents).sum();
    let trapped_extents = all.saturating_sub(native_extents + direct_extents);
    Ok(Completion { resident_bytes: needed * PAGE_SIZE as u64, native_extents, direct_extents, trapped_extents })
}

/// Returns the extents that a region meets.
fn extents(r: &SessionRegion) -> u64 {
    let range = r.range();
    (range.end.div_ceil(EXTENT_SIZE) - range.start / EXTENT_SIZE) as u64
}
