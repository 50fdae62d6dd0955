//! How long a thread has found no room in the cache, and what it has to know to prove that there will be none.
//!
//! # Context: handler

use crate::ops::WaitKey;

/// What one look of a thread that does not sleep counts for, at most: it comes back when it may.
const NAPS_MAX: u64 = 10;
/// Naps while a store has been given pages, or is reading: it gets longer.
const BUSY_MAX: u32 = 5_000;
/// The same where that has just been so for as long.
const BUSY_AGAIN: u32 = 16;
/// Naps without any progress while something was under way, after which stores are taken for slow: 32 ms.
const STUCK: u32 = 16;
/// Batches that a thread looks at without a nap, in which signals come: some ten milliseconds.
const BREATH: u32 = 1_024;

/// How long nothing has been freed, as one thread sees it. It begins anew with each page that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// When it began, or the last look that counted.
    at_ns: u64,
    /// Its thread went away: what was full, and what moves when there is room, as it was then.
    left: Option<WaitKey>,
    /// Somebody had pages in hand, at a time when this would have been over.
    pub(crate) outlasted: bool,
    /// Another one was over without progress before this began.
    pub(crate) is_again: bool,
    /// Something was under way for long before this began.
    was_busy: bool,
    /// Everything on probation had its verdict, after twice as many entries had been looked at as there are pages; of an object
    /// with a limit of its own, the hand has been round three times.
    went_round: bool,
    /// Entries looked at for nothing; of an object with a limit of its own, pages that the hand has passed since it met one that
    /// was busy.
    pub(crate) scanned: u64,
    /// All pages that the hand has passed.
    passed: u64,
    /// Entries on probation, or in `small`, that have no verdict yet, of those that were there when this look at all of them began.
    pub(crate) unjudged: u64,
    /// Pages met, since this look at all of them began, that can go when their store has flushed.
    owed: u64,
    /// The same of the look before that.
    owed_before: u64,
    /// Batches since the thread last let signals in.
    pub(crate) batches: u32,
    /// Naps after which nothing was under way.
    pub(crate) idle: u32,
    /// Naps after which something was.
    pub(crate) busy: u32,
    /// All of them since there was progress: with a deadline they end.
    naps: u64,
    /// Who reclaims since before this may have had pages in hand while they were looked for.
    pub(crate) ticket: u64,
}

impl Stall {
    /// Of a thread that has found room so far.
    pub const NONE: Self = Self {
        at_ns: 0,
        left: None,
        outlasted: false,
        is_again: false,
        was_busy: false,
        went_round: false,
        scanned: 0,
        passed: 0,
        unjudged: 0,
        owed: 0,
        owed_before: 0,
        batches: 0,
        idle: 0,
        busy: 0,
        naps: 0,
        ticket: 0,
    };

    /// Returns one that begins now: at `at_ns`, with this ticket of reclaim.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn new(at_ns: u64, ticket: u64) -> Self {
        Self { at_ns, ticket, ..Self::NONE }
    }

    /// Returns this one as what follows `before`, in which there was no progress: a look at what others had in hand then.
    pub(crate) fn again(self, before: &Self) -> Self {
        Self { naps: before.naps, is_again: true, was_busy: before.is_busy_for_long(), ..self }
    }

    /// The thread goes away; `full` says what was full, and what moves when there is room.
    pub(crate) fn leave(&mut self, full: WaitKey) {
        self.left = Some(full);
    }

    /// Returns whether a thread that is back goes on with this: it wants room in the same place, and nobody has got on meanwhile.
    pub(crate) fn goes_on(&self, full: WaitKey) -> bool {
        self.left == Some(full)
    }

    /// Counts a nap that ends now; `away`: the thread has not slept, it is rung for or comes back after a while, and what counts
    /// is the time since the last look that did.
    pub(crate) fn count(&mut self, now_ns: u64, nap_ns: u64, away: bool, busy: bool) {
        self.batches = 0;
        let nr = if away { (now_ns.saturating_sub(self.at_ns) / nap_ns).min(NAPS_MAX) } else { 1 };
        if nr > 0 {
            self.at_ns = now_ns;
        }
        self.naps = self.naps.saturating_add(nr);
        let count = if busy { &mut self.busy } else { &mut self.idle };
        *count = count.saturating_add(u32::try_from(nr).unwrap_or(0));
    }

    /// Returns whether it has lasted for `naps`, and for as long as one with something under way.
    pub(crate) fn is_over(&self, naps: u64) -> bool {
        self.naps > naps.max(u64::from(BUSY_MAX))
    }

    /// Returns whether what stores have in hand has not got on for a while: one that writes anything is progress.
    pub(crate) fn is_stuck(&self) -> bool {
        self.busy > STUCK
    }

    pub(crate) fn is_busy_for_long(&self) -> bool {
        self.busy > if self.was_busy { BUSY_AGAIN } else { BUSY_MAX }
    }

    /// Returns whether the thread has looked at batches for so long that it is to let signals in.
    pub(crate) fn is_out_of_breath(&mut self) -> bool {
        self.batches += 1;
        let is = self.batches >= BREATH;
        if is {
            self.batches = 0;
        }
        is
    }

    /// Counts a look at `scanned` entries for nothing, of a cache of `limit` pages. Returns whether it ends a round: there was
    /// nothing in any queue, or all on probation have their verdict.
    pub(crate) fn look(&mut self, limit: u64, scanned: u64) -> bool {
        let whole = self.is_whole(limit);
        self.scanned = self.scanned.saturating_add(scanned);
        self.went_round |= whole && self.unjudged == 0;
        scanned == 0 || (whole && self.unjudged == 0)
    }

    /// Begins a look at all entries that have no verdict yet, of which there are so many.
    pub(crate) fn begin_look(&mut self, unjudged: u64) {
        self.unjudged = unjudged;
        (self.owed_before, self.owed) = (self.owed, 0);
    }

    /// Notes what a batch has met: pages that can go when their store has flushed.
    pub(crate) fn note_owed(&mut self, nr: u64) {
        self.owed = self.owed.saturating_add(nr);
    }

    /// Returns whether there are pages that can go when their store has flushed, as far as this look or the one before it has met
    /// them.
    pub(crate) fn is_owed(&self) -> bool {
        self.owed > 0 || self.owed_before > 0
    }

    /// The hand of an object with a limit of its own has passed so many pages for nothing; `rounds`: so many make three rounds.
    pub(crate) fn pass(&mut self, nr: u64, rounds: u64, is_busy: bool) {
        self.scanned = if is_busy { 0 } else { self.scanned.saturating_add(nr) };
        self.passed = self.passed.saturating_add(nr);
        self.went_round |= self.passed > rounds;
    }

    /// Returns whether something was under way for long, and everything was looked at.
    pub(crate) fn is_busy_in_vain(&self) -> bool {
        self.went_round && self.is_busy_for_long()
    }

    /// Returns whether so much was looked at that everything on probation is to get its verdict.
    pub(crate) fn is_whole(&self, limit: u64) -> bool {
        self.scanned > limit.saturating_mul(2)
    }

    /// Returns whether what is under way is waited for, batch by batch; who has done so for long looks at everything first.
    pub(crate) fn is_patient(&self) -> bool {
        self.went_round || !self.is_busy_for_long()
    }

    /// Returns whether everything was looked at several times, and as many naps passed: before each idle one the thread has
    /// looked at everything on probation, or there was nothing to look at in any queue, as there is now if `is_empty`.
    pub(crate) fn is_long(&self, limit: u64, is_empty: bool) -> bool {
        let is_idle_for_long = self.idle > 16 && (self.scanned > limit.saturating_mul(4) || self.idle > 64);
        is_idle_for_long || self.is_busy_in_vain() || (is_empty && self.is_busy_for_long())
    }
}
