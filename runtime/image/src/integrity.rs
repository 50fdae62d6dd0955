//! How often bytes are verified, and which have been.
//!
//! # Context: control plane; allocates

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is done with bytes before they are given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Integrity {
    /// Each time that they are read they are verified, where there are digests.
    #[default]
    Lazy,
    /// The first time: who can change the file afterwards is trusted, or cannot.
    Once,
    /// Never: the file is what it was when it was written.
    Trusted,
}

/// Which units were verified, for [`Integrity::Once`]: one bit a unit, made when the first one is noted.
#[derive(Debug)]
pub(crate) struct Seen {
    nr: u64,
    bits: OnceLock<Box<[AtomicU64]>>,
}

impl Seen {
    pub(crate) fn new(nr: u64) -> Self {
        Self { nr, bits: OnceLock::new() }
    }

    /// Returns whether unit `i` has to be verified.
    pub(crate) fn must_look(&self, i: u64, integrity: Integrity) -> bool {
        match integrity {
            Integrity::Lazy => true,
            Integrity::Trusted => false,
            // Relaxed: who misses that it was verified verifies it once more.
            Integrity::Once => {
                let word = self.bits.get().and_then(|bits| bits.get((i / 64) as usize));
                word.is_none_or(|w| w.load(Ordering::Relaxed) & 1 << (i % 64) == 0)
            }
        }
    }

    /// Notes that unit `i` is what it should be.
    pub(crate) fn looked(&self, i: u64, integrity: Integrity) {
        if integrity == Integrity::Once {
            let bits = self.bits.get_or_init(|| (0..self.nr.div_ceil(64)).map(|_| AtomicU64::new(0)).collect());
            if let Some(word) = bits.get((i / 64) as usize) {
                word.fetch_or(1 << (i % 64), Ordering::Relaxed);
            }
        }
    }
}
