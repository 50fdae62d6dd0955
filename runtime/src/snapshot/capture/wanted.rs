//! What is captured, and what the image is to be.
//!
//! # Context: control plane

use crate::arena::Arena;
use crate::error::{self, Result};
use crate::snapshot::Session;
use softfault_image::{Codec, Image, Region, Writer};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub(super) const OP: &str = "CaptureBuilder::begin";

/// What a builder was told that holds for every capture.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) arenas: Vec<Arena>,
    pub(super) session: Option<Session>,
    /// The first address of an arena, and bytes of it.
    pub(super) excluded: Vec<(usize, Range<usize>)>,
    pub(super) over: Option<Arc<Image>>,
    pub(super) codec: Option<Codec>,
    pub(super) keys: Vec<(String, Vec<u8>)>,
    pub(super) no_wait: bool,
}

impl Wanted {
    /// Begins the image; returns its parent, too.
    pub(super) fn writer(
        &mut self,
        image: &Path,
        nr_pages: u64,
        regions: &[Region],
    ) -> Result<(Writer, Option<Arc<Image>>)> {
        let parent = self.over.take();
        let made = match &parent {
            Some(parent) => Writer::over(image, nr_pages, Arc::clone(parent)),
            None => Writer::create(image, nr_pages),
        };
        let mut writer = made.map_err(error::image(OP))?;
        if let Some(codec) = self.codec {
            writer = writer.codec(codec);
        }
        regions.iter().try_for_each(|r| writer.region(r.clone())).map_err(error::image(OP))?;
        self.keys.iter().for_each(|(key, value)| writer.key(key, value));
        Ok((writer, parent))
    }
}
