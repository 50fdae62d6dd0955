//! What a program wants to be sure of: that its writes are durable, in which order, and what was lost.

use crate::error::{self, Error, Result, parent_only};
use crate::masked::{self, Masked};
use crate::object::{Flushing, Object, ObjectInner};
use softfault_mm::ctx::Ctx;
use softfault_mm::discarded;
use softfault_mm::failing::Asked;
use softfault_mm::failpoint;
use softfault_mm::failures::FailedOp;
use softfault_mm::folio::{DIRTY, FolioWord, HELD, LOST, State, Wake};
use softfault_mm::host::Env;
use softfault_mm::mapping::Mapping;
use softfault_mm::ops::WaitKey;
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use softfault_mm::types::FillError;
use softfault_mm::vmstat::Event;
use softfault_mm::{rmap, vmscan, writeback};
use softfault_platform::host::Host;
use softfault_platform::section;
use softfault_platform::store::StoreError;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

/// What an object knows of its flushes.
#[derive(Debug, Default)]
pub(crate) struct FlushState {
    /// Flushes that failed so far.
    failures: AtomicU64,
    /// Keeps flushes apart, and away from who punches holes or moves the store's end. Faults may wait for who has it: nothing
    /// is allocated under it, and no other lock taken.
    turn: Mutex<()>,
    /// The store has not been told where the object ends since a flush failed, or the end moved.
    end_owed: AtomicBool,
    /// Of which lost pages the program was told.
    told: Told,
    /// Pages up to here, past the end, may still be cached, and in the store; 0: none.
    cut_owed: AtomicU64,
    /// Who has it writes a pinned page as it is. A leaf, but for the store.
    direct: Mutex<()>,
    /// Page ranges that are held.
    held: Mutex<Vec<Range<u64>>>,
    /// Read by who walks the object's nodes without the turn, and must not miss one; written by who prunes them, with the
    /// turn, who only tries: nobody ever waits for walkers.
    nodes: RwLock<()>,
}

/// Who has it flushes, punches, or moves the end; see [`FlushState`].
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
    /// Keeps the nodes of chunks in use where they are.
    pub(crate) fn walk(&self) -> RwLockReadGuard<'_, ()> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner)
    }
    /// Takes the nodes of chunks away of which nothing is cached or owed any more, unless somebody walks them. The caller
    /// has the turn.
    fn prune(&self, m: &Mapping<'_>) {
        if let Ok(_alone) = self.nodes.try_write() {
            m.prune();
        }
    }
    /// Keeps who writes pinned pages as they are away: they measure the object anew.
    pub(crate) fn direct(&self) -> Masked<'_, ()> {
        masked::lock(&self.direct)
    }
    /// Notes that pages up to `to` are to be dropped. The caller has the object's gate, as for the two below.
    pub(crate) fn owe_cut(&self, to: u64) {
        self.cut_owed.fetch_max(to, Ordering::Relaxed);
    }
    pub(crate) fn cut_owed(&self) -> u64 {
        self.cut_owed.load(Ordering::Relaxed)
    }
    pub(crate) fn forget_cut(&self) {
        self.cut_owed.store(0, Ordering::Relaxed);
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns byte offsets into the pages they touch.
fn pages(m: &Mapping<'_>, range: &Range<u64>) -> Range<u64> {
    let end = pages_of(range.end).min(m.nr_pages());
    (range.start >> PAGE_SHIFT).min(end)..end
}

fn bytes(pages: &Range<u64>) -> Range<u64> {
    pages.start << PAGE_SHIFT..pages.end << PAGE_SHIFT
}

/// One bit a page: it is `LOST`, and the program was told.
///
/// ```text
/// flush                                    others
/// fails; page 5 was not cached: LOST
///                                          store a byte to page 5, whose rest is what the store gave back
/// writes it, and succeeds
/// ```
/// Who stored knew of nothing: what was lost is written again only by who was told.
#[derive(Debug, Default)]
struct Told(OnceLock<Box<[AtomicU64]>>);

impl Told {
    /// Notes that the program is told of `lost`, bytes of whole pages, but for pages that were stored to before. Allocates.
    fn tell(&self, m: &Mapping<'_>, lost: &[Range<u64>]) {
        let bits = self.0.get_or_init(|| m.folios.chunks(64).map(|_| AtomicU64::new(0)).collect());
        let knows = |w: &FolioWord| {
            let seen = w.load();
            let written = seen.has(DIRTY) || seen.is_unsynced() || seen.state() == State::Writeback;
            seen.has(LOST) && !written
        };
        let pages = lost.iter().flat_map(|r| r.start >> PAGE_SHIFT..r.end >> PAGE_SHIFT);
        for p in pages.filter(|p| m.folio(*p).is_some_and(knows)) {
            if let Some(word) = bits.get((p / 64) as usize) {
                word.fetch_or(1 << (p % 64), Ordering::Relaxed);
            }
        }
    }

    /// Forgets it of page `p`; returns whether the program was told.
    fn take(&self, p: u64) -> bool {
        let bit = 1 << (p % 64);
        let word = self.0.get().and_then(|bits| bits.get((p / 64) as usize));
        word.is_some_and(|w| w.load(Ordering::Relaxed) & bit != 0 && w.fetch_and(!bit, Ordering::Relaxed) & bit != 0)
    }
}

/// Returns the bytes of the lost pages among `pages`.
fn lost_in(m: &Mapping<'_>, pages: Range<u64>) -> Vec<Range<u64>> {
    let mut list: Vec<Range<u64>> = Vec::new();
    for (page, _) in m.each_folio(pages.start, pages.end).filter(|(_, w)| w.load().has(LOST)) {
        let here = bytes(&(page..page + 1));
        match list.last_mut() {
            Some(last) if last.end == here.start => last.end = here.end,
            _ => list.push(here),
        }
    }
    list
}

/// Chunks that are scanned in one section: 1 GiB, some milliseconds where all of it is mapped. Who unmaps waits for that.
const SCAN_CHUNKS: usize = 512;

/// Marks every page of the range dirty that was written before the call. Who must not miss one walks the nodes: see
/// [`FlushState::walk`].
pub(crate) fn harvest(env: Env<'_>, m: &Mapping<'_>, range: &Range<u64>) {
    for (from, to) in m.nodes.runs(range.start, range.end, SCAN_CHUNKS) {
        discarded::drop_missing(m, &|addr| env.park.wake(addr), 0, from, to);
        env.mm.with_rmap(&mut |r| {
            rmap::harvest(r, m, from, to);
        });
    }
    // Reclaim that took a mapping away before our scan has said in the word, when its section ends, that the page was
    // written.
    section::synchronize();
}

/// Writes what is known to be dirty, without looking for more and without waiting for what is pinned. A chunk
/// whose node is being looked at meanwhile may be passed over.
pub(crate) fn write_known_dirty(env: Env<'_>, m: &Mapping<'_>) -> std::result::Result<u64, (u64, FillError)> {
    let mut written = 0;
    // A store that fails says so of the first chunk.
    let chunks = if m.failing.is_set() { 1 } else { usize::MAX };
    for (from, to) in m.nodes.runs(0, m.nr_pages(), chunks) {
        written += writeback::writeout(env, m, 0, from, to)?;
    }
    Ok(written)
}

/// While it lives, pages that the store was given stay as they are: the cached ones cached, the others vacant, so that what
/// is found after a failed flush is what there was before it. Faults wait for it: it remembers them in their words alone.
struct Settled<'a>(&'a Mapping<'a>);

impl<'a> Settled<'a> {
    /// The caller has the object's turn to flush.
    fn new(m: &'a Mapping<'a>) -> Self {
        m.flushing.store(1, Ordering::SeqCst);
        // Who evicts does so in a section, and looks there.
        section::synchronize();
        for (_, word) in m.each_folio(0, u64::MAX).filter(|(_, w)| w.load().is_unsynced()) {
            // One that is being read has what it reads before the store flushes; one that hangs is lost if the flush fails.
            let mut patience = 20_000;
            while word.load().state() == State::Filling && patience > 0 {
                std::thread::sleep(std::time::Duration::from_micros(100));
                patience -= 1;
            }
            let _ = word.try_vacate();
        }
        Self(m)
    }
}

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        let host = Host::detached();
        for (_, word) in self.0.each_folio(0, u64::MAX).filter(|(_, w)| w.load().is_vacant()) {
            if word.end_vacancy() == Ok(Wake::Needed) {
                host.env().park.wake(word.futex_addr());
            }
        }
        self.0.flushing.store(0, Ordering::SeqCst);
    }
}

impl ObjectInner {
    /// As [`Flushing::write_back`].
    pub(crate) fn write_back(&self, op: &'static str, range: &Range<u64>) -> Result<Option<u64>> {
        self.flushing().write_back(op, range)
    }
}

impl Flushing {
    /// Gives every byte of the pages that was written before the call to the store. Returns the first held page, if a
    /// held one is dirty. Of an object that lives, or that a claim keeps.
    pub(crate) fn write_back(&self, op: &'static str, range: &Range<u64>) -> Result<Option<u64>> {
        let m = self.mapping();
        let host = Host::detached();
        let _walk = self.flush_state().walk();
        harvest(host.env(), m, range);
        let failed = |(p, error): (u64, FillError)| error::writeback(op, m.label, bytes(&(p..p + 1)), error);
        for (from, to) in m.nodes.runs(range.start, range.end, usize::MAX) {
            m.stat.add(0, Event::WRITEBACK_SCAN, to - from);
            writeback::writeout(host.env(), m, 0, from, to).map_err(failed)?;
            // Nothing of what was written is in our hands any more.
            host.breathe();
        }
        let mut held = None;
        for (p, word) in m.each_folio(range.start, range.end) {
            let seen = word.load();
            // Of an exclusive object it is written on its way; of another one it may come back, if a hole cannot be made.
            let leaving = seen.state() == State::Evicting && !seen.is_vacant();
            // A delegate is rewriting it: what was stored before is in its hands.
            let rewritten = seen.state() == State::Filling && seen.has(DIRTY);
            if leaving || rewritten || seen.state() == State::Writeback || (seen.is_mappable() && seen.has(DIRTY)) {
                let skipped = crate::writeback::pinned::settle(host.env(), m, &self.flush_state().direct, word, p)
                    .map_err(failed)?;
                held = held.or_else(|| skipped.then_some(p));
            }
        }
        Ok(held)
    }
}

impl Flushing {
    /// Makes durable what the store was given. Serialised: a failure is everybody's.
    pub(crate) fn flush(&self, op: &'static str) -> Result<()> {
        let turn = self.flush_state().turn();
        let flushed = self.flush_in(&turn);
        if flushed.is_ok() {
            self.flush_state().prune(self.mapping());
        }
        // The error takes memory, which may be asked of a thread whose fault waits for us.
        drop(turn);
        flushed.map_err(|error| error::flush(op, self.mapping().label, error))
    }

    /// The same by who has the turn.
    fn flush_in(&self, _turn: &Turn<'_>) -> std::result::Result<(), StoreError> {
        let m = self.mapping();
        m.flush_wanted.store(0, Ordering::Relaxed);
        if self.flush_state().end_owed.load(Ordering::Relaxed) {
            self.tell_end()?;
        }
        let _settled = Settled::new(m);
        failpoint!(FLUSH_SETTLED);
        let turn = writeback::begin_flush(m);
        m.stat.add(0, Event::FLUSH_CALLS, 1);
        let flushed = self.store().flush();
        failpoint!(FLUSH_DONE);
        match flushed {
            Ok(()) => {
                // What was lost, and written again by who was told, is there now.
                for (p, word) in m.each_folio(0, u64::MAX) {
                    let seen = word.load();
                    if seen.has(LOST) && seen.has(turn) && self.flush_state().told.take(p) {
                        word.clear(LOST);
                    }
                }
                writeback::end_flush(m, turn);
                m.note_success(Asked::Flush);
                Ok(())
            }
            Err(error) => {
                // What reclaim takes out of an exclusive object is marked when it is gone, not while it is written.
                for (_, word) in m.each_folio(0, u64::MAX).filter(|_| m.exclusive) {
                    while word.load().state() == State::Evicting && !word.load().is_vacant() {
                        std::thread::sleep(std::time::Duration::from_micros(100));
                    }
                }
                writeback::fail_flush(m, &mut |p| {
                    let _ = self.flush_state().told.take(p);
                    m.stat.add(0, Event::FLUSH_LOST, 1);
                });
                m.stat.add(0, Event::FLUSH_ERRORS, 1);
                let now_ns = Host::detached().env().park.now_ns();
                m.record_failure(FailedOp::Flush, error.fill_error(), 0, 0, now_ns);
                // Such pages stay until a flush succeeds.
                if !m.a_ops.rereads_unflushed() {
                    m.note_failure(Asked::Flush, error.fill_error());
                }
                // Owed, if it fails.
                let _ = self.tell_end();
                // Release pairs with the Acquire in sync(): who sees the count sees the pages dirty again.
                self.flush_state().failures.fetch_add(1, Ordering::Release);
                Err(error)
            }
        }
    }

    /// Tells the store again where the object ends: a flush that failed may have lost that like a write, and bytes past the
    /// store's own end could not be read. The caller has the turn: the end does not move meanwhile.
    fn tell_end(&self) -> std::result::Result<(), StoreError> {
        if !self.is_persistent() {
            return Ok(());
        }
        let len_bytes = self.mapping().i_size.load(Ordering::Acquire);
        let mut told = self.store().set_len(len_bytes);
        for _ in 0..3 {
            told = told.or_else(|_| self.store().set_len(len_bytes));
        }
        self.flush_state().owe_end(told.is_err());
        told
    }
}

impl ObjectInner {
    /// Punches a hole into the store; `false`: it cannot. The caller has the object's turn to flush, and the pages.
    pub(crate) fn punch_below(&self, pages: &Range<u64>, hole: &Range<u64>) -> std::result::Result<bool, StoreError> {
        let m = self.mapping();
        match self.store().punch(hole.start, hole.end - hole.start) {
            Ok(()) => {
                // A flush that fails may lose it like a write, and what was lost before does not matter any more.
                for word in pages.clone().filter_map(|p| m.folio(p)) {
                    word.set(writeback::unsynced_bit(m));
                    word.clear(LOST);
                }
                Ok(true)
            }
            Err(StoreError::Unsupported) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has reads see what the store was told about pages that are not cached: some stores show it after a flush.
    pub(crate) fn show_below(&self, op: &'static str, turn: &Turn<'_>) -> Result<()> {
        if self.store().rereads_unflushed() {
            return Ok(());
        }
        self.flushing().flush_in(turn).map_err(|error| error::flush(op, self.mapping().label, error))
    }

    pub(crate) fn forget_lost(&self, pages: &Range<u64>) {
        let m = self.mapping();
        for word in pages.clone().map_while(|p| m.folio(p)).filter(|w| w.load().has(LOST)) {
            word.clear(LOST);
        }
    }

    fn sync(&self, op: &'static str, range: &Range<u64>, skip_held: bool) -> Result<()> {
        let m = self.mapping();
        loop {
            // ```text
            // this call                                another
            // writes its pages
            //                                          flush fails: our pages too may be gone, and are dirty again
            // flush succeeds: it had nothing to write
            // ```
            let failures = self.flush_state().failures.load(Ordering::Acquire);
            let range = range.start..range.end.min(m.nr_pages());
            let held = self.write_back(op, &range)?;
            if let Some(p) = held.filter(|_| !skip_held) {
                return Err(Error::Held { op, object: self.label(), range: bytes(&(p..p + 1)) });
            }
            self.flush(op)?;
            if self.flush_state().failures.load(Ordering::Acquire) != failures {
                continue;
            }
            let lost = {
                let _walk = self.flush_state().walk();
                lost_in(m, range)
            };
            if lost.is_empty() {
                return Ok(());
            }
            self.flush_state().told.tell(m, &lost);
            return Err(Error::Lost { op, object: self.label(), ranges: lost });
        }
    }

    /// Writes everything back before the object goes away. Nobody is left to be told of errors: they are counted.
    pub(crate) fn write_back_last(&self) {
        let all = 0..self.mapping().nr_pages();
        let _ = self.write_back("drop", &all);
    }
}

/// Pages that are not written back for as long as the value lives; see [`Object::hold_dirty`].
#[derive(Debug)]
pub struct Held {
    object: Object,
    pages: Range<u64>,
}

impl Held {
    /// Returns the bytes that are held.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        bytes(&self.pages)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if softfault_platform::child::in_child() {
            return;
        }
        let inner = &self.object.inner;
        for p in self.pages.clone() {
            if let Some(word) = inner.mapping().folio(p) {
                word.clear(HELD);
            }
        }
        lock(&inner.flush_state().held).retain(|r| *r != self.pages);
    }
}

/// What [`Object::invalidate`] did, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidated {
    /// Dropped: the next touch asks the store.
    pub dropped: u64,
    /// Kept, because they were written and not written back yet, or are pinned.
    pub kept: u64,
}

impl Object {
    /// Makes durable every byte of the range that was written before the call, through whatever mapping or call: the pages
    /// go to the store in ascending runs, then the store is flushed.
    ///
    /// # Errors
    /// [`Error::Writeback`] and [`Error::Flush`]: nothing is promised, the pages are dirty again as far as they are cached,
    /// and the next call tries again. [`Error::Lost`] names bytes whose writes a failed flush took away while they were not
    /// cached: every call over them says so until, after one has, they are written again or [`Object::forget_lost`]. [`Error::Held`]: a
    /// page of the range is held and dirty; the others are durable only after a call that does not meet one.
    pub fn sync(&self, range: Range<u64>) -> Result<()> {
        let op = "Object::sync";
        parent_only(op)?;
        if !self.inner.is_persistent() {
            return Ok(());
        }
        self.inner.sync(op, &pages(self.inner.mapping(), &range), false)
    }

    /// Gives the store every byte of the range that was written before the call, and does not flush it: other readers of a
    /// file see the bytes, and a crash may still take them. Linux: `sync_file_range(2)`, and what `MS_ASYNC` once did.
    ///
    /// # Errors
    /// [`Error::Writeback`], and [`Error::Held`] where a page of the range is held and dirty; the others were written.
    pub fn write_back(&self, range: Range<u64>) -> Result<()> {
        let op = "Object::write_back";
        parent_only(op)?;
        if !self.inner.is_persistent() {
            return Ok(());
        }
        let held = self.inner.write_back(op, &pages(self.inner.mapping(), &range))?;
        held.map_or(Ok(()), |p| Err(Error::Held { op, object: self.inner.label(), range: bytes(&(p..p + 1)) }))
    }

    /// Makes everything durable that was written before the call.
    ///
    /// # Errors
    /// As [`Object::sync`].
    pub fn sync_all(&self) -> Result<()> {
        self.sync(0..u64::MAX)
    }

    /// Makes everything that was written before the call, and is not held, durable before anything that is written after
    /// it: an ordering point, by waiting.
    ///
    /// # Errors
    /// As [`Object::sync`], but for [`Error::Held`].
    pub fn barrier(&self) -> Result<()> {
        let op = "Object::barrier";
        parent_only(op)?;
        if !self.inner.is_persistent() {
            return Ok(());
        }
        self.inner.sync(op, &(0..self.inner.mapping().nr_pages()), true)
    }

    /// Keeps the pages of the range from being written back, whatever the pressure, until the value is dropped: a
    /// write-ahead log must be durable before the pages it describes. Held dirty pages cannot be reclaimed: they count
    /// against the cache's limit.
    ///
    /// # Errors
    /// [`Error::Held`] where a page is held already, [`Error::Denied`] on exclusive objects.
    pub fn hold_dirty(&self, range: Range<u64>) -> Result<Held> {
        let op = "Object::hold_dirty";
        parent_only(op)?;
        let inner = &self.inner;
        if inner.is_exclusive() {
            return Err(Error::Denied { op, what: "an exclusive object's pages are written when they leave" });
        }
        let m = inner.mapping();
        let pages = (range.start >> PAGE_SHIFT)..pages_of(range.end).min(m.folios.len() as u64);
        let mut list = lock(&inner.flush_state().held);
        if let Some(r) = list.iter().find(|r| r.start < pages.end && pages.start < r.end) {
            return Err(Error::Held { op, object: inner.label(), range: bytes(r) });
        }
        list.push(pages.clone());
        drop(list);
        let host = Host::detached();
        let ctx = Ctx::thread(0);
        for p in pages.clone() {
            let Some(word) = m.folio(p) else { break };
            word.set(HELD);
            m.nodes.insert(p);
            // One that is on its way may be written after we have returned.
            while let Some(low) = word.mark_waiter(State::Writeback) {
                host.env().park.wait(&ctx, WaitKey { addr: word.futex_addr(), seen: low }, u64::MAX);
            }
        }
        drop(host);
        // Nor may one that is pinned, and written as it is. The program's signals may come while we wait for the store.
        drop(lock(&inner.flush_state().direct));
        Ok(Held { object: self.clone(), pages })
    }

    /// Returns the bytes whose writes failed flushes took away.
    #[must_use]
    pub fn lost(&self) -> Vec<Range<u64>> {
        let m = self.inner.mapping();
        let lost = {
            let _walk = self.inner.flush_state().walk();
            lost_in(m, 0..m.folios.len() as u64)
        };
        if !lost.is_empty() {
            self.inner.flush_state().told.tell(m, &lost);
        }
        lost
    }

    /// Accepts the loss of what was written to the range: [`Object::sync`] does not report it any more.
    pub fn forget_lost(&self, range: Range<u64>) {
        let pages = (range.start >> PAGE_SHIFT)..pages_of(range.end);
        self.inner.forget_lost(&pages);
    }

    /// Drops what is cached of the range, because the store's content was changed by somebody else: the next touch reads it
    /// anew. Pages that were written here and not written back, and pinned ones, stay. Private copies stay.
    ///
    /// Who is about to change the store itself syncs and invalidates the range before, until nothing is kept, touches
    /// nothing of it meanwhile, and invalidates it afterwards: a cached page may be taken for written (never the other way
    /// round), and would be written back over the change.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when an extent cannot be taken back.
    pub fn invalidate(&self, range: Range<u64>) -> Result<Invalidated> {
        let op = "Object::invalidate";
        parent_only(op)?;
        let m = self.inner.mapping();
        let pages = pages(m, &range);
        let host = Host::detached();
        let cached = |p: &u64| m.folio(*p).is_some_and(|w| w.load().state() != State::Absent);
        let mut dropped = 0;
        let _walk = self.inner.flush_state().walk();
        for _ in 0..100 {
            self.inner.demote(pages.start, pages.end)?;
            dropped += if m.exclusive {
                // What was written here stays, once that is known.
                harvest(host.env(), m, &pages);
                vmscan::evict_exclusive(host.env(), m, pages.start, pages.end, false)
            } else {
                vmscan::reclaim_range(host.env(), m, 0, pages.start, pages.end)
            };
            let busy = pages
                .clone()
                .filter(cached)
                .any(|p| m.folio(p).is_some_and(|w| !w.load().has(DIRTY) && w.load().state() != State::Poisoned));
            if !busy {
                break;
            }
            std::thread::yield_now();
        }
        Ok(Invalidated { dropped, kept: pages.filter(cached).count() as u64 })
    }
}
