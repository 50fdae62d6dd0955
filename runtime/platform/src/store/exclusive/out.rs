//! Pages go out: taken out of the arena, looked at, written if they were changed, and dropped.
//!
//! What was moved out is in nobody's hands any more, so "evict" is: take it out (atomic), look whether it was changed
//! (`digest`), write it from the frame (stable bytes), and only then it is absent. Where the object has nowhere to write
//! to, or the store fails, the frame goes back, dirty, and the page stays:
//! ```text
//! evictor                                  a thread of the program
//! word: evicting
//! MOVE out                                 (stores before this are in the frame)
//!                                          stores: faults, sees evicting, sleeps
//! changed, nowhere to go: MOVE back
//! word: uptodate, dirty                    woken, stores
//! ```
//! Where MOVE is missing the page is write-protected instead of taken out, looked at and written in place, and dropped.
//!
//! # Context: handler

use super::pages::{Pages, error_of};
use super::place::{Held, is_there};
use crate::frames::{Obstacle, RUN_MAX, Slots, Want};
use crate::sys::{Errno, mem, thread};
use softfault_mm::folio::{DIRTY, State};
use softfault_mm::ops::Zap;
use softfault_mm::page::PAGE_SIZE;
use softfault_mm::types::FillError;

/// Takes out pages that are evicting, or drops those that are `filling`; `AddressSpaceOps::punch`.
pub(super) fn punch(object: &Pages<'_>, pgoff: u64, nr: u32) -> Result<(), FillError> {
    // Mapped nowhere: the words are all that is left of the pages.
    let Some(held) = object.place.hold() else { return Ok(()) };
    if object.word(pgoff).is_some_and(|w| w.load().state() == State::Filling) {
        return drop_filled(object, &held, pgoff, nr).map_err(error_of);
    }
    let (mut at, end) = (pgoff, pgoff + u64::from(nr));
    let in_place = object.facts.by_copy || !object.place.is_writable();
    while at < end {
        if in_place {
            return evict_in_place(object, &held, pgoff, nr).map_err(error_of);
        }
        match evict_run(object, &held, at, ((end - at) as usize).min(RUN_MAX)) {
            Ok(n) => at += n as u64,
            Err(Obstacle::Unfit) if at == pgoff => {
                return evict_in_place(object, &held, pgoff, nr).map_err(error_of);
            }
            Err(obstacle) => return Err(error_of(obstacle)),
        }
    }
    Ok(())
}

/// Drops single pages of a mapping for loads, where nothing is changed: they go in place, and share one flush of the TLBs.
pub(super) fn punch_pages(object: &Pages<'_>, id: u32, pages: &[(u32, u64)], zaps: &mut [Zap]) -> bool {
    let Some(held) = object.place.hold() else { return false };
    if object.place.is_writable() {
        return false;
    }
    let mut nr = 0;
    for (_, pgoff) in pages.iter().filter(|(of, _)| *of == id) {
        let (Some(addr), Some(zap)) = (held.address(*pgoff, 1), zaps.get_mut(nr)) else { return false };
        *zap = Zap { addr, len_bytes: PAGE_SIZE };
        nr += 1;
    }
    // SAFETY: the pages are the caller's (evicting), unchanged, and `held` keeps their mapping.
    if !unsafe { mem::zap_ranges(zaps.get(..nr).unwrap_or_default()) } {
        // Some may be gone: dropping those again, one by one, is no error.
        return false;
    }
    object.note_dropped(nr);
    true
}

/// Drops pages whatever they hold: all or none of a single page, since one that stayed would be read without a fault.
pub(super) fn discard(object: &Pages<'_>, pgoff: u64, nr: u32) -> Result<(), FillError> {
    let Some(held) = object.place.hold() else { return Ok(()) };
    let src = held.address(pgoff, u64::from(nr)).ok_or(FillError::Refused)?;
    drop_range(object, src, nr).map_err(error_of)
}

/// Writes copies: the pages stay where they are, and a store to one after it was copied shows in its digest.
pub(super) fn write_folio(object: &Pages<'_>, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
    let Some(held) = object.place.hold() else { return Ok(()) };
    let mut done = 0;
    while done < nr {
        let slots = object.frames.take_patiently((nr - done) as usize, Want::Full);
        let mut slots = slots.ok_or((done, FillError::NoMemory))?;
        slots.populate();
        write_copies(object, &held, pgoff + u64::from(done), &mut slots).map_err(|e| (done, e))?;
        done += slots.nr() as u32;
    }
    Ok(())
}

/// Takes at most `nr` pages out, and writes what was changed; returns how many are gone.
fn evict_run(object: &Pages<'_>, held: &Held<'_>, pgoff: u64, nr: usize) -> Result<usize, Obstacle> {
    let mut slots = object.frames.take_patiently(nr, Want::Empty).ok_or(Obstacle::NoMemory)?;
    let nr = slots.nr();
    let src = held.address(pgoff, nr as u64).ok_or(Obstacle::Gone)?;
    // SAFETY: the caller owns the pages (evicting), `held` keeps their mapping.
    let taken = unsafe { slots.collect(src, nr) };
    object.note_dropped(slots.nr_full());
    let taken = match taken {
        Ok(()) => nr,
        Err((0, obstacle)) => return Err(obstacle),
        Err((n, _)) => n,
    };
    let mut at = 0;
    while at < taken {
        let is_dirty = |i: &usize| slots.is_full(*i) && object.is_changed(pgoff + *i as u64, slots.page(*i));
        let len = (at..taken).take_while(is_dirty).count();
        if len == 0 {
            at += 1;
            continue;
        }
        if !write_back(object, pgoff + at as u64, slots.address(at), len) {
            // Those from `at` on go back; those before it are gone, and a second look finds them so.
            put_back(object, held, pgoff, &mut slots, at..at + len, true);
            put_back(object, held, pgoff, &mut slots, at + len..taken, false);
            return if at == 0 { Err(Obstacle::Busy) } else { Ok(at) };
        }
        at += len;
    }
    Ok(taken)
}

/// Copies the pages from `pgoff` on into frames, gives them to the store, and remembers what it has.
fn write_copies(object: &Pages<'_>, held: &Held<'_>, pgoff: u64, slots: &mut Slots<'_>) -> Result<(), FillError> {
    let nr = slots.nr();
    let Some(src) = held.address(pgoff, nr as u64) else { return Ok(()) };
    let to = slots.pages_mut();
    // SAFETY: the pages are `writeback` or pinned, hence mapped, and `held` keeps the mapping; the frames are ours.
    unsafe { mem::copy_racy(to.as_mut_ptr(), src as *const u8, nr * PAGE_SIZE) };
    // SAFETY: the frames are ours, and nobody stores to them.
    let r = unsafe { object.source.write(pgoff, slots.address(0), nr as u32) };
    if let Err(error) = r {
        object.note_write_error();
        return Err(error.fill_error());
    }
    for i in 0..nr {
        object.note_filled(pgoff + i as u64, slots.page(i));
    }
    Ok(())
}

/// Gives changed pages to the store; `false`: they must stay.
fn write_back(object: &Pages<'_>, pgoff: u64, address: usize, nr: usize) -> bool {
    if object.source.wanted(pgoff, nr as u32) == 0 {
        return true;
    }
    if !object.facts.writes_back {
        return false;
    }
    // SAFETY: the bytes are the caller's: a frame, or a protected page that is evicting.
    let r = unsafe { object.source.write(pgoff, address, nr as u32) };
    if r.is_err() {
        object.note_write_error();
        return false;
    }
    // The evictor reads from the flag what was written.
    for word in (0..nr as u64).filter_map(|i| object.word(pgoff + i)) {
        word.set(DIRTY);
    }
    true
}

/// Moves frames back to where they came from: their bytes are nowhere else.
fn put_back(
    object: &Pages<'_>,
    held: &Held<'_>,
    pgoff: u64,
    slots: &mut Slots<'_>,
    range: core::ops::Range<usize>,
    changed: bool,
) {
    for i in range {
        let at = pgoff + i as u64;
        if changed && let Some(word) = object.word(at) {
            word.set(DIRTY);
        }
        let Some(to) = held.address(at, 1).filter(|_| slots.is_full(i)) else { continue };
        // SAFETY: the page is evicting, the caller's, and was taken from there.
        while let Err((_, Obstacle::Busy | Obstacle::NoMemory)) = unsafe { slots.install(to, i, 1, false) } {
            thread::sched_yield();
        }
        object.note_mapped(1);
    }
}

/// Drops pages without moving them: protects them, writes what was changed in place, and lets go of all or none. Those
/// that stay are open to stores again: nobody else would open them, a fault finds them cached and mapped.
fn evict_in_place(object: &Pages<'_>, held: &Held<'_>, pgoff: u64, nr: u32) -> Result<(), Obstacle> {
    let src = held.address(pgoff, u64::from(nr)).ok_or(Obstacle::Gone)?;
    let len = nr as usize * PAGE_SIZE;
    let protect = |on| object.frames.uffd().writeprotect(src, len, on);
    if !object.place.is_writable() {
        return write_and_drop(object, pgoff, src, nr);
    }
    let gone = match protect(true) {
        Ok(()) => write_and_drop(object, pgoff, src, nr),
        Err(_) => Err(Obstacle::Busy),
    };
    if gone.is_err() {
        while protect(false) == Err(Errno::EAGAIN) {
            thread::sched_yield();
        }
    }
    gone
}

/// Writes what was changed of pages that nobody can store to, and drops all of them or none.
fn write_and_drop(object: &Pages<'_>, pgoff: u64, src: usize, nr: u32) -> Result<(), Obstacle> {
    let mut kept = false;
    for i in 0..nr {
        let (at, address) = (pgoff + u64::from(i), src + i as usize * PAGE_SIZE);
        // SAFETY: the page is evicting, hence mapped, and protected: nobody changes it, and only we can drop it.
        let page = unsafe { &*(address as *const [u8; PAGE_SIZE]) };
        if object.is_changed(at, page) && !write_back(object, at, address, 1) {
            kept = true;
            if let Some(word) = object.word(at) {
                word.set(DIRTY);
            }
        }
    }
    if kept { Err(Obstacle::Busy) } else { drop_range(object, src, nr) }
}

/// Gives the pages at `src`, which are there, back to the kernel, whatever they hold.
fn drop_range(object: &Pages<'_>, src: usize, nr: u32) -> Result<(), Obstacle> {
    // SAFETY: the pages are the caller's (evicting), and their bytes are nobody's.
    unsafe { mem::drop_pages(src, nr as usize * PAGE_SIZE) }.map_err(|_| Obstacle::Busy)?;
    object.note_dropped(nr as usize);
    Ok(())
}

/// Drops what is there of pages that are `filling`, which may have been put in place or not.
fn drop_filled(object: &Pages<'_>, held: &Held<'_>, pgoff: u64, nr: u32) -> Result<(), Obstacle> {
    for at in pgoff..pgoff + u64::from(nr) {
        let Some(src) = held.address(at, 1) else { continue };
        // For the count alone: it is dropped unseen.
        let seen = is_there(src);
        // SAFETY: the page is the caller's (filling), and its bytes are nobody's.
        unsafe { mem::drop_pages(src, PAGE_SIZE) }.map_err(|_| Obstacle::Busy)?;
        object.note_dropped(usize::from(seen));
    }
    Ok(())
}
