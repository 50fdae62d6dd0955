//! What objects ask of the arenas that map them.
//!
//! # Context: control plane

use super::state::ArenaInner;
use super::vma::range_of;
use super::{extents, record, zap};
use crate::error::Result;
use crate::object::rmap::Mapper;
use softfault_mm::huge_memory;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SIZE};
use std::sync::{Arc, Weak};

/// Returns the arena, as its objects know it.
pub(super) fn weak(arena: &Arc<ArenaInner>) -> Weak<dyn Mapper> {
    let weak: Weak<ArenaInner> = Arc::downgrade(arena);
    weak
}

impl Mapper for ArenaInner {
    fn slot(&self) -> u32 {
        self.slot
    }
    fn demote(&self, object: u32, from: u64, to: u64) -> Result<usize> {
        extents::demote_object(self, object, from, to)
    }
    fn zap(&self, op: &'static str, object: u32, from: u64, to: u64) -> Result<()> {
        zap::zap_object(self, op, object, from, to)
    }
    fn unpoison(&self, op: &'static str, object: u32, from: u64, to: u64) -> Result<()> {
        zap::unpoison_object(self, op, object, from, to)
    }
    /// Maps a huge page in private mappings alone: there the page table of the time before it was huge stays, and with it the
    /// small entries, until somebody maps the huge page over them.
    fn map_huge(&self, object: u32, first: u64) {
        let vmas = self.vmas();
        for v in vmas.iter().filter(|v| v.is_of(object) && v.is_private() && !v.is_direct) {
            let Some(range) = range_of(v, first, first + EXTENT_PAGES as u64) else { continue };
            if range.start.is_multiple_of(EXTENT_SIZE) && range.len() == EXTENT_SIZE {
                huge_memory::map_huge(&record::vma_of(self, v), 0, self.address(range.start), 1);
            }
        }
    }
}
