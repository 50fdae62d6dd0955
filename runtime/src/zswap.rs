//! Compressed pages in memory, in front of the swap file. Linux: `mm/zswap.c`.
//!
//! The pool is a fixed number of shards, each with its lock, its bytes and the table that lz4 works with, all made
//! beforehand: a store is called while threads of the program wait, and one of them may hold malloc's lock.
//!
//! A shard is handed out in granules of 64 bytes. A compressed page is a run of granules inside one block of 64 of them,
//! that is inside 4 KiB, so that the block's word says all there is to know.

use lz4_flex::block::{self, CompressTable};
use softfault_platform::store::swap::Frontswap;
use softfault_platform::store::{PageMut, PageRef, StoreError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PAGE_SIZE: usize = 4096;
const GRANULE: usize = 64;
const NR_SHARDS: usize = 16;
/// A page that does not get smaller than this goes to the file.
const MAX_COMPRESSED: usize = PAGE_SIZE / 4 * 3;
/// Bytes in front of the compressed ones: their number.
const HEADER: usize = 2;
/// Bits of a handle that name the granule; the rest name the shard.
const GRANULE_BITS: u32 = 28;

/// The pool of a runtime.
pub(crate) struct Zpool {
    shards: Box<[Mutex<Shard>]>,
    turn: AtomicUsize,
}

struct Shard {
    /// Costs memory only where it was touched.
    bytes: Vec<u8>,
    /// One word a block, one bit a granule: taken.
    taken: Vec<u64>,
    /// Where the last search ended.
    next: usize,
    /// No block has so many free granules in a row, unless some were given back since.
    none_of: usize,
    nr_pages: u64,
    nr_granules: u64,
    work: Box<Workspace>,
}

struct Workspace {
    page: [u8; PAGE_SIZE],
    out: [u8; block::get_maximum_output_size(PAGE_SIZE)],
    table: CompressTable,
}

impl std::fmt::Debug for Zpool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zpool").finish_non_exhaustive()
    }
}

impl Zpool {
    /// Makes a pool of at most `bytes` (rounded up to whole blocks, one a shard).
    pub(crate) fn new(bytes: u64) -> Self {
        let most = 1u64 << (GRANULE_BITS - 6);
        let blocks = (bytes / NR_SHARDS as u64).div_ceil(PAGE_SIZE as u64).clamp(1, most) as usize;
        let shard = || {
            let table = CompressTable::small();
            let out = [0; block::get_maximum_output_size(PAGE_SIZE)];
            let work = Box::new(Workspace { page: [0; PAGE_SIZE], out, table });
            let (bytes, taken) = (vec![0; blocks * PAGE_SIZE], vec![0; blocks]);
            Mutex::new(Shard { bytes, taken, next: 0, none_of: usize::MAX, nr_pages: 0, nr_granules: 0, work })
        };
        Self { shards: (0..NR_SHARDS).map(|_| shard()).collect(), turn: AtomicUsize::new(0) }
    }

    /// Returns the pages in the pool and the bytes they take.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let of = |s: &Mutex<Shard>| {
            let s = lock(s);
            (s.nr_pages, s.nr_granules * GRANULE as u64)
        };
        self.shards.iter().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    fn store(&self, page: &PageRef<'_>) -> Option<u32> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % NR_SHARDS;
        let index = (turn..turn + NR_SHARDS).map(|i| i % NR_SHARDS).find(|i| self.shards[*i].try_lock().is_ok());
        let index = index.unwrap_or(turn);
        let granule = lock(&self.shards[index]).store(page)?;
        Some((index as u32) << GRANULE_BITS | granule as u32)
    }

    /// Returns the shard that a handle names, and the granule.
    fn shard(&self, handle: u32) -> (MutexGuard<'_, Shard>, usize) {
        let shard = &self.shards[(handle >> GRANULE_BITS) as usize % NR_SHARDS];
        (lock(shard), (handle & ((1 << GRANULE_BITS) - 1)) as usize)
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn store(&mut self, page: &PageRef<'_>) -> Option<usize> {
        let work = &mut *self.work;
        let len = page.copy_to(0, &mut work.page);
        work.page[len..].fill(0);
        let len = block::compress_into_with_table(&work.page, &mut work.out, &mut work.table).ok()?;
        let compressed = (len <= MAX_COMPRESSED).then_some(len)?;
        let nr = (HEADER + compressed).div_ceil(GRANULE);
        let granule = self.get(nr)?;
        let at = granule * GRANULE;
        self.bytes[at..at + HEADER].copy_from_slice(&(compressed as u16).to_le_bytes());
        self.bytes[at + HEADER..at + HEADER + compressed].copy_from_slice(&self.work.out[..compressed]);
        self.nr_pages += 1;
        self.nr_granules += nr as u64;
        Some(granule)
    }

    /// Takes `nr` granules in a row.
    fn get(&mut self, nr: usize) -> Option<usize> {
        if nr >= self.none_of {
            return None;
        }
        for i in 0..self.taken.len() {
            let at = (self.next + i) % self.taken.len();
            if let Some(bit) = free_run(self.taken[at], nr) {
                self.taken[at] |= mask(bit, nr);
                self.next = at;
                return Some(at * 64 + bit);
            }
        }
        self.none_of = nr;
        None
    }

    fn load(&mut self, granule: usize, page: &mut PageMut<'_>) -> Option<()> {
        // Not straight into the page: it may be the last of an object, and shorter.
        let n = block::decompress_into(compressed_at(&self.bytes, granule)?, &mut self.work.page).ok()?;
        let dst = page.as_mut_slice();
        let len = dst.len().min(PAGE_SIZE);
        dst[..len].copy_from_slice(&self.work.page[..len]);
        (n == PAGE_SIZE).then_some(())
    }

    fn invalidate(&mut self, granule: usize) {
        let Some(len) = compressed_at(&self.bytes, granule).map(<[u8]>::len) else { return };
        let nr = (HEADER + len).div_ceil(GRANULE);
        if let Some(word) = self.taken.get_mut(granule / 64) {
            *word &= !mask(granule % 64, nr);
        }
        self.none_of = usize::MAX;
        self.nr_pages -= 1;
        self.nr_granules -= nr as u64;
    }
}

/// Returns the compressed bytes at a granule; `None`: nothing sound is there.
fn compressed_at(bytes: &[u8], granule: usize) -> Option<&[u8]> {
    let at = granule.checked_mul(GRANULE)?;
    let header = bytes.get(at..at + HEADER)?;
    let len = usize::from(u16::from_le_bytes([header[0], header[1]]));
    bytes.get(at + HEADER..at + HEADER + len)
}

fn mask(bit: usize, nr: usize) -> u64 {
    (u64::MAX >> (64 - nr)) << bit
}

/// Returns where `nr` (1 to 64) bits in a row are clear.
fn free_run(taken: u64, nr: usize) -> Option<usize> {
    // A bit stays set while the ones above it, as many as were looked at, are clear too.
    let (mut runs, mut have) = (!taken, 1);
    while have < nr {
        let more = have.min(nr - have);
        runs &= runs >> more;
        have += more;
    }
    (runs != 0).then(|| runs.trailing_zeros() as usize)
}

/// One object's view of the pool.
#[derive(Debug)]
pub(crate) struct ZswapFront(pub(crate) Arc<Zpool>);

impl Frontswap for ZswapFront {
    // What is compressed is a copy; but what is compared with zero, and written to the file, is the page.
    const STABLE: bool = true;
    fn store(&self, page: &PageRef<'_>) -> Option<u32> {
        self.0.store(page)
    }
    fn load(&self, handle: u32, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let (mut shard, granule) = self.0.shard(handle);
        shard.load(granule, page).ok_or(StoreError::Corrupt)
    }
    fn invalidate(&self, handle: u32) {
        let (mut shard, granule) = self.0.shard(handle);
        shard.invalidate(granule);
    }
}
