//! The tables of a file that is being written, one behind the other.
//!
//! # Context: control plane; allocates

use crate::extent_map::{EXTENT_PAGES, ExtentMap, Source};
use crate::region::Region;
use crate::sfi::Below;
use crate::sfi::layout::{self, ExtentAt, KeyAt, LayerAt, RegionAt, RunAt, Span, Table, TableAt};
use std::io::Write as _;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// The tables as they will lie in the file.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) bytes: Vec<u8>,
    pub(super) at: [TableAt; layout::TABLES_MAX],
    nr: usize,
    /// What becomes the table of bytes.
    strings: Vec<u8>,
}

impl Tables {
    pub(super) fn new() -> Self {
        // One byte that nobody names: tables are never empty.
        Self { bytes: Vec::new(), at: FromZeros::new_zeroed(), nr: 0, strings: vec![0] }
    }

    /// Adds a table. Small ones share a block.
    pub(super) fn add(&mut self, table: Table, bytes: &[u8], nr: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        if let Some(at) = self.at.get_mut(self.nr) {
            at.kind = U32::new(table as u32);
            at.entry = U32::new(table.entry_size() as u32);
            at.offset = U64::new(self.bytes.len() as u64);
            at.nr = U64::new(nr as u64);
        }
        self.nr += 1;
        let _ = self.bytes.write_all(bytes);
    }

    fn span(&mut self, bytes: &[u8]) -> Span {
        let offset = U64::new(self.strings.len() as u64);
        self.strings.extend_from_slice(bytes);
        Span { offset, len: U64::new(bytes.len() as u64) }
    }

    /// Adds the map; of the extents `known`, in order, there are digests.
    pub(super) fn map(&mut self, map: &ExtentMap, known: &[u64]) {
        let (mut extents, mut runs) = (Vec::new(), Vec::new());
        let mut known = (1u32..).zip(known).peekable();
        for extent in 0..map.nr_pages().div_ceil(EXTENT_PAGES) {
            let of = map.extent(extent);
            let content = U32::new(known.next_if(|(_, e)| **e == extent).map_or(0, |(n, _)| n));
            extents.push(ExtentAt { first: U64::new(runs.len() as u64), nr: U32::new(of.len() as u32), content });
            for run in of {
                let (kind, layer, value) = match run.source {
                    Source::Zero => (RunAt::ZERO, 0, 0),
                    Source::Raw { layer, pos } => (RunAt::RAW, layer, pos),
                    Source::Frame { layer, frame, page } => {
                        (RunAt::FRAME, layer, u64::from(frame) << 16 | u64::from(page))
                    }
                };
                let (page, nr) = (U16::new((run.page % EXTENT_PAGES) as u16), U16::new(run.nr as u16));
                runs.push(RunAt { page, nr, kind, zero: 0, layer: U16::new(layer), value: U64::new(value) });
            }
        }
        self.add(Table::Extents, extents.as_bytes(), extents.len());
        self.add(Table::Runs, runs.as_bytes(), runs.len());
    }

    pub(super) fn regions(&mut self, regions: &[Region]) {
        let mut records = Vec::new();
        for r in regions {
            let (address, offset, len) = (U64::new(r.address), U64::new(r.offset), U64::new(r.len_bytes));
            let name = self.span(r.name.as_bytes());
            records.push(RegionAt { name, address, offset, len, prot: U32::new(r.prot.bits()), zero: U32::ZERO });
        }
        self.add(Table::Regions, records.as_bytes(), records.len());
    }

    pub(super) fn keys(&mut self, keys: &[(String, Vec<u8>)]) {
        let mut records = Vec::new();
        for (key, value) in keys {
            let (key, value) = (self.span(key.as_bytes()), self.span(value));
            records.push(KeyAt { key, value });
        }
        self.add(Table::Keys, records.as_bytes(), records.len());
    }

    pub(super) fn layer(&mut self, below: &Below, first_group: u64, nr_groups: u64) -> LayerAt {
        LayerAt {
            name: self.span(below.name.as_bytes()),
            kind: U32::new(if below.is_sfi { LayerAt::SFI } else { LayerAt::RAW }),
            zero: U32::ZERO,
            digest: below.digest,
            len_bytes: U64::new(below.len_bytes),
            first_group: U64::new(first_group),
            nr_groups: U64::new(nr_groups),
            mtime_ns: U64::new(if nr_groups == 0 { below.mtime_ns } else { 0 }),
        }
    }

    /// Adds what names and values are, last.
    pub(super) fn end(&mut self) {
        let strings = std::mem::take(&mut self.strings);
        self.add(Table::Bytes, &strings, strings.len());
    }
}
