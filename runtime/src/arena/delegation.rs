//! A registered minor delegate: what is lent to whoever tells it of a touch, and its end when nobody does any more.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "a delegate is lent to whoever tells it")]

use crate::error::{Result, system};
use crate::lease::{Lease, Table};
use crate::process::registry;
use softfault_mm::delegation::{Delegation, MinorDelegate, MinorFault, MinorVerdict};
use softfault_mm::page::PAGE_SHIFT;
use softfault_mm::sync::{AtomicU32, Ordering};
use softfault_platform::{section, vmatree};

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
    /// Registers a delegate for `len` bytes from `base` on.
    ///
    /// # Errors
    /// [`Error::Exhausted`](crate::Error::Exhausted).
    pub(super) fn new(
        op: &'static str,
        (base, len): (usize, usize),
        delegate: Box<dyn MinorDelegate>,
        handler_safe: bool,
    ) -> Result<Self> {
        let words = Delegation::words_for(len >> PAGE_SHIFT);
        let told: Table<AtomicU32> = Table::new(words).map_err(system(op, "mmap"))?;
        let id = registry::lock().delegations.get().ok_or_else(registry::exhausted(op, "delegations (4096)"))?;
        let delegate: Box<dyn MinorDelegate> = if handler_safe { delegate } else { Box::new(Guarded(delegate)) };
        let delegate: Lease<dyn MinorDelegate> = Lease::new(delegate);
        // SAFETY: `DelegationInner::drop` withdraws the delegation and waits for tellings before the lease goes.
        let lent_delegate = unsafe { delegate.lend() };
        let lent =
            Lease::new(Box::new(Delegation { id, base, told: told.lend(), delegate: lent_delegate, handler_safe }));
        // SAFETY: as above.
        vmatree::publish_delegation(id, Some(unsafe { lent.lend() }));
        Ok(Self { id, lent: Some(lent), told: Some(told), delegate: Some(delegate) })
    }

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
        // A page that is `telling` has a telling on its way through a worker, which borrows all of this. Acquire pairs with
        // `Delegation::finish`: the delegate has returned.
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
