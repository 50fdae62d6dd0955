//! The files below an image, and whether they are still those that it was opened over.
//!
//! # Context: control plane; allocates, and waits for files

use crate::digest::Digest;
use crate::error::{Error, Result};
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a raw file without digests is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The device, and the inode on it.
    pub inode: (u64, u64),
    /// The length in bytes.
    pub len_bytes: u64,
    /// When it was written last, in nanoseconds since 1970.
    pub mtime_ns: i128,
}

impl Identity {
    fn of(meta: &Metadata) -> Self {
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Self { inode: (meta.dev(), meta.ino()), len_bytes: meta.len(), mtime_ns }
    }
}

/// Opens a file to be read. Whoever opened a pipe to be read, which nobody writes, would wait.
pub(crate) fn open(path: &Path) -> std::io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

/// An open file, and what it was when it was opened.
#[derive(Debug)]
pub struct Layer {
    path: PathBuf,
    file: File,
    identity: Identity,
}

impl Layer {
    /// Opens a file to be read.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unsupported`] of what is no file with bytes (a directory, a pipe).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = open(&path).map_err(Error::io("open", &path))?;
        let meta = file.metadata().map_err(Error::io("stat", &path))?;
        if !meta.is_file() {
            let why = "an image lies in regular files";
            return Err(Error::Unsupported { path, what: "what is no regular file".into(), why });
        }
        Ok(Self { path, file, identity: Identity::of(&meta) })
    }

    /// Returns where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns what it was when it was opened.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns its length when it was opened, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.identity.len_bytes
    }

    /// Says whether the file is still what it was: who opens it late, or trusts it without digests, asks.
    ///
    /// # Errors
    /// [`Error::Changed`] names what is not; [`Error::Io`].
    pub fn check(&self) -> Result<()> {
        self.check_is(&self.identity)
    }

    /// The same of what somebody else remembers of it.
    ///
    /// # Errors
    /// As [`Layer::check`].
    pub fn check_is(&self, wanted: &Identity) -> Result<()> {
        let now = Identity::of(&self.file.metadata().map_err(Error::io("stat", &self.path))?);
        let what = if now.inode != wanted.inode {
            "the file of that name"
        } else if now.len_bytes != wanted.len_bytes {
            "its length"
        } else if now.mtime_ns != wanted.mtime_ns {
            "its time of modification"
        } else {
            return Ok(());
        };
        Err(Error::Changed { path: self.path.clone(), what })
    }

    /// Reads bytes that must be there; `what` they are is named where they are not.
    ///
    /// # Errors
    /// [`Error::Corrupt`]: the file is too short. [`Error::Io`].
    pub fn read(&self, what: &'static str, pos: u64, into: &mut [u8]) -> Result<()> {
        self.check_holds(what, pos, into.len() as u64)?;
        self.file.read_exact_at(into, pos).map_err(|source| match source.kind() {
            // It was long enough when it was opened.
            std::io::ErrorKind::UnexpectedEof => Error::Changed { path: self.path.clone(), what: "its length" },
            _ => Error::Io { op: "read", path: self.path.clone(), source },
        })
    }

    /// Refuses bytes that end past the file.
    fn check_holds(&self, what: &'static str, pos: u64, len_bytes: u64) -> Result<()> {
        let end = pos.checked_add(len_bytes);
        if end.is_none_or(|end| end > self.identity.len_bytes) {
            let why = format!("{len_bytes} bytes from there on end past the file's {}", self.identity.len_bytes);
            return Err(self.corrupt(what, pos, why));
        }
        Ok(())
    }

    /// The same, of so many bytes that are not there yet; `limit` is the most that anybody may ask for.
    pub(crate) fn read_vec(&self, what: &'static str, pos: u64, len: u64, limit: usize) -> Result<Vec<u8>> {
        let fits = usize::try_from(len).ok().filter(|len| *len <= limit);
        let is_there = pos.checked_add(len).is_some_and(|end| end <= self.identity.len_bytes);
        let Some(len) = fits.filter(|_| is_there) else {
            let why = format!("{len} bytes from there on are more than {limit}, or end past the file");
            return Err(self.corrupt(what, pos, why));
        };
        let mut bytes = vec![0; len];
        self.read(what, pos, &mut bytes)?;
        Ok(bytes)
    }

    /// Says what is wrong at byte `offset`.
    pub(crate) fn corrupt(&self, what: &'static str, offset: u64, why: impl Into<String>) -> Error {
        Error::Corrupt { path: self.path.clone(), what, offset, why: why.into() }
    }
}

/// Where raw pages lie, and what they have to be: see [`Image::raw_at`](crate::Image::raw_at).
#[derive(Debug)]
pub struct RawAt<'a> {
    /// The file.
    pub file: &'a File,
    /// The bytes of the file that are verified with them: whole groups of [`GROUP_SIZE`](crate::GROUP_SIZE), the last of which may be
    /// shorter.
    pub groups: Range<u64>,
    /// The digest of each of those groups; none: nobody knows them.
    pub digests: Vec<Digest>,
}

impl<'a> RawAt<'a> {
    /// Bytes without digests.
    pub(crate) fn plain(layer: &'a Layer, pos: u64, len_bytes: u64) -> Result<Self> {
        layer.check_holds("pages", pos, len_bytes)?;
        Ok(Self { file: &layer.file, groups: pos..pos, digests: Vec::new() })
    }
}
