//! The context token: who runs this walk, and what it may do.
//!
//! # Context: handler

use crate::types::{FillError, VmFaultReason};
use core::cell::Cell;
use core::marker::PhantomData;

/// Proof that the calling thread is attached to the runtime for the length of one fault, and what it may do.
///
/// It is passed down the whole walk, so that nothing below needs thread-local storage, a clock of its own or a guess
/// about where it runs. It cannot be sent to another thread.
#[derive(Debug)]
pub struct Ctx<'a> {
    /// Which stripe of the counters this thread uses.
    pub stripe: usize,
    /// A handler interrupted by another fault: no store code runs at this depth, fills go to a filler.
    pub nested: bool,
    /// The thread may not stay on its stack for as long as it likes: no code of the user's runs here.
    pub cramped: bool,
    /// One of the runtime's own threads, which read what they are given: they would wait for each other.
    pub is_helper: bool,
    /// Not in a signal handler: code that sleeps, allocates or locks may be called directly.
    pub can_block: bool,
    /// The signal mask of the interrupted code: a wait is left when a signal is pending that it has not blocked.
    pub mask: u64,
    /// Ticks of the cheapest clock, for the histogram; sampled faults only.
    pub clock: Option<fn() -> u64>,
    /// The last install found the range not ours: if the same access comes back again and again, nothing resolves it.
    gone: Cell<bool>,
    /// The last attempt found no room to expose the page, and none could be made.
    crowded: Cell<bool>,
    /// Why the last attempt failed, if it did and who failed it knows.
    cause: Cell<Option<FillError>>,
    not_send: PhantomData<*const &'a ()>,
}

impl Ctx<'_> {
    /// Returns a context for a signal handler.
    ///
    /// # Context: handler
    #[must_use]
    pub fn handler(stripe: usize, nested: bool, mask: u64, clock: Option<fn() -> u64>) -> Self {
        Self {
            stripe,
            nested,
            cramped: false,
            is_helper: false,
            can_block: false,
            mask,
            clock,
            gone: Cell::new(false),
            crowded: Cell::new(false),
            cause: Cell::new(None),
            not_send: PhantomData,
        }
    }

    /// Returns a context for ordinary code (`fault_in`, the monitor, helper threads).
    ///
    /// # Context: control plane, and helpers
    #[must_use]
    pub fn thread(stripe: usize) -> Self {
        Self {
            stripe,
            nested: false,
            cramped: false,
            is_helper: false,
            can_block: true,
            mask: 0,
            clock: None,
            gone: Cell::new(false),
            crowded: Cell::new(false),
            cause: Cell::new(None),
            not_send: PhantomData,
        }
    }

    /// Notes that an install found the range not ours: unmapped, or the kernel's own by now.
    pub(crate) fn note_gone(&self) {
        self.gone.set(true);
    }

    /// Notes that there was no room to expose the page, and that none could be made.
    pub(crate) fn note_crowded(&self) {
        self.crowded.set(true);
    }

    /// Forgets both: another attempt begins.
    pub(crate) fn begin_attempt(&self) {
        self.gone.set(false);
        self.crowded.set(false);
        self.cause.set(None);
    }

    /// Notes why the access fails; returns the bits that say so.
    pub(crate) fn fail(&self, error: FillError) -> VmFaultReason {
        self.cause.set(Some(error));
        error.reason()
    }

    /// Returns why the access failed; `None`: it did not, or a vtable of the user's said no.
    ///
    /// # Context: handler
    #[must_use]
    pub fn cause(&self) -> Option<FillError> {
        self.cause.get()
    }

    /// Returns whether an install of this fault found the range not ours. The instruction may run again, but not for
    /// ever.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Returns whether the fault goes round because the host has no room to expose its page, and none could be made. An
    /// instruction may wait for that; a call has an error for it.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.crowded.get()
    }

    /// Returns the clock's reading, or 0 when this fault is not sampled.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.map_or(0, |c| c())
    }
}
