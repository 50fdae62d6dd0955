//! Which of a few things are in use: one bit each, taken and given back without a lock.
//!
//! # Context: handler

use core::sync::atomic::{AtomicU64, Ordering};

/// One bit a thing, of at most 64: in use.
#[derive(Debug, Default)]
pub(crate) struct Bits(AtomicU64);

impl Bits {
    /// Nothing is in use.
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Takes the lowest of the first `nr` things that nobody has; `None`: all are in use.
    #[inline]
    pub(crate) fn take(&self, nr: usize) -> Option<usize> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let free = seen.trailing_ones();
            if free >= u64::BITS || free as usize >= nr {
                return None;
            }
            // Acquire pairs with `Bits::put`: the last user is done with the thing.
            match self.0.compare_exchange_weak(seen, seen | (1 << free), Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(free as usize),
                Err(now) => seen = now,
            }
        }
    }

    /// Gives a thing back, which the caller has taken.
    #[inline]
    pub(crate) fn put(&self, at: usize) {
        // Release pairs with `Bits::take`.
        self.0.fetch_and(!(1 << (at as u32 % u64::BITS)), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_nobody_elses_until_it_is_put_back() {
        let bits = Bits::new();
        assert_eq!([bits.take(2), bits.take(2), bits.take(2)], [Some(0), Some(1), None]);
        bits.put(0);
        assert_eq!((bits.take(2), bits.take(64)), (Some(0), Some(2)));
        (3..64).for_each(|at| assert_eq!(bits.take(64), Some(at)));
        assert_eq!(bits.take(64), None);
    }
}
