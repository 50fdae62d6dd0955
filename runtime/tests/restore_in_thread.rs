//! Pages that lie in an image as they are, and zeros, are read by the thread that touches them, as of a file: verified, and without a
//! filler once one was there.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small images")]

mod common;

use common::{PAGE, content, each_of, load_at, setup, store_at, until};
use softfault::image::{Image, Integrity, Prot, Region, Writer};
use softfault::{OpenImage, PageMut, Restore, Runtime, Sharing, Store, StoreError};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Three extents and a half.
const PAGES: usize = 1792;

fn memory() -> Vec<u8> {
    let mut all = content(5, 0..(PAGES * PAGE) as u64);
    // Zero stretches, whose ends are no multiples of a group.
    all[100 * PAGE..203 * PAGE].fill(0);
    all[1030 * PAGE..1031 * PAGE].fill(0);
    all
}

fn region() -> Region {
    let prot = Prot::READ | Prot::WRITE;
    Region { name: "memory".into(), address: 1 << 44, offset: 0, len_bytes: (PAGES * PAGE) as u64, prot }
}

fn sfi(path: &Path, all: &[u8]) {
    let mut w = Writer::create(path, PAGES as u64).expect("create");
    w.region(region()).expect("region");
    w.write(0, all).expect("write");
    w.finish().expect("finish");
}

fn open_raw(rt: &Runtime, path: &Path) -> OpenImage {
    rt.image(Image::open(path).and_then(|i| i.with_regions(vec![region()])).expect("image")).expect("open")
}

/// A store whose reads wait until the gate is open.
#[derive(Clone)]
struct Stuck {
    is_open: Arc<AtomicBool>,
    nr_in: Arc<AtomicUsize>,
}

impl Store for Stuck {
    fn read(&self, _: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        self.nr_in.fetch_add(1, Ordering::SeqCst);
        // Not for ever: who waits for a filler after all is to be told so.
        for _ in 0..20_000 {
            if self.is_open.load(Ordering::SeqCst) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        page.as_mut_slice().fill(1);
        Ok(())
    }
}

/// Runs `f` while the runtime's one filler is in a store that does not return.
fn without_fillers(rt: &Runtime, f: impl FnOnce()) {
    let stuck = Stuck { is_open: Arc::default(), nr_in: Arc::default() };
    let object = rt.object(PAGE as u64).store(Box::new(stuck.clone())).expect("object");
    let arena = rt.arena(PAGE).build().expect("arena");
    arena.map(0, &object, 0, PAGE, softfault::Prot::Read, Sharing::Shared).expect("map");
    let at = arena.as_ptr() as usize;
    /// Opens it also when `f` fails.
    struct Open<'a>(&'a AtomicBool);
    impl Drop for Open<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(move || load_at(at));
        let _open = Open(&stuck.is_open);
        until("the filler is in the store", || stuck.nr_in.load(Ordering::SeqCst) > 0);
        f();
    });
}

fn each_image(f: impl Fn(&Runtime, softfault::Delivery, &OpenImage, &[u8])) {
    setup();
    let (folder, all) = (tempfile::tempdir().expect("folder"), memory());
    sfi(&folder.path().join("a.sfi"), &all);
    std::fs::write(folder.path().join("a.raw"), &all).expect("write");
    each_of("here", &common::MODES, |_, mode| {
        for name in ["a.sfi", "a.raw"] {
            let rt = Runtime::builder().fillers(1).readahead_pages(0).build().expect("runtime");
            let path = folder.path().join(name);
            let image = if name == "a.raw" { open_raw(&rt, &path) } else { rt.open_image(&path).expect("open") };
            f(&rt, mode, &image, &all);
        }
    });
}

#[test]
fn a_page_that_lies_as_it_is_needs_no_filler_once_one_was_near() {
    each_image(|rt, mode, image, all| {
        let session = Restore::new(image).arena(move |a| a.delivery(mode)).build().expect("session");
        let base = session.regions()[0].as_ptr() as usize;
        assert_eq!(load_at(base), Ok(all[0]), "the first one");
        let before = rt.stats()["image_in_thread_pages"];
        without_fillers(rt, || {
            for p in [3, 7, 98, 99, 100, 101, 150, 202, 203, 511, 512, 1029, 1030, 1031, 1600, PAGES - 1] {
                let at = p * PAGE + 1000;
                assert_eq!(load_at(base + at), Ok(all[at]), "page {p}");
            }
            assert!(rt.stats()["image_in_thread_pages"] - before >= 13, "{}", rt.stats());
        });
        for (i, byte) in all.iter().enumerate().step_by(PAGE / 2) {
            assert_eq!(load_at(base + i), Ok(*byte), "byte {i:#x}");
        }
        let stats = rt.stats();
        assert!(stats["image_in_thread_pages"] <= stats["image_raw_pages"] + stats["image_zero_pages"], "{stats}");
        assert_eq!(stats["image_errors"], 0);
    });
}

#[test]
fn the_first_store_to_a_page_that_is_not_cached_copies_it_past_the_cache() {
    each_image(|rt, mode, image, all| {
        let session = Restore::new(image).arena(move |a| a.delivery(mode)).build().expect("session");
        let base = session.regions()[0].as_ptr() as usize;
        assert_eq!(load_at(base), Ok(all[0]));
        let cached = image.object().cached_pages();
        without_fillers(rt, || {
            for p in [40, 120, 700, 1030] {
                assert_eq!(store_at(base + p * PAGE, 77), Ok(()), "page {p}");
                assert_eq!(load_at(base + p * PAGE), Ok(77), "page {p}");
                assert_eq!(load_at(base + p * PAGE + 9), Ok(all[p * PAGE + 9]), "page {p}: the rest is the image's");
            }
        });
        // Groups are verified whole, and so come into the cache whole.
        if mode == softfault::Delivery::InThread && image.image().file_digest().is_none() {
            let stats = rt.stats();
            assert_eq!((stats["pgcow_staged"], image.object().cached_pages()), (4, cached), "{stats}");
        }
    });
}

#[test]
fn what_fails_its_digest_is_never_shown_and_said_by_a_filler() {
    setup();
    let (folder, all) = (tempfile::tempdir().expect("folder"), memory());
    each_of("digest", &common::MODES, |_, mode| {
        let path = folder.path().join(format!("{mode:?}.sfi"));
        sfi(&path, &all);
        let rt = Runtime::builder().fillers(1).readahead_pages(0).build().expect("runtime");
        let image = rt.open_image(&path).expect("open");
        assert_eq!(image.integrity(), Integrity::Lazy);
        let session = Restore::new(&image).arena(move |a| a.delivery(mode)).build().expect("session");
        let base = session.regions()[0].as_ptr() as usize;
        assert_eq!(load_at(base), Ok(all[0]));
        // After the extent was prepared: so it is the faulting thread that meets it.
        let bytes = std::fs::read(&path).expect("read");
        let at = bytes.windows(PAGE).position(|w| w == &all[41 * PAGE..42 * PAGE]).expect("the page lies as it is");
        let file = std::fs::File::options().write(true).open(&path).expect("open");
        file.write_all_at(&[!all[41 * PAGE]], at as u64).expect("write");
        let (mut lost, before) = (Vec::new(), rt.stats()["image_in_thread_pages"]);
        for p in 36..52 {
            match load_at(base + p * PAGE + 5) {
                Ok(byte) => assert_eq!(byte, all[p * PAGE + 5], "page {p}"),
                Err(signal) => lost.push((p, signal)),
            }
        }
        let pages: Vec<usize> = lost.iter().map(|(p, _)| *p).collect();
        assert!(pages.contains(&41) && pages.len() <= 4 && lost.iter().all(|(_, s)| *s == libc::SIGBUS), "{lost:?}");
        let failure = image.last_failure().expect("why").to_string();
        assert!(failure.contains("digest") || failure.contains("group"), "{failure}");
        assert!(rt.stats()["image_in_thread_pages"] > before, "its neighbours are read in the thread\n{}", rt.stats());
    });
}
