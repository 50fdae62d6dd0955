//! The body of a file that is being written: frames, and pages as they are.
//!
//! # Context: control plane; allocates, and waits for files

use crate::digest::{Digest, GROUP_SIZE};
use crate::durable::Temp;
use crate::error::Result;
use crate::extent_map::PAGE_SIZE;
use crate::sfi::layout::BODY_START;

/// Bytes of the body that are written at once: a multiple of the group.
const TAIL_SIZE: usize = 1 << 20;

/// What has been written of the body, and the digests of its groups.
#[derive(Debug)]
pub(super) struct Body {
    pos: u64,
    /// What was not given to the file yet; begins at a group.
    tail: Vec<u8>,
    /// In which groups of the tail pages lie as they are.
    has_raw: Vec<bool>,
    pub(super) groups: Vec<Digest>,
}

impl Body {
    pub(super) fn new() -> Self {
        Self { pos: BODY_START, tail: Vec::new(), has_raw: Vec::new(), groups: Vec::new() }
    }

    /// Adds bytes; `raw`: pages, at a multiple of the page. Returns where they lie.
    pub(super) fn add(&mut self, file: &Temp, bytes: &[u8], raw: bool) -> Result<u64> {
        if raw {
            let at = self.end_pos();
            self.tail.resize(self.tail.len() + (at.next_multiple_of(PAGE_SIZE as u64) - at) as usize, 0);
        }
        let (at, from) = (self.end_pos(), self.tail.len());
        self.tail.extend_from_slice(bytes);
        self.has_raw.resize(self.tail.len().div_ceil(GROUP_SIZE), false);
        if raw {
            self.has_raw.iter_mut().skip(from / GROUP_SIZE).for_each(|has| *has = true);
        }
        if self.tail.len() >= TAIL_SIZE {
            self.flush(file, self.tail.len() / GROUP_SIZE * GROUP_SIZE)?;
        }
        Ok(at)
    }

    fn end_pos(&self) -> u64 {
        self.pos + self.tail.len() as u64
    }

    /// Gives the first `len` bytes of the tail to the file.
    fn flush(&mut self, file: &Temp, len: usize) -> Result<()> {
        let bytes = self.tail.get(..len).unwrap_or_default();
        file.write_at(bytes, self.pos)?;
        for (group, has_raw) in bytes.chunks(GROUP_SIZE).zip(&self.has_raw) {
            self.groups.push(if *has_raw { Digest::of(group) } else { Digest::ZERO });
        }
        self.pos += len as u64;
        self.tail.drain(..len);
        self.has_raw.drain(..len.div_ceil(GROUP_SIZE).min(self.has_raw.len()));
        Ok(())
    }

    pub(super) fn end(&mut self, file: &Temp) -> Result<u64> {
        self.flush(file, self.tail.len())?;
        Ok(self.pos)
    }
}
