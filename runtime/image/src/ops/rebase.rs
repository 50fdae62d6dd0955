//! An image as what has changed since another one.
//!
//! # Context: control plane; allocates, and waits for files

use super::diff::{Compare, diff};
use super::rewrite::Stored;
use crate::digest::{Digest, GROUP_SIZE};
use crate::error::Result;
use crate::extent_map::PAGE_SIZE;
use crate::image::Image;
use crate::write::Writer;
use std::path::Path;
use std::sync::Arc;

/// Writes an image as a child of `parent`: the pages that differ, the image's regions, and what is kept beside them. Whatever the
/// parent is, a page less or a terabyte more, older or of another family, the memory is the image's. Returns the new file's digest.
///
/// All pages that lie at different places are read and compared: what the parent says of its own contents is not believed.
///
/// # Errors
/// As [`diff`], [`Writer::over`] and [`Writer::finish`]; [`Error::Digest`](crate::Error::Digest): the result would be other contents
/// than the image's, because what one of the two says of its contents is wrong.
pub fn rebase(image: &Image, parent: &Arc<Image>, path: impl AsRef<Path>, stored: &Stored) -> Result<Digest> {
    let writer = Writer::over(path, image.nr_pages(), Arc::clone(parent))?;
    let writer = writer.codec(stored.codec).frame_bytes(stored.frame_bytes);
    let mut writer = writer.with_head_of(image)?;
    if parent.content_digest().is_some() {
        // What of the parent is taken over, is by its digests: those are checked by the image's.
        let content = image.content_digest().map_or_else(|| image.compute_content_digest(), Ok)?;
        writer = writer.expect_content(content);
    }
    let diff = diff(parent, image, Compare::Pages)?;
    let (mut reader, mut bytes) = (image.reader(), vec![0; GROUP_SIZE]);
    for run in diff.runs() {
        let mut at = run.start;
        while at < run.end.min(image.nr_pages()) {
            let nr = (run.end.min(image.nr_pages()) - at).min((bytes.len() / PAGE_SIZE) as u64);
            let bytes = bytes.get_mut(..nr as usize * PAGE_SIZE).unwrap_or_default();
            reader.read(at, bytes)?;
            writer.write(at, bytes)?;
            at += nr;
        }
    }
    image.check_raw()?;
    parent.check_raw()?;
    writer.finish()
}
