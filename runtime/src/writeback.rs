//! What a program wants to be sure of: that its writes are durable, in which order, and what was lost.

use crate::error::{Error, Result, parent_only};
use crate::object::{Object, ObjectInner};
use softfault_mm::ctx::Ctx;
use softfault_mm::failpoint;
use softfault_mm::folio::{DIRTY, FolioWord, HELD, State, Wake};
use softfault_mm::host::Env;
use softfault_mm::mapping::Mapping;
use softfault_mm::ops::WaitKey;
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT, pages_of};
use softfault_mm::types::FillError;
use softfault_mm::vmstat::Event;
use softfault_mm::{rmap, vmscan, writeback};
use softfault_platform::host::Host;
use softfault_platform::section;
use softfault_platform::store::StoreError;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an object knows of its flushes.
#[derive(Debug, Default)]
pub(crate) struct FlushState {
    /// Flushes that failed so far.
    failures: AtomicU64,
    /// What failed flushes took away; also keeps flushes apart.
    lost: Mutex<Lost>,
    /// The store has not been told where the object ends since a flush failed.
    end_owed: AtomicBool,
    /// Pinned pages being written as they are.
    direct: AtomicU64,
    /// Page ranges that are held.
    held: Mutex<Vec<Range<u64>>>,
}

/// Pages whose last write a failed flush took away.
#[derive(Debug, Default)]
struct Lost {
    pages: Vec<Range<u64>>,
    /// Those of them that the program was told of. Before that a store to such a page is none of somebody who writes again
    /// what is lost: the rest of the page is what the store gave back.
    told: Vec<Range<u64>>,
}

impl Lost {
    fn add(&mut self, page: u64) {
        remove(&mut self.told, page);
        remove(&mut self.pages, page);
        push(&mut self.pages, page);
    }
    /// The page was written, and is durable.
    fn is_there_again(&mut self, page: u64) {
        if self.told.iter().any(|r| r.contains(&page)) {
            self.forget(&(page..page + 1));
        }
    }
    fn forget(&mut self, pages: &Range<u64>) {
        for list in [&mut self.pages, &mut self.told] {
            for r in std::mem::take(list) {
                let parts = [r.start..r.end.min(pages.start), r.start.max(pages.end)..r.end];
                list.extend(parts.into_iter().filter(|part| !part.is_empty()));
            }
        }
    }
    /// Tells which pages of the range are lost.
    fn tell(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        let ours = |r: &Range<u64>| r.start.max(range.start)..r.end.min(range.end);
        let ours: Vec<_> = self.pages.iter().map(ours).filter(|r| !r.is_empty()).collect();
        for r in &ours {
            for page in r.clone() {
                remove(&mut self.told, page);
                push(&mut self.told, page);
            }
        }
        ours.iter().map(bytes).collect()
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

/// Adds a page to a sorted list of ranges, at its end.
fn push(list: &mut Vec<Range<u64>>, page: u64) {
    match list.last_mut() {
        Some(last) if last.end == page => last.end += 1,
        _ => list.push(page..page + 1),
    }
}

/// Takes a page out of a list of ranges.
fn remove(list: &mut Vec<Range<u64>>, page: u64) {
    let Some(i) = list.iter().position(|r| r.contains(&page)) else { return };
    let r = list.remove(i);
    for part in [page + 1..r.end, r.start..page] {
        if !part.is_empty() {
            list.insert(i, part);
        }
    }
}

/// Marks every page of the range dirty that was written before the call.
pub(crate) fn harvest(env: Env<'_>, m: &Mapping<'_>, range: &Range<u64>) {
    let mut p = range.start;
    while p < range.end {
        let end = (p | (EXTENT_PAGES as u64 - 1)).saturating_add(1).min(range.end);
        if m.chunk(p).is_some_and(|c| c.nr_uptodate() > 0) {
            env.mm.with_rmap(&mut |r| {
                rmap::harvest(r, m, p, end);
            });
        }
        p = end;
    }
    // Reclaim that took a mapping away before our scan has said in the word, when its section ends, that the page was
    // written.
    section::synchronize();
}

/// Writes what is known to be dirty, without looking for more and without waiting for what is pinned.
pub(crate) fn write_known_dirty(env: Env<'_>, m: &Mapping<'_>) -> std::result::Result<u64, (u64, FillError)> {
    let mut written = 0;
    let mut from = 0;
    while from < m.nr_pages() {
        let to = (from | (EXTENT_PAGES as u64 - 1)).saturating_add(1).min(m.nr_pages());
        if m.chunk(from).is_some_and(|c| c.nr_uptodate() > 0) {
            written += writeback::writeout(env, m, 0, from, to)?;
        }
        from = to;
    }
    Ok(written)
}

/// While it lives, pages that the store was given stay as they are: the cached ones cached, the others absent (they are
/// `filling`, and ours), so that what is found after a failed flush is what there was before it.
struct Settled<'a> {
    m: &'a Mapping<'a>,
    owned: Vec<u64>,
}

impl<'a> Settled<'a> {
    fn new(m: &'a Mapping<'a>) -> Self {
        m.flushing.store(1, Ordering::SeqCst);
        // Who evicts does so in a section, and looks there.
        section::synchronize();
        let mut owned = Vec::new();
        for (p, word) in (0u64..).zip(m.folios).filter(|(_, w)| w.load().is_unsynced()) {
            // One that is being read has what it reads before the store flushes; one that hangs is lost if the flush fails.
            let mut patience = 20_000;
            while word.load().state() == State::Filling && patience > 0 {
                std::thread::sleep(std::time::Duration::from_micros(100));
                patience -= 1;
            }
            if word.try_claim().is_ok() {
                owned.push(p);
            }
        }
        Self { m, owned }
    }
}

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        let host = Host::detached();
        for word in self.owned.iter().filter_map(|p| self.m.folio(*p)) {
            if word.abandon() == Wake::Needed {
                host.env().park.wake(word.futex_addr());
            }
        }
        self.m.flushing.store(0, Ordering::SeqCst);
    }
}

impl ObjectInner {
    /// Gives every byte of the pages that was written before the call to the store. Returns the first held page, if a
    /// held one is dirty.
    pub(crate) fn write_back(&self, op: &'static str, range: &Range<u64>) -> Result<Option<u64>> {
        let m = self.mapping();
        let host = Host::detached();
        harvest(host.env(), m, range);
        let failed = |(p, error): (u64, FillError)| Error::Writeback { op, range: bytes(&(p..p + 1)), error };
        writeback::writeout(host.env(), m, 0, range.start, range.end).map_err(failed)?;
        let mut held = None;
        for p in range.clone() {
            let Some(word) = m.folio(p) else { break };
            let seen = word.load();
            let leaving = m.exclusive && seen.state() == State::Evicting;
            if leaving || seen.state() == State::Writeback || (seen.is_mappable() && seen.has(DIRTY)) {
                let skipped = settle(host.env(), m, &self.flush_state().direct, word, p).map_err(failed)?;
                held = held.or_else(|| skipped.then_some(p));
            }
        }
        Ok(held)
    }

    /// Makes durable what the store was given. Serialised: a failure is everybody's.
    pub(crate) fn flush(&self, op: &'static str) -> Result<()> {
        let m = self.mapping();
        let mut lost = lock(&self.flush_state().lost);
        m.flush_wanted.store(0, Ordering::Relaxed);
        if self.flush_state().end_owed.load(Ordering::Acquire) {
            self.tell_end();
        }
        let _settled = Settled::new(m);
        failpoint!(FLUSH_SETTLED);
        let turn = writeback::begin_flush(m);
        m.stat.add(0, Event::FLUSH_CALLS, 1);
        let flushed = self.store().flush();
        failpoint!(FLUSH_DONE);
        match flushed {
            Ok(()) => {
                // A page that was written again since it was lost is there now.
                if !lost.told.is_empty() {
                    let again = m.folios.iter().enumerate().filter(|(_, w)| w.load().has(turn));
                    again.for_each(|(p, _)| lost.is_there_again(p as u64));
                }
                writeback::end_flush(m, turn);
                Ok(())
            }
            Err(error) => {
                // What reclaim takes out of an exclusive object is marked when it is gone, not while it is written.
                for word in m.folios.iter().filter(|_| m.exclusive) {
                    while word.load().state() == State::Evicting {
                        std::thread::sleep(std::time::Duration::from_micros(100));
                    }
                }
                writeback::fail_flush(m, &mut |p| {
                    lost.add(p);
                    m.stat.add(0, Event::FLUSH_LOST, 1);
                });
                m.stat.add(0, Event::FLUSH_ERRORS, 1);
                self.tell_end();
                // Release pairs with the Acquire in sync(): who sees the count sees the pages dirty again.
                self.flush_state().failures.fetch_add(1, Ordering::Release);
                Err(Error::Flush { op, error })
            }
        }
    }

    /// Tells the store again where the object ends: a flush that failed may have lost that like a write, and bytes past the
    /// store's own end could not be read.
    fn tell_end(&self) {
        let len_bytes = self.mapping().i_size.load(Ordering::Acquire);
        let told = (0..4).any(|_| self.persistent && self.store().set_len(len_bytes).is_ok());
        self.flush_state().end_owed.store(self.persistent && !told, Ordering::Release);
    }

    /// Punches a hole into the store. A flush that fails may lose it like a write.
    pub(crate) fn punch_below(&self, op: &'static str, pages: &Range<u64>, hole: &Range<u64>) -> Result<bool> {
        let m = self.mapping();
        let owe = || {
            for word in pages.clone().filter_map(|p| m.folio(p)) {
                word.set(writeback::unsynced_bit(m));
            }
        };
        // Before, for a flush that fails in between; afterwards, for one that has covered the page without the hole.
        owe();
        let punched = self.store().punch(hole.start, hole.end - hole.start);
        owe();
        match punched {
            Ok(()) => Ok(true),
            Err(StoreError::Unsupported) => Ok(false),
            Err(error) => Err(Error::Writeback { op, range: hole.clone(), error: error.fill_error() }),
        }
    }

    /// Has reads see what the store was told about pages that are not cached: some stores show it after a flush.
    pub(crate) fn show_below(&self, op: &'static str) -> Result<()> {
        if self.store().rereads_unflushed() { Ok(()) } else { self.flush(op) }
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
                return Err(Error::Held { op, range: bytes(&(p..p + 1)) });
            }
            self.flush(op)?;
            if self.flush_state().failures.load(Ordering::Acquire) == failures {
                break;
            }
        }
        let ours = lock(&self.flush_state().lost).tell(range);
        if ours.is_empty() { Ok(()) } else { Err(Error::Lost { op, ranges: ours }) }
    }

    /// Writes everything back before the object goes away. Nobody is left to be told of errors: they are counted.
    pub(crate) fn write_back_last(&self) {
        let all = 0..self.mapping().nr_pages();
        let _ = self.write_back("drop", &all);
    }
}

/// Turns to wait for transient pins (an ioctl long) before a page counts as pinned by the program.
const PATIENCE: u32 = 2_000;

/// Has one page written that a run could not take. `true`: it is held, and dirty.
fn settle(
    env: Env<'_>,
    m: &Mapping<'_>,
    direct: &AtomicU64,
    word: &FolioWord,
    p: u64,
) -> std::result::Result<bool, (u64, FillError)> {
    let ctx = Ctx::thread(0);
    for _ in 0..PATIENCE {
        let seen = word.load();
        match seen.state() {
            // What is being written may have been read before the last store that we answer for.
            // And a page of an exclusive object that is leaving is being written on its way.
            State::Writeback | State::Evicting => {
                if let Some(low) = word.mark_waiter(seen.state()) {
                    env.park.wait(&ctx, WaitKey { addr: word.futex_addr(), seen: low }, u64::MAX);
                }
            }
            State::Uptodate if seen.has(DIRTY | HELD) => return Ok(true),
            State::Uptodate if seen.has(DIRTY) => {
                if writeback::writeout(env, m, 0, p, p + 1)? > 0 {
                    return Ok(false);
                }
                std::thread::yield_now();
            }
            _ => return Ok(false),
        }
    }
    // Pinned for long, perhaps for stores by a device: its bytes as they are now, and it stays dirty.
    direct.fetch_add(1, Ordering::SeqCst);
    let mut held = false;
    let mut written = Ok(());
    if word.try_pin(0).is_ok() {
        // SeqCst with hold_dirty(): either we see the hold, or it sees us and waits.
        std::sync::atomic::fence(Ordering::SeqCst);
        held = word.load().has(HELD);
        if !held {
            failpoint!(SETTLE_DIRECT);
            written = m.a_ops.write_folio(p, 1);
        }
        word.unpin();
    }
    direct.fetch_sub(1, Ordering::SeqCst);
    written.map_err(|(_, error)| (p, error))?;
    Ok(held)
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
        if !self.inner.persistent {
            return Ok(());
        }
        self.inner.sync(op, &pages(self.inner.mapping(), &range), false)
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
        if !self.inner.persistent {
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
            return Err(Error::Held { op, range: bytes(r) });
        }
        list.push(pages.clone());
        drop(list);
        let host = Host::detached();
        let ctx = Ctx::thread(0);
        for p in pages.clone() {
            let Some(word) = m.folio(p) else { break };
            word.set(HELD);
            // One that is on its way may be written after we have returned.
            while let Some(low) = word.mark_waiter(State::Writeback) {
                host.env().park.wait(&ctx, WaitKey { addr: word.futex_addr(), seen: low }, u64::MAX);
            }
        }
        // Nor may one that is pinned, and written as it is.
        while inner.flush_state().direct.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
        Ok(Held { object: self.clone(), pages })
    }

    /// Returns the bytes whose writes failed flushes took away.
    #[must_use]
    pub fn lost(&self) -> Vec<Range<u64>> {
        lock(&self.inner.flush_state().lost).tell(&(0..u64::MAX))
    }

    /// Accepts the loss of what was written to the range: [`Object::sync`] does not report it any more.
    pub fn forget_lost(&self, range: Range<u64>) {
        let pages = (range.start >> PAGE_SHIFT)..pages_of(range.end);
        lock(&self.inner.flush_state().lost).forget(&pages);
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
