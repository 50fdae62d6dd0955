//! Minor delegates: registering one over a range, and ending it when nobody is being told any more.

#![expect(unsafe_code, reason = "a delegate is lent to whoever tells it")]

use super::vma::VmaEntry;
use super::{ArenaInner, Sharing};
use crate::error::{Error, Result, system};
use crate::lease::{Lease, Table};
use crate::process::registry;
use softfault_mm::delegation::{Delegation, MinorDelegate, MinorFault, MinorVerdict};
use softfault_mm::page::PAGE_SHIFT;
use softfault_mm::sync::{AtomicU32, Ordering};
use softfault_platform::{section, vmatree};
use std::ops::Range;
use std::sync::Arc;

/// The pages that one delegation may have.
const PAGES_MAX: u64 = 1 << u32::BITS;

/// A registered delegate with its bits.
#[derive(Debug)]
pub(crate) struct DelegationInner {
    id: u32,
    // Dropped in this order: what borrows before what is borrowed.
    lent: Option<Lease<Delegation<'static>>>,
    told: Option<Table<AtomicU32>>,
    delegate: Option<Lease<dyn MinorDelegate>>,
}

impl DelegationInner {
    /// Lends the delegation.
    ///
    /// # Safety
    /// As [`Lease::lend`]: the borrow ends before the entry that holds the delegation does.
    pub(super) unsafe fn lend(&self) -> Option<&'static Delegation<'static>> {
        // SAFETY: the caller's contract.
        self.lent.as_ref().map(|lent| unsafe { lent.lend() })
    }
}

impl Drop for DelegationInner {
    fn drop(&mut self) {
        // A page that is `telling` has a telling on its way through a worker, which borrows all of this.
        let telling = |w: &AtomicU32| (0..16).any(|i| (w.load(Ordering::Acquire) >> (2 * i)) & 3 == 1);
        let mut patience = 2_000;
        let words = self.told.as_ref().map_or(&[][..], Table::lend);
        while words.iter().any(telling) && patience > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
            patience -= 1;
        }
        if patience == 0 {
            // A delegate that does not return still has the page's bits and its own state to look at: all of it stays,
            // under its number.
            self.lent.take().into_iter().for_each(Lease::leak);
            self.delegate.take().into_iter().for_each(Lease::leak);
            std::mem::forget(self.told.take());
            return;
        }
        vmatree::publish_delegation(self.id, None);
        section::synchronize();
        registry::lock().delegations.put(self.id);
    }
}

/// A delegate whose panics refuse the page: a worker that unwound would keep it `telling` for ever.
struct Guarded(Box<dyn MinorDelegate>);

impl MinorDelegate for Guarded {
    fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
        let ask = std::panic::AssertUnwindSafe(|| self.0.minor_fault(fault));
        std::panic::catch_unwind(ask).unwrap_or(MinorVerdict::Refuse)
    }
}

impl ArenaInner {
    pub(crate) fn delegate_minor(
        self: &Arc<Self>,
        range: &Range<usize>,
        delegate: Box<dyn MinorDelegate>,
        handler_safe: bool,
    ) -> Result<()> {
        let op = "Arena::delegate_minor";
        if !cfg!(feature = "userfaultfd") {
            return Err(Error::Denied { op, what: "built without the feature `userfaultfd`" });
        }
        if (range.len() >> PAGE_SHIFT) as u64 > PAGES_MAX {
            let why = "at most 16 TiB can be delegated at once: a telling has 32 bits for a page";
            return Err(Error::Argument { op, arg: "range.end", value: range.end as u64, why });
        }
        let mut vmas = self.vmas();
        vmas.check_pins(op, range)?;
        let hit = vmas.covering(op, range)?;
        if hit.iter().any(|v| v.sharing == Sharing::Private) {
            return Err(Error::Denied { op, what: "private mappings cannot be unmapped to catch first touches" });
        }
        let delegation = Arc::new(self.new_delegation(range, delegate, handler_safe)?);
        // The range stays trapped from here on, but for what is promoted until the new entries are published.
        let demote = |hit: &[VmaEntry]| hit.iter().try_for_each(|v| self.demote_entry(v, range).map(drop));
        demote(&hit)?;
        let swap = self.replace_inside(op, &mut vmas, hit, range, |v| v.delegation = Some(Arc::clone(&delegation)))?;
        if let Err(error) = demote(&swap.old) {
            self.restore(&mut vmas, swap);
            return Err(error);
        }
        let new = swap.new.clone();
        self.retire(swap);
        new.iter().try_for_each(|v| {
            let inside = v.range.start.max(range.start)..v.range.end.min(range.end);
            if inside.is_empty() { Ok(()) } else { self.zap_kernel(v, &inside).map_err(system(op, "madvise")) }
        })
    }

    fn new_delegation(
        &self,
        range: &Range<usize>,
        delegate: Box<dyn MinorDelegate>,
        handler_safe: bool,
    ) -> Result<DelegationInner> {
        let op = "Arena::delegate_minor";
        let words = Delegation::words_for(range.len() >> PAGE_SHIFT);
        let told: Table<AtomicU32> = Table::new(words).map_err(system(op, "mmap"))?;
        let id = registry::lock().delegations.get().ok_or_else(registry::exhausted(op, "delegations (4096)"))?;
        let delegate: Box<dyn MinorDelegate> = if handler_safe { delegate } else { Box::new(Guarded(delegate)) };
        let delegate: Lease<dyn MinorDelegate> = Lease::new(delegate);
        // SAFETY: `DelegationInner::drop` withdraws the delegation and waits for tellings before the lease goes.
        let lent_delegate = unsafe { delegate.lend() };
        let lent = Lease::new(Box::new(Delegation {
            id,
            base: self.address(range.start),
            told: told.lend(),
            delegate: lent_delegate,
            handler_safe,
        }));
        // SAFETY: as above.
        vmatree::publish_delegation(id, Some(unsafe { lent.lend() }));
        Ok(DelegationInner { id, lent: Some(lent), told: Some(told), delegate: Some(delegate) })
    }
}
