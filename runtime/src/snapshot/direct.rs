//! Direct extents: what lies in a file as it is, and may be shown unverified, is mapped from there.
//!
//! A mapping shows what is written to the file later. So it is done where that is said not to happen ([`Integrity::Trusted`]), or
//! cannot (a memfd that is sealed against writes and against shrinking, and of which there are no digests to be verified). By whole
//! extents, each of which lies in one piece; neighbours together. The first pieces are mapped before anybody has the session, the
//! others by a thread of its own, while the program runs: see [`crate::arena`]'s `direct`, which loses no store.
//!
//! # Context: control plane; the thread is a helper

use super::state::SessionRegion;
use crate::arena::Arena;
use crate::arena::direct::{self, Same};
use crate::error::{Error, Result};
use crate::object::Object;
use crate::process::helper::Thread;
use softfault_image::{EXTENT_PAGES, Image, Integrity, PAGE_SIZE, Run, Source};
use softfault_mm::page::EXTENT_SIZE;
use softfault_mm::vmstat::Event;
use softfault_platform::sys::fd::Descriptor;
use softfault_platform::sys::mem;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const EXTENT: u64 = EXTENT_SIZE as u64;
/// Pieces that are mapped before a session is ready, 10 us each; and extents that are looked at for them.
const FIRST_PIECES: usize = 32;
const FIRST_LOOKS: u64 = 4096;
/// Pieces of a session: each may cost the kernel two mappings, of which a process has 65,530.
const MOST_PIECES: usize = 4096;

/// Extents of a region, as numbers of the image's.
#[derive(Debug)]
struct Target {
    arena: Arena,
    /// Where in the arena the first of them lies.
    offset: usize,
    extents: Range<u64>,
}

/// Bytes of a file that may be mapped.
#[derive(Clone, Copy, Debug)]
struct Place {
    file: Descriptor,
    offset: u64,
}

/// Neighbouring extents that lie in a file side by side.
#[derive(Debug)]
struct Piece {
    target: usize,
    extents: Range<u64>,
    place: Place,
}

/// What of a session is yet to be looked at.
#[derive(Debug)]
pub(super) struct Plan {
    image: Arc<Image>,
    object: Object,
    targets: Vec<Target>,
    target: usize,
    extent: u64,
    runs: Vec<Run>,
    /// The file that was met last, and whether it may be mapped.
    last: Option<(u16, Option<Descriptor>)>,
    mapped: Arc<AtomicU64>,
}

impl Plan {
    /// Begins with the first extent of the first region.
    ///
    /// # Errors
    /// [`Error::Denied`]: nothing of the image may be mapped.
    pub(super) fn new(
        op: &'static str,
        image: &Arc<Image>,
        object: &Object,
        regions: &[SessionRegion],
        mapped: &Arc<AtomicU64>,
    ) -> Result<Self> {
        let targets: Vec<_> = regions.iter().filter_map(target).collect();
        let extent = targets.first().map_or(0, |t| t.extents.start);
        let (image, object, mapped) = (Arc::clone(image), object.clone(), Arc::clone(mapped));
        let mut plan = Self { image, object, targets, target: 0, extent, runs: Vec::new(), last: None, mapped };
        if plan.image.integrity() != Integrity::Trusted && plan.may_map(0, 0, 0).is_none() {
            let what = "direct extents show unverified what is written to a file later: open the image with \
                        Integrity::Trusted, or from a memfd that is sealed against writes and shrinking";
            return Err(Error::Denied { op, what });
        }
        Ok(plan)
    }

    /// Maps the pieces that a session has before anybody gets it; returns whether there are more to come.
    ///
    /// # Errors
    /// As [`direct::map`].
    pub(super) fn begin(&mut self, op: &'static str) -> Result<bool> {
        let mut looks = FIRST_LOOKS;
        for _ in 0..FIRST_PIECES {
            let Some(piece) = self.next(&mut looks) else { return Ok(looks == 0) };
            self.map(op, &piece)?;
        }
        Ok(true)
    }

    /// Returns the file of a layer's bytes if it may be mapped.
    fn may_map(&mut self, layer: u16, pos: u64, len_bytes: u64) -> Option<Descriptor> {
        let (file, has_digests) = self.image.raw_file(layer, pos, len_bytes).ok()?;
        if let Some((_, known)) = self.last.filter(|(l, _)| *l == layer) {
            return known;
        }
        let fd = file.as_raw_fd();
        let is_trusted = self.image.integrity() == Integrity::Trusted;
        let may = is_trusted || (!has_digests && mem::is_sealed_for_good(fd));
        let known = may.then(|| Descriptor::new(fd));
        self.last = Some((layer, known));
        known
    }

    /// Returns where an extent lies, if it does in one piece.
    fn place(&mut self, extent: u64) -> Option<Place> {
        let mut runs = std::mem::take(&mut self.runs);
        let whole = self.image.extent(extent, &mut runs).ok().and_then(|()| match runs[..] {
            [Run { nr: EXTENT_PAGES, source: Source::Raw { layer, pos }, .. }] => Some((layer, pos)),
            _ => None,
        });
        self.runs = runs;
        let (layer, offset) = whole?;
        let is_page = offset.is_multiple_of(PAGE_SIZE as u64);
        let file = self.may_map(layer, offset, EXTENT).filter(|_| is_page)?;
        Some(Place { file, offset })
    }

    /// Returns the next piece, after at most `looks` extents; none is left if there are some.
    fn next(&mut self, looks: &mut u64) -> Option<Piece> {
        let mut found: Option<Piece> = None;
        while let Some(extents) = self.targets.get(self.target).map(|t| t.extents.clone()) {
            if self.extent >= extents.end {
                self.target += 1;
                self.extent = self.targets.get(self.target).map_or(0, |t| t.extents.start);
                if found.is_some() {
                    break;
                }
                continue;
            }
            // A file that is the image, holes and all, is one piece, however large it is.
            let is_flat = self.image.is_flat();
            let end = if is_flat { extents.end } else { self.extent + 1 };
            *looks = match looks.checked_sub(1) {
                Some(left) => left,
                None => break,
            };
            let place = if is_flat {
                let (offset, len) = (self.extent * EXTENT, (end - self.extent) * EXTENT);
                self.may_map(0, offset, len).map(|file| Place { file, offset })
            } else {
                self.place(self.extent)
            };
            let goes_on = |p: &Piece, place: &Place| {
                let next = p.place.offset + (p.extents.end - p.extents.start) * EXTENT;
                p.place.file == place.file && next == place.offset
            };
            match (&mut found, place) {
                (Some(piece), Some(place)) if goes_on(piece, &place) => piece.extents.end = end,
                (Some(_), _) => break,
                (None, Some(place)) => {
                    found = Some(Piece { target: self.target, extents: self.extent..end, place });
                }
                (None, None) => {}
            }
            self.extent = end;
        }
        found
    }

    /// Maps a piece; where a page of it is the session's own, extent by extent.
    fn map(&self, op: &'static str, piece: &Piece) -> Result<()> {
        if self.map_extents(op, piece, piece.extents.clone())? || piece.extents.end - piece.extents.start == 1 {
            return Ok(());
        }
        piece.extents.clone().try_for_each(|extent| self.map_extents(op, piece, extent..extent + 1).map(drop))
    }

    fn map_extents(&self, op: &'static str, piece: &Piece, extents: Range<u64>) -> Result<bool> {
        let Some(target) = self.targets.get(piece.target) else { return Ok(false) };
        let at = |extent: u64| target.offset + ((extent - target.extents.start) * EXTENT) as usize;
        let same = Same {
            object: self.object.inner.mapping().id,
            object_offset: extents.start * EXTENT,
            file: piece.place.file,
            file_offset: piece.place.offset + (extents.start - piece.extents.start) * EXTENT,
        };
        let (range, nr) = (at(extents.start)..at(extents.end), extents.end - extents.start);
        let is_mapped = direct::map(&target.arena.inner, op, &range, &same)?;
        let stat = self.object.inner.mapping().stat;
        stat.add(0, if is_mapped { Event::EXTENT_DIRECT } else { Event::EXTENT_DIRECT_LEFT }, nr);
        self.mapped.fetch_add(if is_mapped { nr } else { 0 }, Ordering::Relaxed);
        Ok(is_mapped)
    }
}

/// Returns the whole extents of a region that lies as in the image, modulo 2 MiB.
fn target(region: &SessionRegion) -> Option<Target> {
    let (start, end) = (region.region().offset, region.region().offset + region.region().len_bytes);
    let extents = start.div_ceil(EXTENT)..end / EXTENT;
    let offset = region.range().start + (extents.start * EXTENT).saturating_sub(start) as usize;
    let fits = offset.is_multiple_of(EXTENT_SIZE) && extents.start < extents.end;
    fits.then(|| Target { arena: region.arena().clone(), offset, extents })
}

/// The thread that maps the rest, until it has ended, or is dropped.
#[derive(Debug)]
pub(super) struct Directing(Thread);

impl Directing {
    /// Begins.
    ///
    /// # Errors
    /// [`Error::Io`]: the thread cannot be started.
    pub(super) fn begin(op: &'static str, mut plan: Plan) -> Result<Self> {
        let run = move |stop: &AtomicU32| {
            let mut looks = u64::MAX;
            for _ in FIRST_PIECES..MOST_PIECES {
                let Some(piece) = plan.next(&mut looks) else { return };
                // Acquire pairs with `Thread::tell`. What cannot be had now is trapped, as it was.
                if stop.load(Ordering::Acquire) != 0 || plan.map(op, &piece).is_err() {
                    return;
                }
            }
        };
        let thread = Thread::start_helper("softfault-direct", run);
        thread.map(Self).map_err(|source| Error::Io { op, path: None, source })
    }
}

impl Drop for Directing {
    fn drop(&mut self) {
        // It looks between two pieces.
        self.0.end(|| ());
    }
}
