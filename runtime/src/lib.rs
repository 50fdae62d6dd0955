//! Memory that is mapped like a file's, from a source of your own, within a limit of your own.
//!
//! # What it is
//!
//! A [`Runtime`] has a cache of pages with a limit. An [`Object`] is where pages come from and go to: a file, a [`Store`] of yours,
//! anonymous memory. An [`Arena`] is a range of address space in which objects are mapped, and read and written by plain loads
//! and stores. The first touch of a page is a fault, which the runtime resolves in the thread that raised it: it finds the page
//! in the cache, or has the store fill it, and maps it. Pages that nobody misses leave the cache, dirty ones by way of the store.
//!
//! # When to use it, and when not
//!
//! For data larger than memory whose pages are compressed, encrypted, remote or computed; for snapshots and restores; where you
//! must know what is durable ([`Object::sync`]), or see each first touch ([`MinorDelegate`]). Not for a file that fits into memory
//! (mmap(2) is simpler), nor for locks, stacks and what system calls are given unprepared: where the kernel touches a page first,
//! it gets `EFAULT` unless the range is pinned ([`Arena::pin`]), or the arena was made with [`ArenaBuilder::kernel_access`].
//!
//! # A first program
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rt = softfault::Runtime::builder().cache_limit(64 << 20).build()?;
//! let file = rt.map_file("Cargo.toml")?;
//! // SAFETY: nobody writes to the file while the slice lives, nor cuts it.
//! let bytes = unsafe { file.as_slice() };
//! assert!(bytes.starts_with(b"[package]")); // a fault, resolved here
//!
//! let mut some = [0; 9];
//! file.arena().read_at(0, &mut some)?; // no fault, and an error instead of a SIGBUS
//! assert_eq!(&some, b"[package]");
//! println!("{} faults", rt.stats()["pgfault"]);
//! # Ok(())
//! # }
//! ```
//!
//! # A store of one's own
//!
//! [`Store::read`] is given a position and bytes to fill. What it may rely on:
//!
//! * It is asked for ranges that begin at a multiple of [`Store::read_align_bytes`] and are as long as multiples of that, cut where
//!   the object ends. By default that is 4096 bytes, a page: any run of pages may come, up to 2 MiB, for readahead too. A store
//!   of frames says how long they are, and then gets whole frames.
//! * It may be called by several threads at once, for different pages; for one page by one thread at a time. [`ObjectBuilder::store`]
//!   has it called on threads of the runtime, where it may allocate, lock and sleep, but must not wait for what a thread that
//!   touches memory may hold, and touches no arena. [`ObjectBuilder::handler_store`] has it called in the thread that faults, in a
//!   signal handler: see [`HandlerStore`].
//! * What it wrote before it returned an error is discarded. Of a longer run that failed each page (or block) is asked for again by
//!   itself, so that one bad page fails alone, with [`ObjectBuilder::retries`], and then by the object's [`FailurePolicy`]: by
//!   default the touch is SIGBUS, and a call [`Error::Fault`] with the [`FillError`]. The next touch asks the store again: it heals
//!   when the store does. What was read ahead and failed is absent, as if nobody had asked.
//! * A page that was stored to and not yet written back is never asked for; one that is written meanwhile may be asked for as part of
//!   a block, of which the rest is dropped.
//!
//! ```
//! use softfault::{PageMut, Runtime, Store, StoreError};
//!
//! /// Frames of 64 KiB, each full of its number.
//! struct Frames;
//!
//! impl Store for Frames {
//!     fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
//!         for (i, frame) in page.as_mut_slice().chunks_mut(64 << 10).enumerate() {
//!             let nr = (pos_bytes >> 16) as usize + i;
//!             if nr == 13 {
//!                 return Err(StoreError::Corrupt); // `?` does for errors of std::io
//!             }
//!             frame.fill(nr as u8);
//!         }
//!         Ok(())
//!     }
//!     fn read_align_bytes(&self) -> u64 {
//!         64 << 10
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rt = Runtime::new()?;
//! let frames = rt.map_object(rt.object(16 << 16).label("frames").store(Box::new(Frames))?)?;
//! // SAFETY: nobody writes to it.
//! let bytes = unsafe { frames.as_slice() };
//! assert_eq!(bytes[5 << 16], 5);
//! let error = frames.arena().read_at(13 << 16, &mut [0]).unwrap_err();
//! assert!(error.to_string().contains("the content failed its check"), "{error}");
//! # Ok(())
//! # }
//! ```
//!
//! # A limit, and what is durable
//!
//! [`RuntimeBuilder::cache_limit`] bounds the cached pages of all objects. [`Object::hold_dirty`] keeps pages from being written
//! back, so that a log can be durable before the pages that it describes; [`Object::sync`] makes a range durable, or says what is not.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = std::env::temp_dir().join(format!("softfault-guide-{}", std::process::id()));
//! # std::fs::write(&path, vec![0; 8 << 20])?;
//! let rt = softfault::Runtime::builder().cache_limit(1 << 20).build()?;
//! let file = rt.open_file_rw(&path)?; // 8 MiB
//! for at in (0..8 << 20).step_by(4096) {
//!     file.write_at(at, b"page")?; // pages that have no room go to the file
//! }
//! assert!(rt.stats()["nr_cached_pages"] <= 256);
//!
//! let held = file.hold_dirty(0..4096)?;
//! file.write_at(0, b"new!")?; // not in the file before the log is
//! // .. the log is written and synced ..
//! drop(held);
//! file.sync(0..4096)?; // durable from here on, or an error that says which bytes are not
//! assert_eq!(&std::fs::read(&path)?[..4], b"new!");
//! # Ok(std::fs::remove_file(&path)?)
//! # }
//! ```
//!
//! # Told of each first touch
//!
//! A [`MinorDelegate`] is told of the first touch of each cached page of a range, before the page is mapped there, and may rewrite
//! it. Nobody sees a byte that it has not seen. It needs userfaultfd (the cargo feature of that name, on by default).
//!
//! ```
//! # #[cfg(feature = "userfaultfd")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use softfault::{MinorDelegate, MinorFault, MinorVerdict, Prot, Runtime, Sharing};
//!
//! struct Flip;
//!
//! impl MinorDelegate for Flip {
//!     fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
//!         match fault.rewrite(&mut |page| page.iter_mut().for_each(|b| *b = !*b)) {
//!             Ok(()) => MinorVerdict::Continue,
//!             Err(_) => MinorVerdict::Refuse, // a SIGBUS for who touched it
//!         }
//!     }
//! }
//!
//! let rt = Runtime::new()?;
//! let memory = rt.anonymous(4096)?;
//! memory.write_at(0, &[0x0f])?;
//! let arena = rt.arena(4096).build()?;
//! arena.map(0, &memory, 0, 4096, Prot::Read, Sharing::Shared)?;
//! arena.delegate_minor(0..4096, Box::new(Flip))?;
//! // SAFETY: mapped above; the delegate rewrites a page only before it is mapped.
//! assert_eq!(unsafe { arena.as_slice(0..1) }, [0xf0]);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "userfaultfd"))]
//! # fn main() {}
//! ```
//!
//! # Where a function may be called
//!
//! Each says so under `# Context`, in these words:
//!
//! * *program*: on any thread of the program, where it may wait; in no callback of a store, a vtable or a delegate.
//! * *filler*: also in callbacks on the runtime's own threads ([`ObjectBuilder::store`], [`Arena::delegate_minor`]).
//! * *handler*: also in callbacks that run in the faulting thread, inside a signal handler ([`ObjectBuilder::handler_store`],
//!   [`ObjectBuilder::vm_ops`], [`Arena::delegate_minor_in_handler`]), and in signal handlers of the program's own.
//!
//! # Where to go on
//!
//! [`design`] is how it works: the walk, the words, the order of locks, the limits. The repository's README has the delivery modes,
//! what is different from mmap(2), the system calls that a filter must allow, and what it costs.
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
pub mod mapped;
mod masked;
mod memory;
pub mod object;
mod process;
pub mod runtime;
mod short;
pub mod snapshot;
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
/// Where anonymous memory goes when the cache has no room: it is asked for by [`RuntimeBuilder::swap`](crate::RuntimeBuilder::swap)
/// and [`RuntimeBuilder::zswap`](crate::RuntimeBuilder::zswap), and has no values of its own.
pub mod swap {
    pub use crate::runtime::RuntimeBuilder;
}

pub use arena::{Arena, ArenaBuilder};
pub use delivery::{Delivery, DeliveryReport};
pub use error::{CaptureFailure, Error, Result};
pub use failures::RecentFailure;
pub use file::FileOptions;
pub use in_the_way::InTheWay;
pub use mapped::Mapped;
pub use object::{Object, ObjectBuilder};
pub use pin::Pin;
pub use runtime::{Runtime, RuntimeBuilder};
pub use snapshot::{Capture, CaptureBuilder, CaptureProgress, OpenImage, Restore, Session};
/// Images of memory: how they are read, written and compared, without a runtime.
pub use softfault_image as image;
/// The walk's own words, which a [`VmOps`] meets: named here so that every type of a signature can be. It keeps no interface.
pub use softfault_mm as mm;
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

#[doc = include_str!("../README.md")]
pub mod design {}

/// Handles go where the program's threads go.
const _: fn() = || {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Runtime>();
    is_shared::<Object>();
    is_shared::<Arena>();
    is_shared::<Pin>();
    is_shared::<Mapped>();
    is_shared::<OpenImage>();
    is_shared::<Session>();
};

/// The README's examples are compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
