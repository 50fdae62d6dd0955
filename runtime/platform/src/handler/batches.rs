//! The fixed pool of memory for batches of reclaim: too much for a signal stack, and a handler cannot allocate.
//!
//! # Context: handler

use crate::bits::Bits;
use crate::child;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering, fence};
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

/// Returns a ticket that is younger than those of all who have a batch by now.
///
/// # Context: handler
pub fn ticket() -> u64 {
    TICKET.fetch_add(1, Ordering::Relaxed)
}

/// Returns whether somebody has had a batch since before the ticket.
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
pub fn has_one_from_before(ticket: u64) -> bool {
    // In a child none of the threads that had one is left.
    if child::in_child() {
        return false;
    }
    // SeqCst pairs with that of `with_batch`: see above.
    fence(Ordering::SeqCst);
    // Acquire pairs with the Release of `Used::drop`: what was in hand is where it can be looked at.
    let taken = TAKEN.iter().map(|t| t.load(Ordering::Acquire));
    taken.filter(|t| *t != 0).any(|t| t < ticket)
}

/// Runs `f` with a batch that nobody else has; `false`: all are in use.
///
/// # Context: handler
pub fn with_batch(f: &mut dyn FnMut(&mut Batch)) -> bool {
    let Some(at) = USED.take(NR_BATCHES) else { return false };
    let _used = Used(at);
    if let Some(taken) = TAKEN.get(at) {
        taken.store(ticket(), Ordering::Relaxed);
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
