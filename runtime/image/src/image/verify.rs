//! Verifying an image whole, on every processor.
//!
//! Each byte is hashed once, where that is possible: a group of logical pages that is a group of the file has the digest that the
//! file keeps of the latter, and only others are read twice over, as what is stored and as what it means.
//!
//! # Context: control plane; allocates, and waits for files and threads

use super::{Image, Reader};
use crate::digest::{Content, Digest, EXTENT_GROUPS, GROUP_PAGES, GROUP_SIZE};
use crate::error::{Error, Result};
use crate::extent_map::{PAGE_SIZE, Source};
use crate::integrity::Integrity;
use crate::slot::{File, Slot};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Frames or groups that one thread verifies in one go.
const UNITS: u64 = 256;

/// What one thread does in one go.
#[derive(Clone, Debug)]
enum Part {
    /// The contents of an extent.
    Contents(u64),
    /// Frames of a layer.
    Frames(u16, Range<u64>),
    /// Groups of a layer.
    Groups(u16, Range<u64>),
}

impl Image {
    /// Verifies everything that has digests, as it lies in the files now: tables, frames, pages, and that the pages are the
    /// contents that the image says. Calls `f` with the bytes done so far, seldom, and in the end with all of them.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Digest`]: the first thing that is wrong; [`Error::Unsupported`]: there are no digests.
    /// [`Error::Changed`]: the file's name is another file's by now.
    pub fn verify(&self, f: &mut dyn FnMut(u64)) -> Result<()> {
        let Some(own) = self.own() else {
            let why = "write a sidecar of digests, and verify that";
            return Err(Error::Unsupported { path: self.path().into(), what: "verifying a raw image".into(), why });
        };
        // Opened anew: what was verified before lies in our memory, and not on the disk.
        let fresh = Self::open(self.path())?.with_integrity(Integrity::Once);
        if fresh.file_digest() != Some(own.file_digest()) {
            return Err(Error::Changed { path: self.path().into(), what: "the file of that name" });
        }
        let mut done = 0;
        for slot in &fresh.files {
            if let File::Sfi(sfi) = slot.get()? {
                done += sfi.verify_tables()?;
            }
        }
        let contents = (0..self.nr_pages.div_ceil(EXTENT_GROUPS * GROUP_PAGES)).map(Part::Contents);
        done = in_parallel(done, contents, f, |reader, part| reader.verify_part(part), &fresh)?;
        in_parallel(done, fresh.stored_parts()?, f, |reader, part| reader.verify_part(part), &fresh)?;
        fresh.verify_content_digest()
    }

    /// Returns everything that is stored, whether a page of the image is in it or not.
    fn stored_parts(&self) -> Result<impl Iterator<Item = Part>> {
        let cut = |nr: u64| (0..nr).step_by(UNITS as usize).map(move |at| at..(at + UNITS).min(nr));
        let mut nrs = Vec::new();
        for (layer, slot) in (0u16..).zip(&self.files) {
            nrs.push(match (slot.get()?, &slot.below) {
                (File::Sfi(sfi), _) => (layer, sfi.nr_frames(), sfi.nr_body_groups()),
                (File::Raw(_), below) => (layer, 0, below.as_ref().map_or(0, |b| b.groups.end - b.groups.start)),
            });
        }
        Ok(nrs.into_iter().flat_map(move |(layer, frames, groups)| {
            let frames = cut(frames).map(move |range| Part::Frames(layer, range));
            frames.chain(cut(groups).map(move |range| Part::Groups(layer, range)))
        }))
    }

    /// Checks the digest of the contents against those of the groups, which were found to be right.
    fn verify_content_digest(&self) -> Result<()> {
        let Some((own, wanted)) = self.own().and_then(|own| Some((own, own.content_digest()?))) else { return Ok(()) };
        let mut content = Content::new(self.nr_pages);
        own.each_content(0..self.nr_pages.div_ceil(GROUP_PAGES), |number, digest| content.put(number, &digest))?;
        let found = content.finish();
        if found == wanted {
            return Ok(());
        }
        Err(Error::Digest { path: own.path().into(), what: "the contents", offset: 0, wanted, found })
    }

    /// Returns the digest that is kept of the file's group at which a group of logical pages begins, if it lies there whole.
    fn stored_digest(&self, reader: &mut Reader<'_>, number: u64) -> Result<Option<Digest>> {
        let page = number * GROUP_PAGES;
        let run = reader.run_at(page)?;
        let Source::Raw { layer, pos } = run.source.behind(page - run.page) else { return Ok(None) };
        if run.page + run.nr < page + GROUP_PAGES {
            return Ok(None);
        }
        let Some(slot) = self.files.get(usize::from(layer)) else { return Ok(None) };
        match (slot.get()?, &slot.below, self.own()) {
            (File::Sfi(sfi), ..) => sfi.group_at(pos),
            (File::Raw(_), Some(below), Some(own)) => own.group_below(below, pos),
            (File::Raw(_), ..) => Ok(None),
        }
    }
}

impl Reader<'_> {
    /// Verifies one part; returns its bytes.
    fn verify_part(&mut self, part: Part) -> Result<u64> {
        let image = self.image;
        let slot = |layer: u16| image.files.get(usize::from(layer)).map(Slot::get).transpose();
        match part {
            Part::Contents(extent) => self.verify_contents(extent),
            Part::Frames(layer, range) => match slot(layer)? {
                Some(File::Sfi(sfi)) => sfi.verify_frames(range),
                _ => Ok(0),
            },
            Part::Groups(layer, range) => match (slot(layer)?, image.own()) {
                (Some(File::Sfi(sfi)), _) => sfi.verify_groups(None, range),
                (Some(File::Raw(file)), Some(own)) => {
                    let below = image.files.get(usize::from(layer)).and_then(|s| s.below.as_ref());
                    below.map_or(Ok(0), |below| own.verify_groups(Some((file, below)), range))
                }
                _ => Ok(0),
            },
        }
    }

    /// Verifies that the pages of an extent are the contents that the image says.
    fn verify_contents(&mut self, extent: u64) -> Result<u64> {
        let image = self.image;
        let groups = extent * EXTENT_GROUPS..((extent + 1) * EXTENT_GROUPS).min(image.nr_pages.div_ceil(GROUP_PAGES));
        let known = image.known_groups(extent)?;
        let own = image.own().filter(|_| known.is_some());
        let wanted = known.unwrap_or_else(|| vec![Digest::ZERO; EXTENT_GROUPS as usize]);
        let (mut done, mut bytes) = (0, vec![0; GROUP_SIZE]);
        for (number, wanted) in groups.zip(wanted) {
            let first = number * GROUP_PAGES;
            let run = self.run_at(first)?;
            let nr = GROUP_PAGES.min(image.nr_pages - first);
            let is_zero = run.source == Source::Zero && first + nr <= run.page + run.nr;
            // What is stored is verified with everything that is.
            let is_there = wanted != Digest::ZERO && image.stored_digest(self, number)? == Some(wanted);
            if is_there || is_zero && wanted == Digest::ZERO {
                continue;
            }
            let bytes = bytes.get_mut(..nr as usize * PAGE_SIZE).unwrap_or_default();
            self.read(first, bytes)?;
            done += bytes.len() as u64;
            let found = crate::digest::group(bytes);
            if let Some(own) = own.filter(|_| found != wanted) {
                let (path, what) = (own.path().to_path_buf(), "a group of the contents, of the page");
                return Err(Error::Digest { path, what, offset: first, wanted, found });
            }
        }
        Ok(done)
    }
}

/// Has every processor do parts of `parts` with a reader of its own, and calls `f` with the bytes done so far, of which there
/// were `done` before. Returns them, or what was found to be wrong first.
fn in_parallel<'a>(
    done: u64,
    parts: impl Iterator<Item = Part> + Send,
    f: &mut dyn FnMut(u64),
    work: impl Fn(&mut Reader<'a>, Part) -> Result<u64> + Sync,
    image: &'a Image,
) -> Result<u64> {
    let (done, parts, failed) = (AtomicU64::new(done), Mutex::new(parts.enumerate()), Mutex::new(None));
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = |f: &mut dyn FnMut(u64)| {
        let mut reader = image.reader();
        while let Some((at, part)) = next() {
            match work(&mut reader, part) {
                // Relaxed: a number for a person.
                Ok(bytes) => f(done.fetch_add(bytes, Ordering::Relaxed) + bytes),
                Err(e) => {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if failed.as_ref().is_none_or(|(before, _)| at < *before) {
                        *failed = Some((at, e));
                    }
                    // The others end with the part that they are at, and there is no other.
                    parts.lock().unwrap_or_else(PoisonError::into_inner).by_ref().for_each(drop);
                    return;
                }
            }
        }
    };
    let others = std::thread::available_parallelism().map_or(1, usize::from).min(16) - 1;
    std::thread::scope(|scope| {
        for _ in 0..others {
            scope.spawn(|| run(&mut |_| ()));
        }
        run(f);
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, e)) => Err(e),
        None => {
            let done = done.into_inner();
            // The last part may have been another thread's.
            f(done);
            Ok(done)
        }
    }
}
