//! Frames, decoded once for all who need a page of theirs at the same time.
//!
//! The pages of a frame that are missing come with the one that was asked for, in one claim, where they lie side by side. Where
//! they don't (pages between them are zero, or are cached already), several fillers may ask for the same frame: one decodes it,
//! in the slot that the frame's number leads to, and the others wait for the slot and find it there.
//!
//! # Context: fillers; allocates, and waits for files

use softfault_image::{Image, Result};
use std::sync::{Mutex, PoisonError};

/// Bytes that all slots together may hold, but for the two that there are at least.
const BYTES: usize = 4 << 20;
/// The most slots.
const SLOTS: usize = 16;

#[derive(Debug, Default)]
struct Slot {
    /// Which frame of which layer `decoded` is.
    key: Option<(u16, u32)>,
    stored: Vec<u8>,
    decoded: Vec<u8>,
}

/// The frames that were decoded last.
#[derive(Debug)]
pub(super) struct Frames(Box<[Mutex<Slot>]>);

impl Frames {
    /// Returns room for frames of so many bytes.
    pub(super) fn new(frame_bytes: usize) -> Self {
        let nr = (BYTES / frame_bytes.max(1)).clamp(2, SLOTS);
        Self((0..nr).map(|_| Mutex::default()).collect())
    }

    /// Calls `f` with the bytes of a frame, which is decoded if it is not there; `decoded` is called then, before.
    ///
    /// # Errors
    /// As [`Image::read_frame`]; `f` was not called.
    pub(super) fn with<R>(
        &self,
        image: &Image,
        (layer, frame): (u16, u32),
        decoded: impl FnOnce(),
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        let slot = self.0.get(frame as usize % self.0.len());
        let mut mine = Slot::default();
        let mut slot = slot.map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner));
        let slot = slot.as_deref_mut().unwrap_or(&mut mine);
        if slot.key != Some((layer, frame)) {
            slot.key = None;
            image.read_frame(layer, frame, &mut slot.stored, &mut slot.decoded)?;
            slot.key = Some((layer, frame));
            decoded();
        }
        Ok(f(&slot.decoded))
    }
}
