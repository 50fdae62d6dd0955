//! Captures of memory that nobody stores to: of every kind of arena and mapping, and of sessions.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small images")]

mod common;

use common::{PAGE, bytes, each_mode, same, setup, store_at};
use softfault::image::{self, Image, Region, Writer};
use softfault::{CaptureFailure, Delivery, Error, Prot, Restore, Runtime, Session, Sharing};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

const NR: usize = 600;

fn never() -> Result<(), Infallible> {
    Ok(())
}

fn image_bytes(path: &Path) -> Vec<u8> {
    let image = Image::open(path).expect("an image");
    let mut bytes = vec![0u8; image.nr_pages() as usize * PAGE];
    image.reader().read(0, &mut bytes).expect("it is whole");
    bytes
}

/// Pages that tell themselves apart.
fn pattern() -> Vec<u8> {
    (0..NR * PAGE).map(|i| (i / PAGE * 7 + i % PAGE) as u8).collect()
}

#[test]
fn shared_and_private_mappings_of_every_delivery() {
    setup();
    let folder = tempfile::tempdir().expect("a folder");
    each_mode("stopped", |rt, mode| {
        let (path, all) = (folder.path().join(format!("{mode:?}.sfi")), pattern());
        let object = rt.anonymous((NR * PAGE) as u64).expect("memory");
        object.write_at(0, &all).expect("room");
        let arena = rt.arena(2 * NR * PAGE).delivery(mode).build().expect("an arena");
        arena.map(0, &object, 0, NR * PAGE, Prot::ReadWrite, Sharing::Shared).expect("room");
        // A little more than the object has: past its end.
        arena.map(NR * PAGE, &object, 0, NR * PAGE, Prot::ReadWrite, Sharing::Private).expect("room");
        let at = |page: usize| arena.as_ptr().addr() + page * PAGE;
        store_at(at(NR + 5), 99).expect("a store of the mapping's own");
        store_at(at(3), 77).expect("a store to the object");
        let capture = rt.capture().arena(&arena).stopped(true).begin(&path, never).expect("nobody stores");
        // What is stored afterwards is in no image.
        store_at(at(NR + 6), 98).expect("a store");
        assert_eq!(capture.progress().done_pages, 2 * NR as u64, "everything is read");
        capture.commit().expect("an image");
        let (mut shared, mut private) = (all.clone(), all);
        shared[3 * PAGE] = 77;
        private[3 * PAGE] = 77;
        private[5 * PAGE] = 99;
        let got = image_bytes(&path);
        same("what is shared", &got[..NR * PAGE], &shared);
        same("what is private", &got[NR * PAGE..], &private);
    });
}

#[cfg(feature = "userfaultfd")]
#[test]
fn exclusive_objects_and_what_lies_past_the_end() {
    setup();
    let folder = tempfile::tempdir().expect("a folder");
    let rt = common::runtime();
    let path = folder.path().join("x.sfi");
    let arena = rt.arena(4 << 20).delivery(Delivery::InThread).build().expect("an arena");
    let exclusive = rt.object(8 * PAGE as u64).exclusive(true).anonymous().expect("an exclusive object");
    arena.map(0, &exclusive, 0, 8 * PAGE, Prot::ReadWrite, Sharing::Private).expect("room");
    // Mapped further than it is long.
    let short = rt.anonymous(3 * PAGE as u64 - 5).expect("memory");
    short.write_at(0, &[6; 3 * PAGE - 5]).expect("room");
    arena.map(2 << 20, &short, 0, 8 * PAGE, Prot::Read, Sharing::Shared).expect("room");
    (0..8).for_each(|p| store_at(arena.as_ptr().addr() + p * PAGE, p as u8 + 1).expect("a store"));
    rt.capture().arena(&arena).stopped(true).begin(&path, never).expect("nobody stores").commit().expect("an image");
    let got = image_bytes(&path);
    (0..8).for_each(|p| {
        assert_eq!((got[p * PAGE], got[p * PAGE + 1]), (p as u8 + 1, 0), "page {p} of the exclusive one")
    });
    let tail = &got[8 * PAGE..];
    assert!(tail[..3 * PAGE - 5].iter().all(|b| *b == 6), "as far as it is long");
    assert!(tail[3 * PAGE - 5..].iter().all(|b| *b == 0), "zeros behind its end");
}

/// An image with two regions, the first one of them writable.
fn saved(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("parent.sfi");
    let mut w = Writer::create(&path, NR as u64).expect("create");
    let rw = image::Prot::READ | image::Prot::WRITE;
    let region = |name: &str, page: usize, nr: usize, prot| Region {
        name: name.into(),
        address: 0x1234_0000_0000 + (page * PAGE) as u64,
        offset: (page * PAGE) as u64,
        len_bytes: (nr * PAGE) as u64,
        prot,
    };
    w.region(region("data", 0, 500, rw)).expect("region");
    w.region(region("code", 500, NR - 500, image::Prot::READ)).expect("region");
    w.write(0, &pattern()).expect("write");
    w.finish().expect("finish");
    path
}

fn whole(session: &Session) -> Vec<u8> {
    let mut all = vec![0; NR * PAGE];
    for region in session.regions() {
        let at = region.region().offset as usize;
        all[at..at + region.len()].copy_from_slice(&bytes(region.arena(), region.range()));
    }
    all
}

#[test]
fn sessions_are_captured_as_what_they_have_changed() {
    setup();
    let folder = tempfile::tempdir().expect("a folder");
    let parent_path = saved(folder.path());
    each_mode("sessions", |rt: &Runtime, mode: Delivery| {
        let path = folder.path().join(format!("child-{mode:?}.sfi"));
        let parent = rt.open_image(&parent_path).expect("an image");
        let over = Arc::new(Image::open(&parent_path).expect("an image"));
        let build = |image, overlay: u8| {
            Restore::new(image)
                .arena(move |a| a.delivery(mode))
                .overlay("entropy", 20 * PAGE as u64, vec![overlay; PAGE])
                .build()
        };
        let session = build(&parent, 3).expect("a session");
        let data = session.region("data").expect("it is there").as_ptr().addr();
        let mut want = pattern();
        for page in [7, 300] {
            store_at(data + page * PAGE, 0xee).expect("a store");
            want[page * PAGE] = 0xee;
        }
        // Without a stop it is refused by name, before anything changes.
        let refused = rt.capture().session(&session).begin(&path, never);
        assert!(matches!(refused, Err(Error::Denied { what, .. }) if what.contains("session")), "{refused:?}");
        assert!(!path.exists(), "nothing is there");
        let capture =
            rt.capture().session(&session).over(over).stopped(true).begin(&path, never).expect("nobody stores");
        capture.commit().expect("an image");
        let len = std::fs::metadata(&path).expect("it is there").len();
        assert!(len < 100 * PAGE as u64, "{len} bytes: what has changed is written, and not {NR} pages");
        let captured = rt.open_image(&path).expect("an image");
        let missing = Restore::new(&captured).arena(move |a| a.delivery(mode)).build();
        assert!(matches!(missing, Err(Error::Overlay { .. })), "{missing:?}: the overlay is asked for again");
        let got = image_bytes(&path);
        assert!(got[20 * PAGE..21 * PAGE].iter().all(|b| *b == 0), "no image has the overlay's bytes");
        let again = build(&captured, 4).expect("a session");
        want[20 * PAGE..21 * PAGE].fill(4);
        same("restored from the capture", &whole(&again), &want);
        let address = captured_address(&path, "data");
        assert_eq!(address, data as u64, "where the captured session was");
        drop((again, session));
        std::fs::remove_file(&path).expect("it is there");
    });
}

fn captured_address(path: &Path, name: &str) -> u64 {
    let image = Image::open(path).expect("an image");
    image.regions().iter().find(|r| r.name == name).expect("it has the name").address
}

#[test]
fn what_cannot_be_read_is_refused_and_the_closure_may_refuse() {
    setup();
    let folder = tempfile::tempdir().expect("a folder");
    let rt = common::runtime();
    let object = rt.anonymous((NR * PAGE) as u64).expect("memory");
    let arena = rt.arena(NR * PAGE).build().expect("an arena");
    arena.map(0, &object, 0, NR * PAGE, Prot::ReadWrite, Sharing::Private).expect("room");
    let path = folder.path().join("no.sfi");
    let begin = || rt.capture().arena(&arena).stopped(true);
    let refused = begin().begin(&path, || Err("not now"));
    assert!(matches!(refused, Err(Error::Capture { failure: CaptureFailure::AtCut, .. })), "{refused:?}");
    // The mappings stay as they are until it returns: what would wait for that is refused.
    let waits = || arena.unmap(0..PAGE);
    let refused = begin().begin(&path, waits);
    assert!(matches!(refused, Err(Error::Capture { failure: CaptureFailure::AtCut, .. })), "{refused:?}");
    let refused = rt.capture().arena(&arena).begin(&path, never);
    assert!(matches!(refused, Err(Error::Denied { what, .. }) if what.contains("capturable")), "{refused:?}");
    let refused = rt.capture().begin(&path, never);
    assert!(matches!(refused, Err(Error::Denied { .. })), "{refused:?}");
    begin().begin(&path, never).expect("nobody stores").cancel();
    assert_eq!(std::fs::read_dir(folder.path()).expect("it").count(), 0, "no image, and nothing of one");
    arena.protect(0..PAGE, Prot::None).expect("it is mapped");
    let refused = begin().begin(&path, never);
    assert!(matches!(refused, Err(Error::Denied { .. })), "{refused:?}");
    arena.unmap(0..NR * PAGE).expect("nothing is in the way afterwards");
}
