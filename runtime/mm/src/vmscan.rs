//! Reclaim: pages leave the cache so that others can come. Linux: `mm/vmscan.c`.
//!
//! ```text
//! shrink                                                  one batch, at most 64 pages
//!   shrink_probation   verdicts: missed -> main, dirty -> write-back, clean and idle -> evicting -> punched -> absent
//!   write_dirty        what was dirty, here or by a filler
//!   age                tail of small or main -> UNMAPPED, zapped in every shared mapping by one call -> probation
//! ```
//! The pages of a batch share the flushes of other processors' TLBs: unmapping is one call, and the punches that come a
//! stage later find nothing mapped (but in private mappings, which only a punch may unmap).
//!
//! # Context: handler. A section is held over each of the first and the last step, and left in between: nothing that
//! waits happens inside.

use crate::ctx::Ctx;
use crate::failpoint;
use crate::filemap;
use crate::folio::{DIRTY, Folio, FolioWord, HELD, REFERENCED, State, UNMAPPED};
use crate::host::{BATCH, Batch, Env, Park, Rmap, Woken};
use crate::lru::{Entry, Lruvec};
use crate::mapping::Mapping;
use crate::memcontrol::CacheAccount;
use crate::page::EXTENT_PAGES;
use crate::rmap;
use crate::vmstat::{Event, VmStat};
use crate::writeback;

/// What one batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shrunk {
    /// Pages that left the cache.
    pub freed: u64,
    /// Entries that were looked at.
    pub scanned: u64,
    /// Dirty pages that were handed to write-back.
    pub dirty: u64,
}

/// Returns how many pages a batch takes: few of a small cache, so that what was mapped a moment ago survives.
fn batch_pages(limit_pages: u64) -> usize {
    crate::page::pgoff_index((limit_pages / 32).clamp(8, BATCH as u64))
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
            done.dirty = write_dirty(env, stripe, batch.pages.get(..dirty).unwrap_or(&[]));
        }
        env.mm.with_rmap(&mut |r| {
            let scan = Scan { env, account, stat, stripe, rmap: r };
            done.scanned += scan.age(batch);
        });
    });
    if !have {
        env.park.relax();
    }
    done
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

fn verdict(entry: Entry, seen: Folio) -> Verdict {
    if !entry.is_current(seen) {
        Verdict::Stale
    } else if seen.state() == State::Writeback {
        Verdict::Wait
    } else if !seen.has(UNMAPPED) || seen.has(REFERENCED) || seen.pins() > 0 || seen.has(HELD | DIRTY) {
        Verdict::Keep
    } else if seen.has(DIRTY) {
        Verdict::Dirty
    } else {
        Verdict::Evict
    }
}

/// Neighbours that are evicted together: they are `evicting`, and their chunk counts it.
#[derive(Clone, Copy)]
struct Run {
    id: u32,
    from: u64,
    to: u64,
}

impl Scan<'_> {
    /// Gives verdicts while probation is longer than it should be. Returns how many dirty pages lie in the batch.
    fn shrink_probation(&self, batch: &mut Batch) -> (Shrunk, usize) {
        let mut done = Shrunk::default();
        let mut dirty = 0;
        let mut run: Option<Run> = None;
        let lru = &self.account.lru;
        let target = Lruvec::probation_target(self.account.limit());
        let most = batch_pages(self.account.limit());
        for _ in 0..most {
            let nothing_else = lru.small.is_empty() && lru.main.is_empty();
            if lru.probation.len() <= target && !nothing_else {
                break;
            }
            let Some(entry) = lru.probation.pop().map(Entry) else { break };
            done.scanned += 1;
            let Some(mapping) = self.rmap.mapping(entry.mapping_id()) else { continue };
            let Some(word) = mapping.folio(entry.pgoff()) else { continue };
            let seen = word.load();
            let verdict = match verdict(entry, seen) {
                Verdict::Dirty if !mapping.dirty_goes => Verdict::Keep,
                v => v,
            };
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
                Verdict::Evict if word.load().is_unsynced() && !mapping.a_ops.rereads_unflushed() => {
                    mapping.want_flush();
                    self.enter(&lru.probation, entry);
                }
                Verdict::Evict => done.freed += self.evict(&mut run, entry, seen.version(), mapping, word),
            }
        }
        done.freed += self.end_run(run.take());
        (done, dirty)
    }

    fn enter(&self, queue: &crate::lru::Fifo<'_>, entry: Entry) {
        if !queue.push(entry.0) {
            let _ = self.account.lru.add(entry, true);
        }
    }

    /// Takes one page into the run, ending the run first where the page is not its neighbour. Returns how many pages went.
    fn evict(&self, run: &mut Option<Run>, entry: Entry, version: u32, mapping: &Mapping<'_>, word: &FolioWord) -> u64 {
        let (id, p) = (entry.mapping_id(), entry.pgoff());
        let extends = run.is_some_and(|r| r.id == id && r.to == p && !p.is_multiple_of(EXTENT_PAGES as u64));
        let freed = if extends { 0 } else { self.end_run(run.take()) };
        if !extends && !rmap::get_evict(self.rmap, mapping, self.stripe, p) {
            word.keep(version);
            self.enter(&self.account.lru.main, entry);
            return freed;
        }
        if word.try_evict().is_err() {
            // Somebody came for it between the two looks: the next verdict says so.
            self.enter(&self.account.lru.probation, entry);
            if !extends && let Some(chunk) = mapping.chunk(p) {
                chunk.put_evict();
            }
            return freed;
        }
        let from = run.take().map_or(p, |r| r.from);
        *run = Some(Run { id, from, to: p + 1 });
        freed
    }

    /// Punches a run, makes its pages absent and gives them back to the limit.
    fn end_run(&self, run: Option<Run>) -> u64 {
        let Some(run) = run else { return 0 };
        let Some(mapping) = self.rmap.mapping(run.id) else { return 0 };
        let freed = punch(mapping, self.env.park, self.stripe, run.from, run.to, true);
        if let Some(chunk) = mapping.chunk(run.from) {
            chunk.put_evict();
        }
        // They are still there, and their entries were taken out.
        for p in if freed == 0 { run.from..run.to } else { 0..0 } {
            if let Some(word) = mapping.folio(p) {
                self.enter(&self.account.lru.main, Entry::new(run.id, p, word.load()));
            }
        }
        freed
    }

    /// Unmaps pages from the tail of `small` or `main` and puts them on probation; returns how many were looked at.
    fn age(&self, batch: &mut Batch) -> u64 {
        let lru = &self.account.lru;
        let limit = self.account.limit();
        // Full probation gives verdicts first: the more pages wait, the longer each has to be missed.
        if lru.probation.len() > Lruvec::probation_target(limit) + BATCH as u64 {
            return 0;
        }
        let (mut scanned, mut nr) = (0, 0);
        for _ in 0..batch_pages(limit) {
            let from_small = lru.is_small_long(limit) || lru.main.is_empty();
            let popped = if from_small { lru.small.pop().or_else(|| lru.main.pop()) } else { lru.main.pop() };
            let Some(entry) = popped.map(Entry) else { break };
            scanned += 1;
            if self.unmap_one(entry)
                && let Some(at) = batch.pages.get_mut(nr)
            {
                *at = (entry.mapping_id(), entry.pgoff());
                nr += 1;
            }
        }
        let Batch { pages, zaps } = batch;
        let pages = pages.get(..nr).unwrap_or(&[]);
        each_mapping(self.rmap, pages, &mut |mapping| rmap::try_to_unmap(self.rmap, mapping, pages, zaps));
        for (id, pgoff) in pages {
            if let Some(mapping) = self.rmap.mapping(*id)
                && let Some(word) = mapping.folio(*pgoff)
            {
                let entry = Entry::new(*id, *pgoff, word.load());
                word.unpin();
                self.enter(&lru.probation, entry);
            }
        }
        self.stat.add(self.stripe, Event::PGDEACTIVATE, nr as u64);
        scanned
    }

    /// Pins and marks one page for unmapping; `false`: it is gone, or is not to be unmapped now.
    fn unmap_one(&self, entry: Entry) -> bool {
        let Some(mapping) = self.rmap.mapping(entry.mapping_id()) else { return false };
        let Some(word) = mapping.folio(entry.pgoff()) else { return false };
        if !entry.is_current(word.load()) {
            return false;
        }
        // Under an eviction's count, so that no extent is handed to the kernel while a page of it is unmapped.
        let marked = rmap::get_evict(self.rmap, mapping, self.stripe, entry.pgoff()) && {
            let marked = word.try_unmap().is_ok();
            if let Some(chunk) = mapping.chunk(entry.pgoff()) {
                chunk.put_evict();
            }
            marked
        };
        failpoint!(UNMAP_MARKED);
        if !marked {
            self.enter(&self.account.lru.main, entry);
        }
        marked
    }
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

/// Punches pages that are `evicting`, makes them absent, and gives them back to the limit; returns how many went.
fn punch(mapping: &Mapping<'_>, park: &dyn Park, stripe: usize, from: u64, to: u64, shadow: bool) -> u64 {
    failpoint!(EVICT_PUNCH);
    let nr = u32::try_from(to - from).unwrap_or(0);
    let punched = mapping.a_ops.punch(from, nr).is_ok();
    failpoint!(EVICT_DONE);
    let limit = mapping.account.limit();
    let shadow = || if shadow { mapping.account.lru.shadow(limit) } else { 0 };
    if !punched {
        filemap::each(mapping, park, from, to, FolioWord::evict_undo);
        return 0;
    }
    if let Some(chunk) = mapping.chunk(from) {
        chunk.sub_uptodate(to - from);
    }
    filemap::each(mapping, park, from, to, |w| w.evicted(shadow()));
    mapping.account.uncharge(to - from);
    mapping.stat.add(stripe, Event::PGSTEAL, to - from);
    if let Some(addr) = mapping.account.progressed() {
        park.wake(addr);
    }
    to - from
}

/// How many neighbours of a dirty page are written with it.
const CLUSTER_PAGES: u64 = 16;

/// Has dirty pages written: here, where the store may be called in a handler, else by a filler. Returns how many pages
/// that concerns.
fn write_dirty(env: Env<'_>, stripe: usize, pages: &[(u32, u64)]) -> u64 {
    let mut nr = 0;
    let mut last = None;
    for (id, pgoff) in pages {
        let first = pgoff & !(CLUSTER_PAGES - 1);
        if last.replace((*id, first)) == Some((*id, first)) {
            nr += 1;
            continue;
        }
        let mut claim = None;
        env.mm.with_rmap(&mut |r| {
            claim = r.mapping(*id).and_then(|m| filemap::try_hold_pages(m, first, CLUSTER_PAGES));
        });
        if let Some(claim) = claim {
            nr += 1;
            write_claim(env, stripe, claim);
        }
    }
    nr
}

fn write_claim(env: Env<'_>, stripe: usize, claim: crate::claim::Claim) {
    let mut here = false;
    env.mm.with_claim(&claim, &mut |m| here = m.handler_safe && !m.store_faults);
    if here {
        write_here(env, stripe, claim);
    } else if let Err(claim) = env.park.submit_writeback(claim) {
        release(env, claim);
    }
}

/// Writes the dirty pages that a claim names, and spends it.
///
/// # Context: as the object's store
pub fn write_here(env: Env<'_>, stripe: usize, claim: crate::claim::Claim) {
    let mut pending = Some(claim);
    let id = crate::claim::Claim::from_words(pending.as_ref().map_or([0; 2], crate::claim::Claim::words));
    env.mm.with_claim(&id, &mut |m| {
        if let Some(claim) = pending.take() {
            let (from, to) = (claim.pgoff(), claim.pgoff().saturating_add(u64::from(claim.nr())));
            // An error leaves the pages dirty, and is counted; who asks for durability is told.
            let _ = writeback::writeout(env, m, stripe, from, to);
            filemap::release(m, claim);
        }
    });
}

fn release(env: Env<'_>, claim: crate::claim::Claim) {
    let mut pending = Some(claim);
    let id = crate::claim::Claim::from_words(pending.as_ref().map_or([0; 2], crate::claim::Claim::words));
    env.mm.with_claim(&id, &mut |m| {
        if let Some(claim) = pending.take() {
            filemap::release(m, claim);
        }
    });
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

/// Frees pages for a thread that cannot go on without one. Linux: `try_to_free_mem_cgroup_pages`, "direct reclaim".
///
/// Gives up when it has looked at everything several times and nothing is being written out either: then all pages are
/// pinned, held, or cannot be written.
pub fn try_to_free_pages(env: Env<'_>, ctx: &Ctx<'_>, account: &CacheAccount<'_>, stat: &VmStat) -> Freed {
    stat.add(ctx.stripe, Event::ALLOCSTALL, 1);
    let mut scanned = 0u64;
    let mut idle = 0u32;
    loop {
        let limit = account.limit();
        if account.nr_pages.load(crate::sync::Ordering::Relaxed) < limit {
            return Freed::Some;
        }
        let done = shrink(env, account, stat, ctx.stripe);
        stat.add(ctx.stripe, Event::PGSCAN_DIRECT, done.scanned);
        if done.freed > 0 {
            return Freed::Some;
        }
        scanned = scanned.saturating_add(done.scanned);
        let busy = account.nr_writeback.load(crate::sync::Ordering::Relaxed) > 0 || done.dirty > 0;
        if done.scanned == 0 || busy || scanned > limit.saturating_mul(2) {
            idle += 1;
            let nap = account.begin_wait();
            let woken = env.park.nap(ctx, nap, NAP_NS);
            account.end_wait();
            if woken == Woken::NotNow {
                return Freed::Later;
            }
        }
        // Fruitless looks at everything, and as many naps: a store that is writing gets longer.
        if (scanned > limit.saturating_mul(4) || idle > 64) && idle > if busy { 5_000 } else { 16 } {
            return Freed::Nothing;
        }
    }
}

/// Drops the clean, unpinned, unmapped-on-the-way pages of `from..to`; dirty and pinned ones stay. Returns how many went.
///
/// # Context: control plane, or a handler
pub fn reclaim_range(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) -> u64 {
    let mut freed = 0;
    let mut p = from;
    while p < to {
        let end = (p | (BATCH as u64 - 1)).saturating_add(1).min(to);
        if (p..end).any(|q| mapping.folio(q).is_some_and(|w| w.load().is_mappable())) {
            let have = env.mm.with_batch(&mut |batch| {
                env.mm.with_rmap(&mut |r| freed += reclaim_batch(env, r, mapping, stripe, batch, p, end));
            });
            if !have {
                env.park.relax();
                continue;
            }
        }
        p = end;
    }
    freed
}

/// Both stages at once for up to a batch of pages of one chunk.
fn reclaim_batch(
    env: Env<'_>,
    rmap: &dyn Rmap,
    mapping: &Mapping<'_>,
    stripe: usize,
    batch: &mut Batch,
    from: u64,
    to: u64,
) -> u64 {
    if !rmap::get_evict(rmap, mapping, stripe, from) {
        return 0;
    }
    let Batch { pages, zaps } = batch;
    let mut nr = 0;
    for p in from..to {
        if mapping.folio(p).is_some_and(|w| w.try_unmap().is_ok())
            && let Some(at) = pages.get_mut(nr)
        {
            *at = (mapping.id, p);
            nr += 1;
        }
    }
    let pages = pages.get(..nr).unwrap_or(&[]);
    rmap::try_to_unmap(rmap, mapping, pages, zaps);
    let mut freed = 0;
    let mut run: Option<(u64, u64)> = None;
    for p in from..to {
        let Some(word) = mapping.folio(p) else { continue };
        let version = word.load().version();
        // Pages on probation are unmapped already, and not ours to keep.
        let ours = pages.iter().any(|(_, q)| *q == p);
        if ours {
            word.unpin();
        }
        let owed = word.load().is_unsynced() && !mapping.a_ops.rereads_unflushed();
        if owed || word.try_evict().is_err() {
            if ours {
                word.keep(version);
            }
            continue;
        }
        run = match run {
            Some((a, b)) if b == p => Some((a, p + 1)),
            Some((a, b)) => {
                freed += punch(mapping, env.park, stripe, a, b, false);
                Some((p, p + 1))
            }
            None => Some((p, p + 1)),
        };
    }
    if let Some((a, b)) = run {
        freed += punch(mapping, env.park, stripe, a, b, false);
    }
    if let Some(chunk) = mapping.chunk(from) {
        chunk.put_evict();
    }
    freed
}

/// Drops the unpinned pages of `from..to`, dirty or not: their bytes are void. Returns how many went.
///
/// Chunks with a native extent that cannot be taken back are skipped, as are pages in write-back.
pub fn discard_range(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) -> u64 {
    let mut freed = 0;
    let mut p = from;
    while p < to {
        let end = (p | (EXTENT_PAGES as u64 - 1)).saturating_add(1).min(to);
        env.mm.with_rmap(&mut |r| freed += discard_in_chunk(env, r, mapping, stripe, p, end));
        p = end;
    }
    freed
}

fn discard_in_chunk(env: Env<'_>, rmap: &dyn Rmap, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) -> u64 {
    if !rmap::get_evict(rmap, mapping, stripe, from) {
        return 0;
    }
    let mut freed = 0;
    let (mut run, mut dirty) = (from, 0);
    for p in from..=to {
        if p < to
            && let Some(Ok(old)) = mapping.folio(p).map(FolioWord::try_discard)
        {
            dirty += u64::from(old.has(DIRTY));
            continue;
        }
        if run < p {
            // Evicting first, then hidden: whoever exposed a page did so under a pin, and there was none.
            rmap::hide(rmap, mapping, run, p);
            let went = punch(mapping, env.park, stripe, run, p, false);
            // A page that could not be punched is as dirty as it was.
            mapping.account_cleaned(if went > 0 { dirty } else { 0 });
            freed += went;
        }
        (run, dirty) = (p.saturating_add(1), 0);
    }
    if let Some(chunk) = mapping.chunk(from) {
        chunk.put_evict();
    }
    freed
}
