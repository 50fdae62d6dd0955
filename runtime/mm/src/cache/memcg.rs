//! Reclaim inside one object that has a limit of its own. Linux: a memory cgroup's own lists.
//!
//! Such an object is bounded by itself as well as by the cache. Its pages stand in the cache's queues like all others; when
//! its own limit is met, a hand goes round its table instead: it unmaps a page the first time, and drops it the next
//! time round unless it was missed.
//!
//! # Context: handler

use crate::chunk::ChunkWord;
use crate::ctx::Ctx;
use crate::folio::{DIRTY, Folio, FolioWord, HELD, REFERENCED, State, UNMAPPED};
use crate::host::{BATCH, Batch, Env, Rmap, Woken};
use crate::mapping::Mapping;
use crate::ops::WaitKey;
use crate::page::EXTENT_PAGES;
use crate::rmap;
use crate::stall::Stall;
use crate::sync::Ordering;
use crate::vmscan::{self, Freed, Why};
use crate::vmstat::Event;

/// What the hand did with one window of the table.
#[derive(Default)]
struct Swept {
    /// Pages that have left the cache.
    freed: u64,
    /// Pages in the batch that are to be written.
    dirty: usize,
    /// Pages that will be free without us, or that could not be looked at.
    busy: u64,
    /// Pages that the hand has passed.
    passed: u64,
}

impl Swept {
    fn is_busy(&self) -> bool {
        self.dirty > 0 || self.busy > 0
    }
}

/// Frees pages for a thread that cannot go on without one: of the object, if its own limit is met, else of the cache.
///
/// # Context: handler
pub fn try_to_free_pages(env: Env<'_>, ctx: &Ctx<'_>, mapping: &Mapping<'_>) -> Freed {
    if mapping.is_over_own_limit() {
        free_own_pages(env, ctx, mapping)
    } else {
        vmscan::try_to_free_pages(env, ctx, mapping)
    }
}

/// Sweeps the object's table until a page has gone, its limit has been raised, or a proof says that nothing can go (see
/// `vmscan::direct`). What frees nothing costs no nap before the hand has been round three times: the first round unmaps, the
/// second finds what was missed, and the third drops the rest. But the thread lets signals in now and then.
fn free_own_pages(env: Env<'_>, ctx: &Ctx<'_>, mapping: &Mapping<'_>) -> Freed {
    let rounds = (mapping.folios.len() as u64).saturating_mul(3);
    // What others of the cache free or write is no room here: only another limit is another question.
    let limit = own_limit_key(mapping);
    let (mut stall, mut cut) = (vmscan::resume(env, limit), false);
    let mut fewest = u64::MAX;
    loop {
        if !mapping.is_over_own_limit() {
            return Freed::Some;
        }
        let now = mapping.nr_own.load(Ordering::Relaxed);
        if now < fewest && fewest != u64::MAX {
            // The limit was lowered, and others get on. Who asks for room in vain counts itself for a moment, so only a
            // number that was never this low says so.
            (cut, stall) = (false, vmscan::begin(env));
        }
        fewest = fewest.min(now);
        let swept = sweep(env, mapping, ctx.stripe);
        if swept.freed > 0 {
            return Freed::Some;
        }
        // What is busy may be looked at in vain: all of it counts when nothing is.
        stall.pass(swept.passed, rounds, swept.is_busy());
        let naps = stall.scanned > rounds || stall.outlasted || (swept.is_busy() && stall.is_patient());
        if !naps && !stall.is_out_of_breath() {
            continue;
        }
        let busy = !naps || swept.is_busy() || is_filling(mapping);
        let woken = nap(env, ctx, mapping, (&mut stall, &mut cut), busy);
        let is_long = (stall.idle > 16 && stall.scanned > rounds) || stall.is_busy_in_vain();
        let is_over = is_long || vmscan::is_overdue(mapping, &stall);
        let under_way = || vmscan::is_waiting(ctx) && is_under_way(mapping);
        if is_over && vmscan::is_proof(env, mapping, &mut stall, under_way()) {
            return Freed::Nothing;
        }
        if woken == Woken::NotNow {
            return vmscan::keep(env, limit, stall);
        }
    }
}

/// Returns whether the object's store has pages of it in hand, or is to make pages durable, and is not failing, or reads some:
/// then there is room. They need not be where the hand is now, which other threads move too.
fn is_under_way(mapping: &Mapping<'_>) -> bool {
    let takes = mapping.is_write_awaited();
    if takes && mapping.nr_writers.load(Ordering::Relaxed) != 0 {
        return true;
    }
    // What is pinned is no room afterwards.
    let is_owed = |w: Folio| w.state() == State::Uptodate && mapping.owes_flush(w);
    let is_written = |w: Folio| w.pins() == 0 && (w.state() == State::Writeback || is_owed(w));
    let is_read = |w: Folio| w.state() == State::Filling && mapping.is_read_awaited();
    mapping.each_folio(0, u64::MAX).map(|(_, word)| word.load()).any(|w| (takes && is_written(w)) || is_read(w))
}

/// Sleeps until pages are given back or written, by whomever, or for 2 ms.
///
/// Others' pages are no room for ours, so a nap that they cut short does not count; but the next one they do not
/// disturb, or this might never end.
fn nap(env: Env<'_>, ctx: &Ctx<'_>, mapping: &Mapping<'_>, (stall, cut): (&mut Stall, &mut bool), busy: bool) -> Woken {
    let account = mapping.account;
    let progress = account.begin_wait();
    // This word moves only when the limit itself does, so nothing else that moves is mistaken for a change of it.
    let woken = vmscan::sleep(env, ctx, if *cut { own_limit_key(mapping) } else { progress });
    *cut = !*cut && account.has_progressed(progress);
    account.end_wait();
    if !*cut {
        vmscan::count(env, stall, woken, busy);
    }
    woken
}

/// Returns the half of the object's own limit that a thread can sleep on.
fn own_limit_key(mapping: &Mapping<'_>) -> WaitKey {
    let limit = mapping.own_limit.load(Ordering::Relaxed) & u64::from(u32::MAX);
    WaitKey { addr: core::ptr::from_ref(&mapping.own_limit).addr(), seen: u32::try_from(limit).unwrap_or(0) }
}

/// Returns whether more pages are paid for than are there: they are being filled.
fn is_filling(mapping: &Mapping<'_>) -> bool {
    let there: u64 = mapping.chunks.iter().map(ChunkWord::nr_uptodate).sum();
    mapping.nr_own.load(Ordering::Relaxed) > there
}

/// Moves the hand on by one window that has cached pages.
fn sweep(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize) -> Swept {
    let mut swept = Swept::default();
    let end = mapping.folios.len() as u64;
    let have = env.mm.with_batch(mapping.account.name(), &mut |batch| {
        let (from, passed) = next_window(mapping, end);
        let to = from.saturating_add(BATCH as u64).min(end);
        env.mm.with_rmap(&mut |r| swept = sweep_window(env, r, mapping, stripe, batch, from, to));
        if swept.dirty > 0 {
            vmscan::write_dirty(env, stripe, batch.pages.get(..swept.dirty).unwrap_or(&[]));
        }
        swept.passed = passed;
    });
    if !have {
        env.park.relax();
        swept.busy += 1;
    }
    swept
}

/// Takes the hand to the next window with a cached page, at most once round; returns where it is, and how many pages it has
/// passed.
fn next_window(mapping: &Mapping<'_>, end: u64) -> (u64, u64) {
    const WINDOW: u64 = BATCH as u64;
    let round = end.next_multiple_of(WINDOW).max(1);
    let (mut at, mut passed) = (0, 0);
    while passed < round {
        let hand = mapping.hand.fetch_add(WINDOW, Ordering::Relaxed);
        at = hand % round;
        passed += WINDOW;
        if mapping.chunk(at).is_some_and(|c| c.nr_uptodate() > 0) {
            let cached = |p| mapping.folio(p).is_some_and(|w| w.load().is_mappable());
            if (at..at.saturating_add(WINDOW).min(end)).any(cached) {
                break;
            }
        } else {
            // A chunk without pages is passed at once, unless another thread has moved the hand in it.
            let rest = (EXTENT_PAGES as u64 - at % EXTENT_PAGES as u64).min(round - at);
            let (from, to) = (hand.wrapping_add(WINDOW), hand.wrapping_add(rest));
            if mapping.hand.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                passed += rest.saturating_sub(WINDOW);
            }
        }
    }
    (at, passed)
}

fn is_idle(seen: Folio) -> bool {
    seen.state() == State::Uptodate && seen.has(UNMAPPED) && !seen.has(REFERENCED) && seen.pins() == 0
}

/// Drops what nobody missed since the last time round, gives a second chance to what was missed, and unmaps the rest.
fn sweep_window(
    env: Env<'_>,
    r: &dyn Rmap,
    mapping: &Mapping<'_>,
    stripe: usize,
    batch: &mut Batch,
    from: u64,
    to: u64,
) -> Swept {
    let mut swept = Swept::default();
    if !rmap::get_evict(r, mapping, stripe, from) {
        return swept;
    }
    let mut owed = 0;
    for p in from..to {
        let Some(word) = mapping.folio(p) else { break };
        let seen = word.load();
        let goes = if mapping.exclusive { !mapping.punch_waits() } else { !seen.has(DIRTY) };
        swept.busy += u64::from(matches!(seen.state(), State::Writeback | State::Evicting));
        if is_idle(seen) && goes && mapping.owes_flush(seen) {
            owed += 1;
        } else if is_idle(seen) && goes && vmscan::take_idle(mapping, word) {
            swept.freed += vmscan::punch(mapping, env.park, stripe, (p, p + 1), Why::Reclaim, None);
        } else if seen.has(UNMAPPED | REFERENCED) {
            word.keep(word.load().version());
            mapping.stat.add(stripe, Event::PGACTIVATE, 1);
        }
    }
    if let Some(chunk) = mapping.chunk(from) {
        chunk.put_evict();
    }
    swept.busy += owed;
    // They go with the next flush that succeeds, which may be the one that is under way.
    if owed > 0 && mapping.flushing.load(Ordering::Relaxed) == 0 {
        mapping.want_flush();
        env.park.wake(mapping.account.ring_flusher());
    }
    let nr = vmscan::unmap_batch(r, mapping, stripe, batch, (from, to), FolioWord::try_unmap);
    for (_, p) in batch.pages.get(..nr).unwrap_or(&[]) {
        if let Some(word) = mapping.folio(*p) {
            word.unpin();
        }
    }
    if nr > 0
        && let Some(chunk) = mapping.chunk(from)
    {
        chunk.put_evict();
    }
    let goes = |w: Folio| is_idle(w) && (w.has(DIRTY) || mapping.punch_waits()) && !w.has(HELD) && mapping.dirty_goes;
    for p in from..to {
        if mapping.folio(p).is_some_and(|w| goes(w.load()))
            && let Some(at) = batch.pages.get_mut(swept.dirty)
        {
            *at = (mapping.id, p);
            swept.dirty += 1;
        }
    }
    swept
}
