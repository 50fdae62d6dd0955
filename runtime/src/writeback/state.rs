//! What write-back knows of an object, and all that it needs of one: the pages, the store, and what is owed to it.
//!
//! # Context: control plane, the flusher

use crate::masked::{self, Masked};
use softfault_mm::ctx::Ctx;
use softfault_mm::host::Env;
use softfault_mm::mapping::Mapping;
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use softfault_platform::store::Store;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

/// What a flush needs of an object. The flusher has it for longer than there is the object: it must not end that, nor have
/// it last longer than its owner thinks, and so it holds no reference to it.
///
/// The two borrows are good while the object lives, or while a claim on one of its pages keeps it that was taken while it
/// lived. Everything else is this value's own, and good for as long as it is.
pub(crate) struct Flushing {
    mapping: &'static Mapping<'static>,
    store: &'static dyn Store,
    /// What is written is to be found in the store later. Set once, by who opens a file again for writing.
    persistent: AtomicBool,
    /// The object is being dropped. Set once, as the first thing that is done then.
    ended: AtomicBool,
    /// The last round of exit's in which it was written. That thread's alone.
    exit_round: AtomicU32,
    /// The fewest dirty pages that it was seen with in that round. That thread's alone.
    exit_low: AtomicU64,
    state: FlushState,
}

impl Flushing {
    pub(crate) fn new(mapping: &'static Mapping<'static>, store: &'static dyn Store, persistent: bool) -> Self {
        let persistent = AtomicBool::new(persistent);
        let (ended, exit_round, exit_low) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU64::new(0));
        Self { mapping, store, persistent, ended, exit_round, exit_low, state: FlushState::default() }
    }
    /// Returns the object's pages. See above for how long.
    pub(crate) fn mapping(&self) -> &'static Mapping<'static> {
        self.mapping
    }
    /// Returns the object's store. See above for how long.
    pub(crate) fn store(&self) -> &'static dyn Store {
        self.store
    }
    /// Returns what is known of its flushes.
    pub(crate) fn state(&self) -> &FlushState {
        &self.state
    }
    /// Returns whether what is written is to be found in the store later: the object is synced, and written back when it goes.
    pub(crate) fn is_persistent(&self) -> bool {
        // Acquire pairs with the Release of `allow_writes`: who sees that it is finds that the store can be written.
        self.persistent.load(Ordering::Acquire)
    }
    /// Has what is written be found in the store from now on: it can be written.
    pub(crate) fn allow_writes(&self) {
        // Release pairs with the Acquire of `is_persistent`.
        self.persistent.store(true, Ordering::Release);
    }
    /// Says that the object is being dropped: who drops it writes it back, and nobody else begins to.
    pub(crate) fn end(&self) {
        // Release pairs with the Acquire of `has_ended`: who sees the end finds that it was counted, if it is.
        self.ended.store(true, Ordering::Release);
    }
    /// Returns whether the object is being dropped, or is gone. While it is not, its number is its own.
    pub(crate) fn has_ended(&self) -> bool {
        // Acquire pairs with the Release of `end`.
        self.ended.load(Ordering::Acquire)
    }
    /// Returns whether it was written in this round of exit's.
    pub(super) fn is_written_in(&self, round: u32) -> bool {
        self.exit_round.load(Ordering::Relaxed) == round
    }
    /// Says that it was.
    pub(super) fn set_written_in(&self, round: u32) {
        self.exit_round.store(round, Ordering::Relaxed);
    }
    /// Begins to measure whether its write-back gets on, from the dirty pages that there are.
    pub(super) fn measure_from(&self, nr_dirty: u64) {
        self.exit_low.store(nr_dirty, Ordering::Relaxed);
    }
    /// Returns whether it got on: there are fewer dirty pages than ever since. What is stored meanwhile, and written again, is
    /// not what is waited for, so this cannot go on for longer than there were pages.
    pub(super) fn got_on(&self, nr_dirty: u64) -> bool {
        nr_dirty < self.exit_low.fetch_min(nr_dirty, Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Flushing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It does not look through the borrows, which may have ended.
        f.debug_struct("Flushing").field("failures", &self.state.failures).finish_non_exhaustive()
    }
}

/// What an object knows of its flushes.
#[derive(Debug, Default)]
pub(crate) struct FlushState {
    /// How many flushes have failed so far. Protected by nothing: an atomic.
    pub(super) failures: AtomicU64,
    /// Keeps flushes apart, and away from who punches holes or moves the store's end. Faults may wait for who has it: nothing
    /// is allocated under it, and no other lock taken.
    turn: masked::Mutex<()>,
    /// The store has not been told where the object ends since a flush failed, or the end moved. Protected by `turn`.
    end_owed: AtomicBool,
    /// Of which lost pages the program was told. Protected by nothing: bits of their own.
    pub(super) told: Told,
    /// Pages up to here, past the end, may still be cached, and in the store; 0: none. Protected by the object's gate.
    cut_owed: AtomicU64,
    /// Keeps those apart who write a pinned page as it is. A leaf, but for the store's own locks.
    direct: masked::Mutex<()>,
    /// Page ranges that are held. A leaf.
    held: Mutex<Vec<Range<u64>>>,
    /// Read by who walks the object's nodes without the turn, and must not miss one; written by who prunes them, with the
    /// turn, who only tries: nobody ever waits for walkers.
    nodes: RwLock<()>,
}

/// The turn to flush, to punch, or to move the end; see [`FlushState`].
pub(crate) type Turn<'a> = Masked<'a, ()>;

impl FlushState {
    /// Keeps flushes away.
    pub(crate) fn turn(&self) -> Turn<'_> {
        masked::lock(&self.turn)
    }
    /// Notes that the store is, or is not, to be told where the object ends. The caller has the turn.
    pub(crate) fn owe_end(&self, owed: bool) {
        // Relaxed, here and below: the turn orders them, and the gate.
        self.end_owed.store(owed, Ordering::Relaxed);
    }
    /// Returns whether the store is to be told where the object ends. The caller has the turn.
    pub(super) fn is_end_owed(&self) -> bool {
        self.end_owed.load(Ordering::Relaxed)
    }
    /// Keeps the nodes of chunks in use where they are.
    pub(crate) fn walk(&self) -> RwLockReadGuard<'_, ()> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner)
    }
    /// Takes the nodes of chunks away of which nothing is cached or owed any more, unless somebody walks them. The caller
    /// has the turn.
    pub(super) fn prune(&self, m: &Mapping<'_>) {
        if let Ok(_alone) = self.nodes.try_write() {
            m.prune();
        }
    }
    /// Keeps who writes pinned pages as they are away: they measure the object anew.
    pub(crate) fn direct(&self) -> Masked<'_, ()> {
        masked::lock(&self.direct)
    }
    /// The same for who has a `Host`, which masks the program's signals already: they come while the caller waits.
    pub(super) fn direct_beside(&self, env: Env<'_>, ctx: &Ctx<'_>) -> Masked<'_, ()> {
        masked::lock_beside(env, ctx, &self.direct)
    }
    /// Returns the page ranges that are held.
    pub(super) fn held(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Notes that pages up to `to` are to be dropped. The caller has the object's gate, as for the two below.
    pub(crate) fn owe_cut(&self, to: u64) {
        self.cut_owed.fetch_max(to, Ordering::Relaxed);
    }
    /// Returns up to where pages are to be dropped; 0: none are.
    pub(crate) fn cut_owed(&self) -> u64 {
        self.cut_owed.load(Ordering::Relaxed)
    }
    /// Notes that they were dropped, and the store was cut.
    pub(crate) fn forget_cut(&self) {
        self.cut_owed.store(0, Ordering::Relaxed);
    }
}

/// Has one bit for each page: it is `LOST`, and the program was told.
///
/// ```text
/// flush                                    others
/// fails; page 5 was not cached: LOST
///                                          store a byte to page 5, whose rest is what the store gave back
/// writes it, and succeeds
/// ```
/// Whoever stored that byte knew of no loss. So a page is lost until somebody writes it who was told.
#[derive(Debug, Default)]
pub(super) struct Told(OnceLock<Box<[AtomicU64]>>);

impl Told {
    /// Notes that the program was told of page `p`, of `nr_pages`. Allocates the first time.
    pub(super) fn note(&self, p: u64, nr_pages: usize) {
        let bits = self.0.get_or_init(|| (0..nr_pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect());
        if let Some(word) = bits.get((p / 64) as usize) {
            word.fetch_or(1 << (p % 64), Ordering::Relaxed);
        }
    }

    /// Forgets it of page `p`; returns whether the program was told.
    pub(super) fn take(&self, p: u64) -> bool {
        let bit = 1 << (p % 64);
        let word = self.0.get().and_then(|bits| bits.get((p / 64) as usize));
        word.is_some_and(|w| w.load(Ordering::Relaxed) & bit != 0 && w.fetch_and(!bit, Ordering::Relaxed) & bit != 0)
    }
}

/// Turns byte offsets into the pages they touch, up to the object's end.
pub(crate) fn pages(m: &Mapping<'_>, range: &Range<u64>) -> Range<u64> {
    let end = pages_of(range.end).min(m.nr_pages());
    (range.start >> PAGE_SHIFT).min(end)..end
}

/// Turns pages into the bytes that they have.
pub(crate) fn bytes(pages: &Range<u64>) -> Range<u64> {
    pages.start << PAGE_SHIFT..pages.end << PAGE_SHIFT
}
