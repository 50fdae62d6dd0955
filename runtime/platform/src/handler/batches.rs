//! The fixed pool of memory for batches of reclaim: too much for a signal stack, and a handler cannot allocate.
//!
//! # Context: handler

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};
use softfault_mm::host::Batch;

const NR_BATCHES: usize = 16;

struct Pool([UnsafeCell<Batch>; NR_BATCHES]);

// SAFETY: a batch is touched only by who holds its bit of USED.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool([const { UnsafeCell::new(Batch::new()) }; NR_BATCHES]);
/// One bit a batch: in use.
static USED: AtomicU32 = AtomicU32::new(0);

/// Runs `f` with a batch that nobody else has; `false`: all are in use.
pub fn with_batch(f: &mut dyn FnMut(&mut Batch)) -> bool {
    let mut seen = USED.load(Ordering::Relaxed);
    let at = loop {
        let free = seen.trailing_ones();
        if free as usize >= NR_BATCHES {
            return false;
        }
        // Acquire pairs with `Used::drop`: the last user is done with it.
        match USED.compare_exchange_weak(seen, seen | (1 << free), Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => break free,
            Err(now) => seen = now,
        }
    };
    let _used = Used(at);
    let Some(cell) = POOL.0.get(at as usize) else { return false };
    // SAFETY: our bit keeps everybody else away until `_used` is dropped.
    f(unsafe { &mut *cell.get() });
    true
}

/// Gives the batch back, also when a debug assertion unwinds.
struct Used(u32);

impl Drop for Used {
    fn drop(&mut self) {
        // Release pairs with `with_batch`.
        USED.fetch_and(!(1 << self.0), Ordering::Release);
    }
}
