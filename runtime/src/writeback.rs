//! Write-back: how the pages of an object get to its store, and become durable there.
//!
//! It needs of an object no more than a `state::Flushing`: so the flusher, which holds one for longer than there
//! is the object, cannot end that, and an object that is dropped writes itself back by calling downwards.

pub(crate) mod exit;
pub(crate) mod flush;
pub(crate) mod flusher;
mod held;
pub(crate) mod lost;
mod pinned;
pub(crate) mod state;
pub(crate) mod sync;
pub(crate) mod writeout;

pub use crate::types::Invalidated;
pub use held::Held;
pub(crate) use held::hold;
