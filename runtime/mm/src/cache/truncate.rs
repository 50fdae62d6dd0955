//! The end of an object moves. Linux: `mm/truncate.c`.
//!
//! The cache's memory never shrinks: the end is a number in the object. Lower it first, then drop what lies past it:
//! ```text
//! truncate                                 fault, promotion
//! i_size = new (Release)
//!                                          a look at i_size from here on: past the end, SIGBUS
//! demote native extents past the new end   (control plane)
//! wait for fills, drop pages, zero the tail
//! ```
//! A fault that read the old end has pinned or claimed its page, and dropping waits for both; or it is about to claim it,
//! and finds the new end when it wants to publish (tests/loom_fault.rs).
//!
//! # Context: control plane; [`i_size_write`] and what looks at the end: handler too

use crate::failpoint;
use crate::host::Env;
use crate::mapping::Mapping;
use crate::page::pages_of;
use crate::sync::{Ordering, fence};
use crate::vmscan;

/// Sets the end of the object; returns the old one. Growing needs nothing more.
///
/// # Context: handler
pub fn i_size_write(mapping: &Mapping<'_>, len_bytes: u64) -> u64 {
    // Release pairs with `nr_pages`; the swap orders two truncates.
    let old = mapping.i_size.swap(len_bytes, Ordering::AcqRel);
    // The fence pairs with `publish_waking`: whatever was claimed before is seen by the looks at the words that follow.
    fence(Ordering::SeqCst);
    old
}

/// Drops the pages past the end, up to page `old_pages`; returns how many are still pinned, being filled or counted
/// native, and must be tried again.
///
/// # Context: control plane
pub fn truncate_pagecache(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize, old_pages: u64) -> u64 {
    // Acquire pairs with `i_size_write`, our own or a later one.
    let from = pages_of(mapping.i_size.load(Ordering::Acquire));
    failpoint!(TRUNCATE_DROP);
    vmscan::discard_range(env, mapping, stripe, from, old_pages);
    let left = |p: &u64| {
        mapping.folio(*p).is_some_and(|w| {
            let seen = w.load();
            !matches!(seen.state(), crate::folio::State::Absent | crate::folio::State::Poisoned)
        })
    };
    (from..old_pages).filter(left).count() as u64
}
