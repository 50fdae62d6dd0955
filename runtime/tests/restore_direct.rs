//! Extents that are mapped from the image's file itself: the kernel serves them, what is stored is the session's own, and nothing that
//! was stored is lost when one changes sides.
#![cfg(debug_assertions)]
#![allow(unsafe_code, reason = "seals memfds")]
#![allow(clippy::cast_possible_truncation, reason = "numbers of small images")]

mod common;

use common::{EXTENT, PAGE, load_at, setup, store_at, until};
use softfault::image::{Image, Integrity, Prot, Region};
use softfault::{Delivery, Error, OpenImage, Restore, Runtime, Session};
use softfault_mm::trace::{Point, arm_gate, arm_gate_after, disarm, is_caught};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The image begins a page into an extent of its region's, and ends in the middle of one.
const EXTENTS: usize = 6;
const LEN: usize = EXTENTS * EXTENT + 5 * PAGE;

fn byte(page: usize) -> u8 {
    (page % 251) as u8 + 1
}

fn region(len: usize) -> Region {
    let prot = Prot::READ | Prot::WRITE;
    Region { name: "memory".into(), address: 1 << 44, offset: 0, len_bytes: len as u64, prot }
}

/// Writes the bytes of some extents, page by page other ones.
fn write(file: &File, extents: impl Iterator<Item = usize>, len: usize) {
    for extent in extents {
        let mut bytes = vec![0; EXTENT.min(len - extent * EXTENT)];
        bytes.chunks_mut(PAGE).enumerate().for_each(|(i, page)| page.fill(byte(extent * 512 + i)));
        file.write_all_at(&bytes, (extent * EXTENT) as u64).expect("write");
    }
    file.set_len(len as u64).expect("length");
}

fn flat(path: &Path) {
    let file = File::create(path).expect("create");
    // A hole: zeros, which are the file's, too.
    write(&file, (0..=EXTENTS).filter(|e| *e != 3), LEN);
}

fn open(rt: &Runtime, image: Image, len: usize, integrity: Integrity) -> OpenImage {
    let image = image.with_regions(vec![region(len)]).expect("regions").with_integrity(integrity);
    rt.image(image).expect("open")
}

fn in_thread(restore: Restore) -> Result<Session, Error> {
    restore.arena(|a| a.delivery(Delivery::InThread)).direct(true).build()
}

/// The points where threads are stopped are the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn has_in_thread() -> bool {
    setup();
    let rt = Runtime::builder().build().expect("runtime");
    let has = rt.delivery().finding(Delivery::InThread).is_some_and(|f| f.available);
    if !has {
        println!("skipped: no InThread delivery");
    }
    has
}

#[test]
fn the_kernel_serves_a_file_that_is_trusted_and_stores_are_the_sessions_own() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_in_thread() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("flat.raw");
    flat(&path);
    let rt = Runtime::builder().build().expect("runtime");
    let image = open(&rt, Image::open(&path).expect("image"), LEN, Integrity::Trusted);
    let own = vec![200; 2 * PAGE];
    let session = in_thread(Restore::new(&image).overlay("own", (2 * EXTENT + 7 * PAGE) as u64, own)).expect("session");
    let other = in_thread(Restore::new(&image)).expect("session");
    let trapped = Restore::new(&image).build().expect("session");
    assert_eq!(session.progress().direct_extents, EXTENTS as u64);
    assert_eq!(trapped.progress().direct_extents, 0, "it was not asked for");
    let [base, beside, plain] = [&session, &other, &trapped].map(|s| s.regions()[0].as_ptr() as usize);
    let want = |page: usize| match page {
        1031 | 1032 => 200,
        p if p / 512 == 3 => 0,
        p => byte(p),
    };
    let (faults, cached) = (rt.stats()["pgfault"], image.object().cached_pages());
    for page in 0..EXTENTS * 512 {
        assert_eq!(load_at(base + page * PAGE + 9), Ok(want(page)), "page {page}");
    }
    assert_eq!((rt.stats()["pgfault"], image.object().cached_pages()), (faults, cached), "a fault of ours");
    // What is no whole extent comes through the cache.
    assert_eq!(load_at(base + EXTENTS * EXTENT + 9), Ok(byte(EXTENTS * 512)));

    for page in [0, 511, 512, 1031, 1600] {
        assert_eq!(store_at(base + page * PAGE, 77), Ok(()), "page {page}");
        assert_eq!(load_at(base + page * PAGE), Ok(77), "page {page}");
        assert_eq!(load_at(base + page * PAGE + 1), Ok(want(page)), "page {page}: the rest");
        let image_has = if page / 512 == 3 { 0 } else { byte(page) };
        assert_eq!(load_at(beside + page * PAGE), Ok(image_has), "page {page} of another session");
        assert_eq!(load_at(plain + page * PAGE), Ok(image_has), "page {page} of a session that has none");
    }
    let completed = session.complete().expect("complete");
    assert_eq!(completed.direct_extents, EXTENTS as u64);
    assert_eq!(load_at(base + 511 * PAGE), Ok(77), "what is whole is left as it is");

    // Calls on parts of what is one piece.
    let (arena, r) = (session.regions()[0].arena(), session.regions()[0].range());
    let at = |offset: usize| r.start + offset;
    let mut bytes = [0; 3];
    arena.read_at(at(511 * PAGE), &mut bytes).expect("read");
    assert_eq!(bytes, [77, byte(511), byte(511)]);
    arena.write_at(at(600 * PAGE), &[1, 2]).expect("write");
    assert_eq!((load_at(base + 600 * PAGE + 1), load_at(base + 600 * PAGE + 2)), (Ok(2), Ok(byte(600))));
    let pin = arena.pin(at(700 * PAGE)..at(702 * PAGE), softfault::Access::Write).expect("pin");
    assert_eq!(store_at(base + 701 * PAGE, 5), Ok(()));
    drop(pin);
    arena.protect(at(512 * PAGE)..at(800 * PAGE), softfault::Prot::Read).expect("protect");
    assert_eq!(store_at(base + 701 * PAGE, 6), Err(libc::SIGSEGV));
    assert_eq!((load_at(base + 701 * PAGE), load_at(base + 702 * PAGE)), (Ok(5), Ok(byte(702))));
    arena.unmap(at(701 * PAGE)..at(1040 * PAGE)).expect("unmap");
    assert_eq!(load_at(base + 702 * PAGE), Err(libc::SIGSEGV));
    assert_eq!((load_at(base + 700 * PAGE), load_at(base + 1040 * PAGE)), (Ok(byte(700)), Ok(byte(1040))));
    // Over it, ordinary memory again: ours.
    let (object, before) = (image.object(), image.object().cached_pages());
    let offset = (701 * PAGE) as u64;
    arena
        .map(at(701 * PAGE), object, offset, 9 * PAGE, softfault::Prot::Read, softfault::Sharing::Private)
        .expect("map");
    assert_eq!(load_at(base + 705 * PAGE), Ok(byte(705)));
    assert!(object.cached_pages() > before, "it came through the cache");
    let read = std::fs::read(&path).expect("read");
    assert!(read.iter().enumerate().all(|(i, b)| *b == if i / EXTENT == 3 { 0 } else { byte(i / PAGE) }), "the file");
}

/// Where the program has mapped the image's object again, its pages are ours to make resident, and to count.
#[test]
fn what_is_direct_no_more_is_completed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_in_thread() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("flat.raw");
    flat(&path);
    let rt = Runtime::builder().build().expect("runtime");
    let image = open(&rt, Image::open(&path).expect("image"), LEN, Integrity::Trusted);
    let session = in_thread(Restore::new(&image)).expect("session");
    let (arena, start) = (session.regions()[0].arena(), session.regions()[0].range().start);
    let (prot, sharing) = (softfault::Prot::ReadWrite, softfault::Sharing::Private);
    arena.unmap(start + EXTENT..start + 2 * EXTENT).expect("unmap");
    arena.map(start + EXTENT, image.object(), EXTENT as u64, EXTENT, prot, sharing).expect("map");
    let tail = LEN - EXTENTS * EXTENT;

    rt.set_cache_limit((EXTENT + tail) as u64 - PAGE as u64);
    let refused = session.complete();
    assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
    rt.set_cache_limit(64 << 20);
    let completed = session.complete().expect("complete");
    assert_eq!(completed.direct_extents, EXTENTS as u64 - 1);
    assert_eq!(completed.resident_bytes, (EXTENT + tail) as u64);
    assert!((EXTENT..2 * EXTENT).step_by(PAGE).all(|at| image.object().is_cached(at as u64)), "it is resident");
}

/// Whoever said that it is trusted has not kept the word: what is gone is no reason to wait for ever.
#[test]
fn a_trusted_file_that_was_cut_all_the_same_is_told_by_a_signal() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_in_thread() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("flat.raw");
    flat(&path);
    let rt = Runtime::builder().build().expect("runtime");
    let image = open(&rt, Image::open(&path).expect("image"), LEN, Integrity::Trusted);
    let session = in_thread(Restore::new(&image)).expect("session");
    let base = session.regions()[0].as_ptr() as usize;
    assert_eq!(load_at(base + 4 * EXTENT), Ok(byte(4 * 512)));
    File::options().write(true).open(&path).and_then(|f| f.set_len(2 * EXTENT as u64)).expect("cut");
    assert_eq!(load_at(base + EXTENT), Ok(byte(512)));
    for page in [4 * 512, 4 * 512 + 7, 5 * 512] {
        assert_eq!(load_at(base + page * PAGE), Err(libc::SIGBUS), "page {page}");
        assert_eq!(store_at(base + page * PAGE, 1), Err(libc::SIGBUS), "page {page}");
    }
}

#[test]
fn a_file_that_may_change_is_refused_unless_it_is_sealed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_in_thread() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("flat.raw");
    flat(&path);
    let rt = Runtime::builder().build().expect("runtime");
    let image = open(&rt, Image::open(&path).expect("image"), LEN, Integrity::Lazy);
    let refused = in_thread(Restore::new(&image));
    assert!(matches!(refused, Err(Error::Denied { .. })), "{refused:?}");
    for (seals, may) in [
        (libc::F_SEAL_SHRINK, false),
        (libc::F_SEAL_WRITE, false),
        (libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SHRINK, false),
        (libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK, true),
    ] {
        // SAFETY: a name that ends with zero.
        let fd = unsafe { libc::memfd_create(c"image".as_ptr(), libc::MFD_ALLOW_SEALING) };
        assert!(fd >= 0, "memfd_create");
        // SAFETY: it was opened just now, and is the file's from here on.
        let file = unsafe { File::from_raw_fd(fd) };
        write(&file, 0..=EXTENTS, LEN);
        // SAFETY: touches no memory.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
        let opened = Image::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("image");
        let session = in_thread(Restore::new(&open(&rt, opened, LEN, Integrity::Lazy)));
        match session {
            Ok(session) if may => {
                assert_eq!(session.progress().direct_extents, EXTENTS as u64);
                assert_eq!(load_at(session.regions()[0].as_ptr() as usize + 5 * EXTENT), Ok(byte(5 * 512)));
            }
            Err(Error::Denied { .. }) if !may => {}
            other => panic!("seals {seals:#x}: {other:?}"),
        }
    }
}

#[test]
fn no_store_is_lost_while_an_extent_changes_sides() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_in_thread() {
        return;
    }
    const MANY: usize = 60;
    let (folder, len) = (tempfile::tempdir().expect("folder"), MANY * EXTENT);
    let [even, odd] = ["even", "odd"].map(|name| folder.path().join(name));
    // Each extent lies in another file than its neighbours, and so is a piece of its own: more than are mapped at once.
    write(&File::create(&even).expect("create"), (0..MANY).step_by(2), len);
    write(&File::create(&odd).expect("create"), (1..MANY).step_by(2), len);
    let rt = Runtime::builder().build().expect("runtime");
    let image = open(&rt, Image::raw_stack(&even, &[&odd]).expect("image"), len, Integrity::Trusted);
    /// Opens the gate also when the test fails.
    struct Gate;
    impl Drop for Gate {
        fn drop(&mut self) {
            disarm(Point::DIRECT_LOOKED);
        }
    }
    // The 32 pieces of before the session is ready pass, and one of the thread's.
    arm_gate_after(Point::DIRECT_LOOKED, 33);
    let session = in_thread(Restore::new(&image)).expect("session");
    // Behind the session, so that it is opened before: the session's end waits for the thread.
    let gate = Gate;
    let base = session.regions()[0].as_ptr() as usize;
    until("the thread has looked at an extent", || is_caught(Point::DIRECT_LOOKED));
    // Mapped for loads: the kernel copies such a page at a store, and asks nobody.
    for extent in 34..MANY {
        assert_eq!(load_at(base + extent * EXTENT + 5 * PAGE), Ok(byte(extent * 512 + 5)));
    }
    // It goes on, to the next.
    arm_gate(Point::DIRECT_LOOKED);
    until("the thread has looked at the next extent", || is_caught(Point::DIRECT_LOOKED));
    // One extent was looked at, and is mapped next; one has a store of before.
    let next = session.progress().direct_extents as usize;
    assert_eq!(next, 34, "extents that were mapped by then");
    let (held, own) = (base + next * EXTENT + 5 * PAGE, base + (next + 3) * EXTENT + 9 * PAGE);
    assert_eq!(store_at(own, 66), Ok(()));
    std::thread::scope(|scope| {
        let store = scope.spawn(|| store_at(held, 77));
        // A store that is not held is through by then.
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(gate);
        assert_eq!(store.join().expect("store"), Ok(()));
    });
    assert_eq!(load_at(held), Ok(77), "a store was lost");
    until("everything is mapped", || {
        let stats = rt.stats();
        stats["extent_direct"] + stats["extent_direct_left"] == MANY as u64
    });
    let stats = rt.stats();
    assert_eq!((stats["extent_direct"], stats["extent_direct_left"]), (MANY as u64 - 1, 1), "{stats}");
    assert_eq!(session.progress().direct_extents, MANY as u64 - 1);
    assert_eq!((load_at(own), load_at(held)), (Ok(66), Ok(77)));
    for page in 0..MANY * 512 {
        assert_eq!(load_at(base + page * PAGE + 3), Ok(byte(page)), "page {page}");
    }
}

/// A session that is captured is read wherever its pages are: mapped from the file, or its own.
#[test]
fn a_session_with_direct_extents_is_captured() {
    if !has_in_thread() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("memory");
    flat(&path);
    let rt = Runtime::builder().build().expect("runtime");
    let image = open(&rt, Image::open(&path).expect("image"), LEN, Integrity::Trusted);
    let session = in_thread(Restore::new(&image)).expect("session");
    let base = session.regions()[0].as_ptr().addr();
    store_at(base + 2 * EXTENT + 7 * PAGE, 0xee).expect("a store");
    let captured = folder.path().join("captured.sfi");
    let never = || Ok::<(), std::convert::Infallible>(());
    let capture = rt.capture().session(&session).stopped(true).begin(&captured, never).expect("nobody stores");
    capture.commit().expect("an image");
    let mut want = std::fs::read(&path).expect("it is there");
    want[2 * EXTENT + 7 * PAGE] = 0xee;
    let read = Image::open(&captured).expect("an image");
    let mut got = vec![0; LEN];
    read.reader().read(0, &mut got).expect("it is whole");
    common::same("the captured session", &got, &want);
}
