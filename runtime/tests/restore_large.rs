//! What a session costs to begin and to end does not grow with its image: counted in pages of tables that are touched for the first
//! time, which the kernel notes as faults of the thread.
#![allow(unsafe_code, reason = "asks the kernel for the thread's faults")]

mod common;

use common::{PAGE, each_of, load_at, setup, store_at};
use softfault::image::{Image, Integrity, Prot, Region};
use softfault::{Delivery, OpenImage, Restore, Runtime, Session};
use std::fs::File;
use std::path::Path;

const GIB: usize = 1 << 30;
const TIB: usize = 1 << 40;

fn open(rt: &Runtime, path: &Path, len: usize) -> OpenImage {
    File::create(path).and_then(|f| f.set_len(len as u64)).expect("a sparse file");
    let prot = Prot::READ | Prot::WRITE;
    let all = Region { name: "memory".into(), address: 1 << 44, offset: 0, len_bytes: len as u64, prot };
    let image = Image::open(path).and_then(|i| i.with_regions(vec![all])).expect("image");
    rt.image(image.with_integrity(Integrity::Trusted)).expect("open")
}

/// Returns how many pages the calling thread has touched for the first time.
fn first_touches() -> i64 {
    // SAFETY: `rusage` is numbers, and the kernel fills it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) }, 0);
    usage.ru_minflt
}

fn session(image: &OpenImage, mode: Delivery, direct: bool) -> Session {
    Restore::new(image).arena(move |a| a.delivery(mode)).direct(direct).build().expect("session")
}

/// Returns the fewest pages that making and dropping a session has touched for the first time, of several turns: the first ones
/// also find memory for what stays.
fn touches_of_a_session(image: &OpenImage, mode: Delivery, direct: bool) -> i64 {
    let one = || {
        let before = first_touches();
        drop(session(image, mode, direct));
        first_touches() - before
    };
    (0..5).map(|_| one()).min().expect("turns")
}

#[test]
fn beginning_and_ending_a_session_costs_the_same_for_a_tebibyte_as_for_a_gibibyte() {
    setup();
    let folder = tempfile::tempdir().expect("folder");
    each_of("large", &common::MODES, |_, mode| {
        let rt = Runtime::builder().build().expect("runtime");
        let small = open(&rt, &folder.path().join("small"), GIB);
        let large = open(&rt, &folder.path().join("large"), TIB);
        for direct in [false, true] {
            let [small, large] = [&small, &large].map(|image| touches_of_a_session(image, mode, direct));
            // A page of words has a tebibyte's gibibytes, and one each its odd ends.
            let what = if direct { "mapped from the file" } else { "trapped" };
            assert!(large <= small + 8, "{what}: {large} pages of tables were touched for 1 TiB, {small} for 1 GiB");
        }
    });
}

/// Changes inside a gibibyte that is one word, and at its edges; what is not changed stays as it is.
#[test]
fn a_part_of_a_large_session_is_protected_and_unmapped_by_the_page() {
    setup();
    let folder = tempfile::tempdir().expect("folder");
    each_of("parts", &common::MODES, |_, mode| {
        let rt = Runtime::builder().build().expect("runtime");
        let image = open(&rt, &folder.path().join("parts"), 5 * GIB + 6 * PAGE);
        let session = session(&image, mode, false);
        let region = &session.regions()[0];
        let (base, arena) = (region.as_ptr() as usize, region.arena());
        let last = 5 * GIB + 5 * PAGE;
        for at in [0, GIB - 1, GIB, 3 * GIB + 5, last] {
            assert_eq!(load_at(base + at), Ok(0), "{at:#x}");
            assert_eq!(store_at(base + at, 7), Ok(()), "{at:#x}");
        }
        // Two pages in the middle of the third gibibyte, and all of the fourth.
        let hole = 2 * GIB + 77 * PAGE..2 * GIB + 79 * PAGE;
        arena.unmap(hole.clone()).expect("unmap");
        arena.unmap(3 * GIB..4 * GIB).expect("unmap");
        for gone in [hole.start, hole.end - 1, 3 * GIB, 3 * GIB + 5, 4 * GIB - 1] {
            assert_eq!(load_at(base + gone), Err(libc::SIGSEGV), "{gone:#x}");
        }
        for there in [hole.start - 1, hole.end, 2 * GIB, 3 * GIB - 1, 4 * GIB, 5 * GIB + 1] {
            assert_eq!(load_at(base + there), Ok(0), "{there:#x}");
        }
        // Over the gibibyte that was whole, and is empty; and over what is in pieces by now.
        let object = image.object();
        arena.map(3 * GIB, object, 0, GIB, softfault::Prot::Read, softfault::Sharing::Private).expect("map");
        let at = hole.start as u64;
        arena.map(hole.start, object, at, hole.len(), softfault::Prot::Read, softfault::Sharing::Private).expect("map");
        for read_only in [hole.start, 3 * GIB, 4 * GIB - 1] {
            assert_eq!(load_at(base + read_only), Ok(0), "{read_only:#x}");
            assert_eq!(store_at(base + read_only, 1), Err(libc::SIGSEGV), "{read_only:#x}");
        }
        arena.protect(GIB..2 * GIB, softfault::Prot::Read).expect("protect");
        assert_eq!(store_at(base + GIB + 1, 1), Err(libc::SIGSEGV));
        for kept in [0, GIB - 1, GIB, last] {
            assert_eq!(load_at(base + kept), Ok(7), "{kept:#x}");
        }
        // Everything again, at once.
        arena.unmap(0..arena.len()).expect("unmap");
        for gone in [0, GIB, hole.start, 3 * GIB, last] {
            assert_eq!(load_at(base + gone), Err(libc::SIGSEGV), "{gone:#x}");
        }
        arena.map(0, object, 0, 5 * GIB, softfault::Prot::ReadWrite, softfault::Sharing::Private).expect("map");
        for new in [0, GIB, hole.start, 3 * GIB] {
            assert_eq!(load_at(base + new), Ok(0), "{new:#x}");
        }
    });
}
