//! Pages come in: read into frames, and put where they belong.
//!
//! # Context: handler

use super::pages::{Pages, error_of};
use crate::frames::{Slots, Want};
use softfault_mm::types::FillError;

/// What a fill says: how many pages are good, and why the next is not.
pub(super) type Filling = Result<(), (u32, FillError)>;

/// Fills pages by `fill`, which gets the bytes of a run and says how many whole pages of it are good.
pub(super) fn fill(
    object: &Pages<'_>,
    pgoff: u64,
    nr: u32,
    fill: &mut dyn FnMut(u64, &mut [u8]) -> Filling,
) -> Filling {
    let mut done = 0;
    while done < nr {
        let at = pgoff + u64::from(done);
        let slots = object.frames.take_patiently((nr - done) as usize, Want::Full);
        let mut slots = slots.ok_or((done, FillError::NoMemory))?;
        slots.populate();
        let filled = fill(at, slots.pages_mut());
        let good = filled.map_or_else(|(n, _)| n as usize, |()| slots.nr());
        install(object, at, &mut slots, good).map_err(|(n, e)| (done + n, e))?;
        filled.map_err(|(n, e)| (done + n, e))?;
        done += slots.nr() as u32;
    }
    Ok(())
}

/// Puts the first `nr` of the frames where the pages from `pgoff` on belong.
fn install(object: &Pages<'_>, pgoff: u64, slots: &mut Slots<'_>, nr: usize) -> Result<(), (u32, FillError)> {
    let refused = (0, FillError::Refused);
    let held = object.place.hold().ok_or(refused)?;
    let to = held.address(pgoff, nr as u64).ok_or(refused)?;
    for i in 0..nr {
        object.note_filled(pgoff + i as u64, slots.page(i));
    }
    let by_copy = object.facts.by_copy || !object.place.is_writable();
    // SAFETY: the caller owns the pages' claims; `held` keeps the mapping.
    let installed = unsafe { slots.install(to, 0, nr, by_copy) };
    object.note_mapped(installed.map_or_else(|(n, _)| n, |()| nr));
    installed.map_err(|(n, obstacle)| (n as u32, error_of(obstacle)))
}
