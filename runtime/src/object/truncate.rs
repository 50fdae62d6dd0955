//! The end of an object moves, and with it that of its store. Linux: `mm/truncate.c`.
//!
//! # Context: control plane

use super::io;
use super::state::ObjectInner;
use crate::error::{self, Error, Result};
use crate::writeback::state::Turn;
use crate::writeback::{flush, lost};
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use softfault_mm::truncate;
use softfault_platform::host::Host;
use softfault_platform::section;
use softfault_platform::store::StoreError;
use std::time::Duration;

/// How often, a millisecond apart, pages past a new end are tried that somebody is busy with.
const PATIENCE: u32 = 2_000;

/// What a store has refused while its end moves. It is made an [`Error`] only when the turn to flush has been given back, because
/// that takes memory, and a thread that holds the allocator's lock may be in a fault that waits for the turn.
#[derive(Clone, Copy, Debug)]
pub(super) enum Below {
    /// To take another end.
    End(StoreError),
    /// To have reads see what it was told.
    Flush(StoreError),
}

impl Below {
    /// Makes the error of a call that was to move the end to `end`. Takes memory.
    pub(super) fn into_error(self, op: &'static str, object: &ObjectInner, end: u64) -> Error {
        let label = object.mapping().label;
        match self {
            Self::End(e) => error::writeback(op, label, end..end, e.fill_error()),
            Self::Flush(e) => error::flush(op, label, e),
        }
    }
}

/// Says where the object ends now. The caller has the gate, and the turn to flush.
pub(super) fn move_end(object: &ObjectInner, len_bytes: u64) {
    object.a_ops().set_len(len_bytes);
    object.exclusive().into_iter().for_each(|e| e.set_len(len_bytes));
    truncate::i_size_write(object.mapping(), len_bytes);
}

/// Moves the end up. The store grows first, because bytes past its end cannot be read. The caller has the gate.
pub(super) fn grow(object: &ObjectInner, op: &'static str, len_bytes: u64) -> Result<()> {
    // A flush that fails tells the store where the object ends: by then both have moved, or neither.
    let turn = object.flushing().state().turn();
    let grown = grow_below(object, len_bytes, &turn);
    drop(turn);
    grown.map_err(|below| below.into_error(op, object, len_bytes))
}

fn grow_below(object: &ObjectInner, len_bytes: u64, turn: &Turn<'_>) -> std::result::Result<(), Below> {
    if object.is_writable() {
        object.store().set_len(len_bytes).map_err(Below::End)?;
        flush::show(object.flushing(), turn).map_err(Below::Flush)?;
    }
    move_end(object, len_bytes);
    Ok(())
}

/// Drops what lies past the end, and cuts the store, if that is owed. The caller has the gate.
pub(super) fn finish_cut(object: &ObjectInner, op: &'static str) -> Result<()> {
    let m = object.mapping();
    let (len_bytes, to) = (object.len_bytes(), object.flushing().state().cut_owed());
    if to == 0 {
        return Ok(());
    }
    // A promotion that read the old end has finished by now, or will read the new one.
    section::synchronize();
    // The same goes for who writes a pinned page as it is:
    // ```text
    // sync                                   set_len
    // measures the page by the old end
    //                                        zeroes the tail, cuts the store
    // the store is longer again, and has the old bytes
    // ```
    drop(object.flushing().state().direct());
    for _ in 0..PATIENCE {
        object.i_mmap().demote(len_bytes >> PAGE_SHIFT, to)?;
        // We do not try while a flush keeps pages: it may take longer than our patience.
        let turn = object.flushing().state().turn();
        let dropped = truncate::truncate_pagecache(Host::detached().env(), m, 0, to) == 0;
        if dropped && io::zero_tail(object, len_bytes) {
            let cut = cut_below(object, len_bytes, &turn);
            drop(turn);
            return cut.map_err(|below| below.into_error(op, object, len_bytes));
        }
        drop(turn);
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(Error::Denied { op, what: "pages past the new end stay pinned or are being filled; drop the pins" })
}

/// Cuts the store. It shrinks last, when nobody writes past the new end any more.
fn cut_below(object: &ObjectInner, len_bytes: u64, turn: &Turn<'_>) -> std::result::Result<(), Below> {
    let state = object.flushing().state();
    if object.is_writable() {
        // Until the store has taken the new end, nothing counts as durable.
        state.owe_end(true);
        object.store().set_len(len_bytes).map_err(Below::End)?;
        state.owe_end(false);
        lost::forget(object.mapping(), &(pages_of(len_bytes)..u64::MAX));
    }
    state.forget_cut();
    if object.is_writable() { flush::show(object.flushing(), turn).map_err(Below::Flush) } else { Ok(()) }
}
