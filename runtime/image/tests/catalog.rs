//! Names, leases, and what a collection takes: never what a name, a holder or a child needs, whatever happens meanwhile.

mod common;

use common::{filled, read_all};
use softfault_image::workingset::{Resolution, WorkingSet};
use softfault_image::{Catalog, Codec, Digest, Error, Image, Kept, PAGE_SIZE, Writer, ops};
use std::path::Path;
use std::sync::Arc;

fn full(path: &Path, seed: u64) -> Digest {
    let mut w = Writer::create(path, 50).expect("create");
    w.write(0, &filled(50, seed).concat()).expect("write");
    w.finish().expect("finish")
}

fn child(path: &Path, parent: &Path, value: u8) -> Digest {
    let parent = Arc::new(Image::open(parent).expect("open"));
    let mut w = Writer::over(path, 50, parent).expect("create");
    w.write(3, &[value; PAGE_SIZE]).expect("write");
    w.finish().expect("finish")
}

fn removed(plan: &softfault_image::Plan) -> Vec<String> {
    let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut names: Vec<_> = plan.remove.iter().map(|e| name(&e.path)).collect();
    names.sort();
    names
}

#[test]
fn only_what_nobody_needs_is_collected() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(format!("{name}.sfi"));
    let catalog = Catalog::open(folder.path()).expect("open");
    full(&at("base"), 1);
    child(&at("middle"), &at("base"), 2);
    let top = child(&at("top"), &at("middle"), 3);
    full(&at("loose"), 4);
    full(&at("held"), 5);
    catalog.tag("release:1.4", &top).expect("tag");
    assert_eq!(catalog.tags().expect("tags").get("release:1.4"), Some(&top));
    let held = Image::open(at("held")).expect("open").lease().expect("lease");

    let plan = catalog.plan().expect("plan");
    // The newest shares pages with the base alone: what was between is flat, and is needed only where a page of it is shown.
    assert_eq!(removed(&plan), ["loose.sfi", "middle.sfi"]);
    let why = |name: &str| plan.keep.iter().find(|(e, _)| e.path == at(name)).map(|(_, why)| why.clone());
    assert_eq!((why("top"), why("held")), (Some(Kept::Tagged), Some(Kept::Held)));
    assert_eq!(why("base"), Some(Kept::Needed(at("top"))));
    assert!(at("loose").exists(), "a plan changes nothing");

    assert_eq!(removed(&catalog.collect().expect("collect")), ["loose.sfi", "middle.sfi"]);
    assert!(!at("loose").exists() && at("base").exists() && at("held").exists());
    assert_eq!(read_all(&catalog.image("release:1.4").expect("by its tag"))[3], [3; PAGE_SIZE]);
    assert_eq!(catalog.image(&top.to_string()).expect("by its digest").file_digest(), Some(top));
    drop(held);
    catalog.untag("release:1.4").expect("untag");
    assert_eq!(removed(&catalog.collect().expect("collect")), ["base.sfi", "held.sfi", "top.sfi"]);
}

#[test]
fn what_is_used_is_not_removed_and_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(format!("{name}.sfi"));
    let catalog = Catalog::open(folder.path()).expect("open");
    let (base, other) = (full(&at("base"), 1), full(&at("other"), 2));
    child(&at("top"), &at("base"), 3);
    catalog.tag("x", &other).expect("tag");
    let refused = |digest: &Digest, wanted: &str| match catalog.remove(digest) {
        Err(Error::InUse { why, .. }) => assert!(why.contains(wanted), "{why}"),
        r => panic!("{wanted}: {r:?}"),
    };
    refused(&base, "top.sfi needs it");
    refused(&other, "the tag `x`");
    catalog.untag("x").expect("untag");
    let lease = Image::open(at("other")).expect("open").lease().expect("lease");
    refused(&other, "somebody holds it");
    drop(lease);
    catalog.remove(&other).expect("nobody needs it");
    assert!(matches!(catalog.remove(&other), Err(Error::Io { .. })), "there is none");
    assert!(matches!(catalog.tag("x", &other), Err(Error::Io { .. })), "there is none to be named");
    for bad in ["", ".x", "a/b", "..", "é", &"x".repeat(129)] {
        assert!(matches!(catalog.tag(bad, &base), Err(Error::Argument { .. })), "{bad}");
    }
}

#[test]
fn nothing_goes_while_a_file_cannot_be_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let catalog = Catalog::open(folder.path()).expect("open");
    full(&folder.path().join("a.sfi"), 1);
    let damaged = folder.path().join("b.sfi");
    full(&damaged, 2);
    let mut bytes = std::fs::read(&damaged).expect("read");
    bytes[100] ^= 1;
    std::fs::write(&damaged, bytes).expect("write");
    let plan = catalog.collect().expect("collect");
    assert!(plan.remove.is_empty() && plan.damaged.len() == 1 && plan.damaged[0].1.contains("b.sfi"), "{plan:?}");
    assert!(damaged.exists());
    // A file that is empty calls itself an image, too.
    std::fs::write(&damaged, "").expect("write");
    let plan = catalog.collect().expect("collect");
    assert!(plan.remove.is_empty() && plan.damaged.len() == 1, "{plan:?}");
}

/// A working set is of contents: it is kept while an image of the folder has them, whatever the file.
#[test]
fn working_sets_go_with_the_last_image_of_their_contents() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let catalog = Catalog::open(folder.path()).expect("open");
    full(&at("a.sfi"), 1);
    let image = Image::open(at("a.sfi")).expect("open");
    let mut set = WorkingSet::of(&image, Resolution::PAGE).expect("a digest");
    set.push(0..9, [3]).expect("push");
    let path = set.save_beside(&image).expect("save");
    set.save(at("mine.sws")).expect("save");
    let stored = ops::Stored { codec: Codec::Lz4, ..ops::Stored::default() };
    let other = ops::convert(&image, at("b.sfi"), &stored).expect("convert");
    catalog.tag("x", &other).expect("tag");
    let plan = catalog.collect().expect("collect");
    assert_eq!((removed(&plan), plan.working_sets.len()), (vec!["a.sfi".to_owned()], 0));
    assert!(path.exists(), "another image has the same contents");
    catalog.untag("x").expect("untag");
    full(&at("damaged.sfi"), 2);
    std::fs::write(at("damaged.sfi"), "").expect("write");
    assert!(catalog.collect().expect("collect").working_sets.is_empty(), "it may be of what cannot be read");
    std::fs::remove_file(at("damaged.sfi")).expect("remove");
    assert_eq!(catalog.plan().expect("plan").working_sets, std::slice::from_ref(&path));
    assert!(path.exists(), "a plan changes nothing");
    assert_eq!(catalog.collect().expect("collect").working_sets, std::slice::from_ref(&path));
    assert!(!path.exists() && at("mine.sws").exists(), "what is called otherwise is somebody's");
}

/// A writer that was killed has left a file; one that lives is not disturbed.
#[test]
fn what_killed_writers_left_is_collected() {
    let folder = tempfile::tempdir().expect("a folder");
    let names = || {
        let all = std::fs::read_dir(folder.path()).expect("dir").map(|e| e.expect("entry").file_name());
        let mut all: Vec<_> =
            all.map(|n| n.to_string_lossy().into_owned()).filter(|n| n.starts_with(".soft")).collect();
        all.sort();
        all
    };
    let catalog = Catalog::open(folder.path()).expect("open");
    std::fs::write(folder.path().join(".softfault-Ab12Cd"), [1; 5000]).expect("write");
    std::fs::write(folder.path().join("tags/.softfault-Ab12Cd"), "half a dig").expect("write");
    let mut w = Writer::create(folder.path().join("a.sfi"), 50).expect("create");
    w.write(3, &[7; PAGE_SIZE]).expect("write");
    assert_eq!(names().len(), 2);
    catalog.collect().expect("collect");
    assert!(names().len() == 1 && !names()[0].contains("Ab12Cd"), "{:?}", names());
    assert_eq!(std::fs::read_dir(folder.path().join("tags")).expect("dir").count(), 0);
    w.finish().expect("its file is there");
    assert!(names().is_empty());
}

/// Who writes a child holds the parent, which nothing names.
#[test]
fn a_parent_is_held_while_its_child_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(format!("{name}.sfi"));
    let catalog = Catalog::open(folder.path()).expect("open");
    full(&at("parent"), 1);
    let parent = Arc::new(Image::open(at("parent")).expect("open"));
    let mut w = Writer::over(at("child"), 50, parent).expect("create");
    w.write(3, &[7; PAGE_SIZE]).expect("write");
    assert!(catalog.collect().expect("collect").remove.is_empty());
    let (_, lease) = w.finish_held().expect("finish");
    assert!(catalog.collect().expect("collect").remove.is_empty());
    assert_eq!(read_all(&Image::open(at("child")).expect("open"))[3], [7; PAGE_SIZE]);
    drop(lease);
    let gone = catalog.collect().expect("collect").remove;
    assert_eq!(gone.iter().map(|e| e.path.clone()).collect::<Vec<_>>(), [at("child"), at("parent")], "the child first");
}

/// A pipe of an image's name keeps nobody waiting.
#[test]
fn a_pipe_is_no_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("x.sfi");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    assert!(matches!(Image::open(&pipe), Err(Error::Unsupported { .. })));
    let plan = Catalog::open(folder.path()).expect("open").collect().expect("collect");
    assert_eq!(plan.damaged.len(), 1);
}

/// A lease that is asked for while the file is being removed is refused, or holds the file.
#[test]
fn a_lease_and_a_collection_do_not_both_succeed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.sfi");
    let catalog = Catalog::open(folder.path()).expect("open");
    let (mut kept, mut gone) = (0, 0);
    for round in 0..60 {
        full(&path, round);
        std::thread::scope(|s| {
            let other = s.spawn(|| Image::open(&path).and_then(|image| image.lease()));
            let plan = catalog.collect().expect("collect");
            let lease = other.join().expect("thread");
            match lease {
                Ok(lease) => {
                    assert!(plan.remove.is_empty() && path.exists(), "round {round}: it is held, and was removed");
                    drop(lease);
                    kept += 1;
                }
                Err(_) => gone += 1,
            }
        });
        let _ = std::fs::remove_file(&path);
    }
    println!("{kept} held, {gone} removed");
}

#[test]
fn a_sidecar_makes_a_raw_image_verifiable() {
    let folder = tempfile::tempdir().expect("a folder");
    let (raw, side) = (folder.path().join("m.raw"), folder.path().join("m.raw.sfi"));
    let model = filled(200, 7);
    std::fs::write(&raw, model.concat()).expect("write");
    let bare = Arc::new(Image::open(&raw).expect("open"));
    let digest = softfault_image::write_sidecar(&bare, &side).expect("sidecar");
    let image = Image::open(&side).expect("open");
    assert_eq!((image.file_digest(), image.is_verifiable().expect("layers")), (Some(digest), true));
    assert_eq!(read_all(&image), model);
    assert_eq!(image.content_digest(), Some(bare.compute_content_digest().expect("digest")));
    assert_eq!(image.regions(), bare.regions());
    image.verify(&mut |_| ()).expect("verify");
    let len = std::fs::metadata(&side).expect("stat").len();
    assert!(len < 100_000, "{len} bytes for digests of 200 pages");
    // A byte of the raw file changes: its group is refused, by the raw file's name.
    let file = std::fs::OpenOptions::new().write(true).open(&raw).expect("open");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 9], 50 * 4096 + 5).expect("write");
    let image = Image::open(&side).expect("open");
    let mut page = [0; PAGE_SIZE];
    let error = image.reader().read(50, &mut page).expect_err("it was changed");
    assert!(matches!(error, Error::Digest { .. }) && error.to_string().contains("m.raw"), "{error}");
    image.reader().read(60, &mut page).expect("others are well");
    assert!(image.verify(&mut |_| ()).expect_err("it was changed").is_corruption());
}
