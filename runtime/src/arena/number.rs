//! The numbers by which handlers know vmas.
//!
//! # Context: control plane

use crate::error::Result;
use crate::process::registry;
use crate::undo::Done;

/// Takes a vma number.
pub(super) fn get(op: &'static str) -> Result<(u32, Done<impl FnOnce()>)> {
    let index = registry::lock().vmas.get().ok_or_else(registry::exhausted(op, "vmas (1048576)"))?;
    Ok((index, Done::new(move || registry::lock().vmas.put(index))))
}
