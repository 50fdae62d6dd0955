//! The memory itself: the memfds of the cache and the words of their pages, frames of exclusive objects, sparse tables.

pub mod cache;
#[cfg(feature = "userfaultfd")]
pub mod digest;
#[cfg(feature = "userfaultfd")]
pub mod frames;
pub mod sparse;
pub mod thp;
