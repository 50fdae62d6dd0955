//! Pages that somebody names leave the cache, or are the next to leave.
//!
//! # Context: handler, or as the object's store for an exclusive object

use super::evict::{Why, punch, take_out};
use super::huge;
use crate::discarded;
use crate::folio::{DIRTY, Folio, FolioWord};
use crate::host::{BATCH, Batch, Env, Rmap};
use crate::khugepaged;
use crate::lru::Entry;
use crate::mapping::Mapping;
use crate::page::EXTENT_PAGES;
use crate::rmap;

/// Which pages of an exclusive object are taken out.
#[derive(Clone, Copy)]
pub(super) struct Reach {
    /// Only those that reclaim has passed on, and nobody touched since by a call.
    pub(super) idle: bool,
    /// Also those that are known to have been stored to.
    pub(super) dirty: bool,
    /// Who wants them out, for the statistics and the shadow that is left.
    pub(super) why: Why,
}

/// Takes pages of an exclusive object out, outside of sections: its store may wait. Returns how many the store was given, and
/// how many of them went.
pub(super) fn take_out_range(
    env: Env<'_>,
    mapping: &Mapping<'_>,
    stripe: usize,
    from: u64,
    to: u64,
    reach: Reach,
) -> (u64, u64) {
    let (mut given, mut freed) = (0, 0);
    let mut p = from;
    while p < to {
        let end = (p | (BATCH as u64 - 1)).saturating_add(1).min(to);
        discarded::drop_missing(mapping, &|addr| env.park.wake(addr), stripe, p, end);
        // Exclusive objects have no native extents, which alone could refuse the count.
        if let Some(chunk) = mapping.chunk(p).filter(|c| c.try_get_evict()) {
            let mut run = p;
            for q in p..=end {
                if q < end && mapping.folio(q).is_some_and(|w| take_out(mapping, w, reach.idle, reach.dirty)) {
                    continue;
                }
                if run < q {
                    given += q - run;
                    freed += punch(mapping, env.park, stripe, (run, q), reach.why, None);
                }
                run = q.saturating_add(1);
            }
            chunk.put_evict();
        }
        p = end;
    }
    (given, freed)
}

/// Drops the unpinned pages of `from..to` of an exclusive object, writing those that were stored to; those that are known
/// to have been stay if not `dirty`. Returns how many went.
///
/// # Context: as the object's store
pub fn evict_exclusive(env: Env<'_>, mapping: &Mapping<'_>, from: u64, to: u64, dirty: bool) -> u64 {
    take_out_range(env, mapping, 0, from, to, Reach { idle: false, dirty, why: Why::Asked }).1
}

/// Drops the clean, unpinned pages of `from..to`, unmapping them on the way; dirty and pinned ones stay. Returns how many
/// went. Dirty pages of exclusive objects are written on their way.
///
/// # Context: control plane, or a handler; of an exclusive object, as its store
pub fn reclaim_range(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) -> u64 {
    if mapping.exclusive {
        return evict_exclusive(env, mapping, from, to, true);
    }
    each_batch(env, mapping, from, to, &mut |r, batch, a, b| reclaim_batch(env, r, mapping, stripe, batch, a, b))
}

/// Unmaps the pages of `from..to` and puts them on probation: they go next unless they are missed. Returns how many that
/// were. Linux: `deactivate_page`.
///
/// # Context: handler, or as the object's store for an exclusive object
pub fn deactivate_range(env: Env<'_>, mapping: &Mapping<'_>, stripe: usize, from: u64, to: u64) -> u64 {
    each_batch(env, mapping, from, to, &mut |r, batch, a, b| {
        // The pages are isolated, so the entries that name them in the queues are void from now on.
        let nr = unmap_batch(r, mapping, stripe, batch, (a, b), FolioWord::try_isolate);
        let pages = batch.pages.get(..nr).unwrap_or(&[]);
        for (id, p) in pages {
            let Some(word) = mapping.folio(*p) else { continue };
            let entry = Entry::new(*id, *p, word.load());
            word.unpin();
            if !mapping.account.lru.probation.push(entry.0) {
                word.keep(word.load().version());
                // Probation is full: the page goes into another queue, or stays where its old entry is, which counts again then.
                if !mapping.account.lru.add(entry, true) {
                    let _ = word.end_isolation(word.load());
                }
            }
        }
        if nr > 0
            && let Some(chunk) = mapping.chunk(a)
        {
            chunk.put_evict();
        }
        nr as u64
    })
}

/// Calls `f` for each batch of `from..to` that has cached pages, and adds up what it returns.
fn each_batch(
    env: Env<'_>,
    mapping: &Mapping<'_>,
    from: u64,
    to: u64,
    f: &mut dyn FnMut(&dyn Rmap, &mut Batch, u64, u64) -> u64,
) -> u64 {
    let mut freed = 0;
    let mut p = from;
    while p < to {
        let whole = p.saturating_add(EXTENT_PAGES as u64);
        if p == khugepaged::chunk_start(p) && whole <= to && khugepaged::is_huge(mapping, p) {
            let mut gone = 0;
            env.mm.with_rmap(&mut |r| gone = huge::reclaim(env, r, mapping, 0, p));
            freed += gone;
            if gone > 0 {
                p = whole;
                continue;
            }
        }
        let end = (p | (BATCH as u64 - 1)).saturating_add(1).min(to);
        if (p..end).any(|q| mapping.folio(q).is_some_and(|w| w.load().is_mappable())) {
            let have = env.mm.with_batch(mapping.account.name(), &mut |batch| {
                env.mm.with_rmap(&mut |r| freed += f(r, batch, p, end));
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
    if huge::is_kept_whole(rmap, mapping, from) {
        return 0;
    }
    let nr = unmap_batch(rmap, mapping, stripe, batch, (from, to), FolioWord::try_unmap_again);
    if nr == 0 {
        return 0;
    }
    let pages = batch.pages.get(..nr).unwrap_or(&[]);
    let mut freed = 0;
    let mut run: Option<(u64, u64)> = None;
    for (_, p) in pages {
        let Some(word) = mapping.folio(*p) else { continue };
        word.unpin();
        let owed = mapping.owes_flush(word.load());
        if owed || word.try_evict().is_err() {
            word.keep(word.load().version());
            continue;
        }
        run = match run {
            Some((a, b)) if b == *p => Some((a, p + 1)),
            Some((a, b)) => {
                freed += punch(mapping, env.park, stripe, (a, b), Why::Asked, None);
                Some((*p, p + 1))
            }
            None => Some((*p, p + 1)),
        };
    }
    if let Some((a, b)) = run {
        freed += punch(mapping, env.park, stripe, (a, b), Why::Asked, None);
    }
    if let Some(chunk) = mapping.chunk(from) {
        chunk.put_evict();
    }
    freed
}

/// Unmaps up to a batch of pages of one chunk: they are pinned and `UNMAPPED`, and their chunk counts an eviction.
/// Returns how many; 0: nothing is counted.
pub(crate) fn unmap_batch(
    rmap: &dyn Rmap,
    mapping: &Mapping<'_>,
    stripe: usize,
    batch: &mut Batch,
    (from, to): (u64, u64),
    take: fn(&FolioWord) -> Result<Folio, Folio>,
) -> usize {
    if !rmap::get_evict(rmap, mapping, stripe, from) {
        return 0;
    }
    let Batch { pages, zaps } = batch;
    let mut nr = 0;
    for p in from..to {
        if mapping.folio(p).is_some_and(|w| take(w).is_ok())
            && let Some(at) = pages.get_mut(nr)
        {
            *at = (mapping.id, p);
            nr += 1;
        }
    }
    if nr == 0 {
        if let Some(chunk) = mapping.chunk(from) {
            chunk.put_evict();
        }
        return 0;
    }
    rmap::try_to_unmap(rmap, mapping, pages.get(..nr).unwrap_or(&[]), zaps);
    nr
}

/// Drops the unpinned pages of `from..to`, dirty or not: their bytes are void. Returns how many went.
///
/// Chunks with a native extent that cannot be taken back are skipped, as are pages in write-back.
///
/// # Context: handler, or as the object's store for an exclusive object
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
    if huge::is_kept_whole(rmap, mapping, from) || !rmap::get_evict(rmap, mapping, stripe, from) {
        return 0;
    }
    let take = |p: u64| match mapping.folio(p).map(FolioWord::try_discard) {
        Some(Ok(old)) => {
            mapping.account_cleaned(u64::from(old.has(DIRTY)));
            true
        }
        _ => false,
    };
    let mut freed = 0;
    let mut run = from;
    for p in from..=to {
        if p < to && take(p) {
            continue;
        }
        if run < p {
            // They are hidden now that they are evicting, and stay so: a page is exposed under a pin alone, and no page that is
            // evicting can be pinned.
            rmap::hide(rmap, mapping, run, p);
            freed += punch(mapping, env.park, stripe, (run, p), Why::Void, None);
        }
        run = p.saturating_add(1);
    }
    if let Some(chunk) = mapping.chunk(from) {
        chunk.put_evict();
    }
    freed
}
