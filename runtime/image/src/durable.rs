//! Files that appear under their names when everything in them is durable, and not before.
//!
//! ```text
//! made beside, under a temporary name, and locked        who collects leaves it alone
//! written, synced                                        a crash leaves a file that nobody names
//! renamed, and the folder synced                         a crash leaves one of the two states
//! ```
//! What a process leaves that is killed meanwhile has no lock: a collection removes it.
//!
//! # Context: control plane; allocates, and waits for files

use crate::error::{Error, Result};
use crate::inject::{self, Step};
use crate::lease::{self, Alone};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How temporary names begin.
const PREFIX: &str = ".softfault-";

/// A file that has no name of its own yet. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Temp {
    temp: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Temp {
    /// Makes a file that may become `path`, in its folder.
    pub(crate) fn beside(path: &Path) -> Result<Self> {
        let io = || Error::io("create a temporary file beside", path);
        loop {
            inject::step(|_| Step::Create(path.into())).map_err(io())?;
            let temp = tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder(path)).map_err(io())?;
            temp.as_file().lock_shared().map_err(Error::io("lock", temp.path()))?;
            // Between the two steps it looked like what somebody left.
            if lease::is_named(temp.as_file(), temp.path()) {
                return Ok(Self { temp, path: path.into() });
            }
        }
    }

    /// Returns the file, to be read.
    pub(crate) fn file(&self) -> &File {
        self.temp.as_file()
    }

    /// The same file, which may become `path` instead, in the same folder.
    pub(crate) fn called(mut self, path: &Path) -> Self {
        self.path = path.into();
        self
    }

    /// Opens the file once more.
    pub(crate) fn reopen(&self) -> Result<File> {
        self.temp.reopen().map_err(Error::io("open", &self.path))
    }

    /// Writes all of `bytes` at `pos`.
    pub(crate) fn write_at(&self, bytes: &[u8], pos: u64) -> Result<()> {
        let name = || self.temp.path().to_path_buf();
        let kept = |keeps: bool| if keeps { bytes.to_vec() } else { Vec::new() };
        let step = inject::step(|keeps| Step::Write(name(), pos, kept(keeps)));
        if step.is_err() {
            // A disk that becomes full has taken a part.
            let _ = self.file().write_all_at(bytes.get(..bytes.len() / 2).unwrap_or_default(), pos);
        }
        step.and_then(|()| self.file().write_all_at(bytes, pos)).map_err(Error::io("write", &self.path))
    }

    /// Gives the file a length.
    pub(crate) fn set_len(&self, len: u64) -> Result<()> {
        let step = inject::step(|_| Step::SetLen(self.temp.path().into(), len));
        step.and_then(|()| self.file().set_len(len)).map_err(Error::io("set the length of", &self.path))
    }

    /// Returns what the file is called until it has its name.
    pub(crate) fn temp_path(&self) -> &Path {
        self.temp.path()
    }

    fn sync(&self) -> Result<()> {
        let step = inject::step(|_| Step::Sync(self.temp.path().into()));
        step.and_then(|()| self.file().sync_all()).map_err(Error::io("fsync", &self.path))
    }

    /// Makes the file durable and gives it its name, which nothing may have. Where the folder could not be made durable, the name
    /// is taken away again.
    pub(crate) fn name_new(self) -> Result<()> {
        self.sync()?;
        self.rename_step()?;
        let Self { temp, path } = self;
        temp.persist_noclobber(&path).map_err(|e| Error::io("rename to", &path)(e.error))?;
        sync_folder(&path).inspect_err(|_| {
            let _ = remove(&path);
        })
    }

    /// Makes the file durable and gives it its name, which another file may lose by that.
    pub(crate) fn name_over(self) -> Result<()> {
        self.sync()?;
        self.rename_step()?;
        let Self { temp, path } = self;
        temp.persist(&path).map_err(|e| Error::io("rename to", &path)(e.error))?;
        sync_folder(&path)
    }

    fn rename_step(&self) -> Result<()> {
        let step = inject::step(|_| Step::Rename(self.temp.path().into(), self.path.clone()));
        step.map_err(Error::io("rename to", &self.path))
    }
}

/// Writes a small file whole, in place of what had the name.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temp = Temp::beside(path)?;
    temp.write_at(bytes, 0)?;
    temp.name_over()
}

/// Makes a folder, and those that it lies in, where there are none, and makes their names durable.
pub(crate) fn create_folders(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_folders(folder(path))?;
    let step = inject::step(|_| Step::CreateFolder(path.into()));
    match step.and_then(|()| std::fs::create_dir(path)) {
        // Somebody else has made it meanwhile.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made.map_err(Error::io("create the folder", path))?,
    }
    sync_folder(path)
}

/// Removes a file.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let step = inject::step(|_| Step::Remove(path.into()));
    step.and_then(|()| std::fs::remove_file(path)).map_err(Error::io("remove", path))
}

/// Makes the names beside `path` durable.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = folder(path);
    let step = inject::step(|_| Step::SyncFolder(folder.into()));
    step.and_then(|()| File::open(folder)?.sync_all()).map_err(Error::io("fsync", folder))
}

/// Removes the temporary files of a folder that whoever made them has left behind.
pub(crate) fn remove_left(folder: &Path) -> Result<()> {
    let io = || Error::io("read the folder", folder);
    for entry in std::fs::read_dir(folder).map_err(io())? {
        let entry = entry.map_err(io())?;
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !is_ours || !entry.file_type().is_ok_and(|t| t.is_file()) {
            continue;
        }
        // Its lock is held until the name has gone: whoever has just made it, and waits for the lock, sees that.
        if let Some(_alone) = Alone::take(&entry.path())? {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Returns the folder that a path lies in.
pub(crate) fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}
