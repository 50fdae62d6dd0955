//! An image as one file that needs no other.
//!
//! # Context: control plane; allocates, and waits for files

use super::segments;
use crate::codec::{Codec, FRAME_MAX};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::extent_map::{EXTENT_PAGES, PAGE_SIZE};
use crate::image::Image;
use crate::write::Writer;
use std::path::Path;

/// How a new file stores its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// By which codec.
    pub codec: Codec,
    /// How many bytes are compressed together: see [`Writer::frame_bytes`].
    pub frame_bytes: usize,
}

impl Default for Stored {
    /// As they are; frames, if a codec is chosen, of 64 KiB.
    fn default() -> Self {
        Self { codec: Codec::Raw, frame_bytes: 64 << 10 }
    }
}

/// Writes an image, of whatever format and however many files, into one `.sfi` file of its own: its memory, its regions, and what
/// is kept beside them. Returns the new file's digest.
///
/// # Errors
/// As [`Reader::read`](crate::Reader::read) of the image, [`Writer::create`] and [`Writer::finish`]; [`Error::Digest`]: the image's
/// pages are not the contents that it says; [`Error::Changed`]: a raw file was written to meanwhile.
pub fn convert(image: &Image, path: impl AsRef<Path>, stored: &Stored) -> Result<Digest> {
    rewrite(image, path.as_ref(), stored, usize::MAX)
}

/// The same, so that no extent of 2 MiB has more than `budget` pieces: each costs a read of whoever needs the extent. Where pages
/// that are zero would cut one into more, those between the closest pieces are stored, and frames are made as long as is needed.
///
/// Whether it is worth the while says [`ExtentMap::fragmentation`](crate::ExtentMap::fragmentation) of [`Image::map`].
///
/// # Errors
/// As [`convert`]; [`Error::Argument`]: a budget of nothing.
pub fn compact(image: &Image, path: impl AsRef<Path>, stored: &Stored, budget: u32) -> Result<Digest> {
    if budget == 0 {
        let (op, why) = ("ops::compact", "an extent that is not zero has a piece");
        return Err(Error::Argument { op, arg: "budget", value: 0, why });
    }
    let mut stored = *stored;
    let mut most = budget as usize;
    if stored.codec != Codec::Raw {
        // Each end of a frame may cut a piece in two, as each gap does: half of the budget at most is theirs.
        let frames = (most / 2).clamp(1, EXTENT_PAGES as usize);
        let pages = (EXTENT_PAGES as usize).div_ceil(frames).max(stored.frame_bytes.min(FRAME_MAX) / PAGE_SIZE);
        stored.frame_bytes = pages * PAGE_SIZE;
        most -= (EXTENT_PAGES as usize).div_ceil(pages) - 1;
    }
    rewrite(image, path.as_ref(), &stored, most)
}

fn rewrite(image: &Image, path: &Path, stored: &Stored, most: usize) -> Result<Digest> {
    let writer = Writer::create(path, image.nr_pages())?.codec(stored.codec).frame_bytes(stored.frame_bytes);
    let mut writer = writer.with_head_of(image)?;
    if let Some(content) = image.content_digest() {
        writer = writer.expect_content(content);
    }
    segments::each(image, 0..image.nr_pages(), most, |page, bytes| writer.write_whole(page, bytes))?;
    writer.finish()
}
