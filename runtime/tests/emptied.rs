//! The kernel takes pages out of page tables that we filled: for its own reclaim, for an advice of the program's, for an
//! agent's. Of a page that was stored to it leaves no note behind. Nothing is lost, and nothing is written twice for it.
#![allow(unsafe_code, reason = "gives the kernel advice about arenas")]
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{EXTENT, PAGE, arena, each_mode, each_userfaultfd, load, map, serial, setup, store};
use softfault::{Access, Arena, Delivery, Object, Prot, Runtime, Sharing};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// How entries are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// `MADV_PAGEOUT`: as the kernel's reclaim; it needs no swap to unmap.
    PageOut,
    /// The same by `process_madvise`, as an agent does it.
    Process,
    /// `MADV_DONTNEED`: of a shared mapping it drops no byte.
    DontNeed,
    /// `MADV_COLD`: the page may go next.
    Cold,
}

const ALL: [How; 4] = [How::PageOut, How::Process, How::DontNeed, How::Cold];

/// Has the kernel empty the entries of a whole arena.
#[track_caller]
fn empty(a: &Arena, how: How) {
    let (at, len) = (a.as_ptr().cast::<libc::c_void>(), a.len());
    let advice = match how {
        How::PageOut | How::Process => libc::MADV_PAGEOUT,
        How::DontNeed => libc::MADV_DONTNEED,
        How::Cold => libc::MADV_COLD,
    };
    if how != How::Process {
        // SAFETY: the arena's range; of a shared mapping none of these drops a byte.
        let r = unsafe { libc::madvise(at, len, advice) };
        assert_eq!(r, 0, "{how:?}: {}", std::io::Error::last_os_error());
        return;
    }
    // SAFETY: a descriptor of this process, closed below.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    let part = libc::iovec { iov_base: at, iov_len: len };
    // SAFETY: one range, which lives; the advice drops no byte.
    let r = unsafe { libc::syscall(libc::SYS_process_madvise, fd, &raw const part, 1, advice, 0) };
    assert_eq!(r, len.cast_signed() as i64, "{how:?}: {}", std::io::Error::last_os_error());
    // SAFETY: ours alone.
    unsafe { libc::close(fd as i32) };
}

/// A sparse file, removed on drop.
struct Sparse(PathBuf);

impl Sparse {
    fn new(name: &str, len: usize) -> Self {
        let path = std::env::temp_dir().join(format!("softfault-emptied-{}-{name}", std::process::id()));
        File::create(&path).and_then(|f| f.set_len(len as u64)).expect("a sparse file");
        Self(path)
    }
    /// Panics with how many pages do not begin with what `want` says.
    #[track_caller]
    fn holds(&self, what: &str, nr: usize, want: impl Fn(usize) -> u8) {
        let file = File::open(&self.0).expect("open");
        let begins = |p: usize| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, (p * PAGE) as u64).expect("read");
            byte[0]
        };
        let stale = (0..nr).filter(|p| begins(*p) != want(*p)).count();
        assert_eq!(stale, 0, "{what}: {stale} of {nr} pages in the file are old");
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A runtime in which nothing happens by itself, unless `interval` is short.
fn quiet(interval: Duration) -> Runtime {
    setup();
    Runtime::builder().cache_limit(512 << 20).writeback(interval, interval).build().expect("runtime")
}

fn written(rt: &Runtime) -> u64 {
    rt.stats().get("pgpgout").expect("a counter")
}

#[track_caller]
fn stores(a: &Arena, nr: usize, value: u8) {
    (0..nr).for_each(|p| assert_eq!(store(a, p * PAGE, value), Ok(()), "page {p}"));
}

#[track_caller]
fn loads(what: &str, a: &Arena, nr: usize, want: impl Fn(usize) -> u8) {
    let wrong = (0..nr).filter(|p| load(a, *p * PAGE) != Ok(want(*p))).count();
    assert_eq!(wrong, 0, "{what}: {wrong} of {nr} stores are gone");
}

/// The object's pages are not written again, whoever asks.
#[track_caller]
fn writes_no_more(what: &str, rt: &Runtime, file: &Object) {
    let before = written(rt);
    file.sync_all().expect("sync_all");
    assert_eq!(written(rt), before, "{what}: a second sync wrote pages again");
}

/// What is emptied between a store and its sync is written, once.
fn written_once(mode: Delivery, how: How, name: &str) {
    const NR: usize = 4 * EXTENT / PAGE;
    let rt = quiet(HOUR);
    let sparse = Sparse::new(name, NR * PAGE);
    let file = rt.open_file_rw(&sparse.0).expect("open");
    let a = rt.arena(NR * PAGE).delivery(mode).native_extents(false).build().expect("arena");
    map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
    // Mapped for loads first: where the kernel notes stores, it alone knows of these.
    loads("zeros", &a, NR, |_| 0);
    stores(&a, NR, 42);
    empty(&a, how);
    file.sync_all().expect("sync_all");
    sparse.holds(&format!("{mode:?} {how:?}"), NR, |_| 42);
    writes_no_more(&format!("{mode:?} {how:?}"), &rt, &file);
    // Emptied again, now that everything is protected or was never mapped again.
    empty(&a, how);
    writes_no_more(&format!("{mode:?} {how:?}, again"), &rt, &file);
    // And from the cache's own side: what is emptied and not written yet stays when the object is evicted. Loads
    // first, so that again the kernel alone knows of the stores.
    loads("mapped anew", &a, NR, |_| 42);
    stores(&a, NR, 43);
    empty(&a, how);
    file.evict(0..file.len()).expect("evict");
    loads(&format!("{mode:?} {how:?}, evicted"), &a, NR, |_| 43);
    file.sync_all().expect("sync_all");
    file.evict(0..file.len()).expect("evict");
    sparse.holds(&format!("{mode:?} {how:?}, evicted"), NR, |_| 43);
    loads(&format!("{mode:?} {how:?}, read again"), &a, NR, |_| 43);
}

#[test]
fn what_was_stored_is_written_once_whoever_empties_the_entries() {
    let _serial = serial();
    for (how, name) in ALL.iter().zip(["pageout", "process", "dontneed", "cold"]) {
        each_mode(name, |rt, mode| {
            drop(rt.stats());
            written_once(mode, *how, name);
        });
    }
}

/// Before July 2026 the kernel says nothing of a range whose page table it has freed, as `MADV_DONTNEED` of 2 MiB has it do, and
/// protects nothing there.
#[test]
#[cfg(debug_assertions)]
fn nothing_is_lost_where_the_kernel_does_not_tell_of_a_page_table_that_is_gone() {
    let test = "nothing_is_lost_where_the_kernel_does_not_tell_of_a_page_table_that_is_gone";
    let out = common::child(test, "it", || {
        softfault_platform::sys::pagemap::old::pretend();
        for (how, name) in [(How::DontNeed, "old-dontneed"), (How::PageOut, "old-pageout")] {
            each_mode(name, |_, mode| written_once(mode, how, name));
        }
    });
    print!("{}", common::ended(out, Ok(0)));
}

#[test]
fn the_flusher_writes_emptied_pages_once() {
    let _serial = serial();
    const NR: usize = 64 << 20 >> 12;
    each_mode("flusher", |_, mode| {
        let rt = quiet(Duration::from_millis(20));
        let sparse = Sparse::new("flusher", NR * PAGE);
        let file = rt.open_file_rw(&sparse.0).expect("open");
        let a = rt.arena(NR * PAGE).delivery(mode).native_extents(false).build().expect("arena");
        map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
        loads("zeros", &a, NR, |_| 0);
        stores(&a, NR, 9);
        empty(&a, How::PageOut);
        file.sync_all().expect("sync_all");
        sparse.holds(&format!("{mode:?}"), NR, |_| 9);
        let before = written(&rt);
        // Several rounds, if the machine is not too busy; fewer would see less.
        std::thread::sleep(Duration::from_millis(200));
        file.sync_all().expect("sync_all");
        assert_eq!(written(&rt), before, "{mode:?}: pages were written again and again");
    });
}

#[test]
fn what_was_never_mapped_is_not_written() {
    let _serial = serial();
    each_mode("fresh", |_, mode| {
        let rt = quiet(HOUR);
        let len = 4 * EXTENT;
        let sparse = Sparse::new("fresh", len);
        let file = rt.open_file_rw(&sparse.0).expect("open");
        file.populate(0..file.len()).expect("populate");
        let a = rt.arena(len).delivery(mode).native_extents(false).build().expect("arena");
        map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
        file.sync_all().expect("sync_all");
        assert_eq!(written(&rt), 0, "{mode:?}: nothing was touched");
        // Loads alone, then reclaim's first stage, then the kernel's: nothing was stored.
        loads("zeros", &a, len / PAGE, |_| 0);
        file.sync_all().expect("sync_all");
        a.zap(0..len / 2).expect("zap");
        empty(&a, How::PageOut);
        empty(&a, How::DontNeed);
        file.sync_all().expect("sync_all");
        let segv = mode == Delivery::Segv;
        assert!(segv || written(&rt) == 0, "{mode:?}: {} pages were written, and none was stored to", written(&rt));
    });
}

#[test]
fn stores_through_each_of_several_mappings_survive() {
    let _serial = serial();
    const NR: usize = EXTENT / PAGE;
    each_mode("several", |_, mode| {
        let rt = quiet(HOUR);
        let sparse = Sparse::new("several", NR * PAGE);
        let file = rt.open_file_rw(&sparse.0).expect("open");
        let arenas: Vec<_> = (0..3).map(|_| arena(&rt, mode, EXTENT)).collect();
        for a in &arenas {
            map(a, 0, &file, Prot::ReadWrite, Sharing::Shared);
            loads("zeros", a, NR, |_| 0);
        }
        for p in 0..NR {
            assert_eq!(store(&arenas[p % 3], p * PAGE, (p % 250) as u8 + 1), Ok(()));
        }
        arenas.iter().zip(ALL).for_each(|(a, how)| empty(a, how));
        let want = |p: usize| (p % 250) as u8 + 1;
        file.evict(0..file.len()).expect("evict");
        file.sync_all().expect("sync_all");
        sparse.holds(&format!("{mode:?}"), NR, want);
        writes_no_more(&format!("{mode:?}"), &rt, &file);
        file.evict(0..file.len()).expect("evict");
        loads(&format!("{mode:?}"), &arenas[0], NR, want);
    });
}

#[test]
fn tracked_extents_keep_their_stores() {
    let _serial = serial();
    const NR: usize = 2 * EXTENT / PAGE;
    let demotes = |a: &Arena| _ = a.demote(0..a.len()).expect("demote");
    each_userfaultfd("tracked", |_, mode| {
        for how in ALL {
            for late in [false, true] {
                let rt = quiet(HOUR);
                let sparse = Sparse::new("tracked", NR * PAGE);
                let file = rt.open_file_rw(&sparse.0).expect("open");
                let a = rt.arena(NR * PAGE).delivery(mode).native_extents(false).build().expect("arena");
                map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
                file.populate(0..file.len()).expect("populate");
                assert_eq!(a.promote(0..NR * PAGE).expect("promote"), 2);
                // A promotion calls everything dirty: that is written, and what is noted from here on is the kernel's.
                file.sync_all().expect("sync_all");
                let clean = written(&rt);
                writes_no_more("promoted", &rt, &file);
                stores(&a, NR, 1);
                if late {
                    empty(&a, how);
                    demotes(&a);
                } else {
                    demotes(&a);
                    empty(&a, how);
                }
                let what = format!("{mode:?} {how:?} late {late}");
                file.evict(0..file.len()).expect("evict");
                loads(&what, &a, NR, |_| 1);
                file.sync_all().expect("sync_all");
                sparse.holds(&what, NR, |_| 1);
                assert_eq!(written(&rt) - clean, NR as u64, "{what}: each page is written once");
                writes_no_more(&what, &rt, &file);
                // Tracked while it is scanned.
                file.populate(0..file.len()).expect("populate");
                assert_eq!(a.promote(0..NR * PAGE).expect("promote"), 2);
                file.sync_all().expect("sync_all");
                stores(&a, NR, 2);
                empty(&a, how);
                file.sync_all().expect("sync_all");
                sparse.holds(&what, NR, |_| 2);
                writes_no_more(&what, &rt, &file);
            }
        }
    });
}

#[test]
fn an_unmapping_keeps_what_was_emptied() {
    let _serial = serial();
    const NR: usize = EXTENT / PAGE;
    each_mode("unmap", |_, mode| {
        let rt = quiet(HOUR);
        let sparse = Sparse::new("unmap", NR * PAGE);
        let file = rt.open_file_rw(&sparse.0).expect("open");
        for value in 1..4 {
            let a = arena(&rt, mode, EXTENT);
            map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
            loads("before", &a, NR, |_| value - 1);
            stores(&a, NR, value);
            empty(&a, How::PageOut);
            if value == 2 {
                a.zap(0..EXTENT).expect("zap");
            }
            a.unmap(0..EXTENT).expect("unmap");
            file.evict(0..file.len()).expect("evict");
            file.sync_all().expect("sync_all");
            sparse.holds(&format!("{mode:?}, {value}"), NR, |_| value);
        }
    });
}

/// Calls on emptied ranges find the bytes, and say so where they are resident.
#[test]
fn calls_on_emptied_ranges_find_the_bytes() {
    let _serial = serial();
    const NR: usize = 64;
    each_mode("calls", |_, mode| {
        let rt = quiet(HOUR);
        let sparse = Sparse::new("calls", NR * PAGE);
        let file = rt.open_file_rw(&sparse.0).expect("open");
        let a = arena(&rt, mode, EXTENT);
        map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
        loads("zeros", &a, NR, |_| 0);
        stores(&a, NR, 5);
        empty(&a, How::PageOut);
        let mut byte = [0];
        file.read_at(7 * PAGE as u64, &mut byte).expect("read_at");
        assert_eq!(byte, [5], "{mode:?}");
        a.fault_in(0..NR * PAGE, Access::Read).expect("fault_in");
        loads("faulted in", &a, NR, |_| 5);
    });
}

/// Exclusive objects: their pages lie in the arena alone, and what the kernel swaps out comes back; what a program discards
/// there is gone by definition, and said to be.
#[cfg(feature = "userfaultfd")]
mod exclusive {
    use super::*;
    use common::{child, ended};
    use softfault::Error;

    const NR: usize = 512;

    fn with_arena(what: &str, f: impl Fn(&Runtime, &Sparse, &Object, &Arena)) {
        let rt = quiet(HOUR);
        let sparse = Sparse::new(what, NR * PAGE);
        let file = rt.file_options().writable(true).with(|o| o.exclusive(true)).open(&sparse.0);
        let file = match file {
            Ok(file) => file,
            Err(e) => {
                println!("{what} skipped: {e}");
                return;
            }
        };
        let a = rt.arena(NR * PAGE).build().expect("arena");
        map(&a, 0, &file, Prot::ReadWrite, Sharing::Private);
        f(&rt, &sparse, &file, &a);
    }

    #[test]
    fn what_the_kernel_pages_out_comes_back() {
        let _serial = serial();
        with_arena("exclusive-pageout", |rt, sparse, file, a| {
            for how in [How::PageOut, How::Process, How::Cold] {
                stores(a, NR, how as u8 + 1);
                empty(a, how);
                file.sync_all().expect("sync_all");
                sparse.holds(&format!("{how:?}"), NR, |_| how as u8 + 1);
                empty(a, how);
                writes_no_more(&format!("{how:?}"), rt, file);
                stores(a, NR, how as u8 + 11);
                empty(a, how);
                file.evict(0..file.len()).expect("evict");
                loads(&format!("{how:?}"), a, NR, |_| how as u8 + 11);
            }
        });
    }

    /// What `meet` does after half of the pages were discarded finds what the store has, and a sync names them.
    fn discard(name: &str, meet: impl Fn(&Object, &Arena)) {
        // What goes round for ever ends.
        // SAFETY: the default action of the signal ends the process.
        unsafe { libc::alarm(60) };
        with_arena(name, |rt, sparse, file, a| {
            stores(a, NR, 2);
            file.sync_all().expect("sync_all");
            stores(a, NR, 3);
            let half = NR * PAGE / 2;
            // SAFETY: the arena's range; its bytes are to be lost.
            let r = unsafe { libc::madvise(a.as_ptr().cast(), half, libc::MADV_DONTNEED) };
            assert_eq!(r, 0);
            meet(file, a);
            let synced = file.sync_all();
            let Err(Error::Lost { ranges, .. }) = synced else { panic!("{name}: {synced:?}") };
            let lost = ranges.first().filter(|_| ranges.len() == 1);
            assert_eq!(lost, Some(&(0..half as u64)), "{name}: what was discarded is lost, and nothing else");
            loads(name, a, NR, |p| if p < NR / 2 { 2 } else { 3 });
            sparse.holds(name, NR, |p| if p < NR / 2 { 2 } else { 3 });
            assert_eq!(rt.stats().get("exclusive_discarded"), Some(NR as u64 / 2));
            file.forget_lost(0..file.len());
            file.sync_all().expect("what is forgotten is not named again");
        });
    }

    #[test]
    fn what_a_program_discards_is_lost_and_named() {
        let _serial = serial();
        let touch = |_: &Object, a: &Arena| loads("touched", a, NR, |p| if p < NR / 2 { 2 } else { 3 });
        let call = |file: &Object, _: &Arena| {
            let mut bytes = vec![0; NR * PAGE / 2];
            file.read_at(0, &mut bytes).expect("read_at");
            assert!(bytes.iter().step_by(PAGE).all(|b| *b == 2), "a call finds what the store has");
        };
        let evict = |file: &Object, _: &Arena| _ = file.evict(0..file.len()).expect("evict");
        // Each in a process of its own: what met such a page before went round for ever.
        let me = "exclusive::what_a_program_discards_is_lost_and_named";
        ended(child(me, "touch", || discard("touch", touch)), Ok(0));
        ended(child(me, "call", || discard("call", call)), Ok(0));
        ended(child(me, "sync", || discard("sync", |_, _| {})), Ok(0));
        ended(child(me, "evict", || discard("evict", evict)), Ok(0));
    }
}

#[cfg(debug_assertions)]
mod stopped {
    use super::*;
    use common::until;
    use softfault_mm::trace::{Point, arm_gate, disarm, is_caught};

    /// Opens the gate also when the test fails.
    struct Gate(Point);
    impl Drop for Gate {
        fn drop(&mut self) {
            disarm(self.0);
        }
    }

    /// Who installs has installed, and has not noted it once more: another stores, the kernel empties, a sync finds it.
    #[test]
    fn a_sync_finds_what_is_emptied_before_the_install_is_over() {
        let _serial = serial();
        each_userfaultfd("install", |_, mode| {
            for around in [false, true] {
                let rt = quiet(HOUR);
                let sparse = Sparse::new("install", EXTENT);
                let file = rt.open_file_rw(&sparse.0).expect("open");
                file.populate(0..file.len()).expect("populate");
                let builder = rt.arena(EXTENT).delivery(mode).native_extents(false).fault_around(around);
                let a = builder.build().expect("arena");
                map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
                let gate = Gate(Point::MAP_DONE);
                arm_gate(gate.0);
                std::thread::scope(|s| {
                    s.spawn(|| load(&a, 0).expect("load"));
                    until("installed", || is_caught(gate.0));
                    assert_eq!(store(&a, 0, 77), Ok(()), "it is mapped, and the kernel notes the store");
                    empty(&a, How::DontNeed);
                    let synced = s.spawn(|| file.sync_all());
                    // It scans, and then waits for the section in which we stand; later it finds no less.
                    std::thread::sleep(Duration::from_millis(50));
                    disarm(gate.0);
                    synced.join().expect("join").expect("sync_all");
                });
                sparse.holds(&format!("{mode:?} around {around}"), 1, |_| 77);
            }
        });
    }
}

/// A load maps the page anew, protected: that says nothing of the store before.
#[test]
fn a_load_after_the_entry_is_gone_hides_no_store() {
    let _serial = serial();
    const NR: usize = 4 * EXTENT / PAGE;
    for (how, promoted) in [(How::PageOut, false), (How::DontNeed, false), (How::DontNeed, true)] {
        each_mode(&format!("loads {how:?} {promoted}"), |rt, mode| {
            drop(rt.stats());
            let rt = quiet(HOUR);
            let sparse = Sparse::new("loads", NR * PAGE);
            let file = rt.open_file_rw(&sparse.0).expect("open");
            let a = rt.arena(NR * PAGE).delivery(mode).native_extents(false).build().expect("arena");
            map(&a, 0, &file, Prot::ReadWrite, Sharing::Shared);
            loads("zeros", &a, NR, |_| 0);
            if promoted {
                a.promote(0..NR * PAGE).expect("promote");
                file.sync_all().expect("sync_all");
            }
            stores(&a, NR, 42);
            empty(&a, how);
            if promoted {
                a.demote(0..NR * PAGE).expect("demote");
            }
            loads("mapped anew", &a, NR, |_| 42);
            file.sync_all().expect("sync_all");
            sparse.holds(&format!("{mode:?} {how:?} {promoted}"), NR, |_| 42);
            writes_no_more(&format!("{mode:?} {how:?} {promoted}"), &rt, &file);
        });
    }
}
