//! What bounds the cache: the limit, its watermarks, and who is told when they are passed. Linux: `mm/memcontrol.c`.
//!
//! ```text
//!   0 ........................ high ...... low ... limit
//!   kswapd sleeps               ^           ^      ^
//!                     kswapd stops   kswapd is woken   faulting threads reclaim by themselves
//! ```
//!
//! # Context: handler

use crate::lru::Lruvec;
use crate::ops::WaitKey;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::workingset::{high_watermark, low_watermark};

/// The dirty pages that an object may have in any case while its store fails, however many such objects share what may be dirty.
const STUCK_MIN: u64 = 8;

/// The cache's size over all objects of a runtime, or of one object that has a limit of its own.
#[derive(Debug)]
pub struct CacheAccount<'g> {
    /// Pages in the cache or being filled.
    pub nr_pages: AtomicU64,
    /// The most there may be.
    pub limit_pages: AtomicU64,
    /// Pages known to be dirty: written by a fault, by a call, or found by a scan.
    pub nr_dirty: AtomicU64,
    /// Those among them whose objects' stores fail.
    pub nr_stuck: AtomicU64,
    /// Objects whose stores fail.
    pub nr_failing: AtomicU64,
    /// Pages being written out.
    pub nr_writeback: AtomicU64,
    /// Those among them whose objects' stores were not failing when that began: who needs room waits for their end.
    nr_awaited: AtomicU64,
    /// Pages that stores are to read, or are reading, as far as they are waited for however long they take.
    nr_filling: AtomicU64,
    /// Writers of more dirty pages than this wait for write-back.
    pub dirty_limit: AtomicU64,
    /// Chunks that are huge pages.
    pub nr_huge: AtomicU64,
    /// In which order pages are reclaimed.
    pub lru: Lruvec<'g>,
    /// Moves when pages were given back or written.
    progress: AtomicU32,
    /// Threads that wait for progress.
    waiters: AtomicU32,
    /// Moves when the background reclaimer is wanted.
    bell: AtomicU32,
    /// The background reclaimer sleeps on the bell.
    idle: AtomicU32,
    /// One more than the limit under which the background reclaimer found nothing to free, so that it sleeps though there
    /// is too much; 0: it has not given up.
    given_up: AtomicU64,
    /// Moves when the flusher is wanted at once.
    flush_bell: AtomicU32,
}

impl<'g> CacheAccount<'g> {
    /// Makes an empty account.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(limit_pages: u64, lru: Lruvec<'g>) -> Self {
        Self {
            nr_pages: AtomicU64::new(0),
            limit_pages: AtomicU64::new(limit_pages),
            nr_dirty: AtomicU64::new(0),
            nr_stuck: AtomicU64::new(0),
            nr_failing: AtomicU64::new(0),
            nr_writeback: AtomicU64::new(0),
            nr_awaited: AtomicU64::new(0),
            nr_filling: AtomicU64::new(0),
            dirty_limit: AtomicU64::new(u64::MAX),
            nr_huge: AtomicU64::new(0),
            lru,
            progress: AtomicU32::new(0),
            waiters: AtomicU32::new(0),
            bell: AtomicU32::new(0),
            idle: AtomicU32::new(0),
            given_up: AtomicU64::new(0),
            flush_bell: AtomicU32::new(0),
        }
    }

    /// Returns the limit.
    ///
    /// # Context: handler
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit_pages.load(Ordering::Relaxed)
    }

    /// Takes `nr` pages from the limit; `false`: it would be passed, nothing changed.
    ///
    /// # Context: handler
    #[must_use]
    pub fn charge(&self, nr: u64) -> bool {
        let mut before = self.nr_pages.load(Ordering::Relaxed);
        loop {
            let after = before.saturating_add(nr);
            // The count never passes the limit, not even for a moment: another fault would be refused meanwhile.
            if after > self.limit() {
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
        if nr > 0 {
            self.nr_pages.fetch_sub(nr, Ordering::Relaxed);
        }
    }

    /// Returns whether more pages are paid for than the queues name: the others are being filled, or somebody's reclaim has
    /// them in hand. A guess: entries of pages that have gone hide as many.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_filling(&self) -> bool {
        self.nr_pages.load(Ordering::Relaxed) > self.lru.len()
    }

    /// Returns how many pages the background reclaimer is to free now: down to its high watermark.
    ///
    /// # Context: handler
    #[must_use]
    pub fn excess(&self) -> u64 {
        self.nr_pages.load(Ordering::Relaxed).saturating_sub(high_watermark(self.limit()))
    }

    /// Returns whether the low watermark is passed, or a queue fills up, while the background reclaimer sleeps; says so to
    /// one caller only.
    ///
    /// ```text
    /// reclaimer                     thread
    /// idle = 1; excess? no
    ///                               passes the mark; idle 1 -> 0: rings
    /// sleeps on the bell as it was: moved, looks again
    /// ```
    ///
    /// # Context: handler
    #[must_use]
    pub fn wants_kswapd(&self) -> bool {
        // SeqCst pairs with `doze`: either we see it idle, or it sees our pages.
        let full = self.nr_pages.load(Ordering::SeqCst) > low_watermark(self.limit());
        ((full && !self.has_given_up()) || self.lru.is_crowded()) && self.rouse()
    }

    /// Says that the background reclaimer has looked at everything several times for nothing: it leaves reclaim to the faulting
    /// threads until somebody gives pages back, or the limit changes. Linux: `kswapd_failures`.
    ///
    /// # Context: handler
    pub fn give_up(&self) {
        // SeqCst pairs with `has_given_up`, and with `progressed` of who gives pages back meanwhile.
        self.given_up.store(self.limit().saturating_add(1), Ordering::SeqCst);
    }

    /// Returns whether the background reclaimer has given up.
    ///
    /// ```text
    /// reclaimer                     thread
    /// gives up
    /// idle = 1                      gave pages back: has not given up
    /// given up? sleeps              passes the mark; idle? rings
    /// ```
    ///
    /// # Context: handler
    #[must_use]
    pub fn has_given_up(&self) -> bool {
        // SeqCst pairs with `give_up` and `progressed`; between `doze` and the sleep it is looked at as the pages are.
        self.given_up.load(Ordering::SeqCst) == self.limit().saturating_add(1)
    }

    /// Returns whether the background reclaimer was idle, which it is no more; the caller then wakes the bell.
    ///
    /// # Context: handler
    #[must_use]
    pub fn rouse(&self) -> bool {
        // SeqCst pairs with `doze`: it finds the bell moved, or we find it idle.
        if self.idle.load(Ordering::SeqCst) == 0 || self.idle.swap(0, Ordering::SeqCst) == 0 {
            return false;
        }
        self.bell.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// Says that the background reclaimer is about to sleep; returns what it is to sleep on, as that was before its last look at
    /// the pages.
    ///
    /// # Context: handler
    pub fn doze(&self) -> WaitKey {
        // SeqCst pairs with `rouse` and `wants_kswapd`: the bell is read before we are idle, the pages are looked at afterwards.
        let seen = self.bell.load(Ordering::SeqCst);
        self.idle.store(1, Ordering::SeqCst);
        WaitKey { addr: self.bell_addr(), seen }
    }

    /// Returns the address of the background reclaimer's bell.
    ///
    /// # Context: handler
    #[must_use]
    pub fn bell_addr(&self) -> usize {
        core::ptr::from_ref(&self.bell).addr()
    }

    /// Returns whether writers have to wait until dirty pages are written. Linux: the hard limit of
    /// `balance_dirty_pages`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_dirty_full(&self) -> bool {
        self.nr_writable() > self.dirty_limit.load(Ordering::Relaxed)
    }

    /// Returns how many pages are dirty and can be written: not those whose objects' stores fail.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr_writable(&self) -> u64 {
        self.nr_dirty.load(Ordering::Relaxed).saturating_sub(self.nr_stuck.load(Ordering::Relaxed))
    }

    /// Returns how many dirty pages an object may have while its store fails: its share of half of what may be dirty.
    ///
    /// # Context: handler
    #[must_use]
    pub fn stuck_limit(&self) -> u64 {
        let half = self.dirty_limit.load(Ordering::Relaxed) / 2;
        (half / self.nr_failing.load(Ordering::Relaxed).max(1)).max(STUCK_MIN)
    }

    /// Returns how many pages may be dirty, and `more`.
    pub(crate) fn dirty_limit_and(&self, more: u64) -> u64 {
        self.dirty_limit.load(Ordering::Relaxed).saturating_add(more)
    }

    /// Takes from a count that others change, never below 0.
    pub(crate) fn take(count: &AtomicU64, nr: u64) {
        let mut seen = count.load(Ordering::Relaxed);
        while let Err(now) =
            count.compare_exchange_weak(seen, seen.saturating_sub(nr), Ordering::Relaxed, Ordering::Relaxed)
        {
            seen = now;
        }
    }

    /// Returns what the flusher sleeps on.
    ///
    /// # Context: handler
    #[must_use]
    pub fn flush_key(&self) -> WaitKey {
        // SeqCst pairs with `ring_flusher`: what was wanted before the bell that is read here is seen by the round that follows.
        WaitKey { addr: core::ptr::from_ref(&self.flush_bell).addr(), seen: self.flush_bell.load(Ordering::SeqCst) }
    }

    /// Asks for the flusher at once; returns the address to wake.
    ///
    /// # Context: handler
    pub fn ring_flusher(&self) -> usize {
        // SeqCst pairs with `flush_key`: what the flusher is wanted for comes before the bell.
        self.flush_bell.fetch_add(1, Ordering::SeqCst);
        core::ptr::from_ref(&self.flush_bell).addr()
    }

    /// Returns what tells this cache from all others of the process.
    ///
    /// # Context: handler
    #[must_use]
    pub fn name(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Begins a wait for pages to be given back, or write-back to end: returns what to sleep on.
    ///
    /// # Context: handler
    pub fn begin_wait(&self) -> WaitKey {
        // SeqCst pairs with `progressed`: either it sees a waiter, or we sleep on what it has moved already.
        self.waiters.fetch_add(1, Ordering::SeqCst);
        WaitKey { addr: core::ptr::from_ref(&self.progress).addr(), seen: self.progress.load(Ordering::SeqCst) }
    }

    /// Returns what moves when pages are given back or written.
    ///
    /// # Context: handler
    #[must_use]
    pub fn progress(&self) -> u32 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Counts pages that are being written out, until [`CacheAccount::writeback_ends`] with the same words; `is_awaited`: who wants
    /// room waits for them.
    ///
    /// # Context: handler
    pub fn writeback_begins(&self, nr: u64, is_awaited: bool) {
        if is_awaited {
            self.nr_awaited.fetch_add(nr, Ordering::Relaxed);
        }
        self.nr_writeback.fetch_add(nr, Ordering::Relaxed);
    }

    /// Ends what [`CacheAccount::writeback_begins`] has begun.
    ///
    /// # Context: handler
    pub fn writeback_ends(&self, nr: u64, is_awaited: bool) {
        if is_awaited {
            self.nr_awaited.fetch_sub(nr, Ordering::Relaxed);
        }
        self.nr_writeback.fetch_sub(nr, Ordering::Relaxed);
    }

    /// Returns whether a store that is waited for has pages in hand: there will be room when it has written them.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_being_written(&self) -> bool {
        // A word of its own: told from two, a retry that begins or ends between the looks would hide who is slow.
        self.nr_awaited.load(Ordering::Relaxed) > 0
    }

    /// Counts pages that a store is to read, until [`CacheAccount::fill_ends`].
    pub(crate) fn fill_begins(&self, nr: u64) {
        self.nr_filling.fetch_add(nr, Ordering::Relaxed);
    }

    /// Ends what [`CacheAccount::fill_begins`] has begun: the pages are in the queues, or given back.
    pub(crate) fn fill_ends(&self, nr: u64) {
        // Release pairs with `is_being_read`: who finds them read finds them where reclaim looks.
        let before = self.nr_filling.fetch_sub(nr, Ordering::Release);
        debug_assert!(before >= nr, "{nr} pages of {before} that are being read");
    }

    /// Returns whether a store reads pages: they can go when it has read them.
    pub(crate) fn is_being_read(&self) -> bool {
        // Acquire pairs with `fill_ends`.
        self.nr_filling.load(Ordering::Acquire) != 0
    }

    /// Returns whether pages were given back or written since the wait began.
    ///
    /// # Context: handler
    #[must_use]
    pub fn has_progressed(&self, since: WaitKey) -> bool {
        self.progress.load(Ordering::Relaxed) != since.seen
    }

    /// Ends a wait.
    ///
    /// # Context: handler
    pub fn end_wait(&self) {
        // SeqCst pairs with `progressed`, as in `begin_wait`; one that still counts us wakes nobody.
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// Returns the address to wake if anybody waits for progress.
    ///
    /// # Context: handler
    #[must_use]
    pub fn progressed(&self) -> Option<usize> {
        // SeqCst pairs with `begin_wait` (we see a waiter, or it sees progress), and with `has_given_up`.
        if self.given_up.load(Ordering::Relaxed) != 0 {
            self.given_up.store(0, Ordering::SeqCst);
        }
        // It moves whether or not anybody sleeps: a thread that does not sleep looks at it when it comes back. SeqCst pairs
        // with `begin_wait`.
        self.progress.fetch_add(1, Ordering::SeqCst);
        (self.waiters.load(Ordering::SeqCst) > 0).then(|| core::ptr::from_ref(&self.progress).addr())
    }
}
