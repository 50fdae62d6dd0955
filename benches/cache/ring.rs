//! An io_uring with the three calls that reading files needs, and no more.
//!
//! Source: io_uring(7), io_uring_setup(2), io_uring_enter(2), `include/uapi/linux/io_uring.h`.

use softfault_benches::{Context, Error, Result};
use softfault_platform::sys::{Errno, file, mem, syscall::syscall6};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

const SYS_IO_URING_SETUP: i64 = 425;
const SYS_IO_URING_ENTER: i64 = 426;

const IORING_OFF_SQ_RING: u64 = 0;
const IORING_OFF_SQES: u64 = 0x1000_0000;
/// One thread submits, and completions are worked off where it waits: what a thread of its own wants (Linux 6.1).
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const ENTER_GETEVENTS: usize = 1;
const OP_READ: u64 = 22;

const SQE_BYTES: usize = 64;
const CQE_BYTES: usize = 16;

/// `struct io_uring_params` by words: ten of its own, then ten for each ring.
type Params = [u32; 30];
const FLAGS: usize = 2;
const SQ: usize = 10;
const CQ: usize = 20;
/// Words of `struct io_sqring_offsets` and `io_cqring_offsets`.
const TAIL: usize = 1;
const MASK: usize = 2;
const SQ_ARRAY: usize = 6;
const CQES: usize = 5;

/// One read of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) fd: i32,
    pub(crate) dst: usize,
    pub(crate) len_bytes: usize,
    pub(crate) pos_bytes: u64,
    /// What its completion is known by.
    pub(crate) tag: u64,
}

/// A ring. The thread that made it is the only one that may use it.
#[derive(Debug)]
pub(crate) struct Ring {
    fd: i32,
    params: Params,
    ring: Shared,
    sqes: Shared,
    /// What was put into the queue and not handed to the kernel yet.
    unsubmitted: Cell<u32>,
    in_flight: Cell<u32>,
    not_send: PhantomData<*const ()>,
}

impl Ring {
    /// Makes a ring that holds `entries` reads in flight.
    ///
    /// # Errors
    /// [`Error::Absent`] where there is none: an old kernel, a sandbox, `kernel.io_uring_disabled`.
    pub(crate) fn new(entries: u32) -> Result<Self> {
        let mut params: Params = [0; 30];
        params[FLAGS] = SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN;
        let args = [entries as usize, params.as_mut_ptr() as usize, 0, 0, 0, 0];
        // SAFETY: `params` is one `struct io_uring_params`, 120 bytes, exclusively borrowed.
        let fd = unsafe { syscall6(SYS_IO_URING_SETUP, args) }
            .map_err(|errno| Error::Absent(format!("no io_uring here: {errno}")))?;
        let fd = i32::try_from(fd).unwrap_or(i32::MAX);
        let of = |at: usize| params[at] as usize;
        // A kernel that knows the flags has both queues in one mapping.
        let sq_bytes = of(SQ + SQ_ARRAY) + of(0) * size_of::<u32>();
        let ring_bytes = sq_bytes.max(of(CQ + CQES) + of(1) * CQE_BYTES);
        let shared = Shared::map(fd, IORING_OFF_SQ_RING, ring_bytes)
            .and_then(|ring| Ok((ring, Shared::map(fd, IORING_OFF_SQES, of(0) * SQE_BYTES)?)));
        let (ring, sqes) = shared.inspect_err(|_| file::close(fd))?;
        let (unsubmitted, in_flight) = (Cell::new(0), Cell::new(0));
        let this = Self { fd, params, ring, sqes, unsubmitted, in_flight, not_send: PhantomData };
        // Each place of the queue has its own entry, for good.
        for i in 0..params[0] {
            this.ring.word(params[SQ + SQ_ARRAY] as usize + i as usize * size_of::<u32>())?.store(i, Ordering::Relaxed);
        }
        Ok(this)
    }

    /// Queues a read; [`Ring::enter`] hands it to the kernel.
    ///
    /// # Errors
    /// [`Error::Wrong`] when as many are in flight as there are entries.
    ///
    /// # Safety
    /// The destination is writable, and nobody else's until the read is completed.
    pub(crate) unsafe fn push(&self, read: &Read) -> Result<()> {
        if self.in_flight.get() == self.params[0] {
            return Err(Error::Wrong("more reads than the ring has entries".to_owned()));
        }
        let tail = self.ring.word(self.params[SQ + TAIL] as usize)?;
        let at = tail.load(Ordering::Relaxed);
        let mask = self.ring.word(self.params[SQ + MASK] as usize)?.load(Ordering::Relaxed);
        let entry = [
            OP_READ | u64::from(read.fd.cast_unsigned()) << 32,
            read.pos_bytes,
            read.dst as u64,
            read.len_bytes as u64 & u64::from(u32::MAX),
            read.tag,
            0,
            0,
            0,
        ];
        self.sqes.write((at & mask) as usize * SQE_BYTES, &entry)?;
        // Release: pairs with the kernel's acquire of the tail, after which it reads the entry.
        tail.store(at.wrapping_add(1), Ordering::Release);
        self.unsubmitted.set(self.unsubmitted.get() + 1);
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(())
    }

    /// Hands over what was pushed and waits until a read is completed; one call of the kernel.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn enter(&self) -> Result<()> {
        loop {
            let fd = self.fd.cast_unsigned() as usize;
            let args = [fd, self.unsubmitted.get() as usize, 1, ENTER_GETEVENTS, 0, 0];
            // SAFETY: the entries are whole; whoever pushed them vouched for the memory they name.
            match unsafe { syscall6(SYS_IO_URING_ENTER, args) } {
                Ok(n) => {
                    let left = self.unsubmitted.get().saturating_sub(u32::try_from(n).unwrap_or(u32::MAX));
                    self.unsubmitted.set(left);
                    if left == 0 {
                        return Ok(());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("io_uring_enter"),
            }
        }
    }

    /// Takes a completion: the read's tag, and how many bytes were read or the negative error number.
    ///
    /// # Errors
    /// [`Error::Wrong`] when the ring is not what the kernel said.
    pub(crate) fn pop(&self) -> Result<Option<(u64, i32)>> {
        let head = self.ring.word(self.params[CQ] as usize)?;
        let at = head.load(Ordering::Relaxed);
        // Acquire: pairs with the kernel's release of the tail, before which it wrote the entry and the bytes.
        if at == self.ring.word(self.params[CQ + TAIL] as usize)?.load(Ordering::Acquire) {
            return Ok(None);
        }
        let mask = self.ring.word(self.params[CQ + MASK] as usize)?.load(Ordering::Relaxed);
        let [tag, result] = self.ring.read(self.params[CQ + CQES] as usize + (at & mask) as usize * CQE_BYTES)?;
        // Release: the kernel may write the place again once it sees the new head.
        head.store(at.wrapping_add(1), Ordering::Release);
        self.in_flight.set(self.in_flight.get() - 1);
        let result = u32::try_from(result & u64::from(u32::MAX)).unwrap_or(0);
        Ok(Some((tag, result.cast_signed())))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // An error left reads under way: their memory is in use until each is completed.
        while self.in_flight.get() > 0 && self.enter().is_ok() {
            while let Ok(Some(_)) = self.pop() {}
        }
        file::close(self.fd);
    }
}

/// Memory that the kernel reads and writes too; accessed by whole words, never by reference to more.
#[derive(Debug)]
struct Shared {
    base: usize,
    len_bytes: usize,
}

impl Shared {
    fn map(fd: i32, offset: u64, len_bytes: usize) -> Result<Self> {
        let prot = mem::PROT_READ | mem::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe { mem::mmap(0, len_bytes, prot, mem::MAP_SHARED, fd, offset) }.context("mmap of a ring")?;
        Ok(Self { base, len_bytes })
    }

    fn at(&self, offset: usize, len_bytes: usize) -> Result<usize> {
        let inside = offset.is_multiple_of(size_of::<u32>()) && offset + len_bytes <= self.len_bytes;
        if inside { Ok(self.base + offset) } else { Err(Error::Wrong("outside the ring".to_owned())) }
    }

    fn word(&self, offset: usize) -> Result<&AtomicU32> {
        let address = self.at(offset, size_of::<u32>())?;
        // SAFETY: an aligned word of our mapping (`at`), which lives as long as `self`; all sides use it atomically.
        Ok(unsafe { AtomicU32::from_ptr(address as *mut u32) })
    }

    fn write(&self, offset: usize, entry: &[u64; 8]) -> Result<()> {
        let address = self.at(offset, size_of_val(entry))?;
        // SAFETY: inside our mapping (`at`), an entry that the kernel does not read before the tail says so.
        unsafe { (address as *mut [u64; 8]).write_volatile(*entry) };
        Ok(())
    }

    fn read(&self, offset: usize) -> Result<[u64; 2]> {
        let address = self.at(offset, CQE_BYTES)?;
        // SAFETY: inside our mapping (`at`), an entry that the kernel does not write before the head says so.
        Ok(unsafe { (address as *const [u64; 2]).read_volatile() })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping; references into it borrow `self`, so none is left.
        let _ = unsafe { mem::munmap(self.base, self.len_bytes) };
    }
}
