//! What may be found after a crash: of each sector what it was when a sync last covered it, or anything it has been since.

use crate::common::PAGE;
use crate::disk::{Disk, SECTOR};
use softfault::Error;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What something has been, oldest first. Numbers are written once each; 0 is a hole.
#[derive(Clone, Debug)]
struct History {
    all: Vec<u64>,
    /// How many of them were begun and are done: the rest is under way.
    done: usize,
    /// The oldest that a crash may leave.
    safe: usize,
}

impl History {
    fn new(first: u64) -> Self {
        Self { all: vec![first], done: 1, safe: 0 }
    }
    fn begin(&mut self, value: u64) {
        self.all.push(value);
    }
    fn end(&mut self) {
        self.done = self.all.len();
    }
}

/// The histories of all sectors, each of which one thread at a time writes, and of the end.
pub(crate) struct Book {
    sectors: Mutex<Vec<History>>,
    end: Mutex<History>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Odd: what it multiplies can be told from the product.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// How a number is written, over and over. A word may be torn, between any two bytes, by a copy that runs beside a store and
/// by a write that fails: so every byte of it says which number it is of, nearly.
pub(crate) fn word(value: u64) -> [u8; 8] {
    value.wrapping_mul(SPREAD).to_le_bytes()
}

/// Returns whether each byte is that of some version.
fn is_of(word_found: &[u8], versions: &[[u8; 8]]) -> bool {
    (0..8).all(|i| versions.iter().any(|v| v[i] == word_found[i]))
}

/// The number that a word is of, if it is whole.
fn value(word_found: &[u8]) -> u64 {
    // Newton: each step doubles the bits that are right.
    let inverse = (0..6).fold(1u64, |x, _| x.wrapping_mul(2u64.wrapping_sub(SPREAD.wrapping_mul(x))));
    u64::from_le_bytes(word_found.try_into().expect("eight bytes")).wrapping_mul(inverse)
}

impl Book {
    /// Zeros, durably.
    pub(crate) fn new(sectors: usize) -> Self {
        let end = History::new((sectors * SECTOR) as u64);
        Self { sectors: Mutex::new(vec![History::new(0); sectors]), end: Mutex::new(end) }
    }
    /// Runs what makes each of the sectors `value`.
    pub(crate) fn write(&self, sectors: Range<usize>, value: u64, f: impl FnOnce()) {
        lock(&self.sectors)[sectors.clone()].iter_mut().for_each(|h| h.begin(value));
        f();
        lock(&self.sectors)[sectors].iter_mut().for_each(History::end);
    }
    /// Runs what moves the end. What lies past a lower one is zeros if it comes back.
    pub(crate) fn set_len(&self, len: u64, f: impl FnOnce()) {
        lock(&self.end).begin(len);
        let all = lock(&self.sectors).len();
        self.write((len as usize / SECTOR).min(all)..all, 0, f);
        lock(&self.end).end();
    }
    /// Runs a call that makes the sectors durable, and notes it if it says so.
    pub(crate) fn sync(&self, sectors: &Range<usize>, f: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let before: Vec<_> = lock(&self.sectors)[sectors.clone()].iter().map(|h| h.done - 1).collect();
        let end = lock(&self.end).done - 1;
        f()?;
        for (h, done) in lock(&self.sectors)[sectors.clone()].iter_mut().zip(before) {
            h.safe = h.safe.max(done);
        }
        let mut h = lock(&self.end);
        h.safe = h.safe.max(end);
        Ok(())
    }
    /// Pulls the plug, and compares what the next boot finds.
    pub(crate) fn crash(&self, what: &str, disk: &Disk, seed: u64) {
        let safe: Vec<usize> = lock(&self.sectors).iter().map(|h| h.safe).collect();
        let safe_end = lock(&self.end).safe;
        let after = disk.crash(seed).content();
        let ends = lock(&self.end).all[safe_end..].to_vec();
        assert!(ends.contains(&(after.len() as u64)), "{what}, crash {seed}: it ends at {}, not {ends:?}", after.len());
        let sectors = lock(&self.sectors);
        for (s, bytes) in after.chunks_exact(SECTOR).enumerate() {
            let may = &sectors[s].all[safe[s]..];
            let versions: Vec<_> = may.iter().map(|v| word(*v)).collect();
            // Most repeat one word.
            let repeats = bytes[8..] == bytes[..SECTOR - 8];
            let looked_at = if repeats { &bytes[..8] } else { bytes };
            let bad = looked_at.chunks_exact(8).find(|w| !is_of(w, &versions));
            let (page, (durable, since)) = (s / (PAGE / SECTOR), may.split_first().expect("it begins with zeros"));
            assert!(
                bad.is_none(),
                "{what}, crash {seed}: sector {s} (page {page}) is {:?}; {durable} is durable, {since:?} were written since",
                bad.map(value)
            );
        }
    }
    /// How many sectors were ever durable as something that was written.
    pub(crate) fn nr_safe(&self) -> usize {
        lock(&self.sectors).iter().filter(|h| h.safe > 0).count()
    }
}
