//! Snapshots: images of memory that are restored lazily, page by page, each verified before anybody can see it.
//!
//! ```text
//! OpenImage   an image, and the one object whose pages come from it  open, store, frames, here
//! Restore     what a session is to be                                restore, place, overlay
//! Session     the regions of an image, each mapped in an arena       session, state, complete, direct
//! WorkingSet  the pages that a session touched first                 record, replay
//! Capture     an image of arenas, made while threads store to them   capture
//! ```
//! A runtime opens an image once: however many sessions there are of it, a page that none of them has stored to is in memory once,
//! comes when it is first touched, and counts once under the cache's limit. The sessions map the image's object privately: what
//! is stored through one is that one's alone, and never the image's.
//!
//! # Context: control plane

pub(crate) mod capture;
mod complete;
mod direct;
mod frames;
mod here;
mod open;
mod overlay;
mod place;
mod record;
mod replay;
mod restore;
mod session;
mod state;
mod store;

pub use capture::{Capture, CaptureBuilder, CaptureProgress};
pub use complete::Completion;
pub use open::OpenImage;
pub use overlay::Overlay;
pub use restore::Restore;
pub use session::Session;
pub use state::{Progress, SessionRegion};
