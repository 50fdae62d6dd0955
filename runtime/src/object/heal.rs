//! Healing: pages that could not be had are asked for again.
//!
//! # Context: control plane

use super::state::ObjectInner;
use crate::error::Result;
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use std::ops::Range;

/// Forgets that pages of the byte range were poisoned; returns how many were.
///
/// # Errors
/// [`Error::System`](crate::Error::System) where poison stays in page tables.
///
/// # Context: control plane
pub(crate) fn heal(object: &ObjectInner, op: &'static str, range: &Range<u64>) -> Result<u64> {
    let m = object.mapping();
    let pages = (range.start >> PAGE_SHIFT)..pages_of(range.end).min(m.nr_pages());
    let healed = pages.clone().filter(|p| m.folio(*p).is_some_and(|w| w.forget_poison().is_ok())).count();
    object.i_mmap().unpoison(op, pages.start, pages.end)?;
    Ok(healed as u64)
}
