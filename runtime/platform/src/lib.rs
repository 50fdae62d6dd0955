//! The Linux floor of softfault: where system calls, signal handlers and `unsafe` live.
//!
//! The floors, lowest first; a file imports only from its own floor and from those below it, and no files import each other in
//! a circle (a test reads the imports). What lies in `handler` and `memory` is named without its floor:
//! `softfault_platform::section`.
//!
//! ```text
//! sys        raw system calls; alone names libc
//! handler    what a handler stands on: stack, section, batches, staging; the monitor's bell; forked? does the process end?
//! memory     the memfds and the words of their pages, frames of exclusive objects, tables that are opened as they are used
//! mmu store  installing pages, filling them
//! vmatree    from an address to its vma
//! crowd      hiding what is exposed by protection
//! host       sleeping, and the queues to helper threads
//! trap       signals and messages
//! ```
//!
//! No `std` and no `alloc`: code that allocates or takes a std lock does not compile here, which is the point of the
//! crate. A link test proves that no panic is reachable from the handler.
#![no_std]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::todo,
    clippy::unimplemented,
    clippy::unreachable,
    clippy::std_instead_of_core
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "register-sized arguments of system calls: usize, u64 and pointers are 64 bits here, and sys refuses to build elsewhere"
)]

mod handler;
mod memory;

pub mod crowd;
pub mod host;
pub mod mmu;
pub mod store;
pub mod sys;
pub mod trap;
pub mod vmatree;

pub(crate) use handler::bits;
pub use handler::{area, batches, bell, child, exit, leave, section, stack, staging, stalls};
pub use memory::{cache, sparse, thp};
#[cfg(feature = "userfaultfd")]
pub use memory::{digest, frames};

pub use softfault_mm as mm;
