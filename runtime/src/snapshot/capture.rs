//! Captures: a consistent image of arenas, made while threads go on storing to them.
//!
//! ```text
//! CaptureBuilder   what is captured; freezes, makes ready, cuts     builder, wanted, layout, claim, cut
//! Capture          the image that is being written                  handle, walk, sink, saver, helpers, spill, watch, end
//! stopped          the same of what nobody stores to                stopped, sink
//! ```
//! How a fault behaves meanwhile is in `softfault_mm::cut` and `softfault_mm::capture`; what calls do, in `object::capture`.
//!
//! # Context: control plane

mod builder;
mod claim;
mod cut;
mod end;
mod handle;
mod helpers;
mod layout;
mod saver;
mod sink;
mod spill;
mod state;
mod stopped;
mod walk;
mod wanted;
mod watch;

pub use builder::CaptureBuilder;
pub use handle::{Capture, CaptureProgress};
