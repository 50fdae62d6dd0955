//! The tables of an `.sfi` file, block by block as they are needed.
//!
//! A block that was read is verified against the level above before anybody looks into it, and what is looked into is our copy:
//! who changes the file afterwards changes nothing for us. Copies are kept, as many as the cache has places; one that has gone
//! is read and verified again.
//!
//! # Context: control plane; allocates, and waits for files

use super::layout::{self, BLOCK_SIZE, BODY_START, FAN_OUT, HEADER_SIZE, Header, MAGIC, Record, Table, required};
use crate::digest::{Digest, EXTENT_GROUPS};
use crate::error::{Error, Result};
use crate::extent_map::{EXTENT_PAGES, PAGE_SIZE};
use crate::layer::Layer;
use std::sync::{Arc, Mutex, PoisonError};
use zerocopy::FromBytes;

/// Copies of blocks that are kept: 32 MiB.
const PLACES: usize = 512;

/// A verified block: which one, and its bytes.
type Copy = Option<((usize, u64), Arc<[u8]>)>;

#[derive(Debug)]
pub(crate) struct Tables {
    header: Box<Header>,
    /// Bytes of each level, and where it begins in the file.
    levels: Vec<(u64, u64)>,
    places: Box<[Mutex<Copy>]>,
}

/// Where a table lies in level 0.
#[derive(Clone, Copy, Debug, Default)]
struct At {
    offset: u64,
    nr: u64,
}

impl Tables {
    /// Reads and checks the header.
    pub(crate) fn open(layer: &Layer) -> Result<Self> {
        let mut bytes = [0; HEADER_SIZE];
        layer.read("the header", 0, &mut bytes)?;
        let Ok(header) = Header::read_from_bytes(&bytes) else {
            return Err(layer.corrupt("the header", 0, "it is cut short"));
        };
        check_header(layer, &header)?;
        let mut at = header.levels_at.get();
        let mut levels = Vec::new();
        for len in header.levels.iter().map(|len| len.get()).take_while(|len| *len > 0) {
            levels.push((len, at));
            at += len;
        }
        let places = (0..PLACES).map(|_| Mutex::new(None)).collect();
        Ok(Self { header: Box::new(header), levels, places })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    fn at(&self, table: Table) -> At {
        let found = self.header.tables.iter().find(|t| t.kind.get() == table as u32);
        found.map(|t| At { offset: t.offset.get(), nr: t.nr.get() }).unwrap_or_default()
    }

    /// Returns the number of entries of a table.
    pub(crate) fn nr(&self, table: Table) -> u64 {
        self.at(table).nr
    }

    /// Returns where an entry lies in the file.
    pub(crate) fn pos(&self, table: Table, i: u64) -> u64 {
        let at = self.at(table).offset.saturating_add(i.saturating_mul(table.entry_size() as u64));
        self.header.levels_at.get().saturating_add(at)
    }

    /// Returns a verified copy of a block of a level.
    fn block(&self, layer: &Layer, level: usize, nr: u64) -> Result<Arc<[u8]>> {
        let place = self.places.get((nr as usize ^ (level << 7)) % PLACES);
        let lock = |p: &'_ Mutex<Copy>| -> Copy { p.lock().unwrap_or_else(PoisonError::into_inner).clone() };
        if let Some((_, copy)) = place.and_then(lock).filter(|(key, _)| *key == (level, nr)) {
            return Ok(copy);
        }
        let Some(&(len, at)) = self.levels.get(level) else {
            return Err(layer.corrupt("a table", self.header.levels_at.get(), "it is not there"));
        };
        let from = nr.saturating_mul(BLOCK_SIZE as u64);
        let left = len.saturating_sub(from).min(BLOCK_SIZE as u64);
        let pos = at.saturating_add(from);
        if left == 0 {
            return Err(layer.corrupt("a table", pos, "it ends before"));
        }
        let bytes = layer.read_vec("a table", pos, left, BLOCK_SIZE)?;
        let wanted = self.digest_of(layer, level, nr)?;
        let found = Digest::of(&bytes);
        if found != wanted {
            let path = layer.path().to_path_buf();
            return Err(Error::Digest { path, what: "a block of the tables", offset: pos, wanted, found });
        }
        let copy: Arc<[u8]> = bytes.into();
        if let Some(place) = place {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(((level, nr), Arc::clone(&copy)));
        }
        Ok(copy)
    }

    /// Returns the digest of a block, out of the level above.
    fn digest_of(&self, layer: &Layer, level: usize, nr: u64) -> Result<Digest> {
        if level + 1 == self.levels.len() {
            return Ok(self.header.root);
        }
        let above = self.block(layer, level + 1, nr / FAN_OUT as u64)?;
        let at = (nr % FAN_OUT as u64) as usize * 32;
        let digest = above.get(at..at + 32).and_then(|b| Digest::read_from_bytes(b).ok());
        digest.ok_or_else(|| layer.corrupt("the digests of the tables", self.header.levels_at.get(), "one is missing"))
    }

    /// Returns an entry of a table.
    pub(crate) fn get<T: Record>(&self, layer: &Layer, table: Table, i: u64) -> Result<T> {
        let mut one = None;
        self.each(layer, table, i..i.saturating_add(1), |_, entry: T| {
            one = Some(entry);
            Ok(())
        })?;
        one.ok_or_else(|| layer.corrupt(table.name(), self.pos(table, i), "it has no such entry"))
    }

    /// Calls `f(number, entry)` for each of the entries, in order, as far as there are any.
    pub(crate) fn each<T: Record>(
        &self,
        layer: &Layer,
        table: Table,
        range: std::ops::Range<u64>,
        mut f: impl FnMut(u64, T) -> Result<()>,
    ) -> Result<()> {
        let (size, at) = (size_of::<T>(), self.at(table));
        debug_assert_eq!(size, table.entry_size());
        let end = range.end.min(at.nr);
        // The block that was looked into last.
        let mut held: Option<(u64, Arc<[u8]>)> = None;
        for i in range.start..end {
            let mut bytes = [0u8; 128];
            let Some(entry) = bytes.get_mut(..size) else { return Ok(()) };
            let (mut done, mut pos) = (0, at.offset.saturating_add(i * size as u64));
            // An entry may lie across the border of two blocks.
            while done < size {
                let nr = pos / BLOCK_SIZE as u64;
                if held.as_ref().is_none_or(|(held, _)| *held != nr) {
                    held = Some((nr, self.block(layer, 0, nr)?));
                }
                let block = held.as_ref().map(|(_, b)| &b[..]).unwrap_or_default();
                let from = (pos % BLOCK_SIZE as u64) as usize;
                let part = block.get(from..).unwrap_or_default();
                let here = part.len().min(size - done);
                if here == 0 {
                    return Err(layer.corrupt(table.name(), self.pos(table, i), "it ends before its last entry"));
                }
                entry[done..done + here].copy_from_slice(&part[..here]);
                (done, pos) = (done + here, pos + here as u64);
            }
            let Ok(entry) = T::read_from_bytes(entry) else { return Ok(()) };
            f(i, entry)?;
        }
        Ok(())
    }

    /// Returns bytes that an entry names, at most `limit`.
    pub(crate) fn bytes(&self, layer: &Layer, span: &layout::Span, limit: u64) -> Result<Vec<u8>> {
        let (offset, len) = (span.offset.get(), span.len.get());
        let is_there = offset.checked_add(len).is_some_and(|end| end <= self.nr(Table::Bytes));
        if !is_there || len > limit {
            let why = format!("{len} bytes at {offset} are not there, or more than {limit}");
            return Err(layer.corrupt(Table::Bytes.name(), self.pos(Table::Bytes, 0), why));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        let start = self.at(Table::Bytes).offset;
        let (mut at, end) = (start.saturating_add(offset), start.saturating_add(offset).saturating_add(len));
        while at < end {
            let block = self.block(layer, 0, at / BLOCK_SIZE as u64)?;
            let part = block.get((at % BLOCK_SIZE as u64) as usize..).unwrap_or_default();
            let here = part.len().min((end - at) as usize);
            if here == 0 {
                return Err(layer.corrupt(Table::Bytes.name(), self.pos(Table::Bytes, 0), "it ends before"));
            }
            bytes.extend_from_slice(part.get(..here).unwrap_or_default());
            at += here as u64;
        }
        Ok(bytes)
    }

    /// Reads and verifies every block of the tables.
    pub(crate) fn verify(&self, layer: &Layer) -> Result<u64> {
        let mut nr_bytes = 0;
        for (level, (len, _)) in self.levels.iter().enumerate() {
            for nr in 0..len.div_ceil(BLOCK_SIZE as u64) {
                nr_bytes += self.block(layer, level, nr)?.len() as u64;
            }
        }
        Ok(nr_bytes)
    }
}

fn check_header(layer: &Layer, h: &Header) -> Result<()> {
    let corrupt = |why: String| layer.corrupt("the header", 0, why);
    let unsupported = |what: String| Error::Unsupported {
        path: layer.path().into(),
        what,
        why: "it was written by a later version; read it with that one",
    };
    if h.magic != MAGIC {
        return Err(corrupt("it does not begin as an .sfi file does".into()));
    }
    if h.version.get() != layout::VERSION {
        return Err(unsupported(format!("version {} of the format", h.version)));
    }
    let found = h.own_digest();
    if found != h.digest {
        let path = layer.path().to_path_buf();
        return Err(Error::Digest { path, what: "the header", offset: 0, wanted: h.digest, found });
    }
    if h.required.get() & !required::KNOWN != 0 {
        return Err(unsupported(format!("feature {:#x}", h.required.get() & !required::KNOWN)));
    }
    if h.page_size.get() as usize != PAGE_SIZE {
        return Err(unsupported(format!("a page size of {} bytes", h.page_size)));
    }
    if h.len_bytes.get() != layer.len_bytes() {
        return Err(corrupt(format!("the file is {} bytes long, and not {}", layer.len_bytes(), h.len_bytes)));
    }
    // From here on the digest has said that a writer of ours made it, unless somebody deceives: so the bounds are checked, too.
    let body = BODY_START..=h.levels_at.get();
    if !body.contains(&h.body_end.get()) || h.levels_at.get() > h.len_bytes.get() {
        return Err(corrupt("the body ends outside the file".into()));
    }
    let lens: Vec<u64> = h.levels.iter().map(|l| l.get()).take_while(|l| *l > 0).collect();
    let all = lens.iter().try_fold(h.levels_at.get(), |at, len| at.checked_add(*len));
    if all != Some(h.len_bytes.get()) || lens.first().is_none_or(|tables| layout::levels(*tables) != lens) {
        return Err(corrupt("the tables are not as long as their digests say".into()));
    }
    let tables = lens.first().copied().unwrap_or(0);
    for (i, t) in h.tables.iter().enumerate().filter(|(_, t)| t.kind.get() != 0) {
        let known = Table::ALL.into_iter().find(|k| *k as u32 == t.kind.get());
        let Some(kind) = known else { continue };
        let twice = h.tables.iter().take(i).any(|o| o.kind == t.kind);
        let len = t.nr.get().checked_mul(u64::from(t.entry.get()));
        let end = len.and_then(|len| len.checked_add(t.offset.get()));
        if twice || t.entry.get() as usize != kind.entry_size() || end.is_none_or(|end| end > tables) {
            return Err(corrupt(format!("{} lies outside the tables, or is none", kind.name())));
        }
    }
    let nr = |kind: Table| h.tables.iter().find(|t| t.kind.get() == kind as u32).map_or(0, |t| t.nr.get());
    let nr_pages = h.nr_pages.get();
    if nr_pages > u64::MAX / PAGE_SIZE as u64 || nr(Table::Extents) != nr_pages.div_ceil(EXTENT_PAGES) {
        return Err(corrupt(format!("{} extents for {nr_pages} pages", nr(Table::Extents))));
    }
    let (digests, extents) = (nr(Table::Content), nr(Table::Extents));
    if !digests.is_multiple_of(EXTENT_GROUPS) || digests / EXTENT_GROUPS > extents {
        return Err(corrupt(format!("{digests} digests of contents for {extents} extents")));
    }
    Ok(())
}
