//! What the walk asks of its host: lending vmas and objects, sleeping, and passing work to threads that may block.

use crate::claim::{Claim, Telling};
use crate::ctx::Ctx;
use crate::delegation::Delegation;
use crate::mapping::Mapping;
use crate::ops::{Staged, WaitKey};
use crate::types::VmFaultReason;
use crate::vma::Vma;

/// The runtime's address space: it owns vmas and objects and lends them.
pub trait AddressSpace {
    /// Runs `f` on the vma that holds `address`, inside a fault section; `None`: no vma.
    ///
    /// The vma and everything it refers to stay as they are until `f` returns. `f` must not sleep.
    ///
    /// # Context: handler
    fn with_vma<'f>(
        &self,
        address: usize,
        f: &mut (dyn FnMut(&Vma<'_>) -> VmFaultReason + 'f),
    ) -> Option<VmFaultReason>;

    /// Runs `f` on the object of a claim, which the claim keeps alive; no section is held, `f` may sleep.
    ///
    /// # Context: handler if the claim's object says so
    fn with_claim<'f>(&self, claim: &Claim, f: &mut (dyn FnMut(&Mapping<'_>) + 'f));

    /// Runs `f` on the delegation (and the object) of a telling, which the telling keeps alive; `f` may sleep.
    fn with_telling<'f>(&self, telling: &Telling, f: &mut (dyn FnMut(&Delegation<'_>, &Mapping<'_>) + 'f));

    /// Claims a staging page; `None`: all are in use.
    ///
    /// # Context: handler
    fn get_staged(&self) -> Option<Staged>;

    /// Gives a staging page back.
    ///
    /// # Context: handler
    fn put_staged(&self, staged: Staged);
}

/// What woke a sleeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The word moved, or there was no need to sleep, or no cause at all: look again.
    LookAgain,
    /// The time is over.
    TimedOut,
    /// This thread does not wait: the fault is to be resumed later.
    NotNow,
}

/// Sleeping and waking, and passing work to a thread that may block.
pub trait Park {
    /// Sleeps while the 32-bit word at `key.addr` equals `key.seen`, at most `timeout_ns`.
    ///
    /// The caller holds no pin, no section and no claim. In a handler the interrupted signal mask is in force while
    /// the thread sleeps.
    fn wait(&self, ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Woken;

    /// Wakes everyone who sleeps on the word at `addr`.
    ///
    /// # Context: handler
    fn wake(&self, addr: usize);

    /// Passes a claim to the fillers.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// The claim, when there is no room or no filler.
    fn submit(&self, claim: Claim) -> Result<(), Claim>;

    /// Returns whether the fillers have more to do than they get done: nothing is read ahead then.
    ///
    /// # Context: handler
    fn is_congested(&self) -> bool {
        false
    }

    /// Passes a telling to a worker.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// The telling, when there is no room or no worker.
    fn submit_telling(&self, telling: Telling) -> Result<(), Telling>;

    /// Gives the processor away once.
    ///
    /// # Context: handler
    fn relax(&self);
}
