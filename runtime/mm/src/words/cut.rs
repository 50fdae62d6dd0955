//! The words of captures: a consistent cut through objects while threads go on storing to them.
//!
//! A capture goes through phases, one word for all its objects, so that one compare-exchange cuts them all:
//! ```text
//! idle -> arming -> draining -> cutting -> copying -> idle
//!                      ^           |          |
//!                      +- given up-+          +-> failed -> idle
//! ```
//! | phase    | a store to a page that is protected, or not mapped          |
//! |----------|-------------------------------------------------------------|
//! | idle     | as ever                                                     |
//! | arming   | is noted, and goes on                                       |
//! | draining | needs a credit, is noted, and goes on                       |
//! | cutting  | waits                                                       |
//! | copying  | has the bytes of a page that is not saved yet saved, and goes on |
//! | failed   | goes on                                                     |
//!
//! Whoever looks at the phase and acts by what was seen does both in a [`Lift`], and each change of phase that others rely on is
//! followed by [`Lifts::grace`]: nobody who saw the old phase is at work afterwards.
//!
//! # Context: handler

use crate::page::pgoff_index;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// How many captures there can be at once in a process.
pub const NR_CAPTURES: usize = 4;

/// Where a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    Idle,
    /// Everything that was ever mapped is being protected.
    Arming,
    /// What was stored to meanwhile is being protected, round by round.
    Draining,
    /// Stores wait: the last few are being protected.
    Cutting,
    /// The cut is made, its pages are being copied.
    Copying,
    /// It is given up: nothing waits and nothing is saved.
    Failed,
}

impl Phase {
    const fn code(self) -> u32 {
        match self {
            Self::Idle => 0,
            Self::Arming => 1,
            Self::Draining => 2,
            Self::Cutting => 3,
            Self::Copying => 4,
            Self::Failed => 5,
        }
    }

    const fn of(code: u32) -> Self {
        match code {
            1 => Self::Arming,
            2 => Self::Draining,
            3 => Self::Cutting,
            4 => Self::Copying,
            5 => Self::Failed,
            _ => Self::Idle,
        }
    }
}

/// The words of one capture. They stand in a static table, so who sleeps on one of them never loses it.
///
/// `phase`, `cseq` and `room` are slept on; who changes one of them wakes everybody.
#[derive(Debug)]
#[repr(align(64))]
pub struct Capture {
    /// See [`Phase`]. Stored by the cutter, and changed by compare-exchange by whoever gives the capture up.
    phase: AtomicU32,
    /// Which half of [`CaptureBits`] notes stores. Written by the cutter alone.
    half: AtomicU32,
    /// How many more stores may pass in this round. Taken by stores, given by the cutter.
    credits: AtomicU32,
    /// Moves when there are credits again.
    cseq: AtomicU32,
    /// Moves when there is room for saved bytes again.
    room: AtomicU32,
}

impl Capture {
    /// Returns a capture that nobody makes.
    ///
    /// # Context: tests; the table is static
    #[cfg(not(loom))]
    const fn new() -> Self {
        Self {
            phase: AtomicU32::new(0),
            half: AtomicU32::new(0),
            credits: AtomicU32::new(0),
            cseq: AtomicU32::new(0),
            room: AtomicU32::new(0),
        }
    }

    /// Returns a capture that nobody makes.
    ///
    /// # Context: tests; the table is static
    #[cfg(loom)]
    #[must_use]
    #[expect(clippy::new_without_default, reason = "as the other one, which is const")]
    pub fn new() -> Self {
        let word = || AtomicU32::new(0);
        Self { phase: word(), half: word(), credits: word(), cseq: word(), room: word() }
    }

    /// Returns the phase. Whoever acts by it is in a [`Lift`].
    ///
    /// # Context: handler
    #[must_use]
    pub fn phase(&self) -> Phase {
        // Acquire pairs with `set_phase` and `change_phase`: who sees a phase sees what was made ready for it.
        Phase::of(self.phase.load(Ordering::Acquire))
    }

    /// Goes to `to`. A grace period follows, where others are relied on to have seen it.
    ///
    /// # Context: control plane, by the cutter
    pub fn set_phase(&self, to: Phase) {
        // Release pairs with `phase`.
        self.phase.store(to.code(), Ordering::Release);
    }

    /// Goes from `from` to `to`, if it is at `from`.
    ///
    /// # Context: handler
    pub fn change_phase(&self, from: Phase, to: Phase) -> bool {
        // AcqRel pairs with `phase`, and with who else changes it: one wins, and the other sees all that it did before.
        self.phase.compare_exchange(from.code(), to.code(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Returns the address of the phase's word, and what is in it while the capture is at `phase`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn phase_key(&self, phase: Phase) -> (usize, u32) {
        (core::ptr::from_ref(&self.phase).addr(), phase.code())
    }

    /// Returns the address of the word that moves with new credits, and what is in it. To be asked before
    /// [`Capture::take_credit`] is.
    ///
    /// # Context: handler
    #[must_use]
    pub fn credit_key(&self) -> (usize, u32) {
        // Acquire pairs with `give_credits`: who sees the new number finds the credits.
        (core::ptr::from_ref(&self.cseq).addr(), self.cseq.load(Ordering::Acquire))
    }

    /// Returns the address of the word that moves with new room for saved bytes, and what is in it. To be asked before
    /// room is looked for.
    ///
    /// # Context: handler
    #[must_use]
    pub fn room_key(&self) -> (usize, u32) {
        // Acquire pairs with `note_room`.
        (core::ptr::from_ref(&self.room).addr(), self.room.load(Ordering::Acquire))
    }

    /// Notes that there is room again. Who waits for it is to be woken.
    ///
    /// # Context: handler
    pub fn note_room(&self) {
        // Release pairs with `room_key`.
        self.room.fetch_add(1, Ordering::Release);
    }

    /// Returns which half notes stores.
    ///
    /// # Context: handler
    #[must_use]
    pub fn half(&self) -> usize {
        usize::from(self.half.load(Ordering::Relaxed) & 1 != 0)
    }

    /// Has the other half note stores; returns the one that did. A grace period later nobody notes there.
    ///
    /// # Context: control plane, by the cutter
    pub fn swap_halves(&self) -> usize {
        usize::from(self.half.fetch_xor(1, Ordering::Relaxed) & 1 != 0)
    }

    /// Takes one credit; `false`: there is none.
    ///
    /// # Context: handler
    #[must_use]
    pub fn take_credit(&self) -> bool {
        let mut had = self.credits.load(Ordering::Relaxed);
        while had > 0 {
            // Relaxed: a credit protects nothing, it bounds how many pages a round leaves to the next.
            match self.credits.compare_exchange_weak(had, had - 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => had = now,
            }
        }
        false
    }

    /// Sets the credits there are.
    ///
    /// # Context: control plane, by the cutter
    pub fn set_credits(&self, nr: u32) {
        self.credits.store(nr, Ordering::Relaxed);
    }

    /// Gives more credits. Who waits for them is to be woken.
    ///
    /// # Context: control plane
    pub fn give_credits(&self, nr: u32) {
        self.credits.fetch_add(nr, Ordering::Relaxed);
        // Release pairs with `credit_key`.
        self.cseq.fetch_add(1, Ordering::Release);
    }
}

/// The stripes of [`Lifts`]; loom has one, since they are alike.
const NR_STRIPES: usize = if cfg!(loom) { 1 } else { 32 };

/// How many are inside, by the parity at which they entered.
#[derive(Debug)]
#[repr(align(64))]
struct Stripe {
    inside: [AtomicU32; 2],
}

/// Who is at work by a phase that was seen: a counter in two halves. Linux: SRCU.
///
/// The proof: [`Lifts::grace`] sees each half of each stripe at zero. That look is a read-modify-write, so each entering is before
/// it or after it in the counter's order:
/// ```text
/// before   counted, and so waited for: when the look finds zero it has left, and all that it did is seen (Release, Acquire)
/// after    it sees (Acquire) what was stored before the grace began (Release): the new phase
/// ```
/// Both halves are looked at, because who is about to enter may have loaded the parity long ago. The halves change places so
/// that who enters now does not keep an old half from becoming empty.
#[derive(Debug)]
pub struct Lifts {
    parity: AtomicU32,
    stripes: [Stripe; NR_STRIPES],
}

/// A part of a fault, or of a call, that acts by the phase that it saw. It takes no lock, waits for nobody, and touches no arena.
#[derive(Debug)]
#[must_use = "what acts by a phase is inside for as long"]
pub struct Lift<'a> {
    inside: &'a AtomicU32,
}

impl Drop for Lift<'_> {
    fn drop(&mut self) {
        // Release pairs with `Lifts::grace`: who finds nobody inside finds what was done.
        self.inside.fetch_sub(1, Ordering::Release);
    }
}

impl Lifts {
    /// Returns a counter with nobody inside.
    ///
    /// # Context: tests; the table is static
    #[cfg(not(loom))]
    const fn new() -> Self {
        let stripe = [const { Stripe { inside: [AtomicU32::new(0), AtomicU32::new(0)] } }; NR_STRIPES];
        Self { parity: AtomicU32::new(0), stripes: stripe }
    }

    /// Returns a counter with nobody inside.
    ///
    /// # Context: tests; the table is static
    #[cfg(loom)]
    #[must_use]
    #[expect(clippy::new_without_default, reason = "as the other one, which is const")]
    pub fn new() -> Self {
        let stripe = || Stripe { inside: [AtomicU32::new(0), AtomicU32::new(0)] };
        Self { parity: AtomicU32::new(0), stripes: core::array::from_fn(|_| stripe()) }
    }

    /// Enters; `stripe`: any number, the same for a thread as a rule. The phase is looked at afterwards.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn enter(&self, stripe: usize) -> Option<Lift<'_>> {
        let parity = self.parity.load(Ordering::Relaxed) & 1;
        let inside = self.stripes.get(stripe % NR_STRIPES)?.inside.get(usize::from(parity != 0))?;
        // Acquire pairs with `grace`: who is not waited for sees the phase. Release, too, or the look could not know which of
        // the two it is.
        inside.fetch_add(1, Ordering::AcqRel);
        Some(Lift { inside })
    }

    /// Waits until everybody has left who may have seen a phase from before the call. `relax` is called while somebody is inside,
    /// and returns `false` when time is over: so does this, and the next call begins anew.
    ///
    /// # Context: control plane; one at a time
    pub fn grace(&self, relax: &mut dyn FnMut() -> bool) -> bool {
        if naive::has(naive::NO_GRACE) {
            return true;
        }
        for _ in 0..2 {
            // Relaxed: whichever half somebody enters by, it is looked at.
            let old = usize::from(self.parity.fetch_xor(1, Ordering::Relaxed) & 1 != 0);
            for inside in self.stripes.iter().filter_map(|s| s.inside.get(old)) {
                // AcqRel pairs with `enter` and with `Lift::drop`: see the proof.
                while inside.fetch_add(0, Ordering::AcqRel) != 0 {
                    if !relax() {
                        return false;
                    }
                }
            }
            if naive::has(naive::ONE_FLIP) {
                break;
            }
        }
        true
    }
}

/// What a fault or a call found when it looked at the phase, once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admitted {
    /// Nothing is captured.
    #[default]
    No,
    /// Something is, of which this is no store: what it maps is protected.
    Open,
    /// A store before the cut; it is noted.
    Noting,
    /// A store after the cut: the page's bytes are to be saved, if they are not.
    Saving,
}

/// Bits of an object's pages, as far as captures use them. Closed memory until a capture has opened it: nobody looks before
/// [`Captured::number`] says that there is one.
#[derive(Clone, Copy, Debug)]
pub struct CaptureBits<'g> {
    /// The page's bytes at the cut are somewhere else than in the page, or belong to no capture.
    saved: &'g [AtomicU64],
    /// Stores that came through since the page was protected, in two halves.
    stored: [&'g [AtomicU64]; 2],
    /// The saved bytes are in the capture's file.
    spilled: &'g [AtomicU64],
}

impl<'g> CaptureBits<'g> {
    /// Joins four tables of one bit a page, equally long.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn new(saved: &'g [AtomicU64], stored: [&'g [AtomicU64]; 2], spilled: &'g [AtomicU64]) -> Self {
        Self { saved, stored, spilled }
    }

    /// No page.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn none() -> Self {
        Self { saved: &[], stored: [&[], &[]], spilled: &[] }
    }

    fn bit(table: &'g [AtomicU64], pgoff: u64) -> Option<(&'g AtomicU64, u64)> {
        Some((table.get(pgoff_index(pgoff / 64))?, 1 << (pgoff % 64)))
    }

    /// Sets the bit; returns whether it was clear.
    fn set(table: &'g [AtomicU64], pgoff: u64) -> bool {
        // AcqRel pairs with `is_saved` and `is_spilled`, and with the other `save`.
        Self::bit(table, pgoff).is_some_and(|(w, bit)| w.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }

    fn has(table: &'g [AtomicU64], pgoff: u64) -> bool {
        // Acquire pairs with `CaptureBits::save` and `note_spilled`.
        Self::bit(table, pgoff).is_some_and(|(w, bit)| w.load(Ordering::Acquire) & bit != 0)
    }

    /// Notes a store to a page, before it is let through.
    ///
    /// # Context: handler, in a lift
    pub fn note(&self, half: usize, pgoff: u64) {
        if let Some((w, bit)) = self.stored.get(half).and_then(|t| Self::bit(t, pgoff)) {
            // Relaxed: who looks has waited for the lift.
            w.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Returns whether a store to the page is noted in this half.
    ///
    /// # Context: handler, in a lift
    #[must_use]
    pub fn is_noted(&self, half: usize, pgoff: u64) -> bool {
        let bit = self.stored.get(half).and_then(|t| Self::bit(t, pgoff));
        bit.is_some_and(|(w, bit)| w.load(Ordering::Relaxed) & bit != 0)
    }

    /// Takes what is noted of pages `64 * word..64 * word + 64`.
    ///
    /// # Context: control plane, by the cutter
    #[must_use]
    pub fn take_noted(&self, half: usize, word: usize) -> u64 {
        let Some(w) = self.stored.get(half).and_then(|t| t.get(word)) else { return 0 };
        // A look first: most words are empty. Relaxed: a grace period lies between.
        if w.load(Ordering::Relaxed) == 0 { 0 } else { w.swap(0, Ordering::Relaxed) }
    }

    /// Says that the page's bytes are saved; `true`: nobody had, and the caller's copy is the one that counts. The copy was made
    /// before.
    ///
    /// # Context: handler, in a lift; the walker
    #[must_use]
    pub fn save(&self, pgoff: u64) -> bool {
        // Release: our copy was read before others are told; Acquire: who finds the page saved stores to it after that copy.
        Self::set(self.saved, pgoff)
    }

    /// Returns whether the page's bytes are saved. Then it may be stored to.
    ///
    /// # Context: handler, in a lift; the walker
    #[must_use]
    pub fn is_saved(&self, pgoff: u64) -> bool {
        Self::has(self.saved, pgoff)
    }

    /// Says that the saved bytes are in the capture's file, and were put there before.
    ///
    /// # Context: the saver
    pub fn note_spilled(&self, pgoff: u64) {
        // Release pairs with `is_spilled`.
        let _ = Self::set(self.spilled, pgoff);
    }

    /// Returns whether the saved bytes are in the capture's file.
    ///
    /// # Context: the walker
    #[must_use]
    pub fn is_spilled(&self, pgoff: u64) -> bool {
        Self::has(self.spilled, pgoff)
    }

    /// Clears all bits of the first `nr_pages` pages.
    ///
    /// # Context: control plane, before anybody is told of the capture
    pub fn clear(&self, nr_pages: u64) {
        let nr = pgoff_index(nr_pages.div_ceil(64));
        for table in [self.saved, self.stored[0], self.stored[1], self.spilled] {
            table.iter().take(nr).for_each(|w| w.store(0, Ordering::Relaxed));
        }
    }
}

/// What an object knows of a capture of it.
#[derive(Debug)]
pub struct Captured<'g> {
    /// The capture's number and one, or 0. Written by the control plane, under the object's gate.
    number: AtomicU32,
    /// The page behind the last one that is captured. Written by the cutter, before the cut.
    end: AtomicU64,
    /// Mappings whose stores reach the object and cannot be made to fault. Counted by the control plane, under the gate.
    pub nr_uncapturable: AtomicU32,
    /// One of each page.
    pub bits: CaptureBits<'g>,
}

impl<'g> Captured<'g> {
    /// Of an object that is not being captured.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn new(bits: CaptureBits<'g>) -> Self {
        Self { number: AtomicU32::new(0), end: AtomicU64::new(0), nr_uncapturable: AtomicU32::new(0), bits }
    }

    /// Returns the number of the capture, among those of the process.
    ///
    /// # Context: handler; who acts by it is in a lift
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        // Acquire pairs with `set_number`: the bits are open, and clear.
        self.number.load(Ordering::Acquire).checked_sub(1)
    }

    /// Tells handlers of a capture, or that there is none any more. A grace period follows.
    ///
    /// # Context: control plane
    pub fn set_number(&self, number: Option<u32>) {
        // Release pairs with `number`.
        self.number.store(number.map_or(0, |n| n.wrapping_add(1)), Ordering::Release);
    }

    /// Returns the page behind the last captured one.
    ///
    /// # Context: handler
    #[must_use]
    pub fn end(&self) -> u64 {
        // Relaxed: it is written before the phase in which it is read.
        self.end.load(Ordering::Relaxed)
    }

    /// Sets the page behind the last captured one.
    ///
    /// # Context: control plane, by the cutter, before the cut
    pub fn set_end(&self, pgoff: u64) {
        self.end.store(pgoff, Ordering::Relaxed);
    }
}

/// The lifts and the captures of the process.
#[derive(Debug)]
pub struct Tables {
    /// Who is at work.
    pub lifts: Lifts,
    captures: [Capture; NR_CAPTURES],
}

impl Tables {
    /// Returns capture `number`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn capture(&self, number: u32) -> Option<&Capture> {
        self.captures.get(usize::try_from(number).ok()?)
    }
}

#[cfg(not(loom))]
static TABLES: Tables = Tables { lifts: Lifts::new(), captures: [const { Capture::new() }; NR_CAPTURES] };

/// Returns the lifts and captures of the process; loom's models have none.
///
/// # Context: handler
#[inline]
#[must_use]
pub fn tables() -> Option<&'static Tables> {
    #[cfg(not(loom))]
    return Some(&TABLES);
    #[cfg(loom)]
    None
}

/// The rules, each of which a test breaks to see that it is needed. In release builds there is nothing to break.
pub mod naive {
    /// A grace period looks at one half.
    pub const ONE_FLIP: u32 = 1 << 0;
    /// There is no grace period.
    pub const NO_GRACE: u32 = 1 << 1;
    /// What is installed while a capture is open is not protected.
    pub const WP_OFF: u32 = 1 << 2;
    /// Only the first mapping of an object is protected.
    pub const ONE_VMA: u32 = 1 << 3;
    /// Stores do not wait for the cut.
    pub const NO_WAIT: u32 = 1 << 4;
    /// What is protected is found by the maybe-mapped bits.
    pub const HINTS: u32 = 1 << 6;
    /// `write_at` does not look at captures.
    pub const NO_WRITE_AT: u32 = 1 << 7;
    /// Punching and truncating do not look at captures.
    pub const NO_PRESERVE: u32 = 1 << 8;
    /// A round needs no credits.
    pub const NO_CREDITS: u32 = 1 << 9;
    /// Protection is taken off where it is what tracks stores.
    pub const UNWP_FILES: u32 = 1 << 10;
    /// Protection stays where nobody needs it.
    pub const KEEP_WP: u32 = 1 << 11;

    #[cfg(any(debug_assertions, loom))]
    static BROKEN: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

    /// Breaks these rules, and no others.
    ///
    /// # Context: a test
    #[cfg(any(debug_assertions, loom))]
    pub fn set(rules: u32) {
        BROKEN.store(rules, core::sync::atomic::Ordering::Relaxed);
    }

    /// Returns whether a rule is broken.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn has(rule: u32) -> bool {
        #[cfg(any(debug_assertions, loom))]
        return BROKEN.load(core::sync::atomic::Ordering::Relaxed) & rule != 0;
        #[cfg(not(any(debug_assertions, loom)))]
        {
            let _ = rule;
            false
        }
    }
}
