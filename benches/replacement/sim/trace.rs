//! Accesses to replay, from fixed seeds: the same ones on every machine.

/// What a trace looks like. Sizes in it follow the cache, so that each cache meets the same difficulty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Zipf with exponent 0.99 over the object.
    Zipf,
    /// The same, and the pages change their ranks altogether every 16th of the trace.
    ZipfShifting,
    /// The object from start to end, again and again.
    Scan,
    /// Every other access reads one of 0.6 caches of hot pages at random, the rest scan the object.
    ScanHot,
    /// Zipf, and one access in three belongs to a scan of the object.
    ScanZipf,
    /// A loop over 1.1 caches.
    Loop110,
    /// A loop over 1.25 caches.
    Loop125,
    /// A loop over 2 caches.
    Loop200,
    /// A loop over 1.1 caches that moves to other pages every 16th of the trace.
    LoopMoving,
    /// Uniform over the object.
    Uniform,
}

impl Shape {
    /// All shapes, in the order of the report.
    pub const ALL: &[Self] = &[
        Self::Zipf,
        Self::ZipfShifting,
        Self::ScanZipf,
        Self::ScanHot,
        Self::Scan,
        Self::Loop110,
        Self::Loop125,
        Self::Loop200,
        Self::LoopMoving,
        Self::Uniform,
    ];

    /// Returns the name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zipf => "zipf",
            Self::ZipfShifting => "zipf_shifting",
            Self::Scan => "scan",
            Self::ScanHot => "scan_hot",
            Self::ScanZipf => "scan_zipf",
            Self::Loop110 => "loop_1.10",
            Self::Loop125 => "loop_1.25",
            Self::Loop200 => "loop_2.00",
            Self::LoopMoving => "loop_moving",
            Self::Uniform => "uniform",
        }
    }

    /// Returns `len` accesses to an object of `nr_pages` pages through a cache of `limit`.
    ///
    /// # Panics
    /// When the object is empty, or has 2^32 pages or more.
    #[must_use]
    pub fn generate(self, nr_pages: u32, limit: u32, len: usize) -> Vec<u32> {
        let mut rng = Rng::new(0x50f7_fa17);
        match self {
            Self::Zipf => zipf(nr_pages, len, 1, &mut rng),
            Self::ZipfShifting => zipf(nr_pages, len, 16, &mut rng),
            Self::Scan => cycle(nr_pages, len),
            Self::ScanHot => scan_hot(nr_pages, limit, len, &mut rng),
            Self::ScanZipf => scan_zipf(nr_pages, len, &mut rng),
            Self::Loop110 => cycle(percent(limit, 110).min(nr_pages), len),
            Self::Loop125 => cycle(percent(limit, 125).min(nr_pages), len),
            Self::Loop200 => cycle(percent(limit, 200).min(nr_pages), len),
            Self::LoopMoving => loop_moving(nr_pages, percent(limit, 110).min(nr_pages), len),
            Self::Uniform => (0..len).map(|_| rng.below(nr_pages)).collect(),
        }
    }
}

/// Returns `pct` percent of `n`, rounded down.
fn percent(n: u32, pct: u64) -> u32 {
    u32::try_from(u64::from(n) * pct / 100).unwrap_or(u32::MAX)
}

fn cycle(nr_pages: u32, len: usize) -> Vec<u32> {
    (0..nr_pages).cycle().take(len).collect()
}

fn loop_moving(nr_pages: u32, period: u32, len: usize) -> Vec<u32> {
    let mut trace = Vec::with_capacity(len);
    let mut start = 0;
    for phase in 1..=16 {
        let rest = len * phase / 16 - trace.len();
        trace.extend((0..period).map(|i| (start + i) % nr_pages).cycle().take(rest));
        start = (start + period) % nr_pages;
    }
    trace
}

fn zipf(nr_pages: u32, len: usize, phases: usize, rng: &mut Rng) -> Vec<u32> {
    let ranks = Zipf::new(nr_pages);
    let mut trace = Vec::with_capacity(len);
    let mut pages: Vec<u32> = (0..nr_pages).collect();
    for phase in 0..phases {
        rng.shuffle(&mut pages);
        let end = len * (phase + 1) / phases;
        while trace.len() < end {
            trace.push(pages[ranks.draw(rng)]);
        }
    }
    trace
}

fn scan_zipf(nr_pages: u32, len: usize, rng: &mut Rng) -> Vec<u32> {
    let mut trace = zipf(nr_pages, len, 1, rng);
    for (at, slot) in (0..nr_pages).cycle().zip(trace.iter_mut().skip(2).step_by(3)) {
        *slot = at;
    }
    trace
}

fn scan_hot(nr_pages: u32, limit: u32, len: usize, rng: &mut Rng) -> Vec<u32> {
    let hot = percent(limit, 60).max(1);
    let mut scan = (hot..nr_pages).cycle();
    (0..len).map(|i| if i % 2 == 0 { rng.below(hot) } else { scan.next().unwrap_or(0) }).collect()
}

/// Ranks with probability proportional to 1 / rank^0.99, by search in the summed distribution.
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(nr_pages: u32) -> Self {
        let mut sum = 0.0;
        let cumulative = (1..=nr_pages).map(|rank| {
            sum += f64::from(rank).powf(-0.99);
            sum
        });
        Self { cumulative: cumulative.collect() }
    }

    fn draw(&self, rng: &mut Rng) -> usize {
        let total = self.cumulative.last().copied().unwrap_or(0.0);
        let x = rng.unit() * total;
        self.cumulative.partition_point(|c| *c <= x).min(self.cumulative.len() - 1)
    }
}

/// A small generator of random numbers (splitmix64).
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts a sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`, which is not 0.
    pub fn below(&mut self, n: u32) -> u32 {
        // The high half of a 32 by 32 bit product: below `n` by construction.
        u32::try_from(((self.next_u64() >> 32) * u64::from(n)) >> 32).unwrap_or(0)
    }

    /// Returns a number from 0 up to, but not, 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a double holds")]
    fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn shuffle(&mut self, pages: &mut [u32]) {
        for i in (1..pages.len()).rev() {
            let n = u32::try_from(i + 1).expect("fewer than 2^32 pages");
            pages.swap(i, self.below(n) as usize);
        }
    }
}
