//! A program that closes descriptors which it does not know, as daemons do, and opens files of its own: they get our numbers.
#![allow(unsafe_code, reason = "closes and duplicates descriptors by number, and loads from arenas")]

mod common;

use common::{EXTENT, PAGE, TempFile, arena, bytes, child, each_mode, ended, load, map, said, same, setup, store};
use softfault::{Arena, Delivery, Object, Prot, Runtime, Sharing};
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;

const LEN: usize = 3 * EXTENT;
const CACHED: usize = EXTENT / 2;

/// The numbers that are open, but for the standard streams.
fn numbers() -> Vec<i32> {
    let dir = std::fs::read_dir("/proc/self/fd").expect("/proc");
    let all = dir.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|n: &i32| *n > 2).collect()
}

fn close_all() {
    // SAFETY: closes numbers; nothing of this test's is open by then that it needs.
    let r = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    assert_eq!(r, 0, "close_range");
}

/// A file of the program's, under many numbers.
struct Foreign {
    file: std::fs::File,
    path: std::path::PathBuf,
}

const FOREIGN_LEN: usize = 4 * EXTENT;

impl Foreign {
    /// Makes it, and has it take `numbers` from whatever they named.
    fn take(numbers: &[i32]) -> Self {
        let path = std::env::temp_dir().join(format!("softfault-test-foreign-{}", std::process::id()));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
        file.write_all(&vec![b'x'; FOREIGN_LEN]).expect("written");
        file.seek(std::io::SeekFrom::Start(12_345)).expect("sought");
        for n in numbers.iter().filter(|n| **n != file.as_raw_fd()) {
            // SAFETY: gives the number, which is closed, to a file that is open.
            assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), *n) }, *n);
        }
        Self { file, path }
    }

    fn check(&mut self) {
        assert_eq!(self.file.stream_position().expect("position"), 12_345, "somebody read or wrote the program's file");
        let now = std::fs::read(&self.path).expect("read");
        assert_eq!(now.len(), FOREIGN_LEN, "the program's file has another length");
        let changed = now.iter().filter(|b| **b != b'x').count();
        assert_eq!(changed, 0, "bytes of the program's file were changed");
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Scene {
    rt: Runtime,
    read: (TempFile, Object, Arena),
    written: (TempFile, Object, Arena),
}

/// A small cache, a file of which a part is cached, and one with stores that no store has seen.
fn scene(mode: Delivery, direct: bool) -> Option<Scene> {
    setup();
    let rt = Runtime::builder().cache_limit(2 * EXTENT as u64).build().expect("runtime");
    if !rt.delivery().is_available(mode) {
        return None;
    }
    let open = |file: &TempFile, writable| rt.file_options().writable(writable).direct(direct).open(file.path());
    let (file, other) = (TempFile::new(LEN), TempFile::new(64 * PAGE));
    let (object, dirty) = (open(&file, false).expect("object"), open(&other, true).expect("object"));
    let (a, b) = (arena(&rt, mode, LEN), arena(&rt, mode, EXTENT));
    map(&a, 0, &object, Prot::Read, Sharing::Shared);
    map(&b, 0, &dirty, Prot::ReadWrite, Sharing::Shared);
    same("before", &bytes(&a, 0..CACHED), &file.data[..CACHED]);
    for page in 0..64 {
        assert_eq!(store(&b, page * PAGE, 0xee), Ok(()));
    }
    Some(Scene { rt, read: (file, object, a), written: (other, dirty, b) })
}

/// Everything that may touch a descriptor. Each byte that can be had is right, each that cannot is a signal.
fn go_on(scene: &Scene, mode: Delivery) -> (usize, usize) {
    let (file, object, a) = &scene.read;
    let (mut right, mut refused) = (0, 0);
    for page in 0..LEN / PAGE {
        match load(a, page * PAGE) {
            Ok(byte) if byte == file.data[page * PAGE] => right += 1,
            Ok(byte) => panic!("{mode:?}: page {page} begins with {byte:#x}, not {:#x}", file.data[page * PAGE]),
            Err(_) => refused += 1,
        }
    }
    let mut buf = vec![0; PAGE];
    if object.read_at((LEN - PAGE) as u64, &mut buf).is_ok() {
        same("read_at", &buf, &file.data[LEN - PAGE..]);
    }
    let (other, dirty, b) = &scene.written;
    let synced = dirty.sync_all();
    let on_disk = std::fs::read(other.path()).expect("read");
    if synced.is_ok() {
        assert!((0..64).all(|p| on_disk[p * PAGE] == 0xee), "{mode:?}: sync_all says Ok, and the file is old");
    }
    for page in 0..64 {
        if let Ok(byte) = load(b, page * PAGE) {
            assert_eq!(byte, 0xee, "{mode:?}: page {page} has lost a store");
        }
    }
    // Punches holes, through whatever is left to do it by.
    let _ = object.evict(0..LEN as u64);
    let _ = dirty.set_len(32 * PAGE as u64);
    let _ = dirty.punch_hole(0..PAGE as u64);
    // The flusher and kswapd get a turn.
    std::thread::sleep(std::time::Duration::from_millis(700));
    (right, refused)
}

fn closes_and_opens(mode: Delivery, direct: bool, opens: bool) {
    let Some(scene) = scene(mode, direct) else {
        println!("{mode:?} skipped: not here");
        return;
    };
    let ours = numbers();
    close_all();
    let mut foreign = opens.then(|| Foreign::take(&ours));
    let (right, refused) = go_on(&scene, mode);
    let lost = scene.rt.stats().get("process_descriptors_lost");
    println!("{mode:?}: {right} pages right, {refused} refused, {lost:?} descriptors found lost");
    assert_eq!(right + refused, LEN / PAGE);
    if let Some(foreign) = &mut foreign {
        foreign.check();
    }
    // What ends now closes no number of the program's.
    drop(scene);
    if let Some(foreign) = &mut foreign {
        foreign.check();
        let missing = ours.iter().filter(|n| numbers().binary_search(n).is_err() && !numbers().contains(n)).count();
        assert_eq!(missing, 0, "descriptors of the program's were closed");
    }
}

const CLOSES: &str = "files_that_get_the_numbers_of_closed_descriptors_are_left_alone";

#[test]
fn files_that_get_the_numbers_of_closed_descriptors_are_left_alone() {
    for mode in common::MODES {
        for (key, direct, opens) in [("opens", false, true), ("closes", false, false), ("direct", true, true)] {
            let out = child(CLOSES, &format!("{mode:?}-{key}"), || closes_and_opens(mode, direct, opens));
            print!("{key}: {}", out.as_ref().map(said).unwrap_or_default());
            ended(out, Ok(0));
        }
    }
}

const TAKEN: &str = "cached_pages_are_served_after_the_program_has_closed_everything";

/// The contexts are kept by a thread with a table of its own, and taken back.
#[test]
fn cached_pages_are_served_after_the_program_has_closed_everything() {
    for mode in common::MODES {
        let out = child(TAKEN, &format!("{mode:?}"), || {
            let Some(scene) = scene(mode, false) else {
                println!("{mode:?} skipped: not here");
                return;
            };
            let ours = numbers();
            close_all();
            let mut foreign = Foreign::take(&ours);
            let (file, _, a) = &scene.read;
            // The entries go, the pages stay: each touch is a fault that needs the context.
            a.zap(0..CACHED).expect("zap");
            for page in 0..CACHED / PAGE {
                assert_eq!(load(a, page * PAGE), Ok(file.data[page * PAGE]), "{mode:?}: page {page}");
            }
            foreign.check();
        });
        let said = ended(out, Ok(0));
        print!("{said}");
    }
}

const HIGH: &str = "descriptors_have_high_numbers";

/// In a process of its own: the other tests of this binary open files and pipes meanwhile, with low numbers.
#[test]
fn descriptors_have_high_numbers() {
    let out = child(HIGH, "all", || {
        each_mode("high", |rt, mode| {
            let file = TempFile::new(PAGE);
            let before = numbers();
            let object = rt.file_options().open(file.path()).expect("object");
            let a = arena(rt, mode, EXTENT);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            let low: Vec<_> = numbers().into_iter().filter(|n| *n < 64 && !before.contains(n)).collect();
            assert!(low.len() <= 1, "{mode:?}: {low:?}, where the program's next files go");
            same("a page", &bytes(&a, 0..PAGE), &file.data);
            assert_eq!(rt.stats().get("process_descriptors_lost"), Some(0), "nobody has closed any");
        });
    });
    print!("{}", ended(out, Ok(0)));
}

/// The numbers under which this process has its page map open.
fn pagemaps() -> Vec<i32> {
    let ours = format!("/proc/{}/pagemap", std::process::id());
    let names = |n: &i32| std::fs::read_link(format!("/proc/self/fd/{n}")).is_ok_and(|path| path.as_os_str() == &*ours);
    numbers().into_iter().filter(names).collect()
}

const ANOTHERS: &str = "the_page_map_of_another_process_is_not_believed";

/// A supervisor closes what it does not know and opens the page maps of its children: one of them gets our number. It answers
/// as ours does, of memory in which no arena is, and so no store.
#[test]
fn the_page_map_of_another_process_is_not_believed() {
    // Where faults arrive by SIGSEGV, a store that nobody has seen is a fault.
    for mode in common::MODES.into_iter().filter(|m| *m != Delivery::Segv) {
        let out = child(ANOTHERS, &format!("{mode:?}"), || believes_no_other(mode));
        print!("{}", ended(out, Ok(0)));
    }
}

fn believes_no_other(mode: Delivery) {
    const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);
    setup();
    let rt = Runtime::builder().cache_limit(64 << 20).writeback(HOUR, HOUR).build().expect("runtime");
    if !rt.delivery().is_available(mode) {
        return println!("{mode:?} skipped: not here");
    }
    let file = TempFile::new(64 * PAGE);
    let object = rt.open_file_rw(file.path()).expect("object");
    let a = rt.arena(EXTENT).delivery(mode).native_extents(false).build().expect("arena");
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    if pagemaps().is_empty() {
        return println!("{mode:?} skipped: stores are not noted by the kernel here");
    }
    // SAFETY: the child makes system calls alone, and ends with this process.
    let other = unsafe { libc::fork() };
    if other == 0 {
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        loop {
            // SAFETY: sleeps until a signal ends the process.
            unsafe { libc::pause() };
        }
    }
    let foreign = std::fs::File::open(format!("/proc/{other}/pagemap")).expect("the page map of a child");
    let replace = || {
        let ours = pagemaps();
        assert_eq!(ours.len(), 1, "{mode:?}: it was taken back, once");
        // SAFETY: gives a number of the runtime's to a file of the program's.
        assert_eq!(unsafe { libc::dup2(foreign.as_raw_fd(), ours[0]) }, ours[0]);
    };
    let stores = |byte| (0..64).for_each(|page| assert_eq!(store(&a, page * PAGE, byte), Ok(())));
    let old = |byte| {
        let on_disk = std::fs::read(file.path()).expect("read");
        (0..64).filter(|p| on_disk[p * PAGE] != byte).count()
    };
    stores(1);
    object.sync_all().expect("sync_all");
    for round in 2..6 {
        // Every page is mapped, clean and protected: the kernel alone notes these stores.
        stores(round);
        replace();
        object.sync_all().expect("sync_all");
        assert_eq!(old(round), 0, "{mode:?}: sync_all says Ok, and pages of the file are old");
        stores(round + 100);
        replace();
        object.evict(0..object.len()).expect("evict");
        (0..64).for_each(|page| assert_eq!(load(&a, page * PAGE), Ok(round + 100), "{mode:?}: page {page}"));
        object.sync_all().expect("sync_all");
        assert_eq!(old(round + 100), 0, "{mode:?}: after an eviction");
    }
    let lost = rt.stats().get("process_descriptors_lost").expect("a counter");
    assert!(lost >= 8, "{mode:?}: {lost} descriptors were found lost");
}

/// The numbers that name sockets: the two ends of the monitor's bell, in a process that has no others.
fn sockets() -> Vec<i32> {
    let names_one = |n: &i32| {
        std::fs::read_link(format!("/proc/self/fd/{n}")).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    numbers().into_iter().filter(names_one).collect()
}

/// Monitored arenas, with pages that only a helper can fill, whose end the monitor is told by its bell.
fn monitored(f: impl FnOnce(&Runtime, &dyn Fn(usize))) {
    setup();
    let rt = Runtime::new().expect("runtime");
    if !rt.delivery().is_available(Delivery::Monitor) {
        println!("Monitor skipped: not here");
        return;
    }
    let (object, _) = common::knob_object(&rt, LEN as u64, false);
    let a = arena(&rt, Delivery::Monitor, LEN);
    map(&a, 0, &object, Prot::Read, Sharing::Shared);
    let touch = |page: usize| {
        assert_eq!(load(&a, page * PAGE), Ok(common::byte_of(0, (page * PAGE) as u64)), "page {page}");
    };
    touch(0);
    f(&rt, &touch);
}

const BELLS: &str = "the_programs_eventfds_are_no_bells";

/// Every eventfd is one inode to the kernel, which tells files apart for us.
#[test]
fn the_programs_eventfds_are_no_bells() {
    let out = child(BELLS, "", || {
        monitored(|_, touch| {
            let ours = numbers();
            close_all();
            // SAFETY: touches no memory.
            let theirs = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
            for n in ours.iter().filter(|n| **n != theirs) {
                // SAFETY: gives the number, which is closed, to a descriptor that is open.
                assert_eq!(unsafe { libc::dup2(theirs, *n) }, *n);
            }
            (1..LEN / PAGE).step_by(40).for_each(touch);
            let mut count = 0u64;
            // SAFETY: writes eight bytes of ours, at most.
            let n = unsafe { libc::read(theirs, (&raw mut count).cast(), 8) };
            assert_eq!((n, count), (-1, 0), "the program's eventfd was written to");
        });
    });
    print!("{}", ended(out, Ok(0)));
}

const NO_NUMBERS: &str = "a_monitor_that_can_have_no_bell_goes_on";

#[test]
fn a_monitor_that_can_have_no_bell_goes_on() {
    // Fewer numbers than the monitor polls, and none for another bell.
    for (key, nr) in [("closed", 3), ("one", 1), ("none", 0)] {
        let out = child(NO_NUMBERS, key, || {
            monitored(|rt, touch| {
                let bell = sockets();
                assert_eq!(bell.len(), 2, "the bell is a pair of sockets");
                common::limit(libc::RLIMIT_NOFILE, nr);
                if key == "closed" {
                    // SAFETY: closes the monitor's bell, as a program might that closes what it does not know.
                    bell.iter().for_each(|n| assert_eq!(unsafe { libc::close(*n) }, 0));
                }
                (1..LEN / PAGE).step_by(40).for_each(touch);
                assert_eq!(rt.stats().get("monitor_poison"), Some(0));
            });
        });
        print!("{}", ended(out, Ok(0)));
    }
}
