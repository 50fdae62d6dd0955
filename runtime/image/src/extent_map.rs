//! Where each page of an image comes from: sorted runs, and one look for each 2 MiB.
//!
//! Whatever an image is made of (one raw file, ten thousand sparse diffs over another, compressed frames, somebody else's
//! snapshot), it becomes one map when it is opened or saved: who faults never walks a chain of layers.
//!
//! ```text
//! extents that are not all zero  runs, in order of their pages; none crosses the end of an extent
//! +---+                          +-----------------------------+
//! | 0 | -----------------------> | page 0,   8 pages, Raw      |
//! +---+                          | page 8,   504 pages, Zero   |
//! | 7 | -----------------------> | page 3584, 512 pages, Frame |
//! +---+                          +-----------------------------+
//! ```
//! Extents that are all zero have no entry: what a map costs goes with the data, not with the address space. A reserve of many
//! terabytes, or a file that only says that it is so long, costs nothing.
//!
//! # Context: control plane; allocates

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a page of an image.
pub const PAGE_SIZE: usize = 4096;
/// Pages of an extent: 2 MiB.
pub const EXTENT_PAGES: u64 = 512;

/// Where a run's pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: they are zero.
    Zero,
    /// In a layer's file, one after the other.
    Raw {
        /// Which layer.
        layer: u16,
        /// The byte where the first page of the run begins.
        pos: u64,
    },
    /// In one frame, which is decoded whole.
    Frame {
        /// Which layer.
        layer: u16,
        /// The frame's number in its layer.
        frame: u32,
        /// The page of the frame that is the run's first.
        page: u16,
    },
}

impl Source {
    /// Returns the source of what lies `nr` pages behind what this one names.
    #[must_use]
    pub fn behind(self, nr: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Raw { layer, pos } => Self::Raw { layer, pos: pos.wrapping_add(nr.wrapping_mul(PAGE_SIZE as u64)) },
            Self::Frame { layer, frame, page } => {
                Self::Frame { layer, frame, page: page.saturating_add(u16::try_from(nr).unwrap_or(u16::MAX)) }
            }
        }
    }

    /// Returns the layer; `None`: none is needed.
    #[must_use]
    pub fn layer(self) -> Option<u16> {
        match self {
            Self::Zero => None,
            Self::Raw { layer, .. } | Self::Frame { layer, .. } => Some(layer),
        }
    }

    /// Returns the same, its layer's number `by` higher: where files have come in front of it.
    pub(crate) fn above(self, by: u16) -> Self {
        self.layer().map_or(self, |layer| self.on_layer(layer.saturating_add(by)))
    }

    /// Returns the same, of another layer.
    pub(crate) fn on_layer(self, to: u16) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Raw { pos, .. } => Self::Raw { layer: to, pos },
            Self::Frame { frame, page, .. } => Self::Frame { layer: to, frame, page },
        }
    }
}

/// Pages side by side that come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first page.
    pub page: u64,
    /// How many there are; at least one.
    pub nr: u64,
    /// Where they are.
    pub source: Source,
}

impl Run {
    /// Returns the pages.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        self.page..self.page + self.nr
    }

    /// Returns what of the run lies in `pages`, which it meets.
    #[must_use]
    pub fn cut(&self, pages: &Range<u64>) -> Self {
        let (from, to) = (self.page.max(pages.start), (self.page + self.nr).min(pages.end));
        let source = if from < to { self.source.behind(from - self.page) } else { Source::Zero };
        Self { page: from, nr: to.saturating_sub(from), source }
    }
}

/// Where every page of an image comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentMap {
    nr_pages: u64,
    runs: Vec<Run>,
    /// The extents that are not all zero, in order, and the first run of each.
    index: Vec<(u64, u32)>,
}

impl ExtentMap {
    /// Returns the number of pages.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Returns the runs of the extents that are not all zero, in order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Returns the runs of one extent, in order; none of one that is all zero, or past the end.
    #[must_use]
    pub fn extent(&self, extent: u64) -> &[Run] {
        let Ok(at) = self.index.binary_search_by_key(&extent, |(extent, _)| *extent) else { return &[] };
        let first = |i: usize| self.index.get(i).map_or(self.runs.len(), |(_, first)| *first as usize);
        self.runs.get(first(at)..first(at + 1)).unwrap_or_default()
    }

    /// Returns the first extent from `from` on that is not all zero, or the first past the end.
    pub(crate) fn next_extent(&self, from: u64) -> u64 {
        let at = self.index.partition_point(|(extent, _)| *extent < from);
        self.index.get(at).map_or_else(|| self.nr_pages.div_ceil(EXTENT_PAGES), |(extent, _)| *extent)
    }

    /// Returns the one run of an extent that is all zero.
    pub(crate) fn zeros(nr_pages: u64, extent: u64) -> Run {
        let page = extent.saturating_mul(EXTENT_PAGES);
        Run { page, nr: EXTENT_PAGES.min(nr_pages.saturating_sub(page)), source: Source::Zero }
    }

    /// Returns the run that holds `page`; `None`: there is no such page.
    #[must_use]
    pub fn run_at(&self, page: u64) -> Option<Run> {
        if page >= self.nr_pages {
            return None;
        }
        let runs = self.extent(page / EXTENT_PAGES);
        if runs.is_empty() {
            return Some(Self::zeros(self.nr_pages, page / EXTENT_PAGES));
        }
        // A short scan in the common case of one run; never more than 512 pages can be told apart.
        let at = runs.partition_point(|r| r.page <= page).checked_sub(1)?;
        runs.get(at).copied().filter(|r| r.pages().contains(&page))
    }

    /// Returns the runs of `pages`, cut to it, in order.
    pub fn runs_in(&self, pages: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let end = pages.end.min(self.nr_pages);
        let mut at = pages.start;
        std::iter::from_fn(move || {
            let run = self.run_at(at).filter(|_| at < end)?.cut(&(at..end));
            at += run.nr;
            Some(run)
        })
    }

    /// Returns how the map's pieces lie: what decides whether an image should be compacted.
    #[must_use]
    pub fn fragmentation(&self) -> Fragmentation {
        let pieces =
            |(extent, _): &(u64, u32)| self.extent(*extent).iter().filter(|r| r.source != Source::Zero).count() as u64;
        let per_extent = self.index.iter().map(pieces);
        Fragmentation {
            pieces: per_extent.clone().sum(),
            extents: per_extent.clone().filter(|nr| *nr > 0).count() as u64,
            most: per_extent.max().unwrap_or(0),
        }
    }
}

/// How many reads an extent takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragmentation {
    /// Runs that are not zero.
    pub pieces: u64,
    /// Extents that have any.
    pub extents: u64,
    /// The most that one extent has.
    pub most: u64,
}

/// Makes a map by putting pieces over others.
///
/// ```
/// use softfault_image::{Builder, Source};
///
/// let mut b = Builder::new(1024);
/// b.put(0..1024, Source::Raw { layer: 0, pos: 0 });
/// b.put(100..102, Source::Raw { layer: 1, pos: 409_600 });
/// let map = b.build();
/// assert_eq!(map.run_at(101).map(|r| r.source.layer()), Some(Some(1)));
/// assert_eq!(map.run_at(102).map(|r| (r.page, r.nr)), Some((102, 410)));
/// assert_eq!(map.run_at(1024), None);
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    nr_pages: u64,
    /// The first page of each piece: how many there are, and where they are. Zero pages have none.
    pieces: BTreeMap<u64, (u64, Source)>,
}

impl Builder {
    /// Returns a map of pages that are all zero.
    #[must_use]
    pub fn new(nr_pages: u64) -> Self {
        Self { nr_pages, pieces: BTreeMap::new() }
    }

    /// Begins with a map that there is, its layers renamed: `layers[n]` is its layer `n` here.
    #[must_use]
    pub fn over(map: &ExtentMap, layers: &[u16]) -> Self {
        let mut this = Self::new(map.nr_pages);
        for run in map.runs.iter().filter(|r| r.source != Source::Zero) {
            let to = run.source.layer().and_then(|l| layers.get(usize::from(l))).copied();
            this.pieces.insert(run.page, (run.nr, to.map_or(run.source, |to| run.source.on_layer(to))));
        }
        this
    }

    /// Puts `source` in place of whatever was said of `pages`. What lies past the map's end is dropped.
    pub fn put(&mut self, pages: Range<u64>, source: Source) {
        let pages = pages.start..pages.end.min(self.nr_pages);
        if pages.is_empty() {
            return;
        }
        // What begins before and reaches in.
        if let Some((&at, &(nr, old))) = self.pieces.range(..pages.start).next_back()
            && at + nr > pages.start
        {
            self.pieces.insert(at, (pages.start - at, old));
            if at + nr > pages.end {
                self.pieces.insert(pages.end, (at + nr - pages.end, old.behind(pages.end - at)));
            }
        }
        while let Some((&at, &(nr, old))) = self.pieces.range(pages.clone()).next() {
            self.pieces.remove(&at);
            if at + nr > pages.end {
                self.pieces.insert(pages.end, (at + nr - pages.end, old.behind(pages.end - at)));
            }
        }
        if source != Source::Zero {
            self.pieces.insert(pages.start, (pages.end - pages.start, source));
        }
    }

    /// Returns what was put into `pages`, cut to it, in order: first page, number, source. Zero pages are none.
    pub(crate) fn pieces_in(&self, pages: Range<u64>) -> impl Iterator<Item = (u64, u64, Source)> + '_ {
        let before = self.pieces.range(..pages.start).next_back();
        let all = before.into_iter().chain(self.pieces.range(pages.clone()));
        all.filter_map(move |(&page, &(nr, source))| {
            let run = Run { page, nr, source }.cut(&pages);
            (page + nr > pages.start && run.nr > 0).then_some((run.page, run.nr, run.source))
        })
    }

    /// Returns the map: neighbours that go on in one another are joined, and cut at the ends of extents.
    #[must_use]
    pub fn build(self) -> ExtentMap {
        let mut map = ExtentMap { nr_pages: self.nr_pages, runs: Vec::new(), index: Vec::new() };
        let mut at = 0;
        for (page, (nr, source)) in self.pieces {
            map.push_zeros(at, page);
            map.push(page..page + nr, source);
            at = page + nr;
        }
        map.push_zeros(at, self.nr_pages);
        map
    }
}

impl ExtentMap {
    /// Adds zero pages `from..to` behind what there is, but for extents that are all zero.
    fn push_zeros(&mut self, from: u64, to: u64) {
        // What is left of the extent that has data in front, and what there is of the one that has data behind.
        let head_end = from.next_multiple_of(EXTENT_PAGES).min(to);
        self.push(from..head_end, Source::Zero);
        let tail = (to / EXTENT_PAGES * EXTENT_PAGES).max(head_end);
        if to < self.nr_pages {
            self.push(tail..to, Source::Zero);
        }
    }

    /// Adds pages behind what there is.
    fn push(&mut self, pages: Range<u64>, source: Source) {
        let mut at = pages.start;
        while at < pages.end {
            let end = (at / EXTENT_PAGES + 1).saturating_mul(EXTENT_PAGES).min(pages.end);
            let source = source.behind(at - pages.start);
            let starts_extent = at.is_multiple_of(EXTENT_PAGES);
            match self.runs.last_mut() {
                // A run of a frame ends with the frame, but pages of one frame may have been put one by one.
                Some(last) if !starts_extent && last.source.behind(last.nr) == source => last.nr += end - at,
                _ => {
                    if starts_extent {
                        self.index.push((at / EXTENT_PAGES, self.runs.len() as u32));
                    }
                    self.runs.push(Run { page: at, nr: end - at, source });
                }
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(layer: u16, page: u64) -> Source {
        Source::Raw { layer, pos: page * PAGE_SIZE as u64 }
    }

    #[test]
    fn pieces_are_joined_and_cut_at_extents() {
        let mut b = Builder::new(1300);
        b.put(0..600, raw(0, 0));
        b.put(600..700, raw(0, 600));
        b.put(700..701, raw(0, 9));
        let map = b.build();
        let shape: Vec<_> = map.runs().iter().map(|r| (r.page, r.nr)).collect();
        assert_eq!(shape, [(0, 512), (512, 188), (700, 1), (701, 323)]);
        assert_eq!(map.extent(1).len(), 3);
        assert_eq!(map.run_at(1200), Some(Run { page: 1024, nr: 276, source: Source::Zero }));
        assert!(map.extent(2).is_empty() && map.extent(3).is_empty());
        assert_eq!(map.fragmentation(), Fragmentation { pieces: 3, extents: 2, most: 2 });
    }

    #[test]
    fn address_space_costs_nothing() {
        let mut b = Builder::new(1 << 50);
        b.put((1 << 40) + 3..(1 << 40) + 5, raw(0, 0));
        let map = b.build();
        assert_eq!((map.runs().len(), map.run_at(1 << 49).map(|r| r.nr)), (3, Some(EXTENT_PAGES)));
        assert_eq!(map.run_at((1 << 40) + 4).map(|r| r.source), Some(raw(0, 0)));
    }

    #[test]
    fn an_empty_map_has_no_page() {
        let map = Builder::new(0).build();
        assert_eq!((map.run_at(0), map.runs().len(), map.nr_pages()), (None, 0, 0));
    }

    proptest! {
        /// Against a vector that says for each page where it comes from.
        #[test]
        fn a_map_says_what_was_put_last(
            puts in prop::collection::vec((0u64..1600, 1u64..700, 0u16..4, 0u64..3000), 0..40),
        ) {
            const NR: u64 = 1500;
            let mut model = vec![Source::Zero; NR as usize];
            let mut b = Builder::new(NR);
            for (page, nr, layer, pos) in puts {
                let source = if layer == 0 { Source::Zero } else { raw(layer, pos) };
                b.put(page..page + nr, source);
                for p in page..(page + nr).min(NR) {
                    model[p as usize] = source.behind(p - page);
                }
            }
            let map = b.build();
            for p in 0..NR {
                let run = map.run_at(p).expect("each page has a run");
                prop_assert!(run.pages().contains(&p) && run.page / EXTENT_PAGES == (run.page + run.nr - 1) / EXTENT_PAGES);
                prop_assert_eq!(run.source.behind(p - run.page), model[p as usize]);
            }
            let all: Vec<Run> = map.runs_in(0..NR).collect();
            prop_assert_eq!(all.iter().map(|r| r.nr).sum::<u64>(), NR);
            let part: Vec<Run> = map.runs_in(37..1201).collect();
            prop_assert_eq!(part.iter().map(|r| r.nr).sum::<u64>(), 1201 - 37);
            prop_assert_eq!(Builder::over(&map, &[0, 1, 2, 3]).build(), map);
        }
    }
}
