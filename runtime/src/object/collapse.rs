//! Chunks that are cached whole become huge pages: at once where the program asks, and in rounds of a thread's. Linux:
//! `MADV_COLLAPSE`, and the object's side of `khugepaged`.
//!
//! # Context: control plane, the thread of huge pages

use super::state::ObjectInner;
use crate::cache::khugepaged::CollapseRound;
use softfault_mm::khugepaged::{self, Collapse};
use softfault_mm::mapping::Mapping;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SIZE, PAGE_SHIFT, chunk_of};
use softfault_platform::host::Host;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl CollapseRound for ObjectInner {
    fn collapse_round(&self, left: &mut usize) -> bool {
        let mapping = self.mapping();
        for (i, chunk) in mapping.chunks.iter().enumerate() {
            if *left == 0 || mapping.account.excess() > 0 {
                break;
            }
            let complete = chunk.nr_uptodate() >= EXTENT_PAGES as u64 && !chunk.is_huge();
            if !complete || !chunk.mark_seen() {
                continue;
            }
            match collapse_chunk(self, (i * EXTENT_PAGES) as u64) {
                Collapse::Done => *left -= 1,
                Collapse::Refused(_) => return true,
                Collapse::Already | Collapse::Incomplete | Collapse::Busy => {}
            }
        }
        false
    }
}

/// How often a chunk is tried that somebody is busy with.
const TRIES: u32 = 100;

/// Makes the complete chunks of the byte range huge pages; returns how many of them are.
///
/// # Context: control plane
pub(crate) fn collapse(object: &ObjectInner, range: &Range<u64>) -> u64 {
    if !object.huge {
        return 0;
    }
    let chunk = EXTENT_SIZE as u64;
    let end = range.end.min(object.len_max as u64);
    let mut nr = 0;
    let mut at = range.start.checked_next_multiple_of(chunk).unwrap_or(u64::MAX);
    while at.checked_add(chunk).is_some_and(|next| next <= end) {
        let first = at >> PAGE_SHIFT;
        // A page that a fault holds for a moment is let go in the next.
        let mut patience = TRIES;
        let mut became = collapse_chunk(object, first);
        while became == Collapse::Busy && patience > 0 {
            std::thread::sleep(Duration::from_micros(100));
            // The background may be at it: that is no pin.
            wait_for_collapse(object.mapping(), first, first + 1);
            patience -= 1;
            became = collapse_chunk(object, first);
        }
        nr += u64::from(matches!(became, Collapse::Done | Collapse::Already));
        at += chunk;
    }
    nr
}

/// Collapses the chunk that begins at page `first`, and maps it by huge entries where the kernel does not do so by itself.
fn collapse_chunk(object: &ObjectInner, first: u64) -> Collapse {
    let done = khugepaged::collapse_chunk(Host::detached().env(), object.mapping(), 0, first);
    if done == Collapse::Done {
        object.i_mmap().map_huge(first);
    }
    done
}

/// Forgets the marks of an object that is going away.
pub(crate) fn forget_huge(mapping: &Mapping<'_>) {
    let marked = mapping.chunks.iter().filter(|c| c.clear_huge()).count();
    mapping.account.nr_huge.fetch_sub(marked as u64, Ordering::Relaxed);
}

/// Waits until no chunk of pages `from..to` is being collapsed: the caller has counted a pin, and no collapse begins.
///
/// # Context: control plane
pub(crate) fn wait_for_collapse(mapping: &Mapping<'_>, from: u64, to: u64) {
    let range = chunk_of(from) as usize..=chunk_of(to.saturating_sub(1)) as usize;
    for chunk in mapping.chunks.iter().skip(*range.start()).take(range.count()) {
        while chunk.is_collapsing() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
