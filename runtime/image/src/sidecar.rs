//! Digests for images that have none.
//!
//! # Context: control plane; allocates, and waits for files

use crate::digest::Digest;
use crate::error::Result;
use crate::image::Image;
use crate::write::Writer;
use std::path::Path;
use std::sync::Arc;

/// Writes digests of an image that has none (a raw file, a stack, another program's snapshot) into a file of its own, `path`, in
/// the same folder: opened, that is the same memory, verified. Reads everything once. Returns the new file's digest.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use softfault_image::{Image, write_sidecar};
/// use std::sync::Arc;
///
/// let folder = tempfile::tempdir()?;
/// let (raw, side) = (folder.path().join("memory.raw"), folder.path().join("memory.raw.sfi"));
/// std::fs::write(&raw, vec![7u8; 1 << 20])?;
/// write_sidecar(&Arc::new(Image::open(&raw)?), &side)?;
/// assert!(Image::open(&side)?.is_verifiable()?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`Writer::over`] and [`Writer::finish`].
pub fn write_sidecar(image: &Arc<Image>, path: impl AsRef<Path>) -> Result<Digest> {
    let writer = Writer::over(path, image.nr_pages(), Arc::clone(image))?.digest_parent();
    writer.with_head_of(image)?.finish()
}
