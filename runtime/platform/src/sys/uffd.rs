//! userfaultfd(2) and its ioctls, with the results that matter kept apart.
//!
//! `reference`: ioctl_userfaultfd(2), `include/uapi/linux/userfaultfd.h`. Two traps are settled here once: the *out*
//! field of the fill ioctls holds a byte count **or** a negative error number and is meaningful only in some cases
//! (casting it without a look loses both), and `EAGAIN` with a positive count means *partly done*, not *try again*.
//!
//! # Context: handler; opening and registering: control plane

use super::fd::{self, Descriptor};
use super::file;
use super::syscall::{Errno, syscall6};
use core::sync::atomic::{AtomicI32, Ordering};
use softfault_mm::page::PAGE_SIZE;

/// Features and bits of the interface; values are the kernel's.
#[expect(missing_docs, reason = "the names are the kernel's; userfaultfd(2) documents each")]
pub mod bits {
    pub const UFFD_API: u64 = 0xAA;
    pub const USER_MODE_ONLY: usize = 1;
    pub const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    pub const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
    pub const FEATURE_SIGBUS: u64 = 1 << 7;
    pub const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
    pub const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    pub const FEATURE_POISON: u64 = 1 << 14;
    pub const FEATURE_WP_ASYNC: u64 = 1 << 15;
    pub const FEATURE_MOVE: u64 = 1 << 16;
    pub const REGISTER_MISSING: u64 = 1;
    pub const REGISTER_WP: u64 = 2;
    pub const REGISTER_MINOR: u64 = 4;
    pub const CONTINUE_MODE_WP: u64 = 2;
    pub const MODE_DONTWAKE: u64 = 1;
    pub const WRITEPROTECT_MODE_WP: u64 = 1;
    pub const EVENT_PAGEFAULT: u8 = 0x12;
    pub const PAGEFAULT_FLAG_WRITE: u64 = 1;
    pub const PAGEFAULT_FLAG_WP: u64 = 2;
    pub const PAGEFAULT_FLAG_MINOR: u64 = 4;
}
use bits::{MODE_DONTWAKE, UFFD_API};

const fn iowr(nr: usize, size: usize) -> usize {
    (3 << 30) | (size << 16) | (0xAA << 8) | nr
}
const fn ior(nr: usize, size: usize) -> usize {
    (2 << 30) | (size << 16) | (0xAA << 8) | nr
}

const UFFDIO_API: usize = iowr(0x3F, 24);
const UFFDIO_REGISTER: usize = iowr(0x00, 32);
const UFFDIO_UNREGISTER: usize = ior(0x01, 16);
const UFFDIO_WAKE: usize = ior(0x02, 16);
const UFFDIO_COPY: usize = iowr(0x03, 40);
const UFFDIO_MOVE: usize = iowr(0x05, 40);
const UFFDIO_WRITEPROTECT: usize = iowr(0x06, 24);
const UFFDIO_CONTINUE: usize = iowr(0x07, 32);
const UFFDIO_POISON: usize = iowr(0x08, 32);

/// What a fill ioctl (CONTINUE, COPY, MOVE, POISON) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The whole range.
    All,
    /// The first `n` bytes; the next page has an obstacle that the next call will name.
    Partial(usize),
    /// Nothing: the memory map is changing or an event is unread; ask again.
    Again,
    /// Nothing: the first page is already mapped. Nobody was woken.
    Exists,
    /// Nothing: no registered mapping covers the range.
    Gone,
    /// Nothing, for this reason.
    Err(Errno),
}

/// A userfaultfd context; closes its descriptor on drop.
#[derive(Debug)]
pub struct Uffd {
    /// The number: another one after the program has closed it and it was taken back.
    fd: AtomicI32,
    /// What it names.
    is: Descriptor,
    /// Its number in the table of the thread that keeps it, -1: none does.
    kept_as: AtomicI32,
    features: u64,
}

/// One page-fault message.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageFaultMsg {
    /// `UFFD_EVENT_*`.
    pub event: u8,
    /// `UFFD_PAGEFAULT_FLAG_*`.
    pub flags: u64,
    /// Faulting address (page-aligned unless `EXACT_ADDRESS`).
    pub address: usize,
}

impl Uffd {
    /// Opens a context with exactly `features`.
    ///
    /// `open_flags` is 0 or [`bits::USER_MODE_ONLY`]; the descriptor is close-on-exec and non-blocking.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `EPERM` (not allowed here), `ENOSYS` (no such system call), `EINVAL` (a feature is missing).
    pub fn open(open_flags: usize, features: u64) -> Result<Self, Errno> {
        let flags = open_flags | libc::O_CLOEXEC as usize | libc::O_NONBLOCK as usize;
        // SAFETY: touches no memory.
        let fd = unsafe { syscall6(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]) }?;
        let fd = fd::raise(i32::try_from(fd).map_err(|_| Errno::EBADF)?);
        let (kept_as, is) = (AtomicI32::new(-1), Descriptor::new(fd));
        let mut uffd = Self { fd: AtomicI32::new(fd), is, kept_as, features: 0 };
        let mut arg = [UFFD_API, features, 0];
        uffd.ioctl(UFFDIO_API, &mut arg)?;
        uffd.features = arg[1];
        Ok(uffd)
    }

    /// Returns every feature the running kernel supports, or why a context cannot be had.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// As [`Uffd::open`].
    pub fn probe(open_flags: usize) -> Result<u64, Errno> {
        Self::open(open_flags, 0).map(|u| u.features)
    }

    /// Returns the descriptor, still owned by `self`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.fd.load(Ordering::Relaxed)
    }

    /// Notes that a thread keeps the descriptor under its present number, see [`fd::keep`].
    ///
    /// # Context: control plane
    pub fn note_kept(&self) {
        self.kept_as.store(self.fd(), Ordering::Relaxed);
    }

    #[inline(always)]
    fn ioctl<const N: usize>(&self, request: usize, arg: &mut [u64; N]) -> Result<(), Errno> {
        match self.ioctl_once(request, arg) {
            // What another file says to such a request, or no file.
            Err(e @ (Errno::EBADF | Errno::ENOTTY | Errno::EINVAL)) => self.ioctl_again(request, arg, e),
            r => r,
        }
    }

    #[inline(always)]
    fn ioctl_once<const N: usize>(&self, request: usize, arg: &mut [u64; N]) -> Result<(), Errno> {
        let args = [self.fd() as usize, request, arg.as_mut_ptr() as usize, 0, 0, 0];
        // SAFETY: every request above encodes the size of its argument, which is the array's; the array is
        // exclusively borrowed. What the ioctl does to page tables is the contract of the public methods.
        unsafe { syscall6(libc::SYS_ioctl, args) }.map(drop)
    }

    /// Asks once more, if the program had closed the descriptor and it could be taken back. What was not a userfaultfd has
    /// left the argument alone.
    #[cold]
    #[inline(never)]
    fn ioctl_again<const N: usize>(&self, request: usize, arg: &mut [u64; N], e: Errno) -> Result<(), Errno> {
        if self.is_ours() {
            return Err(e);
        }
        self.take_back().and_then(|()| self.ioctl_once(request, arg))
    }

    /// Returns whether the number names the context: another thread may just have taken it back.
    fn is_ours(&self) -> bool {
        self.is.renumbered(self.fd()).check().is_ok()
    }

    /// Takes the context back from the thread that keeps it, after the program has closed its number. No page has lost its
    /// registration meanwhile.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// `EBADF` where nobody keeps it, or the kernel cannot give it (before Linux 6.9; a filter). `EMFILE`, `ENFILE`, `ENOMEM`:
    /// not now.
    #[cold]
    pub fn take_back(&self) -> Result<(), Errno> {
        let seen = self.fd.load(Ordering::Relaxed);
        if self.is.renumbered(seen).check().is_ok() {
            return Ok(());
        }
        let new = fd::kept(self.kept_as.load(Ordering::Relaxed)).map_err(|e| match e {
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => e,
            _ => Errno::EBADF,
        })?;
        self.is.renumbered(new).check()?;
        // Another thread may have been first: both numbers name the context, and one of them is enough.
        if self.fd.compare_exchange(seen, new, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            file::close(new);
        }
        Ok(())
    }

    /// Registers a range; `mode` is `REGISTER_*` bits.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// `EBUSY` (another context), `EINVAL`, `ENOMEM` (a split would pass `vm.max_map_count`), `EPERM`.
    pub fn register(&self, addr: usize, len_bytes: usize, mode: u64) -> Result<(), Errno> {
        self.ioctl(UFFDIO_REGISTER, &mut [addr as u64, len_bytes as u64, mode, 0])
    }

    /// Unregisters a range. Waiters stay asleep on some kernels: follow with [`Uffd::wake`].
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// As [`Uffd::register`].
    pub fn unregister(&self, addr: usize, len_bytes: usize) -> Result<(), Errno> {
        self.ioctl(UFFDIO_UNREGISTER, &mut [addr as u64, len_bytes as u64])
    }

    /// Wakes everyone who waits for a fault in the range.
    ///
    /// # Context: handler
    pub fn wake(&self, addr: usize, len_bytes: usize) {
        // A range that is no longer there has no waiters: nothing to do with the error.
        let _ = self.ioctl(UFFDIO_WAKE, &mut [addr as u64, len_bytes as u64]);
    }

    /// Maps pages that are in the page cache; see UFFDIO_CONTINUE(2const).
    ///
    /// `mode` may hold `CONTINUE_MODE_WP` and `MODE_DONTWAKE`.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn cont(&self, addr: usize, len_bytes: usize, mode: u64) -> Filled {
        let mut arg = [addr as u64, len_bytes as u64, mode, 0];
        let r = self.ioctl(UFFDIO_CONTINUE, &mut arg);
        filled(r, arg[3])
    }

    /// Copies `len_bytes` bytes from `src` into fresh pages at `dst`; see UFFDIO_COPY(2const).
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn copy(&self, dst: usize, src: usize, len_bytes: usize, mode: u64) -> Filled {
        let mut arg = [dst as u64, src as u64, len_bytes as u64, mode, 0];
        let r = self.ioctl(UFFDIO_COPY, &mut arg);
        filled(r, arg[4])
    }

    /// Moves the pages at `src` to `dst`, which has none; see UFFDIO_MOVE(2const). Nothing is copied or allocated.
    ///
    /// Both ranges are private anonymous memory, open to loads and stores, and registered here. The page's protection and
    /// write-protection become `dst`'s: a protected page arrives unprotected. `Gone`: the first page is not at `src`.
    /// `Exists`: it is, and another one at `dst`. `EBUSY`: the kernel holds it pinned, or shares it.
    ///
    /// # Context: handler
    ///
    /// # Safety
    /// Nobody relies on the bytes at `src`, and nobody borrows those at `dst`. Nobody else puts pages there, or takes them.
    #[inline]
    #[must_use]
    pub unsafe fn move_pages(&self, dst: usize, src: usize, len_bytes: usize, mode: u64) -> Filled {
        let mut arg = [dst as u64, src as u64, len_bytes as u64, mode, 0];
        let r = self.ioctl(UFFDIO_MOVE, &mut arg);
        let told = filled(r, arg[4]);
        #[cfg(debug_assertions)]
        let told = if super::inject::forgets_moves() { forget_moved(told, len_bytes) } else { told };
        if told == Filled::Exists { self.moved_or_exists(src) } else { told }
    }

    /// Says what `EEXIST` of a MOVE means: that a page is in the way, or that the page has been moved there.
    ///
    /// The kernel moves pages that it does not count. Inside the ioctl it makes a step again that has met a page under
    /// migration, or one that reclaim has just taken out or brought in (`EAGAIN`); since it takes several pages in one step
    /// (Linux 6.18; found there, and in the source of later versions) it forgets that error only where the next step fails
    /// otherwise, so that it does not count the step that succeeds, and makes it once more. That finds the pages that it
    /// has just put there, and `EEXIST` is what it says:
    /// ```text
    /// MOVE of pages 0..4                    another process: MADV_PAGEOUT
    /// 0 moved, counted
    /// 1: EAGAIN                             takes 1 out
    /// 1 moved, 2 and 3 with it, not counted
    /// 1: EEXIST                             the ioctl: 1 page was moved; asked for the rest: EEXIST
    /// ```
    /// Who took it at its word would drop what is "in the way". What was moved is not at `src` any more, and nobody else
    /// takes pages from there; so the page is looked for there.
    #[cold]
    #[inline(never)]
    fn moved_or_exists(&self, src: usize) -> Filled {
        match self.is_there(src) {
            Ok(true) => Filled::Exists,
            // The next ones may have been moved with it: who goes on there comes here again.
            Ok(false) => Filled::Partial(PAGE_SIZE),
            Err(Errno::EAGAIN) => Filled::Again,
            Err(e) => Filled::Err(e),
        }
    }

    /// Returns whether anything lies at `addr` of a registered range: a page, in memory, swapped out, or being migrated.
    ///
    /// Asked by a MOVE of the page onto itself, which changes nothing: the kernel looks at the destination first, and finds
    /// it taken (`EEXIST`), and then at the source, and finds it empty (`ENOENT`). Wherever pages can be moved this can be
    /// asked, also without /proc.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// `EAGAIN`, `EINVAL` where nothing could be moved from either.
    fn is_there(&self, addr: usize) -> Result<bool, Errno> {
        let mut arg = [addr as u64, addr as u64, PAGE_SIZE as u64, MODE_DONTWAKE, 0];
        match self.ioctl(UFFDIO_MOVE, &mut arg) {
            Err(Errno::EEXIST) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(e) => Err(e),
            Ok(()) => Err(Errno::EINVAL),
        }
    }

    /// Plants poison markers: accesses get SIGBUS, system calls `EFAULT`; see UFFDIO_POISON(2const).
    ///
    /// # Context: handler
    #[must_use]
    pub fn poison(&self, addr: usize, len_bytes: usize) -> Filled {
        let mut arg = [addr as u64, len_bytes as u64, 0, 0];
        let r = self.ioctl(UFFDIO_POISON, &mut arg);
        filled(r, arg[3])
    }

    /// Write-protects a range (`protect`), or lifts the protection and wakes.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// `ENOENT` when part of the range is not registered for write protection, `EAGAIN`.
    pub fn writeprotect(&self, addr: usize, len_bytes: usize, protect: bool) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WRITEPROTECT, &mut [addr as u64, len_bytes as u64, u64::from(protect)])
    }

    /// Reads up to `out.len()` messages; returns how many. None are ready: 0.
    ///
    /// # Context: the monitor thread
    ///
    /// # Errors
    /// The kernel's, except `EAGAIN`; those of [`Uffd::take_back`].
    pub fn read(&self, out: &mut [PageFaultMsg; 16]) -> Result<usize, Errno> {
        let mut raw = [0u8; 16 * 32];
        if !self.is_ours() {
            // To read would take bytes from whatever the program has there.
            return self.take_back().map(|()| 0);
        }
        let n = match file::read(self.fd(), &mut raw) {
            // EINTR: a signal came while there was nothing to read; the caller polls again.
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            r => r?,
        };
        let word = |m: &[u8], at: usize| -> u64 {
            m.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
        };
        let mut count = 0;
        for (m, o) in raw.get(..n).unwrap_or(&[]).chunks_exact(32).zip(out.iter_mut()) {
            *o = PageFaultMsg {
                event: m.first().copied().unwrap_or(0),
                flags: word(m, 8),
                address: word(m, 16) as usize,
            };
            count += 1;
        }
        Ok(count)
    }
}

impl Drop for Uffd {
    fn drop(&mut self) {
        self.is.renumbered(self.fd()).close();
    }
}

/// Returns what a kernel that does not count what it moves says of a MOVE that said `told`.
#[cfg(debug_assertions)]
#[cold]
fn forget_moved(told: Filled, len_bytes: usize) -> Filled {
    match told {
        Filled::All if len_bytes > PAGE_SIZE => Filled::Partial(PAGE_SIZE),
        Filled::All => Filled::Exists,
        _ => told,
    }
}

/// Judges a fill ioctl by its error number and, only where it is defined, its out field.
#[inline]
fn filled(r: Result<(), Errno>, out: u64) -> Filled {
    match r {
        Ok(()) => Filled::All,
        Err(Errno::EAGAIN) => match usize::try_from(out.cast_signed()) {
            Ok(n) if n > 0 => Filled::Partial(n),
            _ => Filled::Again,
        },
        Err(Errno::EEXIST) => Filled::Exists,
        Err(Errno::ENOENT | Errno::ESRCH) => Filled::Gone,
        Err(e) => Filled::Err(e),
    }
}

/// `MODE_DONTWAKE` where nobody can be asleep: contexts with the SIGBUS feature have no waiters.
pub const DONTWAKE: u64 = MODE_DONTWAKE;
