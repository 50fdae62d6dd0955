//! Objects that are much larger than what is touched of them: a sync costs with what was touched.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets")]

mod common;

use common::{EXTENT, PAGE, TempFile, arena, each_mode, load, map, store, until};
use softfault::{Object, Prot, Runtime, Sharing};
use std::os::unix::fs::FileExt;
use std::time::Duration;

const CHUNK_PAGES: u64 = (EXTENT / PAGE) as u64;
/// Larger than any memory, and in the cache's 1 TiB beside other objects.
const LEN: u64 = 256 << 30;
const HOUR: Duration = Duration::from_secs(3600);

/// A file of holes.
fn sparse(rt: &Runtime) -> (TempFile, Object) {
    let file = TempFile::new(0);
    let plain = std::fs::OpenOptions::new().write(true).open(file.path()).expect("open");
    plain.set_len(LEN).expect("a file of holes");
    let object = rt.file_options().writable(true).open(file.path()).expect("object");
    (file, object)
}

/// Syncs, and returns how many pages that looked at.
fn scanned(rt: &Runtime, object: &Object) -> u64 {
    let looked = || rt.stats()["writeback_scan_pages"];
    let before = looked();
    object.sync_all().expect("sync_all");
    looked() - before
}

#[test]
fn a_sync_looks_at_the_chunks_that_were_touched() {
    each_mode("touched", |rt, mode| {
        let (file, object) = sparse(rt);
        let a = arena(rt, mode, LEN as usize);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let at = [0, LEN / 3, LEN - PAGE as u64];
        for (i, pos) in (1u8..).zip(at) {
            assert_eq!(store(&a, pos as usize, i), Ok(()));
        }
        let looked = scanned(rt, &object);
        assert!((1..=3 * CHUNK_PAGES).contains(&looked), "{looked} pages looked at for three");
        let plain = std::fs::File::open(file.path()).expect("open");
        for (i, pos) in (1u8..).zip(at) {
            let mut got = [0];
            plain.read_exact_at(&mut got, pos).expect("read");
            assert_eq!(got, [i], "the byte at {pos:#x} is durable");
            assert_eq!(load(&a, pos as usize), Ok(i));
        }
        assert!((3..3 * CHUNK_PAGES).contains(&object.cached_pages()), "a count over the chunks in use");
    });
}

/// What streamed through the cache and was flushed is looked at no more, and what comes back is.
#[test]
fn a_sync_forgets_chunks_that_have_left_the_cache() {
    common::setup();
    let rt =
        Runtime::builder().cache_limit(4 << 20).writeback(HOUR, HOUR).fill_window_pages(1).build().expect("runtime");
    let (file, object) = sparse(&rt);
    let nr_chunks = 256u64;
    for chunk in 0..nr_chunks {
        object.write_at(chunk * EXTENT as u64, &[7; PAGE]).expect("write_at");
        object.write_at(chunk * EXTENT as u64 + 9 * PAGE as u64, &[7; PAGE]).expect("write_at");
    }
    object.sync_all().expect("sync_all");
    until("all but a few pages have left", || {
        object.evict(0..LEN).expect("evict");
        object.cached_pages() == 0
    });
    assert!(scanned(&rt, &object) <= nr_chunks * CHUNK_PAGES, "at most what was touched");
    assert_eq!(scanned(&rt, &object), 0, "nothing is cached, and nothing owed");
    object.write_at(5 * EXTENT as u64, &[8]).expect("write_at");
    assert_eq!(scanned(&rt, &object), CHUNK_PAGES, "one chunk is in use again");
    let mut got = [0];
    std::fs::File::open(file.path()).expect("open").read_exact_at(&mut got, 5 * EXTENT as u64).expect("read");
    assert_eq!(got, [8]);
}
