//! Every system call of every operation of the control plane fails once, and from then on: whatever the operation had
//! done is taken back, and nothing else. Another object with dirty pages is none the worse, descriptors and mappings are
//! as before, and the operation succeeds when it is made again.
#![cfg(debug_assertions)]
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{EXTENT, PAGE, TempFile, child, fill_the_table, load, setup, store};
use softfault::{Access, Arena, Delivery, Error, Object, Pin, Prot, Runtime, RuntimeBuilder, Sharing};
use softfault_platform::sys::inject::{self, Fails};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn quiet() -> Runtime {
    setup();
    Runtime::builder().cache_limit(64 << 20).writeback(HOUR, HOUR).build().expect("runtime")
}

/// Returns what the process has open, by number.
fn descriptors() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
    let one = |e: std::fs::DirEntry| {
        let to = std::fs::read_link(e.path()).ok()?.display().to_string();
        // The directory that is being read, and a setting of the kernel's that kswapd reads with each of its rounds.
        let passing = to.ends_with("/fd") || to.starts_with("/sys/kernel/mm/");
        (!passing).then(|| (e.file_name().display().to_string(), to))
    };
    entries.filter_map(|e| one(e.expect("a descriptor"))).collect()
}

/// Returns the kernel's mappings that lie in an arena.
fn mappings(arena: &Arena) -> Vec<String> {
    let inside = arena.as_ptr() as usize..arena.as_ptr() as usize + arena.len();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let overlaps = |line: &&str| {
        let (from, to) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
        let address = |s| usize::from_str_radix(s, 16).expect("an address");
        address(from) < inside.end && inside.start < address(to)
    };
    // The reservation may be one with a neighbour's: ends outside say nothing.
    maps.lines().filter(overlaps).map(|l| clip(l, &inside)).collect()
}

fn clip(line: &str, inside: &std::ops::Range<usize>) -> String {
    let (range, rest) = line.split_once(' ').expect("a range");
    let (from, to) = range.split_once('-').expect("a range");
    let address = |s| usize::from_str_radix(s, 16).expect("an address");
    format!("{:x}-{:x} {rest}", address(from).max(inside.start), address(to).min(inside.end))
}

/// An object with dirty pages that has nothing to do with the operation, or is its object.
struct Bystander {
    file: TempFile,
    object: Object,
    arena: Arena,
    nr: Cell<u8>,
}

const BYSTANDER_PAGES: usize = 16;

impl Bystander {
    fn new(rt: &Runtime, mode: Delivery) -> Self {
        let file = TempFile::new(BYSTANDER_PAGES * PAGE);
        let object = rt.open_file_rw(file.path()).expect("open");
        let arena = common::arena(rt, mode, 4 * EXTENT);
        for i in 0..4 {
            common::map(&arena, i * EXTENT, &object, Prot::ReadWrite, Sharing::Shared);
        }
        // Records that were on its list and are free again: who uses them next must not follow where they led.
        arena.unmap(EXTENT..3 * EXTENT).expect("unmap");
        Self { file, object, arena, nr: Cell::new(0) }
    }

    /// A store through either mapping is found by a sync, and by an eviction.
    fn check(&self, what: &str) {
        for (i, at) in [3 * PAGE, 3 * EXTENT + 5 * PAGE].into_iter().enumerate() {
            let value = self.nr.get() % 250 + 1 + i as u8;
            store(&self.arena, at, value).unwrap_or_else(|s| panic!("{what}: a store raised {s}"));
            self.object.sync_all().unwrap_or_else(|e| panic!("{what}: {e}"));
            let in_file = std::fs::read(self.file.path()).expect("read")[at % EXTENT];
            assert_eq!(in_file, value, "{what}: a store through mapping {i} is not in the file");
            self.object.evict(0..self.object.len()).expect("evict");
            assert_eq!(load(&self.arena, at), Ok(value), "{what}: after an eviction");
        }
        self.nr.set(self.nr.get().wrapping_add(1));
    }
}

/// What an operation acts on: an arena, and an object of known content.
struct World {
    rt: Runtime,
    mode: Delivery,
    other: Bystander,
    file: TempFile,
    object: Object,
    arena: Arena,
}

const PAGES: usize = 3 * EXTENT / PAGE;

impl World {
    fn new(rt: &Runtime, mode: Delivery, writable: bool) -> Self {
        let other = Bystander::new(rt, mode);
        let file = TempFile::new(PAGES * PAGE);
        let object = rt.file_options().writable(writable).open(file.path()).expect("open");
        object.populate(0..object.len()).expect("populate");
        let arena = common::arena(rt, mode, 8 * EXTENT);
        Self { rt: rt.clone(), mode, other, file, object, arena }
    }

    fn map_whole(&self, prot: Prot, sharing: Sharing) {
        common::map(&self.arena, EXTENT, &self.object, prot, sharing);
    }

    /// Takes everything out of the arena: by protection what is exposed is mappings of the kernel's.
    fn hide(&self) {
        self.object.sync_all().expect("sync");
        common::evict_whole(&self.object);
        self.object.populate(0..self.object.len()).expect("populate");
    }

    fn unmap_whole(&self) {
        self.arena.unmap(0..self.arena.len()).expect("unmap everything");
    }

    /// Each page of `pages` of the object, mapped from the second extent on, reads as it should.
    fn same(&self, what: &str, pages: impl IntoIterator<Item = usize>) {
        for p in pages {
            let want = self.file.data[p * PAGE + 7];
            assert_eq!(load(&self.arena, EXTENT + p * PAGE + 7), Ok(want), "{what}: page {p}");
        }
    }
}

/// One operation: what comes before it, it, what must hold when it has failed, what when it has succeeded, and what comes
/// after.
struct Case<'a, S> {
    what: &'a str,
    prepare: &'a dyn Fn(&World) -> S,
    operate: &'a dyn Fn(&World, &mut S) -> Result<(), Error>,
    failed: &'a dyn Fn(&World, &str),
    verify: &'a dyn Fn(&World, &str),
    clean: &'a dyn Fn(&World, S),
}

/// Has each system call of an operation fail.
fn each_failure<S>(w: &World, case: &Case<'_, S>) {
    // Extents that have to be taken back first stay so, and the next fault hands them over again; what was faulted in on the
    // way stays, too. Looked at is what is left when all of that is taken back.
    let trapped = || {
        w.arena.demote(0..w.arena.len()).expect("demote");
        w.hide();
        (mappings(&w.arena), descriptors())
    };
    let state = (case.prepare)(w);
    let before = trapped();
    (case.clean)(w, state);
    w.unmap_whole();
    for fails in [Fails::Once, Fails::Onward] {
        let mut k = 0;
        loop {
            let idle = (mappings(&w.arena), descriptors());
            let mut state = (case.prepare)(w);
            inject::arm(k, fails);
            let done = (case.operate)(w, &mut state);
            let injected = inject::disarm();
            let what = format!("{} over {:?}, call {k} ({:?}) {fails:?}: {done:?}", case.what, w.mode, injected.failed);
            w.other.check(&what);
            if let Err(error) = done {
                assert!(injected.failed.is_some(), "{what}: {error}");
                (case.failed)(w, &what);
                if fails == Fails::Once {
                    assert_eq!(trapped(), before, "{what}: mappings and descriptors");
                }
                (case.operate)(w, &mut state).unwrap_or_else(|e| panic!("{what}: when repeated: {e}"));
            }
            (case.verify)(w, &what);
            (case.clean)(w, state);
            w.unmap_whole();
            w.other.check(&what);
            let now = (mappings(&w.arena), descriptors());
            assert_eq!(now, idle, "{what}: mappings and descriptors when all is done");
            if injected.failed.is_none() {
                println!("{} over {:?}: {} system calls, {fails:?}", case.what, w.mode, injected.nr_calls);
                assert_eq!(injected.nr_calls, k, "{what}");
                break;
            }
            k += 1;
            assert!(k < 4096, "{what}: it never ends");
        }
    }
}

/// Runs a scenario in every mode that can be had, each in a process of its own: one at a time fails calls in a process.
fn each_mode(test: &str, writable: bool, f: impl Fn(&World) + Sync) {
    in_children(test, &format!("writable {writable}"), &common::MODES, |mode| {
        let rt = common::runtime();
        if let Some(finding) = rt.delivery().finding(mode).filter(|f| !f.available) {
            println!("{test}: {mode:?} skipped: {}", finding.why);
            assert_ne!(mode, Delivery::Segv, "{test}: it can be had everywhere");
            return;
        }
        f(&World::new(&quiet(), mode, writable));
    });
}

fn nothing(_: &World) {}
fn anything(_: &World, _: &str) {}

#[test]
fn map() {
    each_mode("map", true, |w| {
        let unmapped = |w: &World, what: &str| {
            for p in [3, 18, 64] {
                assert_eq!(load(&w.arena, EXTENT + p * PAGE), Err(libc::SIGSEGV), "{what}: page {p}");
            }
        };
        for (what, prot, sharing) in [
            ("map shared", Prot::ReadWrite, Sharing::Shared),
            ("map private", Prot::ReadWrite, Sharing::Private),
            ("map to nothing", Prot::None, Sharing::Shared),
        ] {
            let operate = |w: &World, (): &mut ()| {
                w.arena.map(EXTENT + 3 * PAGE, &w.object, 3 * PAGE as u64, 16 * PAGE, prot, sharing)
            };
            let verify = |w: &World, what: &str| {
                if prot != Prot::None {
                    w.same(what, 3..19);
                }
            };
            each_failure(
                w,
                &Case {
                    what,
                    prepare: &nothing,
                    operate: &operate,
                    failed: &unmapped,
                    verify: &verify,
                    clean: &|_, ()| (),
                },
            );
        }
        let operate = |w: &World, (): &mut ()| {
            let len = BYSTANDER_PAGES * PAGE;
            w.arena.map(EXTENT + 64 * PAGE, &w.other.object, 0, len, Prot::ReadWrite, Sharing::Shared)
        };
        let what = "map an object that is mapped elsewhere";
        each_failure(
            w,
            &Case {
                what,
                prepare: &nothing,
                operate: &operate,
                failed: &unmapped,
                verify: &anything,
                clean: &|_, ()| (),
            },
        );
    });
}

#[test]
fn unmap_and_protect() {
    each_mode("unmap_and_protect", true, |w| {
        for sharing in [Sharing::Shared, Sharing::Private] {
            let prepare = |w: &World| {
                w.map_whole(Prot::ReadWrite, sharing);
                w.same("before", (0..PAGES).step_by(61));
            };
            let middle = EXTENT + 100 * PAGE..2 * EXTENT + 40 * PAGE;
            // Nothing is unmapped, and nothing forbidden: stores of what is there already.
            let intact = |w: &World, what: &str| {
                w.same(what, (0..PAGES).step_by(41));
                for p in (100..512 + 40).step_by(37) {
                    let stored = store(&w.arena, EXTENT + p * PAGE + 7, w.file.data[p * PAGE + 7]);
                    assert_eq!(stored, Ok(()), "{what}: a store to page {p}");
                }
            };
            let outside = || (0..100).chain(512 + 40..PAGES).step_by(7);
            let case = |what, range: std::ops::Range<usize>| {
                let operate = |w: &World, (): &mut ()| w.arena.unmap(range.clone());
                let verify = |w: &World, what: &str| {
                    if range != (0..w.arena.len()) {
                        w.same(what, outside());
                    }
                    // What the kernel has not let go of is tried again by the next call.
                    w.arena.unmap(0..PAGE).expect("unmap nothing");
                    assert_eq!(load(&w.arena, EXTENT + 200 * PAGE), Err(libc::SIGSEGV), "{what}: unmapped");
                };
                let (prepare, clean) = (&prepare, &|_: &World, ()| ());
                each_failure(w, &Case { what, prepare, operate: &operate, failed: &intact, verify: &verify, clean });
            };
            case("unmap the middle", middle.clone());
            case("unmap", 0..w.arena.len());
            for prot in [Prot::Read, Prot::None] {
                let operate = |w: &World, (): &mut ()| w.arena.protect(middle.clone(), prot);
                let verify = |w: &World, what: &str| {
                    w.same(what, outside());
                    assert_eq!(store(&w.arena, EXTENT + 200 * PAGE, 1), Err(libc::SIGSEGV), "{what}");
                    if prot == Prot::Read {
                        w.same(what, (100..512).step_by(31));
                    }
                };
                let (what, prepare, clean) = ("protect", &prepare, &|_: &World, ()| ());
                each_failure(w, &Case { what, prepare, operate: &operate, failed: &intact, verify: &verify, clean });
            }
        }
    });
}

/// What was there is there, or what is to be, or nothing, if the kernel had taken the old away; and never anything else.
#[test]
fn replace() {
    each_mode("replace", true, |w| {
        let new = w.rt.object((PAGES * PAGE) as u64).anonymous().expect("anonymous");
        assert_eq!(new.write_at(0, &vec![0xee; PAGES * PAGE]).expect("write_at"), PAGES * PAGE);
        let range = EXTENT + 100 * PAGE..2 * EXTENT + 40 * PAGE;
        let replace = || {
            let at = (range.start - EXTENT) as u64;
            w.arena.replace(range.start, &new, at, range.len(), Prot::ReadWrite, Sharing::Shared)
        };
        for (sharing, fails) in
            [(Sharing::Shared, Fails::Once), (Sharing::Private, Fails::Once), (Sharing::Shared, Fails::Onward)]
        {
            for k in 0..4096 {
                let idle = (mappings(&w.arena), descriptors());
                w.map_whole(Prot::ReadWrite, sharing);
                w.same("before", (0..PAGES).step_by(61));
                inject::arm(k, fails);
                let done = replace();
                let injected = inject::disarm();
                let what = format!("replace over {:?}, call {k} ({:?}) {fails:?}: {done:?}", w.mode, injected.failed);
                w.other.check(&what);
                w.same(&what, (0..100).chain(512 + 40..PAGES).step_by(7));
                let old = |p: usize| w.file.data[p * PAGE];
                for p in (100..512 + 40).step_by(37) {
                    let got = load(&w.arena, EXTENT + p * PAGE);
                    let right =
                        if done.is_ok() { got == Ok(0xee) } else { got == Ok(old(p)) || got == Err(libc::SIGSEGV) };
                    assert!(right, "{what}: page {p} is {got:?}");
                }
                if injected.failed.is_some_and(|nr| nr == libc::SYS_mmap) && fails == Fails::Once && done.is_err() {
                    w.same(&what, (100..512 + 40).step_by(37));
                }
                if done.is_err() {
                    replace().unwrap_or_else(|e| panic!("{what}: when repeated: {e}"));
                    assert_eq!(load(&w.arena, EXTENT + 200 * PAGE), Ok(0xee), "{what}: when repeated");
                }
                w.unmap_whole();
                w.other.check(&what);
                assert_eq!(
                    (mappings(&w.arena), descriptors()),
                    idle,
                    "{what}: mappings and descriptors when all is done"
                );
                if injected.failed.is_none() {
                    println!("replace over {:?}: {} system calls, {fails:?}", w.mode, injected.nr_calls);
                    break;
                }
            }
        }
    });
}

#[test]
fn promote_and_demote() {
    for writable in [false, true] {
        each_mode("promote_and_demote", writable, |w| {
            let prot = if writable { Prot::ReadWrite } else { Prot::Read };
            let everything = 0..w.arena.len();
            let native = usize::from(w.mode != Delivery::Segv) * PAGES * PAGE / EXTENT;
            let verify = |w: &World, what: &str| w.same(what, (0..PAGES).step_by(13));
            let prepare = |w: &World| w.map_whole(prot, Sharing::Shared);
            let operate = |w: &World, (): &mut ()| {
                let before = w.arena.native_extents();
                let nr = w.arena.promote(everything.clone())?;
                assert_eq!(w.arena.native_extents(), before + nr, "counted as they are");
                // It refuses nothing: extents that could not be handed over are served as before.
                Ok(())
            };
            let again = |w: &World, what: &str| {
                verify(w, what);
                // A monitor drops its pins a little after it has woken whom it serves.
                common::until(&format!("{what}: promoted when repeated"), || {
                    w.arena.promote(everything.clone()).expect("promote");
                    w.arena.native_extents() == native
                });
                verify(w, what);
            };
            let clean = |_: &World, ()| ();
            each_failure(
                w,
                &Case {
                    what: "promote",
                    prepare: &prepare,
                    operate: &operate,
                    failed: &anything,
                    verify: &again,
                    clean: &clean,
                },
            );
            let prepare = |w: &World| {
                prepare(w);
                common::until("promoted", || {
                    w.arena.promote(everything.clone()).expect("promote");
                    w.arena.native_extents() == native
                });
            };
            let operate = |w: &World, (): &mut ()| w.arena.demote(everything.clone()).map(drop);
            let none = |w: &World, what: &str| {
                assert_eq!(w.arena.native_extents(), 0, "{what}");
                verify(w, what);
            };
            each_failure(
                w,
                &Case {
                    what: "demote",
                    prepare: &prepare,
                    operate: &operate,
                    failed: &anything,
                    verify: &none,
                    clean: &clean,
                },
            );
            // What native extents must be taken back for.
            let operate = |w: &World, (): &mut ()| w.arena.unmap(EXTENT + 100 * PAGE..2 * EXTENT + 40 * PAGE);
            let left = |w: &World, what: &str| {
                w.same(what, (0..100).chain(512 + 40..PAGES).step_by(7));
                // No count is left behind: everything can be evicted.
                w.hide();
            };
            let what = "unmap native extents";
            each_failure(
                w,
                &Case { what, prepare: &prepare, operate: &operate, failed: &anything, verify: &left, clean: &clean },
            );
            let operate = |w: &World, (): &mut ()| w.arena.protect(EXTENT + 100 * PAGE..2 * EXTENT, Prot::Read);
            let stores = |w: &World, what: &str| {
                if writable {
                    let stored = store(&w.arena, EXTENT + 200 * PAGE + 7, w.file.data[200 * PAGE + 7]);
                    assert_eq!(stored, Ok(()), "{what}: a store");
                }
            };
            let what = "protect native extents";
            each_failure(
                w,
                &Case { what, prepare: &prepare, operate: &operate, failed: &stores, verify: &verify, clean: &clean },
            );
        });
    }
}

#[test]
fn pin() {
    each_mode("pin", true, |w| {
        for (sharing, access) in [
            (Sharing::Shared, Access::Read),
            (Sharing::Shared, Access::Write),
            (Sharing::Private, Access::Read),
            (Sharing::Private, Access::Write),
        ] {
            let prepare = |w: &World| -> Option<Pin> {
                w.map_whole(Prot::ReadWrite, sharing);
                None
            };
            let operate = |w: &World, pin: &mut Option<Pin>| {
                *pin = Some(w.arena.pin(EXTENT + 8 * PAGE..EXTENT + 12 * PAGE, access)?);
                Ok(())
            };
            let verify = |w: &World, what: &str| w.same(what, 0..16);
            // A pin that failed, or was dropped, holds nothing: the range can be unmapped.
            let clean = |_: &World, pin: Option<Pin>| drop(pin);
            let what = format!("pin {sharing:?} {access:?}");
            each_failure(
                w,
                &Case {
                    what: &what,
                    prepare: &prepare,
                    operate: &operate,
                    failed: &anything,
                    verify: &verify,
                    clean: &clean,
                },
            );
        }
    });
}

#[test]
fn exclusive_objects() {
    in_children("exclusive_objects", "", &[Delivery::InThread], |mode| {
        let rt = quiet();
        if !rt.delivery().is_available(mode) {
            println!("exclusive objects skipped: {}", rt.delivery());
            return;
        }
        let w = World::new(&rt, mode, true);
        // The context and the pool of frames are there as long as the runtime.
        drop(rt.object(PAGE as u64).exclusive(true).anonymous().expect("exclusive"));
        let prepare = |_: &World| None::<Object>;
        let make = |w: &World| w.rt.object(64 * PAGE as u64).exclusive(true).anonymous();
        let operate = |w: &World, object: &mut Option<Object>| {
            if object.is_none() {
                *object = Some(make(w)?);
            }
            let object = object.as_ref().expect("made");
            w.arena.map(EXTENT, object, 0, 64 * PAGE, Prot::ReadWrite, Sharing::Private)
        };
        let verify = |w: &World, what: &str| {
            for p in 0..64 {
                assert_eq!(store(&w.arena, EXTENT + p * PAGE, p as u8 + 1), Ok(()), "{what}: page {p}");
                assert_eq!(load(&w.arena, EXTENT + p * PAGE), Ok(p as u8 + 1), "{what}: page {p}");
            }
        };
        let clean = |_: &World, state| drop(state);
        let what = "make and map an exclusive object";
        each_failure(
            &w,
            &Case { what, prepare: &prepare, operate: &operate, failed: &anything, verify: &verify, clean: &clean },
        );
        let prepare = |w: &World| {
            let object = make(w).expect("exclusive");
            w.arena.map(EXTENT, &object, 0, 64 * PAGE, Prot::ReadWrite, Sharing::Private).expect("map");
            verify(w, "before");
            object
        };
        let operate = |w: &World, _: &mut Object| w.arena.unmap(EXTENT..2 * EXTENT);
        let clean = |_: &World, object| drop(object);
        let what = "unmap an exclusive object";
        each_failure(
            &w,
            &Case { what, prepare: &prepare, operate: &operate, failed: &verify, verify: &anything, clean: &clean },
        );
    });
}

/// The names of the process's threads.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc/self/task");
    let name = |e: std::fs::DirEntry| std::fs::read_to_string(e.path().join("comm")).ok();
    let mut names: Vec<_> = tasks.filter_map(|e| name(e.ok()?)).map(|n| n.trim().to_owned()).collect();
    names.sort();
    names
}

/// The pages of address space, the number of mappings, the descriptors and the threads.
type Totals = (u64, usize, BTreeMap<String, String>, Vec<String>);

fn totals() -> Totals {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages = statm.split(' ').next().and_then(|n| n.parse().ok()).expect("pages");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    (pages, maps.lines().count(), descriptors(), threads())
}

/// Returns the totals as soon as they are `seen`, or what they are after a second: a thread that was joined can be listed
/// a little longer, and what leaked does not go away.
fn settled(seen: &Totals) -> Totals {
    for _ in 0..100 {
        let now = totals();
        if now == *seen {
            return now;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    totals()
}

/// Has the allocator keep one heap for all threads: a thread that starts while another ends gets a heap of its own
/// otherwise, which stays, so that address space could grow with every turn and nothing of ours would have leaked.
fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a setting of the allocator.
    let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    #[cfg(target_env = "gnu")]
    assert_eq!(done, 1, "one heap");
}

/// What was made, to be dropped when calls succeed again: to give something back is no operation that can fail.
type Made = Vec<Box<dyn std::any::Any>>;

/// Has each system call of an operation fail that makes something; made again, it succeeds. The allocator keeps what it
/// has, so the whole is done until one turn leaves everything as it was: what leaks grows in every turn.
fn each_failed_making(what: &str, ready: &dyn Fn(), make: &dyn Fn(&mut Made) -> Result<(), Error>) {
    one_heap();
    for fails in [Fails::Once, Fails::Onward] {
        let turn = || {
            for k in 0.. {
                let mut made = Vec::with_capacity(8);
                ready();
                inject::arm(k, fails);
                let done = make(&mut made);
                let injected = inject::disarm();
                while made.pop().is_some() {}
                assert!(done.is_ok() || injected.failed.is_some(), "{what}, call {k}: {done:?}");
                let again = make(&mut made);
                while made.pop().is_some() {}
                again.unwrap_or_else(|e| panic!("{what}, call {k} ({:?}) {fails:?}: repeated: {e}", injected.failed));
                if injected.failed.is_none() {
                    return injected.nr_calls;
                }
            }
            0
        };
        let nr = turn();
        println!("{what}: {nr} system calls, {fails:?}");
        if fails == Fails::Onward {
            // What is undone while nothing can be had may be in vain.
            continue;
        }
        let mut seen = totals();
        let mut patience = 16;
        loop {
            turn();
            let now = settled(&seen);
            if now == seen {
                break;
            }
            assert!(patience > 0, "{what}: every turn leaves something behind: {seen:?}, then {now:?}");
            patience -= 1;
            seen = now;
        }
    }
}

fn keep<T: Clone + 'static>(made: &mut Made, it: T) -> T {
    made.push(Box::new(it.clone()));
    it
}

fn small() -> RuntimeBuilder {
    Runtime::builder().cache_limit(16 << 20).fillers(1).writeback(HOUR, HOUR)
}

/// Runs `body` for each mode in a process of its own, all at the same time: they mostly wait, for threads to start and end.
fn in_children(test: &str, key: &str, modes: &[Delivery], body: impl Fn(Delivery) + Sync) {
    let run = |mode: Delivery| in_child(test, &format!("{mode:?} {key}"), || body(mode));
    if common::is_child() {
        // The one that is meant does not return; threads beside it would be counted.
        return modes.iter().for_each(|mode| run(*mode));
    }
    std::thread::scope(|s| {
        for mode in modes {
            s.spawn(|| run(*mode));
        }
    });
}

fn in_child(test: &str, key: &str, body: impl FnOnce()) {
    let Some(out) = child(test, key, body) else { return };
    print!("{}", String::from_utf8_lossy(&out.stdout));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn runtimes() {
    in_child("runtimes", "build", || {
        each_failed_making("build a runtime", &|| (), &|made| small().build().map(|rt| _ = keep(made, rt)));
        // Counted out each time: the handlers are what they were.
        assert!(!softfault_platform::trap::chain::is_installed(softfault_platform::trap::on_signal));
    });
    in_child("runtimes", "swap", || {
        let swap = std::env::temp_dir();
        let build = || small().swap(&swap, 1 << 20).zswap(1 << 20).build();
        each_failed_making("build a runtime that swaps", &|| (), &|made| build().map(|rt| _ = keep(made, rt)));
    });
}

#[test]
fn objects_and_arenas() {
    in_children("objects_and_arenas", "", &common::MODES, |mode| {
        let file = TempFile::new(16 * PAGE);
        // The first of its runtime, so that the cache, the contexts and the threads behind them are made, too.
        let rt = RefCell::new(None::<Runtime>);
        let ready = || {
            drop(rt.take());
            rt.replace(Some(small().build().expect("runtime")));
        };
        ready();
        if !rt.borrow().as_ref().expect("made").delivery().is_available(mode) {
            println!("{mode:?} skipped");
            return;
        }
        each_failed_making(&format!("the first object and arena over {mode:?}"), &ready, &|made| {
            let rt = rt.borrow().clone().expect("made");
            let object = keep(made, rt.open_file(file.path())?);
            keep(made, rt.object(EXTENT as u64).huge_pages(true).anonymous()?);
            let arena = keep(made, rt.arena(EXTENT).delivery(mode).build()?);
            arena.map(0, &object, 0, 16 * PAGE, Prot::Read, Sharing::Shared)?;
            let _ = arena.fault_in(0..PAGE, Access::Read);
            Ok(())
        });
    });
}

/// A map that fails because the process may have no mapping more leaves the lists of all objects as they were.
#[test]
fn a_full_table_of_mappings() {
    in_child("a_full_table_of_mappings", "map", || {
        for mode in common::MODES {
            let rt = quiet();
            if !rt.delivery().is_available(mode) {
                continue;
            }
            let w = World::new(&rt, mode, true);
            let filled = fill_the_table();
            let r = w.arena.map(16 * PAGE, &w.object, 0, 16 * PAGE, Prot::ReadWrite, Sharing::Shared);
            assert!(matches!(r, Err(Error::Exhausted { .. })), "{r:?}");
            let len = BYSTANDER_PAGES * PAGE;
            let r = w.arena.map(16 * PAGE, &w.other.object, 0, len, Prot::ReadWrite, Sharing::Shared);
            assert!(matches!(r, Err(Error::Exhausted { .. })), "{r:?}");
            drop(filled);
            w.other.check(&format!("{mode:?}"));
            w.map_whole(Prot::ReadWrite, Sharing::Shared);
            w.same("mapped", (0..PAGES).step_by(17));
            println!("{mode:?}: ok");
        }
    });
}
