//! A working set in memory.
//!
//! # Context: control plane; allocates

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::extent_map::{EXTENT_PAGES, Source};
use crate::image::Image;
use roaring::RoaringTreemap;
use std::ops::Range;

/// More windows than this a set does not have: a recorder makes them longer as time goes on.
pub(super) const WINDOWS_MAX: usize = 4096;

/// How many pages a set tells apart: one says for all of so many, side by side, that one of them was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resolution(u32);

impl Resolution {
    /// Each page.
    pub const PAGE: Self = Self(1);
    /// 64 KiB, by which extents are known that the kernel maps whole.
    pub const ROUNDED: Self = Self(16);

    /// Returns a resolution of so many pages: a power of two, 512 at most.
    #[must_use]
    pub fn of_pages(pages: u32) -> Option<Self> {
        (pages.is_power_of_two() && u64::from(pages) <= EXTENT_PAGES).then_some(Self(pages))
    }

    /// Returns the pages.
    #[must_use]
    pub fn pages(self) -> u64 {
        self.0.into()
    }
}

/// What was touched for the first time in one stretch of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    pub(super) time_ns: Range<u64>,
    /// Page numbers, divided by the resolution.
    pub(super) units: RoaringTreemap,
    pub(super) resolution: Resolution,
    /// Pages of the image.
    pub(super) end: u64,
}

impl Window {
    /// Returns the time, in nanoseconds since the restore.
    #[must_use]
    pub fn time_ns(&self) -> Range<u64> {
        self.time_ns.clone()
    }

    /// Returns the number of pages, as far as the resolution tells them.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.runs().map(|run| run.end - run.start).sum()
    }

    /// Returns the runs of pages, in their order in the image: what is read ahead, one after the other.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let (mut units, each, end) = (self.units.iter().peekable(), self.resolution.pages(), self.end);
        std::iter::from_fn(move || {
            let first = units.next()?;
            let mut behind = first + 1;
            while units.next_if_eq(&behind).is_some() {
                behind += 1;
            }
            Some(first * each..(behind * each).min(end))
        })
    }
}

/// The pages that were touched between a restore and a mark, in windows of time. No page is in two of them.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkingSet {
    pub(super) content: Digest,
    pub(super) image_pages: u64,
    pub(super) resolution: Resolution,
    pub(super) recordings: u32,
    pub(super) windows: Vec<Window>,
}

/// Why a working set should be looked at before it is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// It is most of what the image stores: replaying it is copying the image.
    MostOfTheImage {
        /// Pages of the set that are stored.
        touched: u64,
        /// Pages of the image that are.
        stored: u64,
    },
    /// It is far larger than the one before: something has read what nobody needs, a scan or a backup say.
    Grew {
        /// Pages before.
        from: u64,
        /// Pages now.
        to: u64,
    },
}

/// Images of which fewer pages are stored than this (64 MiB) may be touched whole.
const SMALL_PAGES: u64 = 16 << 10;

impl WorkingSet {
    /// Begins the set of an image.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: the image has no content digest.
    pub fn of(image: &Image, resolution: Resolution) -> Result<Self> {
        let Some(content) = image.content_digest() else {
            let (what, why) = ("a working set of an image without a content digest", "write a sidecar of digests");
            return Err(Error::Unsupported { path: image.path().into(), what: what.into(), why });
        };
        Ok(Self::new(content, image.nr_pages(), resolution))
    }

    /// Begins the set of contents of so many pages.
    #[must_use]
    pub fn new(content: Digest, image_pages: u64, resolution: Resolution) -> Self {
        Self { content, image_pages, resolution, recordings: 1, windows: Vec::new() }
    }

    /// Adds a window behind the others: the pages that were touched in it. Those that an earlier one has are left out.
    ///
    /// # Errors
    /// [`Error::Argument`]: the time does not lie behind that of the last window, a page lies past the image, or there are 4,096
    /// windows.
    pub fn push(&mut self, time_ns: Range<u64>, pages: impl IntoIterator<Item = u64>) -> Result<()> {
        let units = RoaringTreemap::from_iter(pages.into_iter().map(|page| page / self.resolution.pages()));
        self.push_units(time_ns, units)
    }

    /// As [`WorkingSet::push`], of a bitmap: bit `n` of word `w` is page `first + 64 * w + n`, or so many times the resolution.
    ///
    /// # Errors
    /// As [`WorkingSet::push`].
    pub fn push_bitmap(&mut self, time_ns: Range<u64>, first: u64, words: &[u64]) -> Result<()> {
        let first = first / self.resolution.pages();
        let bits = (0u64..).zip(words).flat_map(|(w, word)| {
            let bits = (0..64).filter(move |n| word & 1 << n != 0);
            bits.map(move |n| first.saturating_add(64 * w + n))
        });
        self.push_units(time_ns, RoaringTreemap::from_iter(bits))
    }

    pub(super) fn push_units(&mut self, time_ns: Range<u64>, mut units: RoaringTreemap) -> Result<()> {
        self.windows.iter().for_each(|window| units -= &window.units);
        self.push_new(time_ns, units)
    }

    /// Adds a window whose units no other has.
    pub(super) fn push_new(&mut self, time_ns: Range<u64>, units: RoaringTreemap) -> Result<()> {
        let argument = |arg, value, why| Err(Error::Argument { op: "WorkingSet::push", arg, value, why });
        if time_ns.start > time_ns.end || self.windows.last().is_some_and(|last| last.time_ns.end > time_ns.start) {
            return argument("time_ns", time_ns.start, "windows come one after the other");
        }
        if self.windows.len() >= WINDOWS_MAX {
            return argument("windows", WINDOWS_MAX as u64, "there are no more than 4,096");
        }
        if let Some(last) = units.max().filter(|last| *last >= self.nr_units()) {
            return argument("pages", last.saturating_mul(self.resolution.pages()), "the image ends before");
        }
        self.windows.push(Window { time_ns, units, resolution: self.resolution, end: self.image_pages });
        Ok(())
    }

    pub(super) fn nr_units(&self) -> u64 {
        self.image_pages.div_ceil(self.resolution.pages())
    }

    /// Returns the digest of the contents that it is of.
    #[must_use]
    pub fn content(&self) -> Digest {
        self.content
    }

    /// Returns the number of pages of the image.
    #[must_use]
    pub fn image_pages(&self) -> u64 {
        self.image_pages
    }

    /// Returns what it tells apart.
    #[must_use]
    pub fn resolution(&self) -> Resolution {
        self.resolution
    }

    /// Returns how many recordings it is made of.
    #[must_use]
    pub fn recordings(&self) -> u32 {
        self.recordings
    }

    /// Returns the windows, early to late.
    #[must_use]
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Returns one window.
    #[must_use]
    pub fn window(&self, nr: usize) -> Option<&Window> {
        self.windows.get(nr)
    }

    /// Returns the number of pages of all windows, as far as the resolution tells them.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.windows.iter().map(Window::nr_pages).sum()
    }

    /// Returns the units of all windows.
    pub(super) fn all(&self) -> RoaringTreemap {
        let mut all = RoaringTreemap::new();
        self.windows.iter().for_each(|window| all |= &window.units);
        all
    }

    /// Says whether the set is of an image.
    ///
    /// # Errors
    /// [`Error::Mixed`]: it is of other contents.
    pub fn check_is_of(&self, image: &Image) -> Result<()> {
        let of = |digest: Option<Digest>| digest.map_or_else(|| "none".into(), |d| d.to_string());
        if image.content_digest() == Some(self.content) && image.nr_pages() == self.image_pages {
            return Ok(());
        }
        let (op, what) = ("WorkingSet::check_is_of", "the contents");
        Err(Error::Mixed { op, what, one: of(Some(self.content)), other: of(image.content_digest()) })
    }

    /// Says why the set should be looked at before it is replayed over `image`: it is more than half of 64 MiB or more that the
    /// image stores, or more than twice the set `before` it.
    ///
    /// # Errors
    /// [`Error::Mixed`]: the set is of other contents; errors of [`Image::extent`].
    pub fn suspicion(&self, image: &Image, before: Option<&Self>) -> Result<Option<Suspicion>> {
        self.check_is_of(image)?;
        let (from, to) = (before.map_or(u64::MAX, Self::nr_pages), self.nr_pages());
        if to > SMALL_PAGES && to / 2 > from {
            return Ok(Some(Suspicion::Grew { from, to }));
        }
        let (all, each) = (self.all(), self.resolution.pages());
        let (mut touched, mut stored, mut runs) = (0, 0, Vec::new());
        let mut next = image.next_extent(0);
        while next < image.nr_pages().div_ceil(EXTENT_PAGES) {
            let extent = next;
            next = image.next_extent(extent + 1);
            image.extent(extent, &mut runs)?;
            for run in runs.iter().filter(|run| run.source != Source::Zero) {
                stored += run.nr;
                let units = run.page / each..run.pages().end.div_ceil(each);
                let nr = all.range_cardinality(units);
                touched += (nr * each).min(run.nr);
            }
        }
        let is_most = stored >= SMALL_PAGES && touched > stored / 2;
        Ok(is_most.then_some(Suspicion::MostOfTheImage { touched, stored }))
    }
}
