//! Which pages of an image a program needs first, and in what order: recorded once, replayed at the next restore.
//!
//! A working set is of contents, and not of a file: it is keyed by the content digest, so that it serves every image of equal
//! memory. It has windows of time, early to late, each with the pages that were touched in it for the first time; how many runs
//! those make is nobody's limit.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use softfault_image::workingset::{Resolution, WorkingSet, compare, merge};
//! use softfault_image::{Image, PAGE_SIZE, Writer};
//!
//! let folder = tempfile::tempdir()?;
//! let mut writer = Writer::create(folder.path().join("a.sfi"), 1024)?;
//! writer.write(0, &[7; 1024 * PAGE_SIZE])?;
//! writer.finish()?;
//! let image = Image::open(folder.path().join("a.sfi"))?;
//!
//! let mut first = WorkingSet::of(&image, Resolution::PAGE)?;
//! first.push(0..1_000_000, [3, 4, 5, 900])?;
//! first.push(1_000_000..4_000_000, [10, 4])?;
//! let path = first.save_beside(&image)?;
//! assert_eq!(WorkingSet::open(&path)?.window(1).map(|w| w.runs().collect()), Some(vec![10..11]));
//!
//! let mut second = WorkingSet::of(&image, Resolution::PAGE)?;
//! second.push(0..1_000_000, [3, 4, 5, 6])?;
//! assert!(compare(&first, &second)?.recall() == 0.75);
//! assert_eq!(merge(&[&first, &second], 2)?.nr_pages(), 3);
//! # Ok(())
//! # }
//! ```
//!
//! # Context: control plane; allocates, and waits for files

mod carry;
mod file;
mod merge;
mod set;

pub use carry::{Carried, carry};
pub use file::EXTENSION;
pub use merge::{Drift, compare, merge};
pub use set::{Resolution, Suspicion, Window, WorkingSet};
