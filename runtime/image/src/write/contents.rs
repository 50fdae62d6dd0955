//! The digests of logical pages while an image is written, those that a child shares with its parent taken over.
//!
//! # Context: control plane; allocates, and waits for files

use crate::digest::{Content, Digest, GROUP_PAGES, GROUP_SIZE, group};
use crate::error::Result;
use crate::extent_map::PAGE_SIZE;
use crate::image::Image;
use std::ops::Range;

/// What is known of the groups so far.
#[derive(Debug)]
pub(super) struct Contents {
    nr_pages: u64,
    groups: Vec<Digest>,
    /// The group that is being written: its bytes, and which of its pages are there.
    bytes: Vec<u8>,
    there: u8,
    /// The parent has no digests to take over: they would cost reading all of it.
    is_unknown: bool,
    /// They are to be had whatever that costs.
    pub(super) may_read: bool,
}

/// The digests of all groups, and the one of the contents; nothing, where they are not known.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) groups: Vec<Digest>,
    pub(super) digest: Option<Digest>,
}

impl Contents {
    pub(super) fn new(nr_pages: u64) -> Self {
        Self { nr_pages, groups: Vec::new(), bytes: vec![0; GROUP_SIZE], there: 0, is_unknown: false, may_read: false }
    }

    /// Notes a page. They come in order.
    pub(super) fn write(&mut self, parent: Option<&Image>, page: u64, bytes: &[u8; PAGE_SIZE]) -> Result<()> {
        self.is_unknown |= !self.may_read && parent.is_some_and(|p| p.content_digest().is_none());
        if self.is_unknown {
            return Ok(());
        }
        self.go_to(parent, page / GROUP_PAGES)?;
        let at = (page % GROUP_PAGES) as usize;
        if let Some(room) = self.bytes.get_mut(at * PAGE_SIZE..(at + 1) * PAGE_SIZE) {
            room.copy_from_slice(bytes);
        }
        self.there |= 1 << at;
        Ok(())
    }

    /// Ends every group before `number`.
    fn go_to(&mut self, parent: Option<&Image>, number: u64) -> Result<()> {
        if self.groups.len() as u64 == number {
            return Ok(());
        }
        if self.there != 0 {
            self.end_group(parent)?;
        }
        self.take_over(parent, self.groups.len() as u64..number)
    }

    /// Ends the group that is being written: what was not is the parent's.
    fn end_group(&mut self, parent: Option<&Image>) -> Result<()> {
        let first = self.groups.len() as u64 * GROUP_PAGES;
        let nr = GROUP_PAGES.min(self.nr_pages - first) as usize;
        if let Some(parent) = parent {
            let mut reader = parent.reader();
            for i in (0..nr).filter(|i| self.there & 1 << i == 0) {
                let page = first + i as u64;
                let room = self.bytes.get_mut(i * PAGE_SIZE..(i + 1) * PAGE_SIZE).unwrap_or_default();
                if page < parent.nr_pages() {
                    reader.read(page, room)?;
                }
            }
        }
        self.groups.push(group(self.bytes.get(..nr * PAGE_SIZE).unwrap_or_default()));
        self.bytes.fill(0);
        self.there = 0;
        Ok(())
    }

    /// Takes over groups in which nothing was written.
    fn take_over(&mut self, parent: Option<&Image>, groups: Range<u64>) -> Result<()> {
        if let Some(parent) = parent {
            // A group that the parent's end cuts has the same digest there as here: what is missing counts as zero. But where
            // the image is shorter than its parent, its last group is its own.
            let whole = (parent.nr_pages().div_ceil(GROUP_PAGES)).min(self.nr_pages / GROUP_PAGES);
            let list = &mut self.groups;
            parent.each_group(groups.start..groups.end.min(whole), |_, digest| list.push(digest))?;
            if (self.groups.len() as u64) < groups.end && self.groups.len() as u64 * GROUP_PAGES < parent.nr_pages() {
                self.end_group(Some(parent))?;
            }
        }
        self.groups.resize(groups.end as usize, Digest::ZERO);
        Ok(())
    }

    /// Ends all groups.
    pub(super) fn finish(&mut self, parent: Option<&Image>) -> Result<Known> {
        self.is_unknown |= !self.may_read && parent.is_some_and(|p| p.content_digest().is_none());
        if self.is_unknown {
            return Ok(Known { groups: Vec::new(), digest: None });
        }
        self.go_to(parent, self.nr_pages.div_ceil(GROUP_PAGES))?;
        let mut content = Content::new(self.nr_pages);
        self.groups.iter().for_each(|g| content.add(g));
        Ok(Known { groups: std::mem::take(&mut self.groups), digest: Some(content.finish()) })
    }
}
