//! Writing an `.sfi` file: pages come in order, the tables at the end, the header last, and only then the name.
//!
//! # Context: control plane; allocates, and waits for files

mod body;
mod contents;
mod tables;

use crate::codec::{Codec, FRAME_MAX};
use crate::digest::{Digest, is_zero};
use crate::durable::{Temp, folder};
use crate::error::{Error, Result};
use crate::extent_map::{Builder, EXTENT_PAGES, ExtentMap, PAGE_SIZE, Source};
use crate::image::Image;
use crate::lease::Lease;
use crate::region::Region;
use crate::sfi::layout::{
    self, BLOCK_SIZE, BODY_START, FrameAt, HEADER_SIZE, Header, LEVELS_MAX, MAGIC, Table, required,
};
use body::Body;
use contents::Contents;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tables::Tables;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Makes an `.sfi` file: of a memory, or of what has changed since another image.
///
/// Pages are written in ascending order; those that never are, are zero, or the parent's. The file appears under its name when
/// [`Writer::finish`] has made everything durable, and not before. No file is ever replaced: another image may need it.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    temp: Temp,
    codec: Codec,
    frame_pages: usize,
    nr_pages: u64,
    next: u64,
    body: Body,
    frame: Frame,
    frames: Vec<FrameAt>,
    map: Builder,
    regions: Vec<Region>,
    keys: Vec<(String, Vec<u8>)>,
    parent: Option<Arc<Image>>,
    /// Nobody removes the parent's files while there is going to be a child of theirs.
    lease: Lease,
    contents: Contents,
    /// What the contents have to be.
    wanted: Option<Digest>,
}

/// Pages that will be one frame.
#[derive(Debug, Default)]
struct Frame {
    bytes: Vec<u8>,
    pages: Vec<u64>,
}

/// The longest image: what it costs without any data, 16 bytes for each 2 MiB, is two gigabytes.
const PAGES_MAX: u64 = 1 << 36;
impl Writer {
    /// Begins an image of `nr_pages` pages that will be called `path`.
    ///
    /// # Errors
    /// [`Error::Io`]: there is such a file, or no temporary file could be made in the folder.
    pub fn create(path: impl AsRef<Path>, nr_pages: u64) -> Result<Self> {
        Self::new(path.as_ref(), nr_pages, None)
    }

    /// Begins an image of what has changed since `parent`, whose pages it shares: the parent's files stay where they are, in the
    /// same folder, and are needed whenever this one is read. However long the chain, the map is flat.
    ///
    /// # Errors
    /// As [`Writer::create`]; [`Error::Argument`]: a file of the parent lies in another folder.
    pub fn over(path: impl AsRef<Path>, nr_pages: u64, parent: Arc<Image>) -> Result<Self> {
        Self::new(path.as_ref(), nr_pages, Some(parent))
    }

    fn new(path: &Path, nr_pages: u64, parent: Option<Arc<Image>>) -> Result<Self> {
        let op = "Writer::create";
        if nr_pages > PAGES_MAX {
            let why = "more than 256 TiB, which no process can map, are not saved";
            return Err(Error::Argument { op, arg: "nr_pages", value: nr_pages, why });
        }
        if path.symlink_metadata().is_ok() {
            let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(Error::Io { op: "create", path: path.into(), source: exists });
        }
        let mut map = Builder::new(nr_pages);
        let mut lease = Lease::default();
        if let Some(parent) = &parent {
            lease = parent.lease()?;
            if parent.nr_layers() >= usize::from(u16::MAX) {
                let value = parent.nr_layers() as u64;
                return Err(Error::Argument { op, arg: "parent", value, why: "65,535 layers are the most" });
            }
            // The parent's layers come behind the file itself.
            for run in parent.map()?.runs() {
                map.put(run.pages(), run.source.above(1));
            }
        }
        let temp = Temp::beside(path)?;
        let contents = Contents::new(nr_pages);
        let (codec, frame_pages) = (Codec::Raw, (64 << 10) / PAGE_SIZE);
        let body = Body::new();
        Ok(Self {
            path: path.into(),
            temp,
            codec,
            frame_pages,
            nr_pages,
            next: 0,
            body,
            frame: Frame::default(),
            frames: Vec::new(),
            map,
            regions: Vec::new(),
            keys: Vec::new(),
            parent,
            lease,
            contents,
            wanted: None,
        })
    }

    /// Compresses frames; default: [`Codec::Raw`]. A frame that would not become shorter is stored as it is.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// How many bytes are compressed together: whole pages, 64 KiB by default, 2 MiB at most. Whoever needs one page of a frame
    /// decodes all of it.
    #[must_use]
    pub fn frame_bytes(mut self, bytes: usize) -> Self {
        self.frame_pages = (bytes.min(FRAME_MAX) / PAGE_SIZE).max(1);
        self
    }

    /// Reads the parent's files that have no digests, and keeps digests of them: then this image can be verified whole.
    #[must_use]
    pub fn digest_parent(mut self) -> Self {
        self.contents.may_read = true;
        self
    }

    /// Has [`Writer::finish`] refuse other contents than those.
    #[must_use]
    pub(crate) fn expect_content(mut self, digest: Digest) -> Self {
        self.wanted = Some(digest);
        self
    }

    /// Takes over the regions of an image, and what is kept beside its memory.
    pub(crate) fn with_head_of(mut self, image: &Image) -> Result<Self> {
        image.regions().iter().try_for_each(|r| self.region(r.clone()))?;
        image.keys().iter().for_each(|(key, value)| self.key(key, value));
        Ok(self)
    }

    /// Adds a region; in the order of their pages.
    ///
    /// # Errors
    /// [`Error::Corrupt`] says what is wrong with it.
    pub fn region(&mut self, region: Region) -> Result<()> {
        let checked = region.check(self.nr_pages * PAGE_SIZE as u64, self.regions.last());
        checked.map_err(|why| Error::Corrupt {
            path: self.path.clone(),
            what: "a region that was asked for",
            offset: region.offset,
            why,
        })?;
        self.regions.push(region);
        Ok(())
    }

    /// Keeps a value beside the memory; a key that is there already gets another value.
    pub fn key(&mut self, key: &str, value: &[u8]) {
        match self.keys.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.keys.push((key.to_owned(), value.to_vec())),
        }
    }

    /// Writes whole pages from page `page` on, behind those that were written before. Pages that are zero take no room.
    ///
    /// # Errors
    /// [`Error::Argument`]: not in order, past the end, or not whole pages. [`Error::Io`]: the disk is full, and so on; then the
    /// writer can only be dropped, and nothing is left of it. Errors of the parent, where its pages complete what was written.
    pub fn write(&mut self, page: u64, bytes: &[u8]) -> Result<()> {
        self.put(page, bytes, false)
    }

    /// As [`Writer::write`], but pages that are zero are stored, too: so that what lies around them is one piece.
    pub(crate) fn write_whole(&mut self, page: u64, bytes: &[u8]) -> Result<()> {
        self.put(page, bytes, true)
    }

    fn put(&mut self, page: u64, bytes: &[u8], keeps_zeros: bool) -> Result<()> {
        let argument = |arg, value, why| Error::Argument { op: "Writer::write", arg, value, why };
        let (chunks, rest) = bytes.as_chunks::<PAGE_SIZE>();
        let end = page.saturating_add(chunks.len() as u64);
        if !rest.is_empty() {
            return Err(argument("bytes", bytes.len() as u64, "they are no whole pages"));
        }
        if page < self.next || end > self.nr_pages {
            return Err(argument("page", page, "pages are written in ascending order, and inside the image"));
        }
        if let Some(why) = self.codec.missing() {
            let what = format!("frames that are stored by {}", self.codec);
            return Err(Error::Unsupported { path: self.path.clone(), what, why });
        }
        for (p, bytes) in (page..end).zip(chunks) {
            self.contents.write(self.parent.as_deref(), p, bytes)?;
            if !keeps_zeros && is_zero(bytes) {
                if self.parent.is_some() {
                    self.map.put(p..p + 1, Source::Zero);
                }
                continue;
            }
            let goes_on = self.frame.pages.last().is_none_or(|last| last / EXTENT_PAGES == p / EXTENT_PAGES);
            if !goes_on || self.frame.pages.len() == self.frame_pages {
                self.end_frame()?;
            }
            self.frame.bytes.extend_from_slice(bytes);
            self.frame.pages.push(p);
        }
        self.next = end;
        Ok(())
    }

    /// Stores the pages that were gathered.
    fn end_frame(&mut self) -> Result<()> {
        let frame = std::mem::take(&mut self.frame);
        if frame.pages.is_empty() {
            return Ok(());
        }
        let mut stored = Vec::new();
        let number = u32::try_from(self.frames.len()).ok().filter(|_| self.codec.encode(&frame.bytes, &mut stored));
        let pos = self.body.add(&self.temp, if number.is_some() { &stored } else { &frame.bytes }, number.is_none())?;
        if number.is_some() {
            let (stored_len, raw) = (U32::new(stored.len() as u32), U32::new(frame.bytes.len() as u32));
            let (codec, digest) = (self.codec.code(), Digest::of(&stored));
            self.frames.push(FrameAt { pos: U64::new(pos), stored: stored_len, raw, codec, zero: [0; 7], digest });
        }
        let mut first = 0;
        for run in frame.pages.chunk_by(|a, b| a + 1 == *b) {
            let source = match number {
                Some(frame) => Source::Frame { layer: 0, frame, page: first as u16 },
                None => Source::Raw { layer: 0, pos: pos + (first * PAGE_SIZE) as u64 },
            };
            if let [page, ..] = run {
                self.map.put(*page..*page + run.len() as u64, source);
            }
            first += run.len();
        }
        self.frame = Frame { bytes: frame.bytes, pages: frame.pages };
        self.frame.bytes.clear();
        self.frame.pages.clear();
        Ok(())
    }

    /// Writes the tables and the header, makes everything durable, and gives the file its name. Returns the file digest.
    ///
    /// # Errors
    /// [`Error::Io`]: nothing has got the name, or what has got it meanwhile has it still.
    pub fn finish(self) -> Result<Digest> {
        self.finish_held().map(|(digest, _)| digest)
    }

    /// As [`Writer::finish`]; who collects leaves the file, and those that it needs, alone until the lease ends, though nothing
    /// names it yet.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    pub fn finish_held(mut self) -> Result<(Digest, Lease)> {
        self.end_frame()?;
        let body_end = self.body.end(&self.temp)?;
        let content = self.contents.finish(self.parent.as_deref())?;
        if let (Some(wanted), Some(found)) = (self.wanted.filter(|w| content.digest != Some(*w)), content.digest) {
            let path = self.path.clone();
            return Err(Error::Digest { path, what: "the contents", offset: 0, wanted, found });
        }
        let mut tables = Tables::new();
        let (map, below) = self.layers(&mut tables)?;
        tables.map(&map, &content.extents);
        tables.regions(&self.regions);
        tables.keys(&self.keys);
        tables.add(Table::Frames, self.frames.as_bytes(), self.frames.len());
        tables.add(Table::Content, content.groups.as_bytes(), content.groups.len());
        tables.end();
        let mut header = Header::new_zeroed();
        (header.magic, header.version) = (MAGIC, U32::new(layout::VERSION));
        header.page_size = U32::new(PAGE_SIZE as u32);
        let zstd = self.frames.iter().any(|f| f.codec == Codec::Zstd { level: 0 }.code());
        let required = if zstd { required::ZSTD } else { 0 } | if below { required::LAYERS } else { 0 };
        header.required = U64::new(required);
        header.nr_pages = U64::new(self.nr_pages);
        header.body_end = U64::new(body_end);
        header.content = content.digest.unwrap_or(Digest::ZERO);
        let levels_at = body_end.next_multiple_of(PAGE_SIZE as u64);
        header.levels_at = U64::new(levels_at);
        header.tables = tables.at;
        let mut at = levels_at;
        let mut level = tables.bytes;
        for len in &mut header.levels {
            *len = U64::new(level.len() as u64);
            self.temp.write_at(&level, at)?;
            at += level.len() as u64;
            let digests: Vec<Digest> = level.chunks(BLOCK_SIZE).map(Digest::of).collect();
            if let [root] = digests[..] {
                header.root = root;
                break;
            }
            level = digests.as_bytes().to_vec();
        }
        debug_assert!(header.root != Digest::ZERO, "{LEVELS_MAX} levels are enough for any image");
        header.len_bytes = U64::new(at);
        header.digest = header.own_digest();
        self.temp.write_at(header.as_bytes(), 0)?;
        let mut lease = std::mem::take(&mut self.lease);
        lease.hold_open(&self.path, self.temp.reopen()?)?;
        self.temp.name_new()?;
        Ok((header.digest, lease))
    }

    /// Writes the table of layers; returns the map by their final numbers, and whether there are any.
    fn layers(&mut self, tables: &mut Tables) -> Result<(ExtentMap, bool)> {
        let map = std::mem::replace(&mut self.map, Builder::new(0)).build();
        let mut used: Vec<u16> = map.runs().iter().filter_map(|r| r.source.layer()).filter(|l| *l > 0).collect();
        used.sort_unstable();
        used.dedup();
        let mut numbers = vec![0u16; used.last().map_or(1, |l| usize::from(*l) + 1)];
        let mut groups = std::mem::take(&mut self.body.groups);
        let mut records = Vec::new();
        for (to, from) in (1u16..).zip(&used) {
            let Some(parent) = &self.parent else { break };
            if let Some(slot) = numbers.get_mut(usize::from(*from)) {
                *slot = to;
            }
            let (below, mut digests) = parent.describe(from - 1)?;
            if self.contents.may_read && !below.is_sfi && digests.is_empty() {
                digests = parent.digest_layer(from - 1)?;
            }
            let is_beside = parent.layer_path(from - 1).is_some_and(|p| same_folder(p, &self.path));
            if !is_beside || below.name.is_empty() {
                let why = "a file of the parent lies in another folder than the image, or has no name that is UTF-8";
                return Err(Error::Argument { op: "Writer::finish", arg: "parent", value: u64::from(from - 1), why });
            }
            records.push(tables.layer(&below, groups.len() as u64, digests.len() as u64));
            groups.extend(digests);
        }
        tables.add(Table::Layers, records.as_bytes(), records.len());
        tables.add(Table::Groups, groups.as_bytes(), groups.len());
        Ok((Builder::over(&map, &numbers).build(), !records.is_empty()))
    }
}

fn same_folder(a: &Path, b: &Path) -> bool {
    folder(a) == folder(b) || matches!((folder(a).canonicalize(), folder(b).canonicalize()), (Ok(a), Ok(b)) if a == b)
}

const _: () = assert!(HEADER_SIZE as u64 <= BODY_START, "the header lies before the body");
