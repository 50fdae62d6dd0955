//! A cache of fixed size below objects that are larger: how much memory there is at any moment, and that nothing is lost.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "stores to arenas by address, and an unaligned one by its own instruction")]

mod common;
mod disk;

use common::{EXTENT, PAGE, Rng, StopOnDrop, arena, load, map, serial, setup, store, until};
use disk::{Behaviour, Disk, VolatileStore};
use softfault::{
    Access, Arena, Delivery, Error, HandlerStore, Object, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError,
    VmFaultReason,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const BUS: i32 = libc::SIGBUS;
const HOUR: Duration = Duration::from_secs(3600);
/// How far memory may go above the limit.
const SLACK: u64 = 32 << 20;
const THREADS: usize = 8;

fn builder(limit_bytes: usize) -> softfault::RuntimeBuilder {
    setup();
    Runtime::builder().cache_limit(limit_bytes as u64)
}

/// A store in a file without a name, so that it is not memory of ours; callable in a handler.
#[derive(Debug)]
struct Scratch(std::fs::File);

impl Scratch {
    fn new(len: u64) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let n = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("softfault-bounded-{}-{n}", std::process::id()));
        let options = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
        let file = options.expect("scratch file");
        std::fs::remove_file(&path).expect("unlink");
        file.set_len(len).expect("set_len");
        Self(file)
    }
}

impl Store for Scratch {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.fill_from(std::os::fd::AsRawFd::as_raw_fd(&self.0), pos_bytes)
    }
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        pages.write_to(std::os::fd::AsRawFd::as_raw_fd(&self.0), pos_bytes)
    }
}

// SAFETY: pread, pwrite and sendfile alone.
unsafe impl HandlerStore for Scratch {}

fn scratch(rt: &Runtime, len: usize, in_handler: bool) -> Object {
    let store = Box::new(Scratch::new(len as u64));
    let builder = rt.object(len as u64).writable(true);
    if in_handler { builder.handler_store(store) } else { builder.store(store) }.expect("object")
}

/// Anonymous memory of this process, in bytes.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

/// Looks every millisecond how much memory there is.
struct Sampler<'a> {
    rt: &'a Runtime,
    baseline: u64,
    most: AtomicU64,
    samples: AtomicU64,
}

impl<'a> Sampler<'a> {
    fn new(rt: &'a Runtime) -> Self {
        Self { rt, baseline: anonymous_bytes(), most: AtomicU64::new(0), samples: AtomicU64::new(0) }
    }
    fn run(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let now = self.rt.stats().get("cache_bytes_allocated") + anonymous_bytes().saturating_sub(self.baseline);
            self.most.fetch_max(now, Ordering::Relaxed);
            self.samples.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A number in each page, at a place of its own; `None`: the page is not what was written.
fn word_at(a: &Arena, page: usize) -> *mut u64 {
    a.as_ptr().wrapping_add(page * PAGE + (page * 104) % (PAGE - 8) / 8 * 8).cast()
}
fn get(a: &Arena, page: usize) -> u64 {
    // SAFETY: inside the arena; aligned.
    unsafe { word_at(a, page).read_volatile() }
}
fn put(a: &Arena, page: usize, value: u64) {
    // SAFETY: inside the arena; aligned.
    unsafe { word_at(a, page).write_volatile(value) };
}

/// Scans and random writes by 8 threads, each over its own pages of one object; everything is compared.
fn scan_and_write(rt: &Runtime, mode: Delivery, object: &Object, pages: usize, writes: usize) {
    let model: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(0)).collect();
    let a = arena(rt, mode, pages * PAGE);
    map(&a, 0, object, Prot::ReadWrite, Sharing::Shared);
    let see = |p: usize| {
        let want = model[p].load(Ordering::Relaxed);
        assert_eq!(get(&a, p), want, "{mode:?}: page {p}");
    };
    std::thread::scope(|s| {
        for t in 0..THREADS {
            let (a, model, see) = (&a, &model, &see);
            s.spawn(move || {
                let mut rng = Rng(t as u64 * 31 + 7);
                let own = |i: usize| i * THREADS + t;
                for w in 0..writes {
                    let p = own(rng.below(pages / THREADS));
                    see(p);
                    let value = (t * writes + w + 1) as u64;
                    put(a, p, value);
                    model[p].store(value, Ordering::Relaxed);
                }
                (0..pages / THREADS).for_each(|i| see(own(i)));
            });
        }
    });
    object.sync_all().expect("sync_all");
    // Another mapping, whose page tables know nothing.
    drop(a);
    let b = arena(rt, mode, pages * PAGE);
    map(&b, 0, object, Prot::Read, Sharing::Shared);
    (0..pages).for_each(|p| assert_eq!(get(&b, p), model[p].load(Ordering::Relaxed), "{mode:?}: page {p} afterwards"));
}

#[test]
fn memory_stays_within_the_limit() {
    let _serial = serial();
    common::each_mode("within", |_, mode| {
        for in_handler in [true, false] {
            // The larger one takes minutes without optimisation.
            let limit = if cfg!(debug_assertions) { 4 << 20 } else { 16 << 20 };
            let rt = builder(limit).build().expect("runtime");
            let object = scratch(&rt, 16 * limit, in_handler);
            let (sampler, stop) = (Sampler::new(&rt), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| sampler.run(&stop));
                let _stopper = StopOnDrop(&stop);
                scan_and_write(&rt, mode, &object, 16 * limit / PAGE, if in_handler { 1_000 } else { 200 });
            });
            let (most, samples) = (sampler.most.into_inner(), sampler.samples.into_inner());
            let stats = rt.stats();
            println!("{mode:?}, {in_handler}: at most {} KiB in {samples} samples", most >> 10);
            assert!(most <= limit as u64 + SLACK, "{mode:?}: {most} bytes, the limit is {limit}");
            assert!(stats.get("nr_cached_pages") <= (limit / PAGE) as u64, "{stats}");
            assert!(stats.get("pgsteal") > 0 && stats.get("pgpgout") > 0, "{stats}");
        }
    });
}

#[test]
fn the_limit_moves_both_ways() {
    let _serial = serial();
    common::each_mode("moves", |_, mode| {
        let rt = builder(8 << 20).build().expect("runtime");
        let pages = (16 << 20) / PAGE;
        let object = scratch(&rt, pages * PAGE, true);
        let a = arena(&rt, mode, pages * PAGE);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        (0..pages).for_each(|p| put(&a, p, p as u64 + 1));
        assert!(rt.stats().get("nr_cached_pages") <= 2048);
        rt.set_cache_limit(1 << 20);
        // By itself, though nobody touches anything.
        until("the cache shrinks", || rt.stats().get("nr_cached_pages") <= 256);
        until("the memory goes", || rt.stats().get("cache_bytes_allocated") <= 1 << 20);
        (0..pages).for_each(|p| assert_eq!(get(&a, p), p as u64 + 1, "{mode:?}: page {p}"));
        assert!(rt.stats().get("nr_cached_pages") <= 256);
        rt.set_cache_limit(64 << 20);
        (0..pages).for_each(|p| assert_eq!(get(&a, p), p as u64 + 1, "{mode:?}: page {p}"));
        let stolen = rt.stats().get("pgsteal");
        (0..pages).for_each(|p| assert_eq!(get(&a, p), p as u64 + 1, "{mode:?}: page {p}"));
        assert_eq!(rt.stats().get("pgsteal"), stolen, "there is room for everything");
        assert_eq!(object.cached_pages(), pages as u64);
    });
}

#[test]
fn what_is_held_or_pinned_is_out_of_memory_and_nothing_else() {
    let _serial = serial();
    common::each_mode("oom", |_, mode| {
        let rt = builder(64 * PAGE).writeback(HOUR, HOUR).fill_window_pages(1).build().expect("runtime");
        let disk = Disk::new(&vec![7; 256 * PAGE], Behaviour::default());
        let store_of = Box::new(VolatileStore(Arc::clone(&disk)));
        let object = rt.object((256 * PAGE) as u64).writable(true).store(store_of).expect("object");
        let a = arena(&rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let held = object.hold_dirty(0..(32 * PAGE) as u64).expect("hold");
        (0..32).for_each(|p| assert_eq!(store(&a, p * PAGE, p as u8), Ok(())));
        let pin = a.pin(32 * PAGE..64 * PAGE, Access::Write).expect("pin");
        assert_eq!(load(&a, 100 * PAGE), Err(BUS), "{mode:?}: there is no room");
        let denied = object.read_at((100 * PAGE) as u64, &mut [0; 8]);
        let oom = |reason: &VmFaultReason| reason.contains(VmFaultReason::OOM);
        assert!(matches!(&denied, Err(Error::Fault { reason, .. }) if oom(reason)), "{mode:?}: {denied:?}");
        let written = disk.events().iter().any(|e| matches!(e, disk::Event::Write(..)));
        assert!(!written, "{mode:?}: held or pinned pages were written under pressure");
        drop(pin);
        assert_eq!(load(&a, 100 * PAGE), Ok(7), "{mode:?}: room again");
        drop(held);
        (64..256).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(7), "{mode:?}: page {p}"));
        (0..32).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(p as u8), "{mode:?}: page {p} was held"));
        assert!(object.cached_pages() <= 64);
    });
}

/// Stores eight bytes across the border of two pages by one instruction.
fn straddle(a: &Arena, border: usize, value: u64) {
    let at = a.as_ptr().wrapping_add(border - 4);
    // SAFETY: inside the arena, one store of eight bytes, unaligned.
    unsafe { std::arch::asm!("mov [{0}], {1}", in(reg) at, in(reg) value, options(nostack, preserves_flags)) };
}

/// Copies within the arena by one instruction that touches both sides, page after page.
fn rep_movsb(a: &Arena, from: usize, to: usize, len: usize) {
    let (src, dst) = (a.as_ptr().wrapping_add(from), a.as_ptr().wrapping_add(to));
    // SAFETY: both ranges lie in the arena and do not overlap.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") src => _, inout("rdi") dst => _,
            options(nostack, preserves_flags));
    }
}

#[test]
fn everybody_gets_on_in_the_smallest_cache() {
    let _serial = serial();
    common::each_mode("smallest", |_, mode| {
        for in_handler in [true, false] {
            let rt = builder(64 * PAGE).build().expect("runtime");
            let per_thread = 64;
            let pages = THREADS * per_thread;
            let object = scratch(&rt, pages * PAGE, in_handler);
            let a = arena(&rt, mode, pages * PAGE);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            std::thread::scope(|s| {
                for t in 0..THREADS {
                    let a = &a;
                    s.spawn(move || {
                        let first = t * per_thread;
                        let mut rng = Rng(t as u64 + 1);
                        for round in 1..=if in_handler { 60u64 } else { 15 } {
                            // Sixteen scattered pages, one after the other and over again.
                            let some: Vec<_> = (0..16).map(|i| first + i * 4).collect();
                            for p in &some {
                                assert_eq!(get(a, *p), round - 1, "{mode:?}: page {p}");
                                put(a, *p, round);
                            }
                            for _ in 0..16 {
                                let p = some[rng.below(16)];
                                assert_eq!(get(a, p), round, "{mode:?}: page {p}");
                            }
                            // Two pages by one instruction: both must be there at once.
                            let border = (first + 2) * PAGE;
                            straddle(a, border, round | round << 32);
                            let got = common::bytes(a, border - 4..border + 4);
                            assert_eq!(got, (round | round << 32).to_le_bytes(), "{mode:?}: across a border");
                            rep_movsb(a, border - 4, (first + 7) * PAGE - 4, 8);
                            let got = common::bytes(a, (first + 7) * PAGE - 4..(first + 7) * PAGE + 4);
                            assert_eq!(got, (round | round << 32).to_le_bytes(), "{mode:?}: copied");
                        }
                    });
                }
            });
            assert!(rt.stats().get("nr_cached_pages") <= 64);
        }
    });
}

#[test]
fn private_clones_shared_writers_promotion_and_reclaim() {
    let _serial = serial();
    common::each_mode("together", |_, mode| {
        let rt = builder(3 * EXTENT).writeback(Duration::from_millis(5), Duration::from_millis(5)).build().expect("rt");
        let pages = 4 * EXTENT / PAGE;
        let object = scratch(&rt, pages * PAGE, true);
        let [a, b, c] = [(); 3].map(|()| arena(&rt, mode, pages * PAGE));
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        map(&b, 0, &object, Prot::ReadWrite, Sharing::Shared);
        map(&c, 0, &object, Prot::ReadWrite, Sharing::Private);
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            let (a, b, c, object, stop) = (&a, &b, &c, &object, &stop);
            // Each page has one writer, and its number only grows.
            let writers: Vec<_> = [(a, 0usize), (b, 1)]
                .into_iter()
                .map(|(arena, t)| {
                    s.spawn(move || {
                        let mut rng = Rng(t as u64 + 5);
                        let mut model = vec![0u64; pages];
                        for round in 1..4_000u64 {
                            let p = rng.below(pages / 2) * 2 + t;
                            assert_eq!(get(arena, p), model[p], "{mode:?}: page {p}");
                            put(arena, p, round);
                            model[p] = round;
                        }
                        (0..pages).filter(|p| p % 2 == t).for_each(|p| {
                            assert_eq!(get(if t == 0 { b } else { a }, p), model[p], "{mode:?}: page {p} elsewhere");
                        });
                    })
                })
                .collect();
            s.spawn(move || {
                // Private pages: what was stored stays, whatever happens to the page below.
                let mut rng = Rng(9);
                let mut model = std::collections::BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let p = rng.below(pages);
                    if let Some(value) = model.get(&p) {
                        assert_eq!(get(c, p), *value, "{mode:?}: private page {p}");
                    } else if model.len() < 300 {
                        put(c, p, !(p as u64));
                        model.insert(p, !(p as u64));
                    } else {
                        let value = get(c, p);
                        assert!(value < 4_000, "{mode:?}: {value:#x} in page {p}, which nobody wrote");
                    }
                }
            });
            s.spawn(move || {
                let mut rng = Rng(77);
                while !stop.load(Ordering::Relaxed) {
                    let extent = rng.below(4) * EXTENT;
                    let range = extent as u64..(extent + EXTENT) as u64;
                    match rng.below(5) {
                        0 => drop(object.populate(range)),
                        1 => drop(a.promote(extent..extent + EXTENT)),
                        2 => drop(c.promote(extent..extent + EXTENT)),
                        3 => drop(object.evict(range)),
                        _ => drop(object.sync(range)),
                    }
                }
            });
            let _stopper = StopOnDrop(stop);
            for w in writers {
                w.join().expect("a writer");
            }
        });
        assert!(rt.stats().get("pgsteal") > 0);
    });
}

#[test]
fn pages_that_came_and_went_many_times_are_still_reclaimed() {
    let _serial = serial();
    common::each_mode("came_and_went", |_, mode| {
        let rt = builder(64 * PAGE).build().expect("runtime");
        let object = scratch(&rt, 128 * PAGE, true);
        let a = arena(&rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        // Far from the limit, so that nobody reclaims; each life of a page has an entry in a queue.
        for _ in 0..300 {
            object.populate(0..(32 * PAGE) as u64).expect("populate");
            object.evict(0..(32 * PAGE) as u64).expect("evict");
        }
        (0..128).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(0), "{mode:?}: page {p}"));
    });
}

#[test]
fn the_default_limit_is_a_share_of_what_there_is() {
    setup();
    let rt = Runtime::new().expect("runtime");
    let limit = rt.stats().get("nr_cache_limit_pages") * PAGE as u64;
    let info = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let total = info.lines().find_map(|l| l.strip_prefix("MemTotal:")).expect("MemTotal");
    let machine = total.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10;
    assert!(limit >= 64 << 20 && limit <= machine / 2 + PAGE as u64, "{limit} of {machine}");
}
