//! The last step: pages that are `evicting` are punched and become absent.
//!
//! # Context: handler, but for what says otherwise

use crate::failpoint;
use crate::fill;
use crate::folio::{DIRTY, FolioWord};
use crate::host::Park;
use crate::khugepaged;
use crate::mapping::Mapping;
use crate::page::EXTENT_PAGES;
use crate::vmstat::Event;
use crate::workingset::{Queue, Shadow};
use crate::writeback;

/// Why pages go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// For room: they leave a shadow.
    Reclaim,
    /// Somebody asked.
    Asked,
    /// Their bytes are void.
    Void,
}

/// The shadows that the pages of a run leave, if they leave any.
pub(crate) type Shadows<'a> = Option<&'a dyn Fn(u64) -> Shadow>;

/// uptodate and not missed -> evicting.
pub(crate) fn take_idle(mapping: &Mapping<'_>, word: &FolioWord) -> bool {
    if mapping.exclusive { take_out(mapping, word, true, true) } else { word.try_evict().is_ok() }
}

/// The same for a page of an exclusive object, with the account of dirty pages.
pub(super) fn take_out(mapping: &Mapping<'_>, word: &FolioWord, idle: bool, dirty: bool) -> bool {
    if mapping.owes_flush(word.load()) {
        return false;
    }
    let Ok(old) = word.try_take_out(idle, dirty && mapping.dirty_goes) else { return false };
    mapping.account_cleaned(u64::from(old.has(DIRTY)));
    true
}

/// Punches pages that are `evicting`, makes them absent, and gives them back to the limit; returns how many went.
pub(crate) fn punch(
    mapping: &Mapping<'_>,
    park: &dyn Park,
    stripe: usize,
    (from, to): (u64, u64),
    why: Why,
    shadows: Shadows<'_>,
) -> u64 {
    failpoint!(EVICT_PUNCH);
    let nr = u32::try_from(to - from).unwrap_or(0);
    let drop = |p, nr| if why == Why::Void { mapping.a_ops.discard(p, nr) } else { mapping.a_ops.punch(p, nr) };
    let punched = drop(from, nr).is_ok();
    failpoint!(EVICT_DONE);
    let mut freed = 0;
    if punched {
        leave(mapping, park, (from, to), why, shadows);
        freed = to - from;
    } else {
        // The run failed as a whole, so each page is tried by itself: one that must stay does not keep its neighbours.
        for p in from..to {
            if nr > 1 && drop(p, 1).is_ok() {
                leave(mapping, park, (p, p + 1), why, shadows);
                freed += 1;
            } else {
                stay(mapping, park, p);
            }
        }
    }
    if freed == 0 { 0 } else { gone(mapping, park, stripe, from, freed) }
}

/// Gives pages that went, of the chunk of `from`, back to the limit.
pub(super) fn gone(mapping: &Mapping<'_>, park: &dyn Park, stripe: usize, from: u64, freed: u64) -> u64 {
    if let Some(chunk) = mapping.chunk(from) {
        chunk.sub_uptodate(freed);
    }
    mapping.uncharge(freed);
    mapping.stat.add(stripe, Event::PGSTEAL, freed);
    if let Some(addr) = mapping.account.progressed() {
        park.wake(addr);
    }
    freed
}

/// evicting -> absent, of pages that were punched.
pub(super) fn leave(mapping: &Mapping<'_>, park: &dyn Park, (from, to): (u64, u64), why: Why, shadows: Shadows<'_>) {
    khugepaged::note_punched(mapping, 0, khugepaged::chunk_start(from), to - from == EXTENT_PAGES as u64);
    let limit = mapping.account.limit();
    let shadow = |p: u64| match shadows {
        Some(of) => of(p),
        None if why == Why::Reclaim => mapping.account.lru.evicted(Queue::Small, limit),
        None => Shadow::default(),
    };
    for p in from..to {
        fill::each(mapping, park, p, p + 1, |w| {
            // The bit is read after the store has taken the page, as `writeback::unsynced_bit` asks.
            if mapping.exclusive && why != Why::Void && w.load().has(DIRTY) {
                w.set(writeback::unsynced_bit(mapping));
            }
            w.evicted(shadow(p).0)
        });
    }
}

/// evicting -> uptodate, of a page that could not be punched, or shall not be.
fn stay(mapping: &Mapping<'_>, park: &dyn Park, pgoff: u64) {
    fill::each(mapping, park, pgoff, pgoff.saturating_add(1), |w| {
        mapping.account_dirtied(u64::from(w.load().has(DIRTY)));
        mapping.stay(w, pgoff, 0, true)
    });
}
