//! The folio word: one `AtomicU64` per page of an object, holding the state, the flags, the pins and the version.
//!
//! ```text
//!  63        48 47        32 31        16 15 14 13 12 11 10 9 8 7 6 5 4 3 2   0
//! +------------+------------+------------+--+--+--+-----+--+-+-+-+-+-+-+-+-----+
//! | version hi |    pins    | version lo |U |A |H | Y Y |L |V|I|S|O|W|R|D|state|
//! +------------+------------+------------+--+--+--+-----+--+-+-+-+-+-+-+-+-----+
//!   U unmapped  A readahead  H held  Y unsynced (two turns)  L lost  V vacant  I isolated  S dsynced  O overdue
//!   W waiters  R referenced  D dirty
//! ```
//! State, flags and waiters lie in the low half, which a futex can compare. All-zero is `absent`, so a table of words
//! is an untouched anonymous mapping. An absent page has no pins: the field holds its *shadow* instead, the time of its
//! eviction (as Linux keeps a shadow entry in the slot of an evicted folio, `mm/workingset.c`), and that of a poisoned page
//! its error.
//!
//! | state     | who may leave it                     | mapped? | bytes may be    | pins  | left by                                    |
//! |-----------|--------------------------------------|---------|-----------------|-------|--------------------------------------------|
//! | absent    | anyone, by claiming                  | never   | nothing         | shadow | [`FolioWord::try_claim`], [`FolioWord::try_vacate`] |
//! | filling   | only the owner of the claim          | never   | written, owner  | 0     | [`FolioWord::publish`], [`FolioWord::fail`], [`FolioWord::abandon`] |
//! | uptodate  | evict, write-back, rewrite: pins = 0 | yes     | read and written under a pin | any | [`FolioWord::try_evict`], [`FolioWord::try_discard`], [`FolioWord::try_writeback`], [`FolioWord::try_rewrite`] |
//! | writeback | only the flusher                     | yes     | as uptodate     | any   | [`FolioWord::end_writeback`]               |
//! | evicting  | only the evictor                     | no more | nothing         | 0     | [`FolioWord::evicted`], [`FolioWord::evict_undo`] |
//! | the same, `VACANT` | only who keeps it empty     | never   | nothing         | 0     | [`FolioWord::end_vacancy`]                 |
//! | poisoned  | anyone, by claiming again            | never   | nothing         | error | [`FolioWord::try_claim`], [`FolioWord::try_vacate`], [`FolioWord::forget_poison`] |
//!
//! # Pins
//! Whoever installs, widens or narrows a mapping of the page, or touches its bytes through the alias, first takes a
//! pin *with the CAS that checks the state and sets its flags*, and drops it only after the ioctl has returned. The
//! transitions out of `uptodate` are CASes that require pins = 0. Without the pin:
//! ```text
//! handler (write fault)            flusher and reclaimer
//! look: uptodate; +dirty
//!                                  dirty -> writeback, protect, copy out, -> uptodate and clean
//! CONTINUE without MODE_WP         (erases the protection)
//! the instruction writes
//!                                  clean -> evicting -> punch: the write is lost
//! ```
//! (tests/loom_folio.rs keeps this race and fails when the pin is taken out)
//!
//! # Two stages of reclaim
//! A mapped page gives no sign of being used. So reclaim first takes its mappings away ([`FolioWord::try_unmap`] sets
//! `UNMAPPED` and clears `REFERENCED`), and drops it later only if nobody came for it: whoever installs a mapping of the
//! page itself sets `REFERENCED` with its pin, and who installs neighbours passes over `UNMAPPED` pages
//! ([`FolioWord::try_pin_around`]). Therefore `UNMAPPED` without `REFERENCED` means that no shared mapping has the page:
//! ```text
//! reclaim                                 a thread
//! pin: UNMAPPED, -REFERENCED
//!                                         maps it:          +REFERENCED with its pin: not dropped
//! zap everywhere, unpin
//!                                         maps it:          as above
//! CAS UNMAPPED, -REFERENCED, clean, pins = 0 -> evicting: nothing to unmap, one punch
//! ```
//!
//! # Context: handler

mod layout;

use crate::sync::{AtomicU64, Ordering};
use crate::types::FillError;
use layout::{
    ABSENT, ERROR, ERROR_SHIFT, EVICTING, FILLING, KEPT, PIN, PIN_SHIFT, PINS, PINS_MAX, POISONED, STATE, UPTODATE,
    VACANT, VERSION, WRITEBACK,
};
pub use layout::{
    DIRTY, DSYNCED, Folio, HELD, ISOLATED, LOST, OVERDUE, READAHEAD, REFERENCED, State, UNMAPPED, UNSYNCED, WAITERS,
};

/// The word itself. `#[repr(transparent)]`, so that zeroed memory can be lent as a slice of them.
#[derive(Debug)]
#[repr(transparent)]
pub struct FolioWord(AtomicU64);

/// What leaving a state asks of the caller.
#[must_use = "sleepers are waiting for this wake-up"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Somebody sleeps on the word: wake them.
    Needed,
    /// Nobody does.
    No,
}

impl Wake {
    fn of(before: u64) -> Self {
        if before & WAITERS != 0 { Wake::Needed } else { Wake::No }
    }
}

impl FolioWord {
    /// Returns an absent page (tests; tables are zeroed memory).
    ///
    /// # Context: handler
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Looks at the word.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn load(&self) -> Folio {
        // Acquire pairs with `FolioWord::update`, by which a page is published: who sees that it is uptodate sees its bytes.
        Folio(self.0.load(Ordering::Acquire))
    }

    /// Looks by a read-modify-write: whoever makes a change that this misses sees all that the caller did before.
    ///
    /// # Context: handler
    #[must_use]
    pub fn load_latest(&self) -> Folio {
        // AcqRel pairs with `FolioWord::update`; it adds nothing, and stands in the order of all changes of the word.
        Folio(self.0.fetch_or(0, Ordering::AcqRel))
    }

    /// Returns the address a futex sleeps on: the low half of the word (x86-64 is little-endian).
    ///
    /// # Context: handler
    #[must_use]
    pub fn futex_addr(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Retries `f` against the newest value until it gives up (`None`) or its CAS succeeds; returns the old value.
    ///
    /// The loop ends after as many turns as other threads succeed in between: it is lock-free, not bounded, and each
    /// of those successes is somebody's progress.
    // Always: in builds without optimisation each frame counts on a signal stack of 8 KiB.
    #[inline(always)]
    fn update(&self, f: impl Fn(Folio) -> Option<u64>) -> Result<Folio, Folio> {
        let mut seen = self.load();
        loop {
            let Some(next) = f(seen) else { return Err(seen) };
            // Release pairs with `FolioWord::load`: what the caller did to the page happened before the state says so.
            // Acquire pairs with `unpin`, and with this function: what the former owner did is visible to the new one.
            match self.0.compare_exchange_weak(seen.0, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(seen),
                Err(now) => seen = Folio(now),
            }
        }
    }

    /// Takes a pin and sets `set` (a write fault passes [`DIRTY`]) if the page may be mapped.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead; also when the pins are exhausted.
    #[inline]
    pub fn try_pin(&self, set: u64) -> Result<Folio, Folio> {
        self.update(|w| {
            let room = w.0 & PINS < PINS_MAX << PIN_SHIFT;
            (w.is_mappable() && room).then(|| (w.0 + PIN) | set)
        })
    }

    /// Sets `DIRTY` if the page is cached, pinned or not: who takes it out wants it clean, by a CAS that fails after this one.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    pub fn try_dirty(&self) -> Result<Folio, Folio> {
        self.update(|w| w.is_mappable().then_some(w.0 | DIRTY))
    }

    /// Takes a pin for mapping the page because a neighbour was touched: not if reclaim waits for a touch of its own.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    #[inline]
    pub fn try_pin_around(&self, set: u64) -> Result<Folio, Folio> {
        self.update(|w| {
            let room = w.0 & PINS < PINS_MAX << PIN_SHIFT;
            (w.is_mappable() && room && !w.has(UNMAPPED)).then(|| (w.0 + PIN) | set)
        })
    }

    /// uptodate, unpinned -> pinned, `UNMAPPED`, not `REFERENCED`: the caller takes the mappings away and unpins.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead; also a page that is `UNMAPPED` already.
    pub fn try_unmap(&self) -> Result<Folio, Folio> {
        self.update(|w| {
            let idle = w.state() == State::Uptodate && w.pins() == 0 && !w.has(UNMAPPED);
            idle.then(|| ((w.0 | UNMAPPED) & !REFERENCED) + PIN)
        })
    }

    /// The same for a page that may be `UNMAPPED` already.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    pub fn try_unmap_again(&self) -> Result<Folio, Folio> {
        self.update(|w| {
            let idle = w.state() == State::Uptodate && w.pins() == 0;
            idle.then(|| ((w.0 | UNMAPPED) & !REFERENCED) + PIN)
        })
    }

    /// As [`FolioWord::try_unmap`], of a page whose entry stays behind in its queue; sets `ISOLATED`.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead; also a page that is `ISOLATED` already: one void entry is what a flag can count.
    pub fn try_isolate(&self) -> Result<Folio, Folio> {
        self.update(|w| {
            let idle = w.state() == State::Uptodate && w.pins() == 0 && !w.has(UNMAPPED) && !w.has(ISOLATED);
            idle.then(|| ((w.0 | UNMAPPED | ISOLATED) & !REFERENCED) + PIN)
        })
    }

    /// Clears `ISOLATED` in the life that `seen` belongs to; returns whether it was set, which one caller is told.
    ///
    /// ```text
    /// a reclaimer                        another
    /// pops the page's entry
    ///                                    isolates the page with its neighbours: puts a second entry on probation
    /// finds ISOLATED: clears it, and forgets the entry it has popped
    /// ```
    /// So there is one entry that counts, whichever of the two is popped first.
    ///
    /// # Context: handler
    #[must_use]
    pub fn end_isolation(&self, seen: Folio) -> bool {
        seen.has(ISOLATED)
            && self
                .update(|w| {
                    let same = w.is_mappable() && w.version() == seen.version() && w.has(ISOLATED);
                    same.then_some(w.0 & !ISOLATED)
                })
                .is_ok()
    }

    /// Ends the wait for a touch: the page was missed, or is not to be dropped for another reason. `version` is that of the
    /// page meant. Nothing happens to a pinned page: whoever is unmapping it relies on `UNMAPPED` to keep windows away.
    ///
    /// ```text
    /// reclaim                                 others
    /// verdict: it was missed
    ///                                         truncate, fill again, UNMAPPED in its new life
    /// -UNMAPPED
    ///                                         a window maps it; stores are not looked for before the zap
    /// ```
    ///
    /// # Context: handler
    pub fn keep(&self, version: u32) {
        let means = |w: Folio| w.pins() == 0 && w.version() == version;
        let _ = self.update(|w| means(w).then_some(w.0 & !(UNMAPPED | REFERENCED)));
    }

    /// The same by who unmapped it and still holds the pin.
    ///
    /// # Context: handler
    pub fn keep_pinned(&self) {
        // Relaxed: the pin's release publishes it.
        self.0.fetch_and(!(UNMAPPED | REFERENCED), Ordering::Relaxed);
    }

    /// Drops a pin.
    ///
    /// # Context: handler
    #[inline]
    pub fn unpin(&self) {
        // Release pairs with `FolioWord::update`: the changes that require pins = 0 come after everything done under the pin.
        let before = self.0.fetch_sub(PIN, Ordering::Release);
        debug_assert!(Folio(before).pins() > 0, "unpin without a pin");
    }

    /// absent | poisoned -> filling: makes the caller the owner of the page.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    pub fn try_claim(&self) -> Result<Folio, Folio> {
        self.update(|w| {
            let free = matches!(w.state(), State::Absent | State::Poisoned);
            free.then_some((w.bumped() & (VERSION | KEPT | WAITERS)) | FILLING)
        })
    }

    /// absent | poisoned -> evicting, `VACANT`: nobody fills the page before [`FolioWord::end_vacancy`]. Who wants it
    /// waits without a deadline: those are the store's, for fills.
    ///
    /// # Context: control plane, under the lock over the object's flushes
    ///
    /// # Errors
    /// What was seen instead.
    pub fn try_vacate(&self) -> Result<Folio, Folio> {
        self.update(|w| match w.state() {
            // With its shadow.
            State::Absent => Some(w.0 | EVICTING | VACANT),
            State::Poisoned => Some((w.0 & !(STATE | ERROR)) | EVICTING | VACANT),
            _ => None,
        })
    }

    /// evicting, `VACANT` -> absent. Only who made it vacant: see there.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    pub fn end_vacancy(&self) -> Result<Wake, Folio> {
        self.update(|w| w.is_vacant().then_some(w.0 & !(STATE | WAITERS | VACANT))).map(|w| Wake::of(w.0))
    }

    /// Takes a flag away from a page that the caller owns or has pinned.
    ///
    /// # Context: handler
    pub fn clear(&self, flags: u64) {
        // Relaxed: as in set().
        self.0.fetch_and(!flags, Ordering::Relaxed);
    }

    /// filling -> uptodate. Owner only.
    ///
    /// # Context: handler
    pub fn publish(&self, set: u64) -> Wake {
        self.leave_filling(UPTODATE | set)
    }

    /// filling -> poisoned, keeping the reason. Owner only.
    ///
    /// # Context: handler
    pub fn fail(&self, error: FillError) -> Wake {
        self.leave_filling(POISONED | (u64::from(error.code()) << ERROR_SHIFT))
    }

    /// filling -> absent: the owner gives the page up without a verdict. Owner only.
    ///
    /// # Context: handler
    pub fn abandon(&self) -> Wake {
        self.leave_filling(ABSENT)
    }

    fn leave_filling(&self, to: u64) -> Wake {
        // Others may set WAITERS and OVERDUE meanwhile, hence a CAS; the state is ours alone.
        let r = self.update(|w| {
            debug_assert!(w.state() == State::Filling, "only the owner leaves filling: {w:?}");
            Some((w.0 & !(STATE | WAITERS | OVERDUE)) | to)
        });
        r.map_or(Wake::No, |w| Wake::of(w.0))
    }

    /// Marks that the caller is about to sleep; returns the low half to sleep on, or `None` when the state moved on.
    ///
    /// ```text
    /// waiter                                owner
    /// CAS +WAITERS (state as seen)
    ///                                       filling -> uptodate, -WAITERS, sees WAITERS: wakes
    /// futex(wait while low half == marked)  -> EAGAIN, or woken: both look again
    /// ```
    ///
    /// # Context: handler
    #[must_use]
    pub fn mark_waiter(&self, seen: State) -> Option<u32> {
        self.update(|w| (w.state() == seen).then_some(w.0 | WAITERS)).ok().map(|w| Folio(w.0 | WAITERS).low())
    }

    /// Marks a fill whose deadline has passed. The claim stands: only its owner can leave `filling`.
    ///
    /// # Context: handler
    pub fn mark_overdue(&self) {
        let _ = self.update(|w| (w.state() == State::Filling).then_some(w.0 | OVERDUE));
    }

    /// Sets flags on a page that the caller owns or has pinned; returns what was there.
    ///
    /// # Context: handler
    pub fn set(&self, flags: u64) -> Folio {
        // Relaxed: a flag that another thread must see before the page moves is protected by the caller's pin, whose
        // release publishes it.
        Folio(self.0.fetch_or(flags, Ordering::Relaxed))
    }

    /// Takes the readahead marker off a page that the caller has pinned; `true`: it was there, and is the caller's.
    ///
    /// # Context: handler
    #[inline]
    pub fn take_marker(&self) -> bool {
        // Relaxed: it orders nothing; of several takers one gets it.
        self.load().has(READAHEAD) && self.0.fetch_and(!READAHEAD, Ordering::Relaxed) & READAHEAD != 0
    }

    /// uptodate, clean, unpinned, `UNMAPPED` and not referenced since -> evicting.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead; a reclaimer skips such a page and never waits for it.
    pub fn try_evict(&self) -> Result<Folio, Folio> {
        self.update(|w| {
            let idle = w.state() == State::Uptodate && w.pins() == 0 && w.has(UNMAPPED);
            (idle && !w.has(DIRTY) && !w.has(REFERENCED)).then_some((w.0 & !STATE) | EVICTING)
        })
    }

    /// uptodate, unpinned, not held -> evicting, for a page that is written on its way out (exclusive objects): `idle`: only
    /// if `UNMAPPED` and not referenced since; `dirty`: also if it is known to be.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    pub fn try_take_out(&self, idle: bool, dirty: bool) -> Result<Folio, Folio> {
        self.update(|w| {
            let free = w.state() == State::Uptodate && w.pins() == 0 && !w.has(HELD);
            let unmissed = w.has(UNMAPPED) && !w.has(REFERENCED);
            (free && (unmissed || !idle) && (dirty || !w.has(DIRTY))).then_some((w.0 & !STATE) | EVICTING)
        })
    }

    /// uptodate, unpinned -> evicting, dirty or not: the page's bytes are void (truncate, punch) once they are gone. It
    /// stays dirty until then, in case the punch fails.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    pub fn try_discard(&self) -> Result<Folio, Folio> {
        self.update(|w| (w.state() == State::Uptodate && w.pins() == 0).then_some((w.0 & !STATE) | EVICTING))
    }

    /// evicting -> absent, leaving `shadow` (0: none). Evictor only, after the punch.
    ///
    /// # Context: handler
    pub fn evicted(&self, shadow: u16) -> Wake {
        let r = self.update(|w| {
            debug_assert!(w.state() == State::Evicting, "only the evictor leaves evicting: {w:?}");
            Some((w.0 & (VERSION | KEPT)) | (u64::from(shadow) << PIN_SHIFT))
        });
        r.map_or(Wake::No, |w| Wake::of(w.0))
    }

    /// evicting -> uptodate, with the flags of `set`: the page stays after all, as one that was missed. Its entries in the
    /// queues of reclaim were passed over meanwhile, perhaps: its version moves, and it is entered anew. Returns the new
    /// version. Evictor only.
    ///
    /// # Context: handler
    pub fn evict_undo(&self, set: u64) -> (Wake, u32) {
        let void = STATE | WAITERS | UNMAPPED | REFERENCED | ISOLATED;
        let r = self.update(|w| Some((w.bumped() & !void) | UPTODATE | set));
        r.map_or((Wake::No, 0), |w| (Wake::of(w.0), Folio(w.bumped()).version()))
    }

    /// poisoned -> absent: the next touch asks the store as if nothing had happened.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    pub fn forget_poison(&self) -> Result<Folio, Folio> {
        self.update(|w| (w.state() == State::Poisoned).then_some(w.0 & !(STATE | ERROR)))
    }

    /// uptodate, unpinned -> filling: a rewrite (a delegate's) with the page mapped nowhere. Its version moves, so its
    /// entries in the queues of reclaim are void, and what they had marked is forgotten.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    pub fn try_rewrite(&self) -> Result<Folio, Folio> {
        let void = STATE | UNMAPPED | ISOLATED;
        self.update(|w| (w.state() == State::Uptodate && w.pins() == 0).then_some((w.bumped() & !void) | FILLING))
    }

    /// uptodate, dirty, unpinned, not held -> writeback, clean.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// What was seen instead.
    pub fn try_writeback(&self) -> Result<Folio, Folio> {
        self.update(|w| {
            let idle = w.state() == State::Uptodate && w.pins() == 0;
            (idle && w.has(DIRTY) && !w.has(HELD)).then_some((w.0 & !(STATE | DIRTY)) | WRITEBACK)
        })
    }

    /// writeback -> uptodate, with the flags of `set`: `UNSYNCED`, or `DIRTY` again when the store failed. A page that was
    /// written meanwhile is dirty as it is; the second result says so.
    ///
    /// # Context: handler
    pub fn end_writeback(&self, set: u64) -> (Wake, bool) {
        // What it owed to an earlier flush is void: the store has newer bytes now, or the page is dirty.
        let void = UNSYNCED[0] | UNSYNCED[1];
        let r = self.update(|w| Some((w.0 & !(STATE | WAITERS | void)) | UPTODATE | set));
        r.map_or((Wake::No, false), |w| (Wake::of(w.0), w.has(DIRTY)))
    }
}

impl Default for FolioWord {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::errno::Errno;

    fn uptodate() -> FolioWord {
        let w = FolioWord::new();
        w.try_claim().unwrap();
        let _ = w.publish(0);
        w
    }

    #[test]
    fn an_isolated_page_has_one_void_entry_and_one_caller_clears_it() {
        let w = uptodate();
        let seen = w.load();
        assert!(!w.end_isolation(seen), "nobody isolated it");
        w.try_isolate().unwrap();
        assert!(w.load().has(UNMAPPED | ISOLATED) && w.load().pins() == 1);
        w.unpin();
        assert!(w.try_isolate().is_err() && w.try_unmap().is_err(), "it waits for a touch");
        w.keep(w.load().version());
        assert!(w.try_isolate().is_err(), "a second void entry could not be told from the first");
        let seen = w.load();
        assert!(w.end_isolation(seen) && !w.end_isolation(seen) && !w.end_isolation(w.load()));
        assert!(w.try_isolate().is_ok());
    }

    #[test]
    fn isolation_ends_with_the_life_of_the_page() {
        let w = uptodate();
        w.try_isolate().unwrap();
        w.unpin();
        let seen = w.load();
        w.try_evict().unwrap();
        let _ = w.evicted(0x8001);
        assert_eq!(w.load().shadow(), 0x8001);
        w.try_claim().unwrap();
        let _ = w.fail(FillError::Io(Errno::EIO));
        assert_eq!(w.load().error(), FillError::Io(Errno::EIO));
        assert!(!w.end_isolation(seen), "another life");
        let w = uptodate();
        w.try_isolate().unwrap();
        w.unpin();
        w.try_rewrite().unwrap();
        let _ = w.publish(0);
        assert!(!w.load().has(UNMAPPED) && !w.load().has(ISOLATED), "a rewrite makes its entries void");
    }

    #[test]
    fn a_word_is_eight_bytes_and_zero_is_absent() {
        assert_eq!(size_of::<FolioWord>(), 8);
        assert_eq!(align_of::<FolioWord>(), 8);
        assert_eq!(FolioWord::new().load().state(), State::Absent);
    }

    #[test]
    fn only_one_claims() {
        let w = FolioWord::new();
        w.try_claim().unwrap();
        assert!(w.try_claim().is_err(), "filling is owned");
        assert!(w.try_pin(0).is_err(), "a page that is being filled is not mapped");
        let _ = w.publish(0);
        assert!(w.try_claim().is_err(), "an uptodate page is not filled again");
    }

    #[test]
    fn a_pin_holds_off_every_transition_that_moves_bytes() {
        let w = uptodate();
        w.try_pin(DIRTY).unwrap();
        w.try_evict().unwrap_err();
        w.try_discard().unwrap_err();
        w.try_writeback().unwrap_err();
        w.try_rewrite().unwrap_err();
        w.unpin();
        assert!(w.try_evict().is_err(), "dirty pages are not dropped");
        w.try_writeback().unwrap();
        assert_eq!(w.end_writeback(0), (Wake::No, false));
        assert!(w.try_evict().is_err(), "mapped pages are not dropped");
        w.try_unmap().unwrap();
        assert!(w.try_evict().is_err(), "the one who unmaps holds a pin");
        w.unpin();
        w.try_evict().unwrap();
        let _ = w.evicted(7);
        assert_eq!(w.load().state(), State::Absent);
        assert_eq!((w.load().shadow(), w.load().pins()), (7, 0));
        w.try_claim().unwrap();
        assert_eq!(w.load().pins(), 0, "a shadow is no pin");
    }

    #[test]
    fn a_write_during_writeback_leaves_the_page_dirty() {
        let w = uptodate();
        w.set(DIRTY);
        w.try_writeback().unwrap();
        assert!(w.try_pin(DIRTY).is_ok(), "writeback may be pinned");
        w.unpin();
        let _ = w.end_writeback(0);
        assert!(w.load().has(DIRTY));
    }

    #[test]
    fn a_touch_after_unmapping_saves_the_page() {
        let w = uptodate();
        w.try_unmap().unwrap();
        w.unpin();
        assert!(w.try_pin_around(0).is_err(), "a neighbour's window would hide the next touch");
        w.try_pin(REFERENCED).unwrap();
        w.unpin();
        assert!(w.try_evict().is_err(), "it is mapped again");
        w.try_unmap().unwrap_err();
        w.keep(w.load().version() - 1);
        assert!(w.load().has(UNMAPPED), "a verdict on an earlier life says nothing");
        w.try_unmap_again().unwrap();
        assert!(w.try_unmap_again().is_err(), "somebody unmaps it");
        w.keep(w.load().version());
        assert!(w.load().has(UNMAPPED), "and needs the mark");
        w.unpin();
        w.keep(w.load().version());
        assert!(w.try_pin_around(0).is_ok());
    }

    #[test]
    fn what_a_flush_still_owes_survives_eviction_and_refill() {
        let w = uptodate();
        w.set(DIRTY);
        w.try_writeback().unwrap();
        let _ = w.end_writeback(UNSYNCED[1]);
        w.try_unmap().unwrap();
        w.unpin();
        w.try_evict().unwrap();
        let _ = w.evicted(1);
        assert!(w.load().is_unsynced());
        w.try_claim().unwrap();
        let _ = w.publish(0);
        assert!(w.load().is_unsynced());
    }

    #[test]
    fn a_vacant_page_is_filled_by_nobody_and_leaves_as_it_came() {
        let w = uptodate();
        w.try_vacate().unwrap_err();
        assert!(w.end_vacancy().is_err(), "nobody made it vacant");
        w.try_discard().unwrap();
        assert!(w.end_vacancy().is_err() && w.try_vacate().is_err(), "an evictor's");
        let _ = w.evicted(0x8007);
        w.set(UNSYNCED[0] | LOST);
        let before = w.load();
        w.try_vacate().unwrap();
        assert_eq!((w.load().state(), w.load().pins()), (State::Evicting, 0));
        assert!(w.try_claim().is_err() && w.try_vacate().is_err() && w.try_pin(0).is_err());
        assert_eq!(w.end_vacancy(), Ok(Wake::No));
        assert_eq!(w.load(), before, "with its shadow, and what it owes");
        w.try_claim().unwrap();
        let _ = w.fail(FillError::Corrupt);
        w.try_vacate().unwrap();
        assert!(w.mark_waiter(State::Evicting).is_some());
        assert_eq!(w.end_vacancy(), Ok(Wake::Needed));
        assert_eq!((w.load().state(), w.load().shadow()), (State::Absent, 0), "an error is no shadow");
        assert!(w.load().has(UNSYNCED[0] | LOST));
    }

    #[test]
    fn a_page_that_is_kept_begins_a_new_life() {
        let w = uptodate();
        w.try_isolate().unwrap();
        w.unpin();
        let before = w.load().version();
        w.try_discard().unwrap();
        let (wake, version) = w.evict_undo(DIRTY);
        assert_eq!((wake, version, w.load().version()), (Wake::No, before + 1, before + 1));
        assert!(w.load().is_mappable() && w.load().has(DIRTY));
        assert!(!w.load().has(UNMAPPED) && !w.load().has(ISOLATED));
    }

    #[test]
    fn what_was_lost_stays_so_whatever_the_store_takes() {
        let w = FolioWord::new();
        w.set(LOST);
        w.try_claim().unwrap();
        let _ = w.fail(FillError::Io(Errno::EIO));
        assert_eq!(w.load().error(), FillError::Io(Errno::EIO));
        w.try_claim().unwrap();
        let _ = w.publish(0);
        w.set(DIRTY);
        w.try_writeback().unwrap();
        let _ = w.end_writeback(DIRTY);
        assert!(w.load().has(LOST), "the store did not take it");
        w.try_writeback().unwrap();
        let _ = w.end_writeback(UNSYNCED[1]);
        assert!(w.load().has(LOST) && w.load().is_unsynced(), "who wrote may not know");
    }

    #[test]
    fn held_pages_are_not_written_back() {
        let w = uptodate();
        w.set(DIRTY | HELD);
        w.try_writeback().unwrap_err();
        w.clear(HELD);
        w.try_writeback().unwrap();
    }

    #[test]
    fn the_version_moves_with_every_claim_through_all_32_bits() {
        let w = FolioWord::new();
        let v0 = w.load().version();
        for i in 1..=70_000u32 {
            w.try_claim().unwrap();
            let _ = w.abandon();
            assert_eq!(w.load().version(), v0.wrapping_add(i), "the carry into the high half");
            assert_eq!(w.load().pins(), 0, "the version does not leak into the pins");
        }
    }

    #[test]
    fn a_poisoned_page_names_its_error_and_can_be_claimed_again() {
        let w = FolioWord::new();
        w.try_claim().unwrap();
        let _ = w.fail(FillError::Corrupt);
        assert_eq!(w.load().state(), State::Poisoned);
        assert_eq!(w.load().error(), FillError::Corrupt);
        w.try_pin(0).unwrap_err();
        w.try_claim().unwrap();
        let _ = w.publish(0);
        assert_eq!((w.load().pins(), w.load().0 & PINS), (0, 0), "an error is no pin");
    }

    #[test]
    fn a_marker_outlives_the_fill_and_is_taken_once() {
        let w = FolioWord::new();
        w.try_claim().unwrap();
        w.set(READAHEAD);
        let _ = w.publish(0);
        assert!(w.try_pin(0).unwrap().has(READAHEAD));
        assert!(w.take_marker() && !w.take_marker(), "one taker gets it");
        w.set(READAHEAD);
        w.unpin();
        w.try_discard().unwrap();
        let _ = w.evicted(0);
        w.try_claim().unwrap();
        assert!(!w.load().has(READAHEAD), "a new life begins without it");
    }

    #[test]
    fn every_error_fits_beside_the_flags() {
        for code in 1..=6 {
            let w = FolioWord::new();
            w.try_claim().unwrap();
            w.set(READAHEAD);
            let _ = w.fail(FillError::from_code(code));
            assert_eq!(w.load().error().code(), code);
        }
    }

    #[test]
    fn leaving_a_state_reports_its_waiters_once() {
        let w = FolioWord::new();
        w.try_claim().unwrap();
        assert!(w.mark_waiter(State::Uptodate).is_none(), "not the state the waiter saw");
        let low = w.mark_waiter(State::Filling).expect("filling");
        assert_eq!(low, w.load().low());
        assert_eq!(w.publish(0), Wake::Needed);
        assert_ne!(low, w.load().low(), "the futex word moved");
        w.try_unmap().unwrap();
        w.unpin();
        w.try_evict().unwrap();
        assert_eq!(w.evicted(0), Wake::No);
    }

    #[test]
    fn pins_saturate_instead_of_carrying() {
        let w = uptodate();
        let mut n = 0u32;
        while w.try_pin(0).is_ok() {
            n += 1;
        }
        assert_eq!(u64::from(n), PINS_MAX);
        assert!(w.try_dirty().is_ok_and(|old| !old.has(DIRTY)), "a store is noted though no pin is left");
        assert!(w.load().has(DIRTY) && w.load().pins() == PINS_MAX);
        let v = w.load().version();
        assert_eq!(v, 1, "the version is untouched by {n} pins");
    }
}
