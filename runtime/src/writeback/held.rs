//! Pages that are held back: not written, whatever the pressure, until what describes them is durable.
//!
//! # Context: control plane

use super::state::{Flushing, bytes};
use crate::error::{Error, Result};
use crate::short::Short;
use softfault_mm::ctx::Ctx;
use softfault_mm::folio::{HELD, State};
use softfault_mm::ops::WaitKey;
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use softfault_platform::host::Host;
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

/// Pages that are not written back for as long as the value lives; see [`Object::hold_dirty`](crate::Object::hold_dirty).
pub struct Held {
    flushing: Arc<Flushing>,
    pages: Range<u64>,
    /// Keeps the object, and with it what `flushing` borrows.
    _object: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let object = Short(self.flushing.mapping().label);
        f.debug_struct("Held").field("object", &object).field("range", &self.range()).finish()
    }
}

impl Held {
    /// Returns the bytes that are held.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        bytes(&self.pages)
    }
}

/// Holds the pages of a byte range.
///
/// # Errors
/// [`Error::Held`] where a page is held already, [`Error::Denied`] on exclusive objects.
///
/// # Context: control plane
pub(crate) fn hold(
    flushing: &Arc<Flushing>,
    object: Arc<dyn Any + Send + Sync>,
    op: &'static str,
    range: &Range<u64>,
) -> Result<Held> {
    let (m, state) = (flushing.mapping(), flushing.state());
    if m.exclusive {
        return Err(Error::Denied { op, what: "an exclusive object's pages are written when they leave" });
    }
    let pages = (range.start >> PAGE_SHIFT)..pages_of(range.end).min(m.folios.len() as u64);
    let mut list = state.held();
    if let Some(r) = list.iter().find(|r| r.start < pages.end && pages.start < r.end) {
        return Err(Error::Held { op, object: m.label.into(), range: bytes(r) });
    }
    list.push(pages.clone());
    drop(list);
    let host = Host::detached();
    let ctx = Ctx::thread(0);
    for p in pages.clone() {
        let Some(word) = m.folio(p) else { break };
        word.set(HELD);
        m.nodes.insert(p);
        // A page that is on its way to the store may still be written after we have returned, so we wait until it has been.
        while let Some(low) = word.mark_waiter(State::Writeback) {
            host.env().park.wait(&ctx, WaitKey { addr: word.futex_addr(), seen: low }, u64::MAX);
        }
    }
    drop(host);
    // The same goes for a page that is pinned, and is being written as it is. The program's signals may come meanwhile,
    // because the store may take its time.
    drop(state.direct());
    Ok(Held { flushing: Arc::clone(flushing), pages, _object: object })
}

impl Drop for Held {
    fn drop(&mut self) {
        if softfault_platform::child::in_child() {
            return;
        }
        for p in self.pages.clone() {
            if let Some(word) = self.flushing.mapping().folio(p) {
                word.clear(HELD);
            }
        }
        self.flushing.state().held().retain(|r| *r != self.pages);
    }
}
