//! Pages of an exclusive object that somebody has discarded below it.
//!
//! Such a page lies in its mapping and nowhere else, so what `MADV_DONTNEED`, `MADV_FREE` or `MADV_REMOVE` of the program's own
//! takes away there is gone, by definition. Its word says that the page is cached, and nobody may rely on that any more: a fault
//! would find it "mapped" again and again, and a call that reads it would fault. So who meets such a page, or is about to look
//! at many, has it dropped: the next touch reads the store again, and of an object that may have been stored to the page
//! is `LOST`, which every sync over it says.
//!
//! # Context: handler

use crate::folio::{DIRTY, FolioWord, LOST, Wake};
use crate::mapping::Mapping;
use crate::types::FaultFlags;
use crate::vma::VmFault;
use crate::vmstat::Event;

/// Drops the pages among `from..to` of an exclusive object that are cached and lie in no memory, unless they are pinned;
/// returns how many. Of another object: none.
///
/// # Context: handler
pub fn drop_missing(mapping: &Mapping<'_>, wake: &dyn Fn(usize), stripe: usize, from: u64, to: u64) -> u64 {
    let mut nr = 0;
    if mapping.exclusive && from < to {
        mapping.a_ops.each_missing(from, to - from, &mut |p, may_be_stored_to| {
            let Some(word) = mapping.folio(p).filter(|w| w.load().is_mappable()) else { return };
            nr += u64::from(drop_one(mapping, wake, word, p, may_be_stored_to));
        });
    }
    if nr > 0 {
        mapping.stat.add(stripe, Event::EXCLUSIVE_DISCARDED, nr);
    }
    nr
}

/// ```text
/// who met it                              others
/// looks: cached, and not there
///                                         drop it, and fill it again: it is there
/// word: evicting
/// looks again: it is there, so it stays
/// ```
fn drop_one(mapping: &Mapping<'_>, wake: &dyn Fn(usize), word: &FolioWord, pgoff: u64, may_be_stored_to: bool) -> bool {
    let Ok(old) = word.try_discard() else { return false };
    let mut missing = false;
    mapping.a_ops.each_missing(pgoff, 1, &mut |_, _| missing = true);
    // There is nothing to drop: that takes it off the account of what is mapped.
    let gone = missing && mapping.a_ops.discard(pgoff, 1).is_ok();
    let woken = if gone {
        mapping.account_cleaned(u64::from(old.has(DIRTY)));
        if may_be_stored_to {
            word.set(LOST);
        }
        word.evicted(0)
    } else {
        mapping.stay(word, pgoff, 0, true)
    };
    if woken == Wake::Needed {
        wake(word.futex_addr());
    }
    if gone {
        if let Some(chunk) = mapping.chunk(pgoff) {
            chunk.sub_uptodate(1);
        }
        mapping.uncharge(1);
    }
    gone
}

/// Returns whether the page that a fault has found cached and pinned lies in no memory; then the pin is given back, and it is
/// dropped, unless others have pinned it: the fault is to be made again. What a fault has waited for was just put in place.
#[cold]
pub(crate) fn is_met(vmf: &VmFault<'_>, word: &FolioWord) -> bool {
    let (mapping, p) = (vmf.vma().mapping, vmf.pgoff());
    let mut missing = false;
    if !vmf.flags().intersects(FaultFlags::TRIED) {
        mapping.a_ops.each_missing(p, 1, &mut |_, _| missing = true);
    }
    if missing {
        word.unpin();
        let wake = |addr: usize| {
            if let Some(waker) = vmf.waker {
                (waker.0)(addr);
            }
        };
        drop_missing(mapping, &wake, vmf.ctx().stripe, p, p.saturating_add(1));
    }
    missing
}
