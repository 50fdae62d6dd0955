//! System calls that fail on purpose: a test has the k-th call of its thread fail, as under a kernel that is short of
//! something, and looks whether what was done before it was taken back.
//!
//! In builds with debug assertions only: in release builds this module is not there, and a call is one instruction.
//! Counted is what can fail, with an error that it can really give; what cannot (`close`, which releases the descriptor
//! whatever it says, `rt_sigprocmask`) is neither counted nor failed.
//!
//! # Context: handler

use super::current::thread_pointer;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use softfault_mm::errno::Errno;

/// Starting a thread: several calls, so no number of the kernel's.
const START_THREAD: libc::c_long = -1;

/// What the standard library does for us: its system calls are not made here, so it is counted where it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByStd {
    /// `std::thread::Builder::spawn`.
    StartThread,
    /// Opening a file, to read all of it or to keep it, or a folder.
    Open,
    /// `File::set_len`.
    SetLen,
    /// `File::try_lock`.
    Lock,
    /// `File::metadata`.
    Stat,
    /// `std::fs::read_link`.
    ReadLink,
    /// `std::fs::remove_file`.
    Unlink,
}

/// Which calls fail, from the k-th on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    /// That one.
    Once,
    /// That one and every later one, until [`disarm`]: the shortage stays, also while what was done is taken back.
    Onward,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected {
    /// Calls that could have failed.
    pub nr_calls: u64,
    /// Number of the system call that failed first; -1: starting a thread; `None`: none was made to fail.
    pub failed: Option<i64>,
}

/// Thread pointer of the thread whose calls are counted; 0: nobody's.
static THREAD: AtomicUsize = AtomicUsize::new(0);
static ONWARD: AtomicBool = AtomicBool::new(false);
static FAILS_AT: AtomicU64 = AtomicU64::new(0);
static NR_CALLS: AtomicU64 = AtomicU64::new(0);
/// Number of the first that failed, plus 2; 0: none.
static FAILED: AtomicI64 = AtomicI64::new(0);

/// Has call number `k` (from 0) of the calling thread fail. One thread of the process at a time.
///
/// # Context: a test
pub fn arm(k: u64, fails: Fails) {
    FAILS_AT.store(k, Ordering::Relaxed);
    NR_CALLS.store(0, Ordering::Relaxed);
    FAILED.store(0, Ordering::Relaxed);
    ONWARD.store(fails == Fails::Onward, Ordering::Relaxed);
    THREAD.store(thread_pointer(), Ordering::Relaxed);
}

/// Lets calls through again, and says what happened.
///
/// # Context: a test
pub fn disarm() -> Injected {
    THREAD.store(0, Ordering::Relaxed);
    let failed = FAILED.load(Ordering::Relaxed);
    Injected { nr_calls: NR_CALLS.load(Ordering::Relaxed), failed: (failed != 0).then(|| failed - 2) }
}

/// MOVEs are not counted.
static FORGETFUL: AtomicBool = AtomicBool::new(false);

/// Has UFFDIO_MOVE, of every thread, count the first page of a run alone, and none of a single page, though it moves all: as
/// a kernel does that has met other work on the pages (`uffd::move_pages`).
///
/// # Context: a test
pub fn forget_moves(yes: bool) {
    FORGETFUL.store(yes, Ordering::Relaxed);
}

/// Returns whether MOVEs are to be told wrong.
#[cfg(feature = "userfaultfd")]
#[inline]
pub(super) fn forgets_moves() -> bool {
    FORGETFUL.load(Ordering::Relaxed)
}

/// Returns the error that a call is to fail with, if it is.
#[inline]
pub(super) fn error_of(nr: libc::c_long, args: &[usize; 6]) -> Option<Errno> {
    if THREAD.load(Ordering::Relaxed) == 0 {
        return None;
    }
    count(nr, args)
}

/// Counts what the standard library is about to do.
///
/// # Context: control plane
///
/// # Errors
/// If it is to fail.
pub fn by_std(call: ByStd) -> Result<(), Errno> {
    let nr = match call {
        ByStd::StartThread => START_THREAD,
        ByStd::Open => libc::SYS_openat,
        ByStd::SetLen => libc::SYS_ftruncate,
        ByStd::Lock => libc::SYS_flock,
        ByStd::Stat => libc::SYS_statx,
        ByStd::ReadLink => libc::SYS_readlink,
        ByStd::Unlink => libc::SYS_unlink,
    };
    error_of(nr, &[0; 6]).map_or(Ok(()), Err)
}

#[cold]
fn count(nr: libc::c_long, args: &[usize; 6]) -> Option<Errno> {
    if THREAD.load(Ordering::Relaxed) != thread_pointer() {
        return None;
    }
    let errno = possible_error(nr, args)?;
    let k = FAILS_AT.load(Ordering::Relaxed);
    let n = NR_CALLS.fetch_add(1, Ordering::Relaxed);
    if n != k && !(n > k && ONWARD.load(Ordering::Relaxed)) {
        return None;
    }
    let _ = FAILED.compare_exchange(0, nr + 2, Ordering::Relaxed, Ordering::Relaxed);
    Some(errno)
}

/// Returns an error that the call can give though its arguments are right.
fn possible_error(nr: libc::c_long, args: &[usize; 6]) -> Option<Errno> {
    let [_, second, third, ..] = *args;
    match nr {
        START_THREAD => Some(Errno::EAGAIN),
        // Each may split a mapping, or need a record or a page table.
        libc::SYS_mmap
        | libc::SYS_munmap
        | libc::SYS_mprotect
        | libc::SYS_mlock
        | libc::SYS_mlock2
        | libc::SYS_munlock
        | libc::SYS_ftruncate => Some(Errno::ENOMEM),
        libc::SYS_madvise => advice_error(i32::try_from(third).unwrap_or(0)),
        libc::SYS_ioctl => ioctl_error(second),
        libc::SYS_userfaultfd | libc::SYS_memfd_create | libc::SYS_socketpair | libc::SYS_openat | libc::SYS_open => {
            Some(Errno::EMFILE)
        }
        libc::SYS_pidfd_open | libc::SYS_pidfd_getfd => Some(Errno::EMFILE),
        // A path and its entries are memory, too.
        libc::SYS_statx | libc::SYS_readlink | libc::SYS_faccessat2 => Some(Errno::ENOMEM),
        libc::SYS_flock => Some(Errno::ENOLCK),
        libc::SYS_fallocate => Some(Errno::ENOSPC),
        libc::SYS_unlink => Some(Errno::EIO),
        libc::SYS_fcntl if second == libc::F_DUPFD_CLOEXEC as usize => Some(Errno::EMFILE),
        // By a filter of the program's (seccomp).
        libc::SYS_rt_sigaction | libc::SYS_process_madvise => Some(Errno::EPERM),
        _ => None,
    }
}

fn advice_error(advice: i32) -> Option<Errno> {
    match advice {
        // madvise(2) says EAGAIN where a mapping could not be split.
        libc::MADV_DONTFORK | libc::MADV_DONTDUMP | libc::MADV_WIPEONFORK | libc::MADV_NOHUGEPAGE => {
            Some(Errno::EAGAIN)
        }
        libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE | libc::MADV_COLLAPSE => Some(Errno::ENOMEM),
        _ => None,
    }
}

/// The requests of userfaultfd, by type and number, and the scan of page tables.
fn ioctl_error(request: usize) -> Option<Errno> {
    match request & 0xffff {
        // REGISTER and UNREGISTER split mappings; CONTINUE, COPY and PAGEMAP_SCAN need page tables.
        0xAA00 | 0xAA01 | 0xAA03 | 0xAA07 | 0x6610 => Some(Errno::ENOMEM),
        // The memory map is changing.
        0xAA06 => Some(Errno::EAGAIN),
        _ => None,
    }
}
