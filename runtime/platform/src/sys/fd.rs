//! Descriptors that the program may close behind our back: which file a number names, and numbers out of its way.
//!
//! closefrom(3), close_range(2) and daemonising code close what they do not know, and the next file that the program
//! opens gets the lowest free number: one of ours, if it was low. So our descriptors have high numbers where we choose
//! them, and whoever is about to change a file by number looks first whether the number still names it: a device and an
//! inode say so. Between the look and the call another thread may still close and open; that window, of one system call,
//! stays.
//!
//! # Context: control plane; what only looks a number up or reads: handler

use super::file::Status;
use super::syscall::{Errno, syscall6};
use super::{file, futex, random, thread};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A descriptor, and what it named when it was ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    number: i32,
    dev: u64,
    ino: u64,
    flags: i32,
    /// What lies behind its position, modulo 2^32, as [`Descriptor::mark`] has left it; 0: it is not marked.
    mark: u32,
}

static LOST: AtomicU64 = AtomicU64::new(0);

/// Returns how often a descriptor of ours was found closed, or naming a file of the program's.
///
/// # Context: handler
#[must_use]
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// What may differ between two open descriptions so that writing by one is not writing by the other.
const WRITE_FLAGS: i32 = libc::O_ACCMODE | libc::O_APPEND | libc::O_DIRECT;

impl Descriptor {
    /// No descriptor.
    pub const NONE: Self = Self { number: -1, dev: 0, ino: 0, flags: 0, mark: 0 };

    /// Notes what `number`, which is ours now, names.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn new(number: i32) -> Self {
        let (dev, ino) = identity(number).unwrap_or((0, 0));
        let flags = fcntl(number, libc::F_GETFL, 0).map_or(0, |f| f as i32 & WRITE_FLAGS);
        Self { number, dev, ino, flags, mark: 0 }
    }

    /// Marks the open description, so that [`Descriptor::check`] takes 0.15 us instead of 0.28: nobody else has it, and
    /// nothing uses its position, so that lies where a random number has put it. What finds another one there asks for the
    /// inode, and a file of the program's is taken for it once in 2^31. Where it cannot be marked it is not.
    ///
    /// Not by lseek(2), which is quicker still, and waits for who reads from the file by that description, where it is the
    /// program's: into an arena, say, whose fault asks us.
    ///
    /// The file must be a regular one, as long as it ever gets.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn mark(self) -> Self {
        Self { mark: move_position(self.number).unwrap_or(0), ..self }
    }

    /// Returns the number, whatever it names by now; -1: none.
    ///
    /// # Context: handler
    #[must_use]
    pub fn number(self) -> i32 {
        self.number
    }

    /// Returns the same file under another number.
    ///
    /// # Context: handler
    #[must_use]
    pub fn renumbered(self, number: i32) -> Self {
        Self { number, ..self }
    }

    /// Returns whether there is one.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_some(self) -> bool {
        self.number >= 0
    }

    /// Returns the number if it still names what it did. 0.28 us, or 0.15 of one that is marked.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// `EBADF`: the program has closed it; counted in [`lost`].
    pub fn check(self) -> Result<i32, Errno> {
        if self.mark != 0 && file::unread_bytes(self.number) == Ok(self.mark) {
            return Ok(self.number);
        }
        if names(self.number, (self.dev, self.ino)) { Ok(self.number) } else { Err(Errno::EBADF) }
    }

    /// Returns what the file is now, if the number still names it.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// As [`Descriptor::check`].
    pub fn status(self) -> Result<Status, Errno> {
        match file::status(self.number) {
            Ok(st) if (st.dev, st.ino) == (self.dev, self.ino) => Ok(st),
            _ => {
                note_lost();
                Err(Errno::EBADF)
            }
        }
    }

    /// As [`Descriptor::check`], and that it is open for writing as it was.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// As [`Descriptor::check`].
    pub fn check_writing(self) -> Result<i32, Errno> {
        self.check().and_then(|_| self.check_flags())
    }

    /// Returns the number, which names what it did, if it is open for writing as it was, too: the program may have opened the
    /// same file to append.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// As [`Descriptor::check`].
    pub fn check_flags(self) -> Result<i32, Errno> {
        match fcntl(self.number, libc::F_GETFL, 0) {
            Ok(flags) if flags as i32 & WRITE_FLAGS == self.flags => Ok(self.number),
            _ => {
                note_lost();
                Err(Errno::EBADF)
            }
        }
    }

    /// Closes it, unless the number is the program's by now.
    ///
    /// # Context: control plane
    pub fn close(self) {
        if self.is_some() && self.check().is_ok() {
            file::close(self.number);
        }
    }
}

/// Puts the position of `number`'s description where nobody else's is, and returns what lies behind it, modulo 2^32; 0: it cannot
/// be had. See [`Descriptor::mark`].
///
/// # Context: control plane
pub(super) fn move_position(number: i32) -> Result<u32, Errno> {
    let mut at = [0];
    random::fill(&mut at)?;
    let [at] = at;
    let status = file::status(number)?;
    // 31 bits are random, and the highest is set: of files of the program's that have less than 2 GiB left it never is.
    let unread = (at as u32) | 1 << 31;
    let high = (at >> 32 & 0xf_ffff) << 32;
    // Behind the end, where the kernel lets a position be up to the longest file there can be.
    file::seek(number, status.len_bytes.wrapping_add(high).wrapping_sub(u64::from(unread)) & (u64::MAX >> 1))?;
    Ok(if file::unread_bytes(number)? == unread { unread } else { 0 })
}

/// Returns whether `number` names the file that `is`.
///
/// # Context: handler
#[must_use]
pub fn names(number: i32, is: (u64, u64)) -> bool {
    let ours = identity(number) == Ok(is);
    if !ours {
        note_lost();
    }
    ours
}

/// Counts a descriptor of ours that was found closed, or naming a file of the program's.
pub(super) fn note_lost() {
    LOST.fetch_add(1, Ordering::Relaxed);
}

/// Returns the device and the inode that a number names; see fstat(2).
///
/// # Context: handler
///
/// # Errors
/// `EBADF`.
pub fn identity(number: i32) -> Result<(u64, u64), Errno> {
    file::status(number).map(|st| (st.dev, st.ino))
}

fn fcntl(number: i32, request: i32, arg: i32) -> Result<usize, Errno> {
    // SAFETY: the requests that are made here touch no memory.
    unsafe { syscall6(libc::SYS_fcntl, [number as isize as usize, request as usize, arg as usize, 0, 0, 0]) }
}

/// Programs that have as many files open are rare, and the kernel's table of descriptors, which a fork copies, reaches to
/// the highest.
const HIGH: u64 = 4096;

/// Duplicates a descriptor to a high number, close-on-exec; see fcntl(2), `F_DUPFD_CLOEXEC`.
///
/// # Context: control plane
///
/// # Errors
/// `EBADF`, `EMFILE`.
pub fn dup_high(number: i32) -> Result<i32, Errno> {
    let mut least = (file::rlimit_nofile() / 4 * 3).min(HIGH);
    loop {
        match fcntl(number, libc::F_DUPFD_CLOEXEC, least as i32) {
            // None is free from there on.
            Err(Errno::EMFILE | Errno::EINVAL) if least > 0 => least /= 2,
            r => return r.map(|n| n as i32),
        }
    }
}

/// Moves a descriptor that nobody else has seen to a high number; where none is free it stays.
///
/// Not for files that the program may have locked: any close of one drops the process's locks on it (fcntl(2)).
///
/// # Context: control plane
#[must_use]
pub fn raise(number: i32) -> i32 {
    match dup_high(number) {
        Ok(high) => {
            file::close(number);
            high
        }
        Err(_) => number,
    }
}

const CLOSE_RANGE_UNSHARE: usize = 1 << 1;

fn close_range(first: i32, last: u32, flags: usize) -> Result<(), Errno> {
    // SAFETY: touches no memory; the caller's table is its own, or becomes so.
    unsafe { syscall6(libc::SYS_close_range, [first as usize, last as usize, flags, 0, 0, 0]) }.map(drop)
}

/// Gives the calling thread a descriptor table of its own that holds `numbers` alone, in ascending order: what they name
/// stays open for as long as the thread lives, whatever the program closes. Control plane.
///
/// # Errors
/// `ENOSYS` before Linux 5.9, or what a filter says. The table may be shared as before then, and nothing was closed.
fn keep_alone(numbers: &[i32]) -> Result<(), Errno> {
    let mut first = 0;
    let mut flags = CLOSE_RANGE_UNSHARE;
    for number in numbers {
        if first < *number {
            close_range(first, (number - 1) as u32, flags)?;
            flags = 0;
        }
        first = number + 1;
    }
    close_range(first, u32::MAX, flags)
}

const PIDFD_THREAD: usize = libc::O_EXCL as usize;

/// Takes a descriptor out of the table of the thread `tid` of this process, to a high number; since Linux 6.9.
///
/// # Context: handler
///
/// # Errors
/// `EINVAL` before Linux 6.9; `ESRCH`, `EBADF`, `EMFILE`, or what a filter says.
fn take_from(tid: u32, number: i32) -> Result<i32, Errno> {
    // SAFETY: touches no memory.
    let pidfd = unsafe { syscall6(libc::SYS_pidfd_open, [tid as usize, PIDFD_THREAD, 0, 0, 0, 0]) }?;
    // SAFETY: touches no memory.
    let got = unsafe { syscall6(libc::SYS_pidfd_getfd, [pidfd, number as usize, 0, 0, 0, 0]) };
    file::close(pidfd as i32);
    got.map(|n| raise(n as i32))
}

/// Where numbers are kept that the program may close: the thread whose descriptor table holds them, 0: none.
static KEEPER: AtomicU32 = AtomicU32::new(0);

/// Runs on a thread of its own: keeps `numbers` open until another thread keeps, or [`let_go`]; `ready` is called when they
/// are kept.
///
/// # Context: control plane
///
/// # Errors
/// The kernel's, of close_range(2) and unshare(2): nothing is kept.
pub fn keep(numbers: &[i32], ready: impl FnOnce()) -> Result<(), Errno> {
    keep_alone(numbers)?;
    let me = thread::gettid();
    // Release pairs with `kept`: who finds us finds the table.
    KEEPER.store(me, Ordering::Release);
    futex::wake_word(&KEEPER);
    ready();
    while KEEPER.load(Ordering::Relaxed) == me {
        let _ = futex::wait_word(&KEEPER, me, u64::MAX);
    }
    Ok(())
}

/// Has nothing kept any more: what the program has closed goes when the thread does.
///
/// # Context: control plane
pub fn let_go() {
    // Release pairs with `kept`.
    KEEPER.store(0, Ordering::Release);
    futex::wake_word(&KEEPER);
}

/// Takes what is kept as `number` back, to a high number.
///
/// # Context: handler
///
/// # Errors
/// `ESRCH`: nothing is kept; the kernel's, of pidfd_open(2) and pidfd_getfd(2).
pub fn kept(number: i32) -> Result<i32, Errno> {
    // Acquire pairs with `keep` and `let_go`.
    match KEEPER.load(Ordering::Acquire) {
        0 => Err(Errno::ESRCH),
        tid => take_from(tid, number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mem;

    fn memfd(len_bytes: u64) -> Result<i32, Errno> {
        let fd = mem::memfd_create(c"softfault-test-fd")?;
        file::ftruncate(fd, len_bytes).map(|()| fd)
    }

    fn dup2(from: i32, to: i32) {
        // SAFETY: touches no memory; both numbers are the test's.
        let r = unsafe { syscall6(libc::SYS_dup2, [from as usize, to as usize, 0, 0, 0, 0]) };
        assert_eq!(r, Ok(to as usize));
    }

    /// Each kind of descriptor, named and marked, against a file that has the number now.
    #[test]
    fn a_number_that_names_another_file_is_told_whether_or_not_it_was_marked() -> Result<(), Errno> {
        const LEN: u64 = 1 << 40;
        let ours = Descriptor::new(memfd(LEN)?);
        let marked = ours.mark();
        assert_ne!(marked.mark, 0, "a memfd has a position to mark");
        for is in [ours, marked] {
            assert_eq!(is.check(), Ok(ours.number()));
        }
        // Somebody who was told the number has moved the position: the inode is the same.
        file::seek(ours.number(), 4096)?;
        assert_eq!(marked.check(), Ok(ours.number()), "it is still that file");
        let again = ours.mark();
        assert_ne!(again.mark, marked.mark, "a mark is a random number");
        let other = memfd(LEN)?;
        dup2(other, ours.number());
        for is in [ours, marked, again] {
            assert_eq!(is.check(), Err(Errno::EBADF), "another file of the same length");
        }
        // At its end, as a file that was written is.
        file::seek(other, LEN)?;
        assert_eq!(again.check(), Err(Errno::EBADF));
        file::close(ours.number());
        assert_eq!(again.check(), Err(Errno::EBADF), "closed");
        file::close(other);
        Ok(())
    }
}
