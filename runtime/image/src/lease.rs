//! Who holds an image says so by a lock on its file, which other processes see.
//!
//! ```text
//! who opens                                  who collects
//! opens the file
//!                                            takes the lock alone, and removes the name
//! waits for the lock, and gets it
//! is the file still there? no: it was removed
//! ```
//!
//! # Context: control plane; allocates, and waits for files

use crate::error::{Error, Result};
use crate::layer;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files that are not removed while this lives. A lock is the kernel's: it ends with the process, however that ends.
#[derive(Debug, Default)]
#[must_use = "what is not held may be collected"]
pub struct Lease(Vec<(PathBuf, File)>);

impl Lease {
    /// Returns the files that are held.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, _)| path.as_path())
    }

    /// Holds one more file; waits for who is about to remove it, and then finds that it is not there.
    /// Returns the device and the inode that are held.
    pub(crate) fn hold(&mut self, path: &Path) -> Result<(u64, u64)> {
        let file = layer::open(path).map_err(Error::io("open", path))?;
        file.lock_shared().map_err(Error::io("lock", path))?;
        if !is_named(&file, path) {
            return Err(Error::Changed { path: path.into(), what: "the file of that name" });
        }
        let inode = file.metadata().map(|m| (m.dev(), m.ino())).map_err(Error::io("stat", path))?;
        self.0.push((path.into(), file));
        Ok(inode)
    }

    /// Holds a file that is open, and has no name yet.
    pub(crate) fn hold_open(&mut self, path: &Path, file: File) -> Result<()> {
        file.lock_shared().map_err(Error::io("lock", path))?;
        self.0.push((path.into(), file));
        Ok(())
    }
}

/// Returns whether `path` names the open file.
pub(crate) fn is_named(file: &File, path: &Path) -> bool {
    let of = |m: std::fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata().map(of), std::fs::metadata(path).map(of)), (Ok(a), Ok(b)) if a == b)
}

/// A file that nobody holds, while it is being removed.
#[derive(Debug)]
pub(crate) struct Alone(#[expect(dead_code, reason = "its lock is what it is kept for")] File);

impl Alone {
    /// Takes a file for its own; `None`: somebody holds it, or it has gone.
    pub(crate) fn take(path: &Path) -> Result<Option<Self>> {
        let file = match layer::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", path)(e)),
        };
        match file.try_lock() {
            Ok(()) => Ok(is_named(&file, path).then_some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", path)(e)),
        }
    }
}
