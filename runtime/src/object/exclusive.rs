//! Exclusive objects: pages that live in the private memory of the one arena that maps them.
//!
//! Control plane of `platform::store::exclusive`. What is special about such an object is kept here, and how it is mapped by
//! the arena's floor; the rest of the crate asks whether an object is exclusive.
//!
//! # Context: control plane

#[cfg(not(feature = "userfaultfd"))]
mod off;
#[cfg(feature = "userfaultfd")]
mod on;
mod parts;

#[cfg(not(feature = "userfaultfd"))]
pub(crate) use off::*;
#[cfg(feature = "userfaultfd")]
pub(crate) use on::*;
pub(crate) use parts::Parts;

use super::options::ObjectOptions;
use crate::cache::state::RuntimeInner;
use crate::error::{Error, Result};
use softfault_platform::store::Store;

/// Returns what an exclusive object needs, `None` for an object of the ordinary kind.
///
/// # Errors
/// [`Error::Argument`] for options that exclude each other, [`Error::Delivery`] without userfaultfd.
///
/// # Context: control plane
pub(crate) fn plan(
    rt: &RuntimeInner,
    options: &ObjectOptions,
    nr_pages: usize,
    store: &dyn Store,
    always_dirty: bool,
) -> Result<Option<Plan>> {
    check(options, false)?;
    let plan = Plan::new(rt, options, nr_pages, always_dirty)?;
    if plan.is_some() && options.writable && !store.rereads_unflushed() {
        let why = "pages are written as they leave, and the store cannot give them back before it is flushed";
        return Err(Error::Argument { op: "ObjectBuilder::exclusive", arg: "store", value: 0, why });
    }
    Ok(plan)
}

/// Refuses what an exclusive object cannot have.
///
/// # Errors
/// [`Error::Argument`].
pub(crate) fn check(options: &ObjectOptions, has_vm_ops: bool) -> Result<()> {
    let op = "ObjectBuilder::exclusive";
    let argument = |arg, why| Err(Error::Argument { op, arg, value: 1, why });
    if options.exclusive.is_none() {
        return Ok(());
    }
    if options.mkwrite {
        return argument("synchronous_writes", "stores to an exclusive object do not fault; they are found afterwards");
    }
    if has_vm_ops {
        return argument("vm_ops", "an exclusive object's pages come from a store");
    }
    Ok(())
}

/// The error of a call on bytes of an exclusive object that its arena does not have.
pub(crate) fn not_there(op: &'static str) -> Error {
    Error::Denied {
        op,
        what: "an exclusive object's bytes are there while it is mapped, and may be written where that is",
    }
}
