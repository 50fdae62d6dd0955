//! Exclusive objects: pages that live in the private memory of the one arena that maps them.
//!
//! Control plane of `platform::store::exclusive`. What is special about such an object is kept here; the rest of the
//! crate asks whether an object [is exclusive](ObjectInner::is_exclusive), and calls this module.

#[cfg(not(feature = "userfaultfd"))]
mod off;
#[cfg(feature = "userfaultfd")]
mod on;

#[cfg(not(feature = "userfaultfd"))]
pub(crate) use off::*;
#[cfg(feature = "userfaultfd")]
pub(crate) use on::*;

use crate::error::{Error, Result};
use crate::object::{ObjectBuilder, ObjectInner};
use softfault_mm::folio::FolioWord;
use softfault_mm::mapping::FailurePolicy;
use softfault_platform::store::Store;
use softfault_platform::store::retry::Retries;

impl ObjectBuilder {
    /// Makes the object *exclusive*: its pages live in the private memory of the one arena that maps it, and nowhere
    /// else. For restores that are used once, and for buffer pools: pages come from and go to a pool of recycled frames
    /// (`UFFDIO_MOVE`), so that the kernel allocates and frees none.
    ///
    /// It is mapped at most once at a time, `Sharing::Private`, into an arena with `InThread` delivery, and unmapped whole;
    /// its protection cannot be changed. [`Object::read_at`](crate::Object::read_at) and
    /// [`Object::write_at`](crate::Object::write_at) work while it is mapped. Unmapping drops its pages.
    ///
    /// What is stored through the mapping belongs to the object: if it is [`writable`](Self::writable), changed pages are
    /// given to [`Store::write`] when they are reclaimed, evicted, synced or unmapped (which waits for a flush that is under
    /// way); what the store does not take at the end is named by [`Object::lost`](crate::Object::lost). If not, they stay
    /// until the object is unmapped, and are then gone. Anonymous memory goes to the runtime's swap file if it has one, else it stays; it is
    /// gone when it is unmapped. A page that was stored to is told from one that was not by a keyed
    /// digest of its bytes (they are mistaken for each other with a chance of 2^-64).
    ///
    /// Pages are reclaimed in the order in which they came, or came back soon: a mapped page gives no sign of being used.
    /// Map it `Prot::Read` where it is not stored to: nothing is looked at then when pages leave, and they leave by the
    /// batch. [`Object::sync`](crate::Object::sync) looks at every cached page of its range and writes copies of those that
    /// were changed. A system call that only references a page (vmsplice) instead of pinning it may see the frame's
    /// next content; [`Arena::pin`](crate::Arena::pin) keeps it.
    #[must_use]
    pub fn exclusive(mut self, yes: bool) -> Self {
        self.exclusive = yes.then(|| self.exclusive.unwrap_or(false));
        self
    }

    /// As [`ObjectBuilder::exclusive`], but pages are copied instead of moved, as they are where the kernel knows no
    /// `UFFDIO_MOVE` (before Linux 6.8).
    #[must_use]
    pub fn exclusive_by_copy(mut self) -> Self {
        self.exclusive = Some(true);
        self
    }

    /// Returns what an exclusive object needs, `None` for an object of the ordinary kind.
    pub(crate) fn plan_exclusive(
        &self,
        nr_pages: usize,
        store: &dyn Store,
        always_dirty: bool,
    ) -> Result<Option<Plan>> {
        self.check_exclusive(false)?;
        let plan = Plan::new(self, nr_pages, always_dirty)?;
        if plan.is_some() && self.writable && !store.rereads_unflushed() {
            let why = "pages are written as they leave, and the store cannot give them back before it is flushed";
            return Err(Error::Argument { op: "ObjectBuilder::exclusive", arg: "store", value: 0, why });
        }
        Ok(plan)
    }

    /// Refuses what an exclusive object cannot have.
    pub(crate) fn check_exclusive(&self, has_vm_ops: bool) -> Result<()> {
        let op = "ObjectBuilder::exclusive";
        let argument = |arg, why| Err(Error::Argument { op, arg, value: 1, why });
        if self.exclusive.is_none() {
            return Ok(());
        }
        if self.mkwrite {
            return argument(
                "synchronous_writes",
                "stores to an exclusive object do not fault; they are found afterwards",
            );
        }
        if has_vm_ops {
            return argument("vm_ops", "an exclusive object's pages come from a store");
        }
        Ok(())
    }
}

impl ObjectInner {
    /// Returns whether the object's pages live in the one arena that maps it.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusive.is_some()
    }
}

/// The error of a call on bytes of an exclusive object that its arena does not have.
pub(crate) fn not_there(op: &'static str) -> Error {
    Error::Denied {
        op,
        what: "an exclusive object's bytes are there while it is mapped, and may be written where that is",
    }
}

/// What an object's parts are, as `ObjectInner::new` has them.
#[cfg_attr(not(feature = "userfaultfd"), expect(dead_code, reason = "there are no exclusive objects"))]
pub(crate) struct Parts {
    pub(crate) store: &'static dyn Store,
    pub(crate) folios: &'static [FolioWord],
    pub(crate) len_bytes: u64,
    pub(crate) retries: Retries,
    pub(crate) handler_safe: bool,
    pub(crate) policy: FailurePolicy,
    pub(crate) name: u64,
}

impl Parts {
    pub(crate) fn new(
        b: &ObjectBuilder,
        store: &'static dyn Store,
        folios: &'static [FolioWord],
        handler_safe: bool,
        name: u64,
    ) -> Self {
        let (len_bytes, retries, policy) = (b.len_bytes, b.retries, b.policy);
        Self { store, folios, len_bytes, retries, handler_safe, policy, name }
    }
}
