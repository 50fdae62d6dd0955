//! A thousand sessions of one image in one process: each is touched, stored to, reclaimed and checked, and what none of them has
//! stored to is in memory once.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets")]

mod common;

use common::{PAGE, load_at, setup, store_at};
use softfault::image::{Codec, Prot, Region, Writer};
use softfault::{Delivery, Restore, Runtime, Session};

const CLONES: usize = 1000;
/// The image is a gibibyte, of which every 512th page is something.
const PAGES: u64 = 1 << 18;
const STEP: u64 = 512;
/// What the cache may hold: fewer pages than the image has that are something.
const LIMIT_PAGES: u64 = 256;

fn byte_of(page: u64) -> u8 {
    (page / STEP % 250) as u8 + 1
}

/// Returns the bytes of anonymous memory of the process that are resident.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).expect("RssAnon");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number") << 10
}

fn check(session: &Session, clone: usize, is_stored: bool) {
    let base = session.regions()[0].as_ptr() as usize;
    for i in 0..4 {
        let page = ((clone * 4 + i) as u64 * 37 * STEP) % PAGES;
        let address = base + page as usize * PAGE;
        assert_eq!(load_at(address + 1), Ok(byte_of(page)), "clone {clone}, page {page}");
        let want = if is_stored && i < 2 { (clone % 256) as u8 } else { byte_of(page) };
        assert_eq!(load_at(address), Ok(want), "clone {clone}, page {page}: another's store, or none");
        assert_eq!(load_at(address + PAGE), Ok(0), "clone {clone}, the page behind {page}");
    }
}

fn store(session: &Session, clone: usize) {
    for i in 0..2 {
        let page = ((clone * 4 + i) as u64 * 37 * STEP) % PAGES;
        store_at(session.regions()[0].as_ptr() as usize + page as usize * PAGE, (clone % 256) as u8).expect("store");
    }
}

#[test]
fn a_thousand_clones_share_what_they_do_not_store() {
    setup();
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.sfi");
    let mut w = Writer::create(&path, PAGES).expect("create").codec(Codec::Lz4);
    let (prot, len_bytes) = (Prot::READ | Prot::WRITE, PAGES * PAGE as u64);
    w.region(Region { name: "memory".into(), address: 1 << 44, offset: 0, len_bytes, prot }).expect("region");
    for page in (0..PAGES).step_by(STEP as usize) {
        w.write(page, &[byte_of(page); PAGE]).expect("write");
    }
    w.finish().expect("finish");

    let rt = Runtime::builder().cache_limit(LIMIT_PAGES * PAGE as u64).build().expect("runtime");
    let mode = rt.delivery().chosen;
    let image = rt.open_image(&path).expect("open");
    let before = anonymous_bytes();
    let clones: Vec<Session> =
        (0..CLONES).map(|_| Restore::new(&image).arena(move |a| a.delivery(mode)).build().expect("a clone")).collect();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let clones = &clones;
            scope.spawn(move || {
                for (i, clone) in clones.iter().enumerate().skip(part).step_by(4) {
                    check(clone, i, false);
                    store(clone, i);
                }
            });
        }
    });
    // Everything leaves, and comes again.
    image.object().evict(0..u64::MAX).expect("evict");
    clones.iter().enumerate().for_each(|(i, clone)| check(clone, i, true));
    let stats = rt.stats();
    assert!(stats["pgsteal"] > LIMIT_PAGES, "nothing was reclaimed\n{stats}");
    assert!(stats["nr_cached_pages"] <= LIMIT_PAGES, "{stats}");
    if mode != Delivery::Segv {
        // By protection a page that leaves takes its granule along, and comes with it.
        assert!(stats["cache_bytes_allocated"] <= (LIMIT_PAGES + 64) * PAGE as u64, "{stats}");
    }
    // Two pages each are their own. The rest is what the runtime knows of a clone, the image's frames, and what threads take.
    let stored = (CLONES * 2 * PAGE) as u64;
    let more = anonymous_bytes().saturating_sub(before);
    let tables = stats["arena_table_bytes"];
    assert!(more <= stored + tables + (48 << 20), "{more} bytes of anonymous memory, of which {stored} were stored");
    drop(clones);
    assert_eq!(rt.stats()["arena_table_bytes"], 0, "a clone was left");
}
