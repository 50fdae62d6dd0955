//! The fixed pool of memory for batches of reclaim: too much for a signal stack, and a handler cannot allocate.
//!
//! # Context: handler

use crate::bits::Bits;
use crate::child;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use softfault_mm::host::Batch;

const NR_BATCHES: usize = 16;

struct Pool([UnsafeCell<Batch>; NR_BATCHES]);

// SAFETY: a batch is touched only by who holds its bit of USED.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool([const { UnsafeCell::new(Batch::new()) }; NR_BATCHES]);
/// One bit a batch: in use.
static USED: Bits = Bits::new();

/// The next ticket.
static TICKET: AtomicU64 = AtomicU64::new(1);
/// The tickets with which batches were taken; 0: nobody has it.
static TAKEN: [AtomicU64; NR_BATCHES] = [const { AtomicU64::new(0) }; NR_BATCHES];
/// Of which cache the pages are that a batch was last taken for.
static CACHE: [AtomicUsize; NR_BATCHES] = [const { AtomicUsize::new(0) }; NR_BATCHES];

/// Returns a ticket that is younger than those of all who have a batch by now.
///
/// # Context: handler
pub fn ticket() -> u64 {
    TICKET.fetch_add(1, Ordering::Relaxed)
}

/// Returns whether somebody has had a batch of the cache's pages since before the ticket. One that reclaims for another runtime,
/// and sits in a store that hangs, is nothing to wait for.
///
/// ```text
/// reclaimer                          thread
/// TAKEN = its ticket, fence
/// takes a page out of a queue
///                                    looks at the queue: the page is not there
///                                    fence, TAKEN: sees it
/// puts it back, or frees it
/// TAKEN = 0 (Release)
///                                    TAKEN: 0 (Acquire); looks at the queue: sees what became of it
/// ```
///
/// # Context: handler
pub fn has_one_from_before(cache: usize, ticket: u64) -> bool {
    // In a child none of the threads that had one is left.
    if child::in_child() {
        return false;
    }
    // SeqCst pairs with that of `with_batch`: see above.
    fence(Ordering::SeqCst);
    // Acquire pairs with the Release of `Used::drop`: what was in hand is where it can be looked at.
    let is_older = |taken: &AtomicU64| (1..ticket).contains(&taken.load(Ordering::Acquire));
    // Acquire pairs with `with_batch`: who sees that it is another cache's by now sees what became of the former batch's pages.
    TAKEN.iter().zip(&CACHE).any(|(taken, of)| is_older(taken) && of.load(Ordering::Acquire) == cache)
}

/// Runs `f` with a batch that nobody else has, for pages of the cache; `false`: all are in use.
///
/// # Context: handler
pub fn with_batch(cache: usize, f: &mut dyn FnMut(&mut Batch)) -> bool {
    let Some(at) = USED.take(NR_BATCHES) else { return false };
    let _used = Used(at);
    if let (Some(taken), Some(of)) = (TAKEN.get(at), CACHE.get(at)) {
        // Release of both pairs with the Acquires of `has_one_from_before`.
        of.store(cache, Ordering::Release);
        taken.store(ticket(), Ordering::Release);
        // SeqCst pairs with that of `has_one_from_before`.
        fence(Ordering::SeqCst);
    }
    let Some(cell) = POOL.0.get(at) else { return false };
    // SAFETY: our bit keeps everybody else away until `_used` is dropped.
    f(unsafe { &mut *cell.get() });
    true
}

/// Gives the batch back, also when a debug assertion unwinds.
struct Used(usize);

impl Drop for Used {
    fn drop(&mut self) {
        if let Some(taken) = TAKEN.get(self.0) {
            // Release pairs with the Acquire of `has_one_from_before`.
            taken.store(0, Ordering::Release);
        }
        USED.put(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reclaims_for_another_cache_is_nothing_to_wait_for() {
        let (ours, others) = (0x5f00_0000_1000, 0x5f00_0000_2000);
        assert!(with_batch(others, &mut |_| {
            let after = ticket();
            assert!(has_one_from_before(others, after));
            assert!(!has_one_from_before(ours, after), "its batch is another cache's");
            assert!(with_batch(ours, &mut |_| {
                assert!(!has_one_from_before(ours, after), "it came later");
                assert!(has_one_from_before(ours, ticket()));
            }));
            assert!(!has_one_from_before(ours, ticket()), "it was given back");
        }));
    }
}
