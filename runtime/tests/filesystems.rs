//! The calls that file systems have, and what is done where one is missing: the table of `runtime/README.md`, run.
//!
//! Mounting wants root; a file system that cannot be mounted here is passed over with the reason.

mod common;

use common::{PAGE, TempFile, arena, each_mode, load, map, same, store};
use softfault::{Prot, Runtime, Sharing};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system on a folder of its own, taken away on drop.
struct Mounted {
    root: PathBuf,
    /// Where files go.
    dir: PathBuf,
}

impl Mounted {
    /// Mounts with mount(8): the type, options with `{}` for a folder of its own, and what to mount.
    fn new(what: &str, options: &str, source: &str) -> Option<Self> {
        let root = std::env::temp_dir().join(format!("softfault-fs-{what}-{}", std::process::id()));
        let dir = root.join("mnt");
        for folder in ["mnt", "lower", "upper", "work"] {
            std::fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        std::fs::write(root.join("lower/below"), common::content(3, 0..4 * PAGE as u64)).expect("a file below");
        let this = Self { root, dir };
        let options = options.replace("{}", this.root.to_str().expect("utf-8"));
        let mut mount = Command::new("mount");
        mount.args(["-t", what]);
        if !options.is_empty() {
            mount.args(["-o", &options]);
        }
        match mount.arg(source).arg(&this.dir).output() {
            Ok(out) if out.status.success() => Some(this),
            Ok(out) => {
                println!("{what} skipped: {}", String::from_utf8_lossy(&out.stderr).trim());
                None
            }
            Err(e) => {
                println!("{what} skipped: mount: {e}");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).output();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

const OVERLAY: &str = "lowerdir={}/lower,upperdir={}/upper,workdir={}/work";

/// Everything that an object does to its file, over the file system of `dir`.
fn scenario(what: &str, dir: &Path) {
    each_mode(what, |rt: &Runtime, mode| {
        for direct in [false, true] {
            let path = dir.join("file");
            let mut data = common::content(5, 0..20 * PAGE as u64 + 100);
            std::fs::write(&path, &data).expect("a file");
            let options = rt.file_options().writable(true).direct(direct).with(|b| b.max_len(64 * PAGE as u64));
            let object = options.open(&path).expect("open");
            let arena = arena(rt, mode, 64 * PAGE);
            arena.map(0, &object, 0, 64 * PAGE, Prot::ReadWrite, Sharing::Shared).expect("map");
            same(what, &common::bytes(&arena, 0..data.len()), &data);
            for page in [0, 7, 20] {
                store(&arena, page * PAGE + 3, 252).expect("store");
                data[page * PAGE + 3] = 252;
            }
            object.sync_all().expect("sync");
            object.punch_hole(2 * PAGE as u64..5 * PAGE as u64).expect("punch_hole");
            data[2 * PAGE..5 * PAGE].fill(0);
            object.evict(0..u64::MAX).expect("evict");
            same(what, &common::bytes(&arena, 0..data.len()), &data);
            object.set_len(30 * PAGE as u64).expect("set_len");
            data.resize(30 * PAGE, 0);
            object.write_at(29 * PAGE as u64, &[253]).expect("write_at");
            data[29 * PAGE] = 253;
            object.set_len(29 * PAGE as u64 + 1).expect("set_len");
            data.truncate(29 * PAGE + 1);
            object.sync_all().expect("sync");
            let opened = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
            opened.set_len(33 * PAGE as u64).expect("append");
            data.resize(33 * PAGE, 0);
            drop(opened);
            assert_eq!(object.follow_len().expect("follow_len"), data.len() as u64);
            same(what, &common::bytes(&arena, 0..data.len()), &data);
            drop((arena, object));
            same(&format!("{what}, direct {direct}: the file"), &std::fs::read(&path).expect("read"), &data);
        }
    });
}

#[test]
fn what_the_file_system_does_not_have_is_done_otherwise() {
    // It may be a tmpfs, or what the machine has.
    let here = TempFile::new(1);
    let dir = here.path().with_extension("dir");
    std::fs::create_dir(&dir).expect("a folder");
    scenario("temporary folder", &dir);
    let _ = std::fs::remove_dir_all(&dir);
    let image = here.path().with_extension("ext4");
    std::fs::File::create(&image).expect("a file").set_len(64 << 20).expect("an image");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).output().is_ok_and(|out| out.status.success());
    let image_path = image.to_str().expect("utf-8");
    let mounts = [
        ("tmpfs", "size=64m", "none"),
        // Neither punches nor allocates ahead.
        ("ramfs", "", "none"),
        ("overlay", OVERLAY, "none"),
        ("ext4", "loop", image_path),
    ];
    for (what, options, source) in mounts {
        if what == "ext4" && !made {
            println!("ext4 skipped: no mkfs.ext4");
            continue;
        }
        if let Some(mounted) = Mounted::new(what, options, source) {
            scenario(what, &mounted.dir);
        }
    }
    let _ = std::fs::remove_file(&image);
}

/// Who writes a file of an overlay's lower layer has a copy: who opened it before reads what the copy has, and the lower file
/// stays as it is. (A mapping of the kernel's from before goes on showing the lower file.)
#[test]
fn a_file_that_an_overlay_copies_up_is_one_object() {
    each_mode("copied up", |rt, mode| {
        let Some(mounted) = Mounted::new("overlay", OVERLAY, "none") else { return };
        let (path, below) = (mounted.dir.join("below"), mounted.root.join("lower/below"));
        let before = std::fs::read(&below).expect("read");
        let reader = rt.open_file(&path).expect("open");
        let (a, b) = (arena(rt, mode, 4 * PAGE), arena(rt, mode, 4 * PAGE));
        map(&a, 0, &reader, Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(before[0]));
        let writer = rt.open_file_rw(&path).expect("open");
        map(&b, 0, &writer, Prot::ReadWrite, Sharing::Shared);
        store(&b, 0, 252).expect("store");
        store(&b, 3 * PAGE, 253).expect("store");
        assert_eq!((load(&a, 0), load(&a, 3 * PAGE)), (Ok(252), Ok(253)), "{mode:?}");
        writer.sync_all().expect("sync");
        writer.evict(0..u64::MAX).expect("evict");
        assert_eq!((load(&a, 0), load(&a, 3 * PAGE)), (Ok(252), Ok(253)), "{mode:?}: read anew, from the copy");
        assert_eq!(std::fs::read(&path).expect("read")[0], 252, "{mode:?}");
        same("the lower file", &std::fs::read(&below).expect("read"), &before);
        drop((a, b, reader, writer));
    });
}
