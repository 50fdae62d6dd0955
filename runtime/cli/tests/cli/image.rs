//! `softfault image`, verb by verb, on real images: what is said is held against files, what is written is read back.

use crate::support::{answer, done, golden, json, softfault};
use serde_json::Value;
use softfault_image::{Digest, Image, PAGE_SIZE, Prot, Region, Writer, oci, ops};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Pages of which no two are equal.
fn page(seed: u8) -> Vec<u8> {
    (0..PAGE_SIZE).map(|i| seed.wrapping_add(u8::try_from(i % 251).expect("small"))).collect()
}

/// An image of two regions: `monday.sfi`.
fn monday(folder: &Path) -> Digest {
    let mut w = Writer::create(folder.join("monday.sfi"), 1024).expect("create");
    let region = |name: &str, address, first: u64, pages: u64, prot| Region {
        name: name.into(),
        address,
        offset: first * PAGE_SIZE as u64,
        len_bytes: pages * PAGE_SIZE as u64,
        prot,
    };
    w.region(region("text", 0x40_0000, 0, 16, Prot::READ | Prot::EXEC)).expect("a region");
    w.region(region("heap", 0x7f00_0000_0000, 16, 1008, Prot::READ | Prot::WRITE)).expect("a region");
    w.key("application", b"1.4.2");
    w.key("cpu", &[1, 2, 255]);
    for (at, seed) in [(0, 1), (1, 2), (16, 3), (700, 4)] {
        w.write(at, &page(seed)).expect("write");
    }
    w.finish().expect("finish")
}

/// Its child, which differs in pages 17 and 700: `tuesday.sfi`.
fn tuesday(folder: &Path) -> Digest {
    let parent = Arc::new(Image::open(folder.join("monday.sfi")).expect("open"));
    let mut w = Writer::over(folder.join("tuesday.sfi"), 1024, parent).expect("create");
    w.region(Region { name: "all".into(), address: 1 << 30, offset: 0, len_bytes: 4 << 20, prot: Prot::READ })
        .expect("a region");
    w.write(17, &page(9)).expect("write");
    w.write(700, &page(10)).expect("write");
    w.finish().expect("finish")
}

fn two() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    monday(folder.path());
    tuesday(folder.path());
    folder
}

fn content(path: &Path) -> Digest {
    Image::open(path).expect("open").compute_content_digest().expect("readable")
}

/// Damages a page that is stored: the header and the tables stay whole.
fn damage(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).expect("open");
    let needle = page(4);
    let bytes = fs::read(path).expect("read");
    let at = bytes.windows(64).position(|w| w == &needle[..64]).expect("the page lies there as it is");
    file.write_at(&[!needle[0]], at as u64).expect("write");
}

/// Pretty, so that a difference is one line.
fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("text") + "\n"
}

#[test]
fn inspect_says_what_an_image_is() {
    let folder = two();
    golden("inspect.txt", &done(folder.path(), &["image", "inspect", "monday.sfi"]));
    golden("inspect.json", &pretty(&json(folder.path(), &["image", "inspect", "monday.sfi"])));
    golden("inspect-child.txt", &done(folder.path(), &["image", "inspect", "tuesday.sfi"]));
    fs::write(folder.path().join("memory.raw"), [page(1), vec![0; PAGE_SIZE]].concat()).expect("write");
    golden("inspect-raw.txt", &done(folder.path(), &["image", "inspect", "memory.raw"]));
}

#[test]
fn names_that_a_terminal_would_obey_are_written_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut w = Writer::create(folder.path().join("a.sfi"), 1).expect("create");
    let name = "\u{1b}[2Jred".to_owned();
    w.region(Region { name, address: 0, offset: 0, len_bytes: 4096, prot: Prot::READ }).expect("a region");
    w.key("k\n", b"\x1b]0;x\x07");
    w.finish().expect("finish");
    let said = done(folder.path(), &["image", "inspect", "a.sfi"]);
    assert!(!said.contains('\u{1b}') && !said.contains("k\n"), "{said:?}");
}

#[test]
fn verify_finds_what_is_wrong_and_says_it_by_its_exit_code() {
    let folder = two();
    golden("verify.txt", &done(folder.path(), &["image", "verify", "monday.sfi"]));
    golden("verify.json", &pretty(&json(folder.path(), &["image", "verify", "monday.sfi"])));
    damage(&folder.path().join("monday.sfi"));
    let run = softfault(folder.path(), &["image", "verify", "monday.sfi", "--json"]);
    let said = answer(&run);
    assert_eq!((run.code, &said["code"], &said["name"]), (Some(3), &3.into(), &"corrupt".into()));
    assert!(run.err.contains("monday.sfi: the digest of"), "{}", run.err);
    // What fails, fails alone: the tables are whole.
    done(folder.path(), &["image", "inspect", "monday.sfi"]);
}

#[test]
fn what_has_no_digests_is_not_called_verified_until_it_has_some() {
    let folder = tempfile::tempdir().expect("a folder");
    let raw = folder.path().join("memory.raw");
    fs::write(&raw, page(7).repeat(8)).expect("write");
    assert_eq!(softfault(folder.path(), &["image", "verify", "memory.raw"]).code, Some(4));
    let args = ["image", "verify", "memory.raw", "--write-sidecar", "memory.raw.sfi"];
    let said = json(folder.path(), &args);
    assert_eq!(said["content_digest"], content(&raw).to_string());
    done(folder.path(), &["image", "verify", "memory.raw.sfi"]);
    // A file below is another one: not the image is corrupt, but something has changed.
    fs::write(&raw, page(7).repeat(9)).expect("write");
    assert_eq!(softfault(folder.path(), &["image", "verify", "memory.raw.sfi"]).code, Some(5));
}

#[test]
fn convert_goes_by_the_names_of_files() {
    let folder = two();
    let at = |name: &str| folder.path().join(name);
    golden("convert.txt", &done(folder.path(), &["image", "convert", "tuesday.sfi", "flat.sfi"]));
    golden("convert-raw.json", &pretty(&json(folder.path(), &["image", "convert", "tuesday.sfi", "memory.raw"])));
    done(folder.path(), &["image", "convert", "memory.raw", "again.sfi", "--codec", "lz4", "--frame", "16K"]);
    done(folder.path(), &["image", "convert", "tuesday.sfi", "odd.img", "--to", "sfi", "--codec", "lz4"]);
    done(folder.path(), &["image", "convert", "--from", "sfi", "odd.img", "odd.raw"]);
    let wanted = content(&at("tuesday.sfi"));
    for name in ["flat.sfi", "memory.raw", "again.sfi", "odd.img", "odd.raw"] {
        assert_eq!(content(&at(name)), wanted, "{name}");
    }
    let framed = Image::open(at("again.sfi")).expect("open").map().expect("a map");
    assert!(
        framed.runs().iter().any(|r| matches!(r.source, softfault_image::Source::Frame { .. })),
        "lz4 was asked for"
    );
    // No file is replaced.
    let run = softfault(folder.path(), &["image", "convert", "monday.sfi", "flat.sfi"]);
    assert_eq!((run.code, content(&at("flat.sfi"))), (Some(1), wanted), "{}", run.err);
}

/// A guest decides what its memory begins with, and must not decide how it is read.
#[test]
fn memory_that_begins_as_an_image_does_is_memory() {
    let folder = two();
    fs::copy(folder.path().join("monday.sfi"), folder.path().join("memory.raw")).expect("copy");
    let bytes = fs::read(folder.path().join("memory.raw")).expect("read");
    fs::write(
        folder.path().join("memory.raw"),
        [&bytes[..], &vec![0; bytes.len().next_multiple_of(4096) - bytes.len()]].concat(),
    )
    .expect("write");
    let run = softfault(folder.path(), &["image", "inspect", "memory.raw", "--json"]);
    let said = answer(&run);
    assert_eq!((&said["format"], &said["file_digest"]), (&"raw".into(), &Value::Null));
    assert!(run.err.contains("--from sfi"), "a person is told: {}", run.err);
}

#[test]
fn diff_lists_the_pages_that_differ() {
    let folder = two();
    golden("diff.txt", &done(folder.path(), &["image", "diff", "monday.sfi", "tuesday.sfi"]));
    golden("diff.json", &pretty(&json(folder.path(), &["image", "diff", "monday.sfi", "tuesday.sfi"])));
    let code = |args: &[&str]| softfault(folder.path(), &[&["image", "diff", "--exit-code"], args].concat()).code;
    assert_eq!(code(&["monday.sfi", "tuesday.sfi"]), Some(6));
    assert_eq!(code(&["monday.sfi", "monday.sfi"]), Some(0));
    assert_eq!(code(&["--read-pages", "monday.sfi", "tuesday.sfi"]), Some(6));
}

#[test]
fn rebase_and_compact_keep_the_memory() {
    let folder = two();
    let wanted = content(&folder.path().join("tuesday.sfi"));
    golden("compact.txt", &done(folder.path(), &["image", "compact", "tuesday.sfi", "flat.sfi", "--budget", "1"]));
    golden("rebase.txt", &done(folder.path(), &["image", "rebase", "flat.sfi", "monday.sfi", "small.sfi"]));
    for name in ["flat.sfi", "small.sfi"] {
        let said = json(folder.path(), &["image", "inspect", name]);
        assert_eq!(said["content_digest"], wanted.to_string(), "{name}");
    }
    json(folder.path(), &["image", "compact", "tuesday.sfi", "flat2.sfi"]);
    json(folder.path(), &["image", "rebase", "flat.sfi", "monday.sfi", "small2.sfi"]);
    assert_eq!(softfault(folder.path(), &["image", "compact", "tuesday.sfi", "x.sfi", "--budget", "0"]).code, Some(2));
}

#[test]
fn extract_writes_raw_pages() {
    let folder = two();
    let at = |name: &str| folder.path().join(name);
    golden("extract.txt", &done(folder.path(), &["image", "extract", "monday.sfi", "text.raw", "--region", "text"]));
    let text = fs::read(at("text.raw")).expect("read");
    assert_eq!((text.len(), &text[PAGE_SIZE..2 * PAGE_SIZE]), (16 * PAGE_SIZE, &page(2)[..]));
    let said = json(folder.path(), &["image", "extract", "monday.sfi", "tail.raw", "--pages", "700.."]);
    assert_eq!((&said["first_page"], &said["pages"]), (&700.into(), &324.into()));
    assert_eq!(fs::read(at("tail.raw")).expect("read")[..PAGE_SIZE], page(4));
    done(folder.path(), &["image", "convert", "monday.sfi", "monday.raw"]);
    done(folder.path(), &["image", "extract", "tuesday.sfi", "tuesday.diff", "--since", "monday.sfi"]);
    let said = json(folder.path(), &["image", "inspect", "monday.raw", "--diff", "tuesday.diff"]);
    assert_eq!(said["pages"], 1024);
    let stack = Image::raw_stack(at("monday.raw"), &[at("tuesday.diff")]).expect("a stack");
    assert_eq!(stack.compute_content_digest().expect("readable"), content(&at("tuesday.sfi")));
    let run = softfault(folder.path(), &["image", "extract", "monday.sfi", "x.raw", "--region", "stack"]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("text, heap"), "it says which there are: {}", run.err);
    assert_eq!(
        softfault(folder.path(), &["image", "extract", "monday.sfi", "x.raw", "--pages", "9..1025"]).code,
        Some(2)
    );
}

#[test]
fn tags_name_images_of_a_folder() {
    let folder = two();
    golden("tag-none.txt", &done(folder.path(), &["image", "tag", "."]));
    let said = json(folder.path(), &["image", "tag", ".", "release:1.4", "tuesday.sfi"]);
    let digest = Image::open(folder.path().join("tuesday.sfi")).expect("open").file_digest().expect("one").to_string();
    assert_eq!(said["tags"]["release:1.4"], digest);
    done(folder.path(), &["image", "tag", ".", "latest", "release:1.4"]);
    golden("tag.txt", &done(folder.path(), &["image", "tag", ".", "by-digest", &digest]));
    assert_eq!(json(folder.path(), &["image", "tag", ".", "latest", "--delete"])["tags"].get("latest"), None);
    assert_eq!(softfault(folder.path(), &["image", "tag", ".", "latest"]).code, Some(2), "a tag of what?");
    assert_eq!(softfault(folder.path(), &["image", "tag", ".", "a/b", "tuesday.sfi"]).code, Some(2));
    assert_eq!(softfault(folder.path(), &["image", "tag", "nowhere"]).code, Some(1));
    assert!(!folder.path().join("nowhere").exists(), "a folder that was mistyped is not made");
}

#[test]
fn gc_says_what_it_would_do_and_does_it_when_it_is_told_to() {
    let folder = two();
    let at = |name: &str| folder.path().join(name);
    done(folder.path(), &["image", "compact", "tuesday.sfi", "loose.sfi"]);
    done(folder.path(), &["image", "tag", ".", "keep", "tuesday.sfi"]);
    golden("gc.txt", &done(folder.path(), &["image", "gc", "."]));
    golden("gc.json", &pretty(&json(folder.path(), &["image", "gc", "."])));
    assert!(at("loose.sfi").exists(), "a plan changes nothing");
    golden("gc-delete.txt", &done(folder.path(), &["image", "gc", ".", "--delete"]));
    assert!(!at("loose.sfi").exists() && at("monday.sfi").exists() && at("tuesday.sfi").exists());
    fs::write(at("bad.sfi"), "no image").expect("write");
    done(folder.path(), &["image", "tag", ".", "keep", "--delete"]);
    let run = softfault(folder.path(), &["image", "gc", ".", "--delete"]);
    assert_eq!(run.code, Some(3), "{}", run.err);
    assert!(at("tuesday.sfi").exists() && run.out.contains("damaged: ./bad.sfi"), "{}", run.out);
}

#[test]
fn export_makes_a_layout_that_is_read_again() {
    let folder = two();
    let said = json(folder.path(), &["image", "export", "tuesday.sfi", "layout", "heap:1.4"]);
    golden("export.txt", &done(folder.path(), &["image", "export", "tuesday.sfi", "layout", "heap:1.5"]));
    assert!(said["manifest"].as_str().expect("text").starts_with("sha256:"));
    let into = folder.path().join("into");
    fs::create_dir(&into).expect("a folder");
    let back = oci::import(folder.path().join("layout"), "heap:1.4", &into).expect("import");
    let (old, new) = (Image::open(folder.path().join("tuesday.sfi")), Image::open(back));
    let diff = ops::diff(&old.expect("open"), &new.expect("open"), ops::Compare::Pages).expect("diff");
    assert_eq!(diff.nr_pages(), 0);
    fs::write(folder.path().join("memory.raw"), page(1)).expect("write");
    assert_eq!(softfault(folder.path(), &["image", "export", "memory.raw", "layout", "x"]).code, Some(4));
}

/// Each verb that reads an image ends with 3 where the image is corrupt, and leaves no file behind.
#[test]
fn every_verb_has_an_exit_code_for_a_corrupt_image() {
    let folder = two();
    fs::write(folder.path().join("cut.sfi"), &fs::read(folder.path().join("monday.sfi")).expect("read")[..5000])
        .expect("write");
    damage(&folder.path().join("monday.sfi"));
    let tables: [&[&str]; 9] = [
        &["inspect", "cut.sfi"],
        &["verify", "cut.sfi"],
        &["convert", "cut.sfi", "new.sfi"],
        &["tag", ".", "t", "cut.sfi"],
        &["extract", "cut.sfi", "new.raw"],
        &["diff", "cut.sfi", "tuesday.sfi"],
        &["rebase", "tuesday.sfi", "cut.sfi", "new.sfi"],
        &["compact", "cut.sfi", "new.sfi"],
        &["export", "cut.sfi", "layout", "x"],
    ];
    let pages: [&[&str]; 7] = [
        &["verify", "monday.sfi"],
        &["convert", "monday.sfi", "new.sfi"],
        &["extract", "monday.sfi", "new.raw"],
        &["diff", "--read-pages", "monday.sfi", "tuesday.sfi"],
        &["rebase", "monday.sfi", "tuesday.sfi", "new.sfi"],
        &["compact", "monday.sfi", "new.sfi"],
        &["convert", "monday.sfi", "new.raw"],
    ];
    for args in tables.iter().chain(&pages) {
        let run = softfault(folder.path(), &[&["image"], *args, &["--json"]].concat());
        assert_eq!(run.code, Some(3), "{args:?}: {}", run.err);
        assert_eq!(answer(&run)["name"], "corrupt", "{args:?}");
        for name in ["new.sfi", "new.raw"] {
            assert!(!folder.path().join(name).exists(), "{args:?} left {name}");
        }
    }
}
