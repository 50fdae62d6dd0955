//! Anonymous memory that is larger than the cache: it goes to a swap file, and comes back as it was.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "stores to arenas by address")]

mod common;

use common::{PAGE, arena, bytes, each_mode, map, setup};
use softfault::{Arena, Delivery, Object, Prot, Runtime, RuntimeBuilder, Sharing};

const LIMIT: usize = 2 << 20;
/// Four times the cache.
const PAGES: usize = 4 * LIMIT / PAGE;

fn builder() -> RuntimeBuilder {
    setup();
    Runtime::builder().cache_limit(LIMIT as u64).swap(std::env::temp_dir(), 4 * (PAGES * PAGE) as u64)
}

fn fill(a: &Arena, page: usize, bytes: &[u8]) {
    let dst = a.as_ptr().wrapping_add(page * PAGE);
    // SAFETY: one page inside the arena; nobody else stores to it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), dst, PAGE) };
}

/// Bytes that lz4 cannot make smaller.
fn noise(page: usize, round: u64) -> Vec<u8> {
    let mut x = (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round.wrapping_mul(0x1234_5678_9abc_def1);
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    (0..PAGE / 8).flat_map(|_| next()).collect()
}

/// Bytes that it can.
fn text(page: usize, round: u64) -> Vec<u8> {
    format!("page {page} in round {round}. ").bytes().cycle().take(PAGE).collect()
}

fn memory(rt: &Runtime, mode: Delivery) -> (Object, Arena) {
    let object = rt.anonymous((PAGES * PAGE) as u64).expect("anonymous");
    let a = arena(rt, mode, PAGES * PAGE);
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    (object, a)
}

fn check(what: &str, a: &Arena, page: usize, want: &[u8]) {
    common::same(&format!("{what}: page {page}"), &bytes(a, page * PAGE..(page + 1) * PAGE), want);
}

#[test]
fn four_times_the_cache_comes_back_identical() {
    each_mode("swap", |_, mode| {
        for zswap in [0, 1 << 20] {
            let builder = if zswap > 0 { builder().zswap(zswap) } else { builder() };
            let rt = builder.build().expect("runtime");
            let (object, a) = memory(&rt, mode);
            let what = format!("{mode:?}, zswap {zswap}");
            for round in 0..2 {
                for p in 0..PAGES {
                    fill(&a, p, &if p % 2 == 0 { noise(p, round) } else { text(p, round) });
                }
                for p in (0..PAGES).rev() {
                    check(&what, &a, p, &if p % 2 == 0 { noise(p, round) } else { text(p, round) });
                }
            }
            let stats = rt.stats();
            assert!(stats.get("nr_cached_pages") <= (LIMIT / PAGE) as u64, "{stats}");
            assert!(stats.get("pswpin") > 0 && stats.get("nr_swap_slots_used") > 0, "{what}: {stats}");
            assert!(zswap == 0 || stats.get("zswap_stored_pages") > 0, "{what}: {stats}");
            drop((a, object));
            assert_eq!(rt.stats().get("nr_swap_slots_used"), 0, "{what}: slots are given back");
        }
    });
}

#[test]
fn pages_of_zeros_cost_no_io() {
    each_mode("zeros", |_, mode| {
        let rt = builder().build().expect("runtime");
        let (_object, a) = memory(&rt, mode);
        let zeros = vec![0; PAGE];
        for round in 0..2 {
            (0..PAGES).for_each(|p| fill(&a, p, &zeros));
            (0..PAGES).for_each(|p| check(&format!("{mode:?} {round}"), &a, p, &zeros));
        }
        let stats = rt.stats();
        assert!(stats.get("swpout_zero") > 0 && stats.get("pgsteal") > 0, "{stats}");
        assert_eq!((stats.get("pswpin"), stats.get("nr_swap_slots_used")), (0, 0), "{stats}");
    });
}

#[test]
fn what_lz4_makes_small_costs_no_io() {
    each_mode("zswap", |_, mode| {
        let rt = builder().zswap((PAGES * PAGE) as u64).build().expect("runtime");
        let (_object, a) = memory(&rt, mode);
        (0..PAGES).for_each(|p| fill(&a, p, &text(p, 1)));
        (0..PAGES).for_each(|p| check(&format!("{mode:?}"), &a, p, &text(p, 1)));
        let stats = rt.stats();
        assert!(stats.get("zswap_stored_pages") > 0, "{stats}");
        assert_eq!((stats.get("pswpin"), stats.get("nr_swap_slots_used")), (0, 0), "{stats}");
    });
}

#[test]
fn threads_and_private_clones_of_swapped_memory() {
    each_mode("swap_threads", |_, mode| {
        let rt = builder().build().expect("runtime");
        let (object, a) = memory(&rt, mode);
        std::thread::scope(|s| {
            for t in 0..4usize {
                let a = &a;
                s.spawn(move || {
                    for round in 0..2u64 {
                        for p in (t..PAGES).step_by(4) {
                            fill(a, p, &noise(p, round));
                        }
                        for p in (t..PAGES).step_by(4) {
                            check(&format!("{mode:?} {round}"), a, p, &noise(p, round));
                        }
                    }
                });
            }
        });
        let c = arena(&rt, mode, PAGES * PAGE);
        map(&c, 0, &object, Prot::ReadWrite, Sharing::Private);
        for p in (0..PAGES).step_by(7) {
            fill(&c, p, &text(p, 9));
        }
        for p in 0..PAGES {
            let own = p % 7 == 0;
            check(&format!("{mode:?}, a clone"), &c, p, &if own { text(p, 9) } else { noise(p, 1) });
            check(&format!("{mode:?}, the memory"), &a, p, &noise(p, 1));
        }
    });
}

#[test]
fn a_full_swap_file_is_out_of_memory_and_loses_nothing() {
    // One way is enough: being out of memory takes seconds.
    let mode = Delivery::Auto;
    setup();
    // Room for the cache and a half of it more.
    let swap = (LIMIT / 2) as u64;
    let rt = Runtime::builder().cache_limit(LIMIT as u64).swap(std::env::temp_dir(), swap).build().expect("runtime");
    let (object, a) = memory(&rt, mode);
    let mut there = 0;
    for p in 0..PAGES {
        if common::store(&a, p * PAGE, 1).is_err() {
            break;
        }
        there = p + 1;
        if object.write_at((p * PAGE) as u64, &noise(p, 3)).is_err() {
            break;
        }
    }
    assert!((LIMIT / PAGE..PAGES).contains(&there), "{mode:?}: {there} pages fit");
    // To read what went out something has to go, or there must be more room. The last page may be half written.
    rt.set_cache_limit(2 * LIMIT as u64);
    (0..there - 1).for_each(|p| {
        let mut got = vec![0; PAGE];
        object.read_at((p * PAGE) as u64, &mut got).expect("read_at");
        common::same(&format!("{mode:?}: page {p}"), &got, &noise(p, 3));
    });
}
