//! Exclusive objects: what they are told of where they lie, and their pages' way out at the end.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "says where an exclusive object is mapped")]

use super::state::ArenaInner;
use super::vma::VmaEntry;
use crate::error::Result;
use crate::object::exclusive::Exclusive;
use crate::object::fault::Call;
use crate::object::state::ObjectInner;
use crate::types::{Access, Prot};
use crate::undo::Done;
use softfault_mm::folio::{DIRTY, FolioWord, LOST, State};
use softfault_mm::mapping::Mapping;
use softfault_mm::page::PAGE_SHIFT;
use softfault_mm::types::FillError;
use softfault_mm::{vmscan, writeback};
use softfault_platform::host::Host;
use softfault_platform::sys::Errno;
use std::sync::Arc;
use std::time::Duration;

/// Tells an exclusive object where it is mapped from now on; undone, it has left.
pub(crate) fn enter<'a>(arena: &ArenaInner, v: &'a VmaEntry) -> Done<impl FnOnce() + 'a> {
    if let Some(ops) = v.object.exclusive() {
        let nr = (v.range.len() >> PAGE_SHIFT) as u64;
        let writable = v.prot == Prot::ReadWrite;
        // SAFETY: mapped and registered for this object by the steps before; `leave` is called before it goes. It is opened
        // to stores as the last step of `map`, before anybody can know of it.
        unsafe { ops.enter(arena.address(v.range.start), v.pgoff, nr, writable) };
    }
    Done::new(|| _ = leave(&v.object))
}

/// Drops every page of an exclusive object whose vma is gone and drained, writing what was changed where the object does
/// so, and forgets where it is mapped.
///
/// # Errors
/// [`Error::Fault`] naming the first page whose changes the store did not take: it and the others are `LOST`.
pub(crate) fn leave(object: &Arc<ObjectInner>) -> Result<()> {
    let Some(ops) = object.exclusive() else { return Ok(()) };
    let m = object.mapping();
    let host = Host::detached();
    // No flush from here on until the pages are gone:
    // ```text
    // flush                                  unmapping
    // begins: unsynced pages must stay
    //                                        gives up waiting for them, drops what was stored to them since
    // ```
    // A flush that failed would also mark pages to be written again, which are being dropped.
    let turn = object.flushing().state().turn();
    let lost = if object.is_persistent() { write_all(object, ops) } else { None };
    ops.leave();
    // Now dropping only changes words. Who pinned a page before is copying from the mapping, and is waited for.
    let discard = || vmscan::discard_range(host.env(), m, 0, 0, m.folios.len() as u64);
    discard();
    while first_present(m, ops).is_some() {
        std::thread::sleep(TURN);
        discard();
    }
    drop(turn);
    if !object.is_persistent() && ops.writes_back() {
        // Swap: what reclaim has put there goes the way of what it has not.
        let _ = object.store().punch(0, object.len_max as u64);
    }
    let call = Call::on_object("Arena::unmap");
    let cause = m.failing.cause().unwrap_or(FillError::Io(Errno::EIO));
    lost.map_or(Ok(()), |p| Err(call.error(object.mapping(), Access::Write, p << PAGE_SHIFT, cause)))
}

const TURN: Duration = Duration::from_micros(100);
/// Turns to wait for pages that are pinned, by calls that copy them, for moments.
const PATIENCE: u32 = 2_000;
/// The same for a page that was put in place and is not published yet: the store is reading its neighbours.
const READ_PATIENCE: u32 = 20_000;
/// Writes that the store may refuse before it is asked no more.
const REFUSED_MAX: u64 = 3;

/// Takes every page out and has those that were changed written; returns the first that the store did not take. The caller
/// has the object's turn to flush.
fn write_all(object: &ObjectInner, ops: &Exclusive) -> Option<u64> {
    let (m, host) = (object.mapping(), Host::detached());
    let refused = ops.write_errors();
    let (mut patience, mut read_patience) = (PATIENCE, READ_PATIENCE);
    while patience > 0 && read_patience > 0 && ops.write_errors() < refused + REFUSED_MAX {
        vmscan::evict_exclusive(host.env(), m, 0, m.folios.len() as u64, true);
        // What is being written now is waited for, however long the store takes.
        match m.folio(first_present(m, ops)?).map(|w| w.load().state()) {
            Some(State::Uptodate) => patience -= 1,
            Some(State::Filling) => read_patience -= 1,
            Some(State::Absent | State::Writeback | State::Evicting | State::Poisoned) | None => {}
        }
        std::thread::sleep(TURN);
    }
    let refused = ops.write_errors();
    let mut first = None;
    for (p, word) in (0u64..).zip(m.folios) {
        let ask = ops.write_errors() < refused + REFUSED_MAX;
        if !write_here(object, ops, p, word, ask) {
            first = first.or(Some(p));
        }
    }
    first
}

/// Has a page that cannot be taken out written as it is; `false`: what was changed of it is lost, the store did not take it or
/// was not to be asked.
fn write_here(object: &ObjectInner, ops: &Exclusive, p: u64, word: &FolioWord, ask: bool) -> bool {
    let m = object.mapping();
    // The page is written alone, and not while it is `writeback`: as in a sync, the older bytes may be put there last.
    let _alone = loop {
        let alone = object.flushing().state().direct();
        match word.load().state() {
            State::Uptodate => match word.try_pin(0) {
                Ok(old) if old.state() == State::Uptodate => break alone,
                Ok(_) => word.unpin(),
                Err(_) => {}
            },
            State::Writeback | State::Evicting => {}
            // Its reader hangs, and whether it was stored to nobody can say.
            State::Filling if ops.may_be_stored_to(p) => {
                word.set(LOST);
                return false;
            }
            State::Absent | State::Filling | State::Poisoned => return true,
        }
        drop(alone);
        std::thread::sleep(TURN);
    };
    let changed = word.load().has(DIRTY) || m.a_ops.is_written(p);
    let written = changed && ask && m.a_ops.write_folio(p, 1).is_ok();
    if written {
        word.set(writeback::unsynced_bit(m));
    } else if changed {
        word.set(LOST);
    }
    word.unpin();
    written || !changed
}

/// Returns the first page that is in the cache, on its way out, or in the arena before it is in the cache.
fn first_present(m: &Mapping<'_>, ops: &Exclusive) -> Option<u64> {
    let present = |p: u64, w: &FolioWord| match w.load().state() {
        State::Uptodate | State::Writeback | State::Evicting => true,
        State::Filling => ops.may_be_stored_to(p),
        State::Absent | State::Poisoned => false,
    };
    (0u64..).zip(m.folios).find(|(p, w)| present(*p, w)).map(|(p, _)| p)
}
