//! What the benchmarks share: arguments, interleaved measuring, rows, mappings, and the bare handlers they are judged by.
//!
//! Every figure is a ratio of two sides that were measured in the same process and the same loop, in turn: on a shared
//! virtual machine the absolute cost of a fault drifts by half within minutes, the ratio hardly.
//!
//! A *series* is something measured once per run. A *row* is a series set against the sum of zero or more others.

pub mod area;
pub mod args;
pub mod child;
pub mod machine;
pub mod monitor;
pub mod program;
#[path = "../replacement/sim/mod.rs"]
pub mod replacement;
pub mod report;
pub mod session;
pub mod together;
pub mod trap;
mod units;
pub mod workload;

pub use units::{Context, EXTENT, Error, MIB, PAGE, Result, WINDOW_PAGES};
