//! What a call of `map` must fulfil, checked before anything changes.

use super::ArenaInner;
use super::exclusive;
use super::set::VmaSet;
use crate::error::{Error, Result};
use crate::masked::{self, Masked};
use crate::object::Object;
use crate::types::{Prot, Sharing};
use softfault_mm::page::PAGE_SIZE;
use std::ops::Range;

impl ArenaInner {
    /// Locks the arena's mappings. A fault waits for an extent that is on its way from one side to the other.
    pub(crate) fn vmas(&self) -> Masked<'_, VmaSet> {
        masked::lock(&self.vmas)
    }

    /// Returns the arena range that is to be mapped.
    pub(super) fn check_map(
        &self,
        op: &'static str,
        value: &Object,
        (offset, object_offset, len_bytes): (usize, u64, usize),
        prot: Prot,
        sharing: Sharing,
    ) -> Result<Range<usize>> {
        let object = &*value.inner;
        let argument = |arg, value, why| Err(Error::Argument { op, arg, value, why });
        if !object_offset.is_multiple_of(PAGE_SIZE as u64) {
            return argument("object_offset", object_offset, "must be a multiple of the page size (4096)");
        }
        let rounded = len_bytes.checked_next_multiple_of(PAGE_SIZE);
        let Some((len, end)) = rounded.and_then(|len| Some((len, offset.checked_add(len)?))) else {
            return argument("len_bytes", len_bytes as u64, "the range wraps around");
        };
        self.check_range(op, &(offset..end))?;
        if object_offset.checked_add(len as u64).is_none_or(|e| e > object.len_max as u64) {
            let why = "the object's room ends before the range does (its maximal length, rounded up to 2 MiB)";
            return argument("object_offset + len_bytes", object_offset.saturating_add(len as u64), why);
        }
        exclusive::check_map(op, self, object, prot, sharing)?;
        if prot == Prot::ReadWrite && sharing == Sharing::Shared && !value.writable {
            return Err(Error::Denied { op, what: "shared stores need an object that was made writable" });
        }
        if sharing == Sharing::Shared && value.writable && object.is_synchronous() && !self.faults_on_first_store() {
            let what = "synchronous writes need InThread or Segv delivery: here the first store to a page is not seen";
            return Err(Error::Denied { op, what });
        }
        Ok(offset..end)
    }
}
