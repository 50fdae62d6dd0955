//! The digests of logical pages while an image is written, those that a child shares with its parent taken over.
//!
//! # Context: control plane; allocates, and waits for files

use crate::digest::{Content, Digest, EXTENT_GROUPS, GROUP_PAGES, GROUP_SIZE, group};
use crate::error::Result;
use crate::extent_map::PAGE_SIZE;
use crate::image::Image;

/// What is known of the groups so far.
#[derive(Debug)]
pub(super) struct Contents {
    nr_pages: u64,
    known: Known,
    /// The group that comes next: its number, its bytes, and which of its pages are there.
    next: u64,
    bytes: Vec<u8>,
    there: u8,
    /// The parent has no digests to take over: they would cost reading all of it.
    is_unknown: bool,
    /// They are to be had whatever that costs.
    pub(super) may_read: bool,
}

/// The digests of the extents that are not all zero, and the one of the contents; nothing, where they are not known.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The numbers of the extents, in order.
    pub(super) extents: Vec<u64>,
    /// Of each of those extents, the digests of its groups.
    pub(super) groups: Vec<Digest>,
    pub(super) digest: Option<Digest>,
}

impl Known {
    /// Notes a group that is not zero. They come in order.
    fn put(&mut self, number: u64, digest: Digest) {
        let extent = number / EXTENT_GROUPS;
        if self.extents.last() != Some(&extent) {
            self.extents.push(extent);
            self.groups.resize(self.extents.len() * EXTENT_GROUPS as usize, Digest::ZERO);
        }
        let at = (self.extents.len() - 1) * EXTENT_GROUPS as usize + (number % EXTENT_GROUPS) as usize;
        if let Some(slot) = self.groups.get_mut(at) {
            *slot = digest;
        }
    }
}

impl Contents {
    pub(super) fn new(nr_pages: u64) -> Self {
        let (known, bytes) = (Known::default(), vec![0; GROUP_SIZE]);
        Self { nr_pages, known, next: 0, bytes, there: 0, is_unknown: false, may_read: false }
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
        if self.next == number {
            return Ok(());
        }
        if self.there != 0 {
            self.end_group(parent)?;
        }
        self.take_over(parent, number)
    }

    /// Ends the group that is being written: what was not is the parent's.
    fn end_group(&mut self, parent: Option<&Image>) -> Result<()> {
        let first = self.next * GROUP_PAGES;
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
        let digest = group(self.bytes.get(..nr * PAGE_SIZE).unwrap_or_default());
        if digest != Digest::ZERO {
            self.known.put(self.next, digest);
        }
        self.next += 1;
        self.bytes.fill(0);
        self.there = 0;
        Ok(())
    }

    /// Takes over the groups before `to`, in which nothing was written.
    fn take_over(&mut self, parent: Option<&Image>, to: u64) -> Result<()> {
        if let Some(parent) = parent {
            // A group that the parent's end cuts has the same digest there as here: what is missing counts as zero. But where
            // the image is shorter than its parent, its last group is its own.
            let whole = (parent.nr_pages().div_ceil(GROUP_PAGES)).min(self.nr_pages / GROUP_PAGES).min(to);
            let known = &mut self.known;
            parent.each_group(self.next..whole, |number, digest| known.put(number, digest))?;
            self.next = self.next.max(whole);
            if self.next < to && self.next * GROUP_PAGES < parent.nr_pages() {
                self.end_group(Some(parent))?;
            }
        }
        self.next = to;
        Ok(())
    }

    /// Ends all groups.
    pub(super) fn finish(&mut self, parent: Option<&Image>) -> Result<Known> {
        self.is_unknown |= !self.may_read && parent.is_some_and(|p| p.content_digest().is_none());
        if self.is_unknown {
            return Ok(Known::default());
        }
        self.go_to(parent, self.nr_pages.div_ceil(GROUP_PAGES))?;
        let mut content = Content::new(self.nr_pages);
        for (extent, groups) in self.known.extents.iter().zip(self.known.groups.chunks(EXTENT_GROUPS as usize)) {
            (extent * EXTENT_GROUPS..).zip(groups).for_each(|(number, digest)| content.put(number, digest));
        }
        self.known.digest = Some(content.finish());
        Ok(std::mem::take(&mut self.known))
    }
}
