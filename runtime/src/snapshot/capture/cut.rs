//! The cut, on the thread that begins the capture.
//!
//! ```text
//! announce   the bits are clear; phase arming; each object has the number; grace
//! arm        everything that was ever mapped is protected
//! rounds     the gates are taken; phase draining; the halves change places; grace; what the old one has is protected; until
//!            that is little. From the second round on each store that opens a page needs a credit, and two protected pages buy one
//! cut        phase cutting; grace; both halves are protected; the closure; cutting -> copying by compare-exchange
//! ```
//! From cutting to copying stores wait, perhaps with the allocator's lock: so nothing is allocated, locked or printed here meanwhile.
//! The watch goes back to draining when that takes too long.
//!
//! # Context: control plane

use super::state::{State, failed, wake_all};
use crate::error::{CaptureFailure, Error, Result};
use crate::object::capture::{self as calls, CUTTERS};
use crate::object::state::ObjectInner;
use softfault_mm::capture;
use softfault_mm::cut::{Phase, tables};
use softfault_mm::failpoint;
use softfault_mm::host::Which;
use softfault_mm::page::EXTENT_PAGES;
use softfault_mm::types::VmFlags;
use softfault_platform::area::COUNTS;
use softfault_platform::host::Host;
use softfault_platform::sys::thread;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const OP: &str = "CaptureBuilder::begin";
/// As many pages may be left for the cut itself.
const FEW: u64 = 64;
const ROUNDS_MAX: u32 = 14;
/// Cuts that are given up before the capture is.
const TRIES: u32 = 3;
/// Pages that are protected before credits are given.
const GIVE_EVERY: u64 = 16;
/// Words of noted stores that are looked at in one section.
const WORDS: usize = 64;
/// How long anybody may stay in a lift before the cut.
const PATIENCE_NS: u64 = 10_000_000_000;

/// One capture is announced, cut or ended at a time. The first in the order of locks.
static CUTTER: Mutex<()> = Mutex::new(());

/// Waits for one's turn to change what others see of captures.
pub(super) fn turn() -> MutexGuard<'static, ()> {
    CUTTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dropped, whatever the cutter did not come to is given up: nobody waits for it.
struct GivenUp<'a>(&'a State);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let words = self.0.words();
        for phase in [Phase::Arming, Phase::Draining, Phase::Cutting] {
            words.change_phase(phase, Phase::Failed);
        }
        wake_all(words);
        if let Some(cutter) = CUTTERS.get(self.0.number() as usize) {
            cutter.store(0, Ordering::Relaxed);
        }
    }
}

/// Makes the cut: from here on the objects' old bytes are kept until the capture is ended.
///
/// # Errors
/// [`Error::Denied`], [`Error::Capture`]: there is none, and [`super::end::end`] is to be called.
pub(super) fn cut<E>(state: &State, at_cut: &mut dyn FnMut() -> std::result::Result<(), E>) -> Result<Cut<E>> {
    let given_up = GivenUp(state);
    let _turn = turn();
    announce(state)?;
    let host = Host::detached();
    grace(&|| true)?;
    arm(state, &host)?;
    host.breathe();
    if let Some(cutter) = CUTTERS.get(state.number() as usize) {
        cutter.store(thread::gettid(), Ordering::Relaxed);
    }
    let mut gates = Vec::with_capacity(state.objects.len());
    gates.extend(state.objects.iter().map(|o| o.i_mmap().gate()));
    let mut outcome = None;
    for attempt in 0..TRIES {
        rounds(state, &host, attempt > 0)?;
        match try_cut(state, &host, at_cut)? {
            Tried::Made => outcome = Some(Cut::Made),
            Tried::TooLong => continue,
            Tried::Refused(error) => outcome = Some(Cut::Refused(error)),
        }
        break;
    }
    drop(gates);
    drop(given_up);
    outcome.ok_or_else(|| failed(OP, CaptureFailure::CutTimedOut, None))
}

/// Waits until nobody acts by what was true before.
fn grace(goes_on: &dyn Fn() -> bool) -> Result<bool> {
    let Some(tables) = tables() else { return Ok(true) };
    let end = thread::monotonic_ns().saturating_add(PATIENCE_NS);
    let mut late = false;
    let done = tables.lifts.grace(&mut || {
        thread::sched_yield();
        late = thread::monotonic_ns() > end;
        !late && goes_on()
    });
    if late { Err(failed(OP, CaptureFailure::CutTimedOut, None)) } else { Ok(done) }
}

/// Tells handlers of the capture.
fn announce(state: &State) -> Result<()> {
    let gates: Vec<_> = state.objects.iter().map(|o| o.i_mmap().gate()).collect();
    for object in &state.objects {
        let captured = &object.mapping().captured;
        calls::refuse_captured(object, OP)?;
        if captured.nr_uncapturable.load(Ordering::Relaxed) != 0 {
            let what = "an object is mapped for stores in an arena that is not capturable, too";
            return Err(Error::Denied { op: OP, what });
        }
        refuse_delegates(object)?;
        captured.bits.clear(object.mapping().folios.len() as u64);
        captured.set_end(object.mapping().folios.len() as u64);
    }
    leave_out(state);
    state.words().set_phase(Phase::Arming);
    state.objects.iter().for_each(|o| o.mapping().captured.set_number(Some(state.number())));
    drop(gates);
    Ok(())
}

/// What a delegate rewrites nobody holds.
fn refuse_delegates(object: &ObjectInner) -> Result<()> {
    let mut told = false;
    Host::detached().env().mm.with_rmap(&mut |r| {
        r.for_each_vma(object.mapping().id, Which::Shared, &mut |v| told |= v.flags.intersects(VmFlags::UFFD_MINOR));
    });
    if told { Err(Error::Denied { op: OP, what: "a delegate of the object may rewrite pages" }) } else { Ok(()) }
}

/// Says of what is in no span, or left out, that nobody wants its bytes.
fn leave_out(state: &State) {
    let save = |object: &ObjectInner, pages: Range<u64>| {
        pages.for_each(|p| _ = object.mapping().captured.bits.save(p));
    };
    for object in &state.objects {
        let mut at = 0;
        let spans = state.by_object.iter().map(|i| &state.spans[*i]);
        for span in spans.filter(|s| s.object.mapping().id == object.mapping().id) {
            save(object, at..span.pages.start);
            at = span.pages.end;
        }
        save(object, at..object.mapping().folios.len() as u64);
    }
    for out in &state.excluded {
        for span in &state.spans {
            let nr = span.pages.end - span.pages.start;
            let (from, to) = (out.start.max(span.first), out.end.min(span.first + nr));
            if from < to {
                save(&span.object, span.pages.start + (from - span.first)..span.pages.start + (to - span.first));
            }
        }
    }
}

/// Protects everything that was ever mapped.
fn arm(state: &State, host: &Host) -> Result<()> {
    for object in &state.objects {
        let m = object.mapping();
        for first in (0..m.folios.len() as u64).step_by(EXTENT_PAGES) {
            let mut done = true;
            host.env().mm.with_rmap(&mut |r| done = capture::arm_chunk(r, m, first));
            if !done {
                return Err(failed(OP, CaptureFailure::Protection, None));
            }
        }
    }
    Ok(())
}

/// Protects what was stored to meanwhile, until that is little. `again`: a cut was given up.
fn rounds(state: &State, host: &Host, again: bool) -> Result<()> {
    let words = state.words();
    words.set_credits(if again { 0 } else { u32::MAX / 2 });
    words.change_phase(Phase::Arming, Phase::Draining);
    for round in 0..ROUNDS_MAX {
        if round > 0 {
            words.set_credits(0);
        }
        let old = words.swap_halves();
        grace(&|| true)?;
        if sweep(state, host, old, true)? <= FEW {
            // Whoever opens a page from here on leaves it to the cut.
            words.set_credits(0);
            break;
        }
        words.give_credits(FEW as u32);
        wake_all(words);
    }
    Ok(())
}

/// Protects what a half has noted; returns how many pages. `gives`: credits, as it goes on.
fn sweep(state: &State, host: &Host, half: usize, gives: bool) -> Result<u64> {
    let (mut all, mut given) = (0, 0);
    for object in &state.objects {
        let m = object.mapping();
        let nr_words = m.folios.len().div_ceil(64);
        for first in (0..nr_words).step_by(WORDS) {
            let mut done = true;
            let words = first..nr_words.min(first + WORDS);
            host.env().mm.with_rmap(&mut |r| {
                done = words.clone().all(|word| capture::sweep_word(r, m, half, word, &mut all));
            });
            if !done {
                return Err(failed(OP, CaptureFailure::Protection, None));
            }
            if gives && all >= given + GIVE_EVERY {
                state.words().give_credits(((all - given) / 2) as u32);
                wake_all(state.words());
                given = all;
            }
        }
    }
    Ok(all)
}

/// What came of it.
pub(super) enum Cut<E> {
    Made,
    /// The closure refused; `None`: it panicked.
    Refused(Option<E>),
}

/// What came of an attempt.
enum Tried<E> {
    Made,
    /// Stores were let through again.
    TooLong,
    /// The closure refused; `None`: it panicked.
    Refused(Option<E>),
}

/// Holds stores, protects the last pages, runs the closure, and makes the cut. Allocates nothing meanwhile.
fn try_cut<E>(state: &State, host: &Host, at_cut: &mut dyn FnMut() -> std::result::Result<(), E>) -> Result<Tried<E>> {
    let words = state.words();
    let began = thread::monotonic_ns();
    words.change_phase(Phase::Draining, Phase::Cutting);
    if !grace(&|| words.phase() == Phase::Cutting)? {
        return Ok(Tried::TooLong);
    }
    let last = sweep(state, host, 0, false)? + sweep(state, host, 1, false)?;
    failpoint!(CAPTURE_CUT);
    let said = catch_unwind(AssertUnwindSafe(at_cut));
    if let Ok(Ok(())) = said {
        if !words.change_phase(Phase::Cutting, Phase::Copying) {
            return Ok(Tried::TooLong);
        }
        wake_all(words);
        state.last.store(last, Ordering::Relaxed);
        let held_ns = thread::monotonic_ns().saturating_sub(began);
        store_max(&state.held_ns, held_ns);
        COUNTS.made.fetch_add(1, Ordering::Relaxed);
        COUNTS.held_ns.fetch_add(held_ns, Ordering::Relaxed);
        return Ok(Tried::Made);
    }
    words.change_phase(Phase::Cutting, Phase::Draining);
    wake_all(words);
    Ok(Tried::Refused(said.ok().and_then(std::result::Result::err)))
}

fn store_max(word: &AtomicU64, value: u64) {
    word.fetch_max(value, Ordering::Relaxed);
}
