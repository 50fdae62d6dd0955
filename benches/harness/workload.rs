//! What is done to a memory larger than its cache: which pages, in which order, loads or stores.
//!
//! Every side of a row walks the same accesses in the same runs: they come from seeds, and are computed before the clock
//! starts.

use crate::area::{Random, View, ViewMut, check_sum, shuffled, written_byte};
use crate::machine::Cpus;
use crate::together::together;
use crate::{Error, Result};

/// A pattern of accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Loads of uniformly random pages.
    RandRead,
    /// The same, every second access a store (at random).
    RandRw,
    /// Loads of ascending pages, round and round; each of several threads has a stretch of every run.
    SeqRead,
    /// Loads by Zipf's law with exponent 0.99; which pages are popular is random.
    ZipfRead,
}

impl Workload {
    /// All, those that dirty pages last: what they leave to be written back is not charged to the others.
    pub const ALL: [Self; 4] = [Self::RandRead, Self::SeqRead, Self::ZipfRead, Self::RandRw];

    /// Its name in rows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RandRead => "rand_read",
            Self::RandRw => "rand_rw",
            Self::SeqRead => "seq_read",
            Self::ZipfRead => "zipf_read",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|w| w.name() == name)
    }

    /// Whether it stores.
    #[must_use]
    pub fn writes(self) -> bool {
        self == Self::RandRw
    }

    /// Accesses after which a cache of `pages` pages is as full as it will be, and holds what this workload keeps there.
    #[must_use]
    pub fn warm_up(self, pages: usize) -> usize {
        match self {
            // Most accesses hit: it takes as many more to turn the cache over.
            Self::ZipfRead => 4 * pages,
            _ => pages + pages / 2,
        }
    }
}

/// One access: a page, and whether it is stored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access(u32);

impl Access {
    const STORE: u32 = 1 << 31;

    fn new(page: u32, store: bool) -> Self {
        Self(page | if store { Self::STORE } else { 0 })
    }

    #[inline(always)]
    fn page(self) -> usize {
        (self.0 & !Self::STORE) as usize
    }

    #[inline(always)]
    fn is_store(self) -> bool {
        self.0 & Self::STORE != 0
    }
}

/// Pages that can be loaded from and stored to, whoever keeps them.
pub trait Memory: Sync {
    /// Loads the byte of the pattern.
    fn load(&self, page: usize) -> u8;
    /// Stores [`written_byte`] elsewhere in the page. Called only by workloads that write.
    fn store(&self, page: usize);
    /// Loads what `store` stored.
    fn stored(&self, page: usize) -> u8;
}

impl Memory for ViewMut<'_> {
    #[inline(always)]
    fn load(&self, page: usize) -> u8 {
        View::touch(&self.view(), page)
    }
    #[inline(always)]
    fn store(&self, page: usize) {
        ViewMut::store(self, page);
    }
    fn stored(&self, page: usize) -> u8 {
        ViewMut::stored(self, page)
    }
}

/// A workload of one side, and where it stands. All runs on one cache share it, on one thread or two: accesses that a
/// run before has made would hit.
#[derive(Debug)]
pub struct Load {
    workload: Workload,
    generator: Generator,
    random: Random,
    is_stored: Vec<bool>,
    stored: Vec<u32>,
}

impl Load {
    /// Starts a workload over `pages` pages.
    #[must_use]
    pub fn new(workload: Workload, pages: usize) -> Self {
        Self {
            workload,
            generator: Generator::new(workload, pages),
            random: Random::new(99),
            is_stored: vec![false; if workload.writes() { pages } else { 0 }],
            stored: Vec::new(),
        }
    }

    /// Makes about `accesses` further accesses, shared out over `threads` threads, and returns nanoseconds an access, by
    /// the clock on the wall. A sample of what was ever stored is read again afterwards.
    ///
    /// # Errors
    /// [`Error::Wrong`] when a load gave a wrong byte, or a store was lost.
    pub fn run(&mut self, memory: &impl Memory, threads: usize, accesses: usize, cpus: Cpus) -> Result<f64> {
        let each = (accesses / threads).max(1);
        // Ascending accesses become one stretch for each thread, one behind the other.
        let streams: Vec<Vec<Access>> =
            (0..threads).map(|_| (0..each).map(|_| self.generator.next()).collect()).collect();
        let (ns, sums) = together(cpus, streams.iter().map(|s| move || walk(memory, s)).collect())?;
        for (sum, stream) in sums.iter().zip(&streams) {
            let loads: Vec<u32> = stream.iter().filter(|a| !a.is_store()).map(|a| a.0).collect();
            check_sum(*sum, &loads)?;
        }
        streams.iter().flatten().filter(|a| a.is_store()).for_each(|a| self.remember(a.page()));
        self.check_stores(memory)?;
        Ok(ns / (each * threads) as f64)
    }

    /// Returns whether it stores.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.workload.writes()
    }

    fn remember(&mut self, page: usize) {
        if !std::mem::replace(&mut self.is_stored[page], true) {
            self.stored.push(u32::try_from(page).unwrap_or(u32::MAX));
        }
    }

    /// Reads 16 of the pages that were stored to at any time: most were evicted since.
    fn check_stores(&mut self, memory: &impl Memory) -> Result<()> {
        for _ in 0..self.stored.len().min(16) {
            let page = self.stored[self.random.below(self.stored.len())] as usize;
            let byte = memory.stored(page);
            if byte != written_byte(page) {
                return Err(Error::Wrong(format!("a store to page {page} was lost: it reads {byte:#x}")));
            }
        }
        Ok(())
    }
}

/// One thread's accesses; returns the sum of what it loaded.
fn walk(memory: &impl Memory, stream: &[Access]) -> u64 {
    let mut sum = 0;
    for a in stream {
        if a.is_store() {
            memory.store(a.page());
        } else {
            sum += u64::from(memory.load(a.page()));
        }
    }
    sum
}

/// Where accesses come from.
#[derive(Debug)]
struct Generator {
    workload: Workload,
    random: Random,
    pages: usize,
    /// The next of ascending accesses.
    next: usize,
    zipf: Option<Zipf>,
}

impl Generator {
    fn new(workload: Workload, pages: usize) -> Self {
        let zipf = (workload == Workload::ZipfRead).then(|| Zipf::new(pages, 0.99));
        Self { workload, random: Random::new(42), pages, next: 0, zipf }
    }

    fn next(&mut self) -> Access {
        let page = match (self.workload, &self.zipf) {
            (_, Some(zipf)) => zipf.page(&mut self.random),
            (Workload::SeqRead, _) => {
                let page = self.next;
                self.next = (page + 1) % self.pages;
                page
            }
            _ => self.random.below(self.pages),
        };
        let store = self.workload.writes() && self.random.below(2) == 1;
        Access::new(u32::try_from(page).unwrap_or(0), store)
    }
}

/// Zipf's law over the pages, by the inversion of Gray et al. (1994), as YCSB has it; ranks are scattered over the pages.
#[derive(Debug)]
struct Zipf {
    theta: f64,
    zeta: f64,
    eta: f64,
    page_of_rank: Vec<u32>,
}

impl Zipf {
    fn new(pages: usize, theta: f64) -> Self {
        let zeta = |n: usize| (1..=n).map(|i| (i as f64).powf(-theta)).sum::<f64>();
        let all = zeta(pages);
        let eta = (1.0 - (2.0 / pages as f64).powf(1.0 - theta)) / (1.0 - zeta(2) / all);
        Self { theta, zeta: all, eta, page_of_rank: shuffled(pages) }
    }

    fn page(&self, random: &mut Random) -> usize {
        let u = random.below(u32::MAX as usize) as f64 / f64::from(u32::MAX);
        let n = self.page_of_rank.len();
        self.page_of_rank[self.rank(u).min(n - 1)] as usize
    }

    fn rank(&self, u: f64) -> usize {
        let uz = u * self.zeta;
        if uz < 1.0 {
            return 0;
        }
        if uz < 1.0 + 0.5f64.powf(self.theta) {
            return 1;
        }
        let share = (self.eta * u - self.eta + 1.0).powf(1.0 / (1.0 - self.theta));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share between 0 and 1 of a number of pages"
        )]
        let rank = (self.page_of_rank.len() as f64 * share) as usize;
        rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::Mutex;

    const PAGES: usize = 4096;

    fn take(workload: Workload, count: usize) -> Vec<Access> {
        let mut generator = Generator::new(workload, PAGES);
        (0..count).map(|_| generator.next()).collect()
    }

    #[test]
    fn zipfs_law_favours_few_pages() {
        let mut counts = vec![0u32; PAGES];
        take(Workload::ZipfRead, 200_000).iter().for_each(|a| counts[a.page()] += 1);
        let first = shuffled(PAGES)[0] as usize;
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let share = |n: usize| f64::from(counts[..n].iter().sum::<u32>()) / 200_000.0;
        // By the law: 1 / H and H(n/4) / H, where H, the sum of i^-0.99, is about 9.2.
        assert!((0.08..0.14).contains(&share(1)), "the first page has {}", share(1));
        assert!((0.80..0.90).contains(&share(PAGES / 4)), "a quarter of the pages has {}", share(PAGES / 4));
        assert_ne!(first, 0, "popular pages are scattered");
    }

    #[test]
    fn half_of_a_mixed_load_is_stores_and_the_others_have_none() {
        let stores = take(Workload::RandRw, 10_000).iter().filter(|a| a.is_store()).count();
        assert!((4_500..5_500).contains(&stores), "{stores}");
        for w in [Workload::RandRead, Workload::SeqRead, Workload::ZipfRead] {
            assert!(take(w, 100).iter().all(|a| !a.is_store()), "{w:?}");
            assert_eq!(Workload::named(w.name()), Some(w));
        }
        let ascending: Vec<usize> = take(Workload::SeqRead, PAGES + 2).iter().map(|a| a.page()).collect();
        assert_eq!((ascending[PAGES - 1], ascending[PAGES], ascending[PAGES + 1]), (PAGES - 1, 0, 1));
    }

    /// Pages that forget stores once they are told to.
    struct Forgetful(Mutex<Cell<bool>>);

    impl Memory for Forgetful {
        fn load(&self, page: usize) -> u8 {
            crate::area::page_byte(page)
        }
        fn store(&self, _: usize) {}
        fn stored(&self, page: usize) -> u8 {
            let forgets = self.0.lock().expect("nobody panics").get();
            if forgets { crate::area::page_byte(page) } else { written_byte(page) }
        }
    }

    #[test]
    fn a_lost_store_is_noticed() {
        let cpus = Cpus::find().expect("a processor");
        let (mut load, memory) = (Load::new(Workload::RandRw, PAGES), Forgetful(Mutex::new(Cell::new(false))));
        load.run(&memory, 1, 1000, cpus).expect("nothing is lost");
        memory.0.lock().expect("nobody panics").set(true);
        assert!(matches!(load.run(&memory, 1, 1000, cpus), Err(Error::Wrong(_))));
    }
}
