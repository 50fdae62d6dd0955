//! Sessions restored from images, over every delivery: each byte is what was saved, comes once, and is verified before anybody
//! sees it; what a session stores is its own.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small images")]

mod common;

use common::{PAGE, bytes, each_mode, load, load_at, runtime, same, setup, store_at, until};
use softfault::image::{Codec, Image, Prot, Region, Writer};
use softfault::{Advice, Delivery, Error, FillError, OpenImage, Restore, Runtime, Session};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const PAGES: usize = 1100;

/// The bytes of an image: dense, sparse, and zero stretches, and a page at the end that is none of a whole extent.
fn memory() -> Vec<u8> {
    let mut all = vec![0; PAGES * PAGE];
    let mut x = 1u64;
    for (p, page) in all.chunks_mut(PAGE).enumerate() {
        // 0..200 dense, 200..400 zero, 400..700 every third page zero, the rest dense.
        if (200..400).contains(&p) || (400..700).contains(&p) && p % 3 == 0 {
            continue;
        }
        for (i, word) in page.chunks_mut(8).enumerate() {
            x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(p as u64 + 1);
            // Compressible: half of it repeats.
            let value = if i % 2 == 0 { x } else { p as u64 };
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
    }
    all
}

fn region(name: &str, address: u64, offset: u64, len_bytes: u64, prot: Prot) -> Region {
    Region { name: name.into(), address, offset, len_bytes, prot }
}

/// The regions of the tests' images: they meet in an extent, and one begins in the middle of the image's.
fn regions() -> Vec<Region> {
    let rw = Prot::READ | Prot::WRITE;
    let (a, b) = (700 * PAGE as u64, (PAGES - 700) as u64 * PAGE as u64);
    vec![region("low", 0x1234_0000_0000, 0, a, rw), region("high", 0x1234_0000_0000 + a + PAGE as u64, a, b, rw)]
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("folder"))
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn sfi(&self, name: &str, codec: Codec, frame_bytes: usize, all: &[u8]) -> PathBuf {
        let path = self.path(name);
        let mut w =
            Writer::create(&path, (all.len() / PAGE) as u64).expect("create").codec(codec).frame_bytes(frame_bytes);
        regions().into_iter().for_each(|r| w.region(r).expect("region"));
        w.write(0, all).expect("write");
        w.finish().expect("finish");
        path
    }
    /// A raw base without every fifth page, and those in a child.
    fn child(&self, codec: Codec, all: &[u8]) -> PathBuf {
        let mut base = all.to_vec();
        base.chunks_mut(PAGE).step_by(5).for_each(|page| page.fill(9));
        let parent = Arc::new(Image::open(self.sfi("parent.sfi", codec, 64 << 10, &base)).expect("parent"));
        let path = self.path("child.sfi");
        let mut w = Writer::over(&path, PAGES as u64, parent).expect("over").codec(codec);
        regions().into_iter().for_each(|r| w.region(r).expect("region"));
        for (p, page) in all.chunks(PAGE).enumerate().step_by(5) {
            w.write(p as u64, page).expect("write");
        }
        w.finish().expect("finish");
        path
    }
    fn raw(&self, all: &[u8]) -> Image {
        let path = self.path("memory.raw");
        std::fs::write(&path, all).expect("write");
        Image::open(&path).expect("open").with_regions(regions()).expect("regions")
    }
}

/// One image of each kind, with its name.
fn kinds(folder: &Folder, all: &[u8]) -> Vec<(&'static str, Image)> {
    let open = |path: &Path| Image::open(path).expect("open");
    let mut kinds = vec![
        ("raw file", folder.raw(all)),
        ("raw sfi", open(&folder.sfi("raw.sfi", Codec::Raw, 64 << 10, all))),
        ("lz4", open(&folder.sfi("lz4.sfi", Codec::Lz4, 64 << 10, all))),
        ("lz4, 2 MiB", open(&folder.sfi("long.sfi", Codec::Lz4, 2 << 20, all))),
        ("child", open(&folder.child(Codec::Lz4, all))),
    ];
    if cfg!(feature = "zstd") {
        kinds.push(("zstd, 2 MiB", open(&folder.sfi("zstd.sfi", Codec::Zstd { level: 1 }, 2 << 20, all))));
    } else {
        println!("skipped: frames of zstd, without the feature `zstd`");
    }
    kinds
}

/// Reads each byte of a session by plain loads.
fn whole(session: &Session) -> Vec<u8> {
    session.regions().iter().flat_map(|r| bytes(r.arena(), r.range())).collect()
}

#[test]
fn every_byte_is_what_was_saved() {
    let (folder, all) = (Folder::new(), memory());
    let images: Vec<_> = kinds(&folder, &all).into_iter().map(|(what, i)| (what, i.path().to_path_buf(), i)).collect();
    each_mode("every byte", |rt, mode| {
        for (what, path, image) in &images {
            let image = if image.file_digest().is_some() {
                rt.open_image(path)
            } else {
                rt.image(Image::open(path).expect("open").with_regions(regions()).expect("regions"))
            };
            let session = Restore::new(&image.expect(what)).arena(move |a| a.delivery(mode)).build().expect(what);
            assert_eq!(session.region("high").map(softfault::snapshot::SessionRegion::len), Some((PAGES - 700) * PAGE));
            same(what, &whole(&session), &all);
        }
    });
}

#[test]
fn what_a_session_stores_is_its_own() {
    let (folder, all) = (Folder::new(), memory());
    let path = folder.sfi("a.sfi", Codec::Lz4, 64 << 10, &all);
    each_mode("own", |rt, mode| {
        let image = rt.open_image(&path).expect("open");
        let again = rt.open_image(&path).expect("open");
        assert!(std::ptr::eq(image.image(), again.image()), "one image is one object");
        let [a, b] =
            [image, again].map(|i| Restore::new(&i).arena(move |a| a.delivery(mode)).build().expect("session"));
        let mut want = all.clone();
        // One page that is cached by then, one that is not, and a zero one.
        assert_eq!(load(a.regions()[0].arena(), 0), Ok(all[0]));
        for p in [0, 300, 650] {
            store_at(a.regions()[0].as_ptr() as usize + p * PAGE + 5, 77).expect("store");
            want[p * PAGE + 5] = 77;
        }
        same("the other", &whole(&b), &all);
        let evicted = b.image().object().evict(0..u64::MAX).expect("evict");
        assert!(evicted > 0, "nothing left the cache");
        same("the one", &whole(&a), &want);
        same("the other, read again", &whole(&b), &all);
    });
}

#[test]
fn a_frame_is_decoded_once_and_all_its_pages_come() {
    let (folder, all) = (Folder::new(), memory());
    let path = folder.sfi("a.sfi", Codec::Lz4, 64 << 10, &all);
    each_mode("once", |rt, mode| {
        let session = Restore::new(&rt.open_image(&path).expect("open"))
            .arena(move |a| a.delivery(mode))
            .build()
            .expect("session");
        let low = session.region("low").expect("low");
        // Nothing is read ahead, which might come to other frames.
        low.arena().advise(low.range(), Advice::Random).expect("advise");
        // Dense pages: a frame is 16 of them.
        assert_eq!(load_at(low.as_ptr() as usize + 35 * PAGE), Ok(all[35 * PAGE]));
        let object = session.image().object();
        // Whoever asked for a page goes on as soon as that one is published.
        until("all pages of the frame are cached", || (32..48).all(|p| object.is_cached((p * PAGE) as u64)));
        // Everybody at once, each in another order.
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let step = [1, 7, 11, 13][next.fetch_add(1, Ordering::Relaxed)];
                    (0..200).map(|i| i * step % 200).for_each(|p| {
                        assert_eq!(load_at(low.as_ptr() as usize + p * PAGE + 8), Ok(all[p * PAGE + 8]));
                    });
                });
            }
        });
        let stats = rt.stats();
        assert_eq!(stats["image_frames_decoded"], 200u64.div_ceil(16), "{stats}");
        // The last frame has 8 pages from behind the zeros, and 8 zeros come with the rest of it.
        assert_eq!((stats["image_frame_pages"], stats["image_zero_pages"]), (200, 8), "{stats}");
    });
}

#[test]
fn a_stretch_of_zeros_costs_no_read() {
    let (folder, all) = (Folder::new(), memory());
    let path = folder.sfi("a.sfi", Codec::Raw, 64 << 10, &all);
    each_mode("zeros", |rt, mode| {
        let session = Restore::new(&rt.open_image(&path).expect("open"))
            .arena(move |a| a.delivery(mode))
            .build()
            .expect("session");
        // A file of no bytes has none to be read.
        let file = std::fs::File::options().write(true).open(&path).expect("open");
        let len = file.metadata().expect("stat").len();
        file.set_len(0).expect("cut");
        for p in 208..384 {
            assert_eq!(load(session.regions()[0].arena(), p * PAGE), Ok(0), "page {p}");
        }
        assert!(load(session.regions()[0].arena(), 100 * PAGE).is_err(), "there is nothing to be read");
        assert!(rt.stats()["image_zero_pages"] >= 176);
        drop(session);
        file.set_len(len).expect("as long as before");
        std::fs::remove_file(&path).expect("remove");
        folder.sfi("a.sfi", Codec::Raw, 64 << 10, &all);
    });
}

/// Returns where the bytes of a page lie in a file.
fn position(path: &Path, page: &[u8]) -> u64 {
    let file = std::fs::read(path).expect("read");
    let at = file.chunks(PAGE).position(|c| c == page).expect("the page lies in the file as it is");
    (at * PAGE) as u64
}

#[test]
fn a_group_that_fails_its_digest_fails_alone() {
    let (folder, all) = (Folder::new(), memory());
    let path = folder.sfi("a.sfi", Codec::Raw, 64 << 10, &all);
    let file = std::fs::File::options().write(true).open(&path).expect("open");
    // Pages 84..88 are a group: their places are as those in the image, which is dense before.
    let at = position(&path, &all[85 * PAGE..86 * PAGE]);
    each_mode("digest", |rt, mode| {
        file.write_all_at(&[!all[85 * PAGE + 9]], at + 9).expect("damage");
        let session = Restore::new(&rt.open_image(&path).expect("open"))
            .arena(move |a| a.delivery(mode))
            .build()
            .expect("session");
        let low = &session.regions()[0];
        let failed: Vec<usize> = (64..112).filter(|p| load(low.arena(), p * PAGE).is_err()).collect();
        assert_eq!(failed, [84, 85, 86, 87], "the pages of the group, and no others");
        for p in (64..112).filter(|p| !failed.contains(p)) {
            same("a page beside them", &bytes(low.arena(), p * PAGE..(p + 1) * PAGE), &all[p * PAGE..(p + 1) * PAGE]);
        }
        let error = low.arena().read_at(86 * PAGE, &mut [0]).expect_err("verified");
        assert!(matches!(error, Error::Fault { cause: Some(FillError::Corrupt), .. }), "{error}");
        let why = session.image().last_failure().expect("a failure").to_string();
        assert!(why.contains("a.sfi: the digest of a group of pages at byte"), "{why}");
        assert!(rt.stats()["image_errors"] > 0);
        // It heals when the file does.
        file.write_all_at(&[all[85 * PAGE + 9]], at + 9).expect("mend");
        same("healed", &bytes(low.arena(), 84 * PAGE..88 * PAGE), &all[84 * PAGE..88 * PAGE]);
    });
}

#[test]
fn a_frame_that_the_limit_has_no_room_for_is_decoded_all_the_same() {
    let (folder, all) = (Folder::new(), memory());
    let path = folder.sfi("a.sfi", Codec::Lz4, 2 << 20, &all);
    common::each_of("limit", &common::MODES, |_, mode| {
        let rt = Runtime::builder().cache_limit(64 * PAGE as u64).build().expect("runtime");
        let session = Restore::new(&rt.open_image(&path).expect("open"))
            .arena(move |a| a.delivery(mode))
            .build()
            .expect("session");
        same("all", &whole(&session), &all);
        let stats = rt.stats();
        assert!(stats["nr_cached_pages"] <= 64, "{stats}");
    });
}

#[test]
fn regions_lie_where_they_were_and_what_is_in_the_way_is_named() {
    let (folder, all) = (Folder::new(), memory());
    let path = folder.sfi("a.sfi", Codec::Lz4, 64 << 10, &all);
    each_mode("address", |rt, mode| {
        let image = rt.open_image(&path).expect("open");
        let build = |image: &OpenImage| {
            Restore::new(image).arena(move |a| a.delivery(mode)).at_original_addresses(true).build()
        };
        let session = build(&image).expect("nobody else asks for this place");
        for (r, want) in session.regions().iter().zip(regions()) {
            assert_eq!(r.as_ptr() as u64, want.address);
        }
        same("all", &whole(&session), &all);
        match build(&image) {
            Err(Error::AddressInUse { address, by, .. }) => {
                assert_eq!(address, 0x1234_0000_0000);
                assert!(by.contains("0x12340000"), "{by}");
            }
            other => panic!("{other:?}, where a session is"),
        }
        same("after a refusal", &whole(&session), &all);
        drop(session);
        build(&image).expect("the place is free again");
    });
}

#[test]
fn overlays_are_the_sessions_and_are_asked_for_again() {
    let (folder, all) = (Folder::new(), memory());
    let path = folder.sfi("a.sfi", Codec::Lz4, 64 << 10, &all);
    each_mode("overlay", |rt, mode| {
        let image = rt.open_image(&path).expect("open");
        let build = |name: &str, at: usize, bytes: Vec<u8>| {
            Restore::new(&image).arena(move |a| a.delivery(mode)).overlay(name, (at * PAGE) as u64, bytes).build()
        };
        let one = build("entropy", 10, vec![5; 2 * PAGE]).expect("session");
        let mut want = all.clone();
        want[10 * PAGE..12 * PAGE].fill(5);
        same("with the overlay", &whole(&one), &want);
        let other = Restore::new(&image).arena(move |a| a.delivery(mode)).build().expect("session");
        same("without", &whole(&other), &all);

        // What a capture of the session keeps is asked for by name, place and length.
        let child = folder.path(&format!("captured-{mode:?}.sfi"));
        let mut w = Writer::create(&child, PAGES as u64).expect("create");
        regions().into_iter().for_each(|r| w.region(r).expect("region"));
        one.keys().iter().for_each(|(key, value)| w.key(key, value));
        w.write(0, &want).expect("write");
        w.finish().expect("finish");
        let captured = rt.open_image(&child).expect("open");
        for wrong in
            [Restore::new(&captured), Restore::new(&captured).overlay("entropy", 10 * PAGE as u64, vec![1; PAGE])]
        {
            match wrong.arena(move |a| a.delivery(mode)).build() {
                Err(Error::Overlay { name, range, .. }) => {
                    assert_eq!((name.as_str(), range), ("entropy", 10 * PAGE as u64..12 * PAGE as u64));
                }
                other => panic!("{other:?}: the old session's entropy was given to a new one"),
            }
        }
        let new = Restore::new(&captured)
            .arena(move |a| a.delivery(mode))
            .overlay("entropy", 10 * PAGE as u64, vec![6; 2 * PAGE])
            .build();
        want[10 * PAGE..12 * PAGE].fill(6);
        same("the new one", &whole(&new.expect("session")), &want);
        for (at, len) in [(10, 0), (10, 100), (699, 2 * PAGE), (PAGES, PAGE)] {
            assert!(
                matches!(build("bad", at, vec![1; len]), Err(Error::Argument { arg: "overlay", .. })),
                "{at} {len}"
            );
        }
    });
}

#[test]
fn a_session_that_is_complete_asks_for_nothing_more() {
    let (folder, all) = (Folder::new(), memory());
    let path = folder.sfi("a.sfi", Codec::Lz4, 64 << 10, &all);
    each_mode("complete", |rt, mode| {
        let session = Restore::new(&rt.open_image(&path).expect("open"))
            .arena(move |a| a.delivery(mode))
            .build()
            .expect("session");
        assert_eq!(session.progress().pages, PAGES as u64);
        store_at(session.regions()[0].as_ptr() as usize + 3, 9).expect("store");
        let done = session.complete().expect("complete");
        assert_eq!(done.resident_bytes, (PAGES * PAGE) as u64);
        assert_eq!(session.progress().cached, PAGES as u64);
        if mode != Delivery::Segv {
            assert_eq!(
                (done.native_extents, session.progress().native_extents),
                (1, 1),
                "one extent lies whole in a region"
            );
        }
        let faults = rt.stats()["pgfault"];
        let mut want = all.clone();
        want[3] = 9;
        same("all", &whole(&session), &want);
        assert_eq!(rt.stats()["pgfault"], faults, "a page was not resident");
    });
}

#[test]
fn options_are_asked_for_each_arena_and_the_place_is_the_sessions() {
    let (folder, all) = (Folder::new(), memory());
    setup();
    let rt = runtime();
    let image = rt.open_image(folder.sfi("a.sfi", Codec::Lz4, 64 << 10, &all)).expect("open");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let session = Restore::new(&image)
        .arena(move |a| {
            count.fetch_add(1, Ordering::Relaxed);
            a.delivery(Delivery::Segv).at(1 << 21)
        })
        .build()
        .expect("session");
    let arenas: std::collections::BTreeSet<_> = session.regions().iter().map(|r| r.arena().as_ptr() as usize).collect();
    assert_eq!(asked.load(Ordering::Relaxed), arenas.len(), "asked once for each arena");
    assert!(!arenas.contains(&(1 << 21)), "the place is the session's");
    for r in session.regions() {
        assert_eq!(r.arena().delivery(), Delivery::Segv, "{}", r.region().name);
    }
    same("all", &whole(&session), &all);
    // What an option makes impossible is refused as it is of an arena.
    let refused = Restore::new(&image).arena(|a| a.delivery(Delivery::Segv).kernel_access(true)).build();
    assert!(matches!(refused, Err(Error::Delivery { .. })), "{refused:?}");
}

#[test]
fn a_limit_that_cannot_hold_a_session_is_said_so() {
    let (folder, all) = (Folder::new(), memory());
    setup();
    let path = folder.sfi("a.sfi", Codec::Lz4, 64 << 10, &all);
    let rt = Runtime::builder().cache_limit(100 * PAGE as u64).build().expect("runtime");
    let session = Restore::new(&rt.open_image(&path).expect("open")).build().expect("session");
    match session.complete() {
        Err(Error::Limit { limit: 100, needed, .. }) => assert_eq!(needed, PAGES as u64),
        other => panic!("{other:?}, of more pages than the limit has"),
    }
    assert_eq!(session.progress().cached, 0, "nothing was done");
}

#[test]
fn an_image_that_is_none_is_refused_by_name() {
    let folder = Folder::new();
    let path = folder.path("no.sfi");
    std::fs::write(&path, vec![1; 8192]).expect("write");
    let error = runtime().open_image(&path).expect_err("no image");
    assert!(matches!(&error, Error::Image { .. }) && error.to_string().contains("no.sfi"), "{error}");
    let missing = runtime().open_image(folder.path("missing.sfi")).expect_err("no file");
    assert!(missing.to_string().contains("missing.sfi"), "{missing}");
}

#[test]
fn a_recording_has_each_page_that_was_touched_and_no_other() {
    let (folder, all) = (Folder::new(), memory());
    let path = folder.sfi("a.sfi", Codec::Lz4, 64 << 10, &all);
    each_mode("record", |rt, mode| {
        let image = rt.open_image(&path).expect("open");
        let plain = Restore::new(&image).arena(move |a| a.delivery(mode)).build().expect("session");
        assert_eq!(plain.mark().expect("mark"), None, "nothing was being recorded");
        let session = Restore::new(&image)
            .arena(move |a| a.delivery(mode))
            .overlay("entropy", 20 * PAGE as u64, vec![1; PAGE])
            .record(std::time::Duration::from_millis(1))
            .build()
            .expect("session");
        let low = session.region("low").expect("low");
        let at = |p: usize| low.as_ptr() as usize + p * PAGE;
        // Loads and stores by everybody at once; a page that two of them touch is one.
        let touched: Vec<usize> = (0..700).filter(|p| p % 7 == 3).collect();
        std::thread::scope(|scope| {
            for t in 0..3 {
                let (touched, all) = (&touched, &all);
                scope.spawn(move || {
                    for p in touched {
                        match (p + t) % 3 {
                            0 => assert_eq!(load_at(at(*p) + 100), Ok(all[p * PAGE + 100])),
                            _ => store_at(at(*p) + 8 * t, 1).expect("store"),
                        }
                    }
                });
            }
        });
        // Calls are touches, too; what is read into the cache is none.
        low.arena().read_at(low.range().start + 600 * PAGE, &mut [0]).expect("read_at");
        session.image().object().populate(0..(100 * PAGE) as u64).expect("populate");
        // Another session's touches are not this one's.
        assert_eq!(load_at(plain.regions()[0].as_ptr() as usize + 11 * PAGE), Ok(all[11 * PAGE]));
        let set = session.mark().expect("mark").expect("a set");
        set.check_is_of(image.image()).expect("of this image");
        let mut found: Vec<u64> = set.windows().iter().flat_map(|w| w.runs().flatten()).collect();
        found.sort_unstable();
        let mut want: Vec<u64> = touched.iter().map(|p| *p as u64).chain([600]).collect();
        want.sort_unstable();
        assert_eq!(found, want);
        // What is touched after the mark belongs to nothing.
        assert_eq!(load_at(at(5)), Ok(all[5 * PAGE]));
        assert_eq!(session.mark().expect("mark"), None);
    });
}
