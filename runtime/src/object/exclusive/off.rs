//! Without userfaultfd there are no exclusive objects: asking for one is a typed error, and the rest is never called.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "has the contract of the other build")]

use super::parts::Parts;
use crate::cache::state::RuntimeInner;
use crate::delivery::Delivery;
use crate::error::{Error, Result};
use crate::object::options::ObjectOptions;
use crate::types::Access;
use softfault_mm::ops::AddressSpaceOps;
use std::convert::Infallible;

/// What an exclusive object would have; there is none.
#[derive(Debug)]
pub(crate) struct Exclusive(Infallible);

/// What an exclusive object would need; there is none.
#[derive(Debug)]
pub(crate) struct Plan(Infallible);

impl Plan {
    pub(super) fn new(
        _rt: &RuntimeInner,
        options: &ObjectOptions,
        _nr_pages: usize,
        _always_dirty: bool,
    ) -> Result<Option<Self>> {
        if options.exclusive.is_none() {
            return Ok(None);
        }
        let why = "exclusive objects need userfaultfd, and this was built without the feature `userfaultfd`".into();
        Err(Error::Delivery { mode: Delivery::InThread, why })
    }
    pub(crate) fn build(self, _parts: &Parts<'_>) -> Exclusive {
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
    pub(crate) fn address(&self, _pgoff: u64, _access: Access) -> Option<usize> {
        match self.0 {}
    }
    pub(crate) fn is_mapped(&self) -> bool {
        match self.0 {}
    }
    /// # Safety
    /// It cannot be called.
    pub(crate) unsafe fn enter(&self, _address: usize, _first: u64, _nr: u64, _writable: bool) {
        match self.0 {}
    }
    pub(crate) fn leave(&self) {
        match self.0 {}
    }
    pub(crate) fn writes_back(&self) -> bool {
        match self.0 {}
    }
    pub(crate) fn write_errors(&self) -> u64 {
        match self.0 {}
    }
    pub(crate) fn may_be_stored_to(&self, _pgoff: u64) -> bool {
        match self.0 {}
    }
}
