//! An open image: its regions, its map, and its pages.
//!
//! # Context: control plane; allocates, and waits for files

mod family;
mod verify;

pub(crate) use family::LayerId;

use crate::digest::{Content, Digest, EXTENT_GROUPS, GROUP_PAGES, GROUP_SIZE};
use crate::error::{Error, Result};
use crate::extent_map::{EXTENT_PAGES, ExtentMap, PAGE_SIZE, Run, Source};
use crate::integrity::Integrity;
use crate::layer::{Identity, Layer, RawAt};
use crate::raw;
use crate::region::Region;
use crate::sfi::Sfi;
use crate::slot::{File, Slot};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An image of memory, whatever its format.
///
/// It is opened once, and read from any number of threads, each with a [`Reader`]. Nothing is read but the header until it is
/// asked for, and files below the image are opened when the first page of theirs is: whoever reads an image of ten thousand files
/// needs as many descriptors, and raises `RLIMIT_NOFILE`, or has it compacted ([`ops::compact`](crate::ops::compact())).
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use softfault_image::{Image, PAGE_SIZE};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("memory.raw");
/// std::fs::write(&path, vec![7u8; 4 * PAGE_SIZE])?;
///
/// let image = Image::open(&path)?;
/// let mut page = vec![0; PAGE_SIZE];
/// image.reader().read(3, &mut page)?;
/// assert_eq!((image.nr_pages(), page[9]), (4, 7));
/// # Ok(())
/// # }
/// ```
pub struct Image {
    /// Layer 0 is the image's own file, if it has one.
    files: Vec<Slot>,
    map: Map,
    regions: Vec<Region>,
    keys: Vec<(String, Vec<u8>)>,
    nr_pages: u64,
    integrity: Integrity,
    /// One raw file: see [`Image::is_flat`].
    is_flat: bool,
}

#[derive(Debug)]
enum Map {
    Whole(ExtentMap),
    /// In the tables of layer 0.
    Tables,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path();
        f.debug_struct("Image").field("path", &path).field("nr_pages", &self.nr_pages).finish_non_exhaustive()
    }
}

impl Image {
    /// Opens an `.sfi` file, or else a raw image: one region at address 0, whose holes are zero. A file that is called `.sfi` is
    /// never taken for a raw one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Digest`] name what is wrong with the file; [`Error::Unsupported`]; [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let layer = Layer::open(&path)?;
        if !Sfi::is_one(&layer) {
            // Its first bytes were lost: a memory of tables would be read.
            if layer.path().extension().is_some_and(|e| e == "sfi") {
                return Err(layer.corrupt("the header", 0, "it does not begin as an .sfi file does"));
            }
            let (layers, map, regions) = raw::stack(vec![layer])?;
            return Ok(Self { is_flat: true, ..Self::of_layers(layers, map, regions) });
        }
        let sfi = Sfi::open(layer)?;
        let (regions, keys, below) = (sfi.regions()?, sfi.keys()?, sfi.below()?);
        let (nr_pages, own) = (sfi.nr_pages(), sfi.path().to_path_buf());
        let folder = own.parent().map(Path::to_path_buf).unwrap_or_default();
        let mut files = vec![Slot::open(File::Sfi(Box::new(sfi)), &own)];
        files.extend(below.into_iter().map(|b| {
            let path = folder.join(&b.name);
            Slot::late(path, b)
        }));
        let integrity = Integrity::default();
        Ok(Self { files, map: Map::Tables, regions, keys, nr_pages, integrity, is_flat: false })
    }

    /// Opens a raw image with sparse files over it, the oldest first: their data replaces what is below, their holes show it.
    /// So Firecracker's diff snapshots are, and QEMU's. Each file is as long as the image.
    ///
    /// # Errors
    /// As [`Image::open`]; [`Error::Corrupt`] where a diff is longer than the image.
    pub fn raw_stack(base: impl AsRef<Path>, diffs: &[impl AsRef<Path>]) -> Result<Self> {
        let all = std::iter::once(base.as_ref()).chain(diffs.iter().map(AsRef::as_ref));
        let layers = all.map(Layer::open).collect::<Result<Vec<_>>>()?;
        let (layers, map, regions) = raw::stack(layers)?;
        Ok(Self::of_layers(layers, map, regions))
    }

    /// Makes an image of files whose pages a map names: layer 0 is the first.
    pub(crate) fn of_layers(layers: Vec<Layer>, map: ExtentMap, regions: Vec<Region>) -> Self {
        let slot = |l: Layer| {
            let path = l.path().to_path_buf();
            Slot::open(File::Raw(l), &path)
        };
        let (nr_pages, files) = (map.nr_pages(), layers.into_iter().map(slot).collect());
        let integrity = Integrity::default();
        Self { files, map: Map::Whole(map), regions, keys: Vec::new(), nr_pages, integrity, is_flat: false }
    }

    /// The same image with other regions: who imports a raw file may know where it was.
    ///
    /// # Errors
    /// [`Error::Corrupt`] says what is wrong with the first one that is.
    pub fn with_regions(mut self, regions: Vec<Region>) -> Result<Self> {
        for (i, region) in regions.iter().enumerate() {
            let last = i.checked_sub(1).and_then(|i| regions.get(i));
            region.check(self.nr_pages * PAGE_SIZE as u64, last).map_err(|why| Error::Corrupt {
                path: self.path().to_path_buf(),
                what: "the regions that were asked for",
                offset: region.offset,
                why,
            })?;
        }
        self.regions = regions;
        Ok(self)
    }

    /// The same image, its bytes verified as often as `integrity` says.
    #[must_use]
    pub fn with_integrity(mut self, integrity: Integrity) -> Self {
        self.integrity = integrity;
        self
    }

    /// Returns the image's own file, or the oldest of a stack.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.files.first().map(|f| f.path.as_path()).unwrap_or_else(|| Path::new(""))
    }

    /// Returns the number of pages.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Returns what the image is of, in the order of its pages.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Returns what was kept beside the memory, by key, in order: the CPU, the VMM, the application's version.
    #[must_use]
    pub fn keys(&self) -> &[(String, Vec<u8>)] {
        &self.keys
    }

    /// Returns the value of a key.
    #[must_use]
    pub fn key(&self, key: &str) -> Option<&[u8]> {
        self.keys.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_slice())
    }

    /// Returns how often bytes are verified.
    #[must_use]
    pub fn integrity(&self) -> Integrity {
        self.integrity
    }

    fn own(&self) -> Option<&Sfi> {
        match self.files.first()?.if_open()? {
            File::Sfi(sfi) => Some(sfi),
            File::Raw(_) => None,
        }
    }

    /// Returns the digest of the file, which covers everything in it; `None`: the format has none.
    #[must_use]
    pub fn file_digest(&self) -> Option<Digest> {
        self.own().map(Sfi::file_digest)
    }

    /// Returns the digest of the memory, if the image knows it; [`Image::compute_content_digest`] finds it out.
    #[must_use]
    pub fn content_digest(&self) -> Option<Digest> {
        self.own().and_then(Sfi::content_digest)
    }

    /// Returns what the files below are known by: layers of raw files, which have no digests.
    ///
    /// # Errors
    /// [`Error::Io`]: one could not be opened.
    pub fn identities(&self) -> Result<Vec<(PathBuf, Identity)>> {
        let mut list = Vec::new();
        for slot in &self.files {
            if let File::Raw(layer) = slot.get()? {
                list.push((slot.path.clone(), layer.identity()));
            }
        }
        Ok(list)
    }

    /// Returns whether bytes of every layer have digests: else nothing may be called verified.
    ///
    /// # Errors
    /// As [`Image::identities`].
    pub fn is_verifiable(&self) -> Result<bool> {
        for slot in &self.files {
            let has = slot.below.as_ref().is_some_and(|b| !b.groups.is_empty() || b.len_bytes == 0);
            if matches!(slot.get()?, File::Raw(_)) && !has {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the runs of one extent, in order; `into` is emptied first.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Digest`]: the table is not what it should be.
    pub fn extent(&self, extent: u64, into: &mut Vec<Run>) -> Result<()> {
        match (&self.map, self.own()) {
            (Map::Whole(map), _) => {
                into.clear();
                into.extend_from_slice(map.extent(extent));
            }
            (Map::Tables, Some(sfi)) => {
                sfi.extent(extent, into)?;
                if let Some(run) =
                    into.iter().find(|r| r.source.layer().is_some_and(|l| usize::from(l) >= self.files.len()))
                {
                    return Err(sfi.layer().corrupt("a run", 0, format!("page {} names no layer", run.page)));
                }
            }
            (Map::Tables, None) => into.clear(),
        }
        if into.is_empty() && extent < self.nr_pages.div_ceil(EXTENT_PAGES) {
            into.push(ExtentMap::zeros(self.nr_pages, extent));
        }
        Ok(())
    }

    /// Returns the first extent from `from` on that may have data, or the first past the end: an address space is passed over
    /// at no cost.
    pub(crate) fn next_extent(&self, from: u64) -> u64 {
        match &self.map {
            Map::Whole(map) => map.next_extent(from),
            Map::Tables => from.min(self.nr_pages.div_ceil(EXTENT_PAGES)),
        }
    }

    /// Returns the whole map: a chain of layers is one map, whatever its length.
    ///
    /// # Errors
    /// As [`Image::extent`].
    pub fn map(&self) -> Result<ExtentMap> {
        if let Map::Whole(map) = &self.map {
            return Ok(map.clone());
        }
        let (mut map, mut runs) = (crate::extent_map::Builder::new(self.nr_pages), Vec::new());
        let mut nr_runs = 0;
        for extent in 0..self.nr_pages.div_ceil(EXTENT_PAGES) {
            self.extent(extent, &mut runs)?;
            nr_runs += runs.iter().filter(|r| r.source != Source::Zero).count() as u64;
            if let Some(sfi) = self.own().filter(|sfi| nr_runs > sfi.nr_runs()) {
                return Err(sfi.layer().corrupt("the table of extents", 0, "extents share their runs"));
            }
            runs.iter().for_each(|r| map.put(r.pages(), r.source));
        }
        Ok(map.build())
    }

    /// Reads, verifies and decodes a frame into `into`, which is made as long as the frame; `stored` is room for what is read.
    /// Who fills a cache publishes its pages together.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read_frame(&self, layer: u16, frame: u32, stored: &mut Vec<u8>, into: &mut Vec<u8>) -> Result<()> {
        let why = "a frame lies in no .sfi file";
        match self.files.get(usize::from(layer)).map(Slot::get).transpose()? {
            Some(File::Sfi(sfi)) => sfi.read_frame(frame, self.integrity, stored, into),
            _ => Err(Error::Argument { op: "Image::read_frame", arg: "layer", value: layer.into(), why }),
        }
    }

    /// Reads pages that lie as they are from byte `pos` of a layer on, verified as the image's [`Integrity`] says.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read_raw(&self, layer: u16, pos: u64, into: &mut [u8]) -> Result<()> {
        let Some(slot) = self.files.get(usize::from(layer)) else {
            let why = "the image has no such layer";
            return Err(Error::Argument { op: "Image::read_raw", arg: "layer", value: layer.into(), why });
        };
        match (slot.get()?, &slot.below, self.own()) {
            (File::Sfi(sfi), ..) => sfi.read_raw(pos, self.integrity, into),
            (File::Raw(file), Some(below), Some(own)) => own.read_below(file, below, pos, self.integrity, into),
            (File::Raw(file), ..) => file.read("pages", pos, into),
        }
    }

    /// Returns whether the image is one raw file, of which byte n is the memory's, and holes are zero.
    #[must_use]
    pub fn is_flat(&self) -> bool {
        self.is_flat
    }

    /// Returns the file in which pages lie as they are from byte `pos` of a layer on, and whether anybody knows their digests: for who
    /// maps it.
    ///
    /// # Errors
    /// As [`Image::read_raw`]: they are not there.
    pub fn raw_file(&self, layer: u16, pos: u64, len_bytes: u64) -> Result<(&std::fs::File, bool)> {
        let Some(slot) = self.files.get(usize::from(layer)) else {
            let why = "the image has no such layer";
            return Err(Error::Argument { op: "Image::raw_file", arg: "layer", value: layer.into(), why });
        };
        match (slot.get()?, &slot.below) {
            (File::Sfi(sfi), _) => sfi.holds_raw(pos, len_bytes).map(|file| (file, true)),
            (File::Raw(file), below) => {
                let has_digests = below.as_ref().is_some_and(|b| !b.groups.is_empty());
                RawAt::plain(file, pos, len_bytes).map(|at| (at.file, has_digests))
            }
        }
    }

    /// Returns where pages that lie as they are from byte `pos` of a layer on can be read, and what they have to be: for who reads
    /// them by other means than [`Image::read_raw`].
    ///
    /// # Errors
    /// As [`Image::read_raw`]: they are not there, or their digests are not.
    pub fn raw_at(&self, layer: u16, pos: u64, len_bytes: u64) -> Result<RawAt<'_>> {
        let Some(slot) = self.files.get(usize::from(layer)) else {
            let why = "the image has no such layer";
            return Err(Error::Argument { op: "Image::raw_at", arg: "layer", value: layer.into(), why });
        };
        match (slot.get()?, &slot.below, self.own()) {
            (File::Sfi(sfi), ..) => sfi.raw_at(pos, len_bytes),
            (File::Raw(file), Some(below), Some(own)) => own.below_at(file, below, pos, len_bytes),
            (File::Raw(file), ..) => RawAt::plain(file, pos, len_bytes),
        }
    }

    /// Returns how many bytes are read together at the least cost, as far as the image's own file says: a frame, the group that
    /// has one digest, or a page. A power of two.
    ///
    /// # Errors
    /// As [`Image::extent`].
    pub fn unit_bytes(&self) -> Result<usize> {
        let Some(own) = self.own() else { return Ok(PAGE_SIZE) };
        if own.nr_frames() > 0 {
            return own.frame_bytes(0).map(usize::next_power_of_two);
        }
        Ok(if self.integrity == Integrity::Trusted { PAGE_SIZE } else { GROUP_SIZE })
    }

    /// Returns who reads pages, on one thread.
    #[must_use]
    pub fn reader(&self) -> Reader<'_> {
        let (runs, stored, decoded) = (Vec::new(), Vec::new(), Vec::new());
        Reader { image: self, runs, extent: None, stored, frame: None, decoded }
    }

    /// Reads the whole image, and returns the digest of its memory.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn compute_content_digest(&self) -> Result<Digest> {
        let mut content = Content::new(self.nr_pages);
        self.each_group(0..self.nr_pages.div_ceil(GROUP_PAGES), |number, digest| content.put(number, &digest))?;
        Ok(content.finish())
    }

    /// Calls `f` with the digest of each group of logical pages that is not zero, in order: out of the tables, or else of the
    /// pages.
    pub(crate) fn each_group(&self, groups: Range<u64>, mut f: impl FnMut(u64, Digest)) -> Result<()> {
        if let Some(sfi) = self.own().filter(|sfi| sfi.content_digest().is_some()) {
            return sfi.each_content(groups, f);
        }
        self.read_groups(groups, &mut self.reader(), |number, digest| {
            f(number, digest);
            Ok(())
        })
    }

    /// Returns the digests of the groups of an extent, as far as the tables know them; past the end they are zero.
    pub(crate) fn known_groups(&self, extent: u64) -> Result<Option<Vec<Digest>>> {
        let Some(sfi) = self.own().filter(|sfi| sfi.content_digest().is_some()) else { return Ok(None) };
        let (first, mut digests) = (extent * EXTENT_GROUPS, vec![Digest::ZERO; EXTENT_GROUPS as usize]);
        sfi.each_content(first..first + EXTENT_GROUPS, |number, digest| {
            if let Some(slot) = digests.get_mut((number - first) as usize) {
                *slot = digest;
            }
        })?;
        Ok(Some(digests))
    }

    /// Reads the groups that the map does not call zero, and calls `f` with the digest of each that is not.
    fn read_groups(
        &self,
        groups: Range<u64>,
        reader: &mut Reader<'_>,
        mut f: impl FnMut(u64, Digest) -> Result<()>,
    ) -> Result<()> {
        let mut bytes = vec![0; GROUP_SIZE];
        let mut at = groups.start;
        while at < groups.end {
            at = at.max(self.next_extent(at / EXTENT_GROUPS).saturating_mul(EXTENT_GROUPS));
            if at >= groups.end {
                break;
            }
            let run = reader.run_at(at * GROUP_PAGES)?;
            if run.source == Source::Zero {
                // Whole groups that lie in the run; none may, and then the group is read.
                let end = run.page + run.nr;
                let end = if end == self.nr_pages { end.div_ceil(GROUP_PAGES) } else { end / GROUP_PAGES };
                if end > at {
                    at = end;
                    continue;
                }
            }
            let first = at * GROUP_PAGES;
            let nr = GROUP_PAGES.min(self.nr_pages - first) as usize;
            let bytes = bytes.get_mut(..nr * PAGE_SIZE).unwrap_or_default();
            reader.read(first, bytes)?;
            let digest = crate::digest::group(bytes);
            if digest != Digest::ZERO {
                f(at, digest)?;
            }
            at += 1;
        }
        Ok(())
    }
}

/// Reads the pages of an image; each thread has one of its own.
#[derive(Debug)]
pub struct Reader<'a> {
    image: &'a Image,
    runs: Vec<Run>,
    /// Whose runs those are.
    extent: Option<u64>,
    stored: Vec<u8>,
    /// Which frame was decoded last, and its pages.
    frame: Option<(u16, u32)>,
    decoded: Vec<u8>,
}

impl Reader<'_> {
    /// Reads whole pages from page `page` on into `into`, verified as the image's [`Integrity`] says.
    ///
    /// What `into` holds after an error is not defined.
    ///
    /// # Errors
    /// [`Error::Digest`], [`Error::Corrupt`]: these pages are not what was saved; other pages can be read. [`Error::Io`];
    /// [`Error::Changed`]; [`Error::Argument`]: there are not so many pages, or the buffer is not of whole pages.
    pub fn read(&mut self, page: u64, into: &mut [u8]) -> Result<()> {
        let argument = |arg, value, why| Error::Argument { op: "Reader::read", arg, value, why };
        if !into.len().is_multiple_of(PAGE_SIZE) {
            return Err(argument("into", into.len() as u64, "its length is no multiple of a page"));
        }
        let end = page.saturating_add((into.len() / PAGE_SIZE) as u64);
        if end > self.image.nr_pages {
            return Err(argument("page", page, "the image ends before"));
        }
        let mut at = page;
        let mut rest = into;
        while at < end {
            let run = self.run_at(at)?.cut(&(at..end));
            let (here, behind) = rest.split_at_mut((run.nr as usize * PAGE_SIZE).min(rest.len()));
            self.read_run(&run, here)?;
            (rest, at) = (behind, at + run.nr.max(1));
        }
        Ok(())
    }

    /// Returns the run that holds a page.
    ///
    /// # Errors
    /// As [`Image::extent`].
    pub fn run_at(&mut self, page: u64) -> Result<Run> {
        let extent = page / EXTENT_PAGES;
        if self.extent != Some(extent) {
            self.extent = None;
            self.image.extent(extent, &mut self.runs)?;
            self.extent = Some(extent);
        }
        let at = self.runs.partition_point(|r| r.page <= page).checked_sub(1);
        let run = at.and_then(|at| self.runs.get(at)).filter(|r| r.pages().contains(&page)).copied();
        run.ok_or(Error::Argument { op: "Reader::run_at", arg: "page", value: page, why: "the image ends before" })
    }

    fn read_run(&mut self, run: &Run, into: &mut [u8]) -> Result<()> {
        let image = self.image;
        match run.source {
            Source::Zero => into.fill(0),
            Source::Raw { layer, pos } => image.read_raw(layer, pos, into)?,
            Source::Frame { layer, frame, page } => {
                let decoded = self.frame(layer, frame)?;
                let from = usize::from(page) * PAGE_SIZE;
                let Some(bytes) = from.checked_add(into.len()).and_then(|to| decoded.get(from..to)) else {
                    let why = format!("page {} is said to lie behind the end of frame {frame}", run.page);
                    let path = image.layer_path(layer).unwrap_or_else(|| Path::new("")).into();
                    return Err(Error::Corrupt { path, what: "a run", offset: 0, why });
                };
                into.copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// Returns all the pages of a frame, decoded: who fills a cache publishes them together.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn frame(&mut self, layer: u16, frame: u32) -> Result<&[u8]> {
        if self.frame != Some((layer, frame)) {
            self.frame = None;
            self.image.read_frame(layer, frame, &mut self.stored, &mut self.decoded)?;
            self.frame = Some((layer, frame));
        }
        Ok(&self.decoded)
    }
}
