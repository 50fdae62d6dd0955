//! Setting the end of an object. Linux: `ftruncate(2)`.
//!
//! # Context: control plane

use super::state::ObjectInner;
use super::{capture, follow, preserve, truncate};
use crate::error::{Error, Result};
use softfault_mm::page::PAGE_SHIFT;
use softfault_platform::store::file::FileStore;

/// Sets the end of an object; `writable`: by a value that permits writing.
///
/// # Errors
/// As [`Object::set_len`](crate::Object::set_len).
///
/// # Context: control plane
pub(crate) fn set_len(object: &ObjectInner, op: &'static str, len_bytes: u64, writable: bool) -> Result<()> {
    if object.file_store(FileStore::is_device) == Some(true) {
        return Err(Error::Denied { op, what: "a block device has the length that it has" });
    }
    if len_bytes > object.len_max as u64 {
        let why = "past the maximal length the object was made with";
        return Err(Error::Argument { op, arg: "len_bytes", value: len_bytes, why });
    }
    // The arenas are kept until the gate is free: none is ended, by its last reference, while we have it.
    capture::refuse_in_cut(op)?;
    let _arenas = object.i_mmap().arenas();
    let _gate = object.i_mmap().gate();
    // The last page, too: what of it lies behind the end is made zero.
    let last = len_bytes.min(object.len_bytes()) >> PAGE_SHIFT;
    preserve::preserve_range(object, last..object.mapping().nr_pages());
    if writable && !object.is_exclusive() && len_bytes > object.len_bytes() {
        // What others have appended to the file is taken over first, so that it is not made zeros.
        truncate::finish_cut(object, op)?;
        let end = follow::file_end(object, op)?.unwrap_or(0);
        follow::follow_growth(object, op, end)?;
    }
    // What an earlier call left behind its end must not be seen when the object grows again.
    if len_bytes > object.len_bytes() {
        truncate::finish_cut(object, op)?;
        return truncate::grow(object, op, len_bytes);
    }
    if len_bytes < object.len_bytes() {
        let _turn = object.flushing().state().turn();
        object.flushing().state().owe_cut(object.mapping().nr_pages());
        truncate::move_end(object, len_bytes);
    }
    truncate::finish_cut(object, op)
}
