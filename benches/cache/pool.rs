//! An explicit buffer pool: what a database does instead of faulting. Hash table, CLOCK, one read a miss.
//!
//! Every access looks its page up, under the lock of one of 64 partitions; on a miss CLOCK finds a frame, which is
//! written back when dirty and read into. No mapping changes and nothing faults.

use crate::source::{self, Source};
use softfault_benches::area::{bytes_of, store_into};
use softfault_benches::machine::Cpus;
use softfault_benches::workload::{Load, Memory};
use softfault_benches::{Error, PAGE, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// No frame.
const NONE: u32 = u32::MAX;

/// Partitions: enough that two threads seldom meet.
const PARTITIONS: usize = 64;

/// The pool.
#[derive(Debug)]
pub(crate) struct Pool {
    source: Source,
    partitions: Vec<Mutex<Partition>>,
}

impl Pool {
    /// Makes a pool of `cache_bytes` over `source`.
    pub(crate) fn new(source: Source, cache_bytes: usize) -> Self {
        let frames = (cache_bytes / PAGE / PARTITIONS).max(1);
        let partitions = (0..PARTITIONS).map(|_| Mutex::new(Partition::new(frames))).collect();
        Self { source, partitions }
    }

    /// Runs a load on it.
    pub(crate) fn run(&self, load: &mut Load, threads: usize, accesses: usize, cpus: Cpus) -> Result<f64> {
        load.run(self, threads, accesses, cpus)
    }

    /// Does `f` to `page`, which is read in when it is not there.
    fn with<T>(&self, page: usize, f: impl FnOnce(&mut Frame) -> T) -> T {
        let hash = hash(page);
        let mut partition = lock(&self.partitions[hash % PARTITIONS]);
        match partition.find(page, hash / PARTITIONS, &self.source) {
            Ok(frame) => f(frame),
            // Nothing to fall back to, and nothing to hand an error to: the sum of the bytes would be wrong.
            Err(e) => panic!("{e}"),
        }
    }
}

fn lock(partition: &Mutex<Partition>) -> MutexGuard<'_, Partition> {
    partition.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Scatters neighbouring pages.
fn hash(page: usize) -> usize {
    page.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
}

impl Memory for Pool {
    #[inline(always)]
    fn load(&self, page: usize) -> u8 {
        self.with(page, |frame| bytes_of(&frame.bytes).0)
    }

    #[inline(always)]
    fn store(&self, page: usize) {
        self.with(page, |frame| {
            frame.dirty = true;
            store_into(&mut frame.bytes, page);
        });
    }

    fn stored(&self, page: usize) -> u8 {
        self.with(page, |frame| bytes_of(&frame.bytes).1)
    }
}

/// A page's worth of memory, and whose it is.
#[derive(Debug)]
struct Frame {
    page: Option<usize>,
    /// The next frame of the same bucket.
    chain: u32,
    referenced: bool,
    dirty: bool,
    bytes: Box<[u8; PAGE]>,
}

/// Some of the frames, with a table of their own.
#[derive(Debug)]
struct Partition {
    frames: Vec<Frame>,
    /// The first frame of each bucket; a power of two of them.
    buckets: Vec<u32>,
    hand: usize,
}

impl Partition {
    fn new(frames: usize) -> Self {
        // Touched now: fresh memory of a virtual machine costs what the host makes of it.
        let frame = |_| Frame { page: None, chain: NONE, referenced: false, dirty: false, bytes: Box::new([1; PAGE]) };
        let buckets = vec![NONE; (2 * frames).next_power_of_two()];
        Self { frames: (0..frames).map(frame).collect(), buckets, hand: 0 }
    }

    fn find(&mut self, page: usize, hash: usize, source: &Source) -> Result<&mut Frame> {
        let bucket = hash & (self.buckets.len() - 1);
        let mut at = self.buckets[bucket];
        while at != NONE && self.frames[at as usize].page != Some(page) {
            at = self.frames[at as usize].chain;
        }
        if at == NONE {
            at = self.read_in(page, bucket, source)?;
        }
        let frame = &mut self.frames[at as usize];
        frame.referenced = true;
        Ok(frame)
    }

    fn read_in(&mut self, page: usize, bucket: usize, source: &Source) -> Result<u32> {
        let at = self.victim();
        self.evict(at, source)?;
        let index = u32::try_from(at).map_err(|_| Error::Wrong(format!("{at} is more frames than fit")))?;
        let frame = &mut self.frames[at];
        // SAFETY: the frame's own bytes, exclusively borrowed.
        unsafe { source.read(page * PAGE, frame.bytes.as_mut_ptr() as usize, PAGE) }
            .map_err(|e| source::failed(page, e))?;
        frame.page = Some(page);
        frame.chain = std::mem::replace(&mut self.buckets[bucket], index);
        Ok(index)
    }

    /// CLOCK: the first frame that nobody used since the hand last passed it.
    fn victim(&mut self) -> usize {
        loop {
            let at = self.hand;
            self.hand = (at + 1) % self.frames.len();
            let frame = &mut self.frames[at];
            if frame.page.is_none() || !std::mem::take(&mut frame.referenced) {
                return at;
            }
        }
    }

    /// Takes the page out of frame `at`.
    fn evict(&mut self, at: usize, source: &Source) -> Result<()> {
        let frame = &mut self.frames[at];
        let Some(page) = frame.page.take() else { return Ok(()) };
        if std::mem::take(&mut frame.dirty) {
            // SAFETY: the frame's own bytes.
            unsafe { source.write(page * PAGE, frame.bytes.as_ptr() as usize, PAGE) }
                .map_err(|e| source::failed(page, e))?;
        }
        let (chain, bucket) = (frame.chain, (hash(page) / PARTITIONS) & (self.buckets.len() - 1));
        let mut before = self.buckets[bucket];
        if before as usize == at {
            self.buckets[bucket] = chain;
            return Ok(());
        }
        while self.frames[before as usize].chain as usize != at {
            before = self.frames[before as usize].chain;
        }
        self.frames[before as usize].chain = chain;
        Ok(())
    }
}
