#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "byte offsets, page numbers and addresses are 64 bits wide here; the platform crate refuses to build elsewhere"
)]

pub mod arena;
pub mod audit;
mod calibrate;
pub mod delivery;
pub mod error;
mod exclusive;
pub mod failures;
pub mod file;
mod flusher;
mod guarded;
mod helper;
pub mod in_the_way;
mod io;
mod khugepaged;
mod kswapd;
mod lease;
pub mod madvise;
mod masked;
mod memory;
mod mlock;
pub mod object;
mod opened;
pub mod pin;
mod reclaim;
mod registry;
mod rmap;
pub mod runtime;
mod share;
mod short;
mod space;
pub mod stats;
pub mod swap;
mod truncate;
mod undo;
mod vmas;
pub mod writeback;
mod zswap;

pub use arena::{Arena, ArenaBuilder, Prot, Sharing};
pub use delivery::{Delivery, DeliveryReport};
pub use error::{Error, Result};
pub use failures::RecentFailure;
pub use file::FileOptions;
pub use in_the_way::InTheWay;
pub use madvise::Advice;
pub use object::{Object, ObjectBuilder};
pub use pin::Pin;
pub use runtime::{Runtime, RuntimeBuilder};
pub use softfault_mm::delegation::{MinorDelegate, MinorError, MinorFault, MinorVerdict};
pub use softfault_mm::failures::FailedOp;
pub use softfault_mm::mapping::{FailurePolicy, Mapping};
pub use softfault_mm::types::{FaultFlags, FillError, VmFaultReason, VmFlags};
pub use softfault_mm::vma::{VmFault, VmOps};
pub use softfault_mm::{filemap, shmem};
pub use softfault_platform::store::{HandlerStore, PageMut, PageRef, Store, StoreError};
pub use softfault_platform::sys::Errno;
pub use stats::Stats;
pub use writeback::{Held, Invalidated};

/// The kind of access to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
}

/// Handles go where the program's threads go.
const _: fn() = || {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Runtime>();
    is_shared::<Object>();
    is_shared::<Arena>();
    is_shared::<Pin>();
};

/// The README's examples are compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
