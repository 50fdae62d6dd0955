//! `Mapped`: an object and the arena that it lies in, whole: what mmap(2) gives of a file.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "the unsafe half of the API: as_slice")]

use crate::arena::{Arena, ArenaBuilder};
use crate::cache::state::RuntimeInner;
use crate::error::{Error, Result};
use crate::object::Object;
use crate::types::{Prot, Sharing};
use std::sync::Arc;

/// An object that is mapped whole, shared, into an arena of its own; see [`Runtime::map_file`](crate::Runtime::map_file).
///
/// Dropping it unmaps it. [`Mapped::arena`] and [`Mapped::object`] are the two, for everything else.
#[derive(Clone, Debug)]
pub struct Mapped {
    arena: Arena,
    object: Object,
    len_bytes: usize,
}

impl Mapped {
    /// Maps what there is of the object now; its room to grow is not mapped.
    pub(crate) fn new(rt: &Arc<RuntimeInner>, object: Object) -> Result<Self> {
        let bytes = object.len();
        let too_long = |_| Error::Argument {
            op: "Runtime::map_object",
            arg: "len_bytes",
            value: bytes,
            why: "larger than the address space",
        };
        let len_bytes = usize::try_from(bytes).map_err(too_long)?;
        let arena = ArenaBuilder::new(Arc::clone(rt), len_bytes.max(1)).build()?;
        if len_bytes > 0 {
            let prot = if object.writable { Prot::ReadWrite } else { Prot::Read };
            arena.map(0, &object, 0, len_bytes, prot, Sharing::Shared)?;
        }
        Ok(Self { arena, object, len_bytes })
    }

    /// Returns the address of the object's first byte: a multiple of 2 MiB.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.arena.as_ptr()
    }

    /// Returns the length that the object had when it was mapped, in bytes.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn len(&self) -> usize {
        self.len_bytes
    }

    /// Returns whether that is none.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Lends the bytes as a slice. Loads fault pages in; a page that cannot be had raises SIGBUS: [`Arena::read_at`] says why
    /// instead.
    ///
    /// # Context: program
    ///
    /// # Safety
    /// Nobody writes to the object while the slice lives, nor makes it shorter: no thread, mapping, process or call; and nobody
    /// unmaps or protects the arena.
    #[must_use]
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped readable by `new`; the caller's contract for the rest.
        unsafe { self.arena.as_slice(0..self.len_bytes) }
    }

    /// Returns the arena, whose offset 0 is the object's byte 0.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Returns the object.
    ///
    /// # Context: program, filler, handler
    #[must_use]
    pub fn object(&self) -> &Object {
        &self.object
    }
}
