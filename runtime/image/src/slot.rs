//! The files of an image, each opened when it is needed.
//!
//! # Context: control plane; allocates, and waits for files

use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::sfi::{Below, Sfi};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A file that pages lie in.
#[derive(Debug)]
pub(crate) enum File {
    Sfi(Box<Sfi>),
    Raw(Layer),
}

/// A file that is opened when it is needed, and what it has to be.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) path: PathBuf,
    pub(crate) below: Option<Below>,
    file: OnceLock<File>,
}

impl Slot {
    /// Returns a file that is open already.
    pub(crate) fn open(file: File, path: &Path) -> Self {
        let slot = Self { path: path.into(), below: None, file: OnceLock::new() };
        let _ = slot.file.set(file);
        slot
    }

    /// Returns a file that is opened late.
    pub(crate) fn late(path: PathBuf, below: Below) -> Self {
        Self { path, below: Some(below), file: OnceLock::new() }
    }

    /// Returns the file if it is open.
    pub(crate) fn if_open(&self) -> Option<&File> {
        self.file.get()
    }

    /// Returns the file, which is opened and looked at if it was not.
    pub(crate) fn get(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let layer = Layer::open(&self.path)?;
        let file = match &self.below {
            Some(below) if below.is_sfi => {
                let sfi = Sfi::open(layer)?;
                let (wanted, found) = (below.digest, sfi.file_digest());
                if wanted != found {
                    let path = self.path.clone();
                    return Err(Error::Digest { path, what: "the header", offset: 0, wanted, found });
                }
                File::Sfi(Box::new(sfi))
            }
            Some(below) if layer.len_bytes() != below.len_bytes => {
                return Err(Error::Changed { path: self.path.clone(), what: "its length" });
            }
            Some(below) if below.mtime_ns != 0 && layer.identity().mtime_ns != i128::from(below.mtime_ns) => {
                return Err(Error::Changed { path: self.path.clone(), what: "its time of modification" });
            }
            _ => File::Raw(layer),
        };
        // Two threads may open it: one of the two is kept.
        Ok(self.file.get_or_init(|| file))
    }
}
