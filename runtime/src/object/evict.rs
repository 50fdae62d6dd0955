//! Dropping pages from the cache because somebody asks for it. Linux: `invalidate_mapping_pages`.
//!
//! # Context: control plane

use super::state::ObjectInner;
use crate::error::Result;
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use softfault_mm::vmscan;
use softfault_platform::host::Host;
use std::ops::Range;

/// Drops clean, unpinned pages of the byte range from the cache, those that lie in it whole; returns how many went.
///
/// # Errors
/// [`Error::Exhausted`](crate::Error::Exhausted) when an extent cannot be taken back.
///
/// # Context: control plane
pub(crate) fn evict(object: &ObjectInner, range: &Range<u64>) -> Result<u64> {
    let m = object.mapping();
    let from = pages_of(range.start);
    let to = (range.end >> PAGE_SHIFT).max(from).min(m.folios.len() as u64);
    let is_to_end = range.end >= object.len_bytes();
    let to = if is_to_end { m.nr_pages().max(to) } else { to };
    object.i_mmap().demote(from, to)?;
    Ok(vmscan::reclaim_range(Host::detached().env(), m, 0, from, to))
}
