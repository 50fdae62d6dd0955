//! Our container: see [`layout`](self::layout) for its bytes.

pub(crate) mod layout;
mod read;
mod tables;

pub(crate) use read::{Below, Sfi};
