//! Whatever is done with images, the result is what a full snapshot of the same memory would be.
#![allow(clippy::cast_possible_truncation, reason = "small images")]

mod common;

use common::{Model, filled, read_all};
use proptest::prelude::*;
use softfault_image::ops::{self, Compare, Stored};
use softfault_image::{Codec, Error, Image, PAGE_SIZE, Prot, Region, Writer};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ZERO: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

fn page(value: u8) -> [u8; PAGE_SIZE] {
    let mut page = [value; PAGE_SIZE];
    page[77] = value / 2;
    page
}

fn open(path: &Path) -> Arc<Image> {
    Arc::new(Image::open(path).expect("open"))
}

fn save(path: &Path, model: &Model) -> Arc<Image> {
    let mut w = Writer::create(path, model.len() as u64).expect("create");
    w.write(0, &model.concat()).expect("write");
    w.finish().expect("finish");
    open(path)
}

/// Returns the runs of pages that differ, the shorter memory zero behind its end.
fn differ(a: &Model, b: &Model) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for p in 0..a.len().max(b.len()) {
        if a.get(p).unwrap_or(&ZERO) != b.get(p).unwrap_or(&ZERO) {
            match runs.last_mut() {
                Some(last) if last.end == p as u64 => last.end += 1,
                _ => runs.push(p as u64..p as u64 + 1),
            }
        }
    }
    runs
}

#[derive(Clone, Debug)]
enum Step {
    /// Pages are written over the image of that number; the memory grows or shrinks by so much.
    Write {
        over: usize,
        pages: Vec<(usize, u8)>,
        grow: i16,
    },
    Compact {
        of: usize,
        budget: u32,
    },
    Rebase {
        of: usize,
        onto: usize,
    },
    Convert {
        of: usize,
    },
    /// Into a raw file, and a diff of another image over it.
    Extract {
        of: usize,
        diff_to: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let pages = prop::collection::vec((0usize..1400, 0u8..6), 0..60);
    prop_oneof![
        4 => (any::<usize>(), pages, prop_oneof![4 => Just(0i16), 1 => -300i16..300])
            .prop_map(|(over, pages, grow)| Step::Write { over, pages, grow }),
        2 => (any::<usize>(), 1u32..70).prop_map(|(of, budget)| Step::Compact { of, budget }),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(of, onto)| Step::Rebase { of, onto }),
        1 => any::<usize>().prop_map(|of| Step::Convert { of }),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(of, diff_to)| Step::Extract { of, diff_to }),
    ]
}

/// The images that a sequence of steps has made, and what each has to be.
struct World {
    folder: tempfile::TempDir,
    images: Vec<(Arc<Image>, Model)>,
    stored: Stored,
}

impl World {
    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("{}{suffix}", self.images.len()))
    }

    fn at(&self, of: usize) -> (Arc<Image>, Model) {
        self.images[of % self.images.len()].clone()
    }

    fn run(&mut self, step: &Step) {
        let path = self.path(".sfi");
        let (image, model) = match *step {
            Step::Write { over, ref pages, grow } => {
                let (parent, mut model) = self.at(over);
                let nr = model.len().saturating_add_signed(grow.into()).max(1);
                model.resize(nr, ZERO);
                let w = Writer::over(&path, nr as u64, parent).expect("create");
                let mut w = w.codec(self.stored.codec).frame_bytes(self.stored.frame_bytes);
                let mut pages: Vec<_> = pages.iter().filter(|(p, _)| *p < nr).collect();
                pages.sort();
                pages.dedup_by_key(|(p, _)| *p);
                for (p, v) in pages {
                    model[*p] = page(*v);
                    w.write(*p as u64, &model[*p]).expect("write");
                }
                w.finish().expect("finish");
                (open(&path), model)
            }
            Step::Compact { of, budget } => {
                let (image, model) = self.at(of);
                ops::compact(&image, &path, &self.stored, budget).expect("compact");
                let image = open(&path);
                let most = image.map().expect("map").fragmentation().most;
                assert!(most <= u64::from(budget), "{most} pieces, and the budget is {budget}");
                assert!(image.needs().is_empty(), "one file");
                (image, model)
            }
            Step::Rebase { of, onto } => {
                let ((image, model), (parent, _)) = (self.at(of), self.at(onto));
                ops::rebase(&image, &parent, &path, &self.stored).expect("rebase");
                (open(&path), model)
            }
            Step::Convert { of } => {
                let (image, model) = self.at(of);
                ops::convert(&image, &path, &self.stored).expect("convert");
                (open(&path), model)
            }
            Step::Extract { of, diff_to } => {
                let ((base, old), (image, model)) = (self.at(of), self.at(diff_to));
                let (raw, diff) = (self.path(".raw"), self.path(".diff"));
                ops::extract(&base, 0..base.nr_pages(), &raw).expect("extract");
                if old.len() == model.len() {
                    ops::extract_diff(&base, &image, &diff).expect("extract");
                    (Arc::new(Image::raw_stack(&raw, &[&diff]).expect("stack")), model)
                } else {
                    assert!(matches!(ops::extract_diff(&base, &image, &diff), Err(Error::Argument { .. })));
                    (open(&raw), old)
                }
            }
        };
        assert_eq!(read_all(&image), model, "{step:?}");
        let full = save(&self.path("-full.sfi"), &model);
        let content = image.compute_content_digest().expect("digest");
        assert_eq!(Some(content), full.content_digest(), "{step:?}: equal to a full snapshot");
        if image.content_digest().is_some() && image.is_verifiable().expect("layers") {
            assert_eq!(image.content_digest(), Some(content), "{step:?}");
            image.verify(&mut |_| ()).expect("verify");
        }
        for (other, old) in &self.images {
            for compare in [Compare::Digests, Compare::Pages] {
                let found = ops::diff(other, &image, compare).expect("diff");
                assert_eq!(found.runs(), differ(old, &model), "{step:?}: {compare:?}");
            }
        }
        self.images.push((image, model));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn what_is_done_with_images_keeps_their_memory(
        nr in 1usize..1400,
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..8),
        codec in 0usize..3,
        frame in 1usize..40,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let codec = [Codec::Raw, Codec::Lz4, if cfg!(feature = "zstd") { Codec::Zstd { level: 1 } } else { Codec::Lz4 }][codec];
        let model = filled(nr, seed);
        let first = save(&folder.path().join("first.sfi"), &model);
        let stored = Stored { codec, frame_bytes: frame * PAGE_SIZE };
        let mut world = World { folder, images: vec![(first, model)], stored };
        for step in &steps {
            world.run(step);
        }
    }
}

/// What is the same place of the same file is not read: a page that is damaged there is in no diff, and disturbs none.
#[test]
fn a_diff_reads_only_what_may_differ() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let mut model = filled(2000, 4);
    let base = save(&at("base.sfi"), &model);
    let mut w = Writer::over(at("child.sfi"), 2000, Arc::clone(&base)).expect("create");
    for p in [3, 700, 701, 1999] {
        model[p] = page(9);
        w.write(p as u64, &model[p]).expect("write");
    }
    w.finish().expect("finish");
    let file = std::fs::OpenOptions::new().write(true).open(at("base.sfi")).expect("open");
    let pos = base.map().expect("map").runs_in(1000..2000).find_map(|r| match r.source {
        softfault_image::Source::Raw { pos, .. } => Some(pos),
        _ => None,
    });
    file.write_all_at(&[0xaa; 64], pos.expect("a page that is not zero")).expect("write");
    let child = Image::open(at("child.sfi")).expect("open");
    let found = ops::diff(&base, &child, Compare::Pages).expect("the damage is in neither of what differs");
    assert_eq!((found.runs(), found.nr_pages()), (&[3..4, 700..702, 1999..2000][..], 4));
}

/// What a parent says of its own contents is not believed: else whoever makes it chooses what is in the child.
#[test]
fn a_parent_that_lies_about_its_contents_is_found_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (mine, theirs) = (filled(64, 1), filled(64, 2));
    let (image, honest) = (save(&at("mine.sfi"), &mine), save(&at("theirs.sfi"), &theirs));
    // The forger's file has their pages, and the digests of my contents: both tables, of 64 KiB, are one block of the file.
    let mut forged = std::fs::read(at("theirs.sfi")).expect("read");
    let (from, to) = (contents_table(&forged), contents_table(&std::fs::read(at("mine.sfi")).expect("read")));
    let good = std::fs::read(at("mine.sfi")).expect("read");
    forged[from..from + 16 * 32].copy_from_slice(&good[to..to + 16 * 32]);
    seal(&mut forged, &good);
    std::fs::write(at("forged.sfi"), &forged).expect("write");
    let forged = open(&at("forged.sfi"));
    assert_eq!(forged.content_digest(), image.content_digest(), "it says that it is mine");
    assert_eq!(read_all(&forged), theirs, "and is not");
    assert!(forged.verify(&mut |_| ()).expect_err("it lies").is_corruption());
    assert_eq!(ops::diff(&forged, &image, Compare::Digests).expect("diff").nr_pages(), 0, "who believes it");
    let found = ops::diff(&forged, &image, Compare::Pages).expect("diff");
    assert_eq!(found.runs(), differ(&theirs, &mine));
    ops::rebase(&image, &forged, at("child.sfi"), &Stored::default()).expect("rebase");
    assert_eq!(read_all(&open(&at("child.sfi"))), mine, "the memory is mine");
    assert!(ops::convert(&forged, at("copy.sfi"), &Stored::default()).expect_err("it lies").is_corruption());
    assert!(!at("copy.sfi").exists(), "nothing has the name");
    ops::convert(&honest, at("copy.sfi"), &Stored::default()).expect("who does not lie is copied");
}

/// Returns where the table of contents begins in a file.
fn contents_table(file: &[u8]) -> usize {
    let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let levels_at = word(56) as usize;
    let tables = 64 + 6 * 8 + 64;
    let of = (0..16).map(|i| tables + i * 24).find(|at| file[*at] == 6).expect("a table of contents");
    levels_at + word(of + 8) as usize
}

/// Has a file's root and digests fit its tables, of one block, and takes the digest of the contents from another.
fn seal(file: &mut [u8], of: &[u8]) {
    let levels_at = u64::from_le_bytes(file[56..64].try_into().expect("eight bytes")) as usize;
    let root = softfault_image::Digest::of(&file[levels_at..]);
    file[112..144].copy_from_slice(root.as_bytes());
    file[144..176].copy_from_slice(&of[144..176]);
    let own = softfault_image::Digest::of(&file[..4064]);
    file[4064..4096].copy_from_slice(own.as_bytes());
}

#[test]
fn what_is_beside_the_memory_goes_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let mut w = Writer::create(at("a.sfi"), 600).expect("create");
    let region = |name: &str, pages: Range<u64>| Region {
        name: name.into(),
        address: 1 << 40 | pages.start << 12,
        offset: pages.start << 12,
        len_bytes: (pages.end - pages.start) << 12,
        prot: Prot::READ,
    };
    w.region(region("low", 0..100)).expect("region");
    w.region(region("high", 512..600)).expect("region");
    w.key("cpu", b"EPYC");
    w.write(550, &page(3)).expect("write");
    w.finish().expect("finish");
    let image = open(&at("a.sfi"));
    ops::convert(&image, at("b.sfi"), &Stored::default()).expect("convert");
    ops::compact(&image, at("c.sfi"), &Stored::default(), 1).expect("compact");
    let empty = save(&at("empty.sfi"), &vec![ZERO; 600]);
    ops::rebase(&image, &empty, at("d.sfi"), &Stored::default()).expect("rebase");
    for name in ["b.sfi", "c.sfi", "d.sfi"] {
        let copy = open(&at(name));
        assert_eq!((copy.regions(), copy.keys()), (image.regions(), image.keys()), "{name}");
    }
    // A region alone.
    ops::extract(&image, image.regions()[1].pages(), at("high.raw")).expect("extract");
    let raw = std::fs::read(at("high.raw")).expect("read");
    assert!(raw.len() == 88 << 12 && raw[38 << 12..39 << 12] == page(3));
    assert!(matches!(ops::extract(&image, 0..88, at("high.raw")), Err(Error::Io { .. })), "no file is replaced");
    assert!(matches!(ops::extract(&image, 0..601, at("x")), Err(Error::Argument { .. })), "past the end");
    assert!(matches!(ops::compact(&image, at("x"), &Stored::default(), 0), Err(Error::Argument { .. })));
    assert!(matches!(ops::convert(&image, at("b.sfi"), &Stored::default()), Err(Error::Io { .. })));
}

/// A raw file that is written to while it is copied: the copy is refused.
#[test]
fn a_raw_file_that_changed_meanwhile_is_not_copied() {
    let folder = tempfile::tempdir().expect("a folder");
    let raw = folder.path().join("m.raw");
    std::fs::write(&raw, filled(20, 1).concat()).expect("write");
    let image = open(&raw);
    let file = std::fs::OpenOptions::new().write(true).open(&raw).expect("open");
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("touch");
    for result in [
        ops::convert(&image, folder.path().join("a.sfi"), &Stored::default()).map(|_| ()),
        ops::extract(&image, 0..20, folder.path().join("a.raw")),
        ops::rebase(&image, &image, folder.path().join("b.sfi"), &Stored::default()).map(|_| ()),
    ] {
        assert!(matches!(&result, Err(Error::Changed { path, .. }) if path == &raw), "{result:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("dir").count(), 1);
}
