//! `Restore`: what a session is to be, and its beginning.
//!
//! # Context: control plane

use super::open::OpenImage;
use super::overlay::{self, Overlay};
use super::place::{self, Span};
use super::record::Recording;
use super::session::Session;
use super::state::SessionRegion;
use crate::arena::{Arena, ArenaBuilder};
use crate::error::{Error, Result, parent_only};
use crate::object::Object;
use crate::types::{Prot, Sharing};
use softfault_image::Region;
use softfault_image::workingset::WorkingSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

const OP: &str = "Restore::build";

/// Options of a session: the regions of an image as arenas, filled as they are touched.
#[derive(Debug)]
pub struct Restore {
    image: OpenImage,
    original: bool,
    options: Options,
    overlays: Vec<(Overlay, Vec<u8>)>,
    record: Option<Duration>,
    direct: bool,
    replay: Option<WorkingSet>,
}

/// What the program asks of each arena.
struct Options(Box<dyn Fn(ArenaBuilder) -> ArenaBuilder + Send + Sync>);

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Options")
    }
}

impl Restore {
    /// Begins a session of an image, in the runtime that has it open.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn new(image: &OpenImage) -> Self {
        Self {
            image: image.clone(),
            original: false,
            options: Options(Box::new(|arena| arena)),
            overlays: Vec::new(),
            record: None,
            direct: false,
            replay: None,
        }
    }

    /// Puts each region at the address that it had, where nothing may be mapped within the 2 MiB around its ends; default: wherever
    /// the kernel has room. Linux: `MAP_FIXED_NOREPLACE`.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn at_original_addresses(mut self, yes: bool) -> Self {
        self.original = yes;
        self
    }

    /// Sets options of the session's arenas, of which there is one for each group of neighbouring regions; default: those of
    /// [`Runtime::arena`](crate::Runtime::arena). It is asked once for each arena, and cannot choose its place: that is the session's.
    /// An arena that records takes no `fault_around` and no `native_extents`.
    ///
    /// ```no_run
    /// # fn f(image: &softfault::OpenImage) -> softfault::Result<()> {
    /// use softfault::{Delivery, Restore};
    /// let session = Restore::new(image).arena(|arena| arena.delivery(Delivery::Segv).granule(64 << 10)).build()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn arena(mut self, options: impl Fn(ArenaBuilder) -> ArenaBuilder + Send + Sync + 'static) -> Self {
        self.options = Options(Box::new(options));
        self
    }

    /// Gives the session pages of its own from the image's byte `offset` on: entropy, a generation number, a mailbox. They are
    /// whole pages of one region, and never reach the image. If the session is captured, who restores that image must give an
    /// overlay of the same name and place ([`Session::overlays`]).
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn overlay(mut self, name: impl Into<String>, offset: u64, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        // One that is past the end is refused by `build`, as an empty one is.
        let end = offset.checked_add(bytes.len() as u64).unwrap_or(offset);
        let name = name.into().replace('\n', " ");
        self.overlays.push((Overlay { name, range: offset..end }, bytes));
        self
    }

    /// Whether extents (2 MiB) that lie in a file as they are, in one piece, are mapped from there: the kernel's page cache serves them
    /// with no fault of ours. They are neither in our cache nor under its limit, nor verified; and what is written to the file later
    /// shows. So the image is to be opened with [`Integrity::Trusted`](softfault_image::Integrity::Trusted), or from a memfd that is
    /// sealed against writes and shrinking. Default no.
    ///
    /// The first ones are mapped at once, others while the session is used, but for those that were stored to. Where faults arrive
    /// otherwise than `InThread`, and in a session that records, none is.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }

    /// Records which pages are touched first, in windows of time of this length, until [`Session::mark`]. Each touch is seen, page by
    /// page: so nothing is mapped around a touch and no extent is handed to the kernel, and the session has pages of its own,
    /// which no other session of the image finds cached.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn record(mut self, window: Duration) -> Self {
        self.record = Some(window);
        self
    }

    /// Reads the pages of a working set before they are touched, in the background and never in front of a page that somebody waits
    /// for; it ends where the cache is full. [`Session::progress`] says how far it has come.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn replay(mut self, set: WorkingSet) -> Self {
        self.replay = Some(set);
        self
    }

    /// Makes the session: maps its regions, and stores the overlays. Nothing else is read.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::AddressInUse`] names what is in the way. [`Error::Overlay`] names what the image needs and was not given.
    /// [`Error::Denied`] where direct extents are asked for, of files that may change.
    /// [`Error::Argument`] for overlays that are no whole pages of one region. [`Error::Delivery`], [`Error::Exhausted`],
    /// [`Error::System`]; [`Error::Fault`] where the page of an overlay cannot be had; [`Error::Image`] where a working set is of
    /// another image, or there can be none of this one. There is no session then.
    pub fn build(self) -> Result<Session> {
        parent_only(OP)?;
        let opened = &self.image.inner;
        let regions = opened.image.regions();
        if regions.is_empty() {
            let why = "the image says of no region where it was: name them by `Image::with_regions`";
            return Err(Error::Argument { op: OP, arg: "regions", value: 0, why });
        }
        self.overlays.iter().try_for_each(|(o, _)| overlay::check(OP, &opened.image, &o.range))?;
        let overlays: Vec<Overlay> = self.overlays.iter().map(|(o, _)| o.clone()).collect();
        overlay::check_all(OP, &opened.image, &overlays)?;
        let why = "regions lie inside the first 128 TiB";
        let past_end = Error::Argument { op: OP, arg: "regions", value: regions.len() as u64, why };
        let spans = if self.original { place::original(regions).ok_or(past_end)? } else { place::anywhere(regions) };
        let recording = self.record.map(|window| Recording::new(OP, &opened.image, window)).transpose()?;
        let object = match &recording {
            Some(recording) => opened.object_of_its_own(OP, recording.ops())?,
            None => opened.object.clone(),
        };
        let mut placed: Vec<(usize, SessionRegion)> = Vec::with_capacity(regions.len());
        for span in &spans {
            let arena = self.build_arena(span)?;
            for (i, offset) in &span.regions {
                if let Some(region) = regions.get(*i) {
                    map(&arena, *offset as usize, &object, region)?;
                    placed.push((*i, SessionRegion::new(region.clone(), arena.clone(), *offset as usize)));
                }
            }
        }
        placed.sort_by_key(|(i, _)| *i);
        let placed = placed.into_iter().map(|(_, r)| r).collect();
        let mut session = Session::new(self.image.clone(), object, placed, overlays);
        if self.direct && self.record.is_none() {
            session.map_direct()?;
        }
        self.overlays.iter().try_for_each(|(o, bytes)| session.store_overlay(&o.range, bytes))?;
        session.begin(recording, self.replay.as_ref())?;
        Ok(session)
    }

    fn build_arena(&self, span: &Span) -> Result<Arena> {
        let len_bytes = usize::try_from(span.len_bytes).unwrap_or(usize::MAX);
        let builder = ArenaBuilder::new(Arc::clone(&self.image.inner.object.inner.rt), len_bytes);
        let mut builder = (self.options.0)(builder).placed(len_bytes, span.at.map(|at| at as usize));
        if self.record.is_some() {
            builder = builder.fault_around(false).native_extents(false);
        }
        builder.build()
    }
}

fn map(arena: &Arena, offset: usize, object: &Object, region: &Region) -> Result<()> {
    let prot = if region.prot.contains(softfault_image::Prot::WRITE) {
        Prot::ReadWrite
    } else if region.prot == softfault_image::Prot::NONE {
        Prot::None
    } else {
        Prot::Read
    };
    let len_bytes = usize::try_from(region.len_bytes).unwrap_or(usize::MAX);
    arena.map(offset, object, region.offset, len_bytes, prot, Sharing::Private)
}
