//! What an image is of: ranges of somebody's address space.
//!
//! # Context: control plane

use crate::extent_map::PAGE_SIZE;
use std::fmt;
use std::ops::BitOr;

/// What may be done with a region's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Prot(u32);

impl Prot {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Loads.
    pub const READ: Self = Self(1);
    /// Stores.
    pub const WRITE: Self = Self(2);
    /// Instructions.
    pub const EXEC: Self = Self(4);

    /// Returns it from bits, of which those that mean nothing are dropped.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & 7)
    }

    /// Returns the bits: those of mmap(2).
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Returns whether all of `other` is permitted.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Prot {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is = |p, c| if self.contains(p) { c } else { '-' };
        write!(f, "{}{}{}", is(Self::READ, 'r'), is(Self::WRITE, 'w'), is(Self::EXEC, 'x'))
    }
}

/// A range of memory, and where its pages are in the image.
///
/// Between the regions of an image there may be pages that belong to none: they are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it is called; unique in the image if it is not empty.
    pub name: String,
    /// Where it was, in bytes.
    pub address: u64,
    /// Where it begins in the image, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// What was permitted there.
    pub prot: Prot,
}

impl Region {
    /// Says what is wrong with a region of an image of so many bytes, which comes after `last`.
    pub(crate) fn check(&self, image_bytes: u64, last: Option<&Self>) -> Result<(), String> {
        let page = PAGE_SIZE as u64;
        if [self.address, self.offset, self.len_bytes].iter().any(|n| !n.is_multiple_of(page)) || self.len_bytes == 0 {
            return Err(format!("region `{}` is not of whole pages", self.name));
        }
        let end = self.offset.checked_add(self.len_bytes);
        if end.is_none_or(|end| end > image_bytes) || self.address.checked_add(self.len_bytes).is_none() {
            return Err(format!("region `{}` ends past the image, or past the last address", self.name));
        }
        if last.is_some_and(|last| last.offset + last.len_bytes > self.offset) {
            return Err(format!("region `{}` overlaps the one before, or is out of order", self.name));
        }
        Ok(())
    }

    /// Returns its pages in the image.
    #[must_use]
    pub fn pages(&self) -> std::ops::Range<u64> {
        let page = PAGE_SIZE as u64;
        self.offset / page..(self.offset + self.len_bytes) / page
    }
}
