//! Making writes durable: what was written goes to the store, and the store is flushed. Linux: `msync(2)` with `MS_SYNC`.
//!
//! # Context: control plane

use super::state::{self, Flushing};
use super::{flush, lost, writeout};
use crate::error::{self, Error, Result};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Makes durable every byte of the range's pages that was written before the call; `skip_held`: but for those of held pages.
///
/// # Errors
/// [`Error::Writeback`], [`Error::Flush`], [`Error::Held`], and [`Error::Lost`] of bytes that an earlier flush took away.
///
/// # Context: control plane
pub(crate) fn sync(f: &Flushing, op: &'static str, range: &Range<u64>, skip_held: bool) -> Result<()> {
    let m = f.mapping();
    let asked = state::pages(m, range);
    loop {
        // ```text
        // this call                                another
        // writes its pages
        //                                          flush fails: our pages too may be gone, and are dirty again
        // flush succeeds: it had nothing to write
        // ```
        // Acquire pairs with the Release in `flush::note_failure`.
        let failures = f.state().failures.load(Ordering::Acquire);
        let pages = asked.start..asked.end.min(m.nr_pages());
        let held = writeout::write_back(f, &pages).map_err(writeout::failed(f, op))?;
        if let Some(p) = held.filter(|_| !skip_held) {
            return Err(Error::Held { op, object: m.label.into(), range: state::bytes(&(p..p + 1)) });
        }
        flush::flush(f).map_err(|error| error::flush(op, m.label, error))?;
        // Acquire: as above.
        if f.state().failures.load(Ordering::Acquire) != failures {
            continue;
        }
        let lost = lost::tell(f, pages);
        return if lost.is_empty() { Ok(()) } else { Err(Error::Lost { op, object: m.label.into(), ranges: lost }) };
    }
}
