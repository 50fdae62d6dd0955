#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "byte offsets, page numbers and addresses are 64 bits wide here; the platform crate refuses to build elsewhere"
)]

pub mod arena;
mod by_std;
mod cache;
mod calibrate;
pub mod delivery;
pub mod error;
pub mod in_the_way;
mod lease;
mod masked;
mod memory;
pub mod object;
mod process;
pub mod runtime;
mod short;
mod types;
mod undo;
pub mod writeback;

/// Threads that could not take our signals: see [`Runtime::audit_threads`](crate::Runtime::audit_threads).
pub mod audit {
    pub use crate::process::audit::{Audit, Offender};
}
/// The last failures of a runtime: see [`Runtime::recent_failures`](crate::Runtime::recent_failures).
pub mod failures {
    pub use crate::cache::failures::RecentFailure;
}
/// Files as objects: see [`Runtime::file_options`](crate::Runtime::file_options).
pub mod file {
    pub use crate::object::file::FileOptions;
}
/// Advice: see [`Arena::advise`](crate::Arena::advise) and [`Object::advise`](crate::Object::advise).
pub mod madvise {
    pub use crate::types::Advice;
}
/// Ranges that stay resident: see [`Arena::pin`](crate::Arena::pin).
pub mod pin {
    pub use crate::arena::pin::Pin;
}
/// A reading of the counters: see [`Runtime::stats`](crate::Runtime::stats).
pub mod stats {
    pub use crate::cache::stats::{StageLatency, Stats};
}
/// Where anonymous memory goes when the cache has no room: see [`RuntimeBuilder::swap`](crate::RuntimeBuilder::swap).
pub mod swap {}

pub use arena::{Arena, ArenaBuilder};
pub use delivery::{Delivery, DeliveryReport};
pub use error::{Error, Result};
pub use failures::RecentFailure;
pub use file::FileOptions;
pub use in_the_way::InTheWay;
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
pub use types::{Access, Advice, Invalidated, Prot, Sharing};
pub use writeback::Held;

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
