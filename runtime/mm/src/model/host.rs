//! What the walk asks of its host: lending vmas and objects, sleeping, and passing work to threads that may block.
//!
//! # Context: handler

use crate::claim::{Claim, Telling};
use crate::ctx::Ctx;
use crate::delegation::Delegation;
use crate::mapping::Mapping;
pub use crate::ops::BATCH;
use crate::ops::{Staged, WaitKey, Zap};
use crate::stall::Stall;
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
    ///
    /// # Context: handler if the delegation says so
    fn with_telling<'f>(&self, telling: &Telling, f: &mut (dyn FnMut(&Delegation<'_>, &Mapping<'_>) + 'f));

    /// Runs `f` inside a section in which objects and the vmas that map them can be looked up by number; `false`: this
    /// thread cannot enter one, `f` was not run.
    ///
    /// # Context: handler
    fn with_rmap<'f>(&self, f: &mut (dyn FnMut(&dyn Rmap) + 'f)) -> bool;

    /// Runs `f` with the memory of one batch of reclaim, for pages of the cache that has this
    /// [`name`](crate::memcontrol::CacheAccount::name), and no asynchronous signal until it returns; `false`: none is free
    /// now, `f` was not run.
    ///
    /// # Context: handler
    fn with_batch<'f>(&self, cache: usize, f: &mut (dyn FnMut(&mut Batch) + 'f)) -> bool;

    /// Returns a ticket: who has a batch of reclaim now, or had one until now, got it before.
    ///
    /// # Context: handler
    fn reclaim_ticket(&self) -> u64 {
        0
    }

    /// Returns whether anybody has had a batch for the cache since before the ticket, and so pages that nobody else sees. The
    /// caller has none itself.
    ///
    /// # Context: handler
    fn has_reclaim_from_before(&self, _cache: usize, _ticket: u64) -> bool {
        false
    }

    /// Returns whether every section that was entered before has been left, and the pins that were taken for installs are gone; it
    /// gives the processor away for that, but does not wait for a system call of another thread that takes long. The caller is in
    /// none.
    ///
    /// # Context: handler
    fn have_sections_settled(&self) -> bool {
        true
    }

    /// Runs `f`, which calls a store or a delegate. In a handler the signals of instructions are open meanwhile if that code
    /// `may_fault`.
    ///
    /// # Context: handler if the code says so
    fn in_user_code<'f>(&self, _may_fault: bool, f: &mut (dyn FnMut() + 'f)) {
        f();
    }

    /// Hides pages that are exposed by protection, so that others can be: `None`. There is no room to be made for now: what
    /// moves when somebody has made some; the program gives mappings back without a word.
    ///
    /// # Context: handler, outside the section
    fn make_room(&self) -> Option<WaitKey> {
        None
    }

    /// Claims a staging page; `None`: all are in use.
    ///
    /// # Context: handler
    fn get_staged(&self) -> Option<Staged>;

    /// Gives a staging page back.
    ///
    /// # Context: handler
    fn put_staged(&self, staged: Staged);
}

/// What code outside a section needs around it.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// Lends vmas and objects.
    pub mm: &'a dyn AddressSpace,
    /// Sleeps and passes work on.
    pub park: &'a dyn Park,
}

impl Env<'_> {
    /// Lends the object of a claim to `f`, and gives it the claim: to spend, or to return. A `FnMut` behind a trait object cannot
    /// be given what may be used once; this is the one place that says so.
    ///
    /// # Errors
    /// The claim, untouched, where `f` was not run.
    ///
    /// # Context: as `f`
    #[inline]
    pub fn lend<R>(self, claim: Claim, f: impl FnOnce(&Mapping<'_>, Claim) -> R) -> Result<R, Claim> {
        let id = Claim::new(claim.mapping_id(), claim.pgoff(), 0);
        let (mut pending, mut result) = (Some((claim, f)), None);
        self.mm.with_claim(&id, &mut |m| {
            if let Some((claim, f)) = pending.take() {
                result = Some(f(m, claim));
            }
        });
        match (result, pending) {
            (Some(result), _) => Ok(result),
            (None, Some((claim, _))) => Err(claim),
            // It was run, and did not come back: a debug assertion unwinds.
            (None, None) => Err(id),
        }
    }

    /// The same for `f` that spends the claim.
    ///
    /// # Context: handler
    #[inline]
    pub fn spend(self, claim: Claim, f: impl FnOnce(&Mapping<'_>, Claim)) {
        let lent = self.lend(claim, f);
        debug_assert!(lent.is_ok(), "a claim keeps its object alive");
    }

    /// Lends the delegation and the object of a telling to `f`, which spends it.
    ///
    /// # Context: as `f`
    #[cfg(feature = "userfaultfd")]
    #[inline]
    pub(crate) fn spend_telling(self, telling: Telling, f: impl FnOnce(&Delegation<'_>, &Mapping<'_>, Telling)) {
        let id = telling.again();
        let mut pending = Some((telling, f));
        self.mm.with_telling(&id, &mut |d, m| {
            if let Some((telling, f)) = pending.take() {
                f(d, m, telling);
            }
        });
        debug_assert!(pending.is_none(), "a telling keeps its delegation alive");
    }
}

impl core::fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Env")
    }
}

/// Which mappings of an object are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those whose stores reach the object.
    Shared,
    /// Those with copies of their own.
    Private,
}

/// From an object to its mappings. Linux: `i_mmap`, `mm/rmap.c`. Valid inside the section it was lent in.
///
/// A vma is found here from before it is published until after nobody walks it any more:
/// ```text
/// map                                 reclaim
/// add to the list (Release)
/// publish; a fault pins, installs, unpins
///                                     CAS with pins = 0: sees the unpin
///                                     walks the list: sees the vma
/// ```
pub trait Rmap {
    /// Returns the object with this number, if there is one.
    ///
    /// # Context: handler, inside a section
    fn mapping(&self, id: u32) -> Option<&Mapping<'_>>;

    /// Calls `f` for each vma of the object.
    ///
    /// # Context: handler, inside a section
    fn for_each_vma<'f>(&self, id: u32, which: Which, f: &mut (dyn FnMut(&Vma<'_>) + 'f));
}

/// The memory of one batch of reclaim: too much for a signal stack.
#[derive(Debug)]
pub struct Batch {
    /// The pages: object and page number.
    pub pages: [(u32, u64); BATCH],
    /// What is to be unmapped.
    pub zaps: [Zap; BATCH],
}

impl Batch {
    /// Returns an empty one.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn new() -> Self {
        Self { pages: [(0, 0); BATCH], zaps: [Zap { addr: 0, len_bytes: 0 }; BATCH] }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
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
    /// The caller holds no pin, no section and no claim. A handler does not sleep here: it says [`Woken::NotNow`], and
    /// sleeps when it holds nothing at all.
    ///
    /// # Context: handler, outside of sections
    fn wait(&self, ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Woken;

    /// Sleeps for some milliseconds at most, until the cache may have got on: a thread that does not wait says so for longer, and
    /// a handler for which a signal is pending says [`Woken::NotNow`].
    ///
    /// # Context: handler, outside of sections
    fn nap(&self, ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Woken {
        self.wait(ctx, key, timeout_ns)
    }

    /// Returns, once, what the thread has seen of a full cache or object, at `addr`, before it went away; `None`: it was not
    /// there lately.
    ///
    /// # Context: handler
    fn take_stall(&self, _addr: usize) -> Option<Stall> {
        None
    }

    /// Keeps that for a thread that goes away, as [`Woken::NotNow`] says, until it comes back.
    ///
    /// # Context: handler
    fn keep_stall(&self, _addr: usize, _stall: Stall) {}

    /// Returns the monotonic clock's reading, for what is written down.
    ///
    /// # Context: handler
    fn now_ns(&self) -> u64 {
        0
    }

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

    /// Passes pages to a thread that writes them out: the claim holds the object, and names pages that are its own
    /// affair. Linux: `wakeup_flusher_threads`.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// The claim, when there is no room or no such thread.
    fn submit_writeback(&self, claim: Claim) -> Result<(), Claim> {
        Err(claim)
    }

    /// Gives the processor away once.
    ///
    /// # Context: handler
    fn relax(&self);
}
