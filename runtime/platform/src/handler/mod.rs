//! What a handler stands on: its stack, its section, memory for its batches and copies; and how it learns that the process
//! forked, or ends.

pub mod area;
pub mod batches;
pub mod bell;
pub(crate) mod bits;
pub mod child;
pub mod exit;
pub mod leave;
pub mod section;
pub mod stack;
pub mod staging;
pub mod stalls;
