//! CRIU: the memory of one process of a dump.
//!
//! `mm-PID.img` has the mappings, `pagemap-PID.img` says of which pages there is data, and `pages-ID.img` has it, page after page
//! in the order of the pagemap. A page may be `in_parent`: then the folder `parent` of the dump has it, or that one's parent.
//!
//! # Context: control plane; allocates, and waits for files

use super::bytes::{Bytes, Field};
use crate::error::{Error, Result};
use crate::extent_map::{Builder, EXTENT_PAGES, ExtentMap, PAGE_SIZE, Source};
use crate::image::Image;
use crate::layer::Layer;
use crate::region::{Prot, Region};
use std::path::{Path, PathBuf};

/// How every image file of a dump begins.
const COMMON_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;
const MM_MAGIC: u32 = 0x5749_2820;

const PE_PARENT: u64 = 1;
const PE_PRESENT: u64 = 4;

/// Larger files of descriptions than this no process has.
const IMG_MAX: usize = 1 << 30;
/// Pages of an address space.
const SPACE_PAGES: u64 = 1 << 51;

/// Opens the memory of process `pid` of the dump in `folder`: a region for each of its private anonymous mappings, and, since what
/// else a mapping shows is in its file, or in other files of the dump, for each run of pages of the others that is in the dump.
///
/// # Errors
/// [`Error::Corrupt`] names the file and the byte; [`Error::Unsupported`] of what newer versions of CRIU write (compressed
/// pages); [`Error::Io`].
pub fn open(folder: impl AsRef<Path>, pid: u32) -> Result<Image> {
    let folder = folder.as_ref();
    let mut layers = Vec::new();
    let mut memory = Builder::new(SPACE_PAGES);
    for folder in chain(folder)?.iter().rev() {
        add_dump(folder, pid, &mut layers, &mut memory)?;
    }
    let mappings = mappings(&Layer::open(folder.join(format!("mm-{pid}.img")))?)?;
    let (regions, map) = lay_out(&mappings, &memory);
    Ok(Image::of_layers(layers, map, regions))
}

/// Returns the dump and its parents, the newest first, each by its real path.
fn chain(folder: &Path) -> Result<Vec<PathBuf>> {
    let real = |path: &Path| path.canonicalize().map_err(Error::io("find the folder", path));
    let mut chain = vec![real(folder)?];
    loop {
        let parent = chain.last().map(|last| last.join("parent")).unwrap_or_default();
        if parent.symlink_metadata().is_err() {
            return Ok(chain);
        }
        let next = real(&parent)?;
        if chain.contains(&next) {
            let why = "it is the parent of itself".to_owned();
            return Err(Error::Corrupt { path: parent, what: "the chain of parents", offset: 0, why });
        }
        chain.push(next);
    }
}

/// Reads a file of descriptions: its magic, and each message.
fn messages(
    layer: &Layer,
    what: &'static str,
    magic: u32,
    mut f: impl FnMut(usize, Bytes<'_>) -> Result<()>,
) -> Result<()> {
    let all = layer.read_vec(what, 0, layer.len_bytes(), IMG_MAX)?;
    let mut bytes = Bytes::new(layer, what, 0, &all);
    for wanted in [COMMON_MAGIC, magic] {
        let found = bytes.u32_le()?;
        if found != wanted {
            return Err(layer.corrupt(what, 0, format!("it begins with {found:#x}, and not with {wanted:#x}")));
        }
    }
    for nr in 0.. {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.u32_le()? as usize;
        let start = bytes.pos();
        f(nr, Bytes::new(layer, what, start, bytes.take(len)?))?;
    }
    Ok(())
}

/// Puts one dump's pages over those of its parents.
fn add_dump(folder: &Path, pid: u32, layers: &mut Vec<Layer>, memory: &mut Builder) -> Result<()> {
    const WHAT: &str = "the pagemap";
    let pagemap = Layer::open(folder.join(format!("pagemap-{pid}.img")))?;
    let Ok(number) = u16::try_from(layers.len()) else {
        return Err(pagemap.corrupt(WHAT, 0, "there are more than 65,535 dumps"));
    };
    // What the dump says nothing of is not in it, whatever a parent has.
    let mut whole = Builder::new(SPACE_PAGES);
    let (mut pages, mut pos): (Option<Layer>, u64) = (None, 0);
    let mut last_end = 0;
    messages(&pagemap, WHAT, PAGEMAP_MAGIC, |nr, mut message| {
        if nr == 0 {
            let id = pages_id(&mut message)?;
            pages = Some(Layer::open(folder.join(format!("pages-{id}.img")))?);
            return Ok(());
        }
        let entry = Entry::read(&mut message)?;
        let range = entry.pages(&message)?;
        if range.start < last_end {
            return Err(message.corrupt(format!("{:#x} is out of order", entry.vaddr)));
        }
        last_end = range.end;
        if entry.flags & PE_PRESENT != 0 {
            let len = (range.end - range.start) * PAGE_SIZE as u64;
            if pages.as_ref().is_none_or(|p| pos + len > p.len_bytes()) {
                return Err(message.corrupt(format!("{len} bytes at {pos} are past the end of the pages' file")));
            }
            whole.put(range, Source::Raw { layer: number, pos });
            pos += len;
        } else if entry.flags & PE_PARENT != 0 {
            for (at, nr, source) in memory.pieces_in(range) {
                whole.put(at..at + nr, source);
            }
        }
        Ok(())
    })?;
    let Some(pages) = pages else { return Err(pagemap.corrupt(WHAT, 8, "it has no head")) };
    layers.push(pages);
    *memory = whole;
    Ok(())
}

fn pages_id(message: &mut Bytes<'_>) -> Result<u64> {
    while !message.is_empty() {
        if let (1, Field::Number(id)) = message.field()? {
            return Ok(id);
        }
    }
    Err(message.corrupt("the head names no file of pages"))
}

/// An entry of a pagemap.
#[derive(Debug, Default)]
struct Entry {
    vaddr: u64,
    nr: u64,
    flags: u64,
}

impl Entry {
    fn read(message: &mut Bytes<'_>) -> Result<Self> {
        let (mut entry, mut compat, mut in_parent, mut flags) = (Self::default(), 0, false, None);
        while !message.is_empty() {
            match message.field()? {
                (1, Field::Number(n)) => entry.vaddr = n,
                (2, Field::Number(n)) => compat = n,
                (3, Field::Number(n)) => in_parent = n != 0,
                (4, Field::Number(n)) => flags = Some(n),
                (5, Field::Number(n)) => entry.nr = n,
                (field, _) => {
                    // A field that is not known may say how the pages are stored.
                    return Err(
                        message.corrupt(format!("field {field} of an entry is not known: compressed pages, perhaps"))
                    );
                }
            }
        }
        entry.nr = if entry.nr == 0 { compat } else { entry.nr };
        entry.flags = flags.unwrap_or(if in_parent { PE_PARENT } else { PE_PRESENT });
        Ok(entry)
    }

    fn pages(&self, message: &Bytes<'_>) -> Result<std::ops::Range<u64>> {
        let first = self.vaddr / PAGE_SIZE as u64;
        let end = first.checked_add(self.nr).filter(|end| *end <= SPACE_PAGES);
        match end {
            Some(end) if self.nr > 0 && self.vaddr.is_multiple_of(PAGE_SIZE as u64) => Ok(first..end),
            _ => Err(message.corrupt(format!("{} pages at {:#x} are no range of addresses", self.nr, self.vaddr))),
        }
    }
}

/// A mapping of the process.
#[derive(Debug)]
struct Mapping {
    start: u64,
    end: u64,
    prot: Prot,
    /// What kind it is; 0: not said.
    status: u64,
}

/// Bits of a mapping's status.
mod status {
    pub(super) const VSYSCALL: u64 = 1 << 2;
    pub(super) const ANON_PRIVATE: u64 = 1 << 9;
    pub(super) const VVAR: u64 = 1 << 12;
    pub(super) const GUARD: u64 = 1 << 16;
    pub(super) const UPROBES: u64 = 1 << 17;
    /// The kernel's own: at no address of the process's, or, as guards are, said once more behind all others.
    pub(super) const KERNELS: u64 = VSYSCALL | GUARD | UPROBES;
}

impl Mapping {
    /// Returns whether a page of which the dump has no data is zero. Of a file's, or of shared memory, it is elsewhere.
    fn is_whole(&self) -> bool {
        self.status == 0 || self.status & (status::ANON_PRIVATE | status::VVAR) == status::ANON_PRIVATE
    }

    /// Returns the pages that the dump knows.
    fn parts(&self, memory: &Builder) -> Vec<std::ops::Range<u64>> {
        let page = PAGE_SIZE as u64;
        let all = self.start / page..self.end / page;
        let mut parts: Vec<std::ops::Range<u64>> = Vec::new();
        for (at, nr, _) in memory.pieces_in(all.clone()) {
            match parts.last_mut() {
                Some(last) if last.end == at => last.end += nr,
                _ => parts.push(at..at + nr),
            }
        }
        // What has no rights and no data is address space that was reserved.
        if self.is_whole() && (self.prot != Prot::NONE || !parts.is_empty()) { vec![all] } else { parts }
    }
}

fn mappings(mm: &Layer) -> Result<Vec<Mapping>> {
    let mut list: Vec<Mapping> = Vec::new();
    messages(mm, "the mappings", MM_MAGIC, |_, mut message| {
        while !message.is_empty() {
            let (14, Field::Bytes(mut vma)) = message.field()? else { continue };
            let mut m = Mapping { start: 0, end: 0, prot: Prot::NONE, status: 0 };
            while !vma.is_empty() {
                match vma.field()? {
                    (1, Field::Number(n)) => m.start = n,
                    (2, Field::Number(n)) => m.end = n,
                    (5, Field::Number(n)) => m.prot = Prot::from_bits(n as u32),
                    (7, Field::Number(n)) => m.status = n,
                    _ => {}
                }
            }
            if m.status & status::KERNELS != 0 {
                continue;
            }
            let page = PAGE_SIZE as u64;
            let is_range = m.start < m.end && m.start.is_multiple_of(page) && m.end.is_multiple_of(page);
            if !is_range || m.end > SPACE_PAGES * page || list.last().is_some_and(|last| last.end > m.start) {
                return Err(vma.corrupt(format!("{:#x}..{:#x} is no mapping, or out of order", m.start, m.end)));
            }
            list.push(m);
        }
        Ok(())
    })?;
    Ok(list)
}

/// Gives each mapping a place in the image, where extents of the image are extents of the addresses.
fn lay_out(mappings: &[Mapping], memory: &Builder) -> (Vec<Region>, ExtentMap) {
    let page = PAGE_SIZE as u64;
    let (mut at, mut placed) = (0u64, Vec::new());
    for (m, pages) in mappings.iter().flat_map(|m| m.parts(memory).into_iter().map(move |pages| (m, pages))) {
        let first = at.next_multiple_of(EXTENT_PAGES) + pages.start % EXTENT_PAGES;
        at = first + (pages.end - pages.start);
        placed.push((first, pages, m.prot));
    }
    let mut map = Builder::new(at);
    let mut regions = Vec::new();
    for (first, pages, prot) in placed {
        for (p, nr, source) in memory.pieces_in(pages.clone()) {
            map.put(first + (p - pages.start)..first + (p - pages.start) + nr, source);
        }
        let (address, offset, len_bytes) = (pages.start * page, first * page, (pages.end - pages.start) * page);
        regions.push(Region { name: format!("{address:x}"), address, offset, len_bytes, prot });
    }
    (regions, map.build())
}
