//! Reading and writing arenas by calls: without a fault of the caller's, with errors as results.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "copies between the caller's slices and pinned arena pages")]

use super::pin::Pin;
use super::state::ArenaInner;
use super::vma::VmaEntry;
use crate::error::{Error, Result};
use crate::object::fault::Call;
use crate::object::io;
use crate::object::state::ObjectInner;
use crate::types::Access;
use crate::types::{Prot, Sharing};
use softfault_mm::page::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::types::FillError;
use softfault_platform::sys::mem;
use softfault_platform::vmatree::{self};
use std::ops::Range;
use std::sync::Arc;

/// Calls `f` for each piece of `offset..offset + len` that lies in one mapping.
fn for_each_piece(
    arena: &Arc<ArenaInner>,
    op: &'static str,
    (offset, len): (usize, usize),
    f: &mut dyn FnMut(&VmaEntry, Range<usize>) -> Result<()>,
) -> Result<()> {
    let end = offset.checked_add(len).filter(|e| *e <= arena.len_bytes);
    let end =
        end.ok_or(Error::Argument { op, arg: "offset + length", value: offset as u64, why: "leaves the arena" })?;
    if offset == end {
        return Ok(());
    }
    let covering = arena.vmas().covering(op, &(offset..end))?;
    for v in covering {
        let piece = offset.max(v.range.start)..end.min(v.range.end);
        f(&v, piece)?;
    }
    Ok(())
}

/// Reads mapped bytes.
///
/// # Errors
/// As [`Arena::read_at`](crate::Arena::read_at).
///
/// # Context: control plane
pub(super) fn read_at(arena: &Arc<ArenaInner>, offset: usize, buf: &mut [u8]) -> Result<()> {
    let op = "Arena::read_at";
    let len = buf.len();
    for_each_piece(arena, op, (offset, len), &mut |v, piece| {
        if v.prot == Prot::None {
            return Err(Error::Denied { op, what: "the mapping does not permit loads" });
        }
        let dst = &mut buf[piece.start - offset..piece.end - offset];
        if v.sharing == Sharing::Private {
            return read_private(arena, &piece, dst);
        }
        let at = (v.pgoff << PAGE_SHIFT) + (piece.start - v.range.start) as u64;
        let call = v.call(op);
        let n = io::read_for(call, &v.object, at, dst)?;
        read_past_end(call, &v.object, at, n, dst)
    })
}

/// Zeros behind the end in the last page; an error for whole pages past it.
fn read_past_end(call: Call, object: &ObjectInner, at: u64, n: usize, dst: &mut [u8]) -> Result<()> {
    let rest = dst.len() - n;
    let end = object.mapping().nr_pages() << PAGE_SHIFT;
    if at + dst.len() as u64 > end {
        return Err(call.error(object.mapping(), Access::Read, end.max(at), FillError::PastEnd));
    }
    if rest > 0 {
        dst[n..].fill(0);
    }
    Ok(())
}

/// Pins the pages around a piece of a private mapping, so that its own copies are read.
fn pin_around(arena: &Arc<ArenaInner>, piece: &Range<usize>, access: Access) -> Result<Pin> {
    let pages = piece.start & !PAGE_MASK..piece.end.next_multiple_of(PAGE_SIZE);
    Pin::with(arena, pages, access, false)
}

/// Reads a piece of a private mapping; through a chunk of the stack where the caller's buffer lies in an arena itself,
/// because touching it may fault, and no pin is held then.
fn read_private(arena: &Arc<ArenaInner>, piece: &Range<usize>, dst: &mut [u8]) -> Result<()> {
    if vmatree::overlaps_arena(dst.as_ptr() as usize, dst.len()) {
        let mut chunk = [0u8; PAGE_SIZE];
        for (i, part) in dst.chunks_mut(PAGE_SIZE).enumerate() {
            let at = piece.start + i * PAGE_SIZE;
            read_private_outside(arena, &(at..at + part.len()), &mut chunk[..part.len()])?;
            part.copy_from_slice(&chunk[..part.len()]);
        }
        return Ok(());
    }
    read_private_outside(arena, piece, dst)
}

fn read_private_outside(arena: &Arc<ArenaInner>, piece: &Range<usize>, dst: &mut [u8]) -> Result<()> {
    let pin = pin_around(arena, piece, Access::Read)?;
    let src = (arena.base + piece.start) as *const u8;
    // SAFETY: the piece is pinned: mapped and resident. Concurrent stores give torn bytes, which are bytes.
    unsafe { mem::copy_racy(dst.as_mut_ptr(), src, dst.len()) };
    drop(pin);
    Ok(())
}

/// Writes mapped bytes.
///
/// # Errors
/// As [`Arena::write_at`](crate::Arena::write_at).
///
/// # Context: control plane
pub(super) fn write_at(arena: &Arc<ArenaInner>, offset: usize, buf: &[u8]) -> Result<()> {
    let op = "Arena::write_at";
    for_each_piece(arena, op, (offset, buf.len()), &mut |v, piece| {
        if v.prot != Prot::ReadWrite {
            return Err(Error::Denied { op, what: "the mapping does not permit stores" });
        }
        let src = &buf[piece.start - offset..piece.end - offset];
        if v.sharing == Sharing::Shared {
            let at = (v.pgoff << PAGE_SHIFT) + (piece.start - v.range.start) as u64;
            let n = io::write_for(v.call(op), &v.object, at, src)?;
            if n == src.len() {
                return Ok(());
            }
            return Err(v.call(op).error(v.object.mapping(), Access::Write, at + n as u64, FillError::PastEnd));
        }
        if vmatree::overlaps_arena(src.as_ptr() as usize, src.len()) {
            let mut chunk = [0u8; PAGE_SIZE];
            for (i, part) in src.chunks(PAGE_SIZE).enumerate() {
                chunk[..part.len()].copy_from_slice(part);
                let at = piece.start + i * PAGE_SIZE;
                write_private(arena, &(at..at + part.len()), &chunk[..part.len()])?;
            }
            return Ok(());
        }
        write_private(arena, &piece, src)
    })
}

/// Writes a piece of a private mapping from a buffer outside all arenas.
fn write_private(arena: &Arc<ArenaInner>, piece: &Range<usize>, src: &[u8]) -> Result<()> {
    let pin = pin_around(arena, piece, Access::Write)?;
    let dst = (arena.base + piece.start) as *mut u8;
    // SAFETY: the piece is pinned for writing: mapped, and stores go to the mapping's own copies.
    unsafe { mem::copy_racy(dst, src.as_ptr(), src.len()) };
    drop(pin);
    Ok(())
}
