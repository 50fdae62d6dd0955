//! Reclaim: pages leave the cache so that others can come. Linux: `mm/vmscan.c`.
//!
//! ```text
//! shrink                                                  one batch, at most 64 pages
//!   shrink_probation   verdicts: missed -> main, dirty -> write-back, clean and idle -> evicting -> punched -> absent
//!   write_dirty        what was dirty, here or by a filler
//!   age                tail of small or main -> UNMAPPED, zapped in every shared mapping by one call -> probation
//! ```
//! Unmapping is one call a batch, and the punches that come a stage later find nothing mapped (but in private mappings,
//! which only a punch may unmap). The pages share the flush of other processors' TLBs where their entries are clean; those
//! that UFFDIO_CONTINUE makes are born dirty, and for each of these Linux (6.18) flushes by itself.
//!
//! Where an object has more than a few mappings a page is taken with its neighbours: a punch walks every mapping, for a
//! run of pages about as fast as for one.
//!
//! # Context: handler. A section is held over each of the first and the last step, and left in between: nothing that
//! waits happens inside.

mod evict;
mod huge;
mod pageout;
mod range;
mod void;

pub(crate) use evict::{Why, punch, take_idle};
use evict::{gone, leave};
pub(crate) use pageout::write_dirty;
pub use pageout::write_here;
pub(crate) use range::unmap_batch;
pub use range::{deactivate_range, discard_range, evict_exclusive, reclaim_range};
pub use void::{drop_void, keep_void, take_void};

use crate::ctx::Ctx;
use crate::failpoint;
use crate::folio::{DIRTY, Folio, FolioWord, HELD, REFERENCED, State, UNMAPPED};
use crate::host::{BATCH, Batch, Env, Rmap, Woken};
use crate::khugepaged;
use crate::lru::{Entry, Fifo, Lruvec};
use crate::mapping::Mapping;
use crate::memcontrol::CacheAccount;
use crate::page::EXTENT_PAGES;
use crate::rmap;
use crate::vmstat::{Event, VmStat};
use crate::workingset::{Queue, Shadow};

/// What one batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shrunk {
    /// Pages that left the cache.
    pub freed: u64,
    /// Entries of cached pages that were looked at.
    pub scanned: u64,
    /// Entries of pages that went otherwise, which are gone now.
    pub stale: u64,
    /// Dirty pages that were handed to write-back.
    pub dirty: u64,
}

/// An object with more mappings than this is reclaimed by blocks.
const MAPS_FEW: u32 = 8;
/// Pages in such a block.
const BLOCK_PAGES: u64 = BATCH as u64;

fn by_blocks(mapping: &Mapping<'_>) -> bool {
    // Relaxed: a matter of speed alone.
    mapping.nr_maps.load(crate::sync::Ordering::Relaxed) > MAPS_FEW
}

/// Looks at one batch of pages and frees those that nobody missed.
pub fn shrink(env: Env<'_>, account: &CacheAccount<'_>, stat: &VmStat, stripe: usize) -> Shrunk {
    let mut done = Shrunk::default();
    let have = env.mm.with_batch(&mut |batch| {
        let mut dirty = 0;
        env.mm.with_rmap(&mut |r| {
            let scan = Scan { env, account, stat, stripe, rmap: r };
            (done, dirty) = scan.shrink_probation(batch);
        });
        if dirty > 0 {
            done.dirty += write_dirty(env, stripe, batch.pages.get(..dirty).unwrap_or(&[]));
        }
        let mut early = 0;
        env.mm.with_rmap(&mut |r| {
            let scan = Scan { env, account, stat, stripe, rmap: r };
            let (seen, unmapped) = scan.age(batch);
            done.scanned += seen.scanned;
            done.stale += seen.stale;
            early = scan.pick_early(batch, unmapped);
        });
        if early > 0 {
            write_dirty(env, stripe, batch.pages.get(..early).unwrap_or(&[]));
        }
    });
    if !have {
        env.park.relax();
    }
    done
}

/// Takes the entries of pages that went otherwise out of the queues.
pub fn prune(env: Env<'_>, account: &CacheAccount<'_>) {
    for queue in [&account.lru.small, &account.lru.main, &account.lru.probation] {
        let mut left = queue.len();
        while left > 0 {
            let some = left.min(BATCH as u64);
            left -= some;
            env.mm.with_rmap(&mut |r| {
                for _ in 0..some {
                    let Some(entry) = queue.pop().map(Entry) else { break };
                    let word = r.mapping(entry.mapping_id()).and_then(|m| m.folio(entry.pgoff()));
                    if word.is_some_and(|w| entry.is_current(w.load())) && !queue.push(entry.0) {
                        let _ = account.lru.add(entry, true);
                    }
                }
            });
        }
    }
}

/// What every step of a batch needs.
struct Scan<'a> {
    env: Env<'a>,
    account: &'a CacheAccount<'a>,
    stat: &'a VmStat,
    stripe: usize,
    rmap: &'a dyn Rmap,
}

/// What becomes of a page at the end of its probation.
enum Verdict {
    /// The entry names a page that is not there any more.
    Stale,
    /// It was missed, or somebody holds it.
    Keep,
    /// It is being written out.
    Wait,
    /// It must be written out first.
    Dirty,
    /// It may go.
    Evict,
}

/// Pages of exclusive objects leave dirty or not; a store that must not be called here is called by a filler.
fn verdict_exclusive(mapping: &Mapping<'_>, seen: Folio) -> Verdict {
    if seen.has(HELD) || (seen.has(DIRTY) && !mapping.dirty_goes) {
        Verdict::Keep
    } else if mapping.punch_waits() {
        Verdict::Dirty
    } else {
        Verdict::Evict
    }
}

fn verdict(mapping: &Mapping<'_>, entry: Entry, seen: Folio) -> Verdict {
    if !entry.is_current(seen) {
        Verdict::Stale
    } else if seen.state() == State::Writeback {
        Verdict::Wait
    } else if !seen.has(UNMAPPED) || seen.has(REFERENCED) || seen.pins() > 0 || seen.has(HELD | DIRTY) {
        Verdict::Keep
    } else if mapping.exclusive {
        verdict_exclusive(mapping, seen)
    } else if seen.has(DIRTY) {
        // Whose store fails is tried again by the flusher, and by its own object's threads.
        if mapping.failing.is_set() { Verdict::Keep } else { Verdict::Dirty }
    } else {
        Verdict::Evict
    }
}

/// Neighbours that are evicted together: they are `evicting`, and their chunk counts it.
#[derive(Clone, Copy)]
struct Run<'a> {
    /// As it was found when the first page was taken, and not by its number again: who drops the object withdraws that, and
    /// waits for our section.
    mapping: &'a Mapping<'a>,
    from: u64,
    to: u64,
    /// One bit a page from `from`: it came from `main`.
    of_main: u64,
    /// More pages are looked at until its block ends.
    whole: bool,
}

impl Run<'_> {
    fn takes(&self, id: u32, pgoff: u64) -> bool {
        let in_chunk = !pgoff.is_multiple_of(EXTENT_PAGES as u64);
        let at_block = self.whole && pgoff.is_multiple_of(BLOCK_PAGES);
        self.mapping.id == id && self.to == pgoff && in_chunk && !at_block && pgoff - self.from < u64::from(u64::BITS)
    }
}

impl<'a> Scan<'a> {
    /// Gives verdicts while probation is longer than it should be. Returns how many dirty pages lie in the batch.
    fn shrink_probation(&self, batch: &mut Batch) -> (Shrunk, usize) {
        let mut done = Shrunk::default();
        let (mut dirty, mut taken) = (0, 0);
        let mut run: Option<Run<'a>> = None;
        let lru = &self.account.lru;
        let target = Lruvec::probation_target(self.account.limit());
        let most = Lruvec::batch_pages(self.account.limit());
        loop {
            let nothing_else = lru.small.is_empty() && lru.main.is_empty();
            let enough = done.scanned >= most || (lru.probation.len() <= target && !nothing_else);
            // A block that is cut in two costs a punch more, and one more for each block that follows.
            if enough && !run.is_some_and(|r| r.whole && done.scanned < most + BLOCK_PAGES) {
                break;
            }
            // Filled from both ends.
            if dirty + taken >= BATCH {
                break;
            }
            let Some(entry) = lru.probation.pop().map(Entry) else { break };
            // Until it turns out to be the entry of a page.
            done.stale += 1;
            let Some(mapping) = self.rmap.mapping(entry.mapping_id()) else { continue };
            let Some(word) = mapping.folio(entry.pgoff()) else { continue };
            let seen = word.load();
            let verdict = match verdict(mapping, entry, seen) {
                Verdict::Dirty if !mapping.dirty_goes => Verdict::Keep,
                v => v,
            };
            if !matches!(verdict, Verdict::Stale) {
                done.stale -= 1;
                done.scanned += 1;
            }
            match verdict {
                Verdict::Stale => {}
                Verdict::Keep => {
                    word.keep(seen.version());
                    self.stat.add(self.stripe, Event::PGACTIVATE, 1);
                    self.enter(&lru.main, entry);
                }
                Verdict::Wait => self.enter(&lru.probation, entry),
                Verdict::Dirty => {
                    if let Some(at) = batch.pages.get_mut(dirty) {
                        *at = (entry.mapping_id(), entry.pgoff());
                        dirty += 1;
                    }
                    self.enter(&lru.probation, entry);
                }
                Verdict::Evict if mapping.owes_flush(word.load()) => {
                    // A flush frees it: that counts as being written.
                    mapping.want_flush();
                    self.env.park.wake(self.account.ring_flusher());
                    done.dirty += 1;
                    self.enter(&lru.probation, entry);
                }
                Verdict::Evict if mapping.exclusive => {
                    // Not for the sake of a block that is none of its business does a batch get longer.
                    done.freed += self.end_run(run.take());
                    // From the end on: what is dirty lies at the front, no entry is both, and there is room for one more.
                    if let Some(at) = batch.pages.get_mut(BATCH.saturating_sub(taken + 1))
                        && self.take_out(entry, mapping, word)
                    {
                        *at = (entry.mapping_id(), entry.pgoff());
                        taken += 1;
                    }
                }
                Verdict::Evict if khugepaged::is_huge(mapping, entry.pgoff()) => {
                    done.freed += self.end_run(run.take()) + self.evict_huge(&mut run, entry, mapping, word);
                }
                Verdict::Evict => done.freed += self.evict(&mut run, entry, mapping, word),
            }
        }
        done.freed += self.end_run(run.take());
        done.freed += self.end_taken(batch, taken);
        (done, dirty)
    }

    fn enter(&self, queue: &Fifo<'_>, entry: Entry) {
        if !queue.push(entry.0) {
            let _ = self.account.lru.add(entry, true);
        }
    }

    /// Takes one page into the run, ending the run first where the page is not its neighbour. Returns how many pages went.
    fn evict(&self, run: &mut Option<Run<'a>>, entry: Entry, mapping: &'a Mapping<'a>, word: &FolioWord) -> u64 {
        let (id, p) = (entry.mapping_id(), entry.pgoff());
        let extends = run.is_some_and(|r| r.takes(id, p));
        let freed = if extends { 0 } else { self.end_run(run.take()) };
        if !extends && !rmap::get_evict(self.rmap, mapping, self.stripe, p) {
            word.keep(word.load().version());
            self.enter(&self.account.lru.main, entry);
            return freed;
        }
        if !take_idle(mapping, word) {
            // Somebody came for it between the two looks: the next verdict says so.
            self.enter(&self.account.lru.probation, entry);
            if !extends && let Some(chunk) = mapping.chunk(p) {
                chunk.put_evict();
            }
            return freed;
        }
        failpoint!(EVICT_TAKEN);
        let new = Run { mapping, from: p, to: p, of_main: 0, whole: by_blocks(mapping) };
        let run = run.get_or_insert(new);
        run.of_main |= u64::from(entry.origin() == Queue::Main) << (p - run.from);
        run.to = p + 1;
        freed
    }

    /// Makes a page of an exclusive object `evicting`, and its chunk count it; `false`: not now.
    fn take_out(&self, entry: Entry, mapping: &Mapping<'_>, word: &FolioWord) -> bool {
        let counted = rmap::get_evict(self.rmap, mapping, self.stripe, entry.pgoff());
        if counted && take_idle(mapping, word) {
            return true;
        }
        if let Some(chunk) = mapping.chunk(entry.pgoff()).filter(|_| counted) {
            chunk.put_evict();
        }
        self.enter(&self.account.lru.probation, entry);
        false
    }

    /// Drops the pages of exclusive objects that were taken out: all of an object by one call, or neighbour by neighbour.
    fn end_taken(&self, batch: &mut Batch, taken: usize) -> u64 {
        let Batch { pages, zaps } = batch;
        let pages = pages.get_mut(BATCH - taken..).unwrap_or_default();
        pages.reverse();
        let pages = &*pages;
        let mut freed = 0;
        each_mapping(self.rmap, pages, &mut |mapping| {
            let at_once = mapping.a_ops.punch_pages(mapping.id, pages, zaps);
            let mut ours = pages.iter().filter(|(id, _)| *id == mapping.id).map(|(_, p)| *p).peekable();
            while let Some(from) = ours.next() {
                let mut to = from.saturating_add(1);
                while !to.is_multiple_of(EXTENT_PAGES as u64) && ours.next_if_eq(&to).is_some() {
                    to = to.saturating_add(1);
                }
                freed += self.end_taken_run(mapping, from, to, at_once);
            }
        });
        freed
    }

    fn end_taken_run(&self, mapping: &Mapping<'_>, from: u64, to: u64, punched: bool) -> u64 {
        let (park, stripe) = (self.env.park, self.stripe);
        let freed = if punched {
            leave(mapping, park, (from, to), Why::Reclaim, None);
            gone(mapping, park, stripe, from, to - from)
        } else {
            punch(mapping, park, stripe, (from, to), Why::Reclaim, None)
        };
        self.keep_left(mapping, (from, to), freed);
        for _ in from..to {
            if let Some(chunk) = mapping.chunk(from) {
                chunk.put_evict();
            }
        }
        freed
    }

    /// Of pages that should have gone `freed` did: the others stay, and have been taken out of every queue.
    fn keep_left(&self, mapping: &Mapping<'_>, (from, to): (u64, u64), freed: u64) {
        if freed < to - from {
            (from..to).for_each(|p| self.activate(mapping, p));
        }
    }

    /// Punches a run, makes its pages absent and gives them back to the limit.
    fn end_run(&self, run: Option<Run<'_>>) -> u64 {
        let Some(run) = run else { return 0 };
        let mapping = run.mapping;
        let limit = self.account.limit();
        let shadow = |p: u64| {
            let of_main = run.of_main >> (p - run.from) & 1 != 0;
            self.account.lru.evicted(if of_main { Queue::Main } else { Queue::Small }, limit)
        };
        let (pages, shadows) = ((run.from, run.to), Some(&shadow as &dyn Fn(u64) -> Shadow));
        let freed = punch(mapping, self.env.park, self.stripe, pages, Why::Reclaim, shadows);
        self.keep_left(mapping, pages, freed);
        if let Some(chunk) = mapping.chunk(run.from) {
            chunk.put_evict();
        }
        freed
    }

    /// Moves the pages to the front that had better be written while they are on probation, because writing them takes
    /// long; returns how many. Those that are missed meanwhile are written once for nothing.
    fn pick_early(&self, batch: &mut Batch, unmapped: usize) -> usize {
        let mut nr = 0;
        for i in 0..unmapped {
            let Some(page) = batch.pages.get(i).copied() else { break };
            let blocks = |m: &Mapping<'_>| {
                m.write_blocks && m.dirty_goes && m.folio(page.1).is_some_and(|w| w.load().has(DIRTY))
            };
            if self.rmap.mapping(page.0).is_some_and(blocks)
                && let Some(at) = batch.pages.get_mut(nr)
            {
                *at = page;
                nr += 1;
            }
        }
        nr
    }

    /// Unmaps pages from the tail of `small` or `main` and puts them on probation; returns how many were looked at and how
    /// many entries named none, and how many are in the batch.
    fn age(&self, batch: &mut Batch) -> (Shrunk, usize) {
        let lru = &self.account.lru;
        let limit = self.account.limit();
        let mut done = Shrunk::default();
        // Full probation gives verdicts first: the more pages wait, the longer each has to be missed.
        if lru.probation.len() > Lruvec::probation_target(limit) {
            return (done, 0);
        }
        let most = crate::page::pgoff_index(Lruvec::batch_pages(limit));
        let (mut nr, mut of_main) = (0, 0u64);
        while nr < most && done.scanned + done.stale < 2 * BATCH as u64 {
            let Some(entry) = lru.pop_coldest(limit) else { break };
            let word = self.rmap.mapping(entry.mapping_id()).and_then(|m| m.folio(entry.pgoff()));
            if !word.is_some_and(|w| entry.is_current(w.load())) {
                done.stale += 1;
                continue;
            }
            done.scanned += 1;
            if self.age_huge(entry) {
                continue;
            }
            let first = nr;
            nr += self.unmap(entry, batch.pages.get_mut(nr..most).unwrap_or(&mut []));
            if entry.origin() == Queue::Main {
                of_main |= (first..nr).fold(0, |bits, i| bits | 1 << i);
            }
        }
        let Batch { pages, zaps } = batch;
        let pages = pages.get(..nr).unwrap_or(&[]);
        each_mapping(self.rmap, pages, &mut |mapping| {
            // A page that lies in its mapping would be gone with its entry: it is merely passed on, in the order it came.
            if !mapping.exclusive {
                rmap::try_to_unmap(self.rmap, mapping, pages, zaps);
            }
        });
        for (i, (id, pgoff)) in pages.iter().enumerate() {
            if let Some(mapping) = self.rmap.mapping(*id)
                && let Some(word) = mapping.folio(*pgoff)
            {
                let from = if of_main >> i & 1 != 0 { Queue::Main } else { Queue::Small };
                let entry = Entry::new(*id, *pgoff, word.load()).taken_from(from);
                word.unpin();
                self.enter(&lru.probation, entry);
            }
        }
        self.stat.add(self.stripe, Event::PGDEACTIVATE, nr as u64);
        (done, nr)
    }

    /// Pins and marks one page for unmapping, where many mappings exist with its neighbours, and names them in `room`,
    /// in order. Returns how many: 0 where the page is gone, or is not to be unmapped now.
    fn unmap(&self, entry: Entry, room: &mut [(u32, u64)]) -> usize {
        let Some(mapping) = self.rmap.mapping(entry.mapping_id()) else { return 0 };
        let Some(word) = mapping.folio(entry.pgoff()) else { return 0 };
        let seen = word.load();
        if !entry.is_current(seen) || word.end_isolation(seen) {
            return 0;
        }
        let mut nr = 0;
        // Under an eviction's count, so that no extent is handed to the kernel while a page of it is unmapped.
        if !must_stay(mapping, seen) && rmap::get_evict(self.rmap, mapping, self.stripe, entry.pgoff()) {
            if word.try_unmap().is_ok() {
                nr = take_block(mapping, entry.pgoff(), room);
            } else {
                // One that a verdict found pinned may have kept its mark: it would be passed on for ever.
                word.keep(word.load().version());
            }
            if let Some(chunk) = mapping.chunk(entry.pgoff()) {
                chunk.put_evict();
            }
        }
        failpoint!(UNMAP_MARKED);
        if nr == 0 {
            self.enter(&self.account.lru.main, entry);
        }
        nr
    }

    /// Puts a page that stays after all into `main`.
    fn activate(&self, mapping: &Mapping<'_>, pgoff: u64) {
        if let Some(word) = mapping.folio(pgoff).filter(|w| w.load().is_mappable()) {
            word.keep(word.load().version());
            self.enter(&self.account.lru.main, Entry::new(mapping.id, pgoff, word.load()));
        }
    }
}

/// Returns whether a page cannot go, whoever misses it or not: it is not taken out of its mappings for nothing.
fn must_stay(mapping: &Mapping<'_>, seen: Folio) -> bool {
    seen.has(DIRTY) && (seen.has(HELD) || !mapping.dirty_goes || mapping.failing.is_set())
}

/// Names page `pgoff`, which is marked, in `room`, which is not empty; where many mappings exist marks and names the pages
/// of its block too, as far as there is room. Returns how many it named.
fn take_block(mapping: &Mapping<'_>, pgoff: u64, room: &mut [(u32, u64)]) -> usize {
    let left = room.len() as u64;
    let block = pgoff & !(BLOCK_PAGES - 1);
    let (from, to) = match by_blocks(mapping) {
        true if left >= BLOCK_PAGES => (block, block + BLOCK_PAGES),
        true => (pgoff, pgoff.saturating_add(left).min(block + BLOCK_PAGES)),
        false => (pgoff, pgoff.saturating_add(1)),
    };
    let mut nr = 0;
    for p in from..to {
        let takes = |w: &FolioWord| !must_stay(mapping, w.load()) && w.try_isolate().is_ok();
        if (p == pgoff || mapping.folio(p).is_some_and(takes))
            && let Some(at) = room.get_mut(nr)
        {
            *at = (mapping.id, p);
            nr += 1;
        }
    }
    nr
}

/// Calls `f` once for each object that the batch has pages of.
fn each_mapping(rmap: &dyn Rmap, pages: &[(u32, u64)], f: &mut dyn FnMut(&Mapping<'_>)) {
    for (i, (id, _)) in pages.iter().enumerate() {
        let first = !pages.iter().take(i).any(|(other, _)| other == id);
        if first && let Some(mapping) = rmap.mapping(*id) {
            f(mapping);
        }
    }
}

/// How direct reclaim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// There is room, or was a moment ago: try again.
    Some,
    /// This thread does not wait: later.
    Later,
    /// Everything was looked at, and nothing can go.
    Nothing,
}

/// Every how many batches that freed nothing the thread sleeps until somebody else has freed or written something.
const NAP_NS: u64 = 2_000_000;
/// How many pages one thread frees for one of its own, at most.
const FREED_MAX: u64 = 4 * BATCH as u64;

/// Frees pages for a thread that cannot go on without one. Linux: `try_to_free_mem_cgroup_pages`, "direct reclaim".
///
/// Gives up when it has looked at everything several times and nothing is being written out either: then all pages are
/// pinned, held, or cannot be written.
pub fn try_to_free_pages(env: Env<'_>, ctx: &Ctx<'_>, mapping: &Mapping<'_>) -> Freed {
    let (account, stat) = (mapping.account, mapping.stat);
    stat.add(ctx.stripe, Event::ALLOCSTALL, 1);
    let mut scanned = 0u64;
    // Naps after which nothing was under way, and after which something was.
    let (mut idle, mut waited) = (0u32, 0u32);
    let mut freed = 0u64;
    loop {
        let limit = account.limit();
        if account.nr_pages.load(crate::sync::Ordering::Relaxed) < limit {
            return Freed::Some;
        }
        let done = shrink(env, account, stat, ctx.stripe);
        stat.add(ctx.stripe, Event::PGSCAN_DIRECT, done.scanned);
        freed += done.freed;
        if freed > FREED_MAX {
            return Freed::Some;
        }
        if done.freed > 0 {
            // Still above the limit, which was lowered perhaps: an attempt for each small batch would be too many.
            (scanned, idle, waited) = (0, 0, 0);
            continue;
        }
        if done.stale > 0 {
            // Behind the entries of pages that went otherwise there may be others; their number is finite.
            continue;
        }
        scanned = scanned.saturating_add(done.scanned);
        let busy =
            account.nr_writeback.load(crate::sync::Ordering::Relaxed) > 0 || done.dirty > 0 || account.is_filling();
        if done.scanned == 0 || busy || scanned > limit.saturating_mul(2) {
            *if busy { &mut waited } else { &mut idle } += 1;
            let nap = account.begin_wait();
            let woken = env.park.nap(ctx, nap, NAP_NS);
            if account.has_progressed(nap) {
                // Others get on: so shall we.
                (scanned, idle, waited) = (0, 0, 0);
            }
            account.end_wait();
            if woken == Woken::NotNow {
                return Freed::Later;
            }
        }
        // Fruitless looks at everything, and as many naps: a store that is writing, or reading, gets longer.
        if waited > 5_000 || (idle > 16 && (scanned > limit.saturating_mul(4) || idle > 64)) {
            return Freed::Nothing;
        }
    }
}
