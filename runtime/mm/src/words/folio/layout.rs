//! What lies where in a folio word, and a word as it was seen: [`Folio`].
//!
//! The picture, and what each state permits, are in [`super`].
//!
//! # Context: handler

use crate::types::FillError;

pub(super) const STATE: u64 = 0x7;
pub(super) const ABSENT: u64 = 0;
pub(super) const FILLING: u64 = 1;
pub(super) const UPTODATE: u64 = 2;
pub(super) const WRITEBACK: u64 = 3;
pub(super) const EVICTING: u64 = 4;
pub(super) const POISONED: u64 = 5;

/// Written since the last write-back.
pub const DIRTY: u64 = 1 << 3;
/// Touched since the last reclaim pass.
pub const REFERENCED: u64 = 1 << 4;
/// Somebody sleeps on the word: whoever leaves the state wakes.
pub const WAITERS: u64 = 1 << 5;
/// The fill passed its deadline: touches answer the policy at once; the claim stands.
pub const OVERDUE: u64 = 1 << 6;
/// The store has made the page's block durable (`NEEDDSYNC` was answered).
pub const DSYNCED: u64 = 1 << 7;

/// Written to the store in this turn of its flushes, not flushed yet. Kept when the page leaves the cache.
pub const UNSYNCED: [u64; 2] = [1 << 11, 1 << 12];
/// Not written back before it is released (write-ahead logs). Kept when the page leaves the cache.
pub const HELD: u64 = 1 << 13;
/// Whoever maps or pins the page has the next window read. Linux: `PG_readahead`.
pub const READAHEAD: u64 = 1 << 14;
/// Reclaim took its mappings away and waits whether anybody misses them.
pub const UNMAPPED: u64 = 1 << 15;

/// Taken by reclaim with its neighbour, past its own entry in the queues: that entry is void, and whoever pops it clears
/// the flag.
pub const ISOLATED: u64 = 1 << 8;
/// Kept out of the cache by the control plane: `evicting` though there was nothing to evict. Of one object's pages one
/// thread at a time makes some vacant: who flushes, or punches a hole, alone.
pub(super) const VACANT: u64 = 1 << 9;
/// A failed flush took away what was last written to it. Kept until the program, once it was told, has written it again and
/// a flush has succeeded, or until the store has a hole there.
pub const LOST: u64 = 1 << 10;

/// What stays when a page leaves the cache or enters it.
pub(super) const KEPT: u64 = UNSYNCED[0] | UNSYNCED[1] | HELD | LOST;
pub(super) const VERSION_LO_SHIFT: u32 = 16;
pub(super) const VERSION_LO: u64 = 0xffff << VERSION_LO_SHIFT;
pub(super) const PIN_SHIFT: u32 = 32;
pub(super) const PIN: u64 = 1 << PIN_SHIFT;
pub(super) const PINS: u64 = 0xffff << PIN_SHIFT;
/// The error of a poisoned page, which has no pins.
pub(super) const ERROR_SHIFT: u32 = PIN_SHIFT;
pub(super) const ERROR: u64 = 0xffff << ERROR_SHIFT;
pub(super) const VERSION_HI_SHIFT: u32 = 48;
pub(super) const VERSION_HI: u64 = 0xffff << VERSION_HI_SHIFT;
pub(super) const VERSION: u64 = VERSION_LO | VERSION_HI;
/// Pins that faults may take; the rest of the field is headroom, so that a race of increments cannot carry.
pub(super) const PINS_MAX: u64 = 0xf000;

/// The state of a page; the module's table says what each permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not in the cache.
    Absent,
    /// Being filled by the owner of the claim.
    Filling,
    /// In the cache, whole.
    Uptodate,
    /// In the cache, being written out.
    Writeback,
    /// Leaving the cache.
    Evicting,
    /// The store failed; the error is in the word.
    Poisoned,
}

/// One look at a folio word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Folio(pub u64);

impl Folio {
    /// Returns the state.
    ///
    /// # Context: handler
    #[must_use]
    pub fn state(self) -> State {
        match self.0 & STATE {
            FILLING => State::Filling,
            UPTODATE => State::Uptodate,
            WRITEBACK => State::Writeback,
            EVICTING => State::Evicting,
            POISONED => State::Poisoned,
            _ => State::Absent,
        }
    }
    /// Returns whether the page may be mapped: uptodate or writeback.
    ///
    /// # Context: handler
    #[inline]
    #[must_use]
    pub fn is_mappable(self) -> bool {
        matches!(self.0 & STATE, UPTODATE | WRITEBACK)
    }
    /// Returns whether the page is kept out of the cache by who flushes, or punches a hole.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_vacant(self) -> bool {
        self.state() == State::Evicting && self.has(VACANT)
    }
    /// Returns whether all of `flags` are set.
    ///
    /// # Context: handler
    #[must_use]
    pub fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }
    /// Returns whether nobody is to find the page: it is not in the cache, nor on its way, and owes nothing.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_at_rest(self) -> bool {
        matches!(self.state(), State::Absent | State::Poisoned) && self.0 & KEPT == 0
    }
    /// Returns the number of pins; 0 of a page that cannot be pinned.
    ///
    /// # Context: handler
    #[must_use]
    pub fn pins(self) -> u64 {
        if self.is_mappable() { (self.0 & PINS) >> PIN_SHIFT } else { 0 }
    }
    /// Returns the shadow of an absent page: when it was evicted, 0 if that is not known.
    ///
    /// # Context: handler
    #[must_use]
    pub fn shadow(self) -> u16 {
        if self.0 & STATE != ABSENT {
            return 0;
        }
        u16::try_from((self.0 & PINS) >> PIN_SHIFT).unwrap_or(0)
    }
    /// Returns whether the page was written to the store and not flushed since.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_unsynced(self) -> bool {
        self.0 & (UNSYNCED[0] | UNSYNCED[1]) != 0
    }
    /// Returns the version, which moves with every claim.
    ///
    /// # Context: handler
    #[must_use]
    pub fn version(self) -> u32 {
        // Two fields of 16 bits: the result has 32.
        let lo = (self.0 & VERSION_LO) >> VERSION_LO_SHIFT;
        let hi = (self.0 & VERSION_HI) >> VERSION_HI_SHIFT;
        u32::try_from(lo | (hi << 16)).unwrap_or(0)
    }
    /// Returns the error of a poisoned page.
    ///
    /// # Context: handler
    #[must_use]
    pub fn error(self) -> FillError {
        FillError::from_code(u16::try_from((self.0 & ERROR) >> ERROR_SHIFT).unwrap_or(0))
    }
    /// Returns the half a futex compares.
    ///
    /// # Context: handler
    #[must_use]
    pub fn low(self) -> u32 {
        u32::try_from(self.0 & 0xffff_ffff).unwrap_or(0)
    }
    /// Returns the word with the version of the page's next life.
    pub(super) fn bumped(self) -> u64 {
        let v = u64::from(self.version().wrapping_add(1));
        (self.0 & !VERSION) | ((v & 0xffff) << VERSION_LO_SHIFT) | ((v >> 16) << VERSION_HI_SHIFT)
    }
}

impl core::fmt::Debug for Folio {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Folio")
            .field("state", &self.state())
            .field("pins", &self.pins())
            .field("version", &self.version())
            .field("dirty", &self.has(DIRTY))
            .field("waiters", &self.has(WAITERS))
            .finish()
    }
}
