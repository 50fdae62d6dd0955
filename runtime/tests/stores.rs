//! Files that may be written, files read past the kernel's cache, and swap files, as objects of a runtime.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{EXTENT, PAGE, TempFile, arena, bytes, each_mode, map, same, setup, store};
use softfault::{Error, Prot, Runtime, Sharing};
use std::fs::File;

#[test]
fn a_file_read_directly_is_the_file() {
    // The last page is a partial one.
    let file = TempFile::new(300 * PAGE + 77);
    each_mode("direct", |rt, mode| {
        let fallbacks = rt.stats().get("process_direct_fallbacks");
        let object = rt.file_options().direct(true).open(file.path()).expect("open");
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        same("by loads", &bytes(&a, 0..file.data.len()), &file.data);
        let tail = bytes(&a, file.data.len()..301 * PAGE);
        assert!(tail.iter().all(|b| *b == 0), "behind the end");
        let object = rt.file_options().direct(true).file(&File::open(file.path()).expect("open")).expect("file");
        let mut got = vec![0; file.data.len()];
        assert_eq!(object.read_at(0, &mut got).expect("read_at"), got.len());
        same("by calls", &got, &file.data);
        if rt.stats().get("process_direct_fallbacks") > fallbacks {
            println!("the temporary folder refuses O_DIRECT: it was read through the kernel's cache");
        }
    });
}

#[test]
fn a_file_that_may_be_written_takes_stores() {
    let file = TempFile::new(16 * PAGE);
    each_mode("file_rw", |rt, mode| {
        let opened = File::options().read(true).write(true).open(file.path()).expect("open");
        for object in [rt.open_file_rw(file.path()).expect("open"), rt.file_rw(&opened).expect("file_rw")] {
            let a = arena(rt, mode, EXTENT);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            assert_eq!(store(&a, 5 * PAGE + 3, 0xee), Ok(()));
            let mut got = [0; 2];
            object.read_at(5 * PAGE as u64 + 3, &mut got).expect("read_at");
            assert_eq!(got, [0xee, file.data[5 * PAGE + 4]]);
            object.write_at(9, &[1, 2, 3]).expect("write_at");
            same("by loads", &bytes(&a, 8..13), &[file.data[8], 1, 2, 3, file.data[12]]);
        }
        // Open for reading only: it cannot be an object that is written.
        let opened = File::open(file.path()).expect("open");
        let denied = rt.open_file(file.path()).expect("open").write_at(0, &[1]);
        assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
        assert!(rt.file(&opened).is_ok());
    });
}

#[test]
fn anonymous_memory_over_a_swap_file_begins_as_zeros() {
    setup();
    for zswap in [0, 1 << 20] {
        let builder = Runtime::builder().swap(std::env::temp_dir(), 64 << 20);
        let builder = if zswap > 0 { builder.zswap(zswap) } else { builder };
        let rt = builder.build().expect("runtime");
        assert_eq!(rt.stats().get("nr_swap_slots"), (64 << 20) / PAGE as u64);
        let object = rt.anonymous(EXTENT as u64).expect("anonymous");
        let mode = softfault::Delivery::Auto;
        let a = arena(&rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        assert_eq!(store(&a, 7, 9), Ok(()));
        let mut want = vec![0; EXTENT];
        want[7] = 9;
        same("zeros", &bytes(&a, 0..EXTENT), &want);
        let stats = rt.stats();
        assert!(stats.get("swpin_zero") >= 512, "zswap {zswap}: {stats}");
        assert_eq!((stats.get("pswpin"), stats.get("nr_swap_slots_used")), (0, 0), "no I/O");
    }
}

#[test]
fn a_swap_file_that_cannot_be_is_refused() {
    setup();
    let file = TempFile::new(3 * PAGE);
    let taken = Runtime::builder().swap(file.path(), 1 << 20).build().expect("a file");
    assert_eq!(std::fs::metadata(file.path()).expect("metadata").len(), 1 << 20, "its length");
    let refused = [
        ("too small", Runtime::builder().swap(std::env::temp_dir(), 4095)),
        ("too large", Runtime::builder().swap(std::env::temp_dir(), 1 << 45)),
        ("no file behind it", Runtime::builder().zswap(1 << 20)),
    ];
    for (what, builder) in refused {
        let r = builder.build();
        assert!(matches!(r, Err(Error::Argument { op: "RuntimeBuilder::swap", .. })), "{what}: {r:?}");
    }
    let r = Runtime::builder().swap(file.path(), 1 << 20).build();
    assert!(matches!(r, Err(Error::Io { .. })), "another runtime swaps there: {r:?}");
    drop(taken);
    assert!(Runtime::builder().swap(file.path(), 2 << 20).build().is_ok(), "it is free again");
    let r = Runtime::builder().swap("/nonexistent/swap", 1 << 20).build();
    assert!(matches!(r, Err(Error::Io { .. })), "{r:?}");
}
