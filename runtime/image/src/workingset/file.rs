//! A working set in a file. Everything is little-endian.
//!
//! ```text
//! 0     header, 96 bytes
//!       windows, one after the other:
//!         {from: u64, to: u64, pieces: u32, 0: u32}     the time, in nanoseconds
//!         pieces, in order: {high: u32, bytes: u32}     the upper 32 bits of the numbers of units
//!           a roaring bitmap of their lower 32 bits, as its specification says, without run containers
//! end   32 bytes of BLAKE3 over everything before
//! ```
//! A unit is so many pages as the resolution says. Without run containers no bitmap takes more memory than its file has bytes.
//!
//! # Context: control plane; allocates, and waits for files

use super::set::{Resolution, WINDOWS_MAX, WorkingSet};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layer::Layer;
use roaring::{RoaringBitmap, RoaringTreemap};
use std::path::{Path, PathBuf};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the name of a file ends with.
pub const EXTENSION: &str = "sws";

const MAGIC: [u8; 8] = *b"\x89SWS\r\n\x1a\n";
const VERSION: u32 = 1;
/// A bitmap for each page of 16 TiB, and more, is less.
const FILE_MAX: usize = 1 << 30;
const DIGEST_SIZE: usize = 32;
/// How a bitmap begins that has no run containers.
const NO_RUNS: u32 = 12346;
const WHAT: &str = "a working set";

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    /// Pages of a unit.
    resolution: U32,
    /// Bits that who does not know them refuses: none.
    required: U64,
    content: Digest,
    image_pages: U64,
    len_bytes: U64,
    windows: U32,
    recordings: U32,
    zero: [u8; 16],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WindowAt {
    from: U64,
    to: U64,
    pieces: U32,
    zero: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PieceAt {
    high: U32,
    bytes: U32,
}

const _: () = assert!(size_of::<Header>() == 96 && size_of::<WindowAt>() == 24 && size_of::<PieceAt>() == 8);

/// Returns what the set of contents is called in the folder of an image.
fn path_beside(image: &Path, content: &Digest) -> PathBuf {
    durable::folder(image).join(format!("{content}.{EXTENSION}"))
}

impl WorkingSet {
    /// Reads a set from a file.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Digest`], [`Error::Unsupported`], [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let layer = Layer::open(path)?;
        let bytes = layer.read_vec(WHAT, 0, layer.len_bytes(), FILE_MAX)?;
        decode(&bytes, path)
    }

    /// Returns the file in the folder of an image where the set of its contents is looked for.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: the image has no content digest.
    pub fn path_beside(image: &Image) -> Result<PathBuf> {
        let none = || {
            let (what, why) = ("a working set of an image without a content digest", "write a sidecar of digests");
            Error::Unsupported { path: image.path().into(), what: what.into(), why }
        };
        image.content_digest().map(|content| path_beside(image.path(), &content)).ok_or_else(none)
    }

    /// Reads the set of an image's contents, if there is one in the image's folder.
    ///
    /// # Errors
    /// As [`WorkingSet::open`]; [`Error::Mixed`]: the file of that name is of other contents.
    pub fn find(image: &Image) -> Result<Option<Self>> {
        let Some(path) = image.content_digest().map(|content| path_beside(image.path(), &content)) else {
            return Ok(None);
        };
        let set = match Self::open(path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            set => set?,
        };
        set.check_is_of(image).map(|()| Some(set))
    }

    /// Writes the set into a file, in place of what is there: it has one or the other, whatever happens meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes = encode(self).map_err(Error::io("encode", path))?;
        durable::replace(path, &bytes)
    }

    /// Writes the set into the folder of an image, where [`WorkingSet::find`] finds it. Returns the file.
    ///
    /// # Errors
    /// [`Error::Mixed`]: it is of other contents. [`Error::Io`].
    pub fn save_beside(&self, image: &Image) -> Result<PathBuf> {
        self.check_is_of(image)?;
        let path = path_beside(image.path(), &self.content);
        self.save(&path).map(|()| path)
    }
}

fn encode(set: &WorkingSet) -> std::io::Result<Vec<u8>> {
    let mut header = Header {
        magic: MAGIC,
        version: U32::new(VERSION),
        resolution: U32::new(set.resolution.pages() as u32),
        required: U64::ZERO,
        content: set.content,
        image_pages: U64::new(set.image_pages),
        len_bytes: U64::ZERO,
        windows: U32::new(set.windows.len() as u32),
        recordings: U32::new(set.recordings),
        zero: [0; 16],
    };
    let mut bytes = header.as_bytes().to_vec();
    for window in &set.windows {
        let (from, to) = (U64::new(window.time_ns.start), U64::new(window.time_ns.end));
        let pieces = U32::new(window.units.bitmaps().count() as u32);
        bytes.extend_from_slice(WindowAt { from, to, pieces, zero: U32::ZERO }.as_bytes());
        for (high, bitmap) in window.units.bitmaps() {
            let mut bitmap = bitmap.clone();
            bitmap.remove_run_compression();
            let len = U32::new(bitmap.serialized_size() as u32);
            bytes.extend_from_slice(PieceAt { high: U32::new(high), bytes: len }.as_bytes());
            bitmap.serialize_into(&mut bytes)?;
        }
    }
    header.len_bytes = U64::new((bytes.len() + DIGEST_SIZE) as u64);
    if let Some(front) = bytes.get_mut(..size_of::<Header>()) {
        front.copy_from_slice(header.as_bytes());
    }
    let digest = Digest::of(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    Ok(bytes)
}

/// Reads a set out of the bytes of a file, which is named in errors.
fn decode(all: &[u8], path: &Path) -> Result<WorkingSet> {
    let corrupt =
        |offset: usize, why: String| Error::Corrupt { path: path.into(), what: WHAT, offset: offset as u64, why };
    let header = verified(all, path)?;
    let resolution = Resolution::of_pages(header.resolution.get());
    let Some(resolution) = resolution else {
        return Err(corrupt(12, format!("a resolution of {} pages", header.resolution)));
    };
    if header.image_pages.get() > 1 << 48 || header.windows.get() as usize > WINDOWS_MAX {
        let why = format!("{} pages in {} windows are none of an image", header.image_pages, header.windows);
        return Err(corrupt(56, why));
    }
    let mut set = WorkingSet::new(header.content, header.image_pages.get(), resolution);
    set.recordings = header.recordings.get();
    let body = all.get(size_of::<Header>()..all.len() - DIGEST_SIZE).unwrap_or_default();
    let mut rest = body;
    let at = |rest: &[u8]| size_of::<Header>() + body.len() - rest.len();
    let mut seen = RoaringTreemap::new();
    for _ in 0..header.windows.get() {
        let here = at(rest);
        let (window, units) = window(&mut rest).map_err(|why| corrupt(here, why))?;
        if !units.is_disjoint(&seen) {
            return Err(corrupt(here, "a page is in two windows".into()));
        }
        seen |= &units;
        let time = window.from.get()..window.to.get();
        set.push_new(time, units).map_err(|e| corrupt(here, e.to_string()))?;
    }
    if !rest.is_empty() {
        return Err(corrupt(at(rest), "something follows the last window".into()));
    }
    Ok(set)
}

/// Checks a file's ends and its digest; returns its header.
fn verified(all: &[u8], path: &Path) -> Result<Header> {
    let corrupt = |why: &str| Error::Corrupt { path: path.into(), what: WHAT, offset: 0, why: why.into() };
    let Ok((header, _)) = Header::read_from_prefix(all) else { return Err(corrupt("it is cut short")) };
    if header.magic != MAGIC {
        return Err(corrupt("it does not begin as a working set does"));
    }
    let unsupported = |what: String| {
        let why = "it was written by a later version; read it with that one";
        Err(Error::Unsupported { path: path.into(), what, why })
    };
    if header.version.get() != VERSION {
        return unsupported(format!("version {} of working sets", header.version));
    }
    if header.len_bytes.get() != all.len() as u64 {
        return Err(corrupt("it is not as long as it says"));
    }
    let split = all.len().checked_sub(DIGEST_SIZE).filter(|at| *at >= size_of::<Header>());
    let Some((front, wanted)) = split.and_then(|at| all.split_at_checked(at)) else {
        return Err(corrupt("it is cut short"));
    };
    let (wanted, found) = (Digest::read_from_bytes(wanted).unwrap_or_default(), Digest::of(front));
    if wanted != found {
        return Err(Error::Digest { path: path.into(), what: WHAT, offset: 0, wanted, found });
    }
    if header.required.get() != 0 {
        return unsupported(format!("feature {:#x} of working sets", header.required));
    }
    Ok(header)
}

/// Takes one window off the front of `rest`.
fn window(rest: &mut &[u8]) -> Result<(WindowAt, RoaringTreemap), String> {
    let window: WindowAt = take(rest)?;
    let (mut pieces, mut last) = (Vec::new(), None);
    for _ in 0..window.pieces.get() {
        let piece: PieceAt = take(rest)?;
        let (high, len) = (piece.high.get(), piece.bytes.get() as usize);
        if last.is_some_and(|last| high <= last) {
            return Err("pieces are out of order".into());
        }
        last = Some(high);
        let Some((bytes, behind)) = rest.split_at_checked(len) else { return Err("a bitmap is cut short".into()) };
        *rest = behind;
        if bytes.first_chunk().is_none_or(|head| u32::from_le_bytes(*head) != NO_RUNS) {
            return Err("a bitmap is none, or has run containers".into());
        }
        let mut left = bytes;
        let bitmap = RoaringBitmap::deserialize_from(&mut left).map_err(|e| format!("a bitmap is none: {e}"))?;
        if !left.is_empty() || bitmap.is_empty() {
            return Err("a bitmap is shorter than it says, or empty".into());
        }
        pieces.push((high, bitmap));
    }
    Ok((window, RoaringTreemap::from_bitmaps(pieces)))
}

fn take<T: FromBytes>(rest: &mut &[u8]) -> Result<T, String> {
    let (value, behind) = T::read_from_prefix(rest).map_err(|_| "it is cut short".to_owned())?;
    *rest = behind;
    Ok(value)
}
