//! `Session`: the regions of an image, mapped and filled as they are touched.
//!
//! # Context: control plane

use super::complete::{self, Completion};
use super::direct::{Directing, Plan};
use super::open::OpenImage;
use super::overlay::{self, Overlay};
use super::record::Recording;
use super::replay::Replay;
use super::state::{Progress, SessionInner, SessionRegion};
use crate::error::{Error, Result, parent_only};
use crate::object::Object;
use softfault_image::workingset::WorkingSet;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const OP: &str = "Restore::build";

/// An image that was restored: its regions are memory, which is filled from the image as it is touched, and private to the session.
/// Cheap to clone; the last clone unmaps everything.
#[derive(Clone, Debug)]
pub struct Session {
    // Dropped in this order: the threads have the session's object and arenas.
    replay: Option<Arc<Replay>>,
    direct: Option<Arc<Directing>>,
    pub(super) inner: Arc<SessionInner>,
}

impl Session {
    pub(super) fn new(image: OpenImage, object: Object, regions: Vec<SessionRegion>, overlays: Vec<Overlay>) -> Self {
        let (replayed, direct_extents, recording) = (Arc::default(), Arc::default(), Mutex::new(None));
        let inner = Arc::new(SessionInner { image, object, regions, overlays, replayed, direct_extents, recording });
        Self { replay: None, direct: None, inner }
    }

    /// Maps what may be mapped from the image's files themselves: some now, the rest in the background.
    pub(super) fn map_direct(&mut self) -> Result<()> {
        let inner = &*self.inner;
        let image = &inner.image.inner.image;
        let mut plan = Plan::new(OP, image, &inner.object, &inner.regions, &inner.direct_extents)?;
        if plan.begin(OP)? {
            self.direct = Some(Arc::new(Directing::begin(OP, plan)?));
        }
        Ok(())
    }

    /// Begins to record and to replay, once everything is as the program gets it.
    pub(super) fn begin(&mut self, recording: Option<Recording>, set: Option<&WorkingSet>) -> Result<()> {
        let inner = &*self.inner;
        match set {
            Some(set) => {
                let (image, replayed) = (&inner.image.inner.image, &inner.replayed);
                let replay = Replay::begin(OP, image, &inner.object, set, replayed)?;
                self.replay = Some(Arc::new(replay));
            }
            // Relaxed: nobody has the session yet.
            None => inner.replayed.ended.store(true, Ordering::Relaxed),
        }
        let Some(mut recording) = recording else { return Ok(()) };
        recording.begin(OP)?;
        *self.recording() = Some(recording);
        Ok(())
    }

    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        self.inner.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the session is ready, and ends the recording: returns the pages that were touched first in each window of time
    /// since it was restored. `None`: nothing was being recorded.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Image`]: there are more windows than a set may have.
    pub fn mark(&self) -> Result<Option<WorkingSet>> {
        let op = "Session::mark";
        parent_only(op)?;
        let recording = self.recording().take();
        recording.map(|r| r.end(op)).transpose()
    }

    /// Returns the image.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn image(&self) -> &OpenImage {
        &self.inner.image
    }

    /// Returns the regions, in the image's order.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn regions(&self) -> &[SessionRegion] {
        &self.inner.regions
    }

    /// Returns the region of that name.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn region(&self, name: &str) -> Option<&SessionRegion> {
        self.inner.regions.iter().find(|r| r.region().name == name)
    }

    /// Returns the overlays that the session was given, and that whoever restores a capture of it must give again.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn overlays(&self) -> &[Overlay] {
        &self.inner.overlays
    }

    /// Returns what a capture of the session must keep beside its memory, by key: which overlays it was given.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn keys(&self) -> Vec<(String, Vec<u8>)> {
        let overlays = overlay::encode(&self.inner.overlays);
        if overlays.is_empty() { Vec::new() } else { vec![(overlay::KEY.to_owned(), overlays)] }
    }

    /// Returns how far the session has come. Nobody is stopped.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn progress(&self) -> Progress {
        complete::progress(&self.inner)
    }

    /// Makes all of it resident and verified, and has the kernel serve what it can: no touch of such memory is a fault of ours any
    /// more. Other threads may touch it meanwhile.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Limit`] where the cache's limit cannot hold the image's pages: nothing was done. [`Error::Fault`] naming the first
    /// page that cannot be had ([`OpenImage::last_failure`] says why).
    pub fn complete(&self) -> Result<Completion> {
        parent_only("Session::complete")?;
        complete::complete(&self.inner)
    }

    /// Stores the pages of an overlay, which was checked.
    pub(super) fn store_overlay(&self, range: &Range<u64>, bytes: &[u8]) -> Result<()> {
        let holds = |r: &&SessionRegion| {
            r.region().offset <= range.start && range.end <= r.region().offset + r.region().len_bytes
        };
        let Some(region) = self.inner.regions.iter().find(holds) else { return Ok(()) };
        let at = region.range().start + (range.start - region.region().offset) as usize;
        if !region.region().prot.contains(softfault_image::Prot::WRITE) {
            let what = "an overlay lies in a region that may be written";
            return Err(Error::Denied { op: "Restore::overlay", what });
        }
        region.arena().write_at(at, bytes)
    }
}
