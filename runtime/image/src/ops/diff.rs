//! Which pages of two images differ.
//!
//! # Context: control plane; allocates, and waits for files

use crate::digest::{Digest, EXTENT_GROUPS, GROUP_PAGES, GROUP_SIZE, is_zero};
use crate::error::Result;
use crate::extent_map::{EXTENT_PAGES, PAGE_SIZE, Run, Source};
use crate::image::{Image, LayerId, Reader};
use std::collections::HashMap;
use std::ops::Range;

/// What says that pages are equal. Pages that lie at the same place of the same file are, in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compare {
    /// The digests of their contents, where both images have them: a file is believed what it says of its own pages.
    #[default]
    Digests,
    /// The pages, read and verified.
    Pages,
}

/// The pages that differ. What lies past the end of the shorter image is compared to zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    runs: Vec<Range<u64>>,
}

impl Diff {
    /// Returns the runs of pages that differ, in order; no two of them touch.
    #[must_use]
    pub fn runs(&self) -> &[Range<u64>] {
        &self.runs
    }

    /// Returns the number of pages that differ.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    fn push(&mut self, page: u64) {
        match self.runs.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => self.runs.push(page..page + 1),
        }
    }
}

/// Compares two images page by page, without reading what is known to be equal.
///
/// # Errors
/// As [`Reader::read`] of either image.
pub fn diff(old: &Image, new: &Image, compare: Compare) -> Result<Diff> {
    let (mut a, mut b) = (Side::new(old), Side::new(new));
    let mut diff = Diff::default();
    let mut differ = Vec::new();
    let end = old.nr_pages().max(new.nr_pages()).div_ceil(EXTENT_PAGES);
    let next = |from: u64| {
        let data =
            |image: &Image| Some(image.next_extent(from)).filter(|at| *at < image.nr_pages().div_ceil(EXTENT_PAGES));
        data(old).unwrap_or(end).min(data(new).unwrap_or(end))
    };
    let mut following = next(0);
    while following < end {
        let extent = following;
        following = next(extent + 1);
        a.go_to(extent)?;
        b.go_to(extent)?;
        other_places(&mut a, &mut b, &mut differ)?;
        if differ.is_empty() {
            continue;
        }
        let digests = match compare {
            Compare::Digests => old.known_groups(extent)?.zip(new.known_groups(extent)?),
            Compare::Pages => None,
        };
        for pages in &differ {
            compare_pages(&mut a, &mut b, pages, digests.as_ref(), &mut diff)?;
        }
    }
    Ok(diff)
}

/// One of the two images.
struct Side<'a> {
    image: &'a Image,
    reader: Reader<'a>,
    ids: HashMap<u16, LayerId>,
    /// The runs of the extent, all of which it has: what is past the end is zero.
    runs: Vec<Run>,
    bytes: Vec<u8>,
}

impl<'a> Side<'a> {
    fn new(image: &'a Image) -> Self {
        Self { image, reader: image.reader(), ids: HashMap::new(), runs: Vec::new(), bytes: Vec::new() }
    }

    fn go_to(&mut self, extent: u64) -> Result<()> {
        self.runs.clear();
        if extent < self.image.nr_pages().div_ceil(EXTENT_PAGES) {
            self.image.extent(extent, &mut self.runs)?;
        }
        let end = (extent + 1) * EXTENT_PAGES;
        let page = self.runs.last().map_or(extent * EXTENT_PAGES, |last| last.page + last.nr);
        if page < end {
            self.runs.push(Run { page, nr: end - page, source: Source::Zero });
        }
        Ok(())
    }

    /// Returns which file a source lies in.
    fn id(&mut self, source: Source) -> Result<Option<LayerId>> {
        let Some(layer) = source.layer() else { return Ok(None) };
        if let Some(id) = self.ids.get(&layer) {
            return Ok(Some(id.clone()));
        }
        let id = self.image.layer_id(layer)?;
        self.ids.insert(layer, id.clone());
        Ok(Some(id))
    }

    /// Reads pages of the extent; returns their bytes.
    fn read(&mut self, pages: &Range<u64>) -> Result<&[u8]> {
        self.bytes.clear();
        self.bytes.resize((pages.end - pages.start) as usize * PAGE_SIZE, 0);
        let end = pages.end.min(self.image.nr_pages());
        if pages.start < end {
            let len = (end - pages.start) as usize * PAGE_SIZE;
            self.reader.read(pages.start, self.bytes.get_mut(..len).unwrap_or_default())?;
        }
        Ok(&self.bytes)
    }
}

/// Finds the pages of an extent that do not lie at the same place in both images.
fn other_places(a: &mut Side<'_>, b: &mut Side<'_>, differ: &mut Vec<Range<u64>>) -> Result<()> {
    differ.clear();
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.runs.get(i).copied(), b.runs.get(j).copied()) {
        let pages = x.page.max(y.page)..(x.page + x.nr).min(y.page + y.nr);
        let (from, to) = (x.cut(&pages).source, y.cut(&pages).source);
        // The number of the layer is each image's own.
        let is_same = from.behind(0) == to.on_layer(from.layer().unwrap_or(0)) && a.id(from)? == b.id(to)?;
        if !is_same {
            match differ.last_mut() {
                Some(last) if last.end == pages.start => last.end = pages.end,
                _ => differ.push(pages.clone()),
            }
        }
        i += usize::from(x.page + x.nr == pages.end);
        j += usize::from(y.page + y.nr == pages.end);
    }
    Ok(())
}

/// Compares pages of one extent, group by group.
fn compare_pages(
    a: &mut Side<'_>,
    b: &mut Side<'_>,
    pages: &Range<u64>,
    digests: Option<&(Vec<Digest>, Vec<Digest>)>,
    diff: &mut Diff,
) -> Result<()> {
    let mut at = pages.start;
    while at < pages.end {
        let group = at / GROUP_PAGES;
        let part = at..((group + 1) * GROUP_PAGES).min(pages.end);
        at = part.end;
        let in_extent = (group % EXTENT_GROUPS) as usize;
        if digests.is_some_and(|(a, b)| a.get(in_extent) == b.get(in_extent)) {
            continue;
        }
        let (old, new) = (a.read(&part)?, b.read(&part)?);
        debug_assert!(old.len() == new.len() && old.len() <= GROUP_SIZE, "pages of one group");
        let both = old.chunks(PAGE_SIZE).zip(new.chunks(PAGE_SIZE));
        (part.start..).zip(both).filter(|(_, (old, new))| old != new).for_each(|(page, _)| diff.push(page));
    }
    Ok(())
}

/// Returns the runs of `pages` whose bytes are not zero, page by page.
pub(super) fn not_zero(first: u64, bytes: &[u8]) -> Vec<Range<u64>> {
    let mut diff = Diff::default();
    (first..).zip(bytes.chunks(PAGE_SIZE)).filter(|(_, b)| !is_zero(b)).for_each(|(page, _)| diff.push(page));
    diff.runs
}
