//! Making a session whole: every page resident, and as few faults left as there can be.
//!
//! # Context: control plane

use super::state::{Progress, SessionInner, SessionRegion};
use crate::error::{Error, Result};
use crate::types::Access;
use softfault_image::PAGE_SIZE;
use softfault_mm::page::EXTENT_SIZE;
use std::ops::Range;
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

/// A part of a region: an extent of the image, or what of one the region has.
struct Part<'a> {
    region: &'a SessionRegion,
    /// Of the image, in bytes.
    image: Range<u64>,
    /// Of the region's arena.
    here: Range<usize>,
}

fn parts(session: &SessionInner) -> impl Iterator<Item = Part<'_>> {
    session.regions.iter().flat_map(|region| {
        let (start, end) = (region.region().offset, region.region().offset + region.region().len_bytes);
        let extents = start / EXTENT_SIZE as u64..end.div_ceil(EXTENT_SIZE as u64);
        extents.map(move |extent| {
            let image = start.max(extent * EXTENT_SIZE as u64)..end.min((extent + 1) * EXTENT_SIZE as u64);
            let at = |pos: u64| region.range().start + (pos - start) as usize;
            Part { region, here: at(image.start)..at(image.end), image }
        })
    })
}

impl Part<'_> {
    /// Returns whether the image's file itself is mapped there. It was, perhaps, and is not any more: the program maps what it likes.
    fn is_direct(&self) -> bool {
        self.region.arena().is_direct(&self.here)
    }
}

/// Makes a session whole.
///
/// # Errors
/// As [`Session::complete`](crate::Session::complete).
pub(super) fn complete(session: &SessionInner) -> Result<Completion> {
    let object = &session.object;
    let limit = object.inner.rt.account.limit();
    let ours = parts(session).filter(|part| !part.is_direct());
    let needed = ours.map(|part| (part.image.end - part.image.start) / PAGE_SIZE as u64).sum();
    if needed > limit {
        let what = "the cache's limit, in pages, below what the session has";
        return Err(Error::Limit { op: OP, what, limit, needed });
    }
    let (mut direct_extents, mut resident_bytes) = (0, 0);
    // Extent by extent, and each handed over before the next: it cannot be dropped meanwhile.
    for part in parts(session) {
        if part.is_direct() {
            direct_extents += 1;
            continue;
        }
        resident_bytes += part.image.end - part.image.start;
        object.populate(part.image)?;
        let arena = part.region.arena();
        if part.region.region().prot != softfault_image::Prot::NONE && arena.promote(part.here.clone())? == 0 {
            arena.fault_in(part.here, Access::Read)?;
        }
    }
    let native_extents = native(session);
    let all: u64 = session.regions.iter().map(extents).sum();
    let trapped_extents = all.saturating_sub(native_extents + direct_extents);
    Ok(Completion { resident_bytes, native_extents, direct_extents, trapped_extents })
}

/// Returns the extents that a region meets.
fn extents(r: &SessionRegion) -> u64 {
    let range = r.range();
    (range.end.div_ceil(EXTENT_SIZE) - range.start / EXTENT_SIZE) as u64
}
