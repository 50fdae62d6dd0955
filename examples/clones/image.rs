//! The image, and what each byte of it is.

use crate::units::{PAGE, Result};
use softfault::image::{Prot, Region, Writer};
use std::path::{Path, PathBuf};

/// The folder of a run; it goes with it.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("softfault-clones-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.0.join("image.sfi")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The word at a place of the image: no two are equal, and none is zero.
pub(crate) fn word(page: u64, i: usize) -> u64 {
    (page * (PAGE as u64 / 8) + i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Writes an image of so many pages: one region.
pub(crate) fn make(path: &Path, pages: u64) -> Result<()> {
    let mut writer = Writer::create(path, pages)?;
    let (len_bytes, prot) = (pages * PAGE as u64, Prot::READ | Prot::WRITE);
    writer.region(Region { name: "memory".into(), address: 1 << 44, offset: 0, len_bytes, prot })?;
    let mut bytes = Vec::with_capacity(PAGE);
    for page in 0..pages {
        bytes.clear();
        (0..PAGE / 8).for_each(|i| bytes.extend_from_slice(&word(page, i).to_le_bytes()));
        writer.write(page, &bytes)?;
    }
    writer.finish()?;
    Ok(())
}
