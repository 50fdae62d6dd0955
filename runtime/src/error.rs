//! Errors of the control plane: what was asked, of what, over which range, and why not.

use crate::{Access, VmFaultReason};
use softfault_platform::sys::Errno;
use std::ops::Range;

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call of the control plane did nothing.
///
/// Ranges are byte offsets: of an arena from its first byte, of an object from its first byte.
#[derive(Debug, thiserror::Error)]
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
    /// A page could not be had: the fault path's reason.
    #[error("{op}: {access:?} at byte {offset:#x} failed: {reason:?}")]
    Fault {
        /// The call.
        op: &'static str,
        /// The access.
        access: Access,
        /// Where, in bytes of the arena or object.
        offset: u64,
        /// The reason bits.
        reason: VmFaultReason,
    },
    /// The asked-for delivery cannot be had here.
    #[error("delivery {mode:?} is not available: {why}")]
    Delivery {
        /// The mode.
        mode: crate::Delivery,
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
    #[error("{op}: writing object bytes {:#x}..{:#x} to the store failed: {error:?}", range.start, range.end)]
    Writeback {
        /// The call.
        op: &'static str,
        /// Object bytes.
        range: Range<u64>,
        /// Why.
        error: softfault_mm::types::FillError,
    },
    /// The store could not make durable what it was given: what is cached of it is dirty again.
    #[error("{op}: flushing the store failed: {error}; nothing written since the last flush is durable")]
    Flush {
        /// The call.
        op: &'static str,
        /// Why.
        error: softfault_platform::store::StoreError,
    },
    /// A flush failed after pages had left the cache: what was written to them is gone.
    #[error("{op}: a failed flush lost what was written to object bytes {ranges:x?}; write them again")]
    Lost {
        /// The call.
        op: &'static str,
        /// Object bytes.
        ranges: Vec<Range<u64>>,
    },
    /// Pages are held: not to be written back.
    #[error("{op}: object bytes {:#x}..{:#x} are held dirty; drop the hold first", range.start, range.end)]
    Held {
        /// The call.
        op: &'static str,
        /// Object bytes.
        range: Range<u64>,
    },
    /// Reading the environment failed.
    #[error("{op}: {source}")]
    Io {
        /// The call.
        op: &'static str,
        /// The error.
        #[source]
        source: std::io::Error,
    },
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
        Errno::ENOMEM if call == "mmap" || call == "mprotect" => {
            Error::Exhausted { op, what: "memory, address space (RLIMIT_AS) or mappings (vm.max_map_count)" }
        }
        Errno::EFBIG => Error::Exhausted { op, what: "file size: RLIMIT_FSIZE is smaller than the cache region" },
        errno => Error::System { op, call, errno },
    }
}
