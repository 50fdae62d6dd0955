//! Advice: how a range will be used, and what is to be done about it now. Linux: `mm/madvise.c`, `mm/fadvise.c`.
//!
//! # Context: control plane

use super::state::ObjectInner;
use super::{evict, io};
use crate::error::Result;
use crate::types::{Access, Advice};
use crate::writeback::writeout;
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use softfault_mm::{read_pages, vmscan};
use softfault_platform::host::Host;
use std::ops::Range;

/// Does what the advice says for a byte range of an object.
///
/// # Errors
/// As [`Object::advise`](crate::Object::advise), whose arguments were checked.
///
/// # Context: control plane
pub(crate) fn advise(object: &ObjectInner, op: &'static str, range: &Range<u64>, advice: Advice) -> Result<()> {
    let mapping = object.mapping();
    let (from, to) = (range.start >> PAGE_SHIFT, pages_of(range.end).min(mapping.nr_pages()));
    match advice {
        Advice::Normal | Advice::Sequential | Advice::Random => {
            mapping.ra.set_mode(advice.mode().unwrap_or_default());
            Ok(())
        }
        Advice::WillNeed => {
            will_need(object, from, to);
            Ok(())
        }
        Advice::DontNeed => object.i_mmap().zap(op, from, to),
        Advice::Cold => {
            deactivate(object, from, to);
            Ok(())
        }
        // Whole pages only: what else lies in the pages at the ends is not asked to go.
        Advice::PageOut => {
            let end = range.end.min(object.len_bytes());
            page_out(object, op, pages_of(range.start), pages_of(end))
        }
        Advice::PopulateRead => io::populate(object, range.clone(), Access::Read),
        Advice::PopulateWrite => io::populate(object, range.clone(), Access::Write),
    }
}

/// Unmaps the pages and makes them the first to go, unless somebody touches them.
pub(crate) fn deactivate(object: &ObjectInner, from: u64, to: u64) {
    vmscan::deactivate_range(Host::detached().env(), object.mapping(), 0, from, to);
}

/// Makes the pages leave the cache, dirty ones by way of the store.
///
/// # Errors
/// [`Error::Writeback`](crate::Error::Writeback), and as [`evict::evict`].
pub(crate) fn page_out(object: &ObjectInner, op: &'static str, from: u64, to: u64) -> Result<()> {
    if object.mapping().dirty_goes {
        let (flushing, pages) = (object.flushing(), from..to.min(object.mapping().nr_pages()));
        let _held = writeout::write_back(flushing, &pages).map_err(writeout::failed(flushing, op))?;
    }
    evict::evict(object, &(from << PAGE_SHIFT..to << PAGE_SHIFT)).map(drop)
}

/// Has the fillers read what is missing of the object's pages.
pub(crate) fn will_need(object: &ObjectInner, from: u64, to: u64) {
    let mapping = object.mapping();
    if !mapping.ra.is_never() {
        read_pages::force_ahead(mapping, Host::detached().env().park, 0, from, to);
    }
}
