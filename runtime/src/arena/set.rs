//! What an arena's control plane knows is mapped, pinned, and not let go of yet.
//!
//! # Context: control plane

use super::vma::VmaEntry;
use crate::error::{Error, Result};
use crate::object::state::ObjectInner;
use crate::types::Access;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The mappings of an arena by first offset, and the ranges that pins hold.
#[derive(Debug, Default)]
pub(crate) struct VmaSet {
    pub(super) map: BTreeMap<usize, VmaEntry>,
    pub(crate) pins: Vec<(Range<usize>, Access)>,
    /// The capture that is being cut: what is mapped stays so.
    pub(crate) frozen: Option<u32>,
}

impl VmaSet {
    /// Returns the mappings, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &VmaEntry> {
        self.map.values()
    }

    /// Returns the mappings that overlap `range`, in order.
    pub(crate) fn overlapping(&self, range: &Range<usize>) -> Vec<VmaEntry> {
        let first = self.map.range(..=range.start).next_back().map_or(range.start, |(k, _)| *k);
        let hit = |v: &&VmaEntry| v.range.start < range.end && range.start < v.range.end;
        self.map.range(first..range.end).map(|(_, v)| v).filter(hit).cloned().collect()
    }

    /// Returns the overlapping mappings if they cover `range` without a gap.
    pub(crate) fn covering(&self, op: &'static str, range: &Range<usize>) -> Result<Vec<VmaEntry>> {
        let hit = self.overlapping(range);
        let mut at = range.start;
        for v in &hit {
            if v.range.start > at {
                break;
            }
            at = v.range.end;
        }
        if at < range.end { Err(Error::NotMapped { op, range: range.clone() }) } else { Ok(hit) }
    }

    /// Refuses what a pin forbids: nothing of what it holds is unmapped, protected or dropped.
    ///
    /// # Errors
    /// [`Error::Pinned`].
    pub(super) fn check_pins(&self, op: &'static str, range: &Range<usize>) -> Result<()> {
        match self.pins.iter().find(|(p, _)| p.start < range.end && range.start < p.end) {
            Some((p, _)) => Err(Error::Pinned { op, range: p.clone() }),
            None => Ok(()),
        }
    }

    /// Forgets everything without touching anything: this is a forked child.
    pub(crate) fn forget(&mut self) {
        std::mem::forget(std::mem::take(&mut self.map));
    }
}

/// A range, and the object that the kernel maps there.
#[derive(Debug)]
pub(crate) struct Owed {
    pub(super) range: Range<usize>,
    pub(super) _object: Arc<ObjectInner>,
}
