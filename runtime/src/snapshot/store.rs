//! An image as a store: where the pages of its object come from.
//!
//! ```text
//! run of the map   what a fill costs                                      who sees it
//! Zero             an allocation, no I/O                                  the pages asked for
//! Raw              a read, and the digest of each 16 KiB that it meets    the pages asked for, and others of their groups
//!                  (in the faulting thread, once a filler was there: `here`)
//! Frame            a read and its digest, decoding, once (`frames`)       all pages of the frame that are missing
//! ```
//! *Verified before it can be seen*: bytes are read into memory of our own, verified (and decoded) there, and copied to pages of
//! the cache that are claimed; nobody sees those before the claim ends. So what changes in the file afterwards is not seen, and
//! what fails is never shown.
//!
//! *All pages of a frame*: the store says how long frames are ([`Store::read_align_bytes`]), so that whoever claims a missing page
//! claims what is missing of its frame with it. Who did not ask for a page finds it cached, unreferenced, as if it had been read
//! ahead. It gives parts, too ([`Store::reads_parts`]): of a frame that is cached in part, and of one that the cache's limit has
//! no room for, what is wanted is copied out of the decoded frame, which stays in memory of its own for a while.
//!
//! *Its pages alone*: what fails its digest is [`StoreError::Corrupt`], a HWPOISON, for the pages of that group or frame. Of a run
//! that failed each page is asked for by itself, so that no other page is lost with it.
//!
//! # Context: fillers; allocates, locks, and waits for files

use super::frames::Frames;
use super::here::Here;
use softfault_image::{EXTENT_PAGES, Error, Image, PAGE_SIZE, Run, Source};
use softfault_mm::vmstat::{Event, VmStat};
use softfault_platform::store::{PageMut, Store, StoreError};
use softfault_platform::sys::Errno;
use std::sync::{Arc, Mutex, PoisonError};

/// The longest piece that is read, verified and copied in one go.
const PIECE_BYTES: usize = 256 << 10;

/// Why the last read that failed did.
#[derive(Debug, Default)]
pub(super) struct LastFailure(Mutex<Option<Arc<Error>>>);

impl LastFailure {
    /// Returns it, if any read has failed.
    pub(super) fn get(&self) -> Option<Arc<Error>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, error: Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(error));
    }
}

/// Memory for one read.
#[derive(Debug, Default)]
struct Scratch {
    runs: Vec<Run>,
    bytes: Vec<u8>,
}

/// An image as a store.
#[derive(Debug)]
pub(super) struct ImageStore {
    image: Arc<Image>,
    failure: Arc<LastFailure>,
    stat: &'static VmStat,
    frames: Frames,
    /// What the faulting threads read by themselves.
    here: Arc<Here>,
    unit_bytes: usize,
    /// What reads that are over have left for others.
    scratch: Mutex<Vec<Scratch>>,
}

impl ImageStore {
    /// Makes the store of an image whose frames, or groups, are `unit_bytes` long.
    pub(super) fn new(
        image: Arc<Image>,
        failure: Arc<LastFailure>,
        stat: &'static VmStat,
        unit_bytes: usize,
        here: Arc<Here>,
    ) -> Self {
        Self { image, failure, stat, frames: Frames::new(unit_bytes), here, unit_bytes, scratch: Mutex::default() }
    }

    /// Keeps why a read failed; returns the word of the fault path for it.
    fn failed(&self, error: Error) -> StoreError {
        let of_store = store_error(&error);
        self.stat.add(0, Event::IMAGE_ERRORS, 1);
        self.failure.set(error);
        of_store
    }

    /// Fills pages from page `first` of the image on, run by run.
    fn fill(&self, first: u64, page: &mut PageMut<'_>, scratch: &mut Scratch) -> Result<(), StoreError> {
        let end = first + (page.len_bytes() / PAGE_SIZE) as u64;
        let (mut at, mut extent) = (first, u64::MAX);
        while at < end {
            if at / EXTENT_PAGES != extent {
                extent = at / EXTENT_PAGES;
                self.image.extent(extent, &mut scratch.runs).map_err(|e| self.failed(e))?;
                self.here.prepare(extent);
            }
            let i = scratch.runs.partition_point(|r| r.page <= at).wrapping_sub(1);
            let run = scratch.runs.get(i).filter(|r| r.pages().contains(&at)).ok_or(StoreError::Short)?;
            let run = run.cut(&(at..end));
            let mut part = page.part((at - first) as usize * PAGE_SIZE, run.nr as usize * PAGE_SIZE);
            self.fill_run(&run, &mut part, &mut scratch.bytes)?;
            at += run.nr;
        }
        Ok(())
    }

    fn fill_run(&self, run: &Run, part: &mut PageMut<'_>, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        match run.source {
            Source::Zero => {
                part.allocate_zeros()?;
                self.stat.add(0, Event::IMAGE_ZERO_PAGES, run.nr);
            }
            Source::Raw { layer, pos } => {
                self.fill_raw(layer, pos, part, bytes)?;
                self.stat.add(0, Event::IMAGE_RAW_PAGES, run.nr);
            }
            Source::Frame { layer, frame, page } => {
                let count = || self.stat.add(0, Event::IMAGE_FRAMES, 1);
                let from = usize::from(page) * PAGE_SIZE;
                let to = from.saturating_add(part.len_bytes());
                let copy = |decoded: &[u8]| decoded.get(from..to).map(|bytes| part.copy_from(bytes));
                let copied = self.frames.with(&self.image, (layer, frame), count, copy);
                // The map says that there are pages behind the frame's end.
                copied.map_err(|e| self.failed(e))?.unwrap_or(Err(StoreError::Corrupt))?;
                self.stat.add(0, Event::IMAGE_FRAME_PAGES, run.nr);
            }
        }
        Ok(())
    }

    fn fill_raw(&self, layer: u16, pos: u64, part: &mut PageMut<'_>, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        let mut done = 0;
        while done < part.len_bytes() {
            let len = PIECE_BYTES.min(part.len_bytes() - done);
            bytes.resize(len, 0);
            self.image.read_raw(layer, pos.wrapping_add(done as u64), bytes).map_err(|e| self.failed(e))?;
            part.part(done, len).copy_from(bytes)?;
            done += len;
        }
        Ok(())
    }
}

impl Store for ImageStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let free = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = free().pop().unwrap_or_default();
        let read = self.fill(pos_bytes / PAGE_SIZE as u64, page, &mut scratch);
        free().push(scratch);
        read
    }
    /// What is read is copied to the cache's own pages from memory of ours, which is verified by then.
    fn uses_descriptors(&self) -> bool {
        true
    }
    fn read_align_bytes(&self) -> u64 {
        self.unit_bytes as u64
    }
    fn reads_parts(&self) -> bool {
        true
    }
}

/// Returns the word of the fault path for what is wrong with an image.
fn store_error(error: &Error) -> StoreError {
    match error {
        Error::Io { source, .. } => StoreError::Io(Errno(source.raw_os_error().unwrap_or(Errno::EIO.0))),
        // Another file is there by now.
        Error::Changed { .. } => StoreError::Io(Errno::ESTALE),
        Error::Unsupported { .. } => StoreError::Unsupported,
        _ => StoreError::Corrupt,
    }
}
