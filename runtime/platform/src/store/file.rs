//! A file as a store: straight into the cache page and out of it.
//!
//! Reads are sendfile(2) or pread(2), writes pwrite(2) from the cache's own pages, or both past the kernel's page cache
//! ([`FileStore::direct`]).
//!
//! # Context: a filler; a handler, if the store was said to be handler-safe. Opening: control plane

use super::direct::DirectFile;
use super::{HandlerStore, PageMut, PageRef, Store, StoreError};
use crate::sys::file::FileType;
use crate::sys::{Errno, file, mem, thread};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// An object that is a range of an open file. Owns its descriptors.
///
/// The file is not ours alone: other processes write it, append to it and cut it. So its end is moved when the program
/// moves the object's, and never because a flush failed; and a write that would make a file longer again which somebody
/// has cut is [`StoreError::Short`] instead:
/// ```text
/// another                              write-back
/// truncates: bytes 8192.. are gone
///                                      fstat: the file ends before the page does
///                                      (without: the page is written, and 8192.. up to it are zeros)
/// ```
/// Between the look and the write somebody may still cut it: no call writes on the condition that a file is long enough.
#[derive(Debug)]
pub struct FileStore {
    first: DirectFile,
    second: Later,
    base_bytes: u64,
    /// Where the file is to end, as the program has said it or found it; in bytes of the file.
    end_bytes: AtomicU64,
    is_device: bool,
    errors: Errors,
}

impl FileStore {
    /// Takes over `fd`; the object's byte 0 is the file's byte `base_bytes`.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn new(fd: i32, base_bytes: u64) -> Self {
        Self::over(DirectFile::buffered(fd), base_bytes)
    }

    fn over(file: DirectFile, base_bytes: u64) -> Self {
        let is_device = file.fd().status().is_ok_and(|st| st.file_type() == FileType::BlockDevice);
        let second = Later::default();
        let store = Self {
            first: file,
            second,
            base_bytes,
            end_bytes: AtomicU64::new(0),
            is_device,
            errors: Errors::default(),
        };
        store.end_bytes.store(store.file_end().unwrap_or(0), Ordering::Relaxed);
        store
    }

    /// As [`FileStore::new`], with whole pages read (and, if `write`, written) past the kernel's page cache where the file
    /// system can; `base_bytes` that is no multiple of the page size makes everything buffered.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn direct(fd: i32, base_bytes: u64, write: bool) -> Self {
        Self::over(DirectFile::direct(fd, write), base_bytes)
    }

    /// Returns whether whole pages go past the kernel's cache: not, once the file system has refused it.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.file().is_direct()
    }

    /// Returns whether it is a block device, whose end nobody moves.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// Has `close` called with each descriptor in the end, instead of close(2).
    ///
    /// # Context: control plane
    #[must_use]
    pub fn closed_by(mut self, close: fn(i32)) -> Self {
        self.first = self.first.closed_by(close);
        self
    }

    /// Takes over another open file of the same inode, which permits writing, where the one that there is permits to read:
    /// everything goes through it from now on. At most once; what was there before stays open, since somebody may be about to
    /// use it.
    ///
    /// # Context: control plane
    pub fn make_writable(&self, file: DirectFile) {
        self.second.set(file);
    }

    /// Returns the numbers of its descriptors; -1: none.
    ///
    /// # Context: handler
    #[must_use]
    pub fn numbers(&self) -> [i32; 4] {
        let [a, b] = self.first.numbers();
        let [c, d] = self.second.get().map_or([-1; 2], DirectFile::numbers);
        [a, b, c, d]
    }

    fn file(&self) -> &DirectFile {
        self.second.get().unwrap_or(&self.first)
    }

    /// Returns where the file ends now; `EBADF`: the number names another one by now.
    fn file_end(&self) -> Result<u64, Errno> {
        let status = self.file().fd().status()?;
        if self.is_device {
            return file::device_len_bytes(self.file().fd().number());
        }
        Ok(status.len_bytes)
    }

    /// Returns how many bytes of the object the file has now, whoever moved its end.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// The kernel's.
    pub fn len_bytes(&self) -> Result<u64, Errno> {
        self.file_end().map(|end| end.saturating_sub(self.base_bytes))
    }

    /// Takes it that the program knows that the file ends there, as it was found.
    ///
    /// # Context: control plane
    pub fn adopt_len(&self, len_bytes: u64) {
        self.end_bytes.store(self.base_bytes.saturating_add(len_bytes), Ordering::Relaxed);
    }

    /// Refuses a write that would make the file longer: `set_len` does that, and somebody else has cut it since.
    fn check_end(&self, end_bytes: u64) -> Result<(), StoreError> {
        let is_cut = self.file_end().map_err(StoreError::Io)? < end_bytes;
        if is_cut { Err(StoreError::Short) } else { Ok(()) }
    }

    /// fdatasync(2) of our file. Of another one, whose number it is by now, it says nothing about ours.
    fn fdatasync(&self) -> Result<(), Errno> {
        let synced = file::fdatasync(self.file().fd().number());
        self.file().fd().check()?;
        synced
    }

    /// Returns where the object's byte is in the file.
    fn position(&self, pos_bytes: u64) -> Result<u64, StoreError> {
        self.base_bytes.checked_add(pos_bytes).ok_or(StoreError::Io(Errno::EFBIG))
    }
}

/// A file that comes later, once; as `std::sync::OnceLock`, which there is none of here.
///
/// ```text
/// EMPTY --set(): CAS--> SETTING --Release--> SET      get(): Acquire, and SET
/// ```
#[derive(Debug, Default)]
struct Later {
    state: AtomicU32,
    file: UnsafeCell<Option<DirectFile>>,
}

impl Later {
    const SETTING: u32 = 1;
    const SET: u32 = 2;

    fn get(&self) -> Option<&DirectFile> {
        // Acquire pairs with `Later::set`: the file is there.
        if self.state.load(Ordering::Acquire) != Self::SET {
            return None;
        }
        // SAFETY: SET is never left, and nobody changes the cell from then on.
        unsafe { &*self.file.get() }.as_ref()
    }

    /// One that is there already stays; the other is closed.
    fn set(&self, file: DirectFile) {
        if self.state.compare_exchange(0, Self::SETTING, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            // SAFETY: we alone have left EMPTY, and nobody looks before SET.
            unsafe { *self.file.get() = Some(file) };
            // Release pairs with `Later::get`.
            self.state.store(Self::SET, Ordering::Release);
        }
    }
}

// SAFETY: the cell is written once, before SET is published, and read after it.
unsafe impl Sync for Later {}

/// An error of a flush is told to one caller of fdatasync(2), for all bytes. Were that `dsync`, whose caller has nothing to
/// do with them, the flush that is to tell it would find nothing.
///
/// ```text
/// flush                                dsync
///                                      counts itself, fdatasync: EIO
/// fdatasync: 0
///                                      failed; counts itself out
/// turns the epoch, waits for those of the old one, and finds it
/// ```
#[derive(Debug, Default)]
struct Errors {
    failed: AtomicBool,
    /// Its parity says where a `dsync` counts itself: a flush waits for those that began before it, and no others.
    epoch: AtomicU32,
    syncing: [AtomicU32; 2],
}

impl Errors {
    fn dsync(&self, sync: impl FnOnce() -> Result<(), Errno>) -> Result<(), StoreError> {
        // SeqCst pairs with `Errors::flush`: either we see its epoch, or it sees our count, and then our failure.
        let count = loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let [even, odd] = &self.syncing;
            let count = if epoch & 1 == 0 { even } else { odd };
            count.fetch_add(1, Ordering::SeqCst);
            if self.epoch.load(Ordering::SeqCst) == epoch {
                break count;
            }
            count.fetch_sub(1, Ordering::SeqCst);
        };
        let r = sync();
        if r.is_err() {
            self.failed.store(true, Ordering::SeqCst);
        }
        count.fetch_sub(1, Ordering::SeqCst);
        r.map_err(StoreError::Io)
    }

    /// One at a time.
    fn flush(&self, sync: impl FnOnce() -> Result<(), Errno>) -> Result<(), StoreError> {
        let r = sync();
        let [even, odd] = &self.syncing;
        // SeqCst pairs with `Errors::dsync`: what it counted in the old epoch is waited for, and its failure is seen.
        let old = if self.epoch.fetch_add(1, Ordering::SeqCst) & 1 == 0 { even } else { odd };
        while old.load(Ordering::SeqCst) != 0 {
            thread::sched_yield();
        }
        let failed = self.failed.swap(false, Ordering::SeqCst);
        r.map_err(StoreError::Io)?;
        if failed { Err(StoreError::Io(Errno::EIO)) } else { Ok(()) }
    }
}

/// Says that the file system cannot, where it cannot.
fn error_of(e: Errno) -> StoreError {
    if e == Errno::EOPNOTSUPP { StoreError::Unsupported } else { StoreError::Io(e) }
}

impl Store for FileStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        self.file().read(self.position(pos_bytes)?, page)
    }

    /// [`StoreError::Short`]: the file was cut by somebody else, and would be made longer again.
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        let at = self.position(pos_bytes)?;
        self.check_end(at.saturating_add(pages.len_bytes() as u64))?;
        // Which has looked what the number names.
        self.file().write_known(at, pages)
    }

    /// Allocates the blocks, then makes that durable; [`StoreError::Unsupported`] where the file system cannot allocate
    /// ahead. The file does not grow by it: its length is the object's.
    fn dsync(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        if len_bytes == 0 {
            return Ok(());
        }
        if self.is_device {
            // Its blocks are there.
            return Ok(());
        }
        let fd = self.file().fd().check_writing().map_err(StoreError::Io)?;
        file::allocate_blocks(fd, self.position(pos_bytes)?, len_bytes).map_err(error_of)?;
        self.errors.dsync(|| self.fdatasync())
    }

    fn uses_descriptors(&self) -> bool {
        true
    }

    fn write_blocks(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.errors.flush(|| self.fdatasync())
    }

    fn punch(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        let at = self.position(pos_bytes)?;
        if len_bytes == 0 {
            return Ok(());
        }
        let fd = self.file().fd().check_writing().map_err(StoreError::Io)?;
        loop {
            // SAFETY: bytes of a file, of which the program maps none through us; the object gives them up.
            match unsafe { mem::punch_hole(fd, at, len_bytes) } {
                Err(Errno::EINTR) => {}
                r => return r.map_err(error_of),
            }
        }
    }

    /// What is said again, after a flush that failed, changes nothing: the kernel's inode has not forgotten it, and what
    /// lies behind it by now is somebody else's.
    fn set_len(&self, len_bytes: u64) -> Result<(), StoreError> {
        let end = self.position(len_bytes)?;
        if self.end_bytes.load(Ordering::Relaxed) == end {
            return Ok(());
        }
        if self.is_device {
            return Err(StoreError::Unsupported);
        }
        // ftruncate(2) past the limit sends SIGXFSZ, which ends the process.
        if file::rlimit_fsize() < end {
            return Err(StoreError::Io(Errno::EFBIG));
        }
        self.file().fd().check_writing().and_then(|fd| file::ftruncate(fd, end)).map_err(StoreError::Io)?;
        self.end_bytes.store(end, Ordering::Relaxed);
        Ok(())
    }
}

// SAFETY: raw system calls alone (sendfile, lseek, fstat, pread, pwrite, getrlimit, fallocate, fdatasync, ftruncate); they may
// sleep for the disk, as a kernel fault on a file does.
unsafe impl HandlerStore for FileStore {}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const OK: Result<(), StoreError> = Ok(());
    const ERROR: Result<(), StoreError> = Err(StoreError::Io(Errno::EIO));

    #[test]
    fn an_error_that_dsync_was_told_is_told_to_the_next_flush() -> Result<(), Errno> {
        let store = FileStore::new(mem::memfd_create(c"softfault-test-file")?, 0);
        let errors = &store.errors;
        assert_eq!(errors.dsync(|| Err(Errno::EIO)), ERROR);
        assert_eq!(errors.dsync(|| Ok(())), OK, "who stores elsewhere is not told again");
        assert_eq!(store.flush(), ERROR, "the kernel has said it, to another");
        assert_eq!(store.flush(), OK);
        assert_eq!(errors.flush(|| errors.dsync(|| Err(Errno::EIO)).map_or(Ok(()), Ok)), ERROR, "meanwhile");
        assert_eq!(store.flush(), OK);
        Ok(())
    }

    #[test]
    fn a_flush_waits_for_who_may_have_been_told_in_its_stead() {
        let (errors, told, flushed) = (Errors::default(), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|s| {
            s.spawn(|| {
                let r = errors.dsync(|| {
                    told.store(true, Ordering::SeqCst);
                    while !flushed.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    Err(Errno::EIO)
                });
                assert_eq!(r, ERROR);
            });
            while !told.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let flush = || {
                flushed.store(true, Ordering::SeqCst);
                Ok(())
            };
            assert_eq!(errors.flush(flush), ERROR);
        });
        assert_eq!(errors.flush(|| Ok(())), OK);
    }
}
