//! The kernel's `mm/` as pure logic: the walk of one fault, the state words, the page cache's protocols.
//!
//! This crate owns no memory, makes no system call and contains no `unsafe`: it borrows the words it works on from
//! `softfault-platform` for the length of one *fault section* and reaches the machine through four traits
//! ([`ops::Mmu`], [`ops::AddressSpaceOps`], [`host::AddressSpace`], [`host::Park`]). So everything here can be run
//! under loom and against fakes, and nothing here can allocate, lock or panic in a signal handler.
//!
//! The floors, lowest first; a file imports only from its own floor and from those below it, and no files import each other in
//! a circle (a test reads the imports). Modules are named without their floor: `softfault_mm::filemap`.
//!
//! ```text
//! base     sizes, numbers, atomics and counters that everybody uses
//! words    the words that threads share, one a page, a chunk, an extent, an object
//! policy   what is decided and not done: which page goes, which one is read ahead
//! model    objects, vmas, accounts, and the traits towards the machine
//! cache    the page cache's verbs: fill, map, write, age, evict, cut off
//! walk     one fault, from its address to its page
//! ```
#![cfg_attr(not(any(loom, test)), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::todo,
        clippy::unimplemented,
        clippy::unreachable,
        clippy::std_instead_of_core
    )
)]

mod base;
mod cache;
mod model;
mod policy;
mod walk;
mod words;

pub use base::{ctx, errno, failures, page, seqlock, sync, trace, types, vmstat};
pub use cache::{
    capture, discarded, fill, huge_memory, khugepaged, map_pages, memcg, read_pages, rmap, truncate, vmscan, writeback,
};

/// The page cache, as its callers see it: Linux's `mm/filemap.c` is one file, of which ours are three.
pub mod filemap {
    pub use crate::cache::filemap::*;
    pub use crate::cache::fill::{abandon, fill_with, read_claimed};
    pub use crate::cache::map_pages::{map_pages, prot_of};
}

pub use model::{delegation, host, mapping, memcontrol, ops, stall, vma};
pub use policy::{lru, readahead, streams, workingset};
#[cfg(feature = "userfaultfd")]
pub use walk::userfaultfd;
pub use walk::{fault, memory, shmem};
pub use words::{chunk, claim, cut, extent, failing, folio, xarray};
