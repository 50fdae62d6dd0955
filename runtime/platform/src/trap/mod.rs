//! Traps: what the processor and the kernel tell us of a touch, and what becomes of it.
//!
//! `chain` installs, chains and restores the dispositions; `trampoline` goes to another stack and back, with a `trip`; `entry`
//! judges a signal and runs the walk; `monitor` does the same for messages of a userfaultfd.

mod blame;
pub mod chain;
mod direction;
pub mod entry;
#[cfg(feature = "userfaultfd")]
pub mod monitor;
mod spurious;
mod trampoline;
mod trip;

pub use spurious::{Changing, changing, is_changing};
pub use trampoline::on_signal;
