//! Write-back: how the pages of an object get to its store, and become durable there.

pub(crate) mod flusher;
pub(crate) mod pinned;

pub use crate::object::sync::{Held, Invalidated};
