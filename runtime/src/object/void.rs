//! Pages that nobody reads, writes or fills for a while, because what lies below them changes.
//!
//! # Context: control plane

use softfault_mm::mapping::Mapping;
use softfault_mm::vmscan;
use softfault_platform::host::Host;
use std::mem::ManuallyDrop;
use std::ops::Range;

/// Pages of one chunk that nobody reads, writes or fills meanwhile; dropped, they are as they were.
pub(super) struct Void<'a> {
    m: &'a Mapping<'a>,
    pages: Range<u64>,
}

impl<'a> Void<'a> {
    /// The caller has the object's turn to flush. `None`: a page is pinned, being filled or written.
    pub(super) fn take(m: &'a Mapping<'a>, pages: &Range<u64>) -> Option<Self> {
        vmscan::take_void(Host::detached().env(), m, 0, pages.start, pages.end)
            .then(|| Self { m, pages: pages.clone() })
    }

    /// Drops what is cached; `false`: some of it cannot go, and is as it was.
    pub(super) fn punch(self) -> bool {
        let this = ManuallyDrop::new(self);
        vmscan::drop_void(Host::detached().env(), this.m, 0, this.pages.start, this.pages.end) == 0
    }
}

impl Drop for Void<'_> {
    fn drop(&mut self) {
        vmscan::keep_void(Host::detached().env(), self.m, self.pages.start, self.pages.end);
    }
}
