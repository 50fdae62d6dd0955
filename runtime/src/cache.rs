//! What one runtime owns: the memory of its cache, the threads that make room there, and the swap file behind it.

mod end;
pub(crate) mod failures;
#[cfg(feature = "userfaultfd")]
pub(crate) mod frames;
pub(crate) mod khugepaged;
pub(crate) mod kswapd;
pub(crate) mod share;
pub(crate) mod space;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod stats;
pub(crate) mod swap;
pub(crate) mod zswap;
