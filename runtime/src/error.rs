//! Errors of the control plane: what was asked, of what, over which range, and why not.
//!
//! # Context: control plane: an error takes memory

use crate::delivery::Delivery;
use crate::in_the_way::InTheWay;
use crate::short::{Ranges, Short};
use crate::types::Access;
use softfault_mm::types::FillError;
use softfault_mm::types::VmFaultReason;
use softfault_platform::store::StoreError;
use softfault_platform::sys::Errno;
use std::fmt::{self, Display as _};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call of the control plane did nothing.
///
/// Ranges are byte offsets: of an arena from its first byte, of an object from its first byte.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is not what it must be. Nothing was changed.
    #[error("{op}: {arg} is {value:#x}: {why}")]
    Argument {
        /// The call.
        op: &'static str,
        /// The argument's name.
        arg: &'static str,
        /// Its value.
        value: u64,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The range is not (wholly) mapped.
    #[error("{op}: arena bytes {:#x}..{:#x} are not all mapped", range.start, range.end)]
    NotMapped {
        /// The call.
        op: &'static str,
        /// Arena bytes.
        range: Range<usize>,
    },
    /// Something is mapped there already.
    #[error("map: arena bytes {:#x}..{:#x} overlap an existing mapping; unmap it first", range.start, range.end)]
    Occupied {
        /// Arena bytes.
        range: Range<usize>,
    },
    /// Something that is not this arena's is mapped where the arena is to be.
    #[error(
        "ArenaBuilder::build: {len_bytes:#x} bytes at address {address:#x} are in use by {by}; unmap what is there, or choose others"
    )]
    AddressInUse {
        /// The first address asked for.
        address: usize,
        /// How many bytes.
        len_bytes: usize,
        /// What lies lowest there: its addresses, and what the kernel calls it (a file, `[heap]`), as far as that is known.
        by: String,
    },
    /// A pin holds the range.
    #[error("{op}: arena bytes {:#x}..{:#x} are pinned; drop the pin first", range.start, range.end)]
    Pinned {
        /// The call.
        op: &'static str,
        /// Arena bytes.
        range: Range<usize>,
    },
    /// The object or mapping does not permit this.
    #[error("{op}: {what}")]
    Denied {
        /// The call.
        op: &'static str,
        /// What is not permitted, and what would be.
        what: &'static str,
    },
    /// A page could not be had.
    #[error("{}", fault_text(op, *access, *reason, *cause, (object.as_deref(), *object_offset, *arena_offset), in_the_way.as_deref()))]
    Fault {
        /// The call.
        op: &'static str,
        /// The access.
        access: Access,
        /// The first byte that could not be had, as the call counts: of the arena or of the object.
        offset: u64,
        /// The reason bits of the fault path.
        reason: VmFaultReason,
        /// Why; `None` where a vtable of the program's said no more than the bits.
        cause: Option<FillError>,
        /// The object's label: its path, if it is a file. `None` where nothing is mapped.
        object: Option<Arc<str>>,
        /// The same byte, of the object.
        object_offset: Option<u64>,
        /// The same byte, of the arena; `None` for calls on objects.
        arena_offset: Option<usize>,
        /// What keeps the cache full, where that is the cause.
        in_the_way: Option<Box<InTheWay>>,
        /// The store's error, where it gave one.
        source: Option<std::io::Error>,
    },
    /// The asked-for delivery cannot be had here.
    #[error("delivery {mode:?} is not available: {why}")]
    Delivery {
        /// The mode.
        mode: Delivery,
        /// What is missing.
        why: String,
    },
    /// A table of the runtime, or a limit of the process, is exhausted.
    #[error("{op}: out of {what}")]
    Exhausted {
        /// The call.
        op: &'static str,
        /// What there is no more of.
        what: &'static str,
    },
    /// A system call failed.
    #[error("{op}: {call} failed: {errno}")]
    System {
        /// The call of ours.
        op: &'static str,
        /// The system call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// The store did not take pages: they stay dirty.
    #[error("{op}: writing bytes {:#x}..{:#x} of {object} to the store failed: {error}", range.start, range.end)]
    Writeback {
        /// The call.
        op: &'static str,
        /// The object's label: its path, if it is a file.
        object: Arc<str>,
        /// Object bytes.
        range: Range<u64>,
        /// Why.
        error: FillError,
        /// The store's error, where it gave one.
        source: Option<std::io::Error>,
    },
    /// The store could not make durable what it was given: what is cached of it is dirty again.
    #[error("{op}: flushing the store of {object} failed: {error}; nothing written since the last flush is durable")]
    Flush {
        /// The call.
        op: &'static str,
        /// The object's label: its path, if it is a file.
        object: Arc<str>,
        /// Why.
        error: StoreError,
        /// The store's error, where it gave one.
        source: Option<std::io::Error>,
    },
    /// A flush failed after pages had left the cache: what was written to them is gone.
    #[error("{op}: a failed flush lost what was written to bytes {} of {object}; write them again", Ranges(ranges))]
    Lost {
        /// The call.
        op: &'static str,
        /// The object's label: its path, if it is a file.
        object: Arc<str>,
        /// Object bytes.
        ranges: Vec<Range<u64>>,
    },
    /// Pages are held: not to be written back.
    #[error("{op}: bytes {:#x}..{:#x} of {object} are held dirty; drop the hold first", range.start, range.end)]
    Held {
        /// The call.
        op: &'static str,
        /// The object's label: its path, if it is a file.
        object: Arc<str>,
        /// Object bytes.
        range: Range<u64>,
    },
    /// What was to be opened is not a file of bytes that stay.
    #[error("{op}: {name} is {what}: {instead}")]
    FileType {
        /// The call.
        op: &'static str,
        /// Its path, as far as that is known.
        name: String,
        /// What it is.
        what: &'static str,
        /// What to do with it.
        instead: &'static str,
    },
    /// The file is open in this process, as the same object, with another value of an option.
    #[error(
        "{op}: {name} is open in this process with another {option}: open it with the same, or drop that object first"
    )]
    Conflict {
        /// The call.
        op: &'static str,
        /// The file's path, as far as that is known.
        name: String,
        /// The option, as the method is called that sets it.
        option: &'static str,
    },
    /// A limit of the process is too low.
    #[error("{op}: {what} is {limit}; at least {needed} is needed")]
    Limit {
        /// The call.
        op: &'static str,
        /// The limit, and what for.
        what: &'static str,
        /// Its value.
        limit: u64,
        /// The value that this call needs.
        needed: u64,
    },
    /// An image of memory cannot be opened, or is not what it says that it is.
    #[error("{op}: {source}")]
    Image {
        /// The call.
        op: &'static str,
        /// What is wrong with it, and where.
        #[source]
        source: Box<softfault_image::Error>,
    },
    /// The image was captured from a session that had been given pages of its own, which a session restored from it must be given
    /// again.
    #[error("{op}: the image needs the overlay `{name}` of bytes {:#x}..{:#x}, which was not given", range.start, range.end)]
    Overlay {
        /// The call.
        op: &'static str,
        /// What the overlay is called.
        name: String,
        /// Image bytes.
        range: Range<u64>,
    },
    /// A capture came to nothing: the program goes on as if it had not been begun, and so does an image that was there before.
    #[error("{op}: {failure}{}", source.as_ref().map_or_else(String::new, |e| format!(": {e}")))]
    Capture {
        /// The call.
        op: &'static str,
        /// What went wrong.
        failure: CaptureFailure,
        /// What it was caused by, where something else said why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Reading the environment failed.
    #[error("{op}: {}{source}", path.as_ref().map_or_else(String::new, |p| format!("{}: ", p.display())))]
    Io {
        /// The call.
        op: &'static str,
        /// The file, where it is known.
        path: Option<PathBuf>,
        /// The error.
        #[source]
        source: std::io::Error,
    },
}

/// Why a capture came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureFailure {
    /// The cut was given up, several times: stores would have waited for it for too long.
    #[error("the cut took too long, so stores were let through; is its closure waiting for a thread that stores?")]
    CutTimedOut,
    /// The closure of the cut failed, or panicked.
    #[error("the closure of the cut failed")]
    AtCut,
    /// It was cancelled.
    #[error("the capture was cancelled")]
    Cancelled,
    /// A page could not be read from its store.
    #[error("a page could not be read from its store")]
    Store,
    /// The bytes that stores had saved could not be kept.
    #[error("the bytes of pages that were stored to could not be kept")]
    Spill,
    /// The image could not be written.
    #[error("the image could not be written")]
    Image,
    /// The kernel could not protect the pages.
    #[error("the kernel could not protect pages against stores")]
    Protection,
}

impl fmt::Debug for Error {
    /// What [`fmt::Display`] says, cut where a path or a list goes on for ever: `unwrap` prints this.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Error").field(&Short(self)).finish()
    }
}

/// What a call says of a page that could not be had.
fn fault_text(
    op: &str,
    access: Access,
    reason: VmFaultReason,
    cause: Option<FillError>,
    (object, object_offset, arena_offset): (Option<&str>, Option<u64>, Option<usize>),
    in_the_way: Option<&InTheWay>,
) -> impl fmt::Display {
    let access = if access == Access::Read { "reading" } else { "writing" };
    fmt::from_fn(move |f| {
        write!(f, "{op}: {access} ")?;
        match (arena_offset, object, object_offset) {
            (Some(at), Some(object), Some(byte)) => write!(f, "arena byte {at:#x}, byte {byte:#x} of {object},")?,
            (None, Some(object), Some(byte)) => write!(f, "byte {byte:#x} of {object}")?,
            (Some(at), ..) => write!(f, "arena byte {at:#x}")?,
            _ => f.write_str("a page")?,
        }
        f.write_str(" failed: ")?;
        match cause {
            Some(cause) => cause.fmt(f)?,
            None => write!(f, "{reason:?}")?,
        }
        in_the_way.map_or(Ok(()), |why| write!(f, ": {why}"))
    })
}

/// Makes the error of bytes that the store did not take.
pub(crate) fn writeback(op: &'static str, object: &str, range: Range<u64>, error: FillError) -> Error {
    Error::Writeback { op, object: object.into(), range, error, source: error.errno().map(io) }
}

/// Makes the standard library's error of a number.
pub(crate) fn io(errno: Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno.0)
}

/// Makes a function that wraps the error of an image.
pub(crate) fn image(op: &'static str) -> impl Fn(softfault_image::Error) -> Error {
    move |source| Error::Image { op, source: Box::new(source) }
}

/// Makes the error of a flush.
pub(crate) fn flush(op: &'static str, object: &str, error: StoreError) -> Error {
    Error::Flush { op, object: object.into(), error, source: error.fill_error().errno().map(io) }
}

/// Refuses in a forked child: the words are the child's own copies, but the memory and the descriptors behind them
/// are the parent's, and an ioctl or a fill made here would change what the parent maps.
pub(crate) fn parent_only(op: &'static str) -> Result<()> {
    if softfault_platform::child::in_child() {
        return Err(Error::Denied { op, what: "objects and arenas belong to the parent of this forked process" });
    }
    Ok(())
}

/// Makes a function that wraps the error of a system call.
pub(crate) fn system(op: &'static str, call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| match errno {
        Errno::ENOMEM if call == "mmap" || call == "mprotect" => Error::Exhausted {
            op,
            what: "memory, address space (RLIMIT_AS, RLIMIT_DATA) or mappings (vm.max_map_count)",
        },
        Errno::EAGAIN if call == "mmap" => Error::Exhausted {
            op,
            what: "memory that may be locked: RLIMIT_MEMLOCK, with everything locked that is mapped",
        },
        errno => Error::System { op, call, errno },
    }
}
