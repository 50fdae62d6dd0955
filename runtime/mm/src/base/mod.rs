//! Sizes, numbers, atomics and counters: what everybody uses, and what knows nobody.

pub mod ctx;
pub mod errno;
pub mod failures;
pub mod page;
pub mod seqlock;
pub mod sync;
pub mod trace;
pub mod types;
pub mod vmstat;
