//! The bytes of an `.sfi` file. Everything is little-endian.
//!
//! ```text
//! 0        header, 4 KiB; written last
//! 16 KiB   body: pages as they are (at multiples of 4 KiB), and stored frames (anywhere)
//! ...      tables, in blocks of 64 KiB, then the digests of those blocks, then of these, until one block is left
//! end      = the length that the header says
//!
//! header.digest   over the header: the file digest
//! header.root     over the last level: one block, whose digests are those of the blocks below, and so on to the tables
//! frames[i]       over a stored frame
//! groups[i]       over 16 KiB of the body, where pages lie as they are
//! ```
//! A table's entries are read out of a copy of a block that was verified, and checked against the header's bounds before they
//! are used. Numbers of blocks, entries, layers are bounded by the file's length before anything is allocated for them.
//!
//! # Context: control plane

use crate::digest::Digest;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// How such a file begins. The line ends and the high bit tell of a copy that was made as text.
pub(crate) const MAGIC: [u8; 8] = *b"\x89SFI\r\n\x1a\n";
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_SIZE: usize = 4096;
/// Where the body begins: a multiple of the group.
pub(crate) const BODY_START: u64 = 16 << 10;
pub(crate) const BLOCK_SIZE: usize = 64 << 10;
/// Digests in a block.
pub(crate) const FAN_OUT: usize = BLOCK_SIZE / 32;
pub(crate) const LEVELS_MAX: usize = 6;
pub(crate) const TABLES_MAX: usize = 16;

/// Bits of `required`: who does not know one refuses the file.
pub(crate) mod required {
    /// Frames that are stored by zstd.
    pub(crate) const ZSTD: u64 = 1 << 0;
    /// Pages lie in other files.
    pub(crate) const LAYERS: u64 = 1 << 1;
    /// All that this build knows.
    pub(crate) const KNOWN: u64 = ZSTD | LAYERS;
}

macro_rules! record {
    ($(#[$meta:meta])* $name:ident, $bytes:literal { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name { $($(#[$fmeta])* pub(crate) $field: $ty,)* }

        impl Record for $name {}

        const _: () = assert!(size_of::<$name>() == $bytes, "the record has another size than the format says");
    };
}

/// An entry of a table.
pub(crate) trait Record: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy {}

impl Record for Digest {}
impl Record for u8 {}

record! {
    /// Where a table lies.
    TableAt, 24 {
        kind: U32,
        /// Bytes of an entry.
        entry: U32,
        /// Where the first one begins, in the tables. An entry may lie across the border of two blocks.
        offset: U64,
        nr: U64,
    }
}

record! {
    /// The first page of the file. What is left of it is zero.
    Header, 4096 {
        magic: [u8; 8],
        version: U32,
        page_size: U32,
        required: U64,
        optional: U64,
        /// Pages of the image.
        nr_pages: U64,
        /// Bytes of the file.
        len_bytes: U64,
        /// Where the body ends.
        body_end: U64,
        /// Where level 0, the tables, begins; the others follow.
        levels_at: U64,
        /// Bytes of each level; those that there are not have none.
        levels: [U64; LEVELS_MAX],
        root: Digest,
        /// [`Digest::ZERO`]: it is not known.
        content: Digest,
        tables: [TableAt; TABLES_MAX],
        rest: [u8; 4096 - 592],
        /// Over everything before it.
        digest: Digest,
    }
}

/// The kinds of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Table {
    /// [`RegionAt`].
    Regions = 1,
    /// [`ExtentAt`], one an extent.
    Extents = 2,
    /// [`RunAt`].
    Runs = 3,
    /// [`FrameAt`].
    Frames = 4,
    /// A digest for each 16 KiB of the body from [`BODY_START`], then for those of raw layers.
    Groups = 5,
    /// A digest for each group of logical pages, 128 for each extent that is not all zero; none where they are not known.
    Content = 6,
    /// [`KeyAt`].
    Keys = 7,
    /// Bytes that others name.
    Bytes = 8,
    /// [`LayerAt`]: the other files; the first one is layer 1.
    Layers = 9,
}

impl Table {
    pub(crate) const ALL: [Self; 9] = [
        Self::Regions,
        Self::Extents,
        Self::Runs,
        Self::Frames,
        Self::Groups,
        Self::Content,
        Self::Keys,
        Self::Bytes,
        Self::Layers,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Regions => "the table of regions",
            Self::Extents => "the table of extents",
            Self::Runs => "the table of runs",
            Self::Frames => "the table of frames",
            Self::Groups => "the table of groups",
            Self::Content => "the table of contents",
            Self::Keys => "the table of keys",
            Self::Bytes => "the bytes of names and values",
            Self::Layers => "the table of layers",
        }
    }

    pub(crate) fn entry_size(self) -> usize {
        match self {
            Self::Regions => size_of::<RegionAt>(),
            Self::Extents => size_of::<ExtentAt>(),
            Self::Runs => size_of::<RunAt>(),
            Self::Frames => size_of::<FrameAt>(),
            Self::Groups | Self::Content => size_of::<Digest>(),
            Self::Keys => size_of::<KeyAt>(),
            Self::Bytes => 1,
            Self::Layers => size_of::<LayerAt>(),
        }
    }
}

record! {
    /// Bytes of [`Table::Bytes`].
    Span, 16 {
        offset: U64,
        len: U64,
    }
}

record! {
    RegionAt, 48 {
        name: Span,
        address: U64,
        /// Where it begins in the image, in bytes.
        offset: U64,
        len: U64,
        prot: U32,
        zero: U32,
    }
}

record! {
    /// An extent: its runs (none: all zero), and the digests of its groups.
    ExtentAt, 16 {
        first: U64,
        nr: U32,
        /// 0: all groups are zero, or nothing is known of them. Else the digests begin at 128 times one less, among
        /// [`Table::Content`].
        content: U32,
    }
}

record! {
    RunAt, 16 {
        /// In the extent.
        page: U16,
        nr: U16,
        kind: u8,
        zero: u8,
        layer: U16,
        /// Where the pages begin in the file, or `frame << 16 | page`.
        value: U64,
    }
}

impl RunAt {
    pub(crate) const ZERO: u8 = 0;
    pub(crate) const RAW: u8 = 1;
    pub(crate) const FRAME: u8 = 2;
}

record! {
    FrameAt, 56 {
        pos: U64,
        stored: U32,
        raw: U32,
        codec: u8,
        zero: [u8; 7],
        digest: Digest,
    }
}

record! {
    KeyAt, 32 {
        key: Span,
        value: Span,
    }
}

record! {
    LayerAt, 88 {
        /// Its file name, in the folder of this file.
        name: Span,
        /// [`LayerAt::SFI`], [`LayerAt::RAW`].
        kind: U32,
        zero: U32,
        /// Of an `.sfi`: the file digest. Of a raw file: zero.
        digest: Digest,
        len_bytes: U64,
        /// Of a raw file: its digests among [`Table::Groups`], from byte 0 of the file.
        first_group: U64,
        nr_groups: U64,
        /// Of a raw file without digests: when it was written last, in nanoseconds since 1970.
        mtime_ns: U64,
    }
}

impl LayerAt {
    pub(crate) const SFI: u32 = 1;
    pub(crate) const RAW: u32 = 2;
}

impl Header {
    /// Returns the digest of everything but the digest itself.
    pub(crate) fn own_digest(&self) -> Digest {
        let bytes = self.as_bytes();
        Digest::of(bytes.get(..HEADER_SIZE - 32).unwrap_or_default())
    }
}

/// Returns the bytes of each level above tables of `tables` bytes, the tables first.
pub(crate) fn levels(tables: u64) -> Vec<u64> {
    let mut levels = vec![tables];
    let mut len = tables;
    while len > BLOCK_SIZE as u64 {
        len = len.div_ceil(BLOCK_SIZE as u64) * 32;
        levels.push(len);
    }
    levels
}
