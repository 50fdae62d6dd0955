//! What went wrong: an errno for the caller, and for this thread the words, the kind, the reason bits, the lost ranges.
//!
//! # Context: control plane

use softfault::image::{Digest, Error as ImageError};
use softfault::{Error, FillError, StoreError, VmFaultReason};
use std::any::Any;
use std::cell::RefCell;
use std::ffi::{c_char, c_int};
use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) const ENOENT: i32 = 2;
pub(crate) const EIO: i32 = 5;
pub(crate) const ENXIO: i32 = 6;
pub(crate) const E2BIG: i32 = 7;
pub(crate) const EBADF: i32 = 9;
pub(crate) const ENOMEM: i32 = 12;
pub(crate) const EACCES: i32 = 13;
pub(crate) const EFAULT: i32 = 14;
pub(crate) const EBUSY: i32 = 16;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENODEV: i32 = 19;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const EMFILE: i32 = 24;
pub(crate) const ENODATA: i32 = 61;
pub(crate) const EBADMSG: i32 = 74;
pub(crate) const EOPNOTSUPP: i32 = 95;
pub(crate) const ESTALE: i32 = 116;
pub(crate) const ENOTRECOVERABLE: i32 = 131;
pub(crate) const EHWPOISON: i32 = 133;

/// No call has failed on this thread.
pub const SOFTFAULT_ERROR_NONE: u32 = 0;
/// An argument is not what it must be; nothing was changed. -EINVAL, or -E2BIG for an option structure of a later version.
pub const SOFTFAULT_ERROR_ARGUMENT: u32 = 1;
/// A handle that is not, or no longer, valid. -EBADF; -EINVAL for NULL.
pub const SOFTFAULT_ERROR_HANDLE: u32 = 2;
/// The range is not wholly mapped. -ENXIO.
pub const SOFTFAULT_ERROR_NOT_MAPPED: u32 = 3;
/// Something is mapped there already. -EEXIST.
pub const SOFTFAULT_ERROR_OCCUPIED: u32 = 4;
/// A pin holds the range. -EBUSY.
pub const SOFTFAULT_ERROR_PINNED: u32 = 5;
/// The object or mapping does not permit it, or this is a forked child. -EACCES.
pub const SOFTFAULT_ERROR_DENIED: u32 = 6;
/// A page could not be had: softfault_last_fault_reason() has the bits, softfault_last_fault() why and where. The store's
/// errno where it gave one; else -ENOMEM (OOM), -EHWPOISON, -EFAULT (SIGSEGV), or -EIO.
pub const SOFTFAULT_ERROR_FAULT: u32 = 7;
/// The delivery that was asked for cannot be had here. -EOPNOTSUPP.
pub const SOFTFAULT_ERROR_DELIVERY: u32 = 8;
/// A table, or a limit of the process, is exhausted. -ENOMEM.
pub const SOFTFAULT_ERROR_EXHAUSTED: u32 = 9;
/// A system call failed. Its errno.
pub const SOFTFAULT_ERROR_SYSTEM: u32 = 10;
/// The store did not take pages; they stay dirty. The store's errno where it gave one; else as SOFTFAULT_ERROR_FAULT.
pub const SOFTFAULT_ERROR_WRITEBACK: u32 = 11;
/// The store could not make durable what it was given. The store's errno.
pub const SOFTFAULT_ERROR_FLUSH: u32 = 12;
/// A flush failed after pages had left the cache: softfault_last_lost_ranges() names them. -EIO.
pub const SOFTFAULT_ERROR_LOST: u32 = 13;
/// Pages are held dirty. -EBUSY.
pub const SOFTFAULT_ERROR_HELD: u32 = 14;
/// Input or output of the control plane failed. Its errno.
pub const SOFTFAULT_ERROR_IO: u32 = 15;
/// There is nothing of that name or number. -ENOENT.
pub const SOFTFAULT_ERROR_NO_ENTRY: u32 = 16;
/// A bug of the library: a panic was caught. -ENOTRECOVERABLE; free what was involved.
pub const SOFTFAULT_ERROR_INTERNAL: u32 = 17;
/// An error of a kind that a later version has. -EIO.
pub const SOFTFAULT_ERROR_OTHER: u32 = 18;
/// What was to be opened is not a file of bytes that stay: a directory, a pipe, a file of procfs. -ENODEV, as mmap(2) has it.
pub const SOFTFAULT_ERROR_FILE_TYPE: u32 = 19;
/// The file is open in this process, as the same object, with other options: the words name the one. -EBUSY.
pub const SOFTFAULT_ERROR_CONFLICT: u32 = 20;
/// A limit of the process is too low: the words name it, its value, and the one that is needed. -EMFILE for RLIMIT_NOFILE,
/// else -ENOMEM.
pub const SOFTFAULT_ERROR_LIMIT: u32 = 21;
/// An image of memory cannot be read or written, or is not what it says: softfault_last_image_failure() says what and where,
/// softfault_last_object() of which file. Its errno where a system call failed; else -EBADMSG (damaged), -EOPNOTSUPP, -ESTALE
/// (the file is another by now), -EBUSY (in use), -EINVAL (two things that do not belong together).
pub const SOFTFAULT_ERROR_IMAGE: u32 = 22;
/// The image needs an overlay that was not given: the words name it, and its bytes. -ENODATA.
pub const SOFTFAULT_ERROR_OVERLAY: u32 = 23;
/// A capture came to nothing: the words say why. -EIO.
pub const SOFTFAULT_ERROR_CAPTURE: u32 = 24;

/// No cause is known: the last failure was none of a page, or a vtable of the program's said no.
pub const SOFTFAULT_CAUSE_NONE: u32 = 0;
/// The store reported an error: its errno is beside it.
pub const SOFTFAULT_CAUSE_IO: u32 = 1;
/// The store ended before the object did.
pub const SOFTFAULT_CAUSE_SHORT: u32 = 2;
/// The content failed its check.
pub const SOFTFAULT_CAUSE_CORRUPT: u32 = 3;
/// The store did not answer before the deadline.
pub const SOFTFAULT_CAUSE_DEADLINE: u32 = 4;
/// No memory for the page, or for its page table.
pub const SOFTFAULT_CAUSE_NO_MEMORY: u32 = 5;
/// A delegate refused the page, or the runtime an access that must not be made.
pub const SOFTFAULT_CAUSE_REFUSED: u32 = 6;
/// The cache's limit is reached, or the object's own, and nothing can leave: the words of softfault_last_error() say what
/// is in the way.
pub const SOFTFAULT_CAUSE_CACHE_FULL: u32 = 7;
/// Past the end of the object.
pub const SOFTFAULT_CAUSE_PAST_END: u32 = 8;
/// The page has as many pins as a page can have.
pub const SOFTFAULT_CAUSE_NO_PINS: u32 = 9;
/// The mapping does not permit the access.
pub const SOFTFAULT_CAUSE_NOT_PERMITTED: u32 = 10;
/// Nothing is mapped there.
pub const SOFTFAULT_CAUSE_NOT_MAPPED: u32 = 11;
/// The cache's memory is not what its words say.
pub const SOFTFAULT_CAUSE_BROKEN: u32 = 12;

/// A system call on the image's file failed.
pub const SOFTFAULT_IMAGE_CAUSE_IO: u32 = 1;
/// The file is not what its format says: truncated, damaged, or made to deceive.
pub const SOFTFAULT_IMAGE_CAUSE_CORRUPT: u32 = 2;
/// Bytes are not those that the image was made of.
pub const SOFTFAULT_IMAGE_CAUSE_DIGEST: u32 = 3;
/// The image is whole, but asks for what this build does not know.
pub const SOFTFAULT_IMAGE_CAUSE_UNSUPPORTED: u32 = 4;
/// A file below the image is no longer the one that the image was made over.
pub const SOFTFAULT_IMAGE_CAUSE_CHANGED: u32 = 5;
/// Something else holds what is to be removed.
pub const SOFTFAULT_IMAGE_CAUSE_IN_USE: u32 = 6;
/// Two things cannot be put together: a working set and the image of another content, say.
pub const SOFTFAULT_IMAGE_CAUSE_MIXED: u32 = 7;
/// A cause that a later version has.
pub const SOFTFAULT_IMAGE_CAUSE_OTHER: u32 = 8;

/// A digest (BLAKE3) of a file or of contents; all zeros stands for none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct softfault_digest {
    /// Its bytes, in the order in which they are written.
    pub bytes: [u8; 32],
}

impl From<Digest> for softfault_digest {
    fn from(digest: Digest) -> Self {
        Self { bytes: *digest.as_bytes() }
    }
}

/// What is wrong with an image, and where.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct softfault_image_failure {
    /// SOFTFAULT_IMAGE_CAUSE_*.
    pub cause: u32,
    /// What a system call said, positive; 0 if none failed.
    pub system_errno: c_int,
    /// The byte of the file; UINT64_MAX if it is about no byte.
    pub file_offset: u64,
    /// With SOFTFAULT_IMAGE_CAUSE_DIGEST: what the image says.
    pub wanted: softfault_digest,
    /// With SOFTFAULT_IMAGE_CAUSE_DIGEST: what the bytes say.
    pub found: softfault_digest,
}

/// Returns what is wrong with an image, and of which file that is; `None`: the caller's argument is.
pub(crate) fn image_failure_of(error: &ImageError) -> Option<(softfault_image_failure, String)> {
    let none = softfault_image_failure { file_offset: u64::MAX, ..softfault_image_failure::default() };
    let (cause, path, mut failure) = match error {
        ImageError::Argument { .. } => return None,
        ImageError::Io { path, source, .. } => {
            let system_errno = source.raw_os_error().map_or(0, positive);
            (SOFTFAULT_IMAGE_CAUSE_IO, Some(path), softfault_image_failure { system_errno, ..none })
        }
        ImageError::Corrupt { path, offset, .. } => {
            (SOFTFAULT_IMAGE_CAUSE_CORRUPT, Some(path), softfault_image_failure { file_offset: *offset, ..none })
        }
        ImageError::Digest { path, offset, wanted, found, .. } => {
            let (wanted, found) = ((*wanted).into(), (*found).into());
            let failure = softfault_image_failure { file_offset: *offset, wanted, found, ..none };
            (SOFTFAULT_IMAGE_CAUSE_DIGEST, Some(path), failure)
        }
        ImageError::Unsupported { path, .. } => (SOFTFAULT_IMAGE_CAUSE_UNSUPPORTED, Some(path), none),
        ImageError::Changed { path, .. } => (SOFTFAULT_IMAGE_CAUSE_CHANGED, Some(path), none),
        ImageError::InUse { path, .. } => (SOFTFAULT_IMAGE_CAUSE_IN_USE, Some(path), none),
        ImageError::Mixed { .. } => (SOFTFAULT_IMAGE_CAUSE_MIXED, None, none),
        _ => (SOFTFAULT_IMAGE_CAUSE_OTHER, None, none),
    };
    failure.cause = cause;
    Some((failure, path.map(|p| p.display().to_string()).unwrap_or_default()))
}

fn errno_of_image(error: &ImageError) -> i32 {
    match error {
        // What has no number was found by us: a file that is there already, or is not.
        ImageError::Io { source, .. } => source.raw_os_error().map_or_else(|| errno_of_kind(source.kind()), positive),
        ImageError::Corrupt { .. } | ImageError::Digest { .. } => EBADMSG,
        ImageError::Unsupported { .. } => EOPNOTSUPP,
        ImageError::Changed { .. } => ESTALE,
        ImageError::InUse { .. } => EBUSY,
        ImageError::Mixed { .. } | ImageError::Argument { .. } => EINVAL,
        _ => EIO,
    }
}

fn errno_of_kind(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::AlreadyExists => EEXIST,
        ErrorKind::NotFound => ENOENT,
        ErrorKind::PermissionDenied => EACCES,
        ErrorKind::InvalidInput => EINVAL,
        _ => EIO,
    }
}

/// Returns the number of a cause, and its errno or 0.
pub(crate) fn cause_of(cause: Option<FillError>) -> (u32, c_int) {
    match cause {
        // Its code is the number, with the errno above.
        Some(error) => (u32::from(error.code() & 0xf), error.errno().map_or(0, |e| e.0)),
        None => (SOFTFAULT_CAUSE_NONE, 0),
    }
}

/// Why, and where, a page could not be had, or was not written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct softfault_fault {
    /// SOFTFAULT_CAUSE_*.
    pub cause: u32,
    /// The store's errno, positive; 0 if it gave none.
    pub store_errno: c_int,
    /// The byte of the object; UINT64_MAX if that is not known.
    pub object_offset: u64,
    /// The same byte, of the arena; UINT64_MAX for calls on objects.
    pub arena_offset: u64,
}

/// A range of bytes: of an object, or of an arena.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct softfault_range {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
}

impl From<&Range<u64>> for softfault_range {
    fn from(r: &Range<u64>) -> Self {
        Self { start: r.start, end: r.end }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// A positive errno.
    pub(crate) errno: i32,
    pub(crate) kind: u32,
    pub(crate) message: String,
    pub(crate) reason: u32,
    pub(crate) lost: Vec<softfault_range>,
    pub(crate) fault: Option<Box<softfault_fault>>,
    pub(crate) object: String,
    pub(crate) image: Option<Box<softfault_image_failure>>,
}

impl Failure {
    pub(crate) fn new(errno: i32, kind: u32, message: impl fmt::Display) -> Self {
        let (message, object) = (message.to_string(), String::new());
        Self { errno, kind, message, reason: 0, lost: Vec::new(), fault: None, object, image: None }
    }
    pub(crate) fn argument(message: impl fmt::Display) -> Self {
        Self::new(EINVAL, SOFTFAULT_ERROR_ARGUMENT, message)
    }

    /// Makes the failure of an image, in these words.
    fn of_image(error: &ImageError, words: impl fmt::Display) -> Self {
        match image_failure_of(error) {
            Some((image, object)) => {
                let failure = Self::new(errno_of_image(error), SOFTFAULT_ERROR_IMAGE, words);
                Self { object, image: Some(Box::new(image)), ..failure }
            }
            None => Self::argument(words),
        }
    }

    fn panicked(payload: Box<dyn Any + Send>) -> Self {
        let words = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(|s| &**s));
        let message = format!("a bug of softfault: {}", words.unwrap_or("a panic without words"));
        // Its destructor may panic, too.
        std::mem::forget(payload);
        Self::new(ENOTRECOVERABLE, SOFTFAULT_ERROR_INTERNAL, message)
    }

    /// Keeps the words for this thread; returns what the caller gets.
    fn report(self) -> c_int {
        let errno = self.errno;
        // A thread that is ending has no words any more.
        let _ = LAST.try_with(|last| last.replace(Some(self)));
        -errno
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::of_image(&error, &error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (errno, kind) = match &error {
            Error::Argument { .. } => (EINVAL, SOFTFAULT_ERROR_ARGUMENT),
            Error::NotMapped { .. } => (ENXIO, SOFTFAULT_ERROR_NOT_MAPPED),
            Error::Occupied { .. } | Error::AddressInUse { .. } => (EEXIST, SOFTFAULT_ERROR_OCCUPIED),
            Error::Pinned { .. } => (EBUSY, SOFTFAULT_ERROR_PINNED),
            Error::Denied { .. } => (EACCES, SOFTFAULT_ERROR_DENIED),
            Error::Fault { reason, cause, .. } => (errno_of_fault(*reason, *cause), SOFTFAULT_ERROR_FAULT),
            Error::Delivery { .. } => (EOPNOTSUPP, SOFTFAULT_ERROR_DELIVERY),
            Error::Exhausted { .. } => (ENOMEM, SOFTFAULT_ERROR_EXHAUSTED),
            Error::System { errno, .. } => (positive(errno.0), SOFTFAULT_ERROR_SYSTEM),
            Error::Writeback { error, .. } => (errno_of_fault(error.reason(), Some(*error)), SOFTFAULT_ERROR_WRITEBACK),
            Error::Flush { error, .. } => (errno_of_store(*error), SOFTFAULT_ERROR_FLUSH),
            Error::Lost { .. } => (EIO, SOFTFAULT_ERROR_LOST),
            Error::Held { .. } => (EBUSY, SOFTFAULT_ERROR_HELD),
            Error::FileType { .. } => (ENODEV, SOFTFAULT_ERROR_FILE_TYPE),
            Error::Conflict { .. } => (EBUSY, SOFTFAULT_ERROR_CONFLICT),
            Error::Limit { what, .. } => {
                (if what.starts_with("RLIMIT_NOFILE") { EMFILE } else { ENOMEM }, SOFTFAULT_ERROR_LIMIT)
            }
            Error::Io { source, .. } => (source.raw_os_error().map_or(EIO, positive), SOFTFAULT_ERROR_IO),
            Error::Image { source, .. } => return Self::of_image(source, &error),
            Error::Overlay { .. } => (ENODATA, SOFTFAULT_ERROR_OVERLAY),
            Error::Capture { .. } => (EIO, SOFTFAULT_ERROR_CAPTURE),
            _ => (EIO, SOFTFAULT_ERROR_OTHER),
        };
        let mut failure = Self::new(errno, kind, &error);
        match &error {
            Error::Fault { reason, cause, object_offset, arena_offset, .. } => {
                failure.reason = reason.0;
                failure.fault = Some(Box::new(fault_of(*cause, *object_offset, arena_offset.map(|at| at as u64))));
            }
            Error::Writeback { error, range, .. } => {
                failure.fault = Some(Box::new(fault_of(Some(*error), Some(range.start), None)));
            }
            Error::Flush { error, .. } => {
                failure.fault = Some(Box::new(fault_of(Some(error.fill_error()), None, None)))
            }
            Error::Lost { ranges, .. } => failure.lost = ranges.iter().map(softfault_range::from).collect(),
            _ => {}
        }
        failure.object = object_of(&error).unwrap_or_default().to_owned();
        failure
    }
}

fn fault_of(cause: Option<FillError>, object_offset: Option<u64>, arena_offset: Option<u64>) -> softfault_fault {
    let (cause, store_errno) = cause_of(cause);
    let or_none = |at: Option<u64>| at.unwrap_or(u64::MAX);
    softfault_fault { cause, store_errno, object_offset: or_none(object_offset), arena_offset: or_none(arena_offset) }
}

/// Returns the label of the object that an error is about.
fn object_of(error: &Error) -> Option<&str> {
    match error {
        Error::Fault { object, .. } => object.as_deref(),
        Error::Writeback { object, .. }
        | Error::Flush { object, .. }
        | Error::Lost { object, .. }
        | Error::Held { object, .. } => Some(object),
        _ => None,
    }
}

fn positive(errno: i32) -> i32 {
    if errno > 0 { errno } else { EIO }
}

fn errno_of_fault(reason: VmFaultReason, cause: Option<FillError>) -> i32 {
    if let Some(errno) = cause.and_then(FillError::errno) {
        positive(errno.0)
    } else if reason.intersects(VmFaultReason::OOM) {
        ENOMEM
    } else if reason.intersects(VmFaultReason::HWPOISON) {
        EHWPOISON
    } else if reason.intersects(VmFaultReason::SIGSEGV) {
        EFAULT
    } else {
        EIO
    }
}

fn errno_of_store(error: StoreError) -> i32 {
    match error {
        StoreError::Io(errno) => positive(errno.0),
        StoreError::Short => ENODATA,
        StoreError::Corrupt => EBADMSG,
        StoreError::NoMemory => ENOMEM,
        StoreError::Unsupported => EOPNOTSUPP,
    }
}

thread_local! {
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// Runs a call: its errors become an errno and this thread's words, its panics an error.
pub(crate) fn entry(f: impl FnOnce() -> Result<(), Failure>) -> c_int {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => 0,
        Ok(Err(failure)) => failure.report(),
        Err(payload) => Failure::panicked(payload).report(),
    }
}

/// Runs what cannot fail, and is asked about the last failure; `none` if there is none.
fn about_last<T>(none: T, f: impl FnOnce(&Failure) -> T) -> T {
    let asked = catch_unwind(AssertUnwindSafe(|| LAST.try_with(|last| last.borrow().as_ref().map(f))));
    asked.ok().and_then(Result::ok).flatten().unwrap_or(none)
}

/// Copies the words of this thread's last failed call into buf, as snprintf(3): at most len bytes, the last one NUL. The
/// words name the call, the argument or the range, and why.
///
/// Returns the full length without the NUL; 0 if no call has failed. A call that succeeds leaves the words as they are.
/// buf may be NULL if len is 0.
///
/// Context: program, filler. Thread-safe: each thread has its own.
///
/// # Safety
/// buf has room for len bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_last_error(buf: *mut c_char, len: usize) -> usize {
    about_last(0, |last| {
        // SAFETY: the caller's contract.
        unsafe { copy_text(&last.message, buf, len) };
        last.message.len()
    })
}

/// Returns the kind of this thread's last failure: SOFTFAULT_ERROR_*. Several kinds may share an errno.
///
/// Context: program, filler.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_last_error_kind() -> u32 {
    about_last(SOFTFAULT_ERROR_NONE, |last| last.kind)
}

/// Returns the SOFTFAULT_VM_FAULT_* bits of this thread's last failure, if that was SOFTFAULT_ERROR_FAULT, else 0.
///
/// Context: program, filler.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_last_fault_reason() -> u32 {
    about_last(0, |last| last.reason)
}

/// Writes why this thread's last failure could not have, or write, a page: its cause, the store's errno, and both offsets.
///
/// Errors: -ENOENT: the last failure was not SOFTFAULT_ERROR_FAULT, _WRITEBACK or _FLUSH. -EINVAL: out is NULL. This call is
/// not itself the last failure.
///
/// Context: program, filler.
///
/// # Safety
/// out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_last_fault(out: *mut softfault_fault) -> c_int {
    if out.is_null() {
        return -EINVAL;
    }
    match about_last(None, |last| last.fault.as_deref().copied()) {
        Some(fault) => {
            // SAFETY: not null, and the caller's contract. It need not be aligned.
            unsafe { out.write_unaligned(fault) };
            0
        }
        None => -ENOENT,
    }
}

/// Writes what was wrong with an image, if this thread's last failure was SOFTFAULT_ERROR_IMAGE.
///
/// Errors: -ENOENT: it was not. -EINVAL: out is NULL. This call is not itself the last failure.
///
/// Context: program, filler.
///
/// # Safety
/// out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_last_image_failure(out: *mut softfault_image_failure) -> c_int {
    if out.is_null() {
        return -EINVAL;
    }
    match about_last(None, |last| last.image.as_deref().copied()) {
        Some(failure) => {
            // SAFETY: not null, and the caller's contract. It need not be aligned.
            unsafe { out.write_unaligned(failure) };
            0
        }
        None => -ENOENT,
    }
}

/// Copies the label of the object that this thread's last failure was about, as softfault_last_error(): a file's path, or
/// what softfault_object_options.label said; of SOFTFAULT_ERROR_IMAGE the path of the image's file.
///
/// Returns the full length without the NUL; 0 if the failure was about no object.
///
/// Context: program, filler.
///
/// # Safety
/// buf has room for len bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_last_object(buf: *mut c_char, len: usize) -> usize {
    about_last(0, |last| {
        // SAFETY: the caller's contract.
        unsafe { copy_text(&last.object, buf, len) };
        last.object.len()
    })
}

/// Copies up to nr of the object ranges whose writes were lost, if this thread's last failure was SOFTFAULT_ERROR_LOST.
///
/// Returns how many there are in all. ranges may be NULL if nr is 0. See softfault_object_lost().
///
/// Context: program, filler.
///
/// # Safety
/// ranges has room for nr elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_last_lost_ranges(ranges: *mut softfault_range, nr: usize) -> usize {
    about_last(0, |last| {
        // SAFETY: the caller's contract.
        unsafe { copy_ranges(&last.lost, ranges, nr) };
        last.lost.len()
    })
}

/// Copies as much of `text` as fits, and a NUL.
///
/// # Safety
/// `buf` has room for `len` bytes, or is null.
pub(crate) unsafe fn copy_text(text: &str, buf: *mut c_char, len: usize) {
    if buf.is_null() || len == 0 {
        return;
    }
    let nr = text.len().min(len - 1);
    let dst = buf.cast::<u8>();
    // SAFETY: `nr` is less than `len`, the room in `buf`; the text is ours, so they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), dst, nr) };
    // SAFETY: `nr` is less than `len`.
    unsafe { dst.wrapping_add(nr).write(0) };
}

/// Copies as many of `ranges` as fit.
///
/// # Safety
/// `dst` has room for `nr` elements, or is null.
pub(crate) unsafe fn copy_ranges(ranges: &[softfault_range], dst: *mut softfault_range, nr: usize) {
    if dst.is_null() {
        return;
    }
    for (i, range) in ranges.iter().take(nr).enumerate() {
        // SAFETY: `i` is less than `nr`, the room in `dst`.
        unsafe { dst.wrapping_add(i).write_unaligned(*range) };
    }
}
