//! Without userfaultfd there are no exclusive objects: asking for one is a typed error, and the rest is never called.

use super::Parts;
use crate::arena::ArenaInner;
use crate::arena::vma::VmaEntry;
use crate::delivery::Delivery;
use crate::error::{Error, Result};
use crate::object::{ObjectBuilder, ObjectInner};
use crate::types::Access;
use crate::types::{Prot, Sharing};
use crate::undo::Done;
use softfault_mm::ops::AddressSpaceOps;
use softfault_mm::types::VmFlags;
use std::convert::Infallible;
use std::sync::Arc;

/// There is none.
#[derive(Debug)]
pub(crate) struct Exclusive(Infallible);

/// There is none.
#[derive(Debug)]
pub(crate) struct Plan(Infallible);

impl Plan {
    pub(crate) fn new(b: &ObjectBuilder, _nr_pages: usize, _always_dirty: bool) -> Result<Option<Self>> {
        if b.exclusive.is_none() {
            return Ok(None);
        }
        let why = "exclusive objects need userfaultfd, and this was built without the feature `userfaultfd`".into();
        Err(Error::Delivery { mode: Delivery::InThread, why })
    }
    pub(crate) fn build(self, _parts: &Parts) -> Exclusive {
        match self.0 {}
    }
}

impl Exclusive {
    pub(crate) fn as_ops(&self) -> &'static dyn AddressSpaceOps {
        match self.0 {}
    }
    pub(crate) fn set_len(&self, _len_bytes: u64) {
        match self.0 {}
    }
    pub(crate) fn leak(self) {
        match self.0 {}
    }
}

impl ObjectInner {
    pub(crate) fn page_at(&self, pgoff: u64, _access: Access) -> Option<usize> {
        Some(self.alias_at(pgoff))
    }
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the other build refuses")]
    pub(crate) fn check_mapped(&self, _op: &'static str) -> Result<()> {
        Ok(())
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the other build refuses")]
pub(crate) fn check_map(
    _op: &'static str,
    _arena: &ArenaInner,
    _object: &ObjectInner,
    _prot: Prot,
    _sharing: Sharing,
) -> Result<()> {
    Ok(())
}
pub(crate) fn refusal(_object: &ObjectInner) -> Option<Error> {
    None
}
pub(crate) fn flags_of(_v: &VmaEntry) -> VmFlags {
    VmFlags::empty()
}
pub(crate) fn enter(_arena: &ArenaInner, _v: &VmaEntry) -> Done<impl FnOnce() + use<>> {
    Done::new(|| ())
}
#[expect(clippy::unnecessary_wraps, reason = "the other build has something to lose")]
pub(crate) fn leave(_object: &Arc<ObjectInner>) -> Result<()> {
    Ok(())
}
