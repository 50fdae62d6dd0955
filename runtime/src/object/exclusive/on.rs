//! Exclusive objects, where there is userfaultfd.
//!
//! # Context: control plane; what it lends is called in handlers

#![expect(unsafe_code, reason = "lends the object's parts to handlers, and passes on what says where it is mapped")]

use super::parts::Parts;
use crate::cache::state::RuntimeInner;
use crate::error::{Result, system};
use crate::lease::{Lease, Table};
use crate::object::options::ObjectOptions;
use crate::types::Access;
use softfault_mm::ops::AddressSpaceOps;
use softfault_platform::frames::Frames;
use softfault_platform::store::exclusive::{self, ExclusiveOps, Facts, Filled};

/// What an exclusive object has beside the parts of every object.
#[derive(Debug)]
pub(crate) struct Exclusive {
    // Dropped in this order: what borrows before what is borrowed.
    ops: Lease<ExclusiveOps<'static>>,
    filled: Table<Filled>,
}

/// What an exclusive object needs that may not be there: had before anything of the object is made.
pub(crate) struct Plan {
    frames: &'static Frames,
    filled: Table<Filled>,
    facts: Facts,
}

impl Plan {
    /// Returns what the options ask for, `None` for an object of the ordinary kind.
    pub(super) fn new(
        rt: &RuntimeInner,
        options: &ObjectOptions,
        nr_pages: usize,
        always_dirty: bool,
    ) -> Result<Option<Self>> {
        let op = "ObjectBuilder::exclusive";
        let Some(by_copy) = options.exclusive else { return Ok(None) };
        let (frames, can_move) = rt.frames.get(op, rt.lock_cache)?;
        let filled = Table::new(nr_pages).map_err(system(op, "mmap"))?;
        let facts =
            Facts { writes_back: options.writable && !always_dirty, always_dirty, by_copy: by_copy || !can_move };
        Ok(Some(Self { frames, filled, facts }))
    }

    /// Makes the operations of an object of these parts.
    pub(crate) fn build(self, parts: &Parts<'_>) -> Exclusive {
        let ops = ExclusiveOps::new(exclusive::Parts {
            frames: self.frames,
            store: parts.store,
            folios: parts.folios,
            filled: self.filled.lend(),
            facts: self.facts,
            len_bytes: parts.options.len_bytes,
            retries: parts.options.retries,
            handler_safe: parts.handler_safe,
            policy: parts.options.policy,
            name: parts.name,
        });
        Exclusive { ops: Lease::new(Box::new(ops)), filled: self.filled }
    }
}

impl Exclusive {
    /// Lends the operations for as long as the object lives.
    fn lend(&self) -> &'static ExclusiveOps<'static> {
        let _ = &self.filled;
        // SAFETY: the object drops this part after every vma and claim that holds the borrow.
        unsafe { self.ops.lend() }
    }

    /// Lends the operations, as the walk knows them.
    pub(crate) fn as_ops(&self) -> &'static dyn AddressSpaceOps {
        self.lend()
    }

    /// Says where the object ends: nothing is read past it.
    pub(crate) fn set_len(&self, len_bytes: u64) {
        self.lend().set_len(len_bytes);
    }

    /// Gives the parts up for ever: somebody may still look at them.
    pub(crate) fn leak(self) {
        self.ops.leak();
        std::mem::forget(self.filled);
    }

    /// Returns the address of page `pgoff`, which is pinned, for a call that reads or writes its bytes; `None`: the object is
    /// not mapped there, or not for stores.
    pub(crate) fn address(&self, pgoff: u64, access: Access) -> Option<usize> {
        let (address, writable) = self.lend().address(pgoff)?;
        (writable || access == Access::Read).then_some(address)
    }

    /// Returns whether an arena maps the object.
    pub(crate) fn is_mapped(&self) -> bool {
        self.lend().is_mapped()
    }

    /// Says where the object is mapped from now on, up to [`leave`](Self::leave).
    ///
    /// # Safety
    /// As [`ExclusiveOps::enter`].
    pub(crate) unsafe fn enter(&self, address: usize, first: u64, nr: u64, writable: bool) {
        // SAFETY: the caller's contract.
        unsafe { self.lend().enter(address, first, nr, writable) };
    }

    /// Says that the object is mapped nowhere.
    pub(crate) fn leave(&self) {
        self.lend().leave();
    }

    /// Returns whether changed pages go to the store.
    pub(crate) fn writes_back(&self) -> bool {
        self.lend().facts().writes_back
    }

    /// Returns how many writes the store has refused.
    pub(crate) fn write_errors(&self) -> u64 {
        self.lend().write_errors()
    }

    /// Returns whether page `pgoff` lies in the arena, where it may be stored to before it is published.
    pub(crate) fn may_be_stored_to(&self, pgoff: u64) -> bool {
        self.lend().may_be_stored_to(pgoff)
    }
}
