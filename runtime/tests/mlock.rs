//! Memory that the kernel may not take: pins, and a cache that is locked whole.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "system calls on arena memory")]

mod common;

use common::{
    EXTENT, PAGE, TempFile, arena, child, each_mode, each_userfaultfd, ended, evict, knob_object, load, map, serial,
};
use softfault::{Access, Arena, Delivery, Error, Object, Pin, Prot, Runtime, Sharing};

/// write(2) from memory by address into a pipe; the number of bytes, or errno.
fn sys_write(at: *const u8, len: usize) -> Result<usize, i32> {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors into an array of two.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: arena memory of which no reference exists; the kernel checks the address.
    let n = unsafe { libc::write(ends[1], at.cast(), len) };
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    for fd in ends {
        // SAFETY: opened above.
        unsafe { libc::close(fd) };
    }
    usize::try_from(n).map_err(|_| errno)
}

/// MADV_PAGEOUT: the kernel takes what it can, swap or not.
fn page_out(a: &Arena) {
    // SAFETY: the advice changes no byte.
    unsafe { libc::madvise(a.as_ptr().cast(), a.len(), libc::MADV_PAGEOUT) };
}

/// The bytes that the process has locked in memory, by the kernel's count.
fn locked_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let kib =
        status.lines().find_map(|l| l.strip_prefix("VmLck:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.expect("VmLck") << 10
}

fn maps() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("maps").lines().count()
}

/// Each page of a pin can be given to the kernel.
#[track_caller]
fn holds(what: &str, pin: &Pin) {
    for at in (0..pin.len()).step_by(PAGE) {
        assert_eq!(sys_write(pin.as_ptr().wrapping_add(at), 64), Ok(64), "{what}: page {} of the pin", at / PAGE);
    }
}

/// A file whose pages only the arena maps, over 4 MiB: shared at 0, a private copy of it behind.
fn world(rt: &Runtime, mode: Delivery) -> (TempFile, Object, Arena) {
    let file = TempFile::new(2 * EXTENT);
    let object = rt.open_file_rw(file.path()).expect("open");
    // The kernel would serve an extent that was handed to it, whatever is gone of it.
    let a = rt.arena(4 * EXTENT).delivery(mode).native_extents(false).build().expect("arena");
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    map(&a, 2 * EXTENT, &object, Prot::ReadWrite, Sharing::Private);
    (file, object, a)
}

/// What the others prove something against.
#[test]
fn what_is_not_pinned_is_taken() {
    let _serial = serial();
    each_userfaultfd("taken", |rt, mode| {
        let (_file, _object, a) = world(rt, mode);
        (0..256).for_each(|page| assert!(load(&a, page * PAGE).is_ok()));
        page_out(&a);
        let is_gone = |page: &usize| sys_write(a.as_ptr().wrapping_add(page * PAGE), 8) == Err(libc::EFAULT);
        let gone = (0..256).filter(is_gone).count();
        println!("taken: {gone} of 256 pages, which MADV_PAGEOUT unmapped");
        if gone == 0 {
            println!("taken: this kernel takes nothing on request: pins prove little here");
        }
    });
}

#[test]
fn a_pin_holds_when_the_kernel_takes_pages_out() {
    let _serial = serial();
    each_mode("pageout", |rt, mode| {
        let (_file, _object, a) = world(rt, mode);
        for (what, base) in [("shared", 0), ("private", 2 * EXTENT)] {
            for access in [Access::Read, Access::Write] {
                let from = base + 16 * PAGE;
                let pin = a.pin(from..from + 16 * PAGE, access).unwrap();
                assert!(pin.is_locked(), "{mode:?} {what} {access:?}: nothing forbids the lock");
                for _ in 0..3 {
                    page_out(&a);
                    holds(&format!("{mode:?} {what} {access:?}"), &pin);
                }
            }
        }
    });
}

#[test]
fn a_pin_of_an_exclusive_object_holds() {
    let _serial = serial();
    each_userfaultfd("exclusive", |rt, mode| {
        if mode != Delivery::InThread {
            return;
        }
        let file = TempFile::new(2 * EXTENT);
        let options = rt.file_options().writable(true).with(|o| o.exclusive(true));
        let object = options.open(file.path()).expect("open");
        let a = arena(rt, mode, 2 * EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        let before = locked_bytes();
        let pin = a.pin(16 * PAGE..32 * PAGE, Access::Write).unwrap();
        assert!(pin.is_locked());
        assert_eq!(locked_bytes() - before, 16 * PAGE as u64);
        page_out(&a);
        holds("exclusive", &pin);
        // Neighbours on both sides are filled and leave as ever, by runs that end at the locked range.
        for page in (0..512).filter(|p| !(16..32).contains(p)) {
            assert_eq!(load(&a, page * PAGE + 5), Ok(file.data[page * PAGE + 5]));
        }
        assert_eq!(object.evict(0..EXTENT as u64).unwrap(), 512 - 16, "everything but what is pinned");
        holds("its neighbours are gone", &pin);
        drop(pin);
        assert_eq!(locked_bytes(), before);
        assert_eq!(object.evict(0..EXTENT as u64).unwrap(), 16);
    });
}

#[test]
fn the_last_of_overlapping_pins_unlocks() {
    let _serial = serial();
    each_mode("overlapping", |rt, mode| {
        let (_file, _object, a) = world(rt, mode);
        a.fault_in(0..4 * EXTENT, Access::Read).unwrap();
        for base in [0, 2 * EXTENT] {
            let (before, maps_before) = (locked_bytes(), maps());
            let pages = |from: usize, to: usize| base + from * PAGE..base + to * PAGE;
            // Every order of dropping three that overlap in 20..30 and touch a fourth.
            for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
                let ranges = [pages(10, 30), pages(20, 40), pages(20, 30), pages(40, 50)];
                let mut pins: Vec<_> = ranges.iter().map(|r| Some(a.pin(r.clone(), Access::Read).unwrap())).collect();
                assert_eq!(
                    locked_bytes() - before,
                    40 * PAGE as u64,
                    "{mode:?}: pages that are pinned twice count once"
                );
                assert_eq!(rt.stats().get("process_mlock_pages"), Some(40));
                for i in order {
                    pins[i] = None;
                    let left: std::collections::BTreeSet<_> = ranges
                        .iter()
                        .zip(&pins)
                        .filter(|(_, p)| p.is_some())
                        .flat_map(|(r, _)| r.clone().step_by(PAGE))
                        .collect();
                    let what = format!("{mode:?} {order:?} without {i}");
                    assert_eq!(locked_bytes() - before, (left.len() * PAGE) as u64, "{what}: locked");
                    page_out(&a);
                    pins.iter().flatten().for_each(|pin| holds(&what, pin));
                }
                assert_eq!(locked_bytes(), before, "{mode:?} {order:?}: everything is unlocked");
                assert_eq!(rt.stats().get("process_mlock_pages"), Some(0));
            }
            assert!(maps() <= maps_before + 2, "{mode:?}: mappings join again");
        }
    });
}

/// What isolated pins cost of the process's mappings is given back, and so is the budget.
#[test]
fn pins_are_charged_to_the_budget_of_mappings() {
    let _serial = serial();
    each_mode("budget", |rt, mode| {
        let (_file, _object, a) = world(rt, mode);
        let left = || rt.stats().get("vma_budget_left");
        let before = left().unwrap();
        let pins: Vec<_> = (0..20).map(|i| a.pin(8 * i * PAGE..(8 * i + 1) * PAGE, Access::Read).unwrap()).collect();
        assert_eq!(left(), Some(before - 40), "{mode:?}");
        drop(pins);
        assert_eq!(left(), Some(before), "{mode:?}");
    });
}

/// A pin whose pages cannot be had leaves nothing locked.
#[test]
fn a_pin_that_fails_locks_nothing() {
    let _serial = serial();
    each_mode("fails", |rt, mode| {
        let (object, knobs) = knob_object(rt, 8 * PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        map(&a, 8 * PAGE, &object, Prot::Read, Sharing::Shared);
        knobs.fail(5, 1);
        let before = locked_bytes();
        assert!(matches!(a.pin(0..16 * PAGE, Access::Read), Err(Error::Fault { .. })));
        assert!(matches!(a.pin(0..16 * PAGE, Access::Write), Err(Error::Denied { .. })));
        assert_eq!(locked_bytes(), before, "{mode:?}");
        a.unmap(0..EXTENT).unwrap();
    });
}

/// Makes the process one that may lock no more than `bytes`, whatever it was.
fn become_nobody(bytes: u64) {
    common::limit(libc::RLIMIT_MEMLOCK, bytes);
    // SAFETY: the process gives up what it may; it is a child made for this.
    if unsafe { libc::geteuid() } == 0 {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
    }
}

fn has_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").expect("swaps").lines().count() > 1
}

#[test]
fn a_limit_that_forbids_the_lock() {
    let _serial = serial();
    for mode in ["InThread", "Segv"] {
        let out = child("a_limit_that_forbids_the_lock", mode, || {
            let rt = common::runtime();
            let mode = if mode == "Segv" { Delivery::Segv } else { Delivery::InThread };
            if !rt.delivery().is_available(mode) {
                println!("limit skipped: {}", rt.delivery());
                return;
            }
            let (_file, _object, a) = world(&rt, mode);
            become_nobody(16 * PAGE as u64);
            for base in [0, 2 * EXTENT] {
                let fits = a.pin(base..base + 16 * PAGE, Access::Read).unwrap();
                assert!(fits.is_locked(), "sixteen pages may be locked");
                let more = a.pin(base + 100 * PAGE..base + 101 * PAGE, Access::Read);
                match more {
                    Err(e @ Error::Limit { needed, limit, .. }) => {
                        assert!(has_swap(), "refused where nothing is swapped: {e}");
                        assert_eq!((needed, limit), (17 * PAGE as u64, 16 * PAGE as u64));
                        assert!(e.to_string().contains("RLIMIT_MEMLOCK"), "{e}");
                        println!("limit: refused");
                    }
                    Ok(pin) => {
                        assert!(!has_swap() && !pin.is_locked(), "swap: {}", has_swap());
                        holds("unlocked, and nothing takes it", &pin);
                        println!("limit: unlocked");
                    }
                    Err(e) => panic!("{e}"),
                }
                // What did not fit has left nothing behind.
                drop(fits);
                let again = a.pin(base + 100 * PAGE..base + 116 * PAGE, Access::Read).unwrap();
                assert!(again.is_locked());
                assert_eq!(locked_bytes(), 16 * PAGE as u64);
                drop(again);
                // Of a range with locked pages in its middle the first part fits, and the second does not: neither stays.
                let middle = a.pin(base + 4 * PAGE..base + 6 * PAGE, Access::Read).unwrap();
                let around = a.pin(base..base + 20 * PAGE, Access::Read);
                assert!(around.as_ref().map_or(true, |pin| !pin.is_locked()), "20 pages are locked");
                assert_eq!(locked_bytes(), 2 * PAGE as u64, "the part that fitted is locked still");
                drop((around, middle));
                assert_eq!(locked_bytes(), 0);
            }
        });
        print!("{}", ended(out, Ok(0)));
    }
}

fn locked_runtime() -> Runtime {
    common::setup();
    Runtime::builder().lock_cache(true).cache_limit(8 << 20).build().expect("runtime")
}

#[test]
fn a_cache_that_is_locked_stays() {
    let _serial = serial();
    // Only root, or a large limit, can lock what the tests map.
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one structure of ours.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) }, 0);
    // SAFETY: no memory is touched.
    if unsafe { libc::geteuid() } != 0 && limit.rlim_cur < 64 << 20 {
        println!("locked skipped: RLIMIT_MEMLOCK is {}, and this is not root", limit.rlim_cur);
        return;
    }
    for mode in common::MODES {
        let rt = locked_runtime();
        if !rt.delivery().is_available(mode) {
            println!("locked: {mode:?} skipped: {}", rt.delivery());
            continue;
        }
        let before = locked_bytes();
        let (file, object, a) = world(&rt, mode);
        assert_eq!(locked_bytes() - before, 2 * EXTENT as u64, "{mode:?}: the object's range");
        for page in 0..1024 {
            assert_eq!(load(&a, page * PAGE + 3), Ok(file.data[page * PAGE + 3]));
        }
        // Nothing is pinned: the entries stay because the pages do.
        page_out(&a);
        for page in 0..1024 {
            assert_eq!(sys_write(a.as_ptr().wrapping_add(page * PAGE), 8), Ok(8), "{mode:?}: page {page}");
        }
        let pin = a.pin(0..8 * PAGE, Access::Write).unwrap();
        assert!(pin.is_locked());
        drop(pin);
        assert_eq!(locked_bytes() - before, 2 * EXTENT as u64, "{mode:?}: a pin does not unlock it");
        page_out(&a);
        holds("after a pin", &a.pin(0..8 * PAGE, Access::Read).unwrap());
        // It leaves by our own limit all the same.
        common::evict_whole(&object);
        assert_eq!(load(&a, 5), Ok(file.data[5]));
        drop((object, a));
        common::until("the object's range is unlocked", || locked_bytes() == before);
        println!("locked: {mode:?} ok");
    }
}

#[test]
fn a_locked_exclusive_object_is_moved_as_ever() {
    let _serial = serial();
    // SAFETY: no memory is touched.
    if unsafe { libc::geteuid() } != 0 {
        println!("locked exclusive skipped: not root, and the pool alone is 8 MiB");
        return;
    }
    let rt = locked_runtime();
    if !rt.delivery().is_available(Delivery::InThread) {
        println!("locked exclusive skipped: {}", rt.delivery());
        return;
    }
    let file = TempFile::new(2 * EXTENT);
    let options = rt.file_options().writable(true).with(|o| o.exclusive(true));
    let object = options.open(file.path()).expect("open");
    let a = arena(&rt, Delivery::InThread, 2 * EXTENT);
    let before = locked_bytes();
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
    // Else its pages would be copied there, which looks the same: a MOVE wants both sides locked, or none.
    assert_eq!(locked_bytes() - before, 2 * EXTENT as u64, "the arena's range is locked as the pool of frames is");
    for round in 0..2 {
        for page in 0..1024 {
            assert_eq!(load(&a, page * PAGE + 3), Ok(file.data[page * PAGE + 3]), "round {round}");
        }
        // One that the kernel looks at for a moment goes the next time.
        evict(&object, 0..object.len(), 1024);
        println!("locked exclusive: round {round}");
    }
}

#[test]
fn a_limit_that_forbids_a_locked_cache() {
    let _serial = serial();
    let out = child("a_limit_that_forbids_a_locked_cache", "limit", || {
        let rt = locked_runtime();
        become_nobody(EXTENT as u64);
        let fits = rt.anonymous(EXTENT as u64).expect("one chunk may be locked");
        match rt.anonymous(EXTENT as u64) {
            Err(Error::Limit { needed, limit, .. }) => {
                assert_eq!((needed, limit), (2 * EXTENT as u64, EXTENT as u64));
            }
            r => panic!("{r:?}"),
        }
        drop(fits);
        rt.anonymous(EXTENT as u64).expect("the chunk again, and nothing was left of the refused one");
    });
    ended(out, Ok(0));
}
