//! What one runtime owns: the memory of its cache, the threads that make room there, and the swap file behind it.

pub(crate) mod failures;
pub(crate) mod kswapd;
pub(crate) mod share;
pub(crate) mod space;
pub(crate) mod stats;
pub(crate) mod swap;
pub(crate) mod zswap;
