//! Whole extents of an image, as the runs of pages in them that are not zero.
//!
//! # Context: control plane; allocates, and waits for files

use super::diff::not_zero;
use crate::error::Result;
use crate::extent_map::{EXTENT_PAGES, PAGE_SIZE, Source};
use crate::image::Image;
use std::ops::Range;

/// Reads the extents that `pages` meets, and calls `f` with each run of pages among them that are not zero, and the bytes of
/// those. Runs are joined, the closest first and the zero pages between them with them, until an extent has no more than `most`.
pub(super) fn each(
    image: &Image,
    pages: Range<u64>,
    most: usize,
    mut f: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let (mut reader, mut runs, mut bytes) = (image.reader(), Vec::new(), Vec::new());
    let mut next = image.next_extent(pages.start / EXTENT_PAGES);
    while next < pages.end.div_ceil(EXTENT_PAGES) {
        let extent = next;
        next = image.next_extent(extent + 1);
        image.extent(extent, &mut runs)?;
        if runs.iter().all(|run| run.source == Source::Zero) {
            continue;
        }
        let first = (extent * EXTENT_PAGES).max(pages.start);
        let end = ((extent + 1) * EXTENT_PAGES).min(pages.end);
        bytes.resize((end - first) as usize * PAGE_SIZE, 0);
        reader.read(first, &mut bytes)?;
        for run in joined(not_zero(first, &bytes), most) {
            let at = |page: u64| (page - first) as usize * PAGE_SIZE;
            f(run.start, bytes.get(at(run.start)..at(run.end)).unwrap_or_default())?;
        }
    }
    // What has no digests may have been written to meanwhile.
    image.check_raw()
}

/// Joins runs across the smallest gaps until there are no more than `most`.
fn joined(runs: Vec<Range<u64>>, most: usize) -> Vec<Range<u64>> {
    let Some(too_many) = runs.len().checked_sub(most.max(1)).filter(|n| *n > 0) else { return runs };
    let mut gaps: Vec<(u64, usize)> =
        runs.windows(2).enumerate().map(|(i, w)| (w[1].start - w[0].end, i + 1)).collect();
    gaps.sort_unstable();
    gaps.truncate(too_many);
    let mut closed: Vec<usize> = gaps.into_iter().map(|(_, i)| i).collect();
    closed.sort_unstable();
    let mut list: Vec<Range<u64>> = Vec::new();
    for (i, run) in runs.into_iter().enumerate() {
        match list.last_mut().filter(|_| closed.binary_search(&i).is_ok()) {
            Some(last) => last.end = run.end,
            None => list.push(run),
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_gaps_are_closed_first() {
        let runs = vec![0..1, 2..3, 10..11, 13..14, 30..31];
        assert_eq!(joined(runs.clone(), 9), runs);
        assert_eq!(joined(runs.clone(), 4), [0..3, 10..11, 13..14, 30..31]);
        assert_eq!(joined(runs.clone(), 3), [0..3, 10..14, 30..31]);
        for most in [0, 1] {
            assert_eq!(joined(runs.clone(), most), std::iter::once(0..31).collect::<Vec<_>>());
        }
        assert_eq!(joined(Vec::new(), 1), []);
    }
}
