//! Compressed pages in memory, in front of the swap file. Linux: `mm/zswap.c`.
//!
//! The pool is a fixed number of shards, each with its lock, its bytes and the table that lz4 works with, all made
//! beforehand: a store is called while threads of the program wait, and one of them may hold malloc's lock.
//!
//! A shard is handed out in granules of 64 bytes. A compressed page is a run of granules inside one block of 64 of them,
//! that is inside 4 KiB, so that the block's word says all there is to know.
//!
//! # Context: fillers, kswapd and calls: nothing is allocated after the pool was made

use crate::masked::{self, Masked};
use lz4_flex::block::{self, CompressTable};
use softfault_platform::host::Uninterrupted;
use softfault_platform::store::swap::Frontswap;
use softfault_platform::store::{PageMut, PageRef, StoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    shards: Box<[masked::Mutex<Shard>]>,
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
            masked::Mutex::new(Shard { bytes, taken, next: 0, none_of: usize::MAX, nr_pages: 0, nr_granules: 0, work })
        };
        Self { shards: (0..NR_SHARDS).map(|_| shard()).collect(), turn: AtomicUsize::new(0) }
    }

    /// Returns the pages in the pool and the bytes they take.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let of = |s: &masked::Mutex<Shard>| {
            let s = masked::lock(s);
            (s.nr_pages, s.nr_granules * GRANULE as u64)
        };
        self.shards.iter().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    fn store(&self, page: &PageRef<'_>) -> Option<u32> {
        // A signal must not come between the look that finds a shard free and the lock that takes it.
        let _uninterrupted = Uninterrupted::new();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % NR_SHARDS;
        let index = (turn..turn + NR_SHARDS).map(|i| i % NR_SHARDS).find(|i| self.shards[*i].is_free());
        let index = index.unwrap_or(turn);
        let granule = masked::lock(&self.shards[index]).store(page)?;
        Some((index as u32) << GRANULE_BITS | granule as u32)
    }

    /// Returns the shard that a handle names, and the granule.
    fn shard(&self, handle: u32) -> (Masked<'_, Shard>, usize) {
        let shard = &self.shards[(handle >> GRANULE_BITS) as usize % NR_SHARDS];
        (masked::lock(shard), (handle & ((1 << GRANULE_BITS) - 1)) as usize)
    }
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
        // It is not decompressed straight into the page, which may be the last of an object, and shorter.
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

#[cfg(test)]
mod tests {
    use super::*;
    use softfault_platform::store::Store;
    use softfault_platform::store::direct::DirectFile;
    use softfault_platform::store::swap::SwapStore;
    use softfault_platform::store::swapfile::SwapFile;
    use softfault_platform::sys::{file, mem};

    fn swap_file(nr_slots: usize) -> SwapFile {
        let fd = mem::memfd_create(c"softfault-test-swap").expect("memfd");
        file::ftruncate(fd, (nr_slots * PAGE_SIZE) as u64).expect("ftruncate");
        SwapFile::new(DirectFile::buffered(fd), (nr_slots * PAGE_SIZE) as u64).expect("a swap file")
    }

    struct Rng(u64);

    impl Rng {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 7) as usize % n
        }
        /// A page that compresses to about `parts` of 16, 0: zeros.
        fn page(&mut self, parts: usize) -> Vec<u8> {
            let mut page = vec![u8::from(parts > 0) * 9; PAGE_SIZE];
            page[..PAGE_SIZE / 16 * parts].fill_with(|| self.below(256) as u8);
            page
        }
    }

    /// Random pages, of every compressibility, written, read and punched by several stores over one small pool.
    #[test]
    fn pages_come_back_identical_and_the_pool_empties() {
        const NR: usize = 60;
        let (file, pool) = (swap_file(4 * NR), Arc::new(Zpool::new(256 << 10)));
        std::thread::scope(|s| {
            for seed in 1..5 {
                let (file, pool) = (&file, &pool);
                s.spawn(move || {
                    let front = ZswapFront(Arc::clone(pool));
                    let store = SwapStore::with_front(file, front, (NR * PAGE_SIZE) as u64).expect("store");
                    let (mut rng, mut model) = (Rng(seed * 77), vec![0u8; NR * PAGE_SIZE]);
                    for step in 0..1500 {
                        let page = rng.below(NR);
                        let range = page * PAGE_SIZE..(page + 1 + rng.below((NR - page).min(6))) * PAGE_SIZE;
                        match rng.below(5) {
                            0 | 1 => {
                                for p in model[range.clone()].chunks_mut(PAGE_SIZE) {
                                    let parts = rng.below(17);
                                    p.copy_from_slice(&rng.page(parts));
                                }
                                let pages = PageRef::from(&model[range.clone()]);
                                store.write(range.start as u64, &pages).expect("write");
                            }
                            2 => {
                                let range = range.start + rng.below(2) * 100..range.end;
                                store.punch(range.start as u64, range.len() as u64).expect("punch");
                                model[range].fill(0);
                            }
                            _ => {
                                let mut got = vec![0xa5; range.len()];
                                let r = store.read(range.start as u64, &mut PageMut::from(got.as_mut_slice()));
                                assert_eq!(r, Ok(()), "seed {seed}, step {step}");
                                assert!(got == model[range.clone()], "seed {seed}, step {step}, bytes {range:?}");
                            }
                        }
                    }
                });
            }
        });
        assert_eq!((pool.usage(), file.nr_used()), ((0, 0), 0), "all given back");
        let most: u64 =
            pool.shards.iter().map(|s| masked::lock(s).taken.iter().map(|w| w.count_ones() as u64).sum::<u64>()).sum();
        assert_eq!(most, 0, "not a granule is left taken");
    }

    #[test]
    fn what_compresses_costs_no_io_and_what_does_not_goes_to_the_file() {
        let (file, pool) = (swap_file(64), Arc::new(Zpool::new(1 << 20)));
        let store = SwapStore::with_front(&file, ZswapFront(Arc::clone(&pool)), 64 << 12).expect("store");
        let mut rng = Rng(5);
        for (p, parts) in [4, 4, 16, 16, 16, 4].into_iter().enumerate() {
            store.write((p * PAGE_SIZE) as u64, &PageRef::from(rng.page(parts).as_slice())).expect("write");
        }
        let (pages, bytes) = pool.usage();
        assert_eq!((pages, file.nr_used()), (3, 3));
        assert!((3 * 1024..3 * 2048).contains(&bytes), "{bytes} bytes for three pages of a quarter");
        assert!(store.is_stable());
    }

    #[test]
    fn a_full_pool_passes_pages_on_until_there_is_room() {
        // One block a shard: two pages of a little less than half fit in each.
        let (file, pool) = (swap_file(64), Arc::new(Zpool::new(1)));
        let store = SwapStore::with_front(&file, ZswapFront(Arc::clone(&pool)), 64 << 12).expect("store");
        let (mut rng, nr) = (Rng(6), 40);
        let pages: Vec<_> = (0..nr).flat_map(|_| rng.page(7)).collect();
        for (p, page) in pages.chunks(PAGE_SIZE).enumerate() {
            store.write((p * PAGE_SIZE) as u64, &PageRef::from(page)).expect("write");
        }
        assert_eq!((pool.usage().0, file.nr_used()), (2 * NR_SHARDS as u64, nr - 2 * NR_SHARDS as u32));
        let mut got = vec![0; pages.len()];
        store.read(0, &mut PageMut::from(got.as_mut_slice())).expect("read");
        assert!(got == pages, "from both");
        store.punch(0, (nr as u64) << 12).expect("punch");
        store.write(0, &PageRef::from(&pages[..PAGE_SIZE])).expect("write");
        assert_eq!((pool.usage().0, file.nr_used()), (1, 0), "there is room again");
    }

    #[test]
    fn runs_are_found_where_they_are() {
        assert_eq!([free_run(0, 64), free_run(1, 64), free_run(1, 63)], [Some(0), None, Some(1)]);
        assert_eq!(free_run(u64::MAX, 1), None);
        assert_eq!(free_run(0b1011_0001_0110, 3), Some(5));
        assert_eq!(free_run(!(0b111 << 30), 3), Some(30));
        assert_eq!(free_run(!(0b111 << 61), 4), None, "not past the block's end");
    }
}
