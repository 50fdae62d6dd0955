//! A disk in memory with a volatile layer, for tests of what survives: a crash keeps of what was written since the last
//! flush what it likes, sector by sector, in any order.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(unsafe_code, reason = "a store for handlers")]

use softfault::{Errno, HandlerStore, PageMut, PageRef, Store, StoreError};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the device writes whole or not at all.
pub(crate) const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

/// How a disk behaves. `Default`: as a good one does, a crash excepted.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    /// What decides everything below.
    pub(crate) seed: u64,
    /// See [`Store::rereads_unflushed`]; if not, a read gives what the last flush made durable.
    pub(crate) rereads_unflushed: bool,
    /// See [`Store::is_stable`]. A stable disk reads what it is given twice, and complains if it changed.
    pub(crate) is_stable: bool,
    /// A flush that fails forgets what it should have made durable, as ext4's does: the next one succeeds, and what was
    /// written before is on the disk or not.
    pub(crate) forgets: bool,
    /// What was forgotten is gone from the kernel's cache, too: it reads as it was before.
    pub(crate) reverts: bool,
    /// Every so many reads fail; 0: none. Half of them are short.
    pub(crate) read_error_in: usize,
    /// Every so many writes fail, having taken a part; 0: none.
    pub(crate) write_error_in: usize,
    /// Every so many flushes fail; 0: none but those named by [`Disk::fail_flush`].
    pub(crate) flush_error_in: usize,
    /// Writes that are in flight together are done in any order, but those of one sector.
    pub(crate) reorders: bool,
    /// Every so many operations take `delay`; 0: none.
    pub(crate) delay_in: usize,
    /// How long.
    pub(crate) delay: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            seed: 1,
            rereads_unflushed: true,
            is_stable: false,
            forgets: true,
            reverts: false,
            read_error_in: 0,
            write_error_in: 0,
            flush_error_in: 0,
            reorders: false,
            delay_in: 0,
            delay: Duration::from_micros(200),
        }
    }
}

/// What was asked of a disk, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// `pos`, `len`, and whether it was done.
    Read(u64, usize, bool),
    /// As `Read`.
    Write(u64, usize, bool),
    /// Whether it was done.
    Flush(bool),
    /// `pos`, `len`.
    Punch(u64, u64),
    /// The end.
    SetLen(u64),
    /// `pos`, `len`.
    Dsync(u64, u64),
}

/// The disk. What [`Disk::crash`] and [`Disk::reopen`] return is another, of the same behaviour.
#[derive(Debug)]
pub(crate) struct Disk {
    behaviour: Behaviour,
    state: Mutex<State>,
    /// What becomes of the next write, between the copy of its bytes and the disk.
    stall: AtomicU8,
}

const STALL_NEXT: u8 = 1;
const STALLED: u8 = 2;

#[derive(Clone, Debug)]
struct State {
    rng: u64,
    /// What reads see, a multiple of the sector long; past `len` all zeros.
    view: Vec<u8>,
    len: u64,
    /// What the last flush made durable.
    durable: Vec<u8>,
    durable_len: u64,
    /// What each sector has been since, oldest first: whole sectors, as the kernel's cache would have written them.
    pending: BTreeMap<usize, Vec<Sector>>,
    pending_lens: Vec<u64>,
    /// The shortest it has been since.
    cut: u64,
    /// For each of the next flushes whether it is to fail.
    flush_fails: VecDeque<bool>,
    events: Vec<Event>,
    /// Writes that were asked for, oldest first, and what became of them.
    in_flight: Vec<Request>,
    next_request: u64,
    /// Of each page whether its block is durable. No tree: handlers have little stack.
    dsynced: Vec<bool>,
}

#[derive(Clone, Debug)]
struct Request {
    id: u64,
    pos: u64,
    bytes: Vec<u8>,
    answer: Option<Result<(), StoreError>>,
}

impl Request {
    fn sectors(&self) -> std::ops::Range<u64> {
        self.pos / SECTOR as u64..(self.pos + self.bytes.len() as u64).div_ceil(SECTOR as u64)
    }
    fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.sectors(), other.sectors());
        a.start < b.end && b.start < a.end
    }
}

const PAGE: u64 = 4096;

impl Disk {
    /// Makes a disk that holds `content`, durably.
    pub(crate) fn new(content: &[u8], behaviour: Behaviour) -> Arc<Self> {
        let mut view = content.to_vec();
        view.resize(content.len().next_multiple_of(SECTOR), 0);
        let len = content.len() as u64;
        let state = State {
            rng: behaviour.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            durable: view.clone(),
            durable_len: len,
            view,
            len,
            pending: BTreeMap::new(),
            pending_lens: Vec::new(),
            cut: u64::MAX,
            flush_fails: VecDeque::new(),
            events: Vec::new(),
            in_flight: Vec::new(),
            next_request: 0,
            dsynced: Vec::new(),
        };
        Arc::new(Self { behaviour, state: Mutex::new(state), stall: AtomicU8::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Returns what a read of everything would give.
    pub(crate) fn content(&self) -> Vec<u8> {
        let s = self.lock();
        s.view[..s.len as usize].to_vec()
    }
    /// Returns what is on the disk whatever happens.
    pub(crate) fn durable(&self) -> Vec<u8> {
        let s = self.lock();
        s.durable[..s.durable_len as usize].to_vec()
    }
    /// Changes whole sectors as another program does, durably.
    pub(crate) fn change_outside(&self, pos: usize, bytes: &[u8]) {
        assert!(pos.is_multiple_of(SECTOR) && bytes.len().is_multiple_of(SECTOR));
        let mut guard = self.lock();
        let s = &mut *guard;
        for content in [&mut s.view, &mut s.durable] {
            content[pos..pos + bytes.len()].copy_from_slice(bytes);
        }
        s.pending.retain(|sector, _| !(pos..pos + bytes.len()).contains(&(sector * SECTOR)));
    }
    /// Returns what was asked so far.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }
    /// Forgets what was asked so far.
    pub(crate) fn clear_events(&self) {
        self.lock().events.clear();
    }
    /// Makes the flush after `after` more fail.
    pub(crate) fn fail_flush(&self, after: usize) {
        let mut s = self.lock();
        if s.flush_fails.len() <= after {
            s.flush_fails.resize(after + 1, false);
        }
        s.flush_fails[after] = true;
    }
    /// Has the next write stay, its bytes copied and not on the disk yet, until [`Disk::let_go`].
    pub(crate) fn stall_next_write(&self) {
        self.stall.store(STALL_NEXT, Ordering::SeqCst);
    }
    pub(crate) fn has_stalled(&self) -> bool {
        self.stall.load(Ordering::SeqCst) == STALLED
    }
    pub(crate) fn let_go(&self) {
        self.stall.store(0, Ordering::SeqCst);
    }
    fn maybe_stall(&self) {
        if self.stall.compare_exchange(STALL_NEXT, STALLED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            while self.has_stalled() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    /// Returns whether the block of the page at `pos` is durable.
    pub(crate) fn is_dsynced(&self, pos: u64) -> bool {
        self.lock().dsynced.get((pos / PAGE) as usize).is_some_and(|d| *d)
    }
    /// Returns how many sectors are not durable.
    pub(crate) fn nr_volatile(&self) -> usize {
        self.lock().pending.len()
    }

    /// Pulls the plug: returns the disk as the next boot finds it. This one goes on as if nothing had happened, so that
    /// one run can crash at many points, and many times at each.
    pub(crate) fn crash(&self, seed: u64) -> Arc<Self> {
        let mut s = self.lock().clone();
        s.rng = seed.wrapping_add(0x51_7c_c1_b7).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        s.settle();
        Self::new(&s.durable[..s.durable_len as usize], self.behaviour.clone())
    }

    /// Ends the process alone (`kill -9`): the kernel writes everything in its own time.
    pub(crate) fn reopen(&self) -> Arc<Self> {
        Self::new(&self.content(), self.behaviour.clone())
    }

    fn maybe_delay(&self, s: MutexGuard<'_, State>) {
        let mut s = s;
        let is_late = s.one_in(self.behaviour.delay_in);
        drop(s);
        if is_late {
            std::thread::sleep(self.behaviour.delay);
        }
    }

    fn read(&self, pos: u64, dst: &mut [u8]) -> Result<(), StoreError> {
        self.maybe_delay(self.lock());
        let mut guard = self.lock();
        let s = &mut *guard;
        let fails = s.one_in(self.behaviour.read_error_in);
        let (from, len) = if self.behaviour.rereads_unflushed { (&s.view, s.len) } else { (&s.durable, s.durable_len) };
        let there = (len.saturating_sub(pos) as usize).min(dst.len());
        let part = if fails { there / 2 } else { there };
        if part > 0 {
            dst[..part].copy_from_slice(&from[pos as usize..pos as usize + part]);
        }
        let r = match (fails, part < dst.len()) {
            (true, _) if s.below(2) == 0 => Err(StoreError::Io(Errno::EIO)),
            (true, _) | (false, true) => Err(StoreError::Short),
            (false, false) => Ok(()),
        };
        s.events.push(Event::Read(pos, dst.len(), r.is_ok()));
        r
    }

    fn write(&self, pos: u64, src: &[u8]) -> Result<(), StoreError> {
        self.maybe_delay(self.lock());
        if self.behaviour.reorders {
            return self.write_in_any_order(pos, src);
        }
        self.lock().write(&self.behaviour, pos, src)
    }

    /// Writes that are all in flight before the first is done.
    pub(crate) fn write_together(&self, writes: &[(u64, &[u8])]) {
        let mut s = self.lock();
        for (pos, bytes) in writes {
            s.queue(*pos, bytes);
        }
        writes.iter().for_each(|_| s.do_one_in_flight(&self.behaviour));
        assert!(s.in_flight.iter().all(|r| r.answer.is_some()), "one was not done");
        s.in_flight.clear();
    }

    /// Queues the write, and does one after the other of the queue until this one has had its turn.
    fn write_in_any_order(&self, pos: u64, src: &[u8]) -> Result<(), StoreError> {
        let id = self.lock().queue(pos, src);
        loop {
            // Others queue theirs.
            std::thread::sleep(Duration::from_micros(50));
            let mut s = self.lock();
            if let Some(i) = s.in_flight.iter().position(|r| r.id == id && r.answer.is_some()) {
                return s.in_flight.remove(i).answer.unwrap_or(Ok(()));
            }
            s.do_one_in_flight(&self.behaviour);
        }
    }

    fn punch(&self, pos: u64, len: u64) {
        let mut s = self.lock();
        s.dsynced_are(pos.div_ceil(PAGE)..(pos + len) / PAGE, false);
        let here = s.len.saturating_sub(pos).min(len) as usize;
        s.change(pos, here, |bytes| bytes.fill(0));
        s.events.push(Event::Punch(pos, len));
    }

    fn set_len(&self, len: u64) {
        let mut s = self.lock();
        let past = s.len.saturating_sub(len) as usize;
        s.change(len, past, |bytes| bytes.fill(0));
        // What was there before goes with the blocks.
        let first = len as usize / SECTOR;
        s.pending.range_mut(first..).for_each(|(_, versions)| drop(versions.drain(..versions.len() - 1)));
        s.cut = s.cut.min(len);
        s.dsynced.truncate(len.div_ceil(PAGE) as usize);
        s.grow(len);
        s.len = len;
        s.pending_lens.push(len);
        s.events.push(Event::SetLen(len));
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.maybe_delay(self.lock());
        let mut s = self.lock();
        let fails = s.flush_fails.pop_front().unwrap_or(false) | s.one_in(self.behaviour.flush_error_in);
        s.events.push(Event::Flush(!fails));
        if !fails {
            s.make_durable();
            return Ok(());
        }
        if self.behaviour.forgets {
            let len = s.len;
            // Where it ends is the file system's own metadata, in its journal: that is not forgotten.
            let cut = s.durable.len().min(s.cut as usize);
            s.durable[cut..].fill(0);
            s.settle();
            s.cut = u64::MAX;
            s.durable_len = s.durable_len.max(len);
            let durable_end = s.durable.len().max(len.next_multiple_of(SECTOR as u64) as usize);
            s.durable.resize(durable_end, 0);
            s.pending_lens.push(len);
            if self.behaviour.reverts {
                s.view = s.durable.clone();
                let end = len as usize;
                s.view[end..].fill(0);
            }
        }
        Err(StoreError::Io(Errno::EIO))
    }
}

impl State {
    fn below(&mut self, n: usize) -> usize {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        ((self.rng >> 11) % n as u64) as usize
    }
    fn dsynced_are(&mut self, pages: std::ops::Range<u64>, durable: bool) {
        if self.dsynced.len() < pages.end as usize {
            self.dsynced.resize(pages.end as usize, false);
        }
        pages.for_each(|p| self.dsynced[p as usize] = durable);
    }
    fn one_in(&mut self, n: usize) -> bool {
        n > 0 && self.below(n) == 0
    }

    fn write(&mut self, behaviour: &Behaviour, pos: u64, src: &[u8]) -> Result<(), StoreError> {
        let fails = self.one_in(behaviour.write_error_in);
        let part = if fails { self.below(src.len() + 1) } else { src.len() };
        self.grow(pos + part as u64);
        self.change(pos, part, |bytes| bytes.copy_from_slice(&src[..part]));
        self.events.push(Event::Write(pos, src.len(), !fails));
        if fails { Err(StoreError::Io(Errno::EIO)) } else { Ok(()) }
    }

    fn queue(&mut self, pos: u64, src: &[u8]) -> u64 {
        self.next_request += 1;
        self.in_flight.push(Request { id: self.next_request, pos, bytes: src.to_vec(), answer: None });
        self.next_request
    }

    /// Does any write of the queue that waits for no earlier one of the same sector.
    fn do_one_in_flight(&mut self, behaviour: &Behaviour) {
        let queue = &self.in_flight;
        let waits = |i: usize| queue[..i].iter().any(|r| r.answer.is_none() && r.overlaps(&queue[i]));
        let ready: Vec<usize> = (0..queue.len()).filter(|i| queue[*i].answer.is_none() && !waits(*i)).collect();
        if ready.is_empty() {
            return;
        }
        let i = ready[self.below(ready.len())];
        let (pos, bytes) = (self.in_flight[i].pos, std::mem::take(&mut self.in_flight[i].bytes));
        let answer = self.write(behaviour, pos, &bytes);
        self.in_flight[i].answer = Some(answer);
    }

    fn grow(&mut self, len: u64) {
        if len > self.len {
            self.view.resize(self.view.len().max((len as usize).next_multiple_of(SECTOR)), 0);
            self.len = len;
            self.pending_lens.push(len);
        }
    }

    /// Changes bytes that exist, and remembers what their sectors are now.
    fn change(&mut self, pos: u64, len: usize, f: impl FnOnce(&mut [u8])) {
        if len == 0 {
            return;
        }
        let from = pos as usize;
        f(&mut self.view[from..from + len]);
        for sector in from / SECTOR..(from + len).div_ceil(SECTOR) {
            let mut now = [0; SECTOR];
            now.copy_from_slice(&self.view[sector * SECTOR..(sector + 1) * SECTOR]);
            self.pending.entry(sector).or_default().push(now);
        }
    }

    /// Makes what is pending durable, and nothing else: what was forgotten is not written again by itself.
    fn make_durable(&mut self) {
        self.durable.resize(self.durable.len().max(self.view.len()), 0);
        for (sector, versions) in std::mem::take(&mut self.pending) {
            if let Some(newest) = versions.last() {
                self.durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(newest);
            }
        }
        self.pending_lens.clear();
        self.cut = u64::MAX;
        self.durable_len = self.len;
    }

    /// Decides what of the volatile layer is on the disk: for each sector what it was, or anything it has been since, and
    /// any of the lengths.
    fn settle(&mut self) {
        // Some crashes lose everything, some nothing, some a little.
        let kept_of_4 = self.below(5);
        let lens = std::mem::take(&mut self.pending_lens);
        let i = self.below(lens.len() + 1);
        if let Some(len) = lens.get(i) {
            self.durable_len = *len;
            // Ends are moved in order, in the journal: what one of them cut off is gone under every later one.
            let cut = lens[..=i].iter().min().map_or(usize::MAX, |c| *c as usize);
            let cut = cut.min(self.durable.len());
            self.durable[cut..].fill(0);
        }
        for (sector, versions) in std::mem::take(&mut self.pending) {
            if self.below(4) >= kept_of_4 {
                continue;
            }
            let newest = versions.len() - 1;
            let version = if self.below(2) == 0 { newest } else { self.below(versions.len()) };
            let end = (sector + 1) * SECTOR;
            if self.durable.len() < end {
                self.durable.resize(end, 0);
            }
            self.durable[sector * SECTOR..end].copy_from_slice(&versions[version]);
        }
        let end = (self.durable_len as usize).next_multiple_of(SECTOR).max(self.durable.len());
        self.durable.resize(end, 0);
        let len = self.durable_len as usize;
        // What lies past the end never shows again.
        self.durable[len..].fill(0);
    }
}

/// A store over a [`Disk`], for filler threads: it locks and allocates.
#[derive(Clone, Debug)]
pub(crate) struct VolatileStore(pub(crate) Arc<Disk>);

impl Store for VolatileStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        self.0.read(pos_bytes, page.as_mut_slice())
    }
    fn dsync(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        let mut s = self.0.lock();
        s.events.push(Event::Dsync(pos_bytes, len_bytes));
        s.dsynced_are(pos_bytes / PAGE..(pos_bytes + len_bytes).div_ceil(PAGE), true);
        Ok(())
    }
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        let copy = || {
            let mut bytes = vec![0; pages.len_bytes()];
            pages.copy_to(0, &mut bytes);
            bytes
        };
        let bytes = copy();
        if self.0.behaviour.is_stable {
            std::thread::yield_now();
            assert!(copy() == bytes, "the pages of a stable store change while they are written");
        }
        self.0.maybe_stall();
        self.0.write(pos_bytes, &bytes)
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.0.flush()
    }
    fn punch(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        self.0.punch(pos_bytes, len_bytes);
        Ok(())
    }
    fn set_len(&self, len_bytes: u64) -> Result<(), StoreError> {
        self.0.set_len(len_bytes);
        Ok(())
    }
    fn is_stable(&self) -> bool {
        self.0.behaviour.is_stable
    }
    fn rereads_unflushed(&self) -> bool {
        self.0.behaviour.rereads_unflushed
    }
}

/// A [`VolatileStore`] that is called in the faulting thread.
#[derive(Debug)]
pub(crate) struct InHandler(pub(crate) VolatileStore);

impl Store for InHandler {
    /// So that the same tests run over the cache's own pages, too.
    fn uses_descriptors(&self) -> bool {
        true
    }
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        self.0.read(pos_bytes, page)
    }
    fn dsync(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        self.0.dsync(pos_bytes, len_bytes)
    }
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        self.0.write(pos_bytes, pages)
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.0.flush()
    }
    fn punch(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        self.0.punch(pos_bytes, len_bytes)
    }
    fn set_len(&self, len_bytes: u64) -> Result<(), StoreError> {
        self.0.set_len(len_bytes)
    }
    fn is_stable(&self) -> bool {
        self.0.is_stable()
    }
    fn rereads_unflushed(&self) -> bool {
        self.0.rereads_unflushed()
    }
}

// SAFETY: it locks and allocates, which is sound here alone: the threads of these tests touch arenas where they hold
// neither the disk's lock nor the allocator's.
unsafe impl HandlerStore for InHandler {}
