//! What is decided, and not done: which page goes, which one is read ahead. Nothing here touches a page.

pub mod lru;
pub mod readahead;
pub mod streams;
pub mod workingset;
