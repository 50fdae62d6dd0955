//! Captures of memory that nobody stores to: the program has stopped its threads, and says so.
//!
//! Nothing is protected and nothing kept: the pages are read, through the mappings, and the image is theirs. So it is open to every
//! arena, whatever delivers its faults, to private mappings and exclusive objects, and to sessions.
//!
//! # Context: control plane

use super::handle::{Capture, Written};
use super::layout::Frozen;
use super::sink::Sink;
use super::state::{Slot, failed};
use super::wanted::{OP, Wanted};
use crate::arena::Arena;
use crate::error::{self, CaptureFailure, Error, Result};
use crate::object::capture::CUTTERS;
use crate::snapshot::Session;
use crate::types::Prot;
use softfault_image as image;
use softfault_mm::page::{PAGE_SHIFT, PAGE_SIZE};
use softfault_platform::sys::thread;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Pages that are read at once.
const BATCH: usize = 16;

/// A part of a mapping, and the image's first page of it.
struct Piece {
    arena: Arena,
    range: Range<usize>,
    first: u64,
    /// As far as there are pages: what lies behind the object's end reads as zeros.
    nr_bytes: usize,
}

/// What an image consists of.
#[derive(Default)]
struct Pieces {
    all: Vec<Piece>,
    regions: Vec<image::Region>,
    nr_pages: u64,
}

/// Writes the image of what nobody stores to until this returns, but for its end.
///
/// # Errors
/// As [`CaptureBuilder::begin`](super::CaptureBuilder::begin).
pub(super) fn begin<E>(
    mut wanted: Wanted,
    path: &std::path::Path,
    at_cut: &mut dyn FnMut() -> std::result::Result<(), E>,
) -> Result<Capture>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let began = thread::monotonic_ns();
    let sessions = wanted.session.take();
    let mut arenas = wanted.arenas.clone();
    for region in sessions.iter().flat_map(Session::regions) {
        arenas.push(region.arena().clone());
    }
    arenas.sort_by_key(|a| a.as_ptr().addr());
    arenas.dedup_by_key(|a| a.as_ptr().addr());
    let slot = Slot::take().ok_or(Error::Exhausted { op: OP, what: "captures at once (4)" })?;
    let frozen = Frozen::alone(OP, &arenas, slot.number(), !wanted.no_wait)?;
    let mut pieces = Pieces::default();
    if let Some(session) = &sessions {
        pieces.add_session(session)?;
        wanted.keys.extend(session.keys());
    }
    wanted.arenas.iter().try_for_each(|arena| pieces.add_arena(arena))?;
    let zeros = pieces.excluded(&wanted.excluded, sessions.as_ref());
    // What it would wait for is that it returns.
    let cutter = CUTTERS.get(slot.number() as usize);
    cutter.inspect(|c| c.store(thread::gettid(), Ordering::Relaxed));
    let said = catch_unwind(AssertUnwindSafe(at_cut));
    cutter.inspect(|c| c.store(0, Ordering::Relaxed));
    match said {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(failed(OP, CaptureFailure::AtCut, Some(error.into()))),
        Err(_) => return Err(failed(OP, CaptureFailure::AtCut, None)),
    }
    let (mut writer, parent) = wanted.writer(path, pieces.nr_pages, &pieces.regions)?;
    let mut sink = Sink::new(&mut writer, parent.as_deref());
    pieces.all.iter().try_for_each(|piece| write(piece, &zeros, &mut sink))?;
    drop(frozen);
    let held = Duration::from_nanos(thread::monotonic_ns().saturating_sub(began));
    Ok(Capture::written(Written { writer, nr_pages: pieces.nr_pages, held }))
}

/// Reads a piece, and writes it.
fn write(piece: &Piece, zeros: &[Range<u64>], sink: &mut Sink<'_>) -> Result<()> {
    let mut bytes = vec![0u8; BATCH * PAGE_SIZE];
    let unreadable = |e: Error| failed(OP, CaptureFailure::Store, Some(Box::new(e)));
    for at in piece.range.clone().step_by(BATCH * PAGE_SIZE) {
        let batch = &mut bytes[..(piece.range.end - at).min(BATCH * PAGE_SIZE)];
        batch.fill(0);
        let nr = batch.len().min((piece.range.start + piece.nr_bytes).saturating_sub(at));
        if nr > 0 {
            piece.arena.read_at(at, &mut batch[..nr]).map_err(unreadable)?;
        }
        let first = piece.first + ((at - piece.range.start) >> PAGE_SHIFT) as u64;
        for (page, bytes) in (first..).zip(batch.chunks_exact_mut(PAGE_SIZE)) {
            if zeros.iter().any(|z| z.contains(&page)) {
                bytes.fill(0);
            }
        }
        sink.put(first, batch).map_err(error::image(OP))?;
    }
    Ok(())
}

impl Pieces {
    /// A session's regions, at the pages that its image has them at, and as it calls them.
    fn add_session(&mut self, session: &Session) -> Result<()> {
        for region in session.regions() {
            let first = region.region().offset >> PAGE_SHIFT;
            self.add(region.arena(), &region.range(), first)?;
            let address = region.as_ptr().addr() as u64;
            self.regions.push(image::Region { address, ..region.region().clone() });
        }
        // Pages are written in the image's order.
        self.all.sort_by_key(|p| p.first);
        self.nr_pages = session.image().inner.image.nr_pages();
        Ok(())
    }

    /// All that an arena maps, behind what there is.
    fn add_arena(&mut self, arena: &Arena) -> Result<()> {
        let mapped: Vec<_> = arena.inner.vmas().iter().map(|v| (v.range.clone(), v.prot)).collect();
        for (range, prot) in mapped {
            let first = self.nr_pages;
            self.add(arena, &range, first)?;
            self.regions.push(image::Region {
                name: String::new(),
                address: (arena.as_ptr().addr() + range.start) as u64,
                offset: first << PAGE_SHIFT,
                len_bytes: range.len() as u64,
                prot: super::layout::image_prot(prot),
            });
            self.nr_pages += (range.len() >> PAGE_SHIFT) as u64;
        }
        Ok(())
    }

    /// What of an arena's range is mapped; the range begins with page `first` of the image.
    fn add(&mut self, arena: &Arena, within: &Range<usize>, first: u64) -> Result<()> {
        for v in arena.inner.vmas().iter() {
            let range = v.range.start.max(within.start)..v.range.end.min(within.end);
            if range.is_empty() {
                continue;
            }
            if v.prot == Prot::None {
                return Err(Error::Denied { op: OP, what: "a mapping that permits no loads cannot be read" });
            }
            let pgoff = v.pgoff + ((range.start - v.range.start) >> PAGE_SHIFT) as u64;
            let left = v.object.mapping().nr_pages().saturating_sub(pgoff) << PAGE_SHIFT;
            let nr_bytes = range.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let first = first + ((range.start - within.start) >> PAGE_SHIFT) as u64;
            self.all.push(Piece { arena: arena.clone(), range, first, nr_bytes });
        }
        Ok(())
    }

    /// Returns the image's pages that are left out: overlays are the session's, and never another one's.
    fn excluded(&self, leave_out: &[(usize, Range<usize>)], session: Option<&Session>) -> Vec<Range<u64>> {
        let overlays = session.into_iter().flat_map(Session::overlays);
        let mut all: Vec<_> = overlays.map(|o| o.range.start >> PAGE_SHIFT..o.range.end >> PAGE_SHIFT).collect();
        for piece in &self.all {
            for (_, out) in leave_out.iter().filter(|(base, _)| *base == piece.arena.as_ptr().addr()) {
                let (from, to) = (out.start.max(piece.range.start), out.end.min(piece.range.end));
                if from < to {
                    let page = |at: usize| piece.first + ((at - piece.range.start) >> PAGE_SHIFT) as u64;
                    all.push(page(from)..page(to));
                }
            }
        }
        all
    }
}
