//! What is written is read, whatever its layout; what was changed on the way is refused, by name, and nothing else is.
#![allow(clippy::cast_possible_truncation, reason = "small images")]

mod common;

use common::{Model, filled, read_all};
use proptest::prelude::*;
use softfault_image::{Codec, Digest, Error, Image, Integrity, PAGE_SIZE, Prot, Region, Source, Writer};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

fn codecs() -> Vec<Codec> {
    if cfg!(feature = "zstd") {
        vec![Codec::Raw, Codec::Lz4, Codec::Zstd { level: 1 }]
    } else {
        vec![Codec::Raw, Codec::Lz4]
    }
}

fn region(name: &str, address: u64, pages: std::ops::Range<u64>) -> Region {
    let (offset, len) = (pages.start * PAGE_SIZE as u64, (pages.end - pages.start) * PAGE_SIZE as u64);
    Region { name: name.into(), address, offset, len_bytes: len, prot: Prot::READ | Prot::WRITE }
}

/// Writes a model, page by page, those that are zero left out.
fn save(path: &Path, model: &Model, codec: Codec) -> Digest {
    let _ = std::fs::remove_file(path);
    let mut w = Writer::create(path, model.len() as u64).expect("create").codec(codec);
    for (p, page) in model.iter().enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0)) {
        w.write(p as u64, page).expect("write");
    }
    w.finish().expect("finish")
}

#[test]
fn an_image_is_what_was_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut contents = Vec::new();
    for codec in codecs() {
        let path = folder.path().join(format!("{codec}.sfi"));
        let model = filled(1700, 3);
        let mut w = Writer::create(&path, 1700).expect("create").codec(codec).frame_bytes(64 << 10);
        w.region(region("low", 0x1000_0000, 0..1000)).expect("region");
        w.region(region("high", 0x7000_0000_0000, 1024..1700)).expect("region");
        w.key("cpu", b"EPYC");
        w.key("vmm", b"1");
        w.key("vmm", b"2");
        w.write(0, &model[..900].concat()).expect("write");
        w.write(900, &model[900..].concat()).expect("write");
        let digest = w.finish().expect("finish");

        let image = Image::open(&path).expect("open");
        assert_eq!(image.file_digest(), Some(digest));
        assert_eq!(image.regions().iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["low", "high"]);
        assert_eq!((image.key("vmm"), image.key("cpu"), image.key("x")), (Some(&b"2"[..]), Some(&b"EPYC"[..]), None));
        assert_eq!(read_all(&image), model, "{codec}");
        assert_eq!(Some(image.compute_content_digest().expect("digest")), image.content_digest());
        let mut last = 0;
        image.verify(&mut |done| last = done.max(last)).expect("verify");
        assert!(last > 0 && image.is_verifiable().expect("layers"));
        contents.push(image.content_digest());
        let mut many = image.reader();
        let (mut page, mut pages) = ([0; PAGE_SIZE], vec![0; 700 * PAGE_SIZE]);
        many.read(1699, &mut page).expect("the last page");
        many.read(500, &mut pages).expect("over extents");
        assert_eq!(pages, model[500..1200].concat());
        assert!(matches!(many.read(1699, &mut [0; 2 * PAGE_SIZE]), Err(Error::Argument { .. })), "past the end");
        assert!(matches!(many.read(0, &mut [0; 5]), Err(Error::Argument { .. })), "no page");
    }
    assert!(contents.windows(2).all(|w| w[0] == w[1]), "the contents do not depend on the codec");
}

#[test]
fn a_child_shares_what_has_not_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    for codec in codecs() {
        let at = |n: usize| folder.path().join(format!("{codec}-{n}.sfi"));
        let mut model = filled(1500, 9);
        save(&at(0), &model, codec);
        for n in 1..12 {
            let parent = Arc::new(Image::open(at(n - 1)).expect("parent"));
            let mut w = Writer::over(at(n), 1500, Arc::clone(&parent)).expect("create").codec(codec);
            for i in 0..40u64 {
                let p = i * 37 + n as u64;
                // Some become zero, some become what they were.
                let page = if i % 7 == 0 { [0; PAGE_SIZE] } else { [(i + n as u64) as u8; PAGE_SIZE] };
                let page = if i % 11 == 3 { model[p as usize] } else { page };
                model[p as usize] = page;
                w.write(p, &page).expect("write");
            }
            w.finish().expect("finish");
            let image = Image::open(at(n)).expect("open");
            assert_eq!(read_all(&image), model, "{codec}, generation {n}");
            let full = folder.path().join("full.sfi");
            save(&full, &model, Codec::Raw);
            let full = Image::open(full).expect("open");
            assert_eq!(image.content_digest(), full.content_digest(), "equal memory has equal digests, {codec}, {n}");
            image.verify(&mut |_| ()).expect("verify");
        }
        let len = std::fs::metadata(at(5)).expect("stat").len();
        assert!(len < 900 << 10, "a child of 40 pages takes {len} bytes");
        // A grandparent that is another file now is found out when the first page of it is read, or by its digest.
        save(&at(0), &filled(1500, 10), codec);
        let image = Image::open(at(11)).expect("the image itself is whole");
        let mut page = [0; PAGE_SIZE];
        let failed = (0..1500).filter(|p| image.reader().read(*p, &mut page).is_err()).count();
        assert!(failed > 500, "{failed} pages were read of a file that is another one");
    }
}

#[test]
fn a_raw_parent_is_shared_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let (raw, diff, child) = (folder.path().join("m.raw"), folder.path().join("d.raw"), folder.path().join("c.sfi"));
    let mut model = filled(600, 5);
    std::fs::write(&raw, model.concat()).expect("write");
    let sparse = std::fs::File::create(&diff).expect("create");
    sparse.set_len(600 * PAGE_SIZE as u64).expect("len");
    model[77] = [77; PAGE_SIZE];
    sparse.write_all_at(&model[77], 77 * PAGE_SIZE as u64).expect("write");
    let stack = Arc::new(Image::raw_stack(&raw, &[&diff]).expect("stack"));
    assert_eq!(read_all(&stack), model);
    assert!(stack.file_digest().is_none() && !stack.is_verifiable().expect("layers"));
    assert!(
        matches!(stack.verify(&mut |_| ()), Err(Error::Unsupported { .. })),
        "a raw image is never called verified"
    );
    let mut w = Writer::over(&child, 700, stack).expect("create");
    w.write(5, &[1; PAGE_SIZE]).expect("write");
    w.write(699, &[2; PAGE_SIZE]).expect("write");
    w.finish().expect("finish");
    model[5] = [1; PAGE_SIZE];
    model.resize(700, [0; PAGE_SIZE]);
    model[699] = [2; PAGE_SIZE];
    let image = Image::open(&child).expect("open");
    assert_eq!(read_all(&image), model);
    assert!(image.content_digest().is_none() && !image.is_verifiable().expect("layers"), "its parent has no digests");
    // The parent is gone, or shorter: said by name.
    sparse.set_len(4096).expect("len");
    let image = Image::open(&child).expect("open");
    let error = image.reader().read(77, &mut [0; PAGE_SIZE]).expect_err("the diff is shorter");
    assert!(matches!(error, Error::Changed { .. }) && error.to_string().contains("d.raw"), "{error}");
    std::fs::remove_file(&raw).expect("remove");
    let error = Image::open(&child).expect("open").reader().read(9, &mut [0; PAGE_SIZE]).expect_err("gone");
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("m.raw"), "{error}");
}

#[test]
fn nothing_is_left_of_what_was_not_finished() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.sfi");
    let digest = save(&path, &filled(100, 1), Codec::Lz4);
    assert!(matches!(Writer::create(&path, 100), Err(Error::Io { .. })), "no image is replaced");
    let own = Arc::new(Image::open(&path).expect("open"));
    assert!(matches!(Writer::over(&path, 100, own), Err(Error::Io { .. })), "least of all a parent by its child");
    let other = folder.path().join("other.sfi");
    let mut w = Writer::create(&other, 100).expect("create");
    w.write(0, &[1; 50 * PAGE_SIZE]).expect("write");
    assert!(matches!(w.write(49, &[1; PAGE_SIZE]), Err(Error::Argument { .. })), "out of order");
    assert!(matches!(w.write(99, &[1; 2 * PAGE_SIZE]), Err(Error::Argument { .. })), "past the end");
    assert!(matches!(w.write(60, &[1; 9]), Err(Error::Argument { .. })), "no page");
    assert!(w.region(region("r", 0, 0..101)).is_err() && w.region(region("r", 4097, 0..1)).is_err());
    std::fs::write(&other, "somebody's").expect("write");
    assert!(matches!(w.finish(), Err(Error::Io { .. })), "what got the name meanwhile is not replaced");
    assert_eq!(std::fs::read(&other).expect("read"), b"somebody's");
    std::fs::remove_file(&other).expect("remove");
    let mut w = Writer::create(&other, 100).expect("create");
    w.write(0, &[1; 50 * PAGE_SIZE]).expect("write");
    drop(w);
    assert_eq!(std::fs::read_dir(folder.path()).expect("dir").count(), 1, "no temporary file");
    assert_eq!(Image::open(&path).expect("open").file_digest(), Some(digest), "what was there is there");
}

#[test]
fn an_image_may_be_empty_or_all_zero() {
    let folder = tempfile::tempdir().expect("a folder");
    for nr in [0, 1, 513] {
        let path = folder.path().join(format!("{nr}.sfi"));
        Writer::create(&path, nr).expect("create").finish().expect("finish");
        let image = Image::open(&path).expect("open");
        assert_eq!(read_all(&image), vec![[0; PAGE_SIZE]; nr as usize]);
        image.verify(&mut |_| ()).expect("verify");
    }
}

/// What a reserve of address space costs goes with the pages in it.
#[test]
fn a_terabyte_of_zeros_is_a_small_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, child) = (folder.path().join("image.sfi"), folder.path().join("child.sfi"));
    let (nr, page) = (1u64 << 28, [7; PAGE_SIZE]);
    let mut w = Writer::create(&path, nr).expect("create");
    w.write(nr / 2, &page).expect("write");
    w.finish().expect("finish");
    let len = std::fs::metadata(&path).expect("stat").len();
    assert!(len < 9 << 20, "{len} bytes for one page: 16 an extent are enough");
    let image = Image::open(&path).expect("open");
    image.verify(&mut |_| ()).expect("verify");
    assert_eq!(image.content_digest(), Some(image.compute_content_digest().expect("digest")));
    let mut w = Writer::over(&child, nr, Arc::new(image)).expect("create");
    w.write(nr / 2, &[0; PAGE_SIZE]).expect("write");
    w.write(nr - 1, &page).expect("write");
    w.finish().expect("finish");
    let image = Image::open(&child).expect("open");
    let mut found = [1; PAGE_SIZE];
    image.reader().read(nr / 2, &mut found).expect("read");
    assert_eq!(found, [0; PAGE_SIZE]);
    image.verify(&mut |_| ()).expect("verify");
}

#[test]
fn an_image_that_lost_its_first_bytes_is_no_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.sfi");
    save(&path, &filled(40, 2), Codec::Lz4);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
    file.write_all_at(&[0; PAGE_SIZE], 0).expect("write");
    assert!(Image::open(&path).expect_err("its header is zero").is_corruption());
    file.set_len(0).expect("len");
    assert!(Image::open(&path).expect_err("it is empty").is_corruption());
}

/// What was read before, and lies verified in memory, says nothing about the disk.
#[test]
fn verifying_looks_at_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    for codec in codecs() {
        let path = folder.path().join(format!("{codec}.sfi"));
        save(&path, &filled(64, 6), codec);
        let image = Image::open(&path).expect("open").with_integrity(Integrity::Once);
        image.verify(&mut |_| ()).expect("it is whole");
        read_all(&image);
        let good = std::fs::read(&path).expect("read");
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
        // The last byte of the tables, and one of the first page that is stored.
        for at in [good.len() - 1, (16 << 10) + 10] {
            file.write_all_at(&[good[at] ^ 1], at as u64).expect("write");
            let error = image.verify(&mut |_| ()).expect_err("a byte was changed");
            assert!(error.is_corruption(), "{codec}, byte {at}: {error}");
            file.write_all_at(&[good[at]], at as u64).expect("write");
        }
        image.verify(&mut |_| ()).expect("it is whole again");
        std::fs::remove_file(&path).expect("remove");
        save(&path, &filled(64, 7), codec);
        assert!(matches!(image.verify(&mut |_| ()), Err(Error::Changed { .. })), "another file of the same name");
    }
}

/// Every byte of a small image, changed: it is refused, or the image is as it was (padding that nobody reads).
#[test]
fn a_changed_byte_is_found_out() {
    let folder = tempfile::tempdir().expect("a folder");
    for codec in codecs() {
        let path = folder.path().join("image.sfi");
        let model = filled(12, 2);
        save(&path, &model, codec);
        let good = std::fs::read(&path).expect("read");
        let mut missed = 0;
        for at in (0..good.len()).step_by(67) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bad).expect("write");
            match try_all(&path, Integrity::Lazy) {
                Ok(pages) => {
                    assert_eq!(pages, model, "{codec}: byte {at} was changed, and other pages were given out");
                    missed += 1;
                }
                Err(e) => {
                    assert!(e.is_corruption() || matches!(e, Error::Unsupported { .. }), "{codec}, byte {at}: {e}")
                }
            }
        }
        assert!(missed * 67 < 16 << 10, "{codec}: {missed} changes outside the padding were not found out");
    }
}

#[test]
fn a_file_that_is_cut_short_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.sfi");
    save(&path, &filled(40, 2), Codec::Lz4);
    let good = std::fs::read(&path).expect("read");
    for len in (9..good.len()).step_by(997) {
        std::fs::write(&path, &good[..len]).expect("write");
        let error = try_all(&path, Integrity::Trusted).expect_err("it is cut short");
        assert!(error.is_corruption(), "{len} bytes: {error}");
    }
}

/// One page that is damaged is refused, whatever is read with it; the others are given out.
#[test]
fn damage_is_of_its_own_pages_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.sfi");
    let model = filled(64, 6);
    save(&path, &model, Codec::Raw);
    let image = Image::open(&path).expect("open");
    let map = image.map().expect("map");
    let raw = map.runs().iter().skip(5).find_map(|r| match r.source {
        Source::Raw { pos, .. } => Some((r.page, pos)),
        _ => None,
    });
    let (hit, pos) = raw.expect("some page is not zero");
    let at = pos + 100;
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
    file.write_all_at(&[0xff, 0xfe], at).expect("write");
    let mut page = [0; PAGE_SIZE];
    for (mode, once) in [(Integrity::Lazy, false), (Integrity::Once, true)] {
        let image = Image::open(&path).expect("open").with_integrity(mode);
        let mut reader = image.reader();
        let bad: Vec<u64> = (0..64).filter(|p| reader.read(*p, &mut page).is_err()).collect();
        assert!(bad.contains(&hit) && bad.len() <= 4, "{mode:?}: pages {bad:?} are refused");
        let error = reader.read(hit, &mut page).expect_err("it is damaged");
        assert!(matches!(&error, Error::Digest { offset, .. } if (*offset..*offset + 16384).contains(&at)), "{error}");
        assert_eq!(image.integrity() == Integrity::Once, once);
    }
    let trusted = Image::open(&path).expect("open").with_integrity(Integrity::Trusted);
    trusted.reader().read(hit, &mut page).expect("who trusts is not told");
    assert_ne!(page, model[hit as usize]);
}

fn try_all(path: &Path, integrity: Integrity) -> Result<Model, Error> {
    let image = Image::open(path)?.with_integrity(integrity);
    let mut model = vec![[0; PAGE_SIZE]; image.nr_pages().min(1 << 12) as usize];
    let mut reader = image.reader();
    for (p, page) in model.iter_mut().enumerate() {
        reader.read(p as u64, page)?;
    }
    image.verify(&mut |_| ())?;
    Ok(model)
}

/// What is told last is everything, whoever of the threads has done the last part.
#[test]
fn who_follows_a_verification_is_told_of_all_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.sfi");
    save(&path, &filled(600, 1), Codec::Raw);
    let image = Image::open(&path).expect("open");
    let told = || {
        let mut told = Vec::new();
        image.verify(&mut |bytes| told.push(bytes)).expect("verify");
        assert!(told.is_sorted(), "{told:?}");
        told.last().copied()
    };
    let all = told();
    assert!((0..40).all(|_| told() == all), "some runs are told less than {all:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Any pages in any order of sizes, over any parent, are what a vector of pages says.
    #[test]
    fn images_are_what_their_model_is(
        nr in 1usize..1300,
        base in prop::collection::vec((0usize..1300, 1u8..=255), 0..60),
        steps in prop::collection::vec(prop::collection::vec((0usize..1300, 0u8..4), 0..50), 1..4),
        codec in 0usize..3,
        frame in 1usize..40,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let codec = codecs()[codec % codecs().len()];
        let mut model = vec![[0; PAGE_SIZE]; nr];
        base.iter().filter(|(p, _)| *p < nr).for_each(|(p, v)| model[*p] = [*v; PAGE_SIZE]);
        let mut path = folder.path().join("0.sfi");
        save(&path, &model, codec);
        for (n, step) in steps.iter().enumerate() {
            let parent = Arc::new(Image::open(&path).expect("open"));
            path = folder.path().join(format!("{}.sfi", n + 1));
            let mut w = Writer::over(&path, nr as u64, parent).expect("create").codec(codec).frame_bytes(frame * PAGE_SIZE);
            let mut pages: Vec<_> = step.iter().filter(|(p, _)| *p < nr).collect();
            pages.sort();
            pages.dedup_by_key(|(p, _)| *p);
            for (p, v) in pages {
                model[*p] = [*v; PAGE_SIZE];
                model[*p][17] = (*v).wrapping_mul(*p as u8);
                w.write(*p as u64, &model[*p]).expect("write");
            }
            w.finish().expect("finish");
            let image = Image::open(&path).expect("open");
            prop_assert_eq!(&read_all(&image), &model);
            prop_assert_eq!(image.content_digest(), Some(image.compute_content_digest().expect("digest")));
            image.verify(&mut |_| ()).expect("verify");
        }
    }

    /// Bytes that are no image, behind a header that is one: refused, and nothing is allocated for what they say.
    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..9000), is_sfi: bool, at in 0usize..4096, value: u64) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image.sfi");
        let mut all = bytes;
        if is_sfi {
            save(&path, &filled(10, 1), Codec::Lz4);
            let mut good = std::fs::read(&path).expect("read");
            let at = at.min(good.len() - 8) & !7;
            good[at..at + 8].copy_from_slice(&value.to_le_bytes());
            // The digest is made to fit: what is left are the bounds.
            let digest = Digest::of(&good[..4064]);
            good[4064..4096].copy_from_slice(digest.as_bytes());
            all = good;
        }
        std::fs::write(&path, &all).expect("write");
        if let Err(e) = try_all(&path, Integrity::Lazy) {
            prop_assert!(!e.to_string().is_empty());
        }
    }
}
