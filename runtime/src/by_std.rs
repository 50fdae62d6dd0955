//! Files and threads by the standard library, whose system calls do not pass `platform::sys`: a test that has the k-th call
//! of an operation fail has these fail, too.
//!
//! # Context: control plane

use std::fs::{self, File, Metadata, OpenOptions, ReadDir};
use std::io::Result;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

#[cfg(debug_assertions)]
use softfault_platform::sys::inject::{self, ByStd};

/// Returns the error with which a call is to fail, if a test says so.
#[cfg(debug_assertions)]
fn injected(call: ByStd) -> Result<()> {
    inject::by_std(call).map_err(|e| std::io::Error::from_raw_os_error(e.0))
}

/// Has a call be counted, and fail where a test says so; nothing in release builds.
macro_rules! may_fail {
    ($call:ident) => {
        #[cfg(debug_assertions)]
        injected(ByStd::$call)?;
    };
}

pub(crate) fn spawn(thread: Builder, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    may_fail!(StartThread);
    thread.spawn(f)
}

pub(crate) fn open(options: &OpenOptions, path: &Path) -> Result<File> {
    may_fail!(Open);
    options.open(path)
}

pub(crate) fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    may_fail!(Open);
    fs::read(path)
}

pub(crate) fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    may_fail!(Open);
    fs::read_to_string(path)
}

pub(crate) fn read_dir(path: &str) -> Result<ReadDir> {
    may_fail!(Open);
    fs::read_dir(path)
}

pub(crate) fn read_link(path: String) -> Result<PathBuf> {
    may_fail!(ReadLink);
    fs::read_link(path)
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    may_fail!(Unlink);
    fs::remove_file(path)
}

pub(crate) fn metadata(file: &File) -> Result<Metadata> {
    may_fail!(Stat);
    file.metadata()
}

pub(crate) fn set_len(file: &File, len_bytes: u64) -> Result<()> {
    may_fail!(SetLen);
    file.set_len(len_bytes)
}

/// Takes the file's lock (flock(2)).
///
/// # Errors
/// `WouldBlock`: somebody has it.
pub(crate) fn lock(file: &File) -> Result<()> {
    may_fail!(Lock);
    Ok(file.try_lock()?)
}
