//! Our container: see [`layout`](self::layout) for its bytes.

mod contents;
pub(crate) mod layout;
mod read;
mod tables;
pub(crate) mod write;

pub use read::Integrity;
pub(crate) use read::{Below, Sfi};
