//! When an exclusive object may be mapped or unmapped: reads of its store that were begun before are waited for, with no lock held.
//!
//! # Context: control plane

use super::vma::VmaEntry;
use crate::error::{Error, Result};
use crate::object::state::ObjectInner;
use softfault_mm::folio::State;
use softfault_mm::sync::Ordering;
use softfault_mm::vmscan;
use softfault_platform::host::Host;
use std::time::Duration;

/// Readies an object for its next mapping, if it is exclusive; `false`: the store is still reading for the former one. The
/// caller holds the object's gate.
///
/// # Errors
/// [`Error::Denied`]: it is mapped.
pub(crate) fn is_ready(op: &'static str, object: &ObjectInner) -> Result<bool> {
    let Some(ops) = object.exclusive() else { return Ok(true) };
    if ops.is_mapped() {
        return Err(Error::Denied { op, what: "an exclusive object is mapped at most once" });
    }
    let m = object.mapping();
    // A read that began under the former mapping may be about to publish pages that went with it. Acquire pairs with
    // `filemap::release`: what was done under the claims has happened.
    if m.users.load(Ordering::Acquire) != 0 {
        return Ok(false);
    }
    let host = Host::detached();
    vmscan::discard_range(host.env(), m, 0, 0, m.folios.len() as u64);
    Ok(true)
}

/// For how many milliseconds yet others' reads are waited for.
#[derive(Debug)]
pub(crate) struct Patience(u32);

impl Default for Patience {
    fn default() -> Self {
        Self(2_000)
    }
}

impl Patience {
    /// Waits for one of them; `false`: there is none left. The caller has no lock, which the program's handlers might want
    /// meanwhile.
    fn wait(&mut self) -> bool {
        let Some(left) = self.0.checked_sub(1) else { return false };
        self.0 = left;
        std::thread::sleep(Duration::from_millis(1));
        true
    }

    /// Waits for the readers of a former mapping.
    ///
    /// # Errors
    /// [`Error::Denied`]: for too long.
    pub(crate) fn wait_for_readers(&mut self, op: &'static str) -> Result<()> {
        let what = "the store is still reading for the former mapping";
        if self.wait() { Ok(()) } else { Err(Error::Denied { op, what }) }
    }
}

/// Waits for reads that are under way for exclusive objects, and have put a part in place by now: what is stored there is
/// kept, once the rest is there. The caller has no lock; what is read from now on, and what takes too long, [`leave`](super::exclusive::leave) waits
/// for, which has some.
pub(crate) fn wait_for_reads(vmas: &[VmaEntry]) {
    let mut patience = Patience::default();
    for v in vmas.iter().filter(|v| v.object.is_persistent()) {
        let Some(ops) = v.object.exclusive() else { continue };
        for (p, word) in (0u64..).zip(v.object.mapping().folios) {
            let seen = word.load();
            // Each claim has a version of its own.
            let goes_on = || word.load().state() == State::Filling && word.load().version() == seen.version();
            while goes_on() && ops.may_be_stored_to(p) && patience.wait() {}
        }
    }
}
