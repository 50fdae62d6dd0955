//! `CaptureBuilder`: what is captured, and where to.
//!
//! # Context: control plane

use super::claim::Claim;
use super::cut::{self, Cut};
use super::handle::Capture;
use super::helpers::Helpers;
use super::layout::{self, Frozen};
use super::spill::Spill;
use super::state::{Slot, State, failed};
use super::wanted::{OP, Wanted};
use super::{end, stopped};
use crate::arena::Arena;
use crate::error::{CaptureFailure, Error, Result, parent_only, system};
use crate::snapshot::Session;
use softfault_image::{Codec, Image, Writer};
use softfault_mm::page::{PAGE_SHIFT, PAGE_SIZE};
use softfault_platform::area;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The least, and by default the most, frames for saved bytes.
const FRAMES: Range<usize> = area::SET..16 << 10;

/// What a capture is to be; see [`Runtime::capture`](crate::Runtime::capture).
#[derive(Debug, Default)]
#[must_use = "nothing is captured before `begin`"]
pub struct CaptureBuilder {
    wanted: Wanted,
    budget_bytes: Option<usize>,
    is_stopped: bool,
}

impl CaptureBuilder {
    /// Captures an arena, all of it, together with the others. It was made with
    /// [`ArenaBuilder::capturable`](crate::ArenaBuilder::capturable).
    ///
    /// # Context: program, filler
    pub fn arena(mut self, arena: &Arena) -> Self {
        if !self.wanted.arenas.iter().any(|a| a.as_ptr() == arena.as_ptr()) {
            self.wanted.arenas.push(arena.clone());
        }
        self
    }

    /// Captures a session, with its regions where its image has them, so that what [`CaptureBuilder::over`] that image is written is
    /// what the session has changed; its overlays are left out, and named ([`Session::overlays`]). Sessions map privately, and so
    /// are captured [`stopped`](CaptureBuilder::stopped) alone. The last one that is named counts.
    ///
    /// # Context: program, filler
    pub fn session(mut self, session: &Session) -> Self {
        self.wanted.session = Some(session.clone());
        self
    }

    /// Says that nobody stores to what is captured while [`CaptureBuilder::begin`] runs: the program has stopped its threads. Then any
    /// arena can be captured, whatever delivers its faults, with private mappings and exclusive objects, and sessions; nothing is
    /// protected, and all of it is read before `begin` returns. Default no.
    ///
    /// # Context: program, filler
    pub fn stopped(mut self, yes: bool) -> Self {
        self.is_stopped = yes;
        self
    }

    /// Leaves bytes of an arena out, rounded outwards to pages: they are zero in the image. For secrets, and for what is made anew.
    ///
    /// # Context: program, filler
    pub fn exclude(mut self, arena: &Arena, range: Range<usize>) -> Self {
        let end = range.end.min(arena.inner.len_bytes);
        if range.start < end {
            let range = range.start / PAGE_SIZE * PAGE_SIZE..end.next_multiple_of(PAGE_SIZE);
            self.wanted.excluded.push((arena.as_ptr().addr(), range));
        }
        self
    }

    /// Sets how many bytes of memory the old contents of pages may take that are stored to before they are written, on top of the
    /// cache's limit; when it is full they go to a file beside the image. Default: an eighth of what is captured, 256 KiB to 64 MiB.
    ///
    /// # Context: program, filler
    pub fn budget(mut self, bytes: usize) -> Self {
        self.budget_bytes = Some(bytes);
        self
    }

    /// Writes only the pages that differ from another image's in the same folder, which the new one then needs: each is compared.
    ///
    /// # Context: program, filler
    pub fn over(mut self, parent: Arc<Image>) -> Self {
        self.wanted.over = Some(parent);
        self
    }

    /// Compresses the image; default: not.
    ///
    /// # Context: program, filler
    pub fn codec(mut self, codec: Codec) -> Self {
        self.wanted.codec = Some(codec);
        self
    }

    /// Keeps a value beside the memory: registers, devices, a version. What belongs to the moment of the cut can be added by
    /// [`Capture::key`] before the capture is committed.
    ///
    /// # Context: program, filler
    pub fn key(mut self, key: &str, value: &[u8]) -> Self {
        self.wanted.keys.push((key.to_owned(), value.to_vec()));
        self
    }

    /// Whether [`CaptureBuilder::begin`] waits for pins for writing, and for another capture of the same arena or object until that
    /// one's pages are written; default yes. If not, it fails with [`Error::Pinned`] or [`Error::Denied`] at once.
    ///
    /// # Context: program, filler
    pub fn wait(mut self, yes: bool) -> Self {
        self.wanted.no_wait = !yes;
        self
    }

    /// Makes the cut, and returns after it; the image is written meanwhile, until [`Capture::commit`].
    ///
    /// Threads go on storing all the time, but for the last moment before the cut (a millisecond or two), in which they wait, and
    /// `at_cut` runs, on this thread: what it reads of the program's state is of the same moment as the memory. It must not
    /// wait for a thread that stores to the arenas (for a lock of such a thread, the allocator's included), nor store to them
    /// itself: after a tenth of a second the stores are let through, and it is called again, three times in all. Loads are fine.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Denied`] for a session or an arena that is not capturable, unless [`stopped`](CaptureBuilder::stopped); for an object that is mapped for stores in one that is not, or whose pages
    /// are mapped twice; [`Error::Exhausted`] for a fifth capture at once, or memory; [`Error::Pinned`]; [`Error::Image`]: the
    /// file cannot be made; [`Error::Capture`].
    pub fn begin<E>(
        mut self,
        image: impl AsRef<Path>,
        mut at_cut: impl FnMut() -> std::result::Result<(), E>,
    ) -> Result<Capture>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        parent_only(OP)?;
        if self.wanted.arenas.is_empty() && self.wanted.session.is_none() {
            return Err(Error::Denied { op: OP, what: "nothing is captured: name an arena or a session" });
        }
        if self.is_stopped {
            return stopped::begin(self.wanted, image.as_ref(), &mut at_cut);
        }
        if self.wanted.session.is_some() {
            let what = "a session maps privately: while threads store to it it is not captured, but `stopped`";
            return Err(Error::Denied { op: OP, what });
        }
        if self.wanted.arenas.iter().any(|a| !a.inner.capturable) {
            let what = "an arena was not made with `ArenaBuilder::capturable`: it is not captured, but `stopped`";
            return Err(Error::Denied { op: OP, what });
        }
        self.wanted.arenas.sort_by_key(|a| a.as_ptr().addr());
        let slot = Slot::take().ok_or(Error::Exhausted { op: OP, what: "captures at once (4)" })?;
        let arenas = std::mem::take(&mut self.wanted.arenas);
        let (frozen, claim) = Frozen::new(OP, &arenas, slot.number(), !self.wanted.no_wait)?;
        let claim = Arc::new(claim);
        let (state, writer) = self.prepare(slot, &arenas, image.as_ref().to_owned(), &claim)?;
        let state = Arc::new(state);
        let ends = Ends { state: &state, helpers: Some(Helpers::start(&state, claim)?) };
        let cut = cut::cut(&state, &mut at_cut);
        drop(frozen);
        match cut? {
            Cut::Made => {}
            Cut::Refused(why) => return Err(failed(OP, CaptureFailure::AtCut, why.map(Into::into))),
        }
        Capture::start(ends.keep(), Arc::clone(&state), writer)
    }

    /// Makes everything ready that takes memory, while threads may still wait for memory.
    fn prepare(&mut self, slot: Slot, arenas: &[Arena], image: PathBuf, claim: &Arc<Claim>) -> Result<(State, Writer)> {
        let layout = layout::look(arenas, &self.wanted.excluded);
        let by_object = layout::by_object(OP, &layout.spans)?;
        let mut objects: Vec<_> = layout.spans.iter().map(|s| Arc::clone(&s.object)).collect();
        objects.sort_by_key(|o| o.mapping().id);
        objects.dedup_by_key(|o| o.mapping().id);
        for object in &objects {
            let opened = object.space.region.open_bits(object.offset, object.len_max);
            opened.map_err(system(OP, "mprotect"))?;
        }
        let (writer, parent) = self.wanted.writer(&image, layout.nr_pages, &layout.regions)?;
        let spill = Spill::beside(&image, layout.nr_pages << PAGE_SHIFT);
        let spill = spill.map_err(|e| failed(OP, CaptureFailure::Spill, Some(Box::new(e))))?;
        let wanted = self.budget_bytes.map_or(layout.nr_pages as usize / 8, |b| b / PAGE_SIZE);
        let wanted = if self.budget_bytes.is_none() { wanted.min(FRAMES.end) } else { wanted };
        // No more than there are pages, of which each is kept once.
        let nr = wanted.min(layout.nr_pages as usize).max(FRAMES.start).next_multiple_of(area::SET);
        area::open(slot.number(), nr).map_err(system(OP, "mmap"))?;
        Ok((State::new(slot, layout, by_object, objects, spill, (parent, Arc::clone(claim))), writer))
    }
}

/// Dropped, it ends the capture, and gives its frames back.
struct Ends<'a> {
    state: &'a State,
    helpers: Option<Helpers>,
}

impl Ends<'_> {
    /// The cut is made: the handle will.
    fn keep(mut self) -> Option<Helpers> {
        self.helpers.take()
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if let Some(helpers) = self.helpers.take() {
            end::end(self.state);
            helpers.end(self.state);
        }
    }
}
