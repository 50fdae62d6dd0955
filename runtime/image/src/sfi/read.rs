//! An open `.sfi` file: its tables by what they mean, its pages and frames verified.
//!
//! # Context: control plane; allocates, and waits for files

use super::layout::{BODY_START, ExtentAt, FrameAt, KeyAt, LayerAt, MAGIC, RegionAt, RunAt, Table, required};
use super::tables::Tables;
use crate::codec::{Codec, FRAME_MAX};
use crate::digest::{Digest, EXTENT_GROUPS, GROUP_SIZE};
use crate::error::{Error, Result};
use crate::extent_map::{EXTENT_PAGES, PAGE_SIZE, Run, Source};
use crate::integrity::{Integrity, Seen};
use crate::layer::{Layer, RawAt};
use crate::region::{Prot, Region};
use std::ops::Range;
use std::path::Path;

/// The longest name of a region or a layer, and the longest key.
const NAME_MAX: u64 = 4096;
/// The longest value of a key.
const VALUE_MAX: u64 = 256 << 20;
/// All names, and all values, of an image together.
const ALL_MAX: u64 = 1 << 30;
/// More regions, keys or layers than this no image has.
const ENTRIES_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Sfi {
    pub(super) layer: Layer,
    pub(super) tables: Tables,
    pub(super) groups: Seen,
    pub(super) frames: Seen,
}

/// Another file that pages lie in.
#[derive(Clone, Debug)]
pub(crate) struct Below {
    pub(crate) name: String,
    pub(crate) is_sfi: bool,
    pub(crate) digest: Digest,
    pub(crate) len_bytes: u64,
    /// Its groups among ours, if it is raw.
    pub(crate) groups: Range<u64>,
    /// If it is raw and has no digests: when it was written last; 0: not known.
    pub(crate) mtime_ns: u64,
}

impl Sfi {
    /// Returns whether a file begins as one of ours does.
    pub(crate) fn is_one(layer: &Layer) -> bool {
        let mut magic = [0; 8];
        layer.len_bytes() >= 8 && layer.read("the header", 0, &mut magic).is_ok() && magic == MAGIC
    }

    pub(crate) fn open(layer: Layer) -> Result<Self> {
        let tables = Tables::open(&layer)?;
        let (nr_groups, nr_frames) = (tables.nr(Table::Groups), tables.nr(Table::Frames));
        let body = (tables.header().body_end.get() - BODY_START).div_ceil(GROUP_SIZE as u64);
        if nr_groups < body {
            let why = format!("{nr_groups} digests for {body} groups of the body");
            return Err(layer.corrupt(Table::Groups.name(), tables.pos(Table::Groups, 0), why));
        }
        if tables.header().required.get() & required::ZSTD != 0
            && let Some(why) = (Codec::Zstd { level: 3 }).missing()
        {
            return Err(Error::Unsupported {
                path: layer.path().into(),
                what: "a frame that is stored by zstd".into(),
                why,
            });
        }
        Ok(Self { layer, tables, groups: Seen::new(nr_groups), frames: Seen::new(nr_frames) })
    }

    pub(crate) fn path(&self) -> &Path {
        self.layer.path()
    }

    pub(crate) fn layer(&self) -> &Layer {
        &self.layer
    }

    pub(crate) fn nr_pages(&self) -> u64 {
        self.tables.header().nr_pages.get()
    }

    /// Returns the digest that identifies the file.
    pub(crate) fn file_digest(&self) -> Digest {
        self.tables.header().digest
    }

    /// Returns the digest of the logical pages, if the image knows it.
    pub(crate) fn content_digest(&self) -> Option<Digest> {
        Some(self.tables.header().content).filter(|d| *d != Digest::ZERO)
    }

    /// Calls `f` with the digest of each group of logical pages among `groups` that is not zero, in order.
    pub(crate) fn each_content(&self, groups: Range<u64>, mut f: impl FnMut(u64, Digest)) -> Result<()> {
        let extents = groups.start / EXTENT_GROUPS..groups.end.div_ceil(EXTENT_GROUPS);
        self.tables.each(&self.layer, Table::Extents, extents, |extent, at: ExtentAt| {
            let Some(nr) = at.content.get().checked_sub(1) else { return Ok(()) };
            let first = u64::from(nr) * EXTENT_GROUPS;
            if first >= self.tables.nr(Table::Content) {
                let pos = self.tables.pos(Table::Extents, extent);
                let why = format!("extent {extent}: its digests lie outside their table");
                return Err(self.layer.corrupt(Table::Extents.name(), pos, why));
            }
            self.tables.each(&self.layer, Table::Content, first..first + EXTENT_GROUPS, |i, digest| {
                let number = extent * EXTENT_GROUPS + (i - first);
                if digest != Digest::ZERO && groups.contains(&number) {
                    f(number, digest);
                }
                Ok(())
            })
        })
    }

    /// Counts the bytes of a span among those that are taken into memory together: spans may name the same bytes again and again.
    fn spend(&self, spent: &mut u64, span: &super::layout::Span) -> Result<()> {
        *spent = spent.saturating_add(span.len.get());
        if *spent > ALL_MAX.min(self.tables.nr(Table::Bytes)) {
            let why = "names and values are longer, together, than the bytes that there are, or than a gigabyte";
            return Err(self.layer.corrupt(Table::Bytes.name(), self.tables.pos(Table::Bytes, 0), why));
        }
        Ok(())
    }

    fn name(&self, spent: &mut u64, span: &super::layout::Span, table: Table, i: u64) -> Result<String> {
        self.spend(spent, span)?;
        let bytes = self.tables.bytes(&self.layer, span, NAME_MAX)?;
        let pos = self.tables.pos(table, i);
        String::from_utf8(bytes).map_err(|_| self.layer.corrupt(table.name(), pos, "a name is not UTF-8"))
    }

    /// Returns the number of entries of a table that is read whole.
    fn few(&self, table: Table) -> Result<u64> {
        let nr = self.tables.nr(table);
        if nr > ENTRIES_MAX {
            return Err(self.layer.corrupt(
                table.name(),
                self.tables.pos(table, 0),
                format!("{nr} entries are too many"),
            ));
        }
        Ok(nr)
    }

    pub(crate) fn regions(&self) -> Result<Vec<Region>> {
        let mut regions: Vec<Region> = Vec::new();
        let nr = self.few(Table::Regions)?;
        let len_bytes = self.nr_pages() * PAGE_SIZE as u64;
        let mut spent = 0;
        self.tables.each(&self.layer, Table::Regions, 0..nr, |i, r: RegionAt| {
            let region = Region {
                name: self.name(&mut spent, &r.name, Table::Regions, i)?,
                address: r.address.get(),
                offset: r.offset.get(),
                len_bytes: r.len.get(),
                prot: Prot::from_bits(r.prot.get()),
            };
            let pos = self.tables.pos(Table::Regions, i);
            if let Err(why) = region.check(len_bytes, regions.last()) {
                return Err(self.layer.corrupt(Table::Regions.name(), pos, why));
            }
            regions.push(region);
            Ok(())
        })?;
        Ok(regions)
    }

    pub(crate) fn keys(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let nr = self.few(Table::Keys)?;
        let (mut keys, mut spent) = (Vec::new(), 0);
        self.tables.each(&self.layer, Table::Keys, 0..nr, |i, k: KeyAt| {
            self.spend(&mut spent, &k.value)?;
            let value = self.tables.bytes(&self.layer, &k.value, VALUE_MAX)?;
            keys.push((self.name(&mut spent, &k.key, Table::Keys, i)?, value));
            Ok(())
        })?;
        Ok(keys)
    }

    /// Returns the other files: layers 1, 2, and so on.
    pub(crate) fn below(&self) -> Result<Vec<Below>> {
        let nr = self.few(Table::Layers)?;
        let (mut below, mut spent) = (Vec::new(), 0);
        self.tables.each(&self.layer, Table::Layers, 0..nr, |i, l: LayerAt| {
            let corrupt = |why: &str| self.layer.corrupt(Table::Layers.name(), self.tables.pos(Table::Layers, i), why);
            let name = self.name(&mut spent, &l.name, Table::Layers, i)?;
            // A name with a folder in it could name any file of the machine.
            if name.is_empty() || name.contains('/') || name == "." || name == ".." || name.contains('\0') {
                return Err(corrupt("the name of a layer is no file's in the same folder"));
            }
            let is_sfi = match l.kind.get() {
                LayerAt::SFI => true,
                LayerAt::RAW => false,
                _ => return Err(corrupt("a layer of an unknown kind")),
            };
            let first = l.first_group.get();
            let end = first.checked_add(l.nr_groups.get()).filter(|end| *end <= self.tables.nr(Table::Groups));
            let Some(end) = end else { return Err(corrupt("its digests lie outside their table")) };
            let wanted = if is_sfi { 0 } else { l.len_bytes.get().div_ceil(GROUP_SIZE as u64) };
            if ![0, wanted].contains(&(end - first)) {
                return Err(corrupt("it has another number of digests than its length says"));
            }
            let (len_bytes, mtime_ns) = (l.len_bytes.get(), l.mtime_ns.get());
            below.push(Below { name, is_sfi, digest: l.digest, len_bytes, groups: first..end, mtime_ns });
            Ok(())
        })?;
        Ok(below)
    }

    /// Returns the runs of an extent, checked: together they are the extent.
    pub(crate) fn extent(&self, extent: u64, into: &mut Vec<Run>) -> Result<()> {
        into.clear();
        let at: ExtentAt = self.tables.get(&self.layer, Table::Extents, extent)?;
        let corrupt = |why: &str| {
            let pos = self.tables.pos(Table::Extents, extent);
            self.layer.corrupt(Table::Extents.name(), pos, format!("extent {extent}: {why}"))
        };
        let first_page = extent * EXTENT_PAGES;
        let nr_pages = EXTENT_PAGES.min(self.nr_pages() - first_page);
        let (first, nr) = (at.first.get(), u64::from(at.nr.get()));
        if nr == 0 {
            // All zero.
            return Ok(());
        }
        let end = first.checked_add(nr).filter(|end| *end <= self.tables.nr(Table::Runs) && nr <= EXTENT_PAGES);
        let Some(end) = end else { return Err(corrupt("its runs lie outside their table")) };
        let mut covered = 0;
        self.tables.each(&self.layer, Table::Runs, first..end, |_, r: RunAt| {
            let run = self.run(&r, first_page).map_err(&corrupt)?;
            if run.page != first_page + covered || covered + run.nr > nr_pages {
                return Err(corrupt("its runs are not side by side"));
            }
            covered += run.nr;
            into.push(run);
            Ok(())
        })?;
        if covered == nr_pages { Ok(()) } else { Err(corrupt("its runs do not reach its end")) }
    }

    pub(crate) fn nr_runs(&self) -> u64 {
        self.tables.nr(Table::Runs)
    }

    /// Checks one run, as far as this file says; what lies in other layers is checked when it is read there.
    fn run(&self, r: &RunAt, first_page: u64) -> Result<Run, &'static str> {
        let (nr, layer, value) = (u64::from(r.nr.get()), r.layer.get(), r.value.get());
        if nr == 0 {
            return Err("a run of no page");
        }
        if u64::from(layer) > self.tables.nr(Table::Layers) {
            return Err("a run names a layer that there is not");
        }
        let source = match r.kind {
            RunAt::ZERO => Source::Zero,
            RunAt::RAW if !value.is_multiple_of(PAGE_SIZE as u64) => return Err("pages lie at no multiple of a page"),
            RunAt::RAW => Source::Raw { layer, pos: value },
            RunAt::FRAME => {
                let Ok(frame) = u32::try_from(value >> 16) else { return Err("a frame's number is too large") };
                Source::Frame { layer, frame, page: value as u16 }
            }
            _ => return Err("a run of an unknown kind"),
        };
        Ok(Run { page: first_page + u64::from(r.page.get()), nr, source })
    }

    /// Returns a frame's entry, checked.
    fn frame(&self, frame: u32) -> Result<(FrameAt, Codec)> {
        let i = u64::from(frame);
        let at: FrameAt = self.tables.get(&self.layer, Table::Frames, i)?;
        let corrupt = |why: &str| {
            let pos = self.tables.pos(Table::Frames, i);
            self.layer.corrupt(Table::Frames.name(), pos, format!("frame {frame}: {why}"))
        };
        let (pos, stored, raw) = (at.pos.get(), at.stored.get() as usize, at.raw.get() as usize);
        let end = pos.checked_add(stored as u64);
        if pos < BODY_START || end.is_none_or(|end| end > self.tables.header().body_end.get()) {
            return Err(corrupt("it lies outside the body"));
        }
        if raw == 0 || raw > FRAME_MAX || !raw.is_multiple_of(PAGE_SIZE) || stored > raw {
            return Err(corrupt("its lengths are none of a frame"));
        }
        let Some(codec) = Codec::from_code(at.codec) else {
            let why = "it was written by a later version; read it with that one";
            let what = format!("codec {} of frame {frame}", at.codec);
            return Err(Error::Unsupported { path: self.path().into(), what, why });
        };
        Ok((at, codec))
    }

    /// Returns the length of a frame, decoded.
    pub(crate) fn frame_bytes(&self, frame: u32) -> Result<usize> {
        self.frame(frame).map(|(at, _)| at.raw.get() as usize)
    }

    /// Reads, verifies and decodes a whole frame into `into`; `stored` is room for what is read.
    pub(crate) fn read_frame(
        &self,
        frame: u32,
        integrity: Integrity,
        stored: &mut Vec<u8>,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        let (at, codec) = self.frame(frame)?;
        stored.resize(at.stored.get() as usize, 0);
        self.layer.read("a frame", at.pos.get(), stored)?;
        if self.frames.must_look(u64::from(frame), integrity) {
            let found = Digest::of(stored);
            if found != at.digest {
                let (path, offset) = (self.path().to_path_buf(), at.pos.get());
                return Err(Error::Digest { path, what: "a frame", offset, wanted: at.digest, found });
            }
            self.frames.looked(u64::from(frame), integrity);
        }
        into.clear();
        into.resize(at.raw.get() as usize, 0);
        codec.decode(stored, into).map_err(|why| self.layer.corrupt("a frame", at.pos.get(), why))
    }

    /// Returns which digests bytes of the body have, if they lie there.
    fn body(&self, pos: u64, len_bytes: u64) -> Result<Grouped> {
        let end = pos.checked_add(len_bytes);
        let body = BODY_START..=self.tables.header().body_end.get();
        if !body.contains(&pos) || end.is_none_or(|end| !body.contains(&end)) {
            return Err(self.layer.corrupt("pages", pos, "they lie outside the body"));
        }
        Ok(Grouped { start: BODY_START, end: *body.end(), first_group: 0 })
    }

    /// Reads pages of the body that lie as they are.
    pub(crate) fn read_raw(&self, pos: u64, integrity: Integrity, into: &mut [u8]) -> Result<()> {
        let at = self.body(pos, into.len() as u64)?;
        self.read_groups(&self.layer, at, pos, integrity, into)
    }

    /// Returns the file, if pages of the body lie there.
    pub(crate) fn holds_raw(&self, pos: u64, len_bytes: u64) -> Result<&std::fs::File> {
        self.body(pos, len_bytes).map(|_| self.layer.file())
    }

    /// Returns where pages of the body lie, and their digests.
    pub(crate) fn raw_at(&self, pos: u64, len_bytes: u64) -> Result<RawAt<'_>> {
        let at = self.body(pos, len_bytes)?;
        self.groups_at(&self.layer, at, pos, len_bytes)
    }

    /// The same of a raw layer of which this file has digests.
    pub(crate) fn below_at<'a>(&self, layer: &'a Layer, below: &Below, pos: u64, len_bytes: u64) -> Result<RawAt<'a>> {
        if below.groups.is_empty() {
            return RawAt::plain(layer, pos, len_bytes);
        }
        let at = Grouped { start: 0, end: below.len_bytes, first_group: below.groups.start };
        self.groups_at(layer, at, pos, len_bytes)
    }

    fn groups_at<'a>(&self, layer: &'a Layer, at: Grouped, pos: u64, len_bytes: u64) -> Result<RawAt<'a>> {
        let plain = RawAt::plain(layer, pos, len_bytes)?;
        let (size, end) = (GROUP_SIZE as u64, pos + len_bytes);
        let numbers = (pos - at.start) / size..(end - at.start).div_ceil(size);
        let groups = at.start + numbers.start * size..(at.start + numbers.end * size).min(at.end);
        if end > at.end {
            return Err(layer.corrupt("pages", pos, "they lie behind what has digests"));
        }
        let (mut digests, first) = (Vec::new(), at.first_group);
        self.each_stored_group(first + numbers.start..first + numbers.end, |digest| digests.push(digest))?;
        if digests.len() as u64 != numbers.end - numbers.start {
            return Err(layer.corrupt("pages", pos, "their digests are missing"));
        }
        Ok(RawAt { groups, digests, ..plain })
    }

    /// Reads pages of a raw layer of which this file has digests.
    pub(crate) fn read_below(
        &self,
        layer: &Layer,
        below: &Below,
        pos: u64,
        integrity: Integrity,
        into: &mut [u8],
    ) -> Result<()> {
        if below.groups.is_empty() {
            return layer.read("pages", pos, into);
        }
        let at = Grouped { start: 0, end: below.len_bytes, first_group: below.groups.start };
        self.read_groups(layer, at, pos, integrity, into)
    }

    /// Reads `into` from `pos`, verifying each group that it meets: of our own copy, whole.
    fn read_groups(&self, layer: &Layer, at: Grouped, pos: u64, integrity: Integrity, into: &mut [u8]) -> Result<()> {
        if integrity == Integrity::Trusted {
            return layer.read("pages", pos, into);
        }
        let mut scratch = Vec::new();
        let (mut done, end) = (0usize, pos.saturating_add(into.len() as u64));
        while done < into.len() {
            let here = pos + done as u64;
            let nr = (here - at.start) / GROUP_SIZE as u64;
            let from = at.start + nr * GROUP_SIZE as u64;
            let to = (from + GROUP_SIZE as u64).min(at.end);
            if to <= here {
                return Err(layer.corrupt("pages", here, "they lie behind what has digests"));
            }
            let wanted = (to.min(end) - here) as usize;
            let i = at.first_group + nr;
            let part = into.get_mut(done..done + wanted).unwrap_or_default();
            if !self.groups.must_look(i, integrity) {
                layer.read("pages", here, part)?;
            } else if from == here && to <= end {
                layer.read("pages", here, part)?;
                self.check_group(layer, i, from, part)?;
            } else {
                scratch.resize((to - from) as usize, 0);
                layer.read("pages", from, &mut scratch)?;
                self.check_group(layer, i, from, &scratch)?;
                let at = (here - from) as usize;
                part.copy_from_slice(scratch.get(at..at + wanted).unwrap_or_default());
            }
            self.groups.looked(i, integrity);
            done += wanted;
        }
        Ok(())
    }

    pub(super) fn check_group(&self, layer: &Layer, i: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        let wanted: Digest = self.tables.get(&self.layer, Table::Groups, i)?;
        let found = Digest::of(bytes);
        if wanted == found {
            return Ok(());
        }
        Err(Error::Digest { path: layer.path().into(), what: "a group of pages", offset, wanted, found })
    }

    /// Calls `f` with digests that are kept of groups, in order.
    pub(crate) fn each_stored_group(&self, groups: Range<u64>, mut f: impl FnMut(Digest)) -> Result<()> {
        self.tables.each(&self.layer, Table::Groups, groups, |_, digest| {
            f(digest);
            Ok(())
        })
    }
}

/// Which digest is whose: the group that begins at `start` has number `first_group`.
#[derive(Clone, Copy)]
pub(super) struct Grouped {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) first_group: u64,
}
