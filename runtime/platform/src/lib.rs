//! The Linux floor of softfault: where system calls, signal handlers and `unsafe` live.
//!
//! The layers, lowest first; a module imports only from lines above its own (a test reads the imports):
//!
//! ```text
//! sys                       raw system calls; alone names libc
//! child section sparse      forked? who is inside a walk, tables that are opened as they are used
//! thp                       small pages, where the system is set to make huge ones
//! staging                   pages for private copies
//! exit                      asks the flushers when the process ends
//! stack leave               the stacks that handlers run on; waits that end when a signal comes
//! reclaim                   memory for batches of reclaim
//! cache digest              the memfds and the words of their pages; was a page changed?
//! frames                    recycled pages of exclusive objects
//! mmu store                 installing pages, filling them
//! vmatree                   from an address to its vma
//! crowd                     hiding what is exposed by protection
//! host                      sleeping, and the queues to helper threads
//! trap                      signals and messages
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

pub mod sys;

pub mod cache;
pub mod child;
#[cfg(feature = "userfaultfd")]
pub mod digest;
pub mod exit;
#[cfg(feature = "userfaultfd")]
pub mod frames;
pub mod leave;
pub mod reclaim;
pub mod section;
pub mod sparse;
pub mod stack;
pub mod staging;
pub mod thp;

pub mod mmu;
pub mod store;

pub mod vmatree;

pub mod crowd;
pub mod host;

pub mod trap;

pub use softfault_mm as mm;
