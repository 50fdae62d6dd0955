//! What of an image the faulting thread reads by itself, as it reads a file: pages that lie as they are, and zeros.
//!
//! A map that lies in tables which are read, verified and copied on the way is no work for a handler. So who reads pages of an extent
//! the first time, a filler, leaves here what it takes to read the others, for that extent and some that follow:
//! ```text
//! filler, the first page of 2 MiB                          a fault on another page of them
//! runs and digests, out of verified tables                 what is prepared? nothing: a filler
//! prepared: where each run lies, the digests of its groups
//!                                                          a buffer of our own; pread; digests; copied to the cache
//! ```
//! What a handler finds wrong it says nothing of: a filler reads the page once more, and says what is wrong, of which file. Nothing
//! that is prepared is changed, or goes before the object does.
//!
//! # Context: control plane, and [`Here::reads_here`] and [`Here::read_here`]: handler

#![expect(unsafe_code, reason = "promises that it may be called in a handler")]

use softfault_image::{Digest, EXTENT_PAGES, GROUP_SIZE, Image, Integrity, PAGE_SIZE, Run, Source};
use softfault_mm::vmstat::{Event, VmStat};
use softfault_platform::store::{BUFFER_BYTES, PageMut, ReadHere};
use softfault_platform::sys::fd::Descriptor;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Extents of a leaf: 1 GiB.
const LEAF_LEN: u64 = 512;
/// How many extents are prepared at once: who reads in order waits for a filler once in 16 MiB.
const AHEAD: u64 = 8;

type Leaf = Box<[OnceLock<Extent>]>;

/// Which digests the groups of a run's bytes have.
#[derive(Debug)]
struct Groups {
    /// Where the first one begins in the file.
    start: u64,
    /// Where the last one ends.
    end: u64,
    /// Its digest among those of the extent.
    first: usize,
}

/// Where the pages of a run come from.
#[derive(Debug)]
enum From {
    Zero,
    Raw {
        file: Descriptor,
        pos: u64,
        groups: Option<Groups>,
    },
    /// A filler knows.
    Filler,
}

/// What it takes to read the pages of an extent.
#[derive(Debug, Default)]
struct Extent {
    runs: Box<[(Range<u64>, From)]>,
    digests: Box<[Digest]>,
}

/// What it takes to read an image's pages, as far as anybody has asked for them.
#[derive(Debug)]
pub(super) struct Here {
    image: Arc<Image>,
    stat: &'static VmStat,
    leaves: Box<[OnceLock<Leaf>]>,
    /// The files of its layers, as they were when they were met.
    files: Mutex<Vec<(u16, Descriptor)>>,
}

impl Here {
    pub(super) fn new(image: Arc<Image>, stat: &'static VmStat) -> Self {
        let nr_leaves = image.nr_pages().div_ceil(EXTENT_PAGES * LEAF_LEN);
        let leaves = (0..nr_leaves).map(|_| OnceLock::new()).collect();
        Self { image, stat, leaves, files: Mutex::default() }
    }

    /// Prepares an extent that is being read, and some that follow. What fails is left to who reads them.
    pub(super) fn prepare(&self, extent: u64) {
        if self.extent(extent).is_some() {
            return;
        }
        let mut runs = Vec::new();
        for extent in extent..(extent + AHEAD).min(self.image.nr_pages().div_ceil(EXTENT_PAGES)) {
            let Some(leaf) = self.leaves.get((extent / LEAF_LEN) as usize) else { return };
            let leaf = leaf.get_or_init(|| (0..LEAF_LEN).map(|_| OnceLock::new()).collect());
            let Some(place) = leaf.get((extent % LEAF_LEN) as usize).filter(|place| place.get().is_none()) else {
                continue;
            };
            if self.image.extent(extent, &mut runs).is_ok() {
                // Two fillers may have made it.
                let _ = place.set(self.make(&runs));
            }
        }
    }

    fn make(&self, runs: &[Run]) -> Extent {
        let mut digests = Vec::new();
        let runs = runs.iter().map(|run| (run.pages(), self.from(run, &mut digests))).collect();
        Extent { runs, digests: digests.into() }
    }

    fn from(&self, run: &Run, digests: &mut Vec<Digest>) -> From {
        let (layer, pos) = match run.source {
            Source::Zero => return From::Zero,
            Source::Raw { layer, pos } => (layer, pos),
            Source::Frame { .. } => return From::Filler,
        };
        let Ok(raw) = self.image.raw_at(layer, pos, run.nr * PAGE_SIZE as u64) else { return From::Filler };
        let (first, end) = (digests.len(), raw.groups.end);
        digests.extend(raw.digests);
        let is_checked = first < digests.len() && self.image.integrity() != Integrity::Trusted;
        let groups = is_checked.then_some(Groups { start: raw.groups.start, end, first });
        From::Raw { file: self.descriptor(layer, raw.file), pos, groups }
    }

    fn descriptor(&self, layer: u16, file: &std::fs::File) -> Descriptor {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = files.iter().find(|(l, _)| *l == layer) {
            return *known;
        }
        let found = Descriptor::new(file.as_raw_fd());
        files.push((layer, found));
        found
    }

    /// Returns what is prepared of an extent.
    ///
    /// # Context: handler
    fn extent(&self, extent: u64) -> Option<&Extent> {
        self.leaves.get((extent / LEAF_LEN) as usize)?.get()?.get((extent % LEAF_LEN) as usize)?.get()
    }

    /// Returns the run of a page that is prepared.
    ///
    /// # Context: handler
    fn run(&self, page: u64) -> Option<(&Extent, &(Range<u64>, From))> {
        let extent = self.extent(page / EXTENT_PAGES)?;
        let i = extent.runs.partition_point(|(pages, _)| pages.end <= page);
        Some((extent, extent.runs.get(i).filter(|(pages, _)| pages.contains(&page))?))
    }
}

// SAFETY: it looks into what is there, of which nothing is made, changed or freed; it makes system calls (pread, pwrite, fallocate),
// and computes digests on the stack. `OnceLock::get` is a load.
unsafe impl ReadHere for Here {
    fn reads_here(&self, pos_bytes: u64, len_bytes: usize) -> bool {
        let (mut at, end) = (pos_bytes / PAGE_SIZE as u64, (pos_bytes + len_bytes as u64) / PAGE_SIZE as u64);
        while at < end {
            match self.run(at) {
                Some((_, (pages, From::Zero | From::Raw { .. }))) => at = pages.end,
                _ => return false,
            }
        }
        true
    }

    fn read_here(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> bool {
        let first = pos_bytes / PAGE_SIZE as u64;
        let end = first + (page.len_bytes() / PAGE_SIZE) as u64;
        let (mut at, mut zeros) = (first, 0);
        while at < end {
            let Some((extent, (pages, from))) = self.run(at) else { return false };
            let to = pages.end.min(end);
            let mut part = page.part((at - first) as usize * PAGE_SIZE, (to - at) as usize * PAGE_SIZE);
            let is_read = match from {
                From::Zero => {
                    zeros += to - at;
                    part.allocate_zeros().is_ok()
                }
                From::Raw { file, pos, groups } => {
                    let pos = pos + (at - pages.start) * PAGE_SIZE as u64;
                    match groups {
                        Some(groups) => read_groups(*file, pos, groups, &extent.digests, &mut part),
                        None => read_plain(*file, pos, &mut part),
                    }
                }
                From::Filler => false,
            };
            if !is_read {
                return false;
            }
            at = to;
        }
        self.stat.add(0, Event::IMAGE_ZERO_PAGES, zeros);
        self.stat.add(0, Event::IMAGE_RAW_PAGES, end - first - zeros);
        self.stat.add(0, Event::IMAGE_HERE_PAGES, end - first);
        true
    }
}

/// Reads bytes that nobody has a digest of.
///
/// # Context: handler
fn read_plain(file: Descriptor, pos: u64, part: &mut PageMut<'_>) -> bool {
    // Where the program has closed it meanwhile, what was read is another file's.
    file.check().is_ok_and(|fd| part.fill_from(fd, pos).is_ok()) && file.check().is_ok()
}

/// Reads bytes whose groups have digests: whole groups, as many as a buffer holds, looked at there.
///
/// # Context: handler
fn read_groups(file: Descriptor, pos: u64, groups: &Groups, digests: &[Digest], part: &mut PageMut<'_>) -> bool {
    let (mut done, len) = (0, part.len_bytes());
    while done < len {
        let here = pos + done as u64;
        let Some(nr) = here.checked_sub(groups.start).map(|at| at / GROUP_SIZE as u64) else { return false };
        let from = groups.start + nr * GROUP_SIZE as u64;
        let wanted = (pos + len as u64 - from).next_multiple_of(GROUP_SIZE as u64).min(BUFFER_BYTES as u64);
        let to = (from + wanted).min(groups.end);
        if to <= here {
            return false;
        }
        let known = digests.get(groups.first + nr as usize..).unwrap_or_default();
        let is_good = |bytes: &[u8]| {
            let mut all = bytes.chunks(GROUP_SIZE).zip(known);
            known.len() >= bytes.len().div_ceil(GROUP_SIZE) && all.all(|(group, digest)| Digest::of(group) == *digest)
        };
        let some = ((to - here) as usize).min(len - done);
        let mut piece = part.part(done, some);
        if piece.fill_verified(file.number(), from..to, (here - from) as usize, &is_good).is_err() {
            return false;
        }
        done += some;
    }
    true
}

/// The same, for the object that owns a part in it.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<Here>);

// SAFETY: as of `Here`.
unsafe impl ReadHere for Shared {
    fn reads_here(&self, pos_bytes: u64, len_bytes: usize) -> bool {
        self.0.reads_here(pos_bytes, len_bytes)
    }
    fn read_here(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> bool {
        self.0.read_here(pos_bytes, page)
    }
}
