//! What is captured: the mappings of arenas, which stay as they are from the look at them to the cut.
//!
//! # Context: control plane

use super::claim::Claim;
use crate::arena::Arena;
use crate::error::{Error, Result};
use crate::object::capture;
use crate::object::state::ObjectInner;
use crate::types::{Access, Prot, Sharing};
use softfault_image as image;
use softfault_mm::page::PAGE_SHIFT;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long who captures waits for pins before it looks again.
const TURN: Duration = Duration::from_millis(1);

/// Arenas whose mappings do not change. Dropped, they may again.
pub(super) struct Frozen<'a>(&'a [Arena]);

impl<'a> Frozen<'a> {
    /// Freezes arenas for capture `number`, when nobody has pinned them for writing, and claims what they map, when nobody else
    /// captures it; waits for that, or not.
    ///
    /// # Errors
    /// [`Error::Pinned`], [`Error::Denied`] where another capture has one and nobody is to wait.
    pub(super) fn new(op: &'static str, arenas: &'a [Arena], number: u32, waits: bool) -> Result<(Self, Claim)> {
        until_ready(op, waits, &|| {
            let frozen = try_freeze(op, arenas, number)?;
            let claim = claim(op, arenas)?;
            Ok((frozen, claim))
        })
    }

    /// Freezes arenas as [`Frozen::new`] does, and claims nothing.
    ///
    /// # Errors
    /// As [`Frozen::new`].
    pub(super) fn alone(op: &'static str, arenas: &'a [Arena], number: u32, waits: bool) -> Result<Self> {
        until_ready(op, waits, &|| try_freeze(op, arenas, number))
    }
}

/// Tries again while pins or another capture are in the way.
fn until_ready<T>(op: &'static str, waits: bool, f: &dyn Fn() -> Result<T>) -> Result<T> {
    loop {
        capture::refuse_in_cut(op)?;
        match f() {
            Err(Error::Pinned { .. } | Error::Denied { .. }) if waits => std::thread::sleep(TURN),
            ready => return ready,
        }
    }
}

/// Claims what frozen arenas map.
fn claim(op: &'static str, arenas: &[Arena]) -> Result<Claim> {
    let ids = |arena: &Arena| arena.inner.vmas().iter().map(|v| v.object.mapping().id).collect::<Vec<_>>();
    let what = "another capture of an object is under way: its pages are not written yet";
    Claim::take(arenas.iter().flat_map(ids).collect()).ok_or(Error::Denied { op, what })
}

fn try_freeze<'a>(op: &'static str, arenas: &'a [Arena], number: u32) -> Result<Frozen<'a>> {
    for (i, arena) in arenas.iter().enumerate() {
        // Those before are thawed if this one cannot be frozen.
        let before = Frozen(&arenas[..i]);
        let mut vmas = arena.inner.vmas();
        if vmas.frozen.is_some() {
            return Err(Error::Denied { op, what: "another capture of the arena is being cut" });
        }
        if let Some((range, _)) = vmas.pins.iter().find(|(_, access)| *access == Access::Write) {
            return Err(Error::Pinned { op, range: range.clone() });
        }
        vmas.frozen = Some(number);
        std::mem::forget(before);
    }
    Ok(Frozen(arenas))
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|arena| arena.inner.vmas().frozen = None);
    }
}

/// Pages of an object, and the image's first page of them.
pub(super) struct Span {
    pub(super) object: Arc<ObjectInner>,
    pub(super) pages: Range<u64>,
    pub(super) first: u64,
}

/// What an image of arenas consists of.
pub(super) struct Layout {
    /// In the image's order.
    pub(super) spans: Vec<Span>,
    pub(super) regions: Vec<image::Region>,
    pub(super) nr_pages: u64,
    /// Pages of the image that are left out.
    pub(super) excluded: Vec<Range<u64>>,
}

/// Looks at what frozen arenas map, in the order of addresses.
pub(super) fn look(arenas: &[Arena], leave_out: &[(usize, Range<usize>)]) -> Layout {
    let mut layout = Layout { spans: Vec::new(), regions: Vec::new(), nr_pages: 0, excluded: Vec::new() };
    for arena in arenas {
        let base = arena.as_ptr().addr();
        for v in arena.inner.vmas().iter() {
            debug_assert_eq!(v.sharing, Sharing::Shared, "a capturable arena maps objects shared");
            let (first, nr) = (layout.nr_pages, (v.range.len() >> PAGE_SHIFT) as u64);
            layout.spans.push(Span { object: Arc::clone(&v.object), pages: v.pgoff..v.pgoff + nr, first });
            layout.regions.push(image::Region {
                name: String::new(),
                address: (base + v.range.start) as u64,
                offset: first << PAGE_SHIFT,
                len_bytes: v.range.len() as u64,
                prot: image_prot(v.prot),
            });
            for (_, out) in leave_out.iter().filter(|(of, _)| *of == base) {
                let (from, to) = (out.start.max(v.range.start), out.end.min(v.range.end));
                if from < to {
                    let page = |at: usize| first + ((at - v.range.start) >> PAGE_SHIFT) as u64;
                    layout.excluded.push(page(from)..page(to));
                }
            }
            layout.nr_pages += nr;
        }
    }
    layout
}

/// Returns the numbers of the spans in the order of objects and pages.
///
/// # Errors
/// [`Error::Denied`] where a page of an object is mapped twice.
pub(super) fn by_object(op: &'static str, spans: &[Span]) -> Result<Vec<usize>> {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|i| (spans[*i].object.mapping().id, spans[*i].pages.start));
    let twice = |pair: &[usize]| {
        let (a, b) = (&spans[pair[0]], &spans[pair[1]]);
        a.object.mapping().id == b.object.mapping().id && b.pages.start < a.pages.end
    };
    if order.windows(2).any(twice) {
        return Err(Error::Denied { op, what: "a page of an object is mapped twice in what is captured" });
    }
    Ok(order)
}

pub(super) fn image_prot(prot: Prot) -> image::Prot {
    match prot {
        Prot::None => image::Prot::NONE,
        Prot::Read => image::Prot::READ,
        Prot::ReadWrite => image::Prot::from_bits(image::Prot::READ.bits() | image::Prot::WRITE.bits()),
    }
}
