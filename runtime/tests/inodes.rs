//! One object for each file of the process, whatever its names and however often it is opened.

mod common;

use common::{PAGE, TempFile, arena, each_mode, load, map, serial, store};
use softfault::{Delivery, Error, FailurePolicy, FileOptions, Object, Prot, Runtime, Sharing};
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(3600);

/// A runtime that writes nothing unless it is asked.
fn quiet() -> Runtime {
    common::setup();
    Runtime::builder().cache_limit(16 << 20).writeback(PERIOD, PERIOD).build().expect("runtime")
}

fn byte_in(file: &TempFile, at: usize) -> u8 {
    std::fs::read(file.path()).expect("read")[at]
}

/// Another name, removed on drop.
struct Name(PathBuf);

impl Name {
    fn of(file: &TempFile, what: &str) -> Self {
        Self(file.path().with_extension(what))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whatever way it is opened again, what is stored through one is seen through the other, and none of it is lost.
#[test]
fn a_file_that_is_open_twice_is_one_object() {
    let _serial = serial();
    each_mode("twice", |_, mode| {
        for again in ["path", "hard link", "symbolic link", "file", "renamed", "another runtime"] {
            let file = TempFile::new(4 * PAGE);
            let (rt, other) = (quiet(), quiet());
            let first = rt.open_file_rw(file.path()).expect("open");
            let name = Name::of(&file, "again");
            let second = match again {
                "hard link" => std::fs::hard_link(file.path(), &name.0).map(|()| rt.open_file_rw(&name.0)),
                "symbolic link" => std::os::unix::fs::symlink(file.path(), &name.0).map(|()| rt.open_file_rw(&name.0)),
                "file" => OpenOptions::new().read(true).write(true).open(file.path()).map(|f| rt.file_rw(&f)),
                "renamed" => {
                    std::fs::rename(file.path(), &name.0).expect("rename");
                    let second = rt.open_file_rw(&name.0);
                    std::fs::rename(&name.0, file.path()).map(|()| second)
                }
                "another runtime" => Ok(other.open_file_rw(file.path())),
                _ => Ok(rt.open_file_rw(file.path())),
            };
            let second = second.expect(again).expect(again);
            let (a, b) = (arena(&rt, mode, 4 * PAGE), arena(&other, mode, 4 * PAGE));
            map(&a, 0, &first, Prot::ReadWrite, Sharing::Shared);
            map(&b, 0, &second, Prot::ReadWrite, Sharing::Shared);
            assert_eq!((load(&a, 0), load(&b, 0)), (Ok(file.data[0]), Ok(file.data[0])));
            store(&a, 0, 252).expect("store");
            store(&b, 100, 253).expect("store");
            assert_eq!((load(&b, 0), load(&a, 100)), (Ok(252), Ok(253)), "{mode:?}, {again}");
            first.sync_all().expect("sync");
            second.sync_all().expect("sync");
            assert_eq!((byte_in(&file, 0), byte_in(&file, 100)), (252, 253), "{mode:?}, {again}");
        }
    });
}

/// A name that names another file by now is another object.
#[test]
fn a_path_that_was_replaced_is_another_object() {
    let file = TempFile::new(PAGE);
    let rt = quiet();
    let first = rt.open_file_rw(file.path()).expect("open");
    let name = Name::of(&file, "new");
    std::fs::write(&name.0, vec![7; 2 * PAGE]).expect("write");
    std::fs::rename(&name.0, file.path()).expect("rename");
    let second = rt.open_file_rw(file.path()).expect("open");
    second.write_at(0, &[9]).expect("write");
    let mut byte = [0];
    first.read_at(0, &mut byte).expect("read");
    assert_eq!((byte[0], second.len()), (file.data[0], 2 * PAGE as u64));
}

fn denied<T: std::fmt::Debug>(what: &str, r: Result<T, Error>) {
    assert!(matches!(r, Err(Error::Denied { .. })), "{what}: {r:?}");
}

/// Who opened it to read may read what the other writes, and nothing else.
#[test]
fn rights_stay_with_the_value() {
    let _serial = serial();
    each_mode("rights", |_, mode| {
        let file = TempFile::new(8 * PAGE);
        let rt = quiet();
        let reader = rt.open_file(file.path()).expect("open");
        let (read, written) = (arena(&rt, mode, 8 * PAGE), arena(&rt, mode, 8 * PAGE));
        map(&read, 0, &reader, Prot::Read, Sharing::Shared);
        for page in 0..8 {
            assert_eq!(load(&read, page * PAGE), Ok(file.data[page * PAGE]));
        }
        // It is mapped, and perhaps handed to the kernel; from here on it is written.
        let writer = rt.open_file_rw(file.path()).expect("open again, to write");
        denied(
            "map",
            rt.arena(PAGE).build().expect("arena").map(0, &reader, 0, PAGE, Prot::ReadWrite, Sharing::Shared),
        );
        denied("protect", read.protect(0..PAGE, Prot::ReadWrite));
        denied("write_at", reader.write_at(0, &[1]));
        denied("set_len", reader.set_len(0));
        denied("punch_hole", reader.punch_hole(0..PAGE as u64));
        map(&written, 0, &writer, Prot::ReadWrite, Sharing::Shared);
        for page in 0..8 {
            store(&written, page * PAGE, 254).expect("store");
            assert_eq!(load(&read, page * PAGE), Ok(254), "{mode:?}, page {page}");
        }
        reader.sync(0..4 * PAGE as u64).expect("who reads may sync");
        assert_eq!((byte_in(&file, 0), byte_in(&file, 3 * PAGE)), (254, 254), "{mode:?}");
        writer.write_at(7 * PAGE as u64, &[255]).expect("write");
        drop((written, writer));
        assert_eq!(load(&read, 7 * PAGE), Ok(255), "{mode:?}");
        reader.evict(0..u64::MAX).expect("evict");
        assert_eq!(load(&read, 7 * PAGE), Ok(255), "{mode:?}: nothing dirty was dropped");
        drop((read, reader));
        assert_eq!(
            (byte_in(&file, 6 * PAGE), byte_in(&file, 7 * PAGE)),
            (254, 255),
            "{mode:?}: the last one writes it"
        );
    });
}

#[test]
fn options_that_differ_are_refused_by_name() {
    type Change = fn(FileOptions) -> FileOptions;
    let changes: &[(&str, Change)] = &[
        ("direct", |o| o.direct(true)),
        ("dsync", |o| o.with(|b| b.dsync(true))),
        ("synchronous_writes", |o| o.with(|b| b.synchronous_writes(true))),
        ("exclusive", |o| o.with(|b| b.exclusive(true))),
        ("on_failure", |o| o.with(|b| b.on_failure(FailurePolicy::Zero))),
        ("retries", |o| o.with(|b| b.retries(3, Duration::from_millis(1)))),
        ("cache_limit", |o| o.with(|b| b.cache_limit(1 << 20))),
        ("private_past_cache", |o| o.with(|b| b.private_past_cache(false))),
        ("huge_pages", |o| o.with(|b| b.huge_pages(true))),
        ("fill_window_pages", |o| o.with(|b| b.fill_window_pages(64))),
        ("readahead_pages", |o| o.with(|b| b.readahead_pages(128))),
        ("max_len", |o| o.with(|b| b.max_len(1 << 50))),
    ];
    let rt = quiet();
    for (name, change) in changes {
        let file = TempFile::new(PAGE);
        let first = rt.open_file_rw(file.path()).expect("open");
        let r = change(rt.file_options().writable(true)).open(file.path());
        let named = matches!(&r, Err(Error::Conflict { option, .. }) if option == name);
        assert!(named, "{name}: {r:?}");
        let text = r.expect_err(name).to_string();
        assert!(text.contains(name) && text.contains(&file.path().display().to_string()), "{text}");
        rt.open_file_rw(file.path()).expect("the same options");
        drop(first);
        if *name != "max_len" && *name != "exclusive" {
            change(rt.file_options().writable(true)).open(file.path()).expect("once the first is gone");
        }
    }
}

/// The pages of huge and of exclusive objects are kept in ways that depend on whether they are written.
#[test]
fn what_cannot_be_made_writable_says_so() {
    let rt = quiet();
    let file = TempFile::new(PAGE);
    let open = |write, huge| rt.file_options().writable(write).with(|b| b.huge_pages(huge)).open(file.path());
    let first = open(false, true).expect("open");
    let r = open(true, true);
    assert!(matches!(&r, Err(Error::Conflict { option: "huge_pages", .. })), "{r:?}");
    drop(first);
    open(true, true).expect("open");
    if rt.delivery().is_available(Delivery::InThread) {
        let open = |write| rt.file_options().writable(write).with(|b| b.exclusive(true)).open(file.path());
        let first = open(false).expect("open");
        let r = open(true);
        assert!(matches!(&r, Err(Error::Conflict { option: "writable", .. })), "{r:?}");
        drop(first);
        open(true).expect("open");
    }
}

/// The bytes of an object that is being dropped are those of the next one, however the two meet.
#[test]
fn who_opens_a_file_that_is_being_dropped_finds_what_was_written() {
    let _serial = serial();
    let file = TempFile::new(16 * PAGE);
    let rt = quiet();
    std::thread::scope(|s| {
        for t in 0..4u8 {
            let (file, rt) = (&file, &rt);
            s.spawn(move || {
                let at = u64::from(t) * 100;
                for round in 1..=200u8 {
                    let object: Object = rt.open_file_rw(file.path()).expect("open");
                    let mut seen = [0];
                    object.read_at(at, &mut seen).expect("read");
                    assert!(round == 1 || seen[0] == round - 1, "thread {t}, round {round}: {}", seen[0]);
                    object.write_at(at, &[round]).expect("write");
                }
            });
        }
    });
    for t in 0..4 {
        assert_eq!(byte_in(&file, t * 100), 200, "thread {t}");
    }
}

#[cfg(debug_assertions)]
#[test]
fn who_opens_a_file_waits_for_what_is_written_back_last() {
    use softfault_mm::trace::{Point, arm_gate, disarm, is_caught};
    let _serial = serial();
    let file = TempFile::new(4 * PAGE);
    let rt = quiet();
    let first = rt.open_file_rw(file.path()).expect("open");
    first.write_at(0, &[255]).expect("write");
    arm_gate(Point::OBJECT_ENDS);
    std::thread::scope(|s| {
        let dropper = s.spawn(move || drop(first));
        common::until("it is being dropped", || is_caught(Point::OBJECT_ENDS));
        let opener = s.spawn(|| {
            let mut byte = [0];
            let second = rt.open_file(file.path()).expect("open");
            second.read_at(0, &mut byte).expect("read");
            byte[0]
        });
        // Time for what must not be done; it can only have a failure be seen.
        std::thread::sleep(Duration::from_millis(50));
        let early = opener.is_finished();
        disarm(Point::OBJECT_ENDS);
        assert_eq!((opener.join().expect("opener"), early), (255, false), "what was stored");
        dropper.join().expect("dropper");
    });
}

/// Who drops the last value has the object from the first step on: the flusher passes it over, and who wants everything written
/// waits for the one who drops.
#[cfg(debug_assertions)]
#[test]
fn who_wants_everything_written_waits_for_what_is_being_dropped() {
    use softfault_mm::trace::{Point, arm_gate, disarm, is_caught};
    let _serial = serial();
    let file = TempFile::new(4 * PAGE);
    let rt = quiet();
    let object = rt.open_file_rw(file.path()).expect("open");
    object.write_at(0, &[255]).expect("write");
    let before = byte_in(&file, 0);
    arm_gate(Point::OBJECT_ENDS);
    std::thread::scope(|s| {
        let dropper = s.spawn(move || drop(object));
        common::until("it is being dropped", || is_caught(Point::OBJECT_ENDS));
        let early = rt.write_back(Duration::from_millis(100)).expect("the parent");
        let meanwhile = byte_in(&file, 0);
        disarm(Point::OBJECT_ENDS);
        assert!(!early, "everything is said to be written while the object is being dropped");
        assert_eq!(meanwhile, before, "another one than who drops it has written it");
        dropper.join().expect("dropper");
    });
    assert!(rt.write_back(Duration::from_secs(30)).expect("the parent"));
    assert_eq!(byte_in(&file, 0), 255);
}

/// A file is read in the faulting thread, which nothing times out: whoever opens it is told so, the second as the first.
#[test]
fn a_deadline_is_refused_however_often_the_file_is_open() {
    let rt = quiet();
    let file = TempFile::new(PAGE);
    let open = || rt.file_options().with(|o| o.deadline(Duration::from_secs(1))).open(file.path());
    let refused =
        |r: &Result<Object, Error>| matches!(r, Err(Error::Argument { arg: "deadline (ms)", value: 1000, .. }));
    let first = open();
    assert!(refused(&first), "{first:?}");
    let _object = rt.file_options().open(file.path()).expect("without one");
    let second = open();
    assert!(refused(&second), "{second:?}");
}
