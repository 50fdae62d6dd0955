//! The kernel's `mm/` as pure logic: the walk of one fault, the state words, the page cache's protocols.
//!
//! This crate owns no memory, makes no system call and contains no `unsafe`: it borrows the words it works on from
//! `softfault-platform` for the length of one *fault section* and reaches the machine through four traits
//! ([`ops::Mmu`], [`ops::AddressSpaceOps`], [`host::AddressSpace`], [`host::Park`]). So everything here can be run
//! under loom and against fakes, and nothing here can allocate, lock or panic in a signal handler.
//!
//! The layers, lowest first; a module imports only from lines above its own (a test reads the imports):
//!
//! ```text
//! page errno
//! types
//! sync
//! failures
//! trace vmstat ctx
//! folio extent failing claim ops readahead workingset
//! lru streams xarray
//! memcontrol
//! mapping
//! delegation
//! vma
//! host
//! discarded
//! filemap
//! read_pages
//! huge_memory userfaultfd
//! rmap
//! khugepaged writeback
//! vmscan
//! memcg
//! shmem
//! memory truncate
//! fault
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

pub mod errno;
pub mod page;
pub mod types;

pub mod ctx;
pub mod failures;
pub mod sync;
pub mod trace;
pub mod vmstat;

pub mod claim;
pub mod extent;
pub mod failing;
pub mod folio;
pub mod ops;
pub mod readahead;
pub mod workingset;

pub mod streams;

pub mod xarray;

pub mod lru;

pub mod memcontrol;

pub mod mapping;

pub mod delegation;

pub mod vma;

pub mod host;

pub mod discarded;
pub mod filemap;

pub mod read_pages;

pub mod huge_memory;
pub mod khugepaged;
#[cfg(feature = "userfaultfd")]
pub mod userfaultfd;

pub mod rmap;

pub mod writeback;

pub mod vmscan;

pub mod memcg;

pub mod shmem;

pub mod memory;
pub mod truncate;

pub mod fault;
