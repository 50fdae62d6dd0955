//! Raw files out of images, for programs that know no other.
//!
//! # Context: control plane; allocates, and waits for files

use super::diff::{Compare, diff};
use super::segments;
use crate::durable::Temp;
use crate::error::{Error, Result};
use crate::extent_map::PAGE_SIZE;
use crate::image::Image;
use crate::layer::Layer;
use crate::raw;
use std::ops::Range;
use std::path::Path;

/// Writes pages of an image into a raw file, whose first byte is the first of `pages`: all of it, `0..image.nr_pages()`, or a
/// region, [`Region::pages`](crate::Region::pages). Zero pages are holes. The file appears when it is durable, and replaces none.
///
/// # Errors
/// As [`Reader::read`](crate::Reader::read); [`Error::Argument`]: there are not so many pages; [`Error::Io`]: there is such a file,
/// the disk is full, and so on.
pub fn extract(image: &Image, pages: Range<u64>, path: impl AsRef<Path>) -> Result<()> {
    if pages.start > pages.end || pages.end > image.nr_pages() {
        let (op, why) = ("ops::extract", "the image ends before, or it is no range");
        return Err(Error::Argument { op, arg: "pages", value: pages.end, why });
    }
    let file = Temp::beside(path.as_ref())?;
    file.set_len((pages.end - pages.start) * PAGE_SIZE as u64)?;
    segments::each(image, pages.clone(), usize::MAX, |page, bytes| {
        file.write_at(bytes, (page - pages.start) * PAGE_SIZE as u64)
    })?;
    file.name_new()
}

/// Writes the pages of `new` that differ from `old` into a sparse file as long as the image: what Firecracker calls a diff
/// snapshot, and [`Image::raw_stack`] reads over a full one. Pages that are equal are holes, those that became zero are not.
///
/// # Errors
/// As [`diff`] and [`extract`]; [`Error::Argument`]: the images are not of one length; [`Error::Unsupported`]: the file system
/// keeps no holes of single pages.
pub fn extract_diff(old: &Image, new: &Image, path: impl AsRef<Path>) -> Result<()> {
    let (path, page_size) = (path.as_ref(), PAGE_SIZE as u64);
    if old.nr_pages() != new.nr_pages() {
        let (op, why) = ("ops::extract_diff", "the images have not equally many pages");
        return Err(Error::Argument { op, arg: "new", value: new.nr_pages(), why });
    }
    let diff = diff(old, new, Compare::Pages)?;
    let file = Temp::beside(path)?;
    file.set_len(new.nr_pages() * page_size)?;
    let (mut reader, mut bytes) = (new.reader(), vec![0; 1 << 20]);
    for run in diff.runs() {
        let mut at = run.start;
        while at < run.end {
            let nr = (run.end - at).min(bytes.len() as u64 / page_size);
            let bytes = bytes.get_mut(..nr as usize * PAGE_SIZE).unwrap_or_default();
            reader.read(at, bytes)?;
            file.write_at(bytes, at * page_size)?;
            at += nr;
        }
    }
    old.check_raw()?;
    new.check_raw()?;
    // A block that is larger than a page would show zeros for what is equal.
    let found = raw::data(&Layer::open(file.temp_path())?)?;
    let bytes_of = |run: &Range<u64>| run.start * page_size..run.end * page_size;
    if joined(&found) != diff.runs().iter().map(bytes_of).collect::<Vec<_>>() {
        let why = "use a file system whose blocks are pages, and that knows SEEK_HOLE";
        return Err(Error::Unsupported { path: path.into(), what: "holes of single pages".into(), why });
    }
    file.name_new()
}

/// Joins ranges that touch: a file system may tell data piece by piece.
fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut list: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match list.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => list.push(range.clone()),
        }
    }
    list
}
