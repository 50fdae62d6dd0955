//! The system-call floor: the only module of the project that names `libc`.
//!
//! Every call is a raw `syscall` instruction. libc's wrappers are not used, because they write `errno` (which the
//! interrupted program may be about to read) and because several of them, `pread` among them, are cancellation
//! points: a thread with a pending `pthread_cancel` would unwind out of a signal handler. From libc come constants
//! and structure layouts only.
//!
//! # Context: handler
//! Everything here may run in a signal handler unless its own documentation says "control plane".

pub mod current;
pub mod fd;
pub mod file;
pub mod futex;
#[cfg(debug_assertions)]
pub mod inject;
pub mod mem;
pub mod mlock;
pub mod pagemap;
pub mod process;
pub mod random;
pub mod signal;
pub mod syscall;
pub mod text;
pub mod thread;
#[cfg(feature = "userfaultfd")]
pub mod uffd;

pub use syscall::Errno;
