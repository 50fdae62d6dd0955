//! Overlays: pages that a session is given when it is restored, instead of the image's.
//!
//! Entropy, a generation number, a mailbox: what must differ between two sessions of one image. It is stored to the session's own
//! memory before anybody gets the session, and never reaches the image. An image that was captured from such a session says so,
//! under the key [`KEY`], and a session that is restored from it must be given each overlay again: it would have the old one's.
//!
//! # Context: control plane

use crate::error::{Error, Result};
use softfault_image::{Image, PAGE_SIZE};
use std::ops::Range;

/// The key under which an image keeps which overlays it needs: a line each, `first byte` `length` `name`.
pub(super) const KEY: &str = "softfault.overlays";

/// Pages that a session was given. See [`Restore::overlay`](crate::Restore::overlay).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// What it is called.
    pub name: String,
    /// The image's bytes that it stands for: whole pages.
    pub range: Range<u64>,
}

impl Overlay {
    /// Returns the line of the key's value.
    fn line(&self) -> String {
        format!("{} {} {}\n", self.range.start, self.range.end - self.range.start, self.name)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        let (start, len) = (number()?, number()?);
        let end = start.checked_add(len)?;
        Some(Self { name: words.next()?.to_owned(), range: start..end })
    }
}

/// Returns the value of [`KEY`] for a capture of a session with these overlays.
pub(super) fn encode(overlays: &[Overlay]) -> Vec<u8> {
    overlays.iter().map(Overlay::line).collect::<String>().into_bytes()
}

/// Returns which overlays an image needs.
///
/// # Errors
/// [`Error::Image`]: the image's list is none.
pub(super) fn needed(op: &'static str, image: &Image) -> Result<Vec<Overlay>> {
    let Some(value) = image.key(KEY) else { return Ok(Vec::new()) };
    let bad = || {
        let (path, what, why) = (image.path().to_path_buf(), "the list of overlays", "a line is not one".into());
        crate::error::image(op)(softfault_image::Error::Corrupt { path, what, offset: 0, why })
    };
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    text.lines().map(|line| Overlay::parse(line).ok_or_else(bad)).collect()
}

/// Checks an overlay: whole pages, inside one of the image's regions.
pub(super) fn check(op: &'static str, image: &Image, range: &Range<u64>) -> Result<()> {
    let bad = |arg, value, why| Err(Error::Argument { op, arg, value, why });
    let page = PAGE_SIZE as u64;
    if !range.start.is_multiple_of(page) || !range.end.is_multiple_of(page) || range.is_empty() {
        return bad("overlay", range.start, "an overlay is whole pages, one at least");
    }
    let holds = |r: &softfault_image::Region| r.offset <= range.start && range.end <= r.offset + r.len_bytes;
    if !image.regions().iter().any(holds) {
        return bad("overlay", range.start, "an overlay lies in one region of the image");
    }
    Ok(())
}

/// Says which of the overlays that an image needs was not given: by its name, and as long.
pub(super) fn check_all(op: &'static str, image: &Image, given: &[Overlay]) -> Result<()> {
    match needed(op, image)?.into_iter().find(|n| !given.contains(n)) {
        Some(Overlay { name, range }) => Err(Error::Overlay { op, name, range }),
        None => Ok(()),
    }
}
