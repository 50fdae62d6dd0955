//! The swap file of a runtime: where anonymous memory goes when the cache has no room.
//!
//! # Context: control plane, but for the deref of a swap file, which stores do in handlers

#![expect(unsafe_code, reason = "promises that an Arc's deref may run in a handler")]

use crate::by_std;
use crate::cache::zswap::{Zpool, ZswapFront};
use crate::error::{Error, Result, system};
use crate::memory;
use crate::short::Short;
use softfault_platform::store::Store;
use softfault_platform::store::direct::DirectFile;
use softfault_platform::store::swap::{SharedSwapFile, SwapStore};
use softfault_platform::store::swapfile::SwapFile;
use softfault_platform::sys::fd;
use std::fs::{File, OpenOptions};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const OP: &str = "RuntimeBuilder::swap";

/// Where to swap, as the builder was told.
#[derive(Clone)]
pub(crate) struct SwapOptions {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) zswap_bytes: u64,
}

impl std::fmt::Debug for SwapOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = Short(self.path.display());
        f.debug_struct("Swap").field("path", &path).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// A runtime's swap file, and what is in front of it.
#[derive(Debug)]
pub(crate) struct Swap {
    file: Arc<SwapFile>,
    zpool: Option<Arc<Zpool>>,
    /// Holds the lock on the file.
    _opened: File,
}

/// A swap file that lives as long as the last store in it.
#[derive(Debug)]
struct Shared(Arc<SwapFile>);

impl Deref for Shared {
    type Target = SwapFile;
    fn deref(&self) -> &SwapFile {
        &self.0
    }
}

// SAFETY: an Arc's deref is a load.
unsafe impl SharedSwapFile for Shared {}

impl Swap {
    /// Opens the file, or makes one without a name in the folder, and sets its length.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Io`], [`Error::System`], [`Error::Limit`].
    pub(crate) fn open(options: &SwapOptions) -> Result<Self> {
        let refuse = |arg, value, why| Err(Error::Argument { op: OP, arg, value, why });
        if options.bytes == 0 && options.zswap_bytes > 0 {
            return refuse(
                "zswap bytes",
                options.zswap_bytes,
                "needs a swap file for what does not fit: call `swap` first",
            );
        }
        if options.bytes < 4096 {
            return refuse("bytes", options.bytes, "less than one page");
        }
        if options.bytes >> 12 > u64::from(u32::MAX) {
            return refuse("bytes", options.bytes, "a swap file has less than 16 TiB");
        }
        memory::check_file_size(OP, "RLIMIT_FSIZE (the swap file)", options.bytes)?;
        let io = |source| Error::Io { op: OP, path: Some(options.path.clone()), source };
        let opened = if options.path.is_dir() { unnamed_in(&options.path) } else { open_alone(&options.path) };
        let opened = opened.map_err(io)?;
        if !by_std::metadata(&opened).map_err(io)?.file_type().is_block_device() {
            // What an earlier process left is of no use: the file is made sparse again, at its length.
            by_std::set_len(&opened, 0).map_err(io)?;
            by_std::set_len(&opened, options.bytes).map_err(io)?;
        }
        let fd = fd::dup_high(opened.as_raw_fd()).map_err(system(OP, "fcntl"))?;
        let file = SwapFile::new(DirectFile::direct(fd, true), options.bytes).map_err(system(OP, "mmap"))?;
        let zpool = (options.zswap_bytes > 0).then(|| Arc::new(Zpool::new(options.zswap_bytes)));
        Ok(Self { file: Arc::new(file), zpool, _opened: opened })
    }

    /// Makes the store of an anonymous object that is never longer than `max_len_bytes`; `true`: it may be called in the
    /// handler.
    ///
    /// # Errors
    /// [`Error::Exhausted`].
    pub(crate) fn store(&self, op: &'static str, max_len_bytes: u64) -> Result<(Box<dyn Store>, bool)> {
        let file = Shared(Arc::clone(&self.file));
        let failed = system(op, "mmap");
        let Some(zpool) = &self.zpool else {
            return Ok((Box::new(SwapStore::new(file, max_len_bytes).map_err(failed)?), true));
        };
        let front = ZswapFront(Arc::clone(zpool));
        Ok((Box::new(SwapStore::with_front(file, front, max_len_bytes).map_err(failed)?), false))
    }

    /// Returns what is in the swap file and what went through it.
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let stat = &self.file.stat;
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (pages, bytes) = self.zpool.as_ref().map_or((0, 0), |z| z.usage());
        vec![
            ("nr_swap_slots", self.file.nr_slots().into()),
            ("nr_swap_slots_used", self.file.nr_used().into()),
            ("pswpin", of(&stat.pswpin)),
            ("pswpout", of(&stat.pswpout)),
            ("swpin_zero", of(&stat.swpin_zero)),
            ("swpout_zero", of(&stat.swpout_zero)),
            ("zswap_stored_pages", pages),
            ("zswap_pool_bytes", bytes),
        ]
    }
}

/// Opens a file that no other runtime swaps to.
fn open_alone(path: &Path) -> std::io::Result<File> {
    let opened =
        by_std::open(OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600), path)?;
    by_std::lock(&opened)?;
    Ok(opened)
}

/// Makes a file and takes its name away: it goes with its last descriptor, however the process ends.
fn unnamed_in(dir: &Path) -> std::io::Result<File> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    loop {
        let path = dir.join(format!("softfault-swap-{pid}-{}", SERIAL.fetch_add(1, Ordering::Relaxed)));
        match by_std::open(OpenOptions::new().read(true).write(true).create_new(true).mode(0o600), &path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
            Ok(opened) => {
                by_std::remove_file(&path)?;
                return Ok(opened);
            }
        }
    }
}
