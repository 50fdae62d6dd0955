//! The end of an object moves, and holes are made in it. Linux: `mm/truncate.c`, `fallocate`.

mod follow;

use crate::error::{self, Error, Result, parent_only};
use crate::object::io;
use crate::object::{Object, ObjectInner};
use crate::writeback::state::Turn;
use crate::writeback::{flush, lost};
use softfault_mm::folio::LOST;
use softfault_mm::folio::State;
use softfault_mm::mapping::Mapping;
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT, pages_of};
use softfault_mm::writeback;
use softfault_mm::{truncate, vmscan};
use softfault_platform::host::Host;
use softfault_platform::section;
use softfault_platform::store::StoreError;
use softfault_platform::store::file::FileStore;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::time::Duration;

/// Pages of one chunk that nobody reads, writes or fills meanwhile; dropped, they are as they were.
struct Void<'a> {
    m: &'a Mapping<'a>,
    pages: Range<u64>,
}

impl<'a> Void<'a> {
    /// The caller has the object's turn to flush. `None`: a page is pinned, being filled or written.
    fn take(m: &'a Mapping<'a>, pages: &Range<u64>) -> Option<Self> {
        vmscan::take_void(Host::detached().env(), m, 0, pages.start, pages.end)
            .then(|| Self { m, pages: pages.clone() })
    }

    /// Drops what is cached; `false`: some of it cannot go, and is as it was.
    fn punch(self) -> bool {
        let this = ManuallyDrop::new(self);
        vmscan::drop_void(Host::detached().env(), this.m, 0, this.pages.start, this.pages.end) == 0
    }
}

impl Drop for Void<'_> {
    fn drop(&mut self) {
        vmscan::keep_void(Host::detached().env(), self.m, self.pages.start, self.pages.end);
    }
}

/// What a store has refused while its end moves. It is an [`Error`] when the turn has been given back: that takes memory, which may
/// be asked of a thread whose fault waits for who has the turn.
#[derive(Clone, Copy, Debug)]
enum Below {
    /// Another end.
    End(StoreError),
    /// To show what it has.
    Flush(StoreError),
}

impl Below {
    fn into_error(self, op: &'static str, object: &ObjectInner, end: u64) -> Error {
        let label = object.mapping().label;
        match self {
            Self::End(e) => error::writeback(op, label, end..end, e.fill_error()),
            Self::Flush(e) => error::flush(op, label, e),
        }
    }
}

impl ObjectInner {
    /// The caller has the gate, and the turn to flush.
    fn move_end(&self, len_bytes: u64) {
        self.a_ops().set_len(len_bytes);
        self.exclusive.iter().for_each(|e| e.set_len(len_bytes));
        truncate::i_size_write(self.mapping(), len_bytes);
    }
}

impl Object {
    /// Drops clean, unpinned pages of the byte range from the cache; native extents over it are taken back first.
    ///
    /// Returns how many pages went. Pages that were written since they were last written back stay ([`Object::sync`]
    /// first); a writable exclusive object's are written on their way.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when an extent cannot be taken back.
    pub fn evict(&self, range: Range<u64>) -> Result<u64> {
        parent_only("Object::evict")?;
        let m = self.inner.mapping();
        let from = pages_of(range.start);
        let to = (range.end >> PAGE_SHIFT).max(from).min(m.folios.len() as u64);
        let to = if range.end >= self.len() { m.nr_pages().max(to) } else { to };
        self.inner.i_mmap().demote(from, to)?;
        Ok(vmscan::reclaim_range(Host::detached().env(), m, 0, from, to))
    }

    /// Sets the end of the object. Pages past a lower end are dropped: touching them is SIGBUS from now on.
    ///
    /// # Errors
    /// [`Error::Argument`] past the maximal length, [`Error::Denied`] when a page past the end stays pinned for long (the
    /// end is the new one all the same: such a page is SIGBUS to new touches), [`Error::Exhausted`] when an extent cannot be
    /// taken back, [`Error::Writeback`] when the store does not follow. What is left to do for a lower end is done by the next
    /// call, whatever end that sets.
    pub fn set_len(&self, len_bytes: u64) -> Result<()> {
        let op = "Object::set_len";
        parent_only(op)?;
        let m = self.inner.mapping();
        if self.inner.is_writable() || self.inner.file().is_some() {
            // Who may only read a file does not move its end, nor where others see it.
            self.check_writable(op)?;
        }
        if self.inner.file_store(FileStore::is_device) == Some(true) {
            return Err(Error::Denied { op, what: "a block device has the length that it has" });
        }
        if len_bytes > self.inner.len_max as u64 {
            let why = "past the maximal length the object was made with";
            return Err(Error::Argument { op, arg: "len_bytes", value: len_bytes, why });
        }
        let inner = &self.inner;
        let _arenas = inner.i_mmap().arenas();
        let _gate = inner.i_mmap().gate();
        if self.writable && !inner.is_exclusive() && len_bytes > self.len() {
            // What others have appended is not made zeros.
            self.finish_cut(op)?;
            let end = self.file_end(op)?.unwrap_or(0);
            self.follow_growth(op, end)?;
        }
        // What an earlier call left behind its end must not be seen when the object grows again.
        if len_bytes > self.len() {
            self.finish_cut(op)?;
            return self.grow(op, len_bytes);
        }
        if len_bytes < self.len() {
            let _turn = inner.flushing().state().turn();
            inner.flushing().state().owe_cut(m.nr_pages());
            inner.move_end(len_bytes);
        }
        self.finish_cut(op)
    }

    /// The store grows first: bytes past its end cannot be read. The caller has the gate.
    fn grow(&self, op: &'static str, len_bytes: u64) -> Result<()> {
        // A flush that fails tells the store where the object ends: by then both have moved, or neither.
        let turn = self.inner.flushing().state().turn();
        let grown = self.grow_below(len_bytes, &turn);
        drop(turn);
        grown.map_err(|below| below.into_error(op, &self.inner, len_bytes))
    }

    fn grow_below(&self, len_bytes: u64, turn: &Turn<'_>) -> std::result::Result<(), Below> {
        let inner = &self.inner;
        if inner.is_writable() {
            inner.store().set_len(len_bytes).map_err(Below::End)?;
            flush::show(inner.flushing(), turn).map_err(Below::Flush)?;
        }
        inner.move_end(len_bytes);
        Ok(())
    }

    /// Drops what lies past the end, and cuts the store, if that is owed. The caller has the gate.
    fn finish_cut(&self, op: &'static str) -> Result<()> {
        let (inner, m) = (&self.inner, self.inner.mapping());
        let (len_bytes, to) = (self.len(), inner.flushing().state().cut_owed());
        if to == 0 {
            return Ok(());
        }
        // A promotion that read the old end has finished by now, or will read the new one.
        section::synchronize();
        // And who writes a pinned page as it is:
        // ```text
        // sync                                   set_len
        // measures the page by the old end
        //                                        zeroes the tail, cuts the store
        // the store is longer again, and has the old bytes
        // ```
        drop(inner.flushing().state().direct());
        for _ in 0..2_000 {
            inner.i_mmap().demote(len_bytes >> PAGE_SHIFT, to)?;
            // Not while a flush keeps pages: it may take longer than our patience.
            let turn = inner.flushing().state().turn();
            let dropped = truncate::truncate_pagecache(Host::detached().env(), m, 0, to) == 0;
            if dropped && io::zero_tail(inner, len_bytes) {
                let cut = self.cut_below(len_bytes, &turn);
                drop(turn);
                return cut.map_err(|below| below.into_error(op, inner, len_bytes));
            }
            drop(turn);
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(Error::Denied { op, what: "pages past the new end stay pinned or are being filled; drop the pins" })
    }

    /// The store shrinks last: nobody writes past the new end any more.
    fn cut_below(&self, len_bytes: u64, turn: &Turn<'_>) -> std::result::Result<(), Below> {
        let (inner, state) = (&self.inner, self.inner.flushing().state());
        if inner.is_writable() {
            // Until it is told, nothing is durable.
            state.owe_end(true);
            inner.store().set_len(len_bytes).map_err(Below::End)?;
            state.owe_end(false);
            lost::forget(inner.mapping(), &(pages_of(len_bytes)..u64::MAX));
        }
        state.forget_cut();
        if inner.is_writable() { flush::show(inner.flushing(), turn).map_err(Below::Flush) } else { Ok(()) }
    }

    /// Makes the range read as zeros, in the cache and in the store, and gives its storage back where the store can.
    ///
    /// # Errors
    /// [`Error::Denied`] on an object that is not writable, or when a page stays pinned; [`Error::Writeback`]. The hole is
    /// made up to some page then, and from there on everything is as it was.
    pub fn punch_hole(&self, range: Range<u64>) -> Result<()> {
        let op = "Object::punch_hole";
        parent_only(op)?;
        self.check_writable(op)?;
        let end = range.end.min(self.len());
        if range.start >= end {
            return Ok(());
        }
        let (from, to) = (pages_of(range.start), if end == self.len() { pages_of(end) } else { end >> PAGE_SHIFT });
        if from >= to {
            return self.zero(op, range.start..end);
        }
        self.zero(op, range.start..from << PAGE_SHIFT)?;
        self.zero(op, (to << PAGE_SHIFT).min(end)..end)?;
        let mut at = from;
        while at < to {
            let next = (at | (EXTENT_PAGES as u64 - 1)).saturating_add(1).min(to);
            let hole = at << PAGE_SHIFT..(next << PAGE_SHIFT).min(end);
            if !self.punch_chunk(op, &(at..next), &hole)? {
                self.zero(op, hole)?;
            }
            at = next;
        }
        if !self.inner.store().rereads_unflushed() {
            // What was read before the flush is from before the hole.
            let turn = self.inner.flushing().state().turn();
            let shown = flush::show(self.inner.flushing(), &turn);
            drop(turn);
            shown.map_err(|e| Below::Flush(e).into_error(op, &self.inner, end))?;
            self.discard(op, &(from..to))?;
        }
        Ok(())
    }

    /// Makes a hole of pages of one chunk; `false`: zeros must be written. They are kept from others meanwhile:
    /// ```text
    /// punch_hole                           others
    /// drops the pages
    ///                                      read the old bytes, store to them; the flusher begins to write
    /// the store punches
    ///                                      the flusher has written: the old bytes are back in the store
    /// ```
    fn punch_chunk(&self, op: &'static str, pages: &Range<u64>, hole: &Range<u64>) -> Result<bool> {
        let inner = &self.inner;
        let _gate = inner.i_mmap().gate();
        for _ in 0..2_000 {
            inner.i_mmap().demote(pages.start, pages.end)?;
            // From here on faults may wait for us: no lock, no memory. What cannot be had is waited for with empty hands.
            let turn = inner.flushing().state().turn();
            if let Some(void) = Void::take(inner.mapping(), pages) {
                // The pages are back, and the turn, before there is an error: it takes memory.
                let punched = punch_below(inner, pages, hole);
                let punched = match punched {
                    Ok(true) => Ok(void.punch()),
                    other => {
                        drop(void);
                        other
                    }
                };
                drop(turn);
                let label = inner.mapping().label;
                return punched.map_err(|e| error::writeback(op, label, hole.clone(), e.fill_error()));
            }
            drop(turn);
            std::thread::sleep(Duration::from_micros(500));
        }
        Err(Error::Denied { op, what: "pages of the range stay pinned or are being filled; drop the pins" })
    }

    fn zero(&self, op: &'static str, range: Range<u64>) -> Result<()> {
        let zeros = [0u8; 4096];
        let mut at = range.start;
        while at < range.end {
            let here = ((range.end - at) as usize).min(zeros.len());
            let n = self.write_at(at, &zeros[..here])?;
            if n == 0 {
                return Err(Error::Denied { op, what: "the end of the object moved meanwhile" });
            }
            at += n as u64;
        }
        Ok(())
    }

    /// Drops the pages, dirty or not, waiting for who fills, writes or pins them.
    fn discard(&self, op: &'static str, pages: &Range<u64>) -> Result<()> {
        let m = self.inner.mapping();
        let host = Host::detached();
        for _ in 0..2_000 {
            self.inner.i_mmap().demote(pages.start, pages.end)?;
            vmscan::discard_range(host.env(), m, 0, pages.start, pages.end);
            let left = pages
                .clone()
                .any(|p| m.folio(p).is_some_and(|w| !matches!(w.load().state(), State::Absent | State::Poisoned)));
            if !left {
                return Ok(());
            }
            host.breathe();
            std::thread::sleep(Duration::from_micros(500));
        }
        Err(Error::Denied { op, what: "pages of the range stay pinned or are being filled; drop the pins" })
    }
}

/// Punches a hole into the store; `false`: it cannot. The caller has the object's turn to flush, and the pages.
fn punch_below(object: &ObjectInner, pages: &Range<u64>, hole: &Range<u64>) -> std::result::Result<bool, StoreError> {
    let m = object.mapping();
    match object.store().punch(hole.start, hole.end - hole.start) {
        Ok(()) => {
            // A flush that fails may lose it like a write, and what was lost before does not matter any more.
            for word in pages.clone().filter_map(|p| m.folio(p)) {
                word.set(writeback::unsynced_bit(m));
                word.clear(LOST);
            }
            Ok(true)
        }
        Err(StoreError::Unsupported) => Ok(false),
        Err(error) => Err(error),
    }
}
