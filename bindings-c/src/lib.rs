//! The C ABI of softfault.
//!
//! One module a concern; what each exports is what its part of `include/softfault.h` says, and the comments here are the
//! ones that land there. Layers, lowest first: `consts`, `error` < `args`, `handle` < `options` < `handler` < the rest,
//! one module a handle. `README.md` has the conventions.
//!
//! A panic never crosses: whatever may fail runs in [`error::entry`]. What runs in signal handlers is in `handler`,
//! which cannot panic (`tests/nopanic.rs` links it so).

#![expect(non_camel_case_types, reason = "types have the names that they have in C")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "byte offsets and lengths are 64 bits wide here; the platform crate refuses to build elsewhere"
)]

pub mod arena;
pub mod args;
pub mod consts;
pub mod error;
pub mod handle;
pub mod object;
pub mod options;
pub mod runtime;
pub mod stats;
