//! Files that others use at the same time: what they append, cut, lock and open is theirs.
#![allow(unsafe_code, reason = "system calls that the standard library has no words for")]
#![allow(clippy::cast_possible_truncation, reason = "patterns and lengths; 64-bit only")]

mod common;

use common::{PAGE, TempFile, child, each_mode, ended, map, same, store};
use softfault::{Error, Object, Prot, Runtime, Sharing};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const PERIOD: std::time::Duration = std::time::Duration::from_secs(3600);

/// A runtime that writes nothing unless it is asked.
fn quiet() -> Runtime {
    common::setup();
    Runtime::builder().cache_limit(16 << 20).writeback(PERIOD, PERIOD).build().expect("runtime")
}

fn len_of(file: &TempFile) -> u64 {
    std::fs::metadata(file.path()).expect("metadata").len()
}

fn append(file: &TempFile, bytes: &[u8]) {
    let mut opened = OpenOptions::new().append(true).open(file.path()).expect("open");
    opened.write_all(bytes).expect("append");
}

// ---- the end of a file that others move ------------------------------------------------------------------------------

/// A store to a page, then somebody cuts the file before it: the page has nowhere to go, and the file stays as short.
#[test]
fn what_another_has_cut_is_not_made_long_again() {
    for direct in [false, true] {
        each_mode("cut by another", |_, mode| {
            let file = TempFile::new(16 * PAGE);
            let rt = quiet();
            let object = rt.file_options().writable(true).direct(direct).open(file.path()).expect("open");
            // Where stores are seen by protection, a granule counts as written whole.
            let arena = rt.arena(16 * PAGE).delivery(mode).granule(PAGE).build().expect("arena");
            map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
            store(&arena, 15 * PAGE, 252).expect("store");
            store(&arena, 9, 253).expect("store");
            File::options().write(true).open(file.path()).expect("open").set_len(PAGE as u64).expect("truncate");
            let r = object.sync_all();
            let named =
                matches!(&r, Err(Error::Writeback { range, .. }) if *range == (15 * PAGE as u64..16 * PAGE as u64));
            assert!(named, "{mode:?}, direct {direct}: {r:?}");
            assert_eq!(len_of(&file), PAGE as u64, "{mode:?}, direct {direct}: the end is not ours");
            assert_eq!(
                std::fs::read(file.path()).expect("read")[9],
                253,
                "{mode:?}: what lies before the end was written"
            );
            // The program says that the file is to be as long again: then it is.
            object.set_len(0).expect("cut");
            object.set_len(16 * PAGE as u64).expect("grow");
            object.write_at(15 * PAGE as u64, &[254]).expect("write");
            object.sync_all().expect("sync");
            assert_eq!(std::fs::read(file.path()).expect("read")[15 * PAGE], 254, "{mode:?}");
        });
    }
}

/// Makes fdatasync(2) fail on this thread from now on.
fn fail_fdatasync() {
    let op = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    let number = u32::try_from(libc::SYS_fdatasync).expect("a number");
    let eio = libc::SECCOMP_RET_ERRNO | libc::EIO.cast_unsigned();
    let mut filter =
        [op(0x20, 0, 0, 0), op(0x15, 0, 1, number), op(0x06, 0, 0, eio), op(0x06, 0, 0, libc::SECCOMP_RET_ALLOW)];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: sets a flag of this thread.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: a filter of four instructions, which the kernel copies.
    let r = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(r, 0, "seccomp: {}", std::io::Error::last_os_error());
}

#[test]
fn a_flush_that_fails_leaves_what_others_appended() {
    let out = child("a_flush_that_fails_leaves_what_others_appended", "appended", || {
        let file = TempFile::new(4 * PAGE);
        let rt = quiet();
        let object = rt.open_file_rw(file.path()).expect("open");
        object.write_at(0, &[1]).expect("write");
        append(&file, &[b'x'; 3 * PAGE]);
        fail_fdatasync();
        let r = object.sync_all();
        assert!(matches!(r, Err(Error::Flush { .. })), "{r:?}");
        assert_eq!(len_of(&file), 7 * PAGE as u64);
        let bytes = std::fs::read(file.path()).expect("read");
        same("what was appended", &bytes[4 * PAGE..], &[b'x'; 3 * PAGE]);
        assert_eq!(bytes[0], 1);
    });
    ended(out, Ok(0));
}

/// Appends what the object's content goes on with.
fn append_content(file: &TempFile, data: &mut Vec<u8>, len: usize) {
    let from = data.len();
    data.extend((from..from + len).map(|i| (i % 249) as u8 + 1));
    append(file, &data[from..]);
}

#[test]
fn what_others_append_is_there_once_it_is_followed() {
    const ROOM: usize = 64 * PAGE;
    for direct in [false, true] {
        each_mode("followed", |_, mode| {
            let file = TempFile::new(2 * PAGE + 1000);
            let mut data = file.data.clone();
            let rt = quiet();
            let object = rt.file_options().writable(true).direct(direct).with(|b| b.max_len(ROOM as u64));
            let object = object.open(file.path()).expect("open");
            let arena = rt.arena(ROOM).delivery(mode).granule(PAGE).build().expect("arena");
            arena.map(0, &object, 0, ROOM, Prot::ReadWrite, Sharing::Shared).expect("map");
            // Cached to its end, with zeros behind it, and dirty.
            assert_eq!(common::load(&arena, 2 * PAGE + 1000), Ok(0), "{mode:?}");
            store(&arena, 2 * PAGE, 252).expect("store");
            data[2 * PAGE] = 252;
            append_content(&file, &mut data, 5 * PAGE);
            assert_eq!(common::load(&arena, 3 * PAGE), Err(libc::SIGBUS), "{mode:?}: not followed yet");
            if !direct {
                let _pinned = arena.pin(2 * PAGE..3 * PAGE, softfault::Access::Read).expect("pin");
                let r = object.follow_len();
                assert!(matches!(r, Err(Error::Denied { .. })), "{mode:?}: {r:?}");
            }
            assert_eq!(object.follow_len().expect("follow"), data.len() as u64);
            assert_eq!(object.len(), data.len() as u64);
            same("what was appended", &common::bytes(&arena, 0..data.len()), &data);
            object.sync_all().expect("sync");
            same("the file", &std::fs::read(file.path()).expect("read"), &data);
            // Whoever opens it, or moves its end, follows too.
            append_content(&file, &mut data, 777);
            let again = rt.file_options().direct(direct).open(file.path()).expect("open");
            assert_eq!((again.len(), object.len()), (data.len() as u64, data.len() as u64), "{mode:?}");
            // Cached to its end again.
            assert_eq!(common::load(&arena, data.len()), Ok(0), "{mode:?}");
            append_content(&file, &mut data, 300);
            object.set_len(data.len() as u64 + 100).expect("grow");
            data.resize(data.len() + 100, 0);
            same("with what was appended", &common::bytes(&arena, 0..data.len()), &data);
            object.sync_all().expect("sync");
            same("the file", &std::fs::read(file.path()).expect("read"), &data);
            let r = again.set_len(0);
            assert!(matches!(r, Err(Error::Denied { .. })), "{mode:?}: {r:?}");
            // Too long.
            File::options().write(true).open(file.path()).expect("open").set_len(4 << 20).expect("grow");
            let r = object.follow_len();
            assert!(matches!(r, Err(Error::Argument { arg: "max_len", .. })), "{mode:?}: {r:?}");
            let r = rt.file_options().direct(direct).open(file.path());
            assert!(matches!(&r, Err(Error::Conflict { option: "max_len", .. })), "{mode:?}: {r:?}");
        });
    }
    let r = quiet().anonymous(PAGE as u64).expect("anonymous").follow_len();
    assert!(matches!(r, Err(Error::Denied { .. })), "{r:?}");
}

#[test]
fn what_others_cut_is_gone_once_it_is_followed() {
    each_mode("cut and followed", |_, mode| {
        let file = TempFile::new(8 * PAGE);
        let rt = quiet();
        let object = rt.open_file_rw(file.path()).expect("open");
        let arena = rt.arena(8 * PAGE).delivery(mode).granule(PAGE).build().expect("arena");
        map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
        store(&arena, 9, 252).expect("store");
        store(&arena, PAGE + 600, 253).expect("store");
        store(&arena, 7 * PAGE, 254).expect("store");
        File::options().write(true).open(file.path()).expect("open").set_len(PAGE as u64 + 500).expect("truncate");
        assert_eq!(object.follow_len().expect("follow"), PAGE as u64 + 500, "{mode:?}");
        assert_eq!(common::load(&arena, 7 * PAGE), Err(libc::SIGBUS), "{mode:?}");
        assert_eq!((common::load(&arena, 9), common::load(&arena, PAGE + 600)), (Ok(252), Ok(0)), "{mode:?}");
        object.sync_all().expect("nothing is left that has nowhere to go");
        assert_eq!(len_of(&file), PAGE as u64 + 500, "{mode:?}");
        assert_eq!(std::fs::read(file.path()).expect("read")[9], 252, "{mode:?}");
    });
}

/// Appended, followed, stored to, synced and evicted by different threads: no byte of it is another's, or zero.
#[test]
fn a_file_is_followed_while_it_grows() {
    const ROOM: usize = 256 * PAGE;
    each_mode("growing", |_, mode| {
        let file = TempFile::new(0);
        let rt = quiet();
        let object = rt.file_options().writable(true).with(|b| b.max_len(ROOM as u64)).open(file.path()).expect("open");
        let arena = rt.arena(ROOM).delivery(mode).granule(PAGE).build().expect("arena");
        arena.map(0, &object, 0, ROOM, Prot::ReadWrite, Sharing::Shared).expect("map");
        let done = std::sync::atomic::AtomicBool::new(false);
        let mut data = Vec::new();
        std::thread::scope(|s| {
            let stop = common::StopOnDrop(&done);
            s.spawn(|| {
                let mut rng = common::Rng(7);
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    // The byte that is there, so that its page is dirty.
                    let len = object.len() as usize;
                    if len > 0 {
                        let at = rng.below(len);
                        let _ = store(&arena, at, (at % 249) as u8 + 1);
                    }
                    match rng.below(40) {
                        0 => object.sync_all().expect("sync"),
                        1 => drop(object.evict(0..u64::MAX)),
                        _ => {}
                    }
                }
            });
            let mut rng = common::Rng(11);
            for round in 0..150 {
                append_content(&file, &mut data, 1 + rng.below(2 * PAGE));
                let from = data.len().saturating_sub(3 * PAGE);
                let end = object.follow_len().expect("follow") as usize;
                assert_eq!(end, data.len());
                same(&format!("{mode:?}, round {round}"), &common::bytes(&arena, from..end), &data[from..]);
            }
            drop(stop);
        });
        object.sync_all().expect("sync");
        same("the file", &std::fs::read(file.path()).expect("read"), &data);
    });
}

#[test]
fn an_object_grows_without_a_maximum() {
    let file = TempFile::new(100);
    let rt = quiet();
    let object = rt.file_options().writable(true).with(|b| b.growable(true)).open(file.path()).expect("open");
    let mut len = 100;
    while len < 1 << 30 {
        len *= 9;
        object.set_len(len).expect("grow");
        object.write_at(len - 1, &[252]).expect("write");
    }
    object.sync(len - 1..len).expect("sync");
    assert_eq!(len_of(&file), len);
    let r = rt.file_options().with(|b| b.growable(true)).open(file.path());
    assert_eq!(r.expect("the same").len(), len);
    let plain = TempFile::new(100);
    let _first = rt.open_file(plain.path()).expect("open");
    let r = rt.file_options().with(|b| b.growable(true)).open(plain.path());
    assert!(matches!(&r, Err(Error::Conflict { option: "growable", .. })), "{r:?}");
}

/// Writes a page of `value` to a file, from another process.
fn pwrite_elsewhere(file: &TempFile, value: u8, offset: usize) {
    let path = std::ffi::CString::new(file.path().to_str().expect("utf-8")).expect("a path");
    let status = common::fork(|| {
        // SAFETY: opens a file in a child that ends at once.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR) };
        let page = [value; PAGE];
        // SAFETY: reads the page above.
        let n = unsafe { libc::pwrite(fd, page.as_ptr().cast(), PAGE, offset.cast_signed() as i64) };
        i32::from(n != PAGE.cast_signed())
    });
    assert_eq!(status, 0, "the other process");
}

/// Two processes are two caches: of two that write one page the later write-back stays, and neither sees the other's until
/// it reads the page anew.
#[test]
fn of_two_processes_that_write_a_page_the_later_write_back_stays() {
    for direct in [false, true] {
        each_mode("two processes", |_, mode| {
            let file = TempFile::new(8 * PAGE);
            let rt = quiet();
            let object = rt.file_options().writable(true).direct(direct).open(file.path()).expect("open");
            let arena = rt.arena(8 * PAGE).delivery(mode).granule(PAGE).build().expect("arena");
            map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
            let what = format!("{mode:?}, direct {direct}");
            let ours = |page: usize| {
                let mut bytes = file.data[page * PAGE..(page + 1) * PAGE].to_vec();
                bytes[0] = 252;
                bytes
            };
            let in_file =
                |page: usize| std::fs::read(file.path()).expect("read")[page * PAGE..(page + 1) * PAGE].to_vec();
            let in_cache = |page: usize| common::bytes(&arena, page * PAGE..(page + 1) * PAGE);
            // Cached dirty, then written elsewhere: ours comes later, and stays.
            store(&arena, PAGE, 252).expect("store");
            pwrite_elsewhere(&file, b'x', PAGE);
            same(&format!("{what}: the file before the write-back"), &in_file(1), &[b'x'; PAGE]);
            same(&format!("{what}: the cached page"), &in_cache(1), &ours(1));
            object.sync_all().expect("sync");
            same(&format!("{what}: the file after the write-back"), &in_file(1), &ours(1));
            // Written back, then written elsewhere: theirs comes later, and stays.
            store(&arena, 5 * PAGE, 252).expect("store");
            object.sync_all().expect("sync");
            pwrite_elsewhere(&file, b'y', 5 * PAGE);
            object.sync_all().expect("sync");
            same(&format!("{what}: the file after theirs"), &in_file(5), &[b'y'; PAGE]);
            same(&format!("{what}: the page that is still cached"), &in_cache(5), &ours(5));
            common::evict_whole(&object);
            same(&format!("{what}: the page that is read anew"), &in_cache(5), &[b'y'; PAGE]);
            same(&format!("{what}: ours, read anew"), &in_cache(1), &ours(1));
        });
    }
}

// ---- write-back ------------------------------------------------------------------------------------------------------

#[test]
fn write_back_gives_the_store_its_bytes_and_flushes_nothing() {
    each_mode("write-back", |_, mode| {
        let file = TempFile::new(8 * PAGE);
        let rt = quiet();
        let object = rt.open_file_rw(file.path()).expect("open");
        let arena = rt.arena(8 * PAGE).delivery(mode).granule(PAGE).build().expect("arena");
        map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
        for page in 0..8 {
            store(&arena, page * PAGE, 255).expect("store");
        }
        object.write_back(2 * PAGE as u64..4 * PAGE as u64 - 1).expect("write back");
        let bytes = std::fs::read(file.path()).expect("read");
        let written: Vec<_> = (0..8).filter(|p| bytes[p * PAGE] == 255).collect();
        assert_eq!(written, [2, 3], "{mode:?}: the pages of the range, and no others");
        assert_eq!(rt.stats()["flush_calls"], 0, "{mode:?}");
        let held = object.hold_dirty(5 * PAGE as u64..6 * PAGE as u64).expect("hold");
        let r = object.write_back(0..u64::MAX);
        assert!(matches!(&r, Err(Error::Held { range, .. }) if range.start == 5 * PAGE as u64), "{mode:?}: {r:?}");
        drop(held);
        object.sync_all().expect("sync");
        assert_eq!(rt.stats()["flush_calls"], 1, "{mode:?}: it was given, not flushed");
    });
}

// ---- locks -----------------------------------------------------------------------------------------------------------

const WRITE_LOCK: i16 = libc::F_WRLCK as i16;

/// Locks the whole file for writing, as databases do; the lock is the process's.
fn lock(file: &File) {
    // SAFETY: an all-zero `flock` is a value: the whole file.
    let mut l: libc::flock = unsafe { std::mem::zeroed() };
    l.l_type = WRITE_LOCK;
    // SAFETY: reads one structure of ours.
    let r = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const l) };
    assert_eq!(r, 0, "F_SETLK: {}", std::io::Error::last_os_error());
}

/// Asks another process whether the file is locked: a child has none of our locks.
fn is_locked(file: &TempFile) -> bool {
    let path = std::ffi::CString::new(file.path().to_str().expect("utf-8")).expect("a path");
    let status = common::fork(|| {
        // SAFETY: opens a file in a child that ends at once.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR) };
        // SAFETY: as in lock().
        let mut l: libc::flock = unsafe { std::mem::zeroed() };
        l.l_type = WRITE_LOCK;
        // SAFETY: writes one structure of ours.
        let r = unsafe { libc::fcntl(fd, libc::F_GETLK, &raw mut l) };
        if fd < 0 || r != 0 {
            return 2;
        }
        i32::from(i32::from(l.l_type) != libc::F_UNLCK)
    });
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) < 2, "the child failed: {status:#x}");
    libc::WEXITSTATUS(status) == 1
}

/// Descriptors of the process that name the file.
fn descriptors_of(file: &TempFile) -> usize {
    let is = std::fs::metadata(file.path()).expect("metadata");
    let names =
        |e: &std::fs::DirEntry| std::fs::metadata(e.path()).is_ok_and(|m| (m.dev(), m.ino()) == (is.dev(), is.ino()));
    std::fs::read_dir("/proc/self/fd").expect("/proc").filter_map(Result::ok).filter(names).count()
}

#[test]
fn the_process_keeps_its_locks_on_a_file() {
    let _serial = common::serial();
    let rt = quiet();
    type Open<'a> = &'a dyn Fn(&TempFile, &File, bool, bool) -> softfault::Result<Object>;
    let ways: [(&str, Open<'_>); 2] = [
        ("open", &|file, _, write, direct| rt.file_options().writable(write).direct(direct).open(file.path())),
        ("file", &|_, opened, write, direct| rt.file_options().writable(write).direct(direct).file(opened)),
    ];
    for (way, open) in ways {
        for (write, direct) in [(false, false), (true, false), (false, true), (true, true)] {
            let what = format!("{way}, writable {write}, direct {direct}");
            let file = TempFile::new(4 * PAGE + 100);
            let opened = File::options().read(true).write(true).open(file.path()).expect("open");
            lock(&opened);
            assert!(is_locked(&file), "the test's own lock");
            let object = open(&file, &opened, write, direct).expect("object");
            assert!(is_locked(&file), "{what}: after it was opened");
            let r = open(&file, &opened, write, !direct);
            assert!(matches!(r, Err(Error::Conflict { .. })), "{r:?}");
            assert!(is_locked(&file), "{what}: after it was refused");
            let again = open(&file, &opened, true, direct).expect("object");
            assert!(is_locked(&file), "{what}: after it was opened again, to be written");
            again.write_at(5, &[1]).expect("write");
            drop((object, again));
            assert!(is_locked(&file), "{what}: after the object ended");
            // With what was kept, and perhaps with what was kept for direct I/O.
            for direct in [direct, !direct] {
                let object = open(&file, &opened, write, direct).expect("object");
                let mut bytes = [0; 100];
                assert_eq!(object.read_at(4 * PAGE as u64, &mut bytes).expect("read"), 100, "{what}");
                same("the file", &bytes, &file.data[4 * PAGE..]);
                drop(object);
                assert!(is_locked(&file), "{what}: after the next one ended");
            }
            // The lock goes when the program closes the file, and what was kept for it goes with the next object.
            drop(opened);
            assert!(!is_locked(&file), "{what}: closed by the program");
            let other = TempFile::new(PAGE);
            drop(rt.open_file(other.path()).expect("open"));
            assert_eq!(descriptors_of(&file), 0, "{what}: nothing is kept for ever");
        }
    }
}

// ---- what is no file ---------------------------------------------------------------------------------------------------

/// Asserts that a path is refused for what it is.
fn refused(rt: &Runtime, path: &Path, what: &str) {
    for write in [false, true] {
        let r = rt.file_options().writable(write).open(path);
        let Err(Error::FileType { name, what: is, .. }) = &r else { panic!("{}: {r:?}", path.display()) };
        assert_eq!((name.as_str(), *is), (path.to_str().expect("utf-8"), what));
    }
}

#[test]
fn what_is_no_file_is_refused_by_what_it_is() {
    let rt = quiet();
    let dir = std::env::temp_dir().join(format!("softfault-test-kinds-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let (fifo, socket) = (dir.join("fifo"), dir.join("socket"));
    let path = std::ffi::CString::new(fifo.to_str().expect("utf-8")).expect("a path");
    // SAFETY: makes a FIFO in a folder of ours.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    refused(&rt, &dir, "a directory");
    // Nobody writes to it: who opens it to read waits for ever.
    refused(&rt, &fifo, "a pipe");
    refused(&rt, &socket, "a socket");
    refused(&rt, Path::new("/dev/zero"), "a character device");
    refused(&rt, Path::new("/proc/self/status"), "procfs");
    if Path::new("/sys/kernel/mm").exists() {
        refused(&rt, Path::new("/sys/kernel/mm/transparent_hugepage/enabled"), "sysfs");
    }
    // By descriptor, too.
    let r = rt.file(&File::open(&dir).expect("open"));
    assert!(matches!(&r, Err(Error::FileType { what: "a directory", .. })), "{r:?}");
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    let r = rt.file(&File::from(std::os::fd::OwnedFd::from(pipe)));
    assert!(matches!(&r, Err(Error::FileType { what: "a pipe", .. })), "{r:?}");
    let file = TempFile::new(PAGE);
    for (options, write) in [(File::options().write(true), false), (File::options().read(true), true)] {
        let opened = options.open(file.path()).expect("open");
        let r = rt.file_options().writable(write).file(&opened);
        assert!(matches!(r, Err(Error::Denied { .. })), "{r:?}");
    }
    let _ = std::fs::remove_dir_all(&dir);
}

/// A loop device over a file, detached on drop; `None`, with the reason printed, where there is none to be had.
struct Loop(String);

impl Loop {
    fn over(file: &TempFile) -> Option<Self> {
        let out = std::process::Command::new("losetup").args(["-f", "--show"]).arg(file.path()).output();
        match out {
            Ok(out) if out.status.success() => Some(Self(String::from_utf8_lossy(&out.stdout).trim().into())),
            Ok(out) => {
                println!("skipped: losetup: {}", String::from_utf8_lossy(&out.stderr).trim());
                None
            }
            Err(e) => {
                println!("skipped: losetup: {e}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Its length is the device's, which nobody moves.
#[test]
fn a_block_device_is_an_object() {
    const LEN: usize = 64 * PAGE;
    let file = TempFile::new(LEN);
    let Some(device) = Loop::over(&file) else { return };
    each_mode("block device", |_, mode| {
        for direct in [false, true] {
            let rt = quiet();
            let open = || rt.file_options().writable(true).direct(direct).open(&device.0);
            let object = open().expect("open");
            assert_eq!(object.len(), LEN as u64);
            let arena = rt.arena(LEN).delivery(mode).build().expect("arena");
            map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
            assert_eq!(common::load(&arena, 63 * PAGE + 5), Ok(file.data[63 * PAGE + 5]), "{mode:?}, direct {direct}");
            store(&arena, 63 * PAGE, 252).expect("store");
            object.sync_all().expect("sync");
            assert!(object.set_len(PAGE as u64).is_err(), "{mode:?}: a device has the length that it has");
            assert_eq!(object.len(), LEN as u64);
            let again = open().expect("open");
            assert_eq!(again.len(), object.len(), "{mode:?}");
            drop((arena, object, again));
            let object = rt.open_file(&device.0).expect("open");
            let mut byte = [0];
            object.read_at(63 * PAGE as u64, &mut byte).expect("read");
            assert_eq!(byte, [252], "{mode:?}, direct {direct}");
            drop(object);
            rt.open_file_rw(&device.0)
                .expect("open")
                .write_at(63 * PAGE as u64, &[file.data[63 * PAGE]])
                .expect("write");
        }
    });
}

// ---- descriptors -------------------------------------------------------------------------------------------------------

#[test]
fn too_few_descriptors_are_an_error_that_says_how_many() {
    let out = child("too_few_descriptors_are_an_error_that_says_how_many", "nofile", || {
        let rt = quiet();
        let files: Vec<_> = (0..100).map(|_| TempFile::new(PAGE)).collect();
        common::limit(libc::RLIMIT_NOFILE, 64);
        let mut objects = Vec::new();
        let error = files.iter().find_map(|f| rt.open_file_rw(f.path()).map(|o| objects.push(o)).err());
        let Some(Error::Limit { what, limit: 64, needed: 65, .. }) = error else { panic!("{error:?}") };
        assert!(what.contains("RLIMIT_NOFILE"), "{what}");
        objects.clear();
        objects.push(rt.open_file(files[99].path()).expect("once others are closed"));
    });
    ended(out, Ok(0));
}

#[test]
fn a_file_is_mapped_whole_in_one_call() {
    let file = TempFile::new(3 * PAGE + 5);
    let rt = common::runtime();
    let mapped = rt.map_file(file.path()).expect("map_file");
    assert_eq!((mapped.len(), mapped.is_empty()), (file.data.len(), false));
    // SAFETY: nobody writes to the file, nor cuts it.
    same("by loads", unsafe { mapped.as_slice() }, &file.data);
    assert_eq!(mapped.as_ptr(), mapped.arena().as_ptr());
    let again = mapped.clone();
    drop(mapped);
    assert_eq!(common::load(again.arena(), 0), Ok(file.data[0]), "a clone keeps it mapped");
    // To be written, as the object is.
    let whole = rt.map_object(rt.open_file_rw(file.path()).expect("open")).expect("map_object");
    assert_eq!(store(whole.arena(), 7, 0xee), Ok(()));
    whole.object().sync_all().expect("sync");
    assert_eq!(std::fs::read(file.path()).expect("read")[7], 0xee);
    // Nothing to map, which is no error.
    let empty = TempFile::new(0);
    let mapped = rt.map_file(empty.path()).expect("an empty file");
    // SAFETY: no bytes.
    assert!(mapped.is_empty() && unsafe { mapped.as_slice() }.is_empty());
    assert!(matches!(rt.map_file("/nonexistent"), Err(Error::Io { .. })));
}
