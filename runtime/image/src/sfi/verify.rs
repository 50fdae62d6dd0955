//! Verifying what is stored in a file, each unit once.
//!
//! # Context: control plane; allocates, and waits for files

use super::layout::{BODY_START, Table};
use super::read::{Below, Grouped, Sfi};
use crate::digest::{Digest, GROUP_SIZE};
use crate::error::Result;
use crate::integrity::Integrity;
use crate::layer::Layer;
use std::ops::Range;

impl Sfi {
    /// Returns the digest of the group of the body that begins at `pos`; `None`: none does, or it is cut short.
    pub(crate) fn group_at(&self, pos: u64) -> Result<Option<Digest>> {
        let is_whole = pos.checked_add(GROUP_SIZE as u64).is_some_and(|end| end <= self.tables.header().body_end.get());
        let from_start = pos.checked_sub(BODY_START).filter(|at| is_whole && at.is_multiple_of(GROUP_SIZE as u64));
        from_start.map(|at| self.tables.get(&self.layer, Table::Groups, at / GROUP_SIZE as u64)).transpose()
    }

    /// The same of a raw layer of which this file has digests.
    pub(crate) fn group_below(&self, below: &Below, pos: u64) -> Result<Option<Digest>> {
        let is_whole = pos.checked_add(GROUP_SIZE as u64).is_some_and(|end| end <= below.len_bytes);
        if below.groups.is_empty() || !is_whole || !pos.is_multiple_of(GROUP_SIZE as u64) {
            return Ok(None);
        }
        self.tables.get(&self.layer, Table::Groups, below.groups.start + pos / GROUP_SIZE as u64).map(Some)
    }

    /// Verifies every block of the tables; returns their bytes.
    pub(crate) fn verify_tables(&self) -> Result<u64> {
        self.tables.verify(&self.layer)
    }

    pub(crate) fn nr_frames(&self) -> u64 {
        self.tables.nr(Table::Frames)
    }

    /// Returns the number of groups of the body.
    pub(crate) fn nr_body_groups(&self) -> u64 {
        (self.tables.header().body_end.get() - BODY_START).div_ceil(GROUP_SIZE as u64)
    }

    /// Verifies the frames among `frames` that were not verified since the file was opened; returns their bytes.
    pub(crate) fn verify_frames(&self, frames: Range<u64>) -> Result<u64> {
        let (mut done, mut stored, mut raw) = (0, Vec::new(), Vec::new());
        for frame in frames.filter(|f| self.frames.must_look(*f, Integrity::Once)) {
            let Ok(frame) = u32::try_from(frame) else { break };
            self.read_frame(frame, Integrity::Once, &mut stored, &mut raw)?;
            done += stored.len() as u64;
        }
        Ok(done)
    }

    /// The same of groups of the body where pages lie, or, if `below` is given, of a raw layer of which this file has digests.
    pub(crate) fn verify_groups(&self, below: Option<(&Layer, &Below)>, groups: Range<u64>) -> Result<u64> {
        let body = Grouped { start: BODY_START, end: self.tables.header().body_end.get(), first_group: 0 };
        let (layer, at) = match below {
            Some((layer, b)) => (layer, Grouped { start: 0, end: b.len_bytes, first_group: b.groups.start }),
            None => (&self.layer, body),
        };
        let (mut done, mut bytes) = (0, Vec::new());
        for nr in groups.filter(|nr| self.groups.must_look(at.first_group + nr, Integrity::Once)) {
            let (i, from) = (at.first_group + nr, at.start + nr * GROUP_SIZE as u64);
            let wanted: Digest = self.tables.get(&self.layer, Table::Groups, i)?;
            if wanted == Digest::ZERO {
                continue;
            }
            bytes.resize((at.end - from).min(GROUP_SIZE as u64) as usize, 0);
            layer.read("pages", from, &mut bytes)?;
            self.check_group(layer, i, from, &bytes)?;
            done += bytes.len() as u64;
        }
        Ok(done)
    }
}
