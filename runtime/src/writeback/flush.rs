//! Flushing: what a store was given becomes durable, or counts as not written. Linux: `vfs_fsync_range`, but for what is done
//! when it fails: there pages that could not be made durable count as clean.
//!
//! # Context: control plane, the flusher

use super::state::{Flushing, Turn};
use softfault_mm::failing::Asked;
use softfault_mm::failpoint;
use softfault_mm::failures::FailedOp;
use softfault_mm::folio::{LOST, State, Wake};
use softfault_mm::mapping::Mapping;
use softfault_mm::vmstat::Event;
use softfault_mm::writeback;
use softfault_platform::host::Host;
use softfault_platform::section;
use softfault_platform::store::StoreError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Makes durable what the store was given. Flushes of an object come one after the other: a failure is everybody's.
///
/// # Errors
/// The store's. Nothing is allocated here: a thread that holds the allocator's lock may have a fault that waits for the flush.
///
/// # Context: control plane, the flusher
pub(crate) fn flush(f: &Flushing) -> Result<(), StoreError> {
    let turn = f.state().turn();
    let flushed = flush_in(f, &turn);
    if flushed.is_ok() {
        f.state().prune(f.mapping());
    }
    flushed
}

/// Has reads see what the store was told about pages that are not cached: some stores show it after a flush.
///
/// # Context: control plane
pub(crate) fn show(f: &Flushing, turn: &Turn<'_>) -> Result<(), StoreError> {
    if f.store().rereads_unflushed() {
        return Ok(());
    }
    flush_in(f, turn)
}

/// Flushes; the caller has the turn.
fn flush_in(f: &Flushing, _turn: &Turn<'_>) -> Result<(), StoreError> {
    let m = f.mapping();
    m.flush_wanted.store(0, Ordering::Relaxed);
    if f.state().is_end_owed() {
        tell_end(f)?;
    }
    let _settled = Settled::new(m);
    failpoint!(FLUSH_SETTLED);
    let turn = writeback::begin_flush(m);
    m.stat.add(0, Event::FLUSH_CALLS, 1);
    let flushed = f.store().flush();
    failpoint!(FLUSH_DONE);
    match &flushed {
        Ok(()) => {
            // What was lost, and written again by who was told, is there now.
            for (p, word) in m.each_folio(0, u64::MAX) {
                let seen = word.load();
                if seen.has(LOST) && seen.has(turn) && f.state().told.take(p) {
                    word.clear(LOST);
                }
            }
            writeback::end_flush(m, turn);
            m.note_success(Asked::Flush);
        }
        Err(error) => note_failure(f, error),
    }
    flushed
}

/// Has pages whose writes the store may have lost be dirty again, or lost where they are not cached. The caller has the turn.
fn note_failure(f: &Flushing, error: &StoreError) {
    let m = f.mapping();
    // What reclaim takes out of an exclusive object is marked when it is gone, not while it is written.
    for (_, word) in m.each_folio(0, u64::MAX).filter(|_| m.exclusive) {
        while word.load().state() == State::Evicting && !word.load().is_vacant() {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    writeback::fail_flush(m, &mut |p| {
        let _ = f.state().told.take(p);
        m.stat.add(0, Event::FLUSH_LOST, 1);
    });
    m.stat.add(0, Event::FLUSH_ERRORS, 1);
    let now_ns = Host::detached().env().park.now_ns();
    m.record_failure(FailedOp::Flush, error.fill_error(), 0, 0, now_ns);
    // Pages that such a store was given stay in the cache until a flush succeeds, and so they count against the object.
    if !m.a_ops.rereads_unflushed() {
        m.note_failure(Asked::Flush, error.fill_error());
    }
    // If the store does not take this either, it is owed, and the next flush begins with it.
    let _ = tell_end(f);
    // Release pairs with the Acquire in `sync::sync`: who sees the count sees the pages dirty again.
    f.state().failures.fetch_add(1, Ordering::Release);
}

/// Tells the store again where the object ends: a flush that failed may have lost that like a write, and bytes past the
/// store's own end could not be read. The caller has the turn: the end does not move meanwhile.
fn tell_end(f: &Flushing) -> Result<(), StoreError> {
    if !f.is_persistent() {
        return Ok(());
    }
    // Acquire pairs with `truncate::i_size_write`: the end is the one that was set last.
    let len_bytes = f.mapping().i_size.load(Ordering::Acquire);
    let mut told = f.store().set_len(len_bytes);
    for _ in 0..3 {
        told = told.or_else(|_| f.store().set_len(len_bytes));
    }
    f.state().owe_end(told.is_err());
    told
}

/// While it lives, pages that the store was given stay as they are: the cached ones cached, the others vacant, so that what
/// is found after a failed flush is what there was before it. Faults wait for it: it remembers them in their words alone.
struct Settled<'a>(&'a Mapping<'a>);

impl<'a> Settled<'a> {
    /// The caller has the object's turn to flush.
    fn new(m: &'a Mapping<'a>) -> Self {
        // SeqCst pairs with `Mapping::owes_flush`, which reclaim asks in its section.
        m.flushing.store(1, Ordering::SeqCst);
        // Who evicts does so in a section, and looks there.
        section::synchronize();
        for (_, word) in m.each_folio(0, u64::MAX).filter(|(_, w)| w.load().is_unsynced()) {
            // One that is being read has what it reads before the store flushes; one that hangs is lost if the flush fails.
            let mut patience = 20_000;
            while word.load().state() == State::Filling && patience > 0 {
                std::thread::sleep(Duration::from_micros(100));
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
        // SeqCst pairs with `Mapping::owes_flush`.
        self.0.flushing.store(0, Ordering::SeqCst);
    }
}
