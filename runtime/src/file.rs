//! Files as objects, and how they are read and written.

use crate::error::{Error, Result, system};
use crate::object::{Object, ObjectBuilder};
use crate::runtime::Runtime;
use softfault_platform::store::file::FileStore;
use softfault_platform::sys::{Errno, fd, file};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Options of a file's object; see [`Runtime::file_options`].
#[derive(Debug)]
pub struct FileOptions {
    object: ObjectBuilder,
    direct: bool,
}

impl FileOptions {
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self { object: ObjectBuilder::new(runtime, 0), direct: false }
    }
    /// Permits shared mappings with stores, and [`Object::write_at`]; default: not. The file is written, too.
    #[must_use]
    pub fn writable(mut self, yes: bool) -> Self {
        self.object = self.object.writable(yes);
        self
    }
    /// Reads and writes past the kernel's page cache (`O_DIRECT`), so that pages are not cached twice; default: not.
    ///
    /// Whole pages go directly, the last, partial one through the kernel's cache. A file system that refuses direct I/O
    /// gets buffered I/O instead, which the counter `process_direct_fallbacks` of [`Stats`](crate::Stats) says.
    #[must_use]
    pub fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }
    /// Sets options of the object: its maximal length, its failure policy, and so on.
    #[must_use]
    pub fn with(mut self, f: impl FnOnce(ObjectBuilder) -> ObjectBuilder) -> Self {
        self.object = f(self.object);
        self
    }

    /// Opens the file and makes the object; its length is what the file's is now.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Exhausted`], [`Error::Argument`] as [`ObjectBuilder::handler_store`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<Object> {
        let path = path.as_ref();
        let opened = OpenOptions::new().read(true).write(self.object.is_writable()).open(path);
        let opened = opened.map_err(|source| Error::Io { op: "FileOptions::open", path: Some(path.into()), source })?;
        Self { object: self.object.label_or(|| path.display().to_string()), ..self }.file(&opened)
    }

    /// Makes the object of an open file, which may be closed afterwards.
    ///
    /// # Errors
    /// As [`FileOptions::open`], and [`Error::System`]: a file that is to be written must be open for both.
    pub fn file(self, opened: &File) -> Result<Object> {
        let op = "FileOptions::file";
        let len = opened.metadata().map_err(|source| Error::Io { op, path: None, source })?.len();
        let write = self.object.is_writable();
        let fd = if write { reopen_rw(op, opened)? } else { duplicate(op, opened)? };
        let store = if self.direct { FileStore::direct(fd, 0, write) } else { FileStore::new(fd, 0) };
        self.object.len(len).label_or(|| path_of(opened)).handler_store(Box::new(store))
    }
}

/// Returns where the file is, as far as the kernel knows.
fn path_of(opened: &File) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    link.map_or_else(|_| "a file".into(), |path| path.display().to_string())
}

fn duplicate(op: &'static str, opened: &File) -> Result<i32> {
    fd::dup_high(opened.as_raw_fd()).map_err(system(op, "fcntl"))
}

/// Opens the file anew. A write error is said once to each open file description: on a duplicate, an fsync(2) of the
/// program's would swallow what our flush must hear.
fn reopen_rw(op: &'static str, opened: &File) -> Result<i32> {
    match file::reopen(opened.as_raw_fd(), true, false) {
        // No /proc: the shared description must do.
        Err(Errno::ENOENT) => duplicate(op, opened),
        r => r.map_err(system(op, "open")),
    }
}
