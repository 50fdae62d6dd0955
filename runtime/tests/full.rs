//! A full or failing store harms its own object only: others of the same runtime are read and written meanwhile, through a
//! cache that is smaller than either.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{EXTENT, PAGE, StopOnDrop, TempFile, arena, byte_of, each_mode, load, map, store};
use softfault::{
    Arena, Errno, Error, FillError, Object, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError, VmFaultReason,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const LIMIT: usize = 256;
const NR: usize = 1024;

/// Takes nothing while this is not 0.
#[derive(Debug)]
struct Full(Arc<AtomicI32>);

impl Store for Full {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let first = pos_bytes;
        (first..).zip(page.as_mut_slice()).for_each(|(at, b)| *b = byte_of(1, at));
        Ok(())
    }
    fn write(&self, _pos_bytes: u64, _pages: &PageRef<'_>) -> Result<(), StoreError> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(StoreError::Io(Errno(errno))),
        }
    }
    fn write_blocks(&self) -> bool {
        true
    }
}

/// Reads and writes the healthy object until it is told to stop; nothing may fail. Counts how often it did so with all of it.
fn live(healthy: &Object, a: &Arena, stop: &AtomicBool, nr_rounds: &AtomicUsize) {
    let mut rounds = 0;
    let mut buf = vec![0u8; PAGE];
    while !stop.load(Ordering::Relaxed) {
        for p in 0..NR {
            let at = (p * PAGE) as u64;
            match rounds % 4 {
                0 => assert_eq!(load(a, p * PAGE + 9), Ok(buf_of(healthy, &mut buf, at)), "page {p}"),
                1 => assert_eq!(healthy.write_at(at + 100, &[rounds as u8; 8]).expect("a write"), 8),
                2 => assert_eq!(store(a, p * PAGE + 200, rounds as u8), Ok(()), "page {p}"),
                _ => _ = healthy.read_at(at, &mut buf).expect("a read"),
            }
        }
        rounds += 1;
        nr_rounds.store(rounds, Ordering::Relaxed);
    }
}

fn buf_of(object: &Object, buf: &mut [u8], at: u64) -> u8 {
    object.read_at(at, buf).expect("a read");
    buf[9]
}

/// Writes page after page by calls and by stores, until `until` says so of how many were refused, each by `errno`; returns
/// that number.
fn fill(ill: &Object, a: Option<&Arena>, errno: Errno, until: &dyn Fn(usize) -> bool) -> usize {
    let mut refused = 0;
    for p in (0..NR).cycle() {
        if until(refused) {
            break;
        }
        match ill.write_at((p * PAGE) as u64, &[3; 16]) {
            Ok(_) => {}
            Err(Error::Fault { cause, reason, .. }) => {
                assert_eq!(cause, Some(FillError::Io(errno)), "{reason:?}");
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
        // A touch: through, or a signal.
        let _ = a.map(|a| store(a, p * PAGE + 7, 3));
    }
    refused
}

/// `ours`: the ill object is stored to through this arena, too.
fn both_live(rt: &Runtime, (ill, ours): (&Object, Option<&Arena>), (healthy, theirs): (&Object, &Arena), errno: Errno) {
    let (stop, rounds, began) = (AtomicBool::new(false), AtomicUsize::new(0), Instant::now());
    std::thread::scope(|s| {
        let _stop = StopOnDrop(&stop);
        let lives = s.spawn(|| live(healthy, theirs, &stop, &rounds));
        let refused = fill(ill, ours, errno, &|refused| {
            let rounds = rounds.load(Ordering::Relaxed);
            assert!(began.elapsed() < Duration::from_secs(60), "{refused} refused, {rounds} rounds: somebody hangs");
            lives.is_finished() || refused >= 100 && rounds >= 4 && began.elapsed() > Duration::from_millis(300)
        });
        stop.store(true, Ordering::Relaxed);
        lives.join().expect("the healthy object lives");
        let rounds = rounds.load(Ordering::Relaxed);
        let stats = rt.stats();
        println!(
            "{refused} refused, {rounds} rounds; {} stuck of {}",
            stats["nr_dirty_stuck"], stats["nr_cached_pages"]
        );
    });
    let stats = rt.stats();
    // What may be dirty before it is known that the store fails, 40 in a hundred, room to read by, which may be stored to
    // without a word, and what threads had in hand.
    assert!(stats["nr_dirty_stuck"] <= LIMIT as u64 * 5 / 8, "{} pages are stuck\n{stats}", stats["nr_dirty_stuck"]);
    assert_eq!(stats.reason(VmFaultReason::OOM), 0, "nobody is out of memory\n{stats}");
    healthy.sync_all().expect("the healthy object is synced");
    match ill.sync_all() {
        Err(Error::Writeback { error: FillError::Io(e), .. }) => assert_eq!(e, errno),
        other => panic!("{other:?}"),
    }
    // It can be read, all of it; who stores through a mapping may make pages dirty that are there to be read by.
    for p in 0..if ours.is_none() { NR } else { 0 } {
        ill.read_at((p * PAGE) as u64, &mut [0; 16]).expect("a read of what the full store has");
    }
    // Deterministic where the above is a matter of luck: twice its share of dirty pages is what it may have of the cache in all, though nobody else wants more now.
    let (cached, most) = (ill.cached_pages(), 2 * LIMIT as u64 * 40 / 100);
    println!("{cached} pages of the full store's object");
    assert!(ours.is_some() || cached <= most + 8, "it has {cached} pages, and may have {most}\n{}", rt.stats());
}

#[test]
fn a_full_store_harms_its_own_object_only() {
    each_mode("full", |_, mode| {
        let rt = Runtime::builder().cache_limit((LIMIT * PAGE) as u64);
        let rt = rt.writeback(Duration::from_millis(20), Duration::from_millis(100)).build().unwrap();
        let errno = Arc::new(AtomicI32::new(Errno::ENOSPC.0));
        let ill = rt.object((NR * PAGE) as u64).writable(true).label("the full one");
        let ill = ill.store(Box::new(Full(Arc::clone(&errno)))).unwrap();
        let file = TempFile::new(NR * PAGE);
        let healthy = rt.open_file_rw(file.path()).unwrap();
        let (a, b) = (arena(&rt, mode, 2 * EXTENT), arena(&rt, mode, 2 * EXTENT));
        map(&a, 0, &ill, Prot::ReadWrite, Sharing::Shared);
        map(&b, 0, &healthy, Prot::ReadWrite, Sharing::Shared);
        for ours in [None, Some(&a)] {
            both_live(&rt, (&ill, ours), (&healthy, &b), Errno::ENOSPC);
        }
        // There is space again: it heals by itself, and nothing that was taken is lost.
        errno.store(0, Ordering::Relaxed);
        common::until("writers go on", || ill.write_at(0, &[1]).is_ok() && rt.stats()["nr_dirty_stuck"] == 0);
        ill.sync_all().unwrap();
        (0..NR).for_each(|p| assert_eq!(ill.write_at((p * PAGE) as u64, &[2; 4]).expect("space"), 4));
    });
}

/// The same on a real file system without space: as root, on a tmpfs of its own.
#[test]
#[expect(unsafe_code, reason = "mounts a tmpfs")]
fn a_full_tmpfs_harms_its_own_files_only() {
    let dir = std::env::temp_dir().join(format!("softfault-full-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |p: &Path| std::ffi::CString::new(p.to_str().unwrap()).unwrap();
    let (at, opts) = (path(&dir), c"size=1m");
    // SAFETY: strings that live for the call; the folder is the test's own.
    let r = unsafe { libc::mount(c"none".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, opts.as_ptr().cast()) };
    if r != 0 {
        eprintln!("skipped: mounting a tmpfs wants root: {}", std::io::Error::last_os_error());
        std::fs::remove_dir(&dir).unwrap();
        return;
    }
    let result = std::panic::catch_unwind(|| {
        each_mode("tmpfs", |_, mode| {
            let rt = Runtime::builder().cache_limit((LIMIT * PAGE) as u64);
            let rt = rt.writeback(Duration::from_millis(20), Duration::from_millis(100)).build().unwrap();
            let sparse = dir.join("sparse");
            std::fs::File::create(&sparse).unwrap().set_len((NR * PAGE) as u64).unwrap();
            let file = TempFile::new(NR * PAGE);
            let (ill, healthy) = (rt.open_file_rw(&sparse).unwrap(), rt.open_file_rw(file.path()).unwrap());
            let (a, b) = (arena(&rt, mode, 2 * EXTENT), arena(&rt, mode, 2 * EXTENT));
            map(&a, 0, &ill, Prot::ReadWrite, Sharing::Shared);
            map(&b, 0, &healthy, Prot::ReadWrite, Sharing::Shared);
            for ours in [None, Some(&a)] {
                both_live(&rt, (&ill, ours), (&healthy, &b), Errno::ENOSPC);
            }
            let words = ill.sync_all().unwrap_err().to_string();
            assert!(words.contains("No space left") && words.contains("sparse"), "{words}");
            std::fs::remove_file(&sparse).unwrap();
        });
    });
    // SAFETY: as above.
    let r = unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    assert_eq!(r, 0, "umount2: {}", std::io::Error::last_os_error());
    std::fs::remove_dir(&dir).unwrap();
    result.unwrap_or_else(|e| std::panic::resume_unwind(e));
}

/// What is in the way is in the words.
#[test]
fn an_oom_says_what_is_in_the_way() {
    common::setup();
    let rt = Runtime::builder().cache_limit((LIMIT * PAGE) as u64).build().unwrap();
    let file = TempFile::new(NR * PAGE);
    let object = rt.open_file(file.path()).unwrap();
    let a = rt.arena(2 * EXTENT).build().unwrap();
    map(&a, 0, &object, Prot::Read, Sharing::Shared);
    let anonymous = rt.anonymous((NR * PAGE) as u64).unwrap();
    (0..96).for_each(|p| _ = anonymous.write_at((p * PAGE) as u64, &[1]).unwrap());
    let pin = a.pin(0..(LIMIT - 96) * PAGE, softfault::Access::Read).unwrap();
    let before = rt.stats().reason(VmFaultReason::OOM);
    let error = object.read_at((NR - 1) as u64 * PAGE as u64, &mut [0; 4]).unwrap_err();
    let Error::Fault { cause: Some(FillError::CacheFull), in_the_way: Some(why), .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((why.pinned_pages, why.unswappable_pages, why.failing_pages), ((LIMIT - 96) as u64, 96, 0), "{error}");
    assert_eq!(why.limit_bytes, (LIMIT * PAGE) as u64);
    let words = error.to_string();
    assert!(words.contains("160 are pinned") && words.contains("without a swap file"), "{words}");
    assert_eq!(rt.stats().reason(VmFaultReason::OOM), before + 1, "counted");
    drop(pin);
    let mut buf = [0; 4];
    object.read_at((NR - 1) as u64 * PAGE as u64, &mut buf).unwrap();
    common::same("afterwards", &buf, &std::fs::read(file.path()).unwrap()[(NR - 1) * PAGE..][..4]);
}
