//! What identifies bytes: BLAKE3, over tables, stored frames, groups of raw pages, and logical content.
//!
//! Two digests of an image answer two questions. The *file digest* says that this is the very file that was written: it covers
//! the header, which names the root over every table, which name the digests of everything stored. The *content digest* says
//! that two images hold equal memory, whatever their layout, their codecs and their parents: it covers the pages that are not
//! zero, by their place, and nothing else.
//!
//! # Context: control plane; allocates

use crate::extent_map::{EXTENT_PAGES, PAGE_SIZE};
use std::fmt;
use std::str::FromStr;
use zerocopy::IntoBytes;

/// Bytes of raw data that are verified together: a page costs one digest of this much.
pub const GROUP_SIZE: usize = 16 << 10;
/// Pages of a group.
pub const GROUP_PAGES: u64 = (GROUP_SIZE / PAGE_SIZE) as u64;
/// Groups of an extent.
pub(crate) const EXTENT_GROUPS: u64 = EXTENT_PAGES / GROUP_PAGES;

/// 32 bytes of BLAKE3. Written as 64 hexadecimal digits.
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(transparent)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of nothing: what stands for a group that is all zero.
    pub const ZERO: Self = Self([0; 32]);

    /// Returns the digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Wraps 32 bytes that are a digest already.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no digest: not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotADigest);
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = text.get(2 * i..2 * i + 2).and_then(|t| u8::from_str_radix(t, 16).ok()).ok_or(NotADigest)?;
        }
        Ok(Self(bytes))
    }
}

/// Returns whether every byte is zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Words of a fixed number at a time: the compiler makes vectors of it.
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|w| w.iter().fold(0, |a, b| a | b) == 0) && rest.iter().all(|b| *b == 0)
}

/// Returns the digest of one group of logical pages, of which the last may be missing; zero ones have [`Digest::ZERO`].
///
/// What is missing at the end of an image counts as zero, so that an image and the same one with zeros behind it differ in
/// nothing but their length.
#[must_use]
pub fn group(bytes: &[u8]) -> Digest {
    if is_zero(bytes) {
        return Digest::ZERO;
    }
    if bytes.len() == GROUP_SIZE {
        return Digest::of(bytes);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(bytes);
    hasher.update([0; GROUP_SIZE].get(bytes.len()..).unwrap_or_default());
    Digest(*hasher.finalize().as_bytes())
}

/// Makes the content digest from the digests of the groups, in order.
///
/// ```text
/// content = BLAKE3(context, pages, {number, digest} of each extent that is not zero)
/// extent  = BLAKE3(digests of its 128 groups)
/// group   = BLAKE3(16 KiB); all zero: 32 zero bytes, and no extent of such groups alone counts
/// ```
#[derive(Debug)]
pub struct Content {
    root: blake3::Hasher,
    /// The extent that is being added: its number, and the digests of its groups.
    number: u64,
    extent: Vec<Digest>,
    next: u64,
}

/// Keeps these digests apart from any other use of BLAKE3.
const CONTEXT: &str = "softfault 2026 content of an image of memory";

impl Content {
    /// Begins with an image of so many pages.
    #[must_use]
    pub fn new(nr_pages: u64) -> Self {
        let mut root = blake3::Hasher::new_derive_key(CONTEXT);
        root.update(&nr_pages.to_le_bytes());
        Self { root, number: 0, extent: Vec::new(), next: 0 }
    }

    /// Adds the next group.
    pub fn add(&mut self, group: &Digest) {
        self.put(self.next, group);
    }

    /// Adds group `number`, which lies behind those that were added: what was passed over is zero.
    pub fn put(&mut self, number: u64, group: &Digest) {
        self.next = number + 1;
        if *group == Digest::ZERO {
            return;
        }
        if self.number != number / EXTENT_GROUPS {
            self.end_extent();
            self.number = number / EXTENT_GROUPS;
        }
        self.extent.resize(EXTENT_GROUPS as usize, Digest::ZERO);
        if let Some(slot) = self.extent.get_mut((number % EXTENT_GROUPS) as usize) {
            *slot = *group;
        }
    }

    fn end_extent(&mut self) {
        if !self.extent.is_empty() {
            self.root.update(&self.number.to_le_bytes());
            self.root.update(blake3::hash(self.extent.as_bytes()).as_bytes());
        }
        self.extent.clear();
    }

    /// Returns the digest of everything that was added.
    #[must_use]
    pub fn finish(mut self) -> Digest {
        self.end_extent();
        Digest(*self.root.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_written_and_read() {
        let d = Digest::of(b"softfault");
        assert_eq!(d.to_string().parse(), Ok(d));
        assert_eq!(d.to_string().len(), 64);
        for bad in ["", "0", &"g".repeat(64), &"0".repeat(63), &"é".repeat(32)] {
            assert_eq!(bad.parse::<Digest>(), Err(NotADigest), "{bad}");
        }
    }

    #[test]
    fn the_zero_look_sees_every_byte() {
        let mut bytes = vec![0u8; 200];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in 0..bytes.len() {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
    }

    #[test]
    fn zeros_at_the_end_of_a_group_are_no_content() {
        let mut whole = vec![0u8; GROUP_SIZE];
        whole[5] = 7;
        assert_eq!(group(&whole), group(&whole[..PAGE_SIZE]));
        assert_eq!(group(&whole[PAGE_SIZE..]), Digest::ZERO);
    }

    #[test]
    fn content_is_told_apart_by_place_value_and_length() {
        let of = |nr_pages: u64, at: usize, value: u8| {
            let mut content = Content::new(nr_pages);
            for g in 0..nr_pages.div_ceil(GROUP_PAGES) as usize {
                content.add(&if g == at { Digest::of(&[value]) } else { Digest::ZERO });
            }
            content.finish()
        };
        let all = [of(2048, 0, 1), of(2048, 0, 2), of(2048, 1, 1), of(2048, 300, 1), of(4096, 0, 1), of(2048, 9999, 0)];
        for (i, a) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|b| a != b), "digest {i} is another's, too");
        }
    }
}
