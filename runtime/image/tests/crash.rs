//! Whatever is done with images may fail at any step, be killed at any step, and lose power at any step: what was there is there,
//! or what was to come is, whole; and afterwards it can be done again.
//!
//! The steps are those of `inject`: each file that is made, written, synced, named, removed. Power is lost on a disk in memory,
//! which keeps what was synced, and of the rest whatever it likes: all, nothing, some names and not others, halves of writes.
#![cfg(debug_assertions)]
#![allow(clippy::cast_possible_truncation, reason = "small images")]

mod common;

use common::filled;
use softfault_image::inject::{self, Plan, Step};
use softfault_image::ops::{self, Stored};
use softfault_image::workingset::{Resolution, WorkingSet};
use softfault_image::{Catalog, Codec, Image, PAGE_SIZE, Result, Writer, oci};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Files by their paths in the folder, but for temporary ones.
type State = BTreeMap<PathBuf, Vec<u8>>;

/// Something that is done in a folder.
struct Scenario {
    name: &'static str,
    run: fn(&Path) -> Result<()>,
    /// Whether it is one file that comes, goes or changes: then there is nothing between what was and what is to come.
    is_one: bool,
}

const SCENARIOS: [Scenario; 12] = [
    Scenario { name: "write", run: write, is_one: true },
    Scenario { name: "child", run: child, is_one: true },
    Scenario { name: "compact", run: compact, is_one: true },
    Scenario { name: "rebase", run: rebase, is_one: true },
    Scenario { name: "extract", run: extract, is_one: true },
    Scenario { name: "tag", run: tag, is_one: true },
    Scenario { name: "untag", run: untag, is_one: true },
    Scenario { name: "working set", run: working_set, is_one: true },
    Scenario { name: "collect", run: collect, is_one: false },
    Scenario { name: "remove", run: remove, is_one: true },
    Scenario { name: "export", run: export, is_one: false },
    Scenario { name: "import", run: import, is_one: false },
];

fn open(folder: &Path, name: &str) -> Result<Arc<Image>> {
    Image::open(folder.join(name)).map(Arc::new)
}

/// A family of three, a loose image and its child, tags, a working set, a layout.
fn prepare(folder: &Path) {
    let full = |name: &str, seed: u64| {
        let mut w = Writer::create(folder.join(name), 40).expect("create").codec(Codec::Lz4);
        w.write(0, &filled(40, seed).concat()).expect("write");
        w.finish().expect("finish");
    };
    let child = |name: &str, parent: &str, value: u8| {
        let mut w = Writer::over(folder.join(name), 40, open(folder, parent).expect("open")).expect("create");
        w.write(3, &[value; PAGE_SIZE]).expect("write");
        w.finish().expect("finish")
    };
    full("base.sfi", 1);
    child("middle.sfi", "base.sfi", 7);
    let top = child("top.sfi", "middle.sfi", 8);
    full("loose.sfi", 2);
    child("loose-child.sfi", "loose.sfi", 9);
    let catalog = Catalog::open(folder).expect("open");
    catalog.tag("stable", &top).expect("tag");
    for name in ["loose.sfi", "top.sfi"] {
        let image = open(folder, name).expect("open");
        let mut set = WorkingSet::of(&image, Resolution::PAGE).expect("a digest");
        set.push(0..5, [1, 2]).expect("push");
        set.save_beside(&image).expect("save");
    }
    let image = open(folder, "top.sfi").expect("open");
    oci::export(&image, folder.join("layout"), "x").expect("export");
}

fn write(folder: &Path) -> Result<()> {
    let mut w = Writer::create(folder.join("new.sfi"), 100)?.codec(Codec::Lz4);
    w.write(0, &filled(100, 5).concat())?;
    w.finish().map(|_| ())
}

fn child(folder: &Path) -> Result<()> {
    let mut w = Writer::over(folder.join("new.sfi"), 40, open(folder, "top.sfi")?)?;
    w.write(9, &[3; 2 * PAGE_SIZE])?;
    w.finish().map(|_| ())
}

fn compact(folder: &Path) -> Result<()> {
    ops::compact(&*open(folder, "top.sfi")?, folder.join("new.sfi"), &Stored::default(), 4).map(|_| ())
}

fn rebase(folder: &Path) -> Result<()> {
    let (image, parent) = (open(folder, "top.sfi")?, open(folder, "loose.sfi")?);
    ops::rebase(&image, &parent, folder.join("new.sfi"), &Stored::default()).map(|_| ())
}

fn extract(folder: &Path) -> Result<()> {
    ops::extract(&*open(folder, "top.sfi")?, 0..40, folder.join("new.raw"))
}

fn tag(folder: &Path) -> Result<()> {
    let loose = open(folder, "loose.sfi")?;
    Catalog::open(folder)?.tag("stable", &loose.file_digest().unwrap_or_default())
}

fn untag(folder: &Path) -> Result<()> {
    Catalog::open(folder)?.untag("stable")
}

fn working_set(folder: &Path) -> Result<()> {
    let image = open(folder, "top.sfi")?;
    let mut set = WorkingSet::of(&image, Resolution::PAGE)?;
    set.push(0..7, [5, 6, 9])?;
    set.save_beside(&image).map(|_| ())
}

fn collect(folder: &Path) -> Result<()> {
    Catalog::open(folder)?.collect().map(|_| ())
}

fn remove(folder: &Path) -> Result<()> {
    let child = open(folder, "loose-child.sfi")?;
    Catalog::open(folder)?.remove(&child.file_digest().unwrap_or_default())
}

fn export(folder: &Path) -> Result<()> {
    oci::export(&*open(folder, "loose-child.sfi")?, folder.join("layout"), "y")?;
    oci::export(&*open(folder, "loose.sfi")?, folder.join("other/layout"), "z").map(|_| ())
}

fn import(folder: &Path) -> Result<()> {
    oci::import(folder.join("layout"), "x", folder.join("into")).map(|_| ())
}

// ---- Folders --------------------------------------------------------------------------------------------------------------

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn read_folder(folder: &Path) -> State {
    fn add(state: &mut State, root: &Path, folder: &Path) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                add(state, root, &path);
            } else {
                let bytes = fs::read(&path).expect("read");
                state.insert(path.strip_prefix(root).expect("inside").to_path_buf(), bytes);
            }
        }
    }
    let mut state = State::new();
    add(&mut state, folder, folder);
    state
}

fn visible(folder: &Path) -> State {
    read_folder(folder).into_iter().filter(|(path, _)| !is_temporary(path)).collect()
}

/// Makes a folder of files in memory.
fn folder_of(state: &State) -> tempfile::TempDir {
    let at = if Path::new("/dev/shm").is_dir() { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() };
    let at = at.expect("a folder");
    for (path, bytes) in state {
        let path = at.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, bytes).expect("write");
    }
    let _ = fs::create_dir(at.path().join("into"));
    at
}

/// What was before a scenario, and what is after it.
fn before_and_after(scenario: &Scenario) -> (State, State) {
    let template = folder_of(&State::new());
    prepare(template.path());
    let old = visible(template.path());
    (scenario.run)(template.path()).expect(scenario.name);
    let new = visible(template.path());
    assert_ne!(old, new, "{}: something is done", scenario.name);
    (old, new)
}

/// Says whether a folder is as it was or as it is to be, and no image in it has lost what it needs.
fn check(scenario: &Scenario, what: &str, folder: &Path, old: &State, new: &State) {
    let now = visible(folder);
    let at = format!("{}: {what}", scenario.name);
    if scenario.is_one {
        assert!(now == *old || now == *new, "{at}: {}", difference(&now, old, new));
    }
    for (path, bytes) in &now {
        let is_known = [old, new].iter().any(|s| s.get(path) == Some(bytes));
        // Between two exports the index has the first alone.
        let is_index = path.ends_with("index.json");
        assert!(is_known || is_index, "{at}: {} is neither the old one nor the new one", path.display());
        if path.extension().is_some_and(|e| e == "sfi") {
            let image = Image::open(folder.join(path)).unwrap_or_else(|e| panic!("{at}: {e}"));
            image.verify(&mut |_| ()).unwrap_or_else(|e| panic!("{at}: {e}"));
        }
        if path.extension().is_some_and(|e| e == "sws") {
            WorkingSet::open(folder.join(path)).unwrap_or_else(|e| panic!("{at}: {e}"));
        }
    }
    let kept = old.keys().filter(|path| new.contains_key(*path));
    kept.for_each(|path| assert!(now.contains_key(path), "{at}: {} has gone", path.display()));
    let catalog = Catalog::open(folder).expect("open");
    for tag in catalog.tags().unwrap_or_else(|e| panic!("{at}: {e}")).keys() {
        catalog.image(tag).unwrap_or_else(|e| panic!("{at}: what `{tag}` names: {e}"));
    }
    for layout in ["layout", "other/layout"].map(|l| folder.join(l)).iter().filter(|l| l.join("index.json").exists()) {
        for name in oci::names(layout).unwrap_or_else(|e| panic!("{at}: {e}")) {
            let into = folder_of(&State::new());
            oci::import(layout, &name, into.path()).unwrap_or_else(|e| panic!("{at}: {name}: {e}"));
        }
    }
}

fn difference(now: &State, old: &State, new: &State) -> String {
    let unlike = |s: &State| {
        let all: BTreeSet<&PathBuf> = s.keys().chain(now.keys()).collect();
        all.into_iter().filter(|p| s.get(*p) != now.get(*p)).map(|p| p.display().to_string()).collect::<Vec<_>>()
    };
    format!("unlike what was: {:?}; unlike what is to come: {:?}", unlike(old), unlike(new))
}

/// Does once more what has failed: it succeeds now, or has been done.
fn do_again(scenario: &Scenario, what: &str, folder: &Path, new: &State) {
    if visible(folder) != *new {
        (scenario.run)(folder).unwrap_or_else(|e| panic!("{}: {what}: once more: {e}", scenario.name));
    }
    assert!(visible(folder) == *new, "{}: {what}: {}", scenario.name, difference(&visible(folder), new, new));
    // What was left behind goes: that of `collect` with the images that it is about.
    let before: Vec<PathBuf> = read_folder(folder).into_keys().filter(|p| !p.starts_with("into")).collect();
    for layout in ["layout", "other/layout"].iter().filter(|_| scenario.name == "export") {
        oci::export(&open(folder, "top.sfi").expect("open"), folder.join(layout), "x").expect("export");
    }
    Catalog::open(folder).and_then(|c| c.collect()).expect("collect");
    let left: Vec<&PathBuf> =
        before.iter().filter(|p| is_temporary(p) && !p.ends_with(".lock") && folder.join(p).exists()).collect();
    assert!(left.is_empty(), "{}: {what}: {left:?} is left", scenario.name);
}

// ---- A step fails -----------------------------------------------------------------------------------------------------------

#[test]
fn a_step_that_fails_changes_nothing_or_is_the_last() {
    const ENOSPC: i32 = 28;
    const EIO: i32 = 5;
    for scenario in &SCENARIOS {
        let (old, new) = before_and_after(scenario);
        for (errno, for_good) in [(ENOSPC, false), (EIO, true)] {
            let mut nr_steps = 0;
            for at in 0.. {
                let folder = folder_of(&old);
                inject::arm(Plan { fail_at: Some((at, errno)), for_good, ..Plan::default() });
                let result = (scenario.run)(folder.path());
                let steps = inject::disarm().steps;
                let what = format!("step {at}, {:?}, fails with {errno}, for good: {for_good}", steps.get(at));
                if steps.len() <= at {
                    result.expect("nothing failed");
                    break;
                }
                nr_steps = at + 1;
                let error = result.expect_err(&what);
                assert!(!error.is_corruption(), "{what}: {error}");
                check(scenario, &what, folder.path(), &old, &new);
                let left = read_folder(folder.path()).into_keys().find(|p| is_temporary(p) && !p.ends_with(".lock"));
                assert_eq!(left, None, "{what}: a file is left");
                do_again(scenario, &what, folder.path(), &new);
            }
            assert!(nr_steps >= 2, "{}: {nr_steps} steps", scenario.name);
        }
    }
}

// ---- The process is killed --------------------------------------------------------------------------------------------------

const KILL: &str = "SOFTFAULT_IMAGE_KILL";

#[test]
fn a_process_that_is_killed_changes_nothing_or_all() {
    for scenario in &SCENARIOS {
        let (old, new) = before_and_after(scenario);
        for at in 0.. {
            let folder = folder_of(&old);
            let status = Command::new(std::env::current_exe().expect("this test"))
                .args(["--exact", "the_process_that_is_killed", "--test-threads=1"])
                .env(KILL, format!("{}/{at}/{}", scenario.name, folder.path().display()))
                .stdout(std::process::Stdio::null())
                .status()
                .expect("a process");
            if status.success() {
                assert!(at >= 2, "{}: {at} steps", scenario.name);
                break;
            }
            assert_eq!(status.signal(), Some(9), "{}: step {at}", scenario.name);
            let what = format!("killed at step {at}");
            check(scenario, &what, folder.path(), &old, &new);
            do_again(scenario, &what, folder.path(), &new);
        }
    }
}

/// Does what its parent says, and dies. Of itself it is no test.
#[test]
fn the_process_that_is_killed() {
    let Ok(order) = std::env::var(KILL) else { return };
    let mut words = order.splitn(3, '/');
    let (name, at, folder) = (words.next(), words.next(), words.next());
    let scenario = SCENARIOS.iter().find(|s| Some(s.name) == name).expect("a scenario");
    inject::arm(Plan { die_at: at.and_then(|at| at.parse().ok()), ..Plan::default() });
    (scenario.run)(Path::new(folder.expect("a folder"))).expect("it is killed, or succeeds");
}

// ---- Power is lost ------------------------------------------------------------------------------------------------------------

/// What of a disk that was not synced is there afterwards.
#[derive(Clone, Copy, Debug)]
enum Keeps {
    Nothing,
    Names,
    Everything,
    /// Any part of it.
    Some(u64),
}

struct Rng(u64);

impl Rng {
    fn flip(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 33 & 1 == 1
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

/// A file: what is durable of it, and what came since.
#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    since: Vec<Change>,
}

fn apply(bytes: &mut Vec<u8>, change: &Change, half: bool) {
    match change {
        Change::SetLen(len) => bytes.resize(*len as usize, 0),
        Change::Write(pos, data) => {
            let data = if half { &data[..data.len() / 2] } else { data };
            let (pos, end) = (*pos as usize, *pos as usize + data.len());
            bytes.resize(bytes.len().max(end), 0);
            bytes[pos..end].copy_from_slice(data);
        }
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    /// A name names a file; the second name, if there is one, no longer does.
    Put(PathBuf, usize, Option<PathBuf>),
    Remove(PathBuf),
}

#[derive(Clone, Debug, Default)]
struct Disk {
    inodes: Vec<Inode>,
    durable: BTreeMap<PathBuf, usize>,
    names: BTreeMap<PathBuf, usize>,
    since: Vec<NameChange>,
    /// Folders of which the names are not durable.
    folders: BTreeSet<PathBuf>,
}

impl Disk {
    fn of(state: &State) -> Self {
        let inodes = state.values().map(|bytes| Inode { durable: bytes.clone(), since: Vec::new() }).collect();
        let durable: BTreeMap<PathBuf, usize> = state.keys().cloned().zip(0..).collect();
        Self { inodes, names: durable.clone(), durable, ..Self::default() }
    }

    fn inode(&mut self, path: &Path) -> usize {
        if let Some(at) = self.names.get(path) {
            return *at;
        }
        self.inodes.push(Inode::default());
        let at = self.inodes.len() - 1;
        self.names.insert(path.into(), at);
        self.since.push(NameChange::Put(path.into(), at, None));
        at
    }

    fn step(&mut self, step: &Step, root: &Path) {
        let inside = |path: &Path| path.strip_prefix(root).expect("in the folder").to_path_buf();
        match step {
            Step::Create(_) => {}
            Step::CreateFolder(path) => {
                self.folders.insert(inside(path));
            }
            Step::Write(path, pos, bytes) => {
                let at = self.inode(&inside(path));
                self.inodes[at].since.push(Change::Write(*pos, bytes.clone()));
            }
            Step::SetLen(path, len) => {
                let at = self.inode(&inside(path));
                self.inodes[at].since.push(Change::SetLen(*len));
            }
            Step::Sync(path) => {
                let at = self.inode(&inside(path));
                let inode = &mut self.inodes[at];
                for change in std::mem::take(&mut inode.since) {
                    apply(&mut inode.durable, &change, false);
                }
            }
            Step::Rename(from, to) => {
                let (from, to) = (inside(from), inside(to));
                let at = self.inode(&from);
                self.names.remove(&from);
                self.names.insert(to.clone(), at);
                self.since.push(NameChange::Put(to, at, Some(from)));
            }
            Step::Remove(path) => {
                let path = inside(path);
                self.names.remove(&path);
                self.since.push(NameChange::Remove(path));
            }
            Step::SyncFolder(folder) => {
                let folder = inside(folder);
                self.folders.retain(|f| f.parent() != Some(&folder));
                let is_there = |c: &NameChange| match c {
                    NameChange::Put(path, ..) | NameChange::Remove(path) => path.parent() == Some(&folder),
                };
                let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.since).into_iter().partition(is_there);
                self.since = later;
                now.iter().for_each(|change| rename(&mut self.durable, change));
            }
        }
    }

    /// Returns what is there when power comes back.
    fn after_a_crash(&self, keeps: Keeps) -> State {
        let mut rng = Rng(if let Keeps::Some(seed) = keeps { seed * 0x9e37_79b9 + 1 } else { 1 });
        let mut keep = |is_name: bool| match keeps {
            Keeps::Nothing => false,
            Keeps::Names => is_name,
            Keeps::Everything => true,
            Keeps::Some(_) => rng.flip(),
        };
        let mut names = self.durable.clone();
        self.since.iter().filter(|_| keep(true)).for_each(|change| rename(&mut names, change));
        let lost: Vec<&PathBuf> = self.folders.iter().filter(|_| !keep(true)).collect();
        names.retain(|path, _| lost.iter().all(|folder| !path.starts_with(folder)));
        let mut contents = |inode: &Inode| {
            let mut bytes = inode.durable.clone();
            for change in &inode.since {
                if keep(false) {
                    apply(&mut bytes, change, matches!(keeps, Keeps::Some(_)) && keep(false));
                }
            }
            bytes
        };
        names.iter().map(|(path, at)| (path.clone(), contents(&self.inodes[*at]))).collect()
    }
}

fn rename(names: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
    match change {
        NameChange::Put(path, at, old) => {
            old.as_ref().map(|old| names.remove(old));
            names.insert(path.clone(), *at);
        }
        NameChange::Remove(path) => {
            names.remove(path);
        }
    }
}

#[test]
fn a_disk_that_loses_power_has_what_was_or_what_is() {
    let mut all = vec![Keeps::Nothing, Keeps::Names, Keeps::Everything];
    all.extend((0..4).map(Keeps::Some));
    for scenario in &SCENARIOS {
        let (old, new) = before_and_after(scenario);
        let folder = folder_of(&old);
        inject::arm(Plan { keeps_bytes: true, ..Plan::default() });
        (scenario.run)(folder.path()).expect(scenario.name);
        let steps = inject::disarm().steps;
        let (mut disk, mut seen) = (Disk::of(&old), BTreeSet::<(bool, State)>::new());
        for at in 0..=steps.len() {
            for keeps in &all {
                let state = disk.after_a_crash(*keeps);
                if !seen.insert((at == steps.len(), state.clone())) {
                    continue;
                }
                let what = format!(
                    "power is lost before step {at}, {:?}, and the disk keeps {keeps:?}",
                    steps.get(at).map(name)
                );
                let after = folder_of(&state);
                check(scenario, &what, after.path(), &old, &new);
                if at == steps.len() {
                    let now = visible(after.path());
                    assert!(
                        now == new,
                        "{}: {what}: it had been done: {}",
                        scenario.name,
                        difference(&now, &old, &new)
                    );
                }
                do_again(scenario, &what, after.path(), &new);
            }
            if let Some(step) = steps.get(at) {
                disk.step(step, folder.path());
            }
        }
    }
}

/// A step without its bytes.
fn name(step: &Step) -> String {
    match step {
        Step::Write(path, pos, bytes) => format!("write {} bytes at {pos} of {}", bytes.len(), path.display()),
        step => format!("{step:?}"),
    }
}
