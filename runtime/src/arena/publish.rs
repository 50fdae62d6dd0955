//! Publishing entries, in place of others or of nothing: the records that handlers see, and the tables that lead to them.
//!
//! A record is never changed while published: a split or a change of flags is a new record.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "fills and publishes records of the process's tables")]

use super::number;
use super::record;
use super::set::VmaSet;
use super::state::ArenaInner;
use super::vma::{VmaEntry, prot_bits};
use crate::error::{Error, Result, system};
use crate::process::registry::{self, Registry};
use crate::undo::Done;
use softfault_mm::failpoint;
use softfault_mm::page::{EXTENT_SIZE, PAGE_SIZE};
use softfault_platform::section;
use softfault_platform::sys::mem;
use softfault_platform::trap;
use softfault_platform::vmatree::{self, Trap};
use std::ops::Range;

/// Entries that are to take the place of others, under numbers of their own. Dropped, the numbers go back.
#[derive(Default)]
pub(super) struct Successors(Vec<VmaEntry>);

impl Successors {
    /// Cuts a piece out of an entry; what else it is to be, the caller says.
    pub(super) fn cut(&mut self, op: &'static str, from: &VmaEntry, piece: Range<usize>) -> Result<&mut VmaEntry> {
        let (index, number) = number::get(op)?;
        let mut entry = from.cut(piece);
        entry.index = index;
        number.keep();
        self.0.push(entry);
        let last = self.0.len() - 1;
        Ok(&mut self.0[last])
    }

    /// Adds an entry of its own, under a number that it is given.
    pub(super) fn add(&mut self, op: &'static str, mut entry: VmaEntry) -> Result<()> {
        let (index, number) = number::get(op)?;
        entry.index = index;
        number.keep();
        self.0.push(entry);
        Ok(())
    }
}

impl Drop for Successors {
    fn drop(&mut self) {
        let mut registry = registry::lock();
        self.0.iter().for_each(|v| registry.vmas.put(v.index));
    }
}

/// The old entries of a replacement, and the new ones that take their place: [`retire`] ends the old, [`restore`] the new. Both are
/// listed until then; from [`go_over`] on nobody finds the old ones by address.
#[must_use = "either the old or the new entries are to be ended"]
pub(super) struct Swap {
    pub(super) old: Vec<VmaEntry>,
    pub(super) new: Vec<VmaEntry>,
    /// What the range permits is being changed.
    changing: Option<trap::Changing>,
}

/// Lists and publishes a mapping that is closed to everybody, and opens it. Two steps; undone in reverse, nobody sees
/// the record any more.
pub(super) fn publish<'a>(
    arena: &'a ArenaInner,
    op: &'static str,
    v: &'a VmaEntry,
) -> Result<(Done<impl FnOnce() + 'a>, Done<impl FnOnce() + 'a>)> {
    write_record(arena, v);
    let listed = listed(v);
    split_edges(arena, op, [v.range.start, v.range.end])?.keep();
    let mut registry = registry::lock();
    let _changing = trap::changing();
    point_by(&mut registry, arena, &v.range, Some(v.index));
    drop(registry);
    // Once this is undone nobody finds the record by address, but some may still be using it: undoing `listed`, which comes
    // next, waits for them.
    let published = Done::new(|| {
        point(arena, &v.range, None);
        join(arena, &v.range);
    });
    if arena.trap != Trap::Segv {
        // SAFETY: the range is this arena's, mapped and registered.
        unsafe { mem::mprotect(arena.address(v.range.start), v.range.len(), prot_bits(v.prot)) }
            .map_err(system(op, "mprotect"))?;
    }
    Ok((listed, published))
}

/// Writes the entry's record, which nobody points at yet.
pub(super) fn write_record(arena: &ArenaInner, v: &VmaEntry) {
    // SAFETY: the index was free (its former users are drained); the entry keeps what the vma refers to.
    unsafe { vmatree::write_vma(v.index, record::vma_of(arena, v)) };
}

/// Points the range, at whose ends granules are split, at a record, or at nothing.
pub(super) fn point(arena: &ArenaInner, range: &Range<usize>, index: Option<u32>) {
    point_by(&mut registry::lock(), arena, range, index);
}

/// The same, by who has locked the registry already.
fn point_by(_: &mut Registry, arena: &ArenaInner, range: &Range<usize>, index: Option<u32>) {
    let (start, end) = (arena.address(range.start), arena.address(range.end));
    // SAFETY: `write_record` filled the record; its number goes back only after `synchronize`.
    unsafe { vmatree::publish_range(arena.slot, start, end, index) };
}

/// Has the granules that have one of `edges` inside them tell pages apart. What is published stays as it is.
pub(super) fn split_edges(
    arena: &ArenaInner,
    op: &'static str,
    edges: impl IntoIterator<Item = usize>,
) -> Result<Done<impl FnOnce()>> {
    let mut fresh = Vec::new();
    let mut failed = false;
    let mut registry = registry::lock();
    for edge in edges.into_iter().filter(|e| !e.is_multiple_of(EXTENT_SIZE)) {
        match vmatree::split_granule(arena.slot, arena.address(edge), &mut registry.splits) {
            Ok(true) => fresh.push(edge),
            Ok(false) => {}
            Err(_) => {
                failed = true;
                break;
            }
        }
    }
    drop(registry);
    let splits = Done::new(move || fresh.iter().for_each(|edge| join(arena, &(*edge..*edge + PAGE_SIZE))));
    if failed {
        return Err(Error::Exhausted { op, what: "split tables (65536 granules shared by vmas)" });
    }
    Ok(splits)
}

/// Gives the split tables of the range's granules back, where no two pages need one.
pub(super) fn join(arena: &ArenaInner, range: &Range<usize>) {
    let mut registry = registry::lock();
    let mut joined = Vec::new();
    let (mut at, end) = (arena.address(range.start & !(EXTENT_SIZE - 1)), arena.address(range.end));
    while let Some(split) = vmatree::next_split(arena.slot, at, end) {
        // SAFETY: the numbers go back to the pool below, after `synchronize`.
        joined.extend(unsafe { vmatree::join_granule(arena.slot, split) });
        at = split + EXTENT_SIZE;
    }
    if !joined.is_empty() {
        section::synchronize();
        joined.into_iter().for_each(|s| registry.splits.put(s));
    }
}

/// Makes the entries for what stays on both sides of `range`.
pub(super) fn cut_around(
    _arena: &ArenaInner,
    op: &'static str,
    hit: &[VmaEntry],
    range: &Range<usize>,
) -> Result<Successors> {
    let mut stay = Successors::default();
    for v in hit {
        for piece in [v.range.start..range.start, range.end..v.range.end] {
            if piece.start < piece.end {
                stay.cut(op, v, piece)?;
            }
        }
    }
    Ok(stay)
}

/// Publishes `new` in place of `old`, with nothing in what of `hole` they leave, and waits until nobody walks the old
/// ones.
///
/// # Errors
/// [`Error::Exhausted`]; nothing was changed.
pub(super) fn replace(
    arena: &ArenaInner,
    op: &'static str,
    old: Vec<VmaEntry>,
    new: Successors,
    hole: &Range<usize>,
) -> Result<Swap> {
    let swap = prepare(arena, op, old, new, hole)?;
    go_over(arena, &swap, hole, &mut registry::lock());
    failpoint!(UNMAP_DRAIN);
    section::synchronize();
    Ok(swap)
}

/// What of an entry lies in `hole`.
fn left(v: &VmaEntry, hole: &Range<usize>) -> Range<usize> {
    v.range.start.max(hole.start)..v.range.end.min(hole.end)
}

/// Does what may be refused, and what allocates, of a replacement: nobody finds the new entries by address yet.
///
/// # Errors
/// [`Error::Exhausted`]; nothing was changed.
pub(super) fn prepare(
    arena: &ArenaInner,
    op: &'static str,
    old: Vec<VmaEntry>,
    mut new: Successors,
    hole: &Range<usize>,
) -> Result<Swap> {
    let gone = old.iter().map(|v| left(v, hole));
    let edges = new.0.iter().map(|v| v.range.clone()).chain(gone).flat_map(|r| [r.start, r.end]);
    split_edges(arena, op, edges)?.keep();
    let new = std::mem::take(&mut new.0);
    for v in &new {
        v.object.vm_ops().open(v.object.mapping());
        write_record(arena, v);
        list(v);
    }
    Ok(Swap { old, new, changing: None })
}

/// Publishes what was prepared, and waits until nobody walks the old entries. What the range permits is being changed from here on,
/// until the swap is ended: who touches it meanwhile waits.
///
/// Until then nothing is allocated or freed, nor a lock taken under which others do, unless the change is taken back: who waits may
/// have the allocator's lock, where its heap is in the range.
/// ```text
/// protect                                 a thread
/// locks the registry, announces           malloc: locks, stores to its heap: not permitted yet, waits
/// points to the new records
/// mprotect, is over                       goes on
/// lists the new entries
/// ```
pub(super) fn change_over(arena: &ArenaInner, swap: &mut Swap, hole: &Range<usize>) {
    let mut registry = registry::lock();
    swap.changing = Some(trap::changing());
    go_over(arena, swap, hole, &mut registry);
    drop(registry);
    failpoint!(UNMAP_DRAIN);
    section::synchronize();
}

/// Points to the new entries of a swap, and to nothing in what of `hole` they leave.
fn go_over(arena: &ArenaInner, swap: &Swap, hole: &Range<usize>, registry: &mut Registry) {
    for v in &swap.new {
        point_by(registry, arena, &v.range, Some(v.index));
    }
    for gone in swap.old.iter().map(|v| left(v, hole)).filter(|gone| gone.start < gone.end) {
        if !swap.new.iter().any(|n| n.range.start <= gone.start && gone.end <= n.range.end) {
            point_by(registry, arena, &gone, None);
        }
    }
}

/// Takes a replacement back: the old entries were listed all the time, and are found by address again.
pub(super) fn restore(arena: &ArenaInner, swap: Swap) {
    let Swap { old, new, changing } = swap;
    for v in &old {
        point(arena, &v.range, Some(v.index));
    }
    drop(changing);
    end(arena, &new);
    old.iter().for_each(|v| join(arena, &v.range));
}

/// Ends the entries that were replaced, and takes the new ones into the arena's own set.
pub(super) fn retire(arena: &ArenaInner, vmas: &mut VmaSet, swap: Swap) -> Vec<VmaEntry> {
    let Swap { old, new, changing } = swap;
    drop(changing);
    exchange(vmas, &old, new);
    end(arena, &old);
    old
}

/// Ends entries that nobody finds by address any more.
pub(super) fn end(_arena: &ArenaInner, old: &[VmaEntry]) {
    old.iter().for_each(unlist);
    section::synchronize();
    for v in old {
        registry::lock().vmas.put(v.index);
        v.object.vm_ops().close(v.object.mapping());
    }
}

fn exchange(vmas: &mut VmaSet, from: &[VmaEntry], to: Vec<VmaEntry>) {
    for v in from {
        vmas.map.remove(&v.range.start);
    }
    for v in to {
        vmas.map.insert(v.range.start, v);
    }
}

/// Lets reclaim and write-back find the vma, whose record is written; once that is undone, nobody looks at its record any more.
fn listed(v: &VmaEntry) -> Done<impl FnOnce() + '_> {
    list(v);
    Done::new(|| {
        unlist(v);
        section::synchronize();
    })
}

/// Lets reclaim and write-back find the vma, whose record is written.
fn list(v: &VmaEntry) {
    if v.is_changing || v.is_direct {
        return;
    }
    let _lists = v.object.i_mmap().lists();
    // SAFETY: `write_record` filled the record; `unlist` and `section::synchronize` come before the number is free.
    unsafe { vmatree::rmap_add(v.object.mapping().id, v.which(), v.index) };
}

/// Takes the vma, which is listed, off that list again; readers may still see it until `section::synchronize` has
/// returned.
fn unlist(v: &VmaEntry) {
    if v.is_changing || v.is_direct {
        return;
    }
    let _lists = v.object.i_mmap().lists();
    vmatree::rmap_remove(v.object.mapping().id, v.which(), v.index);
}
