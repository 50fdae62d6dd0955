//! The end of a file that others have moved. Linux: nothing, since there a mapping and read(2) see one inode.
//!
//! The last page is the difficult one: what is cached of it has zeros behind the old end, where the file has bytes by now.
//! Write-back never gives the store a byte behind the object's end, and so what was appended stays as it is until the end has
//! moved; and while it moves nobody reads, writes or fills that page:
//! ```text
//! follow_len                              others
//!                                         fill the page up to the old end, zeros behind it
//! the end moves
//!                                         write the page back up to the new end: the zeros
//! ```
//!
//! # Context: control plane

use super::capture;
use super::io;
use super::state::ObjectInner;
use super::truncate;
use super::void::Void;
use crate::error::{self, Error, Result};
use crate::object::fault::{self, Place};
use crate::types::Access;
use crate::writeback::writeout;
use softfault_mm::page::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::vmscan;
use softfault_platform::host::Host;
use softfault_platform::store::file::FileStore;
use softfault_platform::store::{PageMut, StoreError};
use std::time::Duration;

/// Takes the file's end for the object's; returns it, in bytes.
///
/// # Errors
/// As [`Object::follow_len`](crate::Object::follow_len).
///
/// # Context: control plane
pub(crate) fn follow_len(object: &ObjectInner, op: &'static str) -> Result<u64> {
    if object.is_exclusive() {
        return Err(Error::Denied { op, what: "an exclusive object's end is moved by `set_len`" });
    }
    // What is there now is not what was there at the cut.
    capture::refuse_in_cut(op)?;
    let _arenas = object.i_mmap().arenas();
    let _gate = object.i_mmap().gate();
    capture::refuse_captured(object, op)?;
    truncate::finish_cut(object, op)?;
    let end = file_end(object, op)?.ok_or(Error::Denied { op, what: "only a file has an end that others move" })?;
    if end < object.len_bytes() {
        follow_cut(object, op, end)?;
    }
    follow_growth(object, op, end)?;
    Ok(end)
}

/// Returns where the file ends; `None`: it is no file.
pub(super) fn file_end(object: &ObjectInner, op: &'static str) -> Result<Option<u64>> {
    let end = object.file_store(FileStore::len_bytes).transpose();
    end.map_err(|e| Error::Io { op, path: None, source: error::io(e) })
}

/// Follows what was appended, if the object is a file that was. The caller has no lock.
pub(crate) fn follow_appended(object: &ObjectInner, op: &'static str) -> Result<()> {
    if object.is_exclusive() || file_end(object, op)?.is_none_or(|end| end <= object.len_bytes()) {
        return Ok(());
    }
    // What is there now is not what was there at the cut.
    capture::refuse_in_cut(op)?;
    let _arenas = object.i_mmap().arenas();
    let _gate = object.i_mmap().gate();
    capture::refuse_captured(object, op)?;
    truncate::finish_cut(object, op)?;
    let end = file_end(object, op)?.unwrap_or(0);
    follow_growth(object, op, end)
}

/// Writes back and drops what is cached of the page, as far as it goes.
fn forget_page(object: &ObjectInner, pgoff: u64) {
    if object.is_persistent() {
        // One that is not taken stays dirty, and cached.
        let _ = writeout::write_back(object.flushing(), &(pgoff..pgoff.saturating_add(1)));
    }
    let m = object.mapping();
    let _ = vmscan::reclaim_range(Host::detached().env(), m, 0, pgoff, pgoff.saturating_add(1));
}

/// Follows a file that is shorter. The caller has the gate.
fn follow_cut(object: &ObjectInner, op: &'static str, end: u64) -> Result<()> {
    let m = object.mapping();
    let turn = object.flushing().state().turn();
    object.flushing().state().owe_cut(m.nr_pages());
    // The file ends there already: the store is not to cut it, or make it longer.
    object.file_store(|store| store.adopt_len(end));
    truncate::move_end(object, end);
    drop(turn);
    // What is cached of the last page may be older than the cut.
    forget_page(object, end >> PAGE_SHIFT);
    truncate::finish_cut(object, op)
}

/// Follows a file that may be longer. The caller has the gate.
pub(super) fn follow_growth(object: &ObjectInner, op: &'static str, end: u64) -> Result<()> {
    let (m, old) = (object.mapping(), object.len_bytes());
    if end <= old {
        return Ok(());
    }
    if end > object.len_max as u64 {
        let why = "the file is longer than the maximal length that the object was made with";
        return Err(Error::Argument { op, arg: "max_len", value: end, why });
    }
    let last = old >> PAGE_SHIFT;
    if old as usize & PAGE_MASK == 0 {
        let _turn = object.flushing().state().turn();
        object.file_store(|store| store.adopt_len(end));
        truncate::move_end(object, end);
        return Ok(());
    }
    for turn in 0..1_000 {
        object.i_mmap().demote(last, last + 1)?;
        if turn < 3 {
            forget_page(object, last);
        }
        let turn = object.flushing().state().turn();
        if let Some(void) = Void::take(m, &(last..last + 1)) {
            let is_cached = m.folio(last).is_some_and(|w| !w.load().is_vacant());
            let read = if is_cached { read_tail(object, old, end) } else { Ok(()) };
            if read.is_ok() {
                object.file_store(|store| store.adopt_len(end));
                truncate::move_end(object, end);
            }
            // The page is back, and the turn, before there is an error: it takes memory.
            drop((void, turn));
            let place = Place { mapping: Some(m), object_offset: Some(old), arena_offset: None };
            return read.map_err(|e| fault::fault(op, Access::Read, place, Some(e.fill_error()), None));
        }
        drop(turn);
        std::thread::sleep(Duration::from_micros(500));
    }
    Err(Error::Denied { op, what: "the page at the old end stays pinned or is being filled; drop the pins" })
}

/// Reads what the file has of the last page from the old end on into the cached page, which the caller has.
fn read_tail(object: &ObjectInner, old: u64, end: u64) -> std::result::Result<(), StoreError> {
    let (pgoff, from) = (old >> PAGE_SHIFT, old as usize & PAGE_MASK);
    let first = pgoff << PAGE_SHIFT;
    let mut bytes = [0u8; PAGE_SIZE];
    let to = PAGE_SIZE.min(usize::try_from(end - first).unwrap_or(PAGE_SIZE));
    let Some(wanted) = bytes.get_mut(..to) else { return Ok(()) };
    object.store().read(first, &mut PageMut::from(&mut *wanted))?;
    io::set_tail(object, pgoff, from, wanted);
    Ok(())
}
