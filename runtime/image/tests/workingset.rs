//! Working sets: what is recorded is replayed, whatever lies between; what is made to deceive is refused.
#![allow(clippy::cast_possible_truncation, reason = "small images")]

mod common;

use common::filled;
use proptest::prelude::*;
use roaring::RoaringBitmap;
use softfault_image::workingset::{Drift, Resolution, Suspicion, WorkingSet, carry, compare, merge};
use softfault_image::{Digest, Error, Image, PAGE_SIZE, Writer, write_sidecar};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

const CONTENT: Digest = Digest::ZERO;

fn save(path: &Path, pages: &[[u8; PAGE_SIZE]]) -> Image {
    let mut w = Writer::create(path, pages.len() as u64).expect("create");
    w.write(0, &pages.concat()).expect("write");
    w.finish().expect("finish");
    Image::open(path).expect("open")
}

fn set(pages: u64, resolution: Resolution, windows: &[&[u64]]) -> WorkingSet {
    let mut set = WorkingSet::new(CONTENT, pages, resolution);
    for (n, pages) in (0u64..).zip(windows) {
        set.push(n * 10..n * 10 + 10, pages.iter().copied()).expect("push");
    }
    set
}

/// Which window each page is in.
fn by_page(set: &WorkingSet) -> BTreeMap<u64, usize> {
    let pages = set.windows().iter().enumerate().flat_map(|(n, w)| w.runs().flatten().map(move |p| (p, n)));
    let all: Vec<(u64, usize)> = pages.collect();
    let map: BTreeMap<u64, usize> = all.iter().copied().collect();
    assert_eq!(all.len(), map.len(), "a page is in two windows");
    map
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_is_saved_is_opened(
        windows in prop::collection::vec(prop::collection::vec(0u64..1 << 34, 0..300), 0..9),
        dense in 0u64..200_000,
        power in 0u32..10,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.sws");
        let mut set = WorkingSet::new(Digest::of(b"x"), 1 << 34, Resolution::of_pages(1 << power).expect("a power"));
        let (mut model, mut at) = (BTreeMap::new(), 0);
        for (n, pages) in windows.iter().enumerate() {
            let pages: Vec<u64> = pages.iter().copied().chain(if n == 2 { 5000..5000 + dense } else { 0..0 }).collect();
            set.push(at..at + 7, pages.iter().copied()).expect("push");
            at += 9;
            for unit in pages.iter().map(|p| p >> power) {
                model.entry(unit).or_insert(n);
            }
        }
        set.save(&path).expect("save");
        // Over an old one.
        set.save(&path).expect("save");
        let back = WorkingSet::open(&path).expect("open");
        prop_assert_eq!(&back, &set);
        let found: BTreeMap<u64, usize> = by_page(&back).into_iter().map(|(p, n)| (p >> power, n)).collect();
        prop_assert_eq!(&found, &model);
        prop_assert_eq!(back.nr_pages(), (model.len() as u64) << power);
        prop_assert_eq!(std::fs::read_dir(folder.path()).expect("dir").count(), 1);
    }

    #[test]
    fn merging_is_counting(
        sets in prop::collection::vec(prop::collection::vec(prop::collection::vec(0u64..300, 0..60), 0..5), 1..6),
        least in 1usize..6,
    ) {
        let sets: Vec<WorkingSet> = sets.iter().map(|windows| {
            let windows: Vec<&[u64]> = windows.iter().map(Vec::as_slice).collect();
            set(300, Resolution::PAGE, &windows)
        }).collect();
        let refs: Vec<&WorkingSet> = sets.iter().collect();
        if least > sets.len() {
            let refused = matches!(merge(&refs, least), Err(Error::Argument { .. }));
            prop_assert!(refused);
            return Ok(());
        }
        let mut model: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for (page, window) in sets.iter().flat_map(by_page) {
            let (count, first) = model.entry(page).or_insert((0, window));
            (*count, *first) = (*count + 1, window.min(*first));
        }
        let wanted: BTreeMap<u64, usize> =
            model.into_iter().filter(|(_, (count, _))| *count >= least).map(|(page, (_, first))| (page, first)).collect();
        let merged = merge(&refs, least).expect("merge");
        prop_assert_eq!(by_page(&merged), wanted);
        prop_assert_eq!(merged.recordings() as usize, sets.len());
        let back: Vec<&WorkingSet> = sets.iter().rev().collect();
        prop_assert_eq!(merge(&back, least).expect("merge"), merged, "whatever the order");
    }

    #[test]
    fn drift_is_counting(
        a in prop::collection::btree_set(0u64..500, 0..200),
        b in prop::collection::btree_set(0u64..500, 0..200),
    ) {
        let list = |s: &BTreeSet<u64>| s.iter().copied().collect::<Vec<_>>();
        let (one, other) = (set(500, Resolution::PAGE, &[&list(&a)]), set(500, Resolution::PAGE, &[&[], &list(&b)]));
        let (both, all) = (a.intersection(&b).count() as u64, a.union(&b).count() as u64);
        let (foretold, touched) = (a.len() as u64 - both, b.len() as u64 - both);
        let drift = compare(&one, &other).expect("compare");
        prop_assert_eq!(drift, Drift { both, foretold, touched });
        if all > 0 {
            prop_assert!((drift.jaccard() - both as f64 / all as f64).abs() < 1e-12);
        }
    }
}

#[test]
fn shares_are_those_of_their_definitions() {
    let drift = Drift { both: 6, foretold: 2, touched: 4 };
    assert_eq!((drift.precision(), drift.recall(), drift.jaccard()), (0.75, 0.6, 0.5));
    let none = Drift { both: 0, foretold: 0, touched: 0 };
    assert_eq!((none.precision(), none.recall(), none.jaccard()), (1.0, 1.0, 1.0));
}

#[test]
fn what_says_different_things_is_not_mixed() {
    let page = set(100, Resolution::PAGE, &[&[1, 2]]);
    let rounded = set(100, Resolution::ROUNDED, &[&[1, 2]]);
    let mut other = WorkingSet::new(Digest::of(b"other"), 100, Resolution::PAGE);
    other.push(0..1, [1]).expect("push");
    for (set, wanted) in [(&rounded, "resolutions"), (&other, "contents")] {
        for error in [merge(&[&page, set], 1).expect_err(wanted), compare(&page, set).expect_err(wanted)] {
            assert!(matches!(&error, Error::Mixed { what, .. } if what.contains(wanted)), "{error}");
        }
    }
    assert!(
        matches!(merge(&[], 1), Err(Error::Argument { .. }))
            && matches!(merge(&[&page], 0), Err(Error::Argument { .. }))
    );
    assert_eq!(rounded.window(0).and_then(|w| w.runs().next()), Some(0..16));
    assert!([0, 3, 1024].into_iter().all(|pages| Resolution::of_pages(pages).is_none()));
    // A recorder's bitmap: words of bits from a page on.
    let mut bits = WorkingSet::new(CONTENT, 300, Resolution::PAGE);
    bits.push_bitmap(0..5, 64, &[1 << 63 | 1, 0, 6]).expect("push");
    assert_eq!(bits.window(0).map(|w| w.runs().collect()), Some(vec![64..65, 127..128, 193..195]));
    assert!(bits.push(4..9, [0]).is_err() && bits.push(Range { start: 9, end: 8 }, [0]).is_err(), "time goes on");
    assert!(bits.push(5..9, [300]).is_err(), "past the end");
    assert_eq!(bits.windows().len(), 1);
}

// ---- A writer of the format that shares no code with the reader ---------------------------------------------------------

type Pieces = Vec<(u32, Vec<u8>)>;

fn bitmap(values: Range<u32>, runs: bool) -> Vec<u8> {
    let mut bitmap = RoaringBitmap::from_iter(values);
    if runs {
        bitmap.optimize();
    }
    let mut bytes = Vec::new();
    bitmap.serialize_into(&mut bytes).expect("into memory");
    bytes
}

fn file(resolution: u32, image_pages: u64, windows: &[(u64, u64, Pieces)]) -> Vec<u8> {
    let mut file = b"\x89SWS\r\n\x1a\n".to_vec();
    file.extend([1u32.to_le_bytes(), resolution.to_le_bytes()].concat());
    file.extend([0; 8]);
    file.extend([5; 32]);
    file.extend(image_pages.to_le_bytes());
    file.extend([0; 8]);
    file.extend([(windows.len() as u32).to_le_bytes(), 3u32.to_le_bytes()].concat());
    file.extend([0; 16]);
    for (from, to, pieces) in windows {
        file.extend([from.to_le_bytes(), to.to_le_bytes()].concat());
        file.extend([(pieces.len() as u32).to_le_bytes(), [0; 4]].concat());
        for (high, bytes) in pieces {
            file.extend([high.to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat());
            file.extend(bytes);
        }
    }
    sealed(file)
}

fn sealed(mut file: Vec<u8>) -> Vec<u8> {
    let len = file.len() as u64 + 32;
    file[64..72].copy_from_slice(&len.to_le_bytes());
    let digest = Digest::of(&file);
    file.extend(digest.as_bytes());
    file
}

#[test]
fn the_format_is_the_one_that_is_described() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.sws");
    let pieces = vec![(0, bitmap(4..70_000, false)), (2, bitmap(9..10, false))];
    std::fs::write(&path, file(1, 1 << 40, &[(0, 5, pieces), (7, 7, Vec::new())])).expect("write");
    let set = WorkingSet::open(&path).expect("open");
    assert_eq!((set.content(), set.image_pages(), set.recordings()), (Digest::from_bytes([5; 32]), 1 << 40, 3));
    let runs: Vec<Vec<_>> = set.windows().iter().map(|w| w.runs().collect()).collect();
    assert_eq!(runs, [vec![4..70_000, (2 << 32) + 9..(2 << 32) + 10], vec![]]);
    assert_eq!(set.window(1).map(|w| w.time_ns()), Some(7..7));
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.sws");
    let refused = |bytes: &[u8], wanted: &str| {
        std::fs::write(&path, bytes).expect("write");
        let error = WorkingSet::open(&path).expect_err(wanted).to_string();
        assert!(error.contains(wanted) && error.contains("x.sws"), "{error}, and not {wanted}");
    };
    let one = |bytes: Vec<u8>| vec![(0u64, 5u64, vec![(0u32, bytes)])];
    refused(&file(3, 100, &[]), "a resolution of 3 pages");
    refused(&file(1, 1 << 60, &[]), "none of an image");
    refused(&file(1, 70_000, &one(bitmap(0..70_000, true))), "run containers");
    refused(&file(1, 69_999, &one(bitmap(0..70_000, false))), "the image ends before");
    refused(&file(1, 100, &one(bitmap(0..0, false))), "or empty");
    refused(&file(1, 100, &one([bitmap(0..9, false), vec![0]].concat())), "shorter than it says");
    refused(&file(1, 100, &one(b"nothing".to_vec())), "a bitmap is none");
    let mut unsorted = bitmap(0..3, false);
    let at = unsorted.len() - 6;
    unsorted[at..].copy_from_slice(&[2, 0, 1, 0, 0, 0]);
    refused(&file(1, 100, &one(unsorted)), "a bitmap is none");
    let piece = |high| (high, bitmap(0..3, false));
    refused(&file(1, 1 << 40, &[(0, 5, vec![piece(1), piece(1)])]), "out of order");
    refused(&file(1, 100, &[(0, 5, vec![piece(0)]), (5, 6, vec![(0, bitmap(2..5, false))])]), "in two windows");
    refused(&file(1, 100, &[(5, 4, Vec::new())]), "one after the other");
    refused(&file(1, 100, &[(0, 5, Vec::new()), (4, 6, Vec::new())]), "one after the other");
    let good = file(1, 100, &one(bitmap(0..9, false)));
    let mut more = good[..good.len() - 32].to_vec();
    more.extend([0; 24]);
    refused(&sealed(more), "something follows");
    let mut many = good[..good.len() - 32].to_vec();
    many[72..76].copy_from_slice(&9u32.to_le_bytes());
    refused(&sealed(many.clone()), "cut short");
    many[72..76].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(&sealed(many), "none of an image");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).expect("write");
        assert!(WorkingSet::open(&path).is_err(), "byte {at} was changed");
        std::fs::write(&path, &good[..at]).expect("write");
        assert!(WorkingSet::open(&path).is_err(), "{at} bytes are left");
    }
}

#[test]
fn a_set_is_of_contents_and_found_by_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let pages = filled(100, 5);
    let image = save(&at("a.sfi"), &pages);
    assert!(WorkingSet::find(&image).expect("find").is_none());
    let mut set = WorkingSet::of(&image, Resolution::PAGE).expect("a digest");
    set.push(0..9, [4, 5, 99]).expect("push");
    set.save_beside(&image).expect("save");
    // The same memory in another file, of another layout.
    std::fs::write(at("m.raw"), pages.concat()).expect("write");
    let raw = Image::open(at("m.raw")).expect("open");
    assert!(matches!(WorkingSet::of(&raw, Resolution::PAGE), Err(Error::Unsupported { .. })), "it has no digest");
    write_sidecar(&Arc::new(raw), at("m.sfi")).expect("sidecar");
    assert_eq!(WorkingSet::find(&Image::open(at("m.sfi")).expect("open")).expect("find").as_ref(), Some(&set));
    let other = save(&at("b.sfi"), &filled(100, 6));
    assert!(WorkingSet::find(&other).expect("find").is_none());
    assert!(matches!(set.save_beside(&other), Err(Error::Mixed { .. })));
    std::fs::rename(
        at(&format!("{}.sws", set.content())),
        at(&format!("{}.sws", other.content_digest().expect("digest"))),
    )
    .expect("rename");
    assert!(matches!(WorkingSet::find(&other), Err(Error::Mixed { .. })), "its name lies");
}

/// A build that moved its data by some groups, and changed some: the set follows what is the same.
#[test]
fn a_set_survives_a_rebuild() {
    let folder = tempfile::tempdir().expect("a folder");
    // Each page is another one.
    let page = |n: u64| {
        let mut page = [0; PAGE_SIZE];
        page[..8].copy_from_slice(&(n + 1).to_le_bytes());
        page
    };
    let old: Vec<_> = (0..400).map(|n| if (200..240).contains(&n) { [0; PAGE_SIZE] } else { page(n) }).collect();
    // Eight groups came in front of page 100; pages 50 and 300 are others now.
    let mut new: Vec<_> = old[..100].to_vec();
    new.extend((1000..1032).map(page));
    new.extend(&old[100..]);
    (new[50], new[332]) = (page(5000), page(5001));
    let (from, to) = (save(&folder.path().join("old.sfi"), &old), save(&folder.path().join("new.sfi"), &new));
    let mut set = WorkingSet::of(&from, Resolution::PAGE).expect("a digest");
    set.push(0..10, [3, 51, 130, 131]).expect("push");
    set.push(10..20, [133, 235, 208, 301, 399]).expect("push");
    let carried = carry(&set, &from, &to).expect("carry");
    let runs: Vec<Vec<_>> = carried.set.windows().iter().map(|w| w.runs().collect()).collect();
    // Page 208 was zero and is now data; 235 is zero still.
    assert_eq!(runs, [vec![3..4, 162..164], vec![165..166, 235..236, 431..432]]);
    assert_eq!((carried.stayed, carried.moved, carried.lost), (2, 3, 3));
    assert_eq!(carried.set.content(), to.content_digest().expect("digest"));
    let back = carry(&carried.set, &to, &from).expect("carry back");
    assert_eq!(back.lost, 0);
    assert!(matches!(carry(&set, &to, &from), Err(Error::Mixed { .. })), "it is not of that image");
    let mut rounded = WorkingSet::of(&from, Resolution::ROUNDED).expect("a digest");
    rounded.push(0..10, [130]).expect("push");
    let carried = carry(&rounded, &from, &to).expect("carry");
    assert_eq!(carried.set.window(0).and_then(|w| w.runs().next()), Some(160..176), "the unit that has the page");
}

#[test]
fn a_set_that_is_too_large_is_suspicious() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.sfi");
    const NR: u64 = 100_000;
    let mut w = Writer::create(&path, NR).expect("create").codec(softfault_image::Codec::Lz4);
    for p in (0..20_000).chain(90_000..NR) {
        w.write(p, &[p as u8 | 1; PAGE_SIZE]).expect("write");
    }
    w.finish().expect("finish");
    let image = Image::open(&path).expect("open");
    let of = |pages: Range<u64>| {
        let mut set = WorkingSet::of(&image, Resolution::PAGE).expect("a digest");
        set.push(0..1, pages).expect("push");
        set
    };
    let suspicion = |pages: Range<u64>, before: Option<u64>| {
        of(pages).suspicion(&image, before.map(|nr| of(0..nr)).as_ref()).expect("of the image")
    };
    assert_eq!(suspicion(0..15_000, None), None);
    assert_eq!(suspicion(0..15_001, None), Some(Suspicion::MostOfTheImage { touched: 15_001, stored: 30_000 }));
    assert_eq!(suspicion(20_000..90_000, None), None, "zeros cost nothing");
    assert_eq!(suspicion(15_000..35_000, Some(10_000)), None);
    assert_eq!(suspicion(15_000..35_002, Some(10_000)), Some(Suspicion::Grew { from: 10_000, to: 20_002 }));
    assert_eq!(suspicion(0..300, Some(100)), None, "small sets may grow");
    let other = WorkingSet::new(CONTENT, NR, Resolution::PAGE);
    assert!(matches!(other.suspicion(&image, None), Err(Error::Mixed { .. })));
}
