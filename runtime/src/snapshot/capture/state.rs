//! What a capture consists of: which pages of which objects, and where they are in the image.
//!
//! # Context: control plane; the cutter, the saver, and the walker, each of whom has a share

use super::claim::Claim;
use super::layout::{Layout, Span};
use super::spill::Spill;
use crate::error::{CaptureFailure, Error};
use crate::object::capture::set_cause;
use crate::object::state::ObjectInner;
use softfault_image::Image;
use softfault_mm::cut::{self, Capture as Words, NR_CAPTURES};
use softfault_platform::area::Key;
use softfault_platform::sys::futex;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};

/// A place in the table of captures, which is the capture's until it is dropped.
#[derive(Debug)]
pub(super) struct Slot(u32);

static TAKEN: Mutex<[bool; NR_CAPTURES]> = Mutex::new([false; NR_CAPTURES]);

impl Slot {
    /// Takes a place; `None`: as many captures are under way as can be.
    pub(super) fn take() -> Option<Self> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let free = taken.iter().position(|t| !*t)?;
        taken[free] = true;
        let _ = set_cause(free as u32, None);
        Some(Self(free as u32))
    }

    /// Returns its number.
    pub(super) fn number(&self) -> u32 {
        self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner)[self.0 as usize] = false;
    }
}

/// One capture, as its threads share it.
pub(super) struct State {
    pub(super) slot: Slot,
    /// In the image's order.
    pub(super) spans: Vec<Span>,
    /// Their numbers, in the order of objects and their pages.
    pub(super) by_object: Vec<usize>,
    /// Each once, in the order of their numbers, which is the order of their gates.
    pub(super) objects: Vec<Arc<ObjectInner>>,
    /// Pages of the image that are left out, and zero in it.
    pub(super) excluded: Vec<Range<u64>>,
    pub(super) nr_pages: u64,
    pub(super) spill: Spill,
    /// The image that the new one needs.
    pub(super) parent: Option<Arc<Image>>,
    /// Pages of the image that the walker is through with.
    pub(super) done: AtomicU64,
    /// Pages whose old bytes stores have had kept, and which went to the spill file.
    pub(super) spilled: AtomicU64,
    /// What nobody else captures meanwhile; `None` when it is ended.
    pub(super) claim: Mutex<Option<Arc<Claim>>>,
    /// 1: the saver and the watch are to end.
    pub(super) stop: AtomicU32,
    /// The user has cancelled it.
    pub(super) cancelled: AtomicBool,
    /// It was ended: nobody sees it any more.
    pub(super) ended: AtomicBool,
    /// Pages that were protected in the cut itself, while stores waited.
    pub(super) last: AtomicU64,
    /// How long stores may have waited in the cut.
    pub(super) held_ns: AtomicU64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("slot", &self.slot).field("nr_pages", &self.nr_pages).finish_non_exhaustive()
    }
}

impl State {
    /// Joins what a capture consists of; nothing of it is announced.
    pub(super) fn new(
        slot: Slot,
        layout: Layout,
        by_object: Vec<usize>,
        objects: Vec<Arc<ObjectInner>>,
        spill: Spill,
        (parent, claim): (Option<Arc<Image>>, Arc<Claim>),
    ) -> Self {
        let Layout { spans, nr_pages, excluded, .. } = layout;
        Self {
            slot,
            spans,
            by_object,
            objects,
            excluded,
            nr_pages,
            spill,
            parent,
            done: AtomicU64::new(0),
            spilled: AtomicU64::new(0),
            claim: Mutex::new(Some(claim)),
            stop: AtomicU32::new(0),
            cancelled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            last: AtomicU64::new(0),
            held_ns: AtomicU64::new(0),
        }
    }

    /// Returns the capture's number.
    pub(super) fn number(&self) -> u32 {
        self.slot.number()
    }

    /// Returns its words.
    pub(super) fn words(&self) -> &'static Words {
        words(self.number())
    }

    /// Returns the span, and the image's page, of a page that was kept.
    pub(super) fn find(&self, key: Key) -> Option<(&Span, u64)> {
        let after = self.by_object.partition_point(|i| {
            let span = &self.spans[*i];
            (span.object.mapping().id, span.pages.start) <= (key.object, key.pgoff)
        });
        let span = &self.spans[*self.by_object.get(after.checked_sub(1)?)?];
        let inside = span.object.mapping().id == key.object && span.pages.contains(&key.pgoff);
        inside.then(|| (span, span.first + (key.pgoff - span.pages.start)))
    }

    /// Returns whether page `page` of the image is left out.
    pub(super) fn is_excluded(&self, page: u64) -> bool {
        self.excluded.iter().any(|r| r.contains(&page))
    }
}

fn words(number: u32) -> &'static Words {
    match cut::tables().and_then(|t| t.capture(number)) {
        Some(words) => words,
        None => unreachable!("the table has a place for every slot"),
    }
}

/// Wakes whoever sleeps on a word of the capture.
pub(super) fn wake_all(words: &Words) {
    let words = [words.phase_key(words.phase()).0, words.credit_key().0, words.room_key().0];
    words.into_iter().for_each(futex::wake_all);
}

/// Makes the error of a capture that came to nothing.
pub(super) fn failed(
    op: &'static str,
    failure: CaptureFailure,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Capture { op, failure, source }
}
