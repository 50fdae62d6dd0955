//! Which pages the cache gives up, on the real kernel: real faults, counted. `benches/replacement --live` has the figures
//! over more traces; what is asserted here leaves room for a background reclaimer that comes early or late.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{KnobStore, Knobs, PAGE, Rng, load, same, setup};
use softfault::{Arena, Delivery, Object, Prot, Runtime, Sharing};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Pages of the cache.
const LIMIT: usize = 1024;

/// A runtime with a small cache, an object that is filled and mapped page by page, and mappings of it, one after the other.
struct Cache {
    rt: Runtime,
    object: Object,
    arena: Arena,
}

/// Makes one, or says why there is none.
fn cache(limit: usize, nr_pages: usize, sharing: Sharing, nr_maps: usize) -> Option<Cache> {
    setup();
    let rt = Runtime::builder().cache_limit((limit * PAGE) as u64).build().expect("runtime");
    if let Some(finding) = rt.delivery().finding(Delivery::InThread).filter(|f| !f.available) {
        println!("skipped: {}", finding.why);
        return None;
    }
    let len = nr_pages * PAGE;
    let store = Box::new(KnobStore(Arc::new(Knobs::default())));
    let object = rt.object(len as u64).fill_window_pages(1).handler_store(store).expect("object");
    let arena = rt.arena(nr_maps * len).delivery(Delivery::InThread).fault_around(false).native_extents(false);
    let arena = arena.build().expect("arena");
    for i in 0..nr_maps {
        arena.map(i * len, &object, 0, len, Prot::Read, sharing).expect("map");
    }
    Some(Cache { rt, object, arena })
}

impl Cache {
    /// Loads a byte of a page; returns whether it was cached before.
    fn touch(&self, page: usize) -> bool {
        let hit = self.object.is_cached((page * PAGE) as u64);
        assert_eq!(load(&self.arena, page * PAGE + 9), Ok(common::byte_of(0, (page * PAGE + 9) as u64)), "page {page}");
        hit
    }

    /// Returns whether the page can be touched without a fault; see proc_pid_pagemap(5).
    fn is_mapped(&self, pagemap: &File, page: usize) -> bool {
        let mut entry = [0; 8];
        let at = (self.arena.as_ptr() as usize / PAGE + page) * 8;
        pagemap.read_exact_at(&mut entry, at as u64).expect("pagemap");
        u64::from_le_bytes(entry) >> 63 != 0
    }

    fn stat(&self, name: &str) -> usize {
        self.rt.stats()[name] as usize
    }
}

#[test]
fn a_hot_set_survives_a_scan_of_ten_caches() {
    let hot = LIMIT * 6 / 10;
    let scan = 14 * LIMIT;
    let Some(c) = cache(LIMIT, hot + scan, Sharing::Shared, 1) else { return };
    let mut rng = Rng(7);
    let (mut missed, mut touched) = (0, 0);
    for i in 0..scan {
        let hit = c.touch(rng.below(hot));
        // The first four caches of the scan are what the hot set proves itself against.
        if i >= 4 * LIMIT {
            touched += 1;
            missed += usize::from(!hit);
        }
        c.touch(hot + i);
    }
    // LRU misses two in five.
    println!("{missed} of {touched} hot touches found their page gone");
    assert!(missed * 20 < touched, "a scan of ten caches cost {missed} of {touched} hot touches their page");
}

#[test]
fn a_hot_page_is_asked_once_in_a_pass_over_the_cache() {
    let hot = 16;
    let others = LIMIT * 3 / 2;
    let Some(c) = cache(LIMIT, hot + others, Sharing::Shared, 1) else { return };
    let mut rng = Rng(11);
    for _ in 0..4 * LIMIT {
        c.touch(rng.below(hot));
        c.touch(hot + rng.below(others));
    }
    let mut asked = vec![0; hot];
    let mut main_min = usize::MAX;
    let before = c.stat("pgdeactivate");
    let pagemap = File::open("/proc/self/pagemap").expect("pagemap");
    for i in 0..16 * LIMIT {
        let page = i % hot;
        asked[page] += usize::from(!c.is_mapped(&pagemap, page));
        assert!(c.touch(page), "hot page {page} was given up");
        if i % 64 == 0 {
            main_min = main_min.min(c.stat("nr_active"));
        }
        c.touch(hot + rng.below(others));
    }
    let unmapped = c.stat("pgdeactivate") - before;
    // Whoever is unmapped twice was overtaken by all of main in between. A batch is out of the queue while it is unmapped.
    // And main's length is looked at every 64 touches.
    let passes = unmapped / main_min.saturating_sub(2 * 64).max(1);
    let (least, most) = (asked.iter().copied().min().unwrap_or(0), asked.iter().copied().max().unwrap_or(0));
    println!("{asked:?} minor faults in {passes} passes at most, {unmapped} pages unmapped, main {main_min} or longer");
    assert!(main_min > LIMIT / 2, "most pages proved themselves, and main has {main_min}");
    assert!(most > 0, "main was never asked, though {unmapped} pages were unmapped");
    // A page that is unmapped between the look and the touch is asked unseen.
    assert!(most - least <= 2, "in each pass every hot page is asked once: {asked:?}");
    assert!(most <= passes + 1, "a hot page was asked {most} times in {passes} passes");
}

#[test]
fn a_loop_longer_than_the_cache_keeps_a_part_of_itself() {
    let period = LIMIT * 11 / 10;
    let Some(c) = cache(LIMIT, period, Sharing::Shared, 1) else { return };
    (0..12).for_each(|_| (0..period).for_each(|p| _ = c.touch(p)));
    let hits: usize = (0..12).map(|_| (0..period).filter(|p| c.touch(*p)).count()).sum();
    // LRU and FIFO have none, the optimum 91 percent.
    assert!(hits * 3 > 12 * period, "{hits} hits of {}", 12 * period);
}

#[test]
fn with_many_mappings_pages_leave_by_blocks() {
    const BLOCK: usize = 64;
    // Large enough that a batch is a block.
    let limit = 4 * LIMIT;
    let nr_pages = limit * 7 / 8;
    let maps = 12;
    let Some(c) = cache(limit, limit, Sharing::Private, maps) else { return };
    // Filled in an order that scatters neighbours over the queue.
    (0..nr_pages).for_each(|i| _ = c.touch(i * 37 % nr_pages));
    for map in 0..maps {
        let mut got = vec![0; PAGE];
        c.arena.read_at(map * limit * PAGE, &mut got).expect("read");
        same("a mapping", &got, &common::content(0, 0..PAGE as u64));
    }
    c.rt.set_cache_limit((limit / 2 * PAGE) as u64);
    while c.stat("nr_cached_pages") > limit / 2 {
        std::thread::yield_now();
    }
    c.rt.set_cache_limit(u64::MAX);
    let cached = |block: usize| (0..BLOCK).filter(|i| c.object.is_cached(((block * BLOCK + i) * PAGE) as u64)).count();
    let blocks: Vec<_> = (0..nr_pages / BLOCK).map(cached).collect();
    let cut = blocks.iter().filter(|n| **n > 0 && **n < BLOCK).count();
    assert!(cut <= 2, "blocks were taken apart; pages left in each: {blocks:?}");
    for map in 0..maps {
        (0..nr_pages).for_each(|p| {
            let at = (map * limit + p) * PAGE;
            assert_eq!(load(&c.arena, at), Ok(common::byte_of(0, (p * PAGE) as u64)), "mapping {map}, page {p}");
        });
    }
}
