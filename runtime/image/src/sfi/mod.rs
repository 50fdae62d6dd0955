//! Our container: see [`layout`](self::layout) for its bytes.
//!
//! # Context: control plane; allocates, and waits for files

pub(crate) mod layout;
mod read;
mod tables;
mod verify;

pub(crate) use read::{Below, Sfi};
