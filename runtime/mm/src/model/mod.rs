//! The nouns: objects, vmas, accounts; and the traits by which the verbs above reach the machine below.

pub mod delegation;
pub mod host;
pub mod mapping;
pub mod memcontrol;
pub mod ops;
pub mod stall;
pub mod vma;
