//! What is done with images: comparing, flattening, putting onto another parent, converting.
//!
//! Each result holds the memory that a full snapshot of the same moment would: it is checked by the digest of its contents before
//! the file has a name, and what is there already is never replaced. Verifying is [`Image::verify`](crate::Image::verify).
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use softfault_image::{Codec, Image, PAGE_SIZE, Writer, ops};
//! use std::sync::Arc;
//!
//! let folder = tempfile::tempdir()?;
//! let at = |name: &str| folder.path().join(name);
//! Writer::create(at("monday.sfi"), 1024)?.finish()?;
//! let monday = Arc::new(Image::open(at("monday.sfi"))?);
//! let mut writer = Writer::over(at("tuesday.sfi"), 1024, Arc::clone(&monday))?;
//! writer.write(7, &[42; 2 * PAGE_SIZE])?;
//! writer.finish()?;
//!
//! let tuesday = Image::open(at("tuesday.sfi"))?;
//! assert_eq!(ops::diff(&monday, &tuesday, ops::Compare::Digests)?.runs(), [7..9]);
//! let stored = ops::Stored { codec: Codec::Lz4, ..ops::Stored::default() };
//! ops::compact(&tuesday, at("flat.sfi"), &stored, 8)?;
//! let flat = Image::open(at("flat.sfi"))?;
//! assert!(flat.needs().is_empty() && flat.content_digest() == tuesday.content_digest());
//! # Ok(())
//! # }
//! ```
//!
//! # Context: control plane; allocates, and waits for files

mod diff;
mod extract;
mod rebase;
mod rewrite;
mod segments;

pub use diff::{Compare, Diff, diff};
pub use extract::{extract, extract_diff};
pub use rebase::rebase;
pub use rewrite::{Stored, compact, convert};
