//! The walker: the captured pages, in the image's order, as they were at the cut.
//!
//! ```text
//! a page          saved      its bytes are in a frame, in the spill file, or on their way there
//!                 unsaved    copied; the copy counts if nobody has saved the page meanwhile, else as above
//! ```
//! # Context: a thread of the capture's own: it allocates, and nobody waits for it

use super::layout::Span;
use super::sink::Sink;
use super::state::{State, failed};
use crate::error::{self, CaptureFailure, Error, Result};
use crate::object::{capture as calls, io, preserve};
use softfault_image::Writer;
use softfault_mm::cut::Phase;
use softfault_mm::failpoint;
use softfault_mm::page::{PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::types::FillError;
use softfault_platform::area::{self, Key};
use softfault_platform::sys::thread;
use std::sync::atomic::Ordering;

const OP: &str = "Capture::commit";
/// Pages that are written at once.
const BATCH: usize = 16;
/// How long the walker waits for a frame before it looks again.
const NAP_NS: u64 = 50_000;

/// Writes all pages.
///
/// # Errors
/// [`Error::Capture`], [`Error::Image`]; the capture is given up.
pub(super) fn walk(state: &State, writer: &mut Writer) -> Result<()> {
    let mut bytes = vec![0u8; BATCH * PAGE_SIZE];
    let mut sink = Sink::new(writer, state.parent.as_deref());
    for span in &state.spans {
        let mut at = span.pages.start;
        while at < span.pages.end {
            let nr = BATCH.min((span.pages.end - at) as usize);
            let first = span.first + (at - span.pages.start);
            let batch = &mut bytes[..nr * PAGE_SIZE];
            for (i, page) in batch.chunks_exact_mut(PAGE_SIZE).enumerate() {
                check(state)?;
                page.fill(0);
                if !state.is_excluded(first + i as u64) {
                    read(state, span, at + i as u64, page)?;
                }
            }
            sink.put(first, batch).map_err(|e| refused(state, error::image(OP)(e)))?;
            state.done.store(first + nr as u64, Ordering::Relaxed);
            at += nr as u64;
        }
    }
    check(state)
}

/// Returns why the capture was given up, if it was.
fn check(state: &State) -> Result<()> {
    if state.words().phase() == Phase::Copying {
        return Ok(());
    }
    Err(why(state))
}

/// Makes the error of a capture that somebody has given up.
fn why(state: &State) -> Error {
    // Relaxed: whoever asks has ended.
    if state.cancelled.load(Ordering::Relaxed) {
        return failed(OP, CaptureFailure::Cancelled, None);
    }
    match calls::set_cause(state.number(), None) {
        Some(FillError::CacheFull) | None => failed(OP, CaptureFailure::Spill, None),
        Some(cause) => failed(OP, CaptureFailure::Store, Some(cause.to_string().into())),
    }
}

/// Gives the capture up for an error.
fn refused(state: &State, error: Error) -> Error {
    calls::fail(state.number());
    error
}

/// Reads what a page was at the cut.
fn read(state: &State, span: &Span, pgoff: u64, bytes: &mut [u8]) -> Result<()> {
    let m = span.object.mapping();
    let key = Key { object: m.id, pgoff };
    loop {
        check(state)?;
        if m.captured.bits.is_saved(pgoff) {
            if m.captured.bits.is_spilled(pgoff) {
                let pos = (span.first + (pgoff - span.pages.start)) << PAGE_SHIFT;
                let spilled = state.spill.read(pos, bytes);
                return spilled
                    .map_err(|e| refused(state, failed(OP, CaptureFailure::Spill, Some(Box::new(error::io(e))))));
            }
            if area::take(state.number(), key, &mut |kept| bytes.copy_from_slice(kept)) {
                return Ok(());
            }
            // On its way, by a store or by the saver.
            thread::sleep_ns(NAP_NS);
        } else if pgoff >= m.nr_pages() || preserve::is_never_filled(&span.object, pgoff) {
            // Past the end is zero. If the end has moved since the cut the page was saved before.
            if !m.captured.bits.save(pgoff) {
                continue;
            }
            m.captured.bits.note_spilled(pgoff);
        } else if copy(state, span, pgoff, bytes)? {
            return Ok(());
        }
    }
}

/// Copies a page; `false`: somebody saved it meanwhile, or it is gone.
fn copy(state: &State, span: &Span, pgoff: u64, bytes: &mut [u8]) -> Result<bool> {
    let m = span.object.mapping();
    let word = match io::get_pinned(&span.object, pgoff, 0) {
        Ok(word) => word,
        Err(FillError::PastEnd) => return Ok(false),
        Err(cause) => {
            let error = failed(OP, CaptureFailure::Store, Some(cause.to_string().into()));
            return Err(refused(state, error));
        }
    };
    let (half, rest) = bytes.split_at_mut(PAGE_SIZE / 2);
    m.a_ops.copy_from_page(pgoff, 0, half);
    failpoint!(CAPTURE_WALKED);
    m.a_ops.copy_from_page(pgoff, PAGE_SIZE / 2, rest);
    word.unpin();
    let counts = m.captured.bits.save(pgoff);
    area::COUNTS.walked.fetch_add(u64::from(counts), Ordering::Relaxed);
    Ok(counts)
}
