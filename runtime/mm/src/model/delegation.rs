//! Minor delegation: who is told of the first touch of each page of a range, and how "once" is kept exact.
//!
//! Two bits a page:
//! ```text
//! untold --begin()--> telling --finish(Continue)--> told
//!    ^                  |  `----finish(Refuse)----> refused   (each touch: SIGBUS)
//!    `---finish(Delay)--'
//! ```
//! One thread wins `begin`; the others sleep on the word until the page is no longer `telling`. Reclaim does not
//! reset `told`. With eight threads racing on a page the delegate is called once; without the middle state a delegate
//! that flips bytes would flip them twice.
//!
//! # Context: handler

use crate::folio::{DIRTY, State};
use crate::lru::Entry;
use crate::mapping::Mapping;
use crate::page::PAGE_SIZE;
use crate::sync::{AtomicU32, Ordering};

/// What a delegate decides about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinorVerdict {
    /// Map the page; the delegate is not asked again.
    Continue,
    /// Never map the page: each touch is SIGBUS.
    Refuse,
    /// Not now: the access is made again, and the delegate asked again.
    Delay,
}

/// Told of the first touch of each cached page of a range, before it is mapped there. Linux: the reader of a
/// userfaultfd registered `UFFDIO_REGISTER_MODE_MINOR`.
pub trait MinorDelegate: Send + Sync {
    /// Decides about one page; may inspect and rewrite it.
    ///
    /// # Context: a worker thread, or the signal handler if the delegate was registered as handler-safe
    fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict;
}

/// The first touch of one page of a delegated range.
pub struct MinorFault<'a> {
    mapping: &'a Mapping<'a>,
    pgoff: u64,
    address: usize,
    write: bool,
    wake: &'a dyn Fn(usize),
}

impl core::fmt::Debug for MinorFault<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("MinorFault").field("pgoff", &self.pgoff).field("write", &self.write).finish_non_exhaustive()
    }
}

/// Publishes a rewritten page on drop, and enters it into the queues of reclaim.
struct Published<'a> {
    mapping: &'a Mapping<'a>,
    pgoff: u64,
    word: &'a crate::folio::FolioWord,
    wake: &'a dyn Fn(usize),
    set: u64,
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        let claimed = self.word.load();
        self.mapping.account_dirtied(u64::from(self.set & DIRTY != 0 && !claimed.has(DIRTY)));
        if self.word.publish(self.set) == crate::folio::Wake::Needed {
            (self.wake)(self.word.futex_addr());
        }
        // Its old entry is void, by the version.
        let entry = Entry::named(self.mapping.id, self.pgoff, claimed.version());
        let _ = self.mapping.account.lru.add(entry, false);
    }
}

/// Why a page could not be read or rewritten by a delegate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinorError {
    /// The page is (perhaps) mapped elsewhere, or pinned: nobody may rewrite it.
    Busy,
    /// The page left the cache meanwhile.
    Gone,
    /// The offset or length leaves the page.
    Range,
}

impl<'a> MinorFault<'a> {
    /// Returns the fault of page `pgoff`; `wake` wakes sleepers of a folio word.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(mapping: &'a Mapping<'a>, pgoff: u64, address: usize, write: bool, wake: &'a dyn Fn(usize)) -> Self {
        Self { mapping, pgoff, address, write, wake }
    }
    /// Returns the page's number in its object.
    ///
    /// # Context: as `MinorDelegate::minor_fault`, within the call
    #[must_use]
    pub fn pgoff(&self) -> u64 {
        self.pgoff
    }
    /// Returns the touched page's address in the arena.
    ///
    /// # Context: as `MinorDelegate::minor_fault`, within the call
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }
    /// Returns whether the touch is a store.
    ///
    /// # Context: as `MinorDelegate::minor_fault`, within the call
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.write
    }

    /// Copies bytes out of the page.
    ///
    /// # Context: as `MinorDelegate::minor_fault`, within the call
    ///
    /// # Errors
    /// [`MinorError::Range`], [`MinorError::Gone`].
    pub fn read(&self, offset: usize, dst: &mut [u8]) -> Result<(), MinorError> {
        if offset.checked_add(dst.len()).is_none_or(|end| end > PAGE_SIZE) {
            return Err(MinorError::Range);
        }
        let word = self.mapping.folio(self.pgoff).ok_or(MinorError::Range)?;
        word.try_pin(0).map_err(|_| MinorError::Gone)?;
        self.mapping.a_ops.copy_from_page(self.pgoff, offset, dst);
        word.unpin();
        Ok(())
    }

    /// Lends the page's bytes for rewriting; the page is `filling` meanwhile and dirty afterwards.
    ///
    /// # Context: as `MinorDelegate::minor_fault`, within the call
    ///
    /// # Errors
    /// [`MinorError::Busy`] unless the object is mapped this once and nobody has pinned the page, [`MinorError::Gone`].
    pub fn rewrite(&self, f: &mut dyn FnMut(&mut [u8])) -> Result<(), MinorError> {
        let word = self.mapping.folio(self.pgoff).ok_or(MinorError::Range)?;
        word.try_rewrite().map_err(|seen| match seen.state() {
            State::Uptodate | State::Writeback => MinorError::Busy,
            _ => MinorError::Gone,
        })?;
        // The page is untold here, so this mapping does not have it; another one might. Looked at only now: who maps the
        // object after this look finds the page `filling` and waits; who mapped it and installed the page before our CAS
        // counted itself before that, and the CAS shows it. SeqCst pairs with `MapCount::new`.
        let alone = self.mapping.nr_maps.load(Ordering::SeqCst) <= 1;
        // Published also when `f` unwinds: a page that stayed `filling` would hold everybody up for ever.
        let set = if alone { DIRTY } else { 0 };
        let _published = Published { mapping: self.mapping, pgoff: self.pgoff, word, wake: self.wake, set };
        if alone {
            self.mapping.a_ops.with_page_mut(self.pgoff, f);
        }
        if !alone {
            return Err(MinorError::Busy);
        }
        Ok(())
    }
}

/// What `begin` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telltale {
    /// The caller must tell.
    Yours,
    /// Another thread is telling: sleep while the word has this value.
    Telling(u32),
    /// Told: go on.
    Told,
    /// Refused: SIGBUS.
    Refused,
}

const TELLING: u32 = 1;
const TOLD: u32 = 2;
const REFUSED: u32 = 3;
const PER_WORD: usize = 16;

/// A delegate and the bits of its range.
pub struct Delegation<'g> {
    /// The delegation's number in the runtime's table.
    pub id: u32,
    /// First address of the range.
    pub base: usize,
    /// Two bits a page; zeroed memory is `untold`.
    pub told: &'g [AtomicU32],
    /// Who is told.
    pub delegate: &'g dyn MinorDelegate,
    /// The delegate may run in a signal handler.
    pub handler_safe: bool,
}

impl core::fmt::Debug for Delegation<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Delegation").field("id", &self.id).field("base", &self.base).finish_non_exhaustive()
    }
}

impl Delegation<'_> {
    /// Returns how many words a range of `nr_pages` needs.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn words_for(nr_pages: usize) -> usize {
        nr_pages.div_ceil(PER_WORD)
    }

    /// Returns the word that page `index` of the range shares with 15 others.
    ///
    /// # Context: handler
    #[must_use]
    pub fn word(&self, index: usize) -> Option<&AtomicU32> {
        self.told.get(index / PER_WORD)
    }

    /// Looks at page `index` and, if it is untold, makes the caller the one who tells.
    ///
    /// # Context: handler
    #[must_use]
    pub fn begin(&self, index: usize) -> Telltale {
        let Some(word) = self.word(index) else { return Telltale::Told };
        let shift = (index % PER_WORD) * 2;
        // Acquire pairs with `Delegation::finish`: who sees that it was told sees what the delegate wrote.
        let mut seen = word.load(Ordering::Acquire);
        loop {
            match (seen >> shift) & 3 {
                TELLING => return Telltale::Telling(seen),
                TOLD => return Telltale::Told,
                REFUSED => return Telltale::Refused,
                _ => {}
            }
            match word.compare_exchange_weak(seen, seen | (TELLING << shift), Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Telltale::Yours,
                Err(now) => seen = now,
            }
        }
    }

    /// Returns whether page `index` may be mapped.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_told(&self, index: usize) -> bool {
        let shift = (index % PER_WORD) * 2;
        // Acquire pairs with `Delegation::finish`, as in `Delegation::begin`.
        self.word(index).is_none_or(|w| (w.load(Ordering::Acquire) >> shift) & 3 == TOLD)
    }

    /// telling -> told, refused or untold; by who called `begin`. The caller wakes the word.
    ///
    /// # Context: handler
    pub fn finish(&self, index: usize, verdict: MinorVerdict) {
        let Some(word) = self.word(index) else { return };
        let shift = (index % PER_WORD) * 2;
        let flip = TELLING
            ^ match verdict {
                MinorVerdict::Continue => TOLD,
                MinorVerdict::Refuse => REFUSED,
                MinorVerdict::Delay => 0,
            };
        // Only the teller changes these two bits while they say `telling`, so flipping them is exact.
        // Release pairs with `Delegation::begin` and `is_told`.
        word.fetch_xor(flip << shift, Ordering::Release);
    }

    /// Makes page `index` untold again, unless somebody is telling: that answer stands.
    ///
    /// # Context: handler
    pub fn reset(&self, index: usize) {
        let Some(word) = self.word(index) else { return };
        let shift = (index % PER_WORD) * 2;
        let mut seen = word.load(Ordering::Relaxed);
        while (seen >> shift) & 3 != TELLING {
            // Release pairs with `Delegation::begin`. Fifteen other pages share the word: when one of them moved on, this one is
            // still to be reset.
            match word.compare_exchange_weak(seen, seen & !(3 << shift), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}
