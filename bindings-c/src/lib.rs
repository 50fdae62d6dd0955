//! The C ABI of softfault.
//!
//! One module a concern; what each exports is what its part of `include/softfault.h` says, and the comments here are the
//! ones that land there. Layers, lowest first: `consts`, `error` < `args`, `handle`, `handler` < `options` <
//! `image_options` < the rest: `runtime`, `object` and `object_cache`, `arena`, `pin`, `stats`, `image`, `image_writer`, `image_ops`, `catalog`, `session`, `working_set`, `capture`, and `callbacks`, which takes the program's functions. `README.md` has the conventions.
//!
//! A panic never crosses: whatever may fail runs in [`error::entry`]. What runs in signal handlers is in `handler`,
//! which cannot panic (`tests/nopanic.rs` links it so).

#![expect(non_camel_case_types, reason = "types have the names that they have in C")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "byte offsets and lengths are 64 bits wide here; the platform crate refuses to build elsewhere"
)]

/// What `handler` is made of; `tests/nopanic` has one of its own.
mod api {
    pub(crate) use softfault::{
        Errno, HandlerStore, Mapping, MinorDelegate, MinorError, MinorFault, MinorVerdict, PageMut, PageRef, Store,
        StoreError, VmFault, VmFaultReason, VmOps, filemap, shmem,
    };
}

pub mod arena;
pub mod args;
pub mod callbacks;
pub mod capture;
pub mod catalog;
pub mod consts;
pub mod error;
pub mod handle;
pub mod handler;
pub mod image;
pub mod image_ops;
pub mod image_options;
pub mod image_writer;
pub mod object;
pub mod object_cache;
pub mod options;
pub mod pin;
pub mod runtime;
pub mod session;
pub mod stats;
pub mod working_set;
