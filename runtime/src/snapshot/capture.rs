//! Captures: a consistent image of arenas, made while threads go on storing to them.
//!
//! ```text
//! CaptureBuilder   what is captured; freezes, makes ready, cuts     builder, layout, cut
//! Capture          the image that is being written                  handle, walk, saver, spill, end
//! ```
//! How a fault behaves meanwhile is in `softfault_mm::cut` and `softfault_mm::capture`; what calls do, in `object::capture`.
//!
//! # Context: control plane

mod builder;
mod cut;
mod end;
mod handle;
mod layout;
mod saver;
mod spill;
mod state;
mod walk;

pub use builder::CaptureBuilder;
pub use handle::{Capture, CaptureProgress};
