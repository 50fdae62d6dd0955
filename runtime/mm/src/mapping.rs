//! `Mapping`: an object's pages and how they are filled. Linux: `struct address_space`.

use crate::extent::ChunkWord;
use crate::folio::FolioWord;
use crate::ops::AddressSpaceOps;
use crate::page::{EXTENT_SHIFT, PAGE_SHIFT, chunk_of, pages_of, pgoff_index};
use crate::readahead::Request;
use crate::streams::Readahead;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::vmstat::VmStat;

/// The longest fill window.
const FILL_WINDOW_MAX: u32 = 1 << (EXTENT_SHIFT - PAGE_SHIFT);

/// What happens to an access whose page the store cannot give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// The page is poisoned: touching it raises SIGBUS, reading it by call returns the error; it heals when a later
    /// touch finds the store well.
    #[default]
    Poison,
    /// The page reads as zeros, and stays so.
    Zero,
    /// The process ends, with a line on standard error that names the object and the page.
    Abort,
}

/// The cache's size over all objects of a runtime.
#[derive(Debug)]
pub struct CacheAccount {
    /// Pages in the cache or being filled.
    pub nr_pages: AtomicU64,
    /// The most there may be.
    pub limit_pages: AtomicU64,
}

impl CacheAccount {
    /// Takes `nr` pages from the limit; `false`: it would be passed, nothing changed.
    ///
    /// # Context: handler
    #[must_use]
    pub fn charge(&self, nr: u64) -> bool {
        let mut before = self.nr_pages.load(Ordering::Relaxed);
        loop {
            let after = before.saturating_add(nr);
            // Never above the limit, not even for a moment: another fault would be refused for it.
            if after > self.limit_pages.load(Ordering::Relaxed) {
                return false;
            }
            match self.nr_pages.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => before = now,
            }
        }
    }

    /// Gives `nr` pages back.
    ///
    /// # Context: handler
    pub fn uncharge(&self, nr: u64) {
        self.nr_pages.fetch_sub(nr, Ordering::Relaxed);
    }
}

/// An object's pages. Linux: `struct address_space`.
#[derive(Debug)]
pub struct Mapping<'g> {
    /// The object's number in the runtime's table.
    pub id: u32,
    /// One word a page, over the object's maximal size.
    pub folios: &'g [FolioWord],
    /// One word a chunk.
    pub chunks: &'g [ChunkWord],
    /// The end of the object, in bytes. Whole pages past it are never filled.
    pub i_size: AtomicU64,
    /// The store side.
    pub a_ops: &'g dyn AddressSpaceOps,
    /// What happens when the store fails.
    pub policy: FailurePolicy,
    /// `a_ops` may be called in a signal handler.
    pub handler_safe: bool,
    /// `a_ops` may touch arenas, and so fault, while they run.
    pub store_faults: bool,
    /// The object's content is nowhere else (anonymous memory): stores need no tracking.
    pub always_dirty: bool,
    /// A private first store may be read past the cache.
    pub staging: bool,
    /// Pages read at once by one thread when one is missing, at most.
    pub fill_window: u32,
    /// What is read beyond that, and before anybody asks.
    pub ra: Readahead,
    /// How long a touch waits for a fill, `u64::MAX` for ever.
    pub deadline_ns: u64,
    /// Claims, tellings and reads in flight: the object must not go away while there are any.
    pub users: AtomicU32,
    /// Calls of `map` whose mappings, whole or in pieces, are still there.
    pub nr_maps: AtomicU32,
    /// The cache's limit.
    pub account: &'g CacheAccount,
    /// Where its events are counted.
    pub stat: &'g VmStat,
}

impl Mapping<'_> {
    /// Returns the number of pages, the last one perhaps partly used.
    #[inline]
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        // Pairs with the Release of truncate: who sees the old end may still map; truncate waits for them.
        pages_of(self.i_size.load(Ordering::Acquire))
    }

    /// Returns the word of page `pgoff`.
    #[inline]
    #[must_use]
    pub fn folio(&self, pgoff: u64) -> Option<&FolioWord> {
        self.folios.get(pgoff_index(pgoff))
    }

    /// Returns whether page `pgoff` is in the cache, whole.
    #[must_use]
    pub fn is_cached(&self, pgoff: u64) -> bool {
        self.folio(pgoff).is_some_and(|w| w.load().is_mappable())
    }

    /// Returns an access of `req` pages at `pgoff`, as readahead knows it.
    #[must_use]
    pub fn request(&self, pgoff: u64, req: u32) -> Request {
        Request { index: pgoff, req, sync_max: self.fill_window_pages(), floor: 0, end: self.nr_pages() }
    }

    /// Returns the fill window: a power of two, at most an extent.
    #[must_use]
    pub fn fill_window_pages(&self) -> u32 {
        self.fill_window.clamp(1, FILL_WINDOW_MAX).next_power_of_two()
    }

    /// Returns the word of the chunk that holds page `pgoff`.
    #[inline]
    #[must_use]
    pub fn chunk(&self, pgoff: u64) -> Option<&ChunkWord> {
        self.chunks.get(pgoff_index(chunk_of(pgoff)))
    }
}
