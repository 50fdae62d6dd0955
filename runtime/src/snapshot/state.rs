//! What a session is made of: its image, and where its regions lie.
//!
//! # Context: control plane

use super::open::OpenImage;
use super::overlay::Overlay;
use super::record::Recording;
use crate::arena::Arena;
use crate::object::Object;
use softfault_image::{PAGE_SIZE, Region};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A region of an image, where a session has it.
#[derive(Clone, Debug)]
pub struct SessionRegion {
    region: Region,
    arena: Arena,
    offset: usize,
}

impl SessionRegion {
    pub(super) fn new(region: Region, arena: Arena, offset: usize) -> Self {
        Self { region, arena, offset }
    }

    /// Returns the address of the region's first byte.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.arena.as_ptr().wrapping_add(self.offset)
    }

    /// Returns the region's length in bytes.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn len(&self) -> usize {
        self.region.len_bytes as usize
    }

    /// Returns `false`: a region has a page at least.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.region.len_bytes == 0
    }

    /// Returns what the image says of the region: its name, where it was, what was permitted.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Returns the arena that the region lies in, perhaps with others.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Returns which bytes of that arena the region is.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// How far a session has come, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pages of all regions.
    pub pages: u64,
    /// Pages of the image that are cached, for whichever session. They count once, under the cache's limit.
    pub cached: u64,
    /// Extents (2 MiB) that the kernel serves by itself.
    pub native_extents: u64,
    /// Extents that are mapped from the image's file itself, and are in no cache of ours.
    pub direct_extents: u64,
    /// Pages that a replay has read.
    pub replayed: u64,
    /// The replay has read all that it was to, or found no room for more; or there is none.
    pub replay_ended: bool,
}

/// How far a replay has come.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// Pages that it has read. Relaxed: a number for people.
    pub(super) pages: AtomicU64,
    pub(super) ended: AtomicBool,
}

impl Replayed {
    /// Returns whether the replay reads nothing any more.
    pub(super) fn has_ended(&self) -> bool {
        // Acquire pairs with `Replay::begin`: who is told finds the pages.
        self.ended.load(Ordering::Acquire)
    }
}

/// What a session is made of.
#[derive(Debug)]
pub(super) struct SessionInner {
    pub(super) image: OpenImage,
    /// Whose pages the regions are: the image's object, or one of the session's own.
    pub(super) object: Object,
    pub(super) regions: Vec<SessionRegion>,
    pub(super) overlays: Vec<Overlay>,
    pub(super) replayed: Arc<Replayed>,
    /// Extents that were mapped from files. Relaxed: a number for people.
    pub(super) direct_extents: Arc<AtomicU64>,
    /// What notes which pages are touched, if that was asked for.
    pub(super) recording: Mutex<Option<Recording>>,
}

impl SessionInner {
    /// Returns the pages of all regions.
    pub(super) fn nr_pages(&self) -> u64 {
        self.regions.iter().map(|r| r.region.len_bytes / PAGE_SIZE as u64).sum()
    }
}
