//! What crosses from Rust to C: every kind of error has its errno and its kind, and a panic is an error, too.
#![allow(dead_code, unreachable_pub, non_camel_case_types, reason = "src/error.rs is the library's")]

#[path = "../src/error.rs"]
mod error;

use error::{Failure, entry, softfault_range};
use softfault::{Access, Delivery, Errno, Error, StoreError, VmFaultReason};
use std::ffi::{c_char, c_int};

fn words() -> String {
    let mut buf = [0u8; 200];
    // SAFETY: as long as it is said to be.
    let full = unsafe { error::softfault_last_error(buf.as_mut_ptr().cast::<c_char>(), buf.len()) };
    String::from_utf8_lossy(&buf[..full.min(buf.len() - 1)]).into_owned()
}

fn fails(e: Error) -> (c_int, u32, String) {
    let returned = entry(|| Err(Failure::from(e)));
    (returned, error::softfault_last_error_kind(), words())
}

#[test]
fn a_panic_is_an_error() {
    std::panic::set_hook(Box::new(|_| {}));
    assert_eq!(entry(|| panic!("at byte {}", 7)), -131);
    assert_eq!(words(), "a bug of softfault: at byte 7");
    assert_eq!(error::softfault_last_error_kind(), error::SOFTFAULT_ERROR_INTERNAL);
    assert_eq!(entry(|| panic!("plain")), -131);
    assert_eq!(words(), "a bug of softfault: plain");

    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload's destructor");
        }
    }
    assert_eq!(entry(|| std::panic::panic_any(Bomb)), -131);
    assert_eq!(words(), "a bug of softfault: a panic without words");
    let _ = std::panic::take_hook();
}

#[test]
fn every_kind_of_error_has_its_errno() {
    use error::*;
    let op = "op";
    let argument = Error::Argument { op, arg: "len", value: 5, why: "too odd" };
    assert_eq!(fails(argument), (-22, SOFTFAULT_ERROR_ARGUMENT, "op: len is 0x5: too odd".into()));
    let flush = |error| Error::Flush { op, object: "it".into(), error, source: None };
    let kinds = [
        (Error::NotMapped { op, range: 0..4096 }, 6, SOFTFAULT_ERROR_NOT_MAPPED),
        (Error::Occupied { range: 0..4096 }, 17, SOFTFAULT_ERROR_OCCUPIED),
        (Error::Pinned { op, range: 0..4096 }, 16, SOFTFAULT_ERROR_PINNED),
        (Error::Denied { op, what: "no" }, 13, SOFTFAULT_ERROR_DENIED),
        (Error::Delivery { mode: Delivery::Monitor, why: "no".into() }, 95, SOFTFAULT_ERROR_DELIVERY),
        (Error::Exhausted { op, what: "all" }, 12, SOFTFAULT_ERROR_EXHAUSTED),
        (Error::System { op, call: "mmap", errno: Errno::EBUSY }, 16, SOFTFAULT_ERROR_SYSTEM),
        (flush(StoreError::Short), 61, SOFTFAULT_ERROR_FLUSH),
        (flush(StoreError::Corrupt), 74, SOFTFAULT_ERROR_FLUSH),
        (flush(StoreError::NoMemory), 12, SOFTFAULT_ERROR_FLUSH),
        (flush(StoreError::Unsupported), 95, SOFTFAULT_ERROR_FLUSH),
        (flush(StoreError::Io(Errno(28))), 28, SOFTFAULT_ERROR_FLUSH),
        (Error::Held { op, object: "it".into(), range: 0..4096 }, 16, SOFTFAULT_ERROR_HELD),
        (Error::Io { op, path: None, source: std::io::Error::from_raw_os_error(30) }, 30, SOFTFAULT_ERROR_IO),
        (Error::Io { op, path: None, source: std::io::Error::other("strange") }, 5, SOFTFAULT_ERROR_IO),
    ];
    for (e, errno, kind) in kinds {
        let text = format!("{e}");
        assert_eq!(fails(e), (-errno, kind, text));
    }
}

#[test]
fn reasons_and_ranges_are_kept_with_the_words() {
    let fault = |reason| Error::Fault {
        op: "op",
        access: Access::Write,
        offset: 4096,
        reason,
        cause: None,
        object: None,
        object_offset: None,
        arena_offset: None,
        in_the_way: None,
        source: None,
    };
    for (reason, errno) in [
        (VmFaultReason::OOM, 12),
        (VmFaultReason::HWPOISON, 133),
        (VmFaultReason::SIGSEGV, 14),
        (VmFaultReason::SIGBUS | VmFaultReason::MAJOR, 5),
    ] {
        assert_eq!(fails(fault(reason)).0, -errno);
        assert_eq!(error::softfault_last_fault_reason(), reason.0);
    }
    let range = |start, end| softfault_range { start, end };
    assert_eq!(fails(Error::Lost { op: "op", object: "it".into(), ranges: vec![0..4096, 8192..12288] }).0, -5);
    assert_eq!(error::softfault_last_fault_reason(), 0);
    let mut two = [range(1, 1); 3];
    // SAFETY: room for two, of three.
    let all = unsafe { error::softfault_last_lost_ranges(two.as_mut_ptr(), 1) };
    assert_eq!((all, two), (2, [range(0, 4096), range(1, 1), range(1, 1)]));
}

/// What is wrong with an image, and where, whether a runtime says so or the image's own crate.
#[test]
fn failures_of_images_are_kept_with_the_words() {
    use error::*;
    use softfault::image::{Digest, Error as ImageError};
    let path = std::path::PathBuf::from("/images/heap.sfi");
    let io = |source| ImageError::Io { op: "open", path: path.clone(), source };
    let (wanted, found) = (Digest::of(b"one"), Digest::of(b"other"));
    let what = "a frame";
    let kinds = [
        (io(std::io::Error::from_raw_os_error(13)), 13, SOFTFAULT_IMAGE_CAUSE_IO, u64::MAX),
        (io(std::io::ErrorKind::AlreadyExists.into()), 17, SOFTFAULT_IMAGE_CAUSE_IO, u64::MAX),
        (
            ImageError::Corrupt { path: path.clone(), what, offset: 64, why: "odd".into() },
            74,
            SOFTFAULT_IMAGE_CAUSE_CORRUPT,
            64,
        ),
        (
            ImageError::Digest { path: path.clone(), what, offset: 128, wanted, found },
            74,
            SOFTFAULT_IMAGE_CAUSE_DIGEST,
            128,
        ),
        (ImageError::Changed { path: path.clone(), what }, 116, SOFTFAULT_IMAGE_CAUSE_CHANGED, u64::MAX),
        (ImageError::InUse { path, why: "held".into() }, 16, SOFTFAULT_IMAGE_CAUSE_IN_USE, u64::MAX),
    ];
    for (e, errno, cause, offset) in kinds {
        let digests = matches!(e, ImageError::Digest { .. });
        let text = format!("op: {e}");
        let told = fails(Error::Image { op: "op", source: Box::new(e) });
        assert_eq!(told, (-errno, SOFTFAULT_ERROR_IMAGE, text));
        let mut failure = softfault_image_failure::default();
        // SAFETY: it may be written.
        assert_eq!(unsafe { softfault_last_image_failure(&raw mut failure) }, 0);
        assert_eq!((failure.cause, failure.file_offset), (cause, offset));
        assert_eq!(failure.wanted == wanted.into() && failure.found == found.into(), digests);
        // SAFETY: no room is needed for nothing.
        assert_eq!(unsafe { softfault_last_object(std::ptr::null_mut(), 0) }, "/images/heap.sfi".len());
    }
    let argument = ImageError::Argument { op: "Reader::read", arg: "into", value: 5, why: "no page" };
    assert_eq!(fails(Error::Image { op: "op", source: Box::new(argument) }).1, SOFTFAULT_ERROR_ARGUMENT);
    let mut none = softfault_image_failure::default();
    // SAFETY: it may be written.
    assert_eq!(unsafe { softfault_last_image_failure(&raw mut none) }, -2);
    let overlay = Error::Overlay { op: "op", name: "entropy".into(), range: 0..4096 };
    assert_eq!((fails(overlay).0, softfault_last_error_kind()), (-61, SOFTFAULT_ERROR_OVERLAY));
}

/// Each thread has its own.
#[test]
fn words_belong_to_a_thread() {
    let _ = fails(Error::Denied { op: "op", what: "here" });
    std::thread::spawn(|| assert_eq!(words(), "")).join().expect("the other thread");
    assert_eq!(words(), "op: here");
}
