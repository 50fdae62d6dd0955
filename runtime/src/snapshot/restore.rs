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
use crate::delivery::Delivery;
use crate::error::{Error, Result, parent_only};
use crate::object::Object;
use crate::types::{Prot, Sharing};
use softfault_image::Region;
use softfault_image::workingset::WorkingSet;
use std::sync::Arc;
use std::time::Duration;

const OP: &str = "Restore::build";

/// Options of a session: the regions of an image as arenas, filled as they are touched.
#[derive(Debug)]
pub struct Restore {
    image: OpenImage,
    original: bool,
    delivery: Delivery,
    kernel_access: bool,
    fault_around: bool,
    native_extents: bool,
    granule_bytes: Option<usize>,
    overlays: Vec<(Overlay, Vec<u8>)>,
    record: Option<Duration>,
    replay: Option<WorkingSet>,
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
            delivery: Delivery::Auto,
            kernel_access: false,
            fault_around: true,
            native_extents: true,
            granule_bytes: None,
            overlays: Vec::new(),
            record: None,
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

    /// Asks for one way in which faults arrive; default [`Delivery::Auto`].
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn delivery(mut self, mode: Delivery) -> Self {
        self.delivery = mode;
        self
    }

    /// Asks that system calls, `O_DIRECT` and KVM may touch the session's memory unprepared; see
    /// [`ArenaBuilder::kernel_access`](crate::ArenaBuilder::kernel_access).
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn kernel_access(mut self, yes: bool) -> Self {
        self.kernel_access = yes;
        self
    }

    /// Whether cached neighbours are mapped with a touched page; default yes.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn fault_around(mut self, yes: bool) -> Self {
        self.fault_around = yes;
        self
    }

    /// Whether extents that are cached whole are handed to the kernel on their own; default yes.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn native_extents(mut self, yes: bool) -> Self {
        self.native_extents = yes;
        self
    }

    /// Sets how much `Segv` delivery exposes at once; see [`ArenaBuilder::granule`](crate::ArenaBuilder::granule).
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn granule(mut self, bytes: usize) -> Self {
        self.granule_bytes = Some(bytes);
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
            let arena = self.arena(span)?;
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
        self.overlays.iter().try_for_each(|(o, bytes)| session.store_overlay(&o.range, bytes))?;
        session.begin(recording, self.replay.as_ref())?;
        Ok(session)
    }

    fn arena(&self, span: &Span) -> Result<Arena> {
        let len_bytes = usize::try_from(span.len_bytes).unwrap_or(usize::MAX);
        let mut builder = ArenaBuilder::new(Arc::clone(&self.image.inner.object.inner.rt), len_bytes)
            .delivery(self.delivery)
            .kernel_access(self.kernel_access)
            .fault_around(self.fault_around && self.record.is_none())
            .native_extents(self.native_extents && self.record.is_none());
        if let Some(bytes) = self.granule_bytes {
            builder = builder.granule(bytes);
        }
        if let Some(at) = span.at {
            builder = builder.at(at as usize);
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
