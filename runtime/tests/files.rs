//! Files that others use at the same time: what they append, cut, lock and open is theirs.
#![allow(unsafe_code, reason = "system calls that the standard library has no words for")]

mod common;

use common::{PAGE, TempFile, child, each_mode, ended, map, same, store};
use softfault::{Error, Prot, Runtime, Sharing};
use std::fs::{File, OpenOptions};
use std::io::Write;

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
            store(&arena, 15 * PAGE, 42).expect("store");
            store(&arena, 9, 43).expect("store");
            File::options().write(true).open(file.path()).expect("open").set_len(PAGE as u64).expect("truncate");
            let r = object.sync_all();
            let named =
                matches!(&r, Err(Error::Writeback { range, .. }) if *range == (15 * PAGE as u64..16 * PAGE as u64));
            assert!(named, "{mode:?}, direct {direct}: {r:?}");
            assert_eq!(len_of(&file), PAGE as u64, "{mode:?}, direct {direct}: the end is not ours");
            assert_eq!(
                std::fs::read(file.path()).expect("read")[9],
                43,
                "{mode:?}: what lies before the end was written"
            );
            // The program says that the file is to be as long again: then it is.
            object.set_len(0).expect("cut");
            object.set_len(16 * PAGE as u64).expect("grow");
            object.write_at(15 * PAGE as u64, &[44]).expect("write");
            object.sync_all().expect("sync");
            assert_eq!(std::fs::read(file.path()).expect("read")[15 * PAGE], 44, "{mode:?}");
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
            store(&arena, page * PAGE, 222).expect("store");
        }
        object.write_back(2 * PAGE as u64..4 * PAGE as u64 - 1).expect("write back");
        let bytes = std::fs::read(file.path()).expect("read");
        let written: Vec<_> = (0..8).filter(|p| bytes[p * PAGE] == 222).collect();
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
