//! The page cache's verbs: pages are filled, mapped, written, aged, evicted, cut off.

pub mod capture;
pub mod discarded;
pub(crate) mod filemap;
pub mod fill;
pub mod huge_memory;
pub mod khugepaged;
pub mod map_pages;
pub mod memcg;
pub mod read_pages;
pub mod rmap;
pub mod truncate;
pub mod vmscan;
pub mod writeback;
