//! Captures that come to nothing, and captures in each other's way: cancelled, on a disk that is full, killed; the arenas go on, and a
//! folder has whole images and none else.
#![cfg(feature = "userfaultfd")]
#![allow(unsafe_code, reason = "limits, mounts, and stores to arenas by address")]
#![allow(clippy::cast_possible_truncation, reason = "patterns and addresses; 64-bit only")]

mod cut;

use cut::{PAGE, Plan, World, anonymous, capturable, judge_file, map, until, word};
use softfault::image::{Catalog, Image};
use softfault::{Capture, CaptureFailure, Error, Runtime, RuntimeBuilder};
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

const SMALL: Plan = Plan { writers: 3, own: 31, first_by_call: true, punches: false };

fn roomy() -> RuntimeBuilder {
    Runtime::builder().cache_limit(256 << 20)
}

fn world(name: &str) -> Option<World> {
    World::new(name, SMALL, roomy(), anonymous)
}

fn names(folder: &Path) -> Vec<String> {
    let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("entry").file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = std::fs::read_dir(folder).expect("it is there").map(name).collect();
    names.sort();
    names
}

/// The next capture is as if there had been none.
fn next_is_whole(world: &World) {
    let path = world.folder.join("next.sfi");
    let (capture, seen) = world.begin(&path, true).expect("a cut");
    capture.commit().expect("an image");
    world.judge(&path, &seen).expect("of one moment");
    std::fs::remove_file(&path).expect("it is there");
}

#[test]
fn cancelled_at_any_time_it_leaves_nothing() {
    let Some(world) = world("cancel") else { return };
    world.run(&[], || {
        for number in 0..40u64 {
            let (capture, _) = world.begin(&world.folder.join("a.sfi"), false).expect("a cut");
            match number % 4 {
                0 => capture.cancel(),
                1 => drop(capture),
                2 => {
                    std::thread::sleep(Duration::from_micros(number * 200));
                    capture.cancel();
                }
                _ => {
                    until("the walker", || capture.progress().done_pages == capture.progress().nr_pages);
                    capture.cancel();
                }
            }
            assert_eq!(names(&world.folder), [""; 0], "round {number}");
            world.gets_on();
        }
        next_is_whole(&world);
    });
}

/// What was open to stores before is so again, and every byte is as it was.
#[test]
fn after_a_cancelled_one_arenas_are_as_before() {
    let Some(world) = world("as-before") else { return };
    let nr = SMALL.nr_pages();
    (0..nr).for_each(|p| word(&world.arena, p * PAGE).store(p as u64 + 1, Ordering::Relaxed));
    let (capture, _) = world.begin(&world.folder.join("a.sfi"), false).expect("a cut");
    capture.cancel();
    let before = world.rt.stats()["pgfault"];
    for p in 0..nr {
        let word = word(&world.arena, p * PAGE);
        assert_eq!(word.load(Ordering::Relaxed), p as u64 + 1, "page {p}");
        word.store(0, Ordering::Relaxed);
    }
    assert_eq!(world.rt.stats()["pgfault"] - before, 0, "faults of stores to pages that were open");
    assert_eq!(names(&world.folder), [""; 0]);
}

/// A tmpfs of its own; `None`: not by us, which is said.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir_all(&at).expect("a folder");
        let c = |s: &str| std::ffi::CString::new(s).expect("no zero byte");
        let (path, options) = (c(at.to_str().expect("text")), c(&format!("size={size}")));
        // SAFETY: strings that live for the call; the folder is the test's own.
        let r = unsafe { libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) };
        if r != 0 {
            println!("skipped: mounting a tmpfs wants root: {}", std::io::Error::last_os_error());
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let path = std::ffi::CString::new(self.0.to_str().expect("text")).expect("no zero byte");
        // SAFETY: as above.
        let r = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        assert_eq!(r, 0, "umount2: {}", std::io::Error::last_os_error());
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// It is said in a type that the disk is full.
fn is_full(error: &Error) -> bool {
    use CaptureFailure as F;
    matches!(error, Error::Image { .. } | Error::Capture { failure: F::Spill | F::Image, .. })
}

#[test]
fn a_full_disk_is_a_typed_error_and_stores_go_on() {
    let Some(world) = world("full") else { return };
    let Some(disk) = Tmpfs::mount(world.folder.join("disk"), "256k") else { return };
    (0..SMALL.nr_pages()).for_each(|p| word(&world.arena, p * PAGE + 16).store(!0, Ordering::Relaxed));
    world.run(&[], || {
        for round in 0..6 {
            let begun = world.begin(&disk.0.join("a.sfi"), false);
            let committed = begun.and_then(|(capture, _)| {
                world.gets_on();
                capture.commit()
            });
            let error = committed.expect_err("there is no room for it");
            assert!(is_full(&error), "round {round}: {error:?}");
            assert_eq!(names(&disk.0), [""; 0], "round {round}: no image, and nothing of one");
            world.gets_on();
        }
    });
    drop(disk);
    world.run(&[], || next_is_whole(&world));
}

/// Saved bytes have no room in memory, and then none on the disk: stores do not wait for ever.
#[cfg(debug_assertions)]
#[test]
fn saved_bytes_that_have_no_room_anywhere_end_the_capture() {
    use softfault::mm::trace::{self, Point};
    let plan = Plan { own: 331, ..SMALL };
    let Some(world) = World::new("no-room", plan, roomy(), anonymous) else { return };
    let Some(disk) = Tmpfs::mount(world.folder.join("disk"), "128k") else { return };
    (0..plan.nr_pages()).for_each(|p| word(&world.arena, p * PAGE + 16).store(!0, Ordering::Relaxed));
    let nothing = || Ok::<(), Infallible>(());
    trace::arm_gate(Point::CAPTURE_WALKED);
    let builder = world.rt.capture().arena(&world.arena).budget(0);
    let capture = builder.begin(disk.0.join("a.sfi"), nothing).expect("a cut");
    until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
    // More than fits in frames and on the disk, while the walker stands still.
    (0..plan.nr_pages()).for_each(|p| word(&world.arena, p * PAGE + 16).store(1, Ordering::Relaxed));
    trace::disarm(Point::CAPTURE_WALKED);
    let error = capture.commit().expect_err("its bytes are lost");
    assert!(matches!(error, Error::Capture { failure: CaptureFailure::Spill, .. }), "{error:?}");
    assert_eq!(names(&disk.0), [""; 0]);
    drop(disk);
    world.run(&[], || next_is_whole(&world));
}

/// Runs a test of this file in a process of its own, which finds `folder` in its environment.
fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]);
    command.env("SOFTFAULT_CAPTURE_CHILD", folder).env("TMPDIR", folder.join("tmp"));
    command
}

fn is_child() -> Option<PathBuf> {
    std::env::var_os("SOFTFAULT_CAPTURE_CHILD").map(PathBuf::from)
}

/// Where the size of files is limited, and the signal ignored.
#[test]
fn a_limit_on_the_size_of_files_is_a_typed_error() {
    let name = "a_limit_on_the_size_of_files_is_a_typed_error";
    if is_child().is_none() {
        let _turn = cut::turn();
        let folder = cut::folder("limit");
        std::fs::create_dir_all(folder.join("tmp")).expect("a folder");
        let out = child(name, &folder).output().expect("a process");
        let _ = std::fs::remove_dir_all(&folder);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        return;
    }
    let Some(world) = world("limited") else { return };
    (0..SMALL.nr_pages()).for_each(|p| word(&world.arena, p * PAGE + 16).store(!0, Ordering::Relaxed));
    // SAFETY: no handler of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let len = SMALL.len_bytes() as u64;
    world.run(&[], || {
        for bytes in [0, 4096, len / 2, len] {
            limit(bytes);
            let begun = world.begin(&world.folder.join("a.sfi"), false);
            let error = begun.and_then(|(capture, _)| capture.commit()).expect_err("it is longer");
            limit(libc::RLIM_INFINITY);
            assert!(is_full(&error), "{bytes} bytes: {error:?}");
            assert_eq!(names(&world.folder), [""; 0], "{bytes} bytes");
            world.gets_on();
        }
        next_is_whole(&world);
    });
}

fn limit(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit of a process of our own.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
}

/// Children that are killed, each at another moment.
const KILLS: u32 = 200;

/// Whatever is there under a name is a whole image of one moment, and what was committed is there.
#[test]
fn killed_at_any_moment_it_leaves_whole_images() {
    let name = "killed_at_any_moment_it_leaves_whole_images";
    if let Some(folder) = is_child() {
        return capture_until_killed(&folder);
    }
    let _turn = cut::turn();
    let folder = cut::folder("killed");
    make_folders(&folder);
    let (mut x, mut nr, mut leftovers) = (9u64, 0, 0);
    for kill in 0..KILLS {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let Some(committed) =
            kill_one(name, &folder, Duration::from_micros((x >> 33) % [12_000, 80_000][kill as usize % 2]))
        else {
            return;
        };
        let images = folder.join("images");
        for image in names(&images) {
            let path = images.join(&image);
            if image.starts_with(".softfault-") {
                leftovers += 1;
            } else {
                judge_file(SMALL, &path).unwrap_or_else(|e| panic!("kill {kill}, {image}: {e}"));
                nr += 1;
            }
        }
        for image in committed {
            assert!(images.join(format!("{image}.sfi")).exists(), "kill {kill}: image {image} was committed");
        }
        let removed = Catalog::open(&images).expect("the folder").collect();
        removed.expect("what was left is removed");
        assert!(names(&images).iter().all(|n| !n.starts_with(".softfault-")), "kill {kill}: {:?}", names(&images));
        make_folders(&folder);
    }
    println!("{KILLS} kills, {nr} images, {leftovers} unfinished ones");
    assert!(nr > 0 && leftovers > 0, "killed before an image, or never in one: {nr}, {leftovers}");
    let _ = std::fs::remove_dir_all(&folder);
}

/// Makes the folders of a child, empty.
fn make_folders(folder: &Path) {
    for name in ["images", "tmp"] {
        let _ = std::fs::remove_dir_all(folder.join(name));
        std::fs::create_dir_all(folder.join(name)).expect("a folder");
    }
}

/// Starts a child, and kills it `after` its first cut; returns which images it says it has committed. `None`: it cannot capture here.
fn kill_one(name: &str, folder: &Path, after: Duration) -> Option<Vec<u32>> {
    let mut child = child(name, folder).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a process");
    let mut said = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let begins = said.find(|line| line.contains("begins") || line.contains("skipped") || line.contains("test result"));
    std::thread::sleep(after);
    child.kill().expect("it runs");
    child.wait().expect("it was killed");
    if !begins.is_some_and(|line| line.contains("begins")) {
        println!("skipped: a child cannot capture");
        return None;
    }
    Some(said.filter_map(|line| line.strip_prefix("committed ").and_then(|n| n.parse().ok())).collect())
}

fn capture_until_killed(folder: &Path) {
    let Some(world) = world("child") else { return };
    world.run(&[], || {
        world.gets_on();
        for number in 0u32.. {
            tell("begins");
            let path = folder.join(format!("images/{number}.sfi"));
            let (capture, _) = world.begin(&path, false).expect("a cut");
            capture.commit().expect("an image");
            tell(&format!("committed {number}"));
        }
    });
}

/// A line at once, as one write.
fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| out.flush()).expect("somebody listens");
}

fn begin_of(rt: &Runtime, arena: &softfault::Arena, path: &Path) -> Result<Capture, Error> {
    rt.capture().arena(arena).begin(path, || Ok::<(), Infallible>(()))
}

/// A second capture of what is captured is refused by name where it is not to wait, and else of a later moment; the first does not
/// notice.
#[cfg(debug_assertions)]
#[test]
fn a_second_capture_while_one_copies() {
    use softfault::mm::trace::{self, Point};
    let Some(world) = world("second") else { return };
    let fill =
        |value: u64| (0..SMALL.nr_pages()).for_each(|p| word(&world.arena, p * PAGE).store(value, Ordering::Relaxed));
    let path = |name: &str| world.folder.join(name);
    let is_all = |name: &str, value: u64| {
        let bytes = cut::read(&path(name));
        let wrong = bytes.chunks(PAGE).position(|page| page[..8] != value.to_le_bytes());
        assert_eq!(wrong, None, "{name}: the first page that is not of its cut");
    };
    fill(1);
    trace::arm_gate(Point::CAPTURE_WALKED);
    let first = begin_of(&world.rt, &world.arena, &path("1.sfi")).expect("a cut");
    until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
    fill(2);
    let nothing = || Ok::<(), Infallible>(());
    let refused = world.rt.capture().arena(&world.arena).wait(false).begin(path("2.sfi"), nothing);
    assert!(matches!(refused, Err(Error::Denied { what, .. }) if what.contains("capture")), "{refused:?}");
    fill(3);
    let waits = std::thread::scope(|s| {
        let waits = s.spawn(|| begin_of(&world.rt, &world.arena, &path("3.sfi")));
        // It can only make a failure be seen.
        std::thread::sleep(Duration::from_millis(5));
        trace::disarm(Point::CAPTURE_WALKED);
        first.commit().expect("an image");
        waits.join().expect("no panic")
    });
    is_all("1.sfi", 1);
    fill(4);
    match waits {
        Ok(waited) => {
            waited.commit().expect("an image");
            is_all("3.sfi", 3);
        }
        Err(error) => assert!(matches!(error, Error::Denied { .. }), "{error:?}"),
    }
    begin_of(&world.rt, &world.arena, &path("4.sfi")).expect("a cut").commit().expect("an image");
    is_all("4.sfi", 4);
    assert!(!path("2.sfi").exists(), "what was refused is there");
}

/// Captures of different objects are made at once: four, a fifth is refused.
#[test]
fn captures_of_other_objects_at_the_same_time() {
    let _turn = cut::turn();
    let folder = cut::folder("others");
    let rt = roomy().build().expect("a runtime");
    let mut arenas = Vec::new();
    for _ in 0..5 {
        let Some(arena) = capturable(&rt, 16 * PAGE) else { return };
        map(&arena, &anonymous(&rt, &folder, 16 * PAGE), 16 * PAGE);
        arenas.push(arena);
    }
    let fill = |value: u64| {
        for (i, arena) in arenas.iter().enumerate() {
            (0..16).for_each(|p| word(arena, p * PAGE).store(value + i as u64, Ordering::Relaxed));
        }
    };
    fill(10);
    let path = |i: usize| folder.join(format!("{i}.sfi"));
    let captures: Vec<_> = (0..4).map(|i| begin_of(&rt, &arenas[i], &path(i)).expect("a cut")).collect();
    let fifth = begin_of(&rt, &arenas[4], &path(4));
    assert!(matches!(fifth, Err(Error::Exhausted { .. })), "{fifth:?}");
    fill(20);
    captures.into_iter().for_each(|capture| _ = capture.commit().expect("an image"));
    for i in 0..4 {
        let bytes = cut::read(&path(i));
        let value = 10 + i as u64;
        assert!(bytes.chunks(PAGE).all(|page| page[..8] == value.to_le_bytes()), "image {i}");
    }
    begin_of(&rt, &arenas[4], &path(4)).expect("there is room again").commit().expect("an image");
    assert_eq!(Image::open(path(4)).expect("an image").nr_pages(), 16);
    let _ = std::fs::remove_dir_all(&folder);
}

/// What lies past the end at the cut is zero in the image, whatever is stored there since the object has grown.
#[cfg(debug_assertions)]
#[test]
fn an_object_that_grows_meanwhile() {
    use softfault::mm::trace::{self, Point};
    let Some(world) = world("grows") else { return };
    let (nr, half) = (SMALL.nr_pages(), SMALL.nr_pages() / 2);
    let fill = |pages: std::ops::Range<usize>, value: u64| {
        pages.for_each(|p| word(&world.arena, p * PAGE).store(value, Ordering::Relaxed));
    };
    fill(0..nr, 1);
    world.object.set_len((half * PAGE) as u64 + 100).expect("nobody pins it");
    for round in 2..6 {
        trace::arm_gate(Point::CAPTURE_WALKED);
        let path = world.folder.join(format!("{round}.sfi"));
        let capture = begin_of(&world.rt, &world.arena, &path).expect("a cut");
        until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
        world.object.set_len((nr * PAGE) as u64).expect("there is room");
        fill(half..nr, round);
        world.object.set_len((half * PAGE) as u64 + 100).expect("nobody pins it");
        world.object.set_len((nr * PAGE) as u64).expect("there is room");
        fill(half + 1..nr, round + 100);
        trace::disarm(Point::CAPTURE_WALKED);
        capture.commit().expect("an image");
        let bytes = cut::read(&path);
        let number = |p: usize| u64::from_le_bytes(bytes[p * PAGE..][..8].try_into().expect("eight"));
        assert!((0..half).all(|p| number(p) == 1), "what was there");
        // The page with the end in it is kept below the end.
        assert_eq!(number(half), if round == 2 { 1 } else { round - 1 }, "round {round}: the last page");
        assert!((half + 1..nr).all(|p| number(p) == 0), "round {round}: past the end");
        world.object.set_len((half * PAGE) as u64 + 100).expect("nobody pins it");
    }
}
