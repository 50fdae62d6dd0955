//! Pins: ranges that system calls may use while everything else goes on around and below them.
#![allow(unsafe_code, reason = "system calls on arena memory")]

mod common;

use common::{EXTENT, PAGE, TempFile, arena, byte_of, each_mode, each_of, knob_object, load, map, runtime, store};
use softfault::{Access, Arena, Delivery, Error, Object, Prot, Runtime, Sharing};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// read(2) into memory by address; the number of bytes, or errno.
fn sys_read(fd: i32, at: *mut u8, len: usize) -> Result<usize, i32> {
    // SAFETY: arena memory of which no reference exists; the kernel checks the address.
    usize::try_from(unsafe { libc::read(fd, at.cast(), len) }).map_err(|_| errno())
}

/// write(2) from memory by address.
fn sys_write(fd: i32, at: *const u8, len: usize) -> Result<usize, i32> {
    // SAFETY: as above.
    usize::try_from(unsafe { libc::write(fd, at.cast(), len) }).map_err(|_| errno())
}

/// FUTEX_WAIT on a word that has another value: EAGAIN where the kernel can read it.
fn sys_futex(at: *mut u8) -> i32 {
    // SAFETY: as above; it does not sleep.
    unsafe { libc::syscall(libc::SYS_futex, at, libc::FUTEX_WAIT, 0x7777_7777u32, std::ptr::null::<libc::timespec>()) };
    errno()
}

fn open(path: &str, flags: i32) -> OwnedFd {
    let path = std::ffi::CString::new(path).unwrap();
    // SAFETY: a valid C string.
    let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
    assert!(fd >= 0, "{path:?}: {}", std::io::Error::last_os_error());
    // SAFETY: a descriptor that was opened a line above.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// An arena with 4 MiB of a writable object at 0, of a read-only one at 4 MiB, and a private copy at 8 MiB.
fn mixed(rt: &Runtime, mode: Delivery) -> (Arena, Object, Object) {
    let knobs = std::sync::Arc::new(common::Knobs::default());
    let len = 2 * EXTENT as u64;
    let writable = rt.object(len).writable(true).handler_store(Box::new(common::KnobStore(knobs))).unwrap();
    let (read_only, _) = knob_object(rt, len, true);
    let a = arena(rt, mode, 6 * EXTENT);
    map(&a, 0, &writable, Prot::ReadWrite, Sharing::Shared);
    map(&a, 2 * EXTENT, &read_only, Prot::Read, Sharing::Shared);
    map(&a, 4 * EXTENT, &read_only, Prot::ReadWrite, Sharing::Private);
    (a, writable, read_only)
}

#[test]
fn a_million_system_calls_on_pinned_pages_while_everything_moves() {
    let zero = open("/dev/zero", libc::O_RDONLY);
    let null = open("/dev/null", libc::O_WRONLY);
    each_mode("million", |rt, mode| {
        let (a, writable, read_only) = mixed(rt, mode);
        let (in_page, out_page, copy_page) = (3 * PAGE, 2 * EXTENT + 700 * PAGE, 4 * EXTENT + 5 * PAGE);
        let pins = [
            a.pin(in_page..in_page + PAGE, Access::Write).unwrap(),
            a.pin(out_page..out_page + PAGE, Access::Read).unwrap(),
            a.pin(copy_page..copy_page + PAGE, Access::Write).unwrap(),
        ];
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut rng = common::Rng(3);
                while !stop.load(Ordering::Relaxed) {
                    // Around the pins, and over them where that must be refused.
                    let _ = a.zap(0..3 * PAGE);
                    let _ = a.zap(4 * PAGE..EXTENT);
                    assert!(matches!(a.zap(0..EXTENT), Err(Error::Pinned { .. })));
                    let _ = a.zap(2 * EXTENT..2 * EXTENT + 600 * PAGE);
                    writable.populate(0..writable.len()).unwrap();
                    read_only.populate(0..read_only.len()).unwrap();
                    a.promote(0..6 * EXTENT).unwrap();
                    for _ in 0..200 {
                        let _ = load(&a, rng.below(6 * EXTENT));
                    }
                    for _ in 0..20 {
                        let _ = store(&a, rng.below(EXTENT) / PAGE * PAGE + 2048, 1);
                    }
                    a.demote(0..6 * EXTENT).unwrap();
                    read_only.evict(0..read_only.len()).unwrap();
                    writable.evict(0..writable.len()).unwrap();
                }
            });
            let stopper = common::StopOnDrop(&stop);
            // 333,334 calls a mode, three modes: a million in total.
            for i in 0..111_112usize {
                let at = i % 1000;
                assert_eq!(sys_read(zero.as_raw_fd(), pins[0].as_ptr().wrapping_add(at), 64), Ok(64), "{mode:?} {i}");
                let (from, want) = if i % 2 == 0 { (&pins[1], 64) } else { (&pins[2], 64) };
                assert_eq!(sys_write(null.as_raw_fd(), from.as_ptr().wrapping_add(at), 64), Ok(want), "{mode:?} {i}");
                assert_eq!(sys_futex(pins[i % 3].as_ptr()), libc::EAGAIN, "{mode:?} {i}");
            }
            drop(stopper);
        });
        let want = byte_of(0, 700 * PAGE as u64 + 9);
        assert_eq!(load(&a, out_page + 9), Ok(want), "the pinned page is what it was");
    });
}

#[test]
fn a_pipe_moves_real_bytes_through_pinned_pages() {
    each_mode("pipe", |rt, mode| {
        let (a, writable, _) = mixed(rt, mode);
        let pin = a.pin(0..2 * PAGE, Access::Write).unwrap();
        let from = a.pin(2 * EXTENT..2 * EXTENT + 2 * PAGE, Access::Read).unwrap();
        assert_eq!((pin.len(), pin.is_empty()), (2 * PAGE, false));
        let mut ends = [0; 2];
        // SAFETY: writes two descriptors into an array of two.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        assert_eq!(sys_write(ends[1], from.as_ptr(), 2 * PAGE), Ok(2 * PAGE));
        assert_eq!(sys_read(ends[0], pin.as_ptr(), 2 * PAGE), Ok(2 * PAGE));
        let mut got = vec![0; 2 * PAGE];
        writable.read_at(0, &mut got).unwrap();
        common::same("what read(2) put there", &got, &common::content(0, 0..2 * PAGE as u64));
        for fd in ends {
            // SAFETY: opened above.
            unsafe { libc::close(fd) };
        }
    });
}

#[test]
fn without_a_pin() {
    let zero = open("/dev/zero", libc::O_RDONLY);
    each_mode("no_pin", |rt, mode| {
        let (a, _, _) = mixed(rt, mode);
        let got = sys_read(zero.as_raw_fd(), a.as_ptr(), 64);
        // A system call cannot raise a signal; a monitor serves it.
        let want = if mode == Delivery::Monitor { Ok(64) } else { Err(libc::EFAULT) };
        assert_eq!(got, want, "{mode:?}");
        a.fault_in(0..PAGE, Access::Write).unwrap();
        assert_eq!(sys_read(zero.as_raw_fd(), a.as_ptr(), 64), Ok(64), "{mode:?}: resident for now");
    });
    each_of("kernel_access", &[Delivery::Segv], |rt, _| {
        let Ok(a) = rt.arena(EXTENT).kernel_access(true).build() else {
            println!("kernel_access skipped: {}", rt.delivery());
            return;
        };
        let (object, _) = knob_object(rt, EXTENT as u64, false);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        let null = open("/dev/null", libc::O_WRONLY);
        let mut ends = [0; 2];
        // SAFETY: writes two descriptors into an array of two.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        assert_eq!(
            sys_write(ends[1], a.as_ptr().wrapping_add(100), 4 * PAGE),
            Ok(4 * PAGE),
            "four pages from the store"
        );
        drop(null);
    });
}

#[test]
fn a_pinned_range_is_not_unmapped_zapped_or_protected() {
    each_mode("refused", |rt, mode| {
        let (a, writable, _) = mixed(rt, mode);
        let pin = a.pin(5 * PAGE..7 * PAGE, Access::Read).unwrap();
        let refused =
            |r: softfault::Result<()>| matches!(r, Err(Error::Pinned { range, .. }) if range == (5 * PAGE..7 * PAGE));
        assert!(refused(a.unmap(0..EXTENT)) && refused(a.unmap(6 * PAGE..7 * PAGE)));
        assert!(refused(a.zap(0..6 * PAGE)) && refused(a.protect(0..6 * PAGE, Prot::None)));
        a.unmap(0..5 * PAGE).unwrap();
        a.unmap(7 * PAGE..8 * PAGE).unwrap();
        assert_eq!(load(&a, 5 * PAGE), Ok(byte_of(0, 5 * PAGE as u64)));
        // A pin that fails leaves those that hold as they are, also of the very same range.
        a.protect(10 * PAGE..12 * PAGE, Prot::Read).unwrap();
        let holds = a.pin(10 * PAGE..12 * PAGE, Access::Read).unwrap();
        assert!(matches!(a.pin(10 * PAGE..12 * PAGE, Access::Write), Err(Error::Denied { .. })));
        assert!(
            matches!(a.unmap(10 * PAGE..12 * PAGE), Err(Error::Pinned { .. })),
            "{mode:?}: another's pin was dropped"
        );
        let twice = a.pin(5 * PAGE..7 * PAGE, Access::Write).unwrap();
        drop(pin);
        assert!(refused(a.unmap(5 * PAGE..7 * PAGE)), "pinned twice");
        drop((twice, holds));
        a.unmap(0..2 * EXTENT).unwrap();
        assert!(matches!(a.pin(0..PAGE, Access::Read), Err(Error::NotMapped { .. })));
        assert!(matches!(a.pin(1..PAGE, Access::Read), Err(Error::Argument { arg: "range.start", .. })));
        drop(writable);
    });
}

#[test]
fn a_pin_of_a_page_that_cannot_be_had() {
    each_mode("pin_fails", |rt, mode| {
        let (object, knobs) = knob_object(rt, 8 * PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        knobs.fail(5, 1);
        let r = a.pin(0..8 * PAGE, Access::Read);
        assert!(matches!(&r, Err(Error::Fault { offset, .. }) if *offset == 5 * PAGE as u64), "{r:?}");
        let cached = object.cached_pages();
        common::evict(&object, 0..object.len(), cached);
        a.unmap(0..EXTENT).unwrap();
    });
}

/// Whether the kernel can write to the pinned page at `at`.
#[track_caller]
fn still_good(what: &str, mode: Delivery, pin: &softfault::Pin) {
    let zero = open("/dev/zero", libc::O_RDONLY);
    assert_eq!(sys_read(zero.as_raw_fd(), pin.as_ptr(), 64), Ok(64), "{mode:?}: {what}");
}

#[test]
fn a_pin_outlives_what_happens_to_its_neighbours() {
    // The Monitor would serve what the pin should have kept: these look at the other two.
    each_of("neighbours", &[Delivery::InThread, Delivery::Segv], |rt, mode| {
        let (a, _, read_only) = mixed(rt, mode);
        let pin = a.pin(0..PAGE, Access::Write).unwrap();
        assert_eq!(load(&a, 100 * PAGE), Ok(byte_of(0, 100 * PAGE as u64)));
        still_good("a load elsewhere in the granule", mode, &pin);
        store(&a, 101 * PAGE, 1).unwrap();
        still_good("a store elsewhere in the granule", mode, &pin);
        let copy = a.pin(4 * EXTENT..4 * EXTENT + PAGE, Access::Write).unwrap();
        let _ = load(&a, 4 * EXTENT + 100 * PAGE);
        still_good("a load elsewhere in a private granule", mode, &copy);
        read_only.evict(0..read_only.len()).unwrap();
        still_good("eviction of the neighbours", mode, &copy);
    });
}

#[test]
fn a_pin_of_a_native_extent_outlives_its_demotion() {
    common::each_userfaultfd("native", |rt, mode| {
        let (a, writable, read_only) = mixed(rt, mode);
        let null = open("/dev/null", libc::O_WRONLY);
        writable.populate(0..writable.len()).unwrap();
        read_only.populate(0..read_only.len()).unwrap();
        assert_eq!(a.promote(0..4 * EXTENT).unwrap(), 4);
        let pin = a.pin(7 * PAGE..8 * PAGE, Access::Write).unwrap();
        let from = a.pin(2 * EXTENT + 9 * PAGE..2 * EXTENT + 10 * PAGE, Access::Read).unwrap();
        assert_eq!(a.demote(0..4 * EXTENT).unwrap(), 4);
        still_good("the extent was native when it was pinned", mode, &pin);
        let _ = null;
        let mut ends = [0; 2];
        // SAFETY: writes two descriptors into an array of two.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        assert_eq!(sys_write(ends[1], from.as_ptr(), 64), Ok(64), "{mode:?}");
    });
}

#[test]
fn direct_io_into_pinned_pages() {
    let file = TempFile::new(16 * PAGE);
    let path = file.path.to_str().unwrap();
    let c_path = std::ffi::CString::new(path).unwrap();
    // SAFETY: a valid C string.
    let fd = unsafe { libc::open(c_path.as_ptr(), libc::O_RDONLY | libc::O_DIRECT | libc::O_CLOEXEC) };
    if fd < 0 {
        println!("direct_io skipped: O_DIRECT on {path}: {}", std::io::Error::last_os_error());
        return;
    }
    // SAFETY: opened above.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    each_mode("direct_io", |rt, mode| {
        let (a, writable, _) = mixed(rt, mode);
        let pin = a.pin(0..4 * PAGE, Access::Write).unwrap();
        for round in 0..50i64 {
            let page = round % 12;
            // SAFETY: moves the descriptor's offset.
            unsafe { libc::lseek(fd.as_raw_fd(), page * 4096, libc::SEEK_SET) };
            match sys_read(fd.as_raw_fd(), pin.as_ptr(), 4 * PAGE) {
                Err(libc::EINVAL) => return println!("direct_io skipped: the file system refuses it"),
                got => assert_eq!(got, Ok(4 * PAGE), "{mode:?} round {round}"),
            }
            let mut got = vec![0; 4 * PAGE];
            writable.read_at(0, &mut got).unwrap();
            let from = usize::try_from(page).unwrap() * PAGE;
            common::same("what the device wrote", &got, &file.data[from..from + 4 * PAGE]);
        }
    });
}

#[test]
fn a_runtime_is_kept_by_its_pins() {
    let rt = runtime();
    let (object, _) = knob_object(&rt, 4 * PAGE as u64, true);
    let a = rt.arena(EXTENT).build().unwrap();
    map(&a, 0, &object, Prot::Read, Sharing::Shared);
    let pin = a.pin(0..PAGE, Access::Read).unwrap();
    drop((rt, object, a));
    assert_eq!(common::load_at(pin.as_ptr() as usize + 2), Ok(byte_of(0, 2)));
}
