//! Files as objects: what can be one, one object for each inode, and descriptors that take nobody's locks away.
//!
//! # Context: control plane

pub(crate) mod inodes;
mod kind;
pub(crate) mod options;

use crate::by_std;
use crate::cache::state::RuntimeInner;
use crate::error::{Error, Result, parent_only, system};
use crate::object::state::ObjectInner;
use crate::object::{Object, ObjectBuilder, follow};
use crate::process::descriptors::{self, Inode};
use inodes::{Found, Place};
use options::{Asked, FileOf};
use softfault_platform::store::direct::DirectFile;
use softfault_platform::store::file::FileStore;
use softfault_platform::sys::file::{self, Status};
use softfault_platform::sys::{Errno, fd as descriptor};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Options of a file's object; see [`Runtime::file_options`](crate::Runtime::file_options).
///
/// A file that is open as an object already, in whatever runtime of the process and by whatever name, is that object: it is
/// given again, with the rights that are asked for here. What the options say of the object must be what it was opened with
/// ([`Error::Conflict`] names the one that is not), and what is cached counts in the runtime that opened it first. Two processes
/// are two caches: what one stores the other sees after [`Object::sync`] here and [`Object::invalidate`] there.
#[derive(Debug)]
pub struct FileOptions {
    object: ObjectBuilder,
    direct: bool,
}

/// Where an open file comes from: what it is called in errors, and how it is opened for the object.
struct Source<'a> {
    op: &'static str,
    path: Option<&'a Path>,
    name: &'a dyn Fn() -> String,
    /// Opens it for reading, and if `true` for writing: a descriptor of the object's own.
    open: &'a dyn Fn(bool) -> std::result::Result<i32, Errno>,
    /// Whether the caller may read it, and if `true` write it, where it is not opened to find out.
    permits: &'a dyn Fn(bool) -> Result<()>,
}

impl FileOptions {
    pub(crate) fn new(rt: Arc<RuntimeInner>) -> Self {
        Self { object: ObjectBuilder::new(rt, 0), direct: false }
    }
    /// Permits shared mappings with stores, and [`Object::write_at`]; default: not. The file is written, too.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn writable(mut self, yes: bool) -> Self {
        self.object = self.object.writable(yes);
        self
    }
    /// Reads and writes past the kernel's page cache (`O_DIRECT`), so that pages are not cached twice; default: not.
    ///
    /// Whole pages go directly, the last, partial one through the kernel's cache. A file system that refuses direct I/O
    /// gets buffered I/O instead, which the counter `process_direct_fallbacks` of [`Stats`](crate::Stats) says.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }
    /// Sets options of the object: its maximal length, its failure policy, and so on.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn with(mut self, f: impl FnOnce(ObjectBuilder) -> ObjectBuilder) -> Self {
        self.object = f(self.object);
        self
    }

    /// Opens a file, or a block device, and makes the object, or gives the one that there is; its length is what the file's is
    /// now. The process's locks on the file (fcntl(2)) stay.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::FileType`] of what has no bytes that stay (a directory, a pipe, a file of procfs),
    /// [`Error::Conflict`] where it is open with other options, [`Error::Exhausted`], [`Error::Limit`] where there is no
    /// descriptor left, [`Error::Argument`] as [`ObjectBuilder::handler_store`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<Object> {
        let op = "FileOptions::open";
        let path = path.as_ref();
        let io = |errno: Errno| io_error(op, Some(path), errno);
        let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io(Errno::EINVAL))?;
        let at = patiently(|| file::open_path(&c_path)).map_err(io)?;
        let open = |write| match file::reopen(at, write, false) {
            // There is no /proc. The name may be another file's by now, which is looked at afterwards.
            Err(Errno::ENOENT) if write => file::open_rdwr(&c_path),
            Err(Errno::ENOENT) => file::open_rdonly(&c_path),
            r => r,
        };
        let permits = |write| match file::may_open(at, write) {
            // Before Linux 5.8 nobody can say, and who opens it finds out.
            Err(Errno::ENOSYS) => patiently(|| open(write)).map(descriptors::close_unused).map_err(io),
            r => r.map_err(io),
        };
        let name = || path.display().to_string();
        let made = self.make(&Source { op, path: Some(path), name: &name, open: &open, permits: &permits }, at);
        // It is an O_PATH descriptor, with which no lock goes.
        file::close(at);
        made
    }

    /// Makes the object of an open file, which may be closed afterwards. As [`FileOptions::open`].
    ///
    /// # Context: program
    ///
    /// # Errors
    /// As [`FileOptions::open`], and [`Error::Denied`]: a file that is to be read must be open for reading, and one that is to
    /// be written for both.
    pub fn file(self, opened: &File) -> Result<Object> {
        let op = "FileOptions::file";
        let fd = opened.as_raw_fd();
        let is = file::permits(fd).map_err(system(op, "fcntl"))?;
        let open = |write| match file::reopen(fd, write, false) {
            // A write error is said once to each open file description: on a duplicate, an fsync(2) of the program's would
            // swallow what our flush must hear. Where there is no /proc, or who passed the descriptor on may what we may not,
            // the shared description must do, unless it appends: it would put each page behind the end.
            Err(Errno::ENOENT | Errno::EACCES | Errno::EPERM | Errno::ENXIO) if !(write && is.append) => {
                descriptor::dup_high(fd)
            }
            r => r,
        };
        if !is.read {
            return Err(Error::Denied { op, what: "the file is not open for reading" });
        }
        if self.object.options.writable && !is.write {
            return Err(Error::Denied { op, what: "the file is not open for reading and writing" });
        }
        let name = || {
            let link = by_std::read_link(format!("/proc/self/fd/{fd}"));
            link.map_or_else(|_| format!("descriptor {fd}"), |path| path.display().to_string())
        };
        self.make(&Source { op, path: None, name: &name, open: &open, permits: &|_| Ok(()) }, fd)
    }

    /// Makes or finds the object of the file that `at` names, which may be an `O_PATH` descriptor.
    fn make(self, source: &Source<'_>, at: i32) -> Result<Object> {
        let op = source.op;
        parent_only(op)?;
        descriptors::sweep();
        // A deadline is refused whether or not the file is open already.
        self.object.check_deadline(op)?;
        let status = file::status(at).map_err(|e| io_error(op, source.path, e))?;
        kind::check(op, source.name, at, &status)?;
        match inodes::find(Inode::from(&status)) {
            Found::Open(inner) => self.join(source, inner),
            Found::Nothing(place) => self.open_first(source, place, &status),
        }
    }

    /// Opens a file that nobody else has as an object.
    fn open_first(self, source: &Source<'_>, place: Place, status: &Status) -> Result<Object> {
        let op = source.op;
        let write = self.object.options.writable;
        let fd = acquire(source, place.inode(), write)?;
        let store = if self.direct { FileStore::direct(fd, 0, write) } else { FileStore::new(fd, 0) };
        let store = Box::new(store.closed_by(descriptors::close));
        descriptors::own(&store.numbers());
        if file::status(fd).ok().map(|st| Inode::from(&st)) != Some(Inode::from(status)) {
            // It was opened by its name, which is another file's by now.
            return Err(io_error(op, source.path, Errno::ESTALE));
        }
        let len = store.len_bytes().map_err(|e| io_error(op, source.path, e))?;
        let asked = Asked::new(&self.object.rt, &self.object.options, self.direct);
        let object = self.object.len(len).label_or(|| (source.name)()).file_store(store)?;
        place.fill(&object.inner, asked);
        Ok(object)
    }

    /// Returns the object that there is of a file which is open, with the rights that are asked for.
    fn join(self, source: &Source<'_>, inner: Arc<ObjectInner>) -> Result<Object> {
        let writable = self.object.options.writable;
        (source.permits)(writable)?;
        let conflict = |option| Error::Conflict { op: source.op, name: (source.name)(), option };
        let Some(file) = inner.file() else { return Err(conflict("store")) };
        if let Some(option) = Asked::new(&self.object.rt, &self.object.options, self.direct).differs_from(&file.asked) {
            return Err(conflict(option));
        }
        if self.object.options.max_len_bytes > inner.len_max as u64 {
            return Err(conflict("max_len"));
        }
        if writable != inner.is_writable() {
            if inner.is_exclusive() {
                // How its pages leave was decided when it was made.
                return Err(conflict("writable"));
            }
            if writable {
                if inner.huge {
                    return Err(conflict("huge_pages"));
                }
                make_writable(source, &inner, file)?;
            }
        }
        let object = Object { inner, writable };
        follow::follow_appended(&object.inner, source.op).map_err(|error| match error {
            Error::Argument { arg: "max_len", .. } => conflict("max_len"),
            error => error,
        })?;
        Ok(object)
    }
}

/// Has a file that was opened to be read be written, too. Linux: what `VM_MAYWRITE` asks of each open file, but for a cache that
/// has a descriptor of its own.
fn make_writable(source: &Source<'_>, inner: &Arc<ObjectInner>, file: &FileOf) -> Result<()> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if inner.is_writable() {
        return Ok(());
    }
    let fd = acquire(source, file.inode, true)?;
    let opened = if file.asked.direct { DirectFile::direct(fd, true) } else { DirectFile::buffered(fd) };
    let opened = opened.closed_by(descriptors::close);
    descriptors::own(&opened.numbers());
    inner.file_store(|store| store.make_writable(opened));
    inner.allow_writes();
    Ok(())
}

/// Opens the file, or takes a descriptor of it that had to be kept.
fn acquire(source: &Source<'_>, inode: Inode, write: bool) -> Result<i32> {
    // One that is kept was opened by who might: it is no more than what the caller may now.
    (source.permits)(write)?;
    if let Some(fd) = descriptors::take(inode, write) {
        return Ok(fd);
    }
    patiently(|| (source.open)(write)).map_err(|e| io_error(source.op, source.path, e))
}

/// Opens, once more where there are too few descriptors: some that are kept may go by now.
fn patiently(open: impl Fn() -> std::result::Result<i32, Errno>) -> std::result::Result<i32, Errno> {
    open().or_else(|errno| match errno {
        Errno::EMFILE => {
            descriptors::sweep();
            open()
        }
        errno => Err(errno),
    })
}

fn io_error(op: &'static str, path: Option<&Path>, errno: Errno) -> Error {
    if errno == Errno::EMFILE {
        let limit = file::rlimit_nofile();
        let what = "RLIMIT_NOFILE (a file that is open as an object takes a descriptor, two if it is direct)";
        return Error::Limit { op, what, limit, needed: limit.saturating_add(1) };
    }
    Error::Io { op, path: path.map(Into::into), source: std::io::Error::from_raw_os_error(errno.0) }
}
