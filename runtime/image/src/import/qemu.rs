//! QEMU: the memory of a migration file that was written with the capability `mapped-ram`.
//!
//! Such a file is a migration stream in which each block of RAM is followed by a header that says where its pages lie, and
//! where the bitmap of those that were written. What else is in the stream (devices, the configuration) is skipped, not parsed:
//! the section `ram` is looked for by how it begins.
//!
//! # Context: control plane; allocates, and waits for files

use super::bytes::Bytes;
use crate::error::{Error, Result};
use crate::extent_map::{Builder, EXTENT_PAGES, PAGE_SIZE, Source};
use crate::image::Image;
use crate::layer::Layer;
use crate::region::{Prot, Region};
use std::path::Path;

const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;
/// How a section begins.
const SECTION_START: u8 = 1;
/// The low bits of the first word of the section: the list of blocks follows.
const RAM_SAVE_FLAG_MEM_SIZE: u64 = 4;
const HEADER_VERSION: u32 = 1;
/// In how many bytes from the front the section must begin.
const LOOK: u64 = 1 << 20;
/// More blocks of RAM than this no machine has.
const BLOCKS_MAX: usize = 4096;
const WHAT: &str = "the section of RAM";
/// Pages of an address space.
const SPACE_PAGES: u64 = 1 << 44;

/// A block of RAM.
#[derive(Debug)]
struct Block {
    name: String,
    len_bytes: u64,
    /// `None`: its memory was not saved (shared, with `x-ignore-shared`).
    saved: Option<Saved>,
}

#[derive(Clone, Copy, Debug)]
struct Saved {
    bitmap: u64,
    pages: u64,
}

/// Opens the memory: a region for each block of RAM that was saved, by its name. Where the guest saw a block the file does not
/// say: regions lie at the addresses that they have in the image.
///
/// # Errors
/// [`Error::Corrupt`] names the byte; [`Error::Unsupported`]: another version, other pages, no `mapped-ram`. [`Error::Io`].
pub fn open(path: impl AsRef<Path>) -> Result<Image> {
    let layer = Layer::open(path)?;
    let blocks = blocks(&layer)?;
    let (mut at, mut regions, mut places) = (0u64, Vec::new(), Vec::new());
    for block in &blocks {
        let Some(saved) = block.saved else { continue };
        let first = at.next_multiple_of(EXTENT_PAGES);
        let nr = block.len_bytes / PAGE_SIZE as u64;
        if first >= SPACE_PAGES || nr >= SPACE_PAGES {
            return Err(layer.corrupt(WHAT, 0, format!("block `{}` ends past any address", block.name)));
        }
        let offset = first * PAGE_SIZE as u64;
        let prot = Prot::READ | Prot::WRITE | Prot::EXEC;
        regions.push(Region { name: block.name.clone(), address: offset, offset, len_bytes: block.len_bytes, prot });
        places.push((first, nr, saved));
        at = first + nr;
    }
    let mut map = Builder::new(at);
    for (first, nr, saved) in places {
        let bitmap = layer.read_vec("the bitmap of a block", saved.bitmap, nr.div_ceil(64) * 8, 1 << 30)?;
        let is_there = |p: u64| {
            let byte = bitmap.get((p / 8) as usize).copied().unwrap_or(0);
            // Words of the machine that wrote it, which is little-endian, as its bytes then are.
            byte & 1 << (p % 8) != 0
        };
        let mut p = 0;
        while p < nr {
            let from = p;
            while p < nr && is_there(p) == is_there(from) {
                p += 1;
            }
            if is_there(from) {
                let pos = saved.pages + from * PAGE_SIZE as u64;
                if saved.pages + p * PAGE_SIZE as u64 > layer.len_bytes() {
                    return Err(layer.corrupt("a block's pages", pos, "they end past the file"));
                }
                map.put(first + from..first + p, Source::Raw { layer: 0, pos });
            }
        }
    }
    Ok(Image::of_layers(vec![layer], map.build(), regions))
}

/// Finds the section and reads its list of blocks.
fn blocks(layer: &Layer) -> Result<Vec<Block>> {
    let unsupported = |what: String, why| Error::Unsupported { path: layer.path().into(), what, why };
    let head = layer.read_vec("the head of the stream", 0, layer.len_bytes().min(LOOK), LOOK as usize)?;
    let mut bytes = Bytes::new(layer, "the head of the stream", 0, &head);
    if bytes.u32_be()? != MAGIC {
        return Err(layer.corrupt("the head of the stream", 0, "it does not begin as a migration of QEMU's does"));
    }
    let version = bytes.u32_be()?;
    if version != VERSION {
        return Err(unsupported(format!("version {version} of the migration stream"), "version 3 is known"));
    }
    let Some(at) = section(&head) else {
        return Err(layer.corrupt("the head of the stream", 8, "no section `ram` begins in the first MiB"));
    };
    let rest = layer.read_vec(WHAT, at, (layer.len_bytes() - at).min(8), 8)?;
    let mut bytes = Bytes::new(layer, WHAT, at, &rest);
    let first = bytes.u64_be()?;
    let (mut left, mut pos) = (first & !(PAGE_SIZE as u64 - 1), at + 8);
    let mut blocks: Vec<Block> = Vec::new();
    while left > 0 {
        if blocks.len() >= BLOCKS_MAX {
            return Err(layer.corrupt(WHAT, pos, format!("more than {BLOCKS_MAX} blocks")));
        }
        let (block, next) = block(layer, pos)?;
        if block.len_bytes > left {
            return Err(layer.corrupt(
                WHAT,
                pos,
                format!("block `{}` is larger than what is left of the RAM", block.name),
            ));
        }
        left -= block.len_bytes;
        pos = next;
        blocks.push(block);
    }
    Ok(blocks)
}

/// Returns where the contents of the section `ram` begin.
fn section(head: &[u8]) -> Option<u64> {
    // Start, number (4), length of the name, name, instance 0, version 4.
    const TAIL: &[u8] = b"\x03ram\0\0\0\0\0\0\0\x04";
    let len = 1 + 4 + TAIL.len();
    let is_one = |w: &[u8]| w.first() == Some(&SECTION_START) && w.get(5..) == Some(TAIL);
    let at = head.windows(len + 8).skip(8).position(|w| {
        let flags = w.get(len..).map(|f| f.iter().fold(0u64, |n, b| n << 8 | u64::from(*b))).unwrap_or(0);
        w.get(..len).is_some_and(is_one) && flags & (PAGE_SIZE as u64 - 1) == RAM_SAVE_FLAG_MEM_SIZE
    })?;
    Some((8 + at + len) as u64)
}

/// Reads one block's name, length and header; returns where the next one begins.
fn block(layer: &Layer, pos: u64) -> Result<(Block, u64)> {
    let unsupported = |what: String, why| Error::Unsupported { path: layer.path().into(), what, why };
    let bytes = layer.read_vec(WHAT, pos, layer.len_bytes().saturating_sub(pos).min(512), 512)?;
    let mut bytes = Bytes::new(layer, WHAT, pos, &bytes);
    let nr = usize::from(bytes.u8()?);
    let name = String::from_utf8(bytes.take(nr)?.to_vec()).map_err(|_| bytes.corrupt("a block's name is not UTF-8"))?;
    let len_bytes = bytes.u64_be()?;
    if len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_SIZE as u64) {
        return Err(bytes.corrupt(format!("block `{name}` has {len_bytes} bytes, which are no pages")));
    }
    let (mut version, mut page_size) = (bytes.u32_be()?, bytes.u64_be()?);
    if (version, page_size) != (HEADER_VERSION, PAGE_SIZE as u64)
        && let Some(mut later) = bytes.ahead(-4)
        && let (Ok(v), Ok(size)) = (later.u32_be(), later.u64_be())
        && (v, size) == (HEADER_VERSION, PAGE_SIZE as u64)
    {
        // With `x-ignore-shared` the block's address comes first: the header begins eight bytes later, of which four were read.
        (version, page_size, bytes) = (v, size, later);
    }
    let (bitmap, pages) = (bytes.u64_be()?, bytes.u64_be()?);
    if version != HEADER_VERSION {
        let why = "save it with `migrate_set_capability mapped-ram on`, and without others";
        return Err(unsupported(format!("block `{name}`: version {version} of `mapped-ram`, or none of it"), why));
    }
    if page_size != PAGE_SIZE as u64 {
        return Err(unsupported(format!("block `{name}`: pages of {page_size} bytes"), "images have pages of 4096"));
    }
    if bitmap == 0 && pages == 0 {
        let next = bytes.pos();
        return Ok((Block { name, len_bytes, saved: None }, next));
    }
    let next = pages.checked_add(len_bytes);
    let Some(next) = next.filter(|_| bitmap < pages && pages.is_multiple_of(PAGE_SIZE as u64)) else {
        return Err(
            bytes.corrupt(format!("block `{name}`: its pages at {pages:#x} and bitmap at {bitmap:#x} are no places"))
        );
    };
    Ok((Block { name, len_bytes, saved: Some(Saved { bitmap, pages }) }, next))
}
