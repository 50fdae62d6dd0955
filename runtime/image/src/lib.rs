//! Images of memory: what a snapshot is on disk, and how it is read page by page, verified.
//!
//! An image may be a raw file, a raw file under ten thousand sparse diffs, somebody else's snapshot, or our own container,
//! `.sfi`, with compressed frames and digests. All of them become one [`ExtentMap`], so that who needs a page finds it by one
//! look, and one [`Reader`] that gives out no byte which fails its digest. The crate knows nothing of page faults or of
//! arenas: it is what a pager, a command line or a backup tool is built on.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use softfault_image::{Codec, Image, PAGE_SIZE, Prot, Region, Writer};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("heap.sfi");
//! let mut writer = Writer::create(&path, 1024)?.codec(Codec::Lz4);
//! let len_bytes = 1024 * PAGE_SIZE as u64;
//! writer.region(Region { name: "heap".into(), address: 1 << 30, offset: 0, len_bytes, prot: Prot::READ | Prot::WRITE })?;
//! writer.key("application", b"1.4.2");
//! writer.write(7, &[42; PAGE_SIZE])?;
//! let digest = writer.finish()?;
//!
//! let image = Image::open(&path)?;
//! let mut pages = vec![1; 2 * PAGE_SIZE];
//! image.reader().read(7, &mut pages)?;
//! assert_eq!((pages[0], pages[PAGE_SIZE]), (42, 0), "what was never written is zero");
//! assert_eq!((image.file_digest(), image.key("application")), (Some(digest), Some(&b"1.4.2"[..])));
//! # Ok(())
//! # }
//! ```
//!
//! # The floors
//!
//! ```text
//! error digest extent_map inject  what is wrong, what identifies bytes, where each page comes from
//! codec layer region integrity lease durable
//! sfi raw slot                    how images lie in files
//! image                           an open one, and who reads it
//! write                           a new one
//! import sidecar ops              others' snapshots, digests for what has none, what is done with images
//! workingset                      what a program needs first
//! catalog oci                     a folder of images, a folder that registries understand
//! ```
//!
//! # What may be trusted
//!
//! A file is taken for hostile until it is verified: every table is copied, verified, then checked against its bounds, and
//! never read again from where it came. What fails is named with the file and the byte ([`Error`]), and fails alone: other
//! pages can still be read. Raw files, and the snapshots of other programs, have no digests: [`Image::is_verifiable`].
#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "a usize is a u64 here; what becomes narrower was bounded before")]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("softfault-image reads images that are larger than a 32-bit address space");

mod catalog;
mod codec;
mod digest;
mod durable;
mod error;
mod extent_map;
mod image;
pub mod import;
#[doc(hidden)]
pub mod inject;
mod integrity;
mod layer;
mod lease;
pub mod oci;
pub mod ops;
mod raw;
mod region;
mod sfi;
mod sidecar;
mod slot;
pub mod workingset;
mod write;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use catalog::{Catalog, Entry, Kept, Plan};
pub use codec::{Codec, FRAME_MAX};
pub use digest::{Content, Digest, GROUP_PAGES, GROUP_SIZE, NotADigest, group, is_zero};
pub use error::{Error, Result};
pub use extent_map::{Builder, EXTENT_PAGES, ExtentMap, Fragmentation, PAGE_SIZE, Run, Source};
pub use image::{Image, Reader};
pub use integrity::Integrity;
pub use layer::{Identity, Layer, RawAt};
pub use lease::Lease;
pub use region::{Prot, Region};
pub use sidecar::write_sidecar;
pub use write::Writer;
