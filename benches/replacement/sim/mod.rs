//! Which cached page to give up: policies run over traces, without a kernel and without a clock.
//!
//! A mapped page tells nobody that it was read. Two kinds of policies are compared: those that see every access (what
//! a buffer pool or a kernel with accessed bits sees; here they are yardsticks), and those that learn of an access only
//! from a fault: a *major* one fills an absent page and maps it, a *minor* one finds a page that is cached and was
//! unmapped to be asked.

pub mod clock;
pub mod clock_pro;
pub mod decide;
pub mod list;
pub mod lru;
pub mod opt;
pub mod s3_fifo;
pub mod staged;
pub mod staged_two_lists;
pub mod trace;
pub mod two_lists;

#[cfg(test)]
mod tests;

/// What one minor fault costs, in microseconds: a signal and one CONTINUE.
pub const MINOR_US: f64 = 6.0;
/// What one major fault costs, in microseconds, with a store that is fast.
pub const MAJOR_US: f64 = 12.0;
/// What unmapping one page of a batch costs, in microseconds.
pub const UNMAP_US: f64 = 0.5;

/// What an access met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The page is cached, and mapped as far as the policy cares: no fault.
    Hit,
    /// The page is cached and unmapped.
    Minor,
    /// The page is absent.
    Major,
}

/// A replacement policy with its cache, which holds a fixed number of pages.
pub trait Policy {
    /// Accesses the page `pgoff`, and makes it cached and mapped.
    fn access(&mut self, pgoff: u32) -> Outcome;

    /// Returns how many pages are cached.
    fn nr_cached(&self) -> usize;

    /// Returns how many pages were unmapped while they stayed cached.
    fn nr_unmapped(&self) -> u64 {
        0
    }
}

/// What a run counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accesses after the warm-up.
    pub accesses: u64,
    /// Minor faults among them.
    pub minor: u64,
    /// Major faults among them.
    pub major: u64,
    /// Pages unmapped meanwhile.
    pub unmapped: u64,
}

impl Counts {
    /// Returns the share of accesses that found their page cached, 0 to 1.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        1.0 - ratio(self.major, self.accesses)
    }

    /// Returns minor faults per thousand accesses.
    #[must_use]
    pub fn minor_per_1000(&self) -> f64 {
        1000.0 * ratio(self.minor, self.accesses)
    }

    /// Returns major faults per thousand accesses.
    #[must_use]
    pub fn major_per_1000(&self) -> f64 {
        1000.0 * ratio(self.major, self.accesses)
    }

    /// Returns pages unmapped per thousand accesses.
    #[must_use]
    pub fn unmapped_per_1000(&self) -> f64 {
        1000.0 * ratio(self.unmapped, self.accesses)
    }

    /// Returns the microseconds that a thousand accesses cost.
    #[must_use]
    pub fn cost_us(&self) -> f64 {
        MINOR_US * self.minor_per_1000() + MAJOR_US * self.major_per_1000() + UNMAP_US * self.unmapped_per_1000()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// Runs `policy` over `trace`, without counting the first `warmup` accesses.
pub fn run(policy: &mut dyn Policy, trace: &[u32], warmup: usize) -> Counts {
    let (cold, counted) = trace.split_at(warmup.min(trace.len()));
    for &pgoff in cold {
        policy.access(pgoff);
    }
    let unmapped = policy.nr_unmapped();
    let mut counts = Counts::default();
    for &pgoff in counted {
        counts.accesses += 1;
        match policy.access(pgoff) {
            Outcome::Hit => {}
            Outcome::Minor => counts.minor += 1,
            Outcome::Major => counts.major += 1,
        }
    }
    counts.unmapped = policy.nr_unmapped() - unmapped;
    counts
}
