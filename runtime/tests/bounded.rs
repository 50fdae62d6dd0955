//! A cache of fixed size below objects that are larger: how much memory there is at any moment, and that nothing is lost.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "stores to arenas by address, and an unaligned one by its own instruction")]

mod common;
mod disk;

use common::{EXTENT, PAGE, Rng, StopOnDrop, arena, load, map, serial, setup, store, until};
use disk::{Behaviour, Disk, VolatileStore};
use softfault::{
    Access, Arena, Delivery, Error, FailurePolicy, HandlerStore, Object, PageMut, PageRef, Prot, Runtime, Sharing,
    Store, StoreError, VmFaultReason,
};
use std::path::{Path, PathBuf};
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
    fn uses_descriptors(&self) -> bool {
        true
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
    /// Bytes of memfds and anonymous memory, at most.
    most: AtomicU64,
    /// Pages charged to the cache, at most.
    most_pages: AtomicU64,
    samples: AtomicU64,
}

impl<'a> Sampler<'a> {
    fn new(rt: &'a Runtime) -> Self {
        let [most, most_pages, samples] = [(); 3].map(|()| AtomicU64::new(0));
        Self { rt, baseline: anonymous_bytes(), most, most_pages, samples }
    }
    fn run(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let stats = self.rt.stats();
            let now = stats["cache_bytes_allocated"] + anonymous_bytes().saturating_sub(self.baseline);
            self.most.fetch_max(now, Ordering::Relaxed);
            self.most_pages.fetch_max(stats["nr_cached_pages"], Ordering::Relaxed);
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

/// What is scanned and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A store that is called in the handler.
    Handler,
    /// One that fillers call.
    Filler,
    /// Anonymous memory that goes to a swap file.
    Swapped,
    /// Pages that lie in the arena alone: anonymous memory to the kernel.
    #[cfg(feature = "userfaultfd")]
    Exclusive,
}

impl Kind {
    const ALL: &[Self] = &[
        Self::Handler,
        Self::Filler,
        Self::Swapped,
        #[cfg(feature = "userfaultfd")]
        Self::Exclusive,
    ];

    fn object(self, rt: &Runtime, len: usize) -> Object {
        match self {
            Self::Handler | Self::Filler => scratch(rt, len, self == Self::Handler),
            Self::Swapped => rt.anonymous(len as u64).expect("anonymous"),
            #[cfg(feature = "userfaultfd")]
            Self::Exclusive => {
                let store = Box::new(Scratch::new(len as u64));
                rt.object(len as u64).writable(true).exclusive(true).handler_store(store).expect("exclusive")
            }
        }
    }
    fn is_exclusive(self) -> bool {
        !matches!(self, Self::Handler | Self::Filler | Self::Swapped)
    }
    fn map(self, rt: &Runtime, mode: Delivery, object: &Object) -> Arena {
        let a = arena(rt, mode, object.len() as usize);
        map(&a, 0, object, Prot::ReadWrite, if self.is_exclusive() { Sharing::Private } else { Sharing::Shared });
        a
    }
}

/// Scans and random writes by 8 threads, each over its own pages of one object; everything is compared.
fn scan_and_write(rt: &Runtime, mode: Delivery, kind: Kind, object: &Object, writes: usize) {
    let pages = object.len() as usize / PAGE;
    let model: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(0)).collect();
    let a = kind.map(rt, mode, object);
    let see = |p: usize| {
        let want = model[p].load(Ordering::Relaxed);
        assert_eq!(get(&a, p), want, "{mode:?}, {kind:?}: page {p}");
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
    let b = kind.map(rt, mode, object);
    (0..pages).for_each(|p| assert_eq!(get(&b, p), model[p].load(Ordering::Relaxed), "{kind:?}: page {p} afterwards"));
}

/// 16 times the limit: 1 MiB in a debug build, 64 MiB in `.ci/release`.
#[test]
fn memory_stays_within_the_limit() {
    let _serial = serial();
    common::each_mode("within", |any, mode| {
        for kind in Kind::ALL {
            // Of the one there is no other; the other takes long, and does not depend on it.
            if kind.is_exclusive() && mode != Delivery::InThread
                || *kind == Kind::Swapped && mode != any.delivery().chosen
            {
                continue;
            }
            let limit = if cfg!(debug_assertions) { 1 << 20 } else { 64 << 20 };
            let rt = builder(limit).swap(std::env::temp_dir(), 20 * limit as u64).build().expect("runtime");
            let object = kind.object(&rt, 16 * limit);
            let (sampler, stop) = (Sampler::new(&rt), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| sampler.run(&stop));
                let _stopper = StopOnDrop(&stop);
                // The filler's are slow: each waits for another thread.
                let writes = if *kind == Kind::Filler { limit / 16 / PAGE } else { limit / 4 / PAGE };
                scan_and_write(&rt, mode, *kind, &object, writes);
            });
            let [most, pages, samples] = [sampler.most, sampler.most_pages, sampler.samples].map(AtomicU64::into_inner);
            let stats = rt.stats();
            println!("{mode:?}, {kind:?}: at most {} KiB, {pages} pages, in {samples} samples", most >> 10);
            let slack = if cfg!(debug_assertions) { SLACK / 4 } else { SLACK };
            assert!(most <= limit as u64 + slack, "{mode:?}, {kind:?}: {most} bytes, the limit is {limit}");
            assert!(pages <= (limit / PAGE) as u64, "{mode:?}, {kind:?}: {pages} pages, the limit is {limit} bytes");
            assert!(stats["pgsteal"] > 0 && (kind.is_exclusive() || stats["pgpgout"] > 0), "{stats}");
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
        assert!(rt.stats()["nr_cached_pages"] <= 2048);
        rt.set_cache_limit(1 << 20);
        // By itself, though nobody touches anything.
        until("the cache shrinks", || rt.stats()["nr_cached_pages"] <= 256);
        until("the memory goes", || rt.stats()["cache_bytes_allocated"] <= 1 << 20);
        (0..pages).for_each(|p| assert_eq!(get(&a, p), p as u64 + 1, "{mode:?}: page {p}"));
        assert!(rt.stats()["nr_cached_pages"] <= 256);
        rt.set_cache_limit(64 << 20);
        (0..pages).for_each(|p| assert_eq!(get(&a, p), p as u64 + 1, "{mode:?}: page {p}"));
        let stolen = rt.stats()["pgsteal"];
        (0..pages).for_each(|p| assert_eq!(get(&a, p), p as u64 + 1, "{mode:?}: page {p}"));
        assert_eq!(rt.stats()["pgsteal"], stolen, "there is room for everything");
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

/// Loads a number of each of sixteen pages by as few instructions as the processor has for it.
mod gather {
    use std::arch::x86_64 as x86;

    /// Which it has; `None`: neither.
    pub(super) fn width() -> Option<usize> {
        if is_x86_feature_detected!("avx512f") {
            Some(16)
        } else if is_x86_feature_detected!("avx2") {
            Some(8)
        } else {
            None
        }
    }

    /// The numbers at `base + offsets[i]`.
    pub(super) fn load(base: *const u8, offsets: &[i32; 16]) -> [i32; 16] {
        if width() == Some(16) {
            // SAFETY: the processor has it; the caller's offsets lie inside the arena.
            unsafe { by_one(base, offsets) }
        } else {
            // SAFETY: as above: `width` is asked first.
            unsafe { by_two(base, offsets) }
        }
    }

    /// # Safety
    /// There is a number at each offset, and AVX-512.
    #[target_feature(enable = "avx512f")]
    unsafe fn by_one(base: *const u8, offsets: &[i32; 16]) -> [i32; 16] {
        let mut out = [0; 16];
        // SAFETY: sixteen numbers of ours.
        let at = unsafe { x86::_mm512_loadu_epi32(offsets.as_ptr()) };
        // SAFETY: the contract.
        let got = unsafe { x86::_mm512_i32gather_epi32::<1>(at, base.cast()) };
        // SAFETY: room for sixteen numbers.
        unsafe { x86::_mm512_storeu_epi32(out.as_mut_ptr(), got) };
        out
    }

    /// # Safety
    /// There is a number at each offset, and AVX2.
    #[target_feature(enable = "avx2")]
    unsafe fn by_two(base: *const u8, offsets: &[i32; 16]) -> [i32; 16] {
        let mut out = [0; 16];
        for half in [0, 8] {
            // SAFETY: eight numbers of ours.
            let at = unsafe { x86::_mm256_loadu_si256(offsets.as_ptr().wrapping_add(half).cast()) };
            // SAFETY: the contract.
            let got = unsafe { x86::_mm256_i32gather_epi32::<1>(base.cast(), at) };
            // SAFETY: room for eight numbers.
            unsafe { x86::_mm256_storeu_si256(out.as_mut_ptr().wrapping_add(half).cast(), got) };
        }
        out
    }
}

#[test]
fn an_instruction_that_touches_sixteen_pages_gets_on_in_the_smallest_cache() {
    let _serial = serial();
    let Some(width) = gather::width() else {
        println!("gather skipped: the processor has neither AVX-512 nor AVX2");
        return;
    };
    println!("gather: {width} pages by one instruction");
    common::each_mode("gather", |_, mode| {
        // The smallest there is, and the smallest that eight threads are promised to get on in.
        for limit in [64, THREADS * 64] {
            for in_handler in [true, false] {
                let rounds = if cfg!(debug_assertions) { 10 } else { 60 };
                let rt = builder(limit * PAGE).build().expect("runtime");
                let per_thread = limit;
                let object = scratch(&rt, THREADS * per_thread * PAGE, in_handler);
                let a = arena(&rt, mode, THREADS * per_thread * PAGE);
                map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
                std::thread::scope(|s| {
                    for t in 0..THREADS {
                        let a = &a;
                        s.spawn(move || {
                            let mut rng = Rng(t as u64 + 1);
                            let at = |p: usize| (t * per_thread + p) * PAGE + p % 1000 * 4;
                            let mut model = vec![0; per_thread];
                            for round in 1..=rounds {
                                let first = rng.below(per_thread / 16);
                                let some: [usize; 16] =
                                    std::array::from_fn(|i| (first + i * (per_thread / 16)) % per_thread);
                                let got = gather::load(a.as_ptr(), &some.map(|p| i32::try_from(at(p)).expect("small")));
                                assert_eq!(got, some.map(|p| model[p]), "{mode:?}: gathered in round {round}");
                                for p in some {
                                    let word = a.as_ptr().wrapping_add(at(p)).cast::<i32>();
                                    // SAFETY: inside the arena, aligned, and this thread's alone.
                                    unsafe { word.write_volatile(round) };
                                    model[p] = round;
                                }
                            }
                        });
                    }
                });
                let stats = rt.stats();
                assert!(stats["nr_cached_pages"] <= limit as u64 && stats["pgsteal"] > 0, "{stats}");
            }
        }
    });
}

#[test]
fn no_limit_is_below_sixty_four_pages() {
    let _serial = serial();
    let rt = builder(PAGE).build().expect("runtime");
    let limit = || rt.stats()["nr_cache_limit_pages"];
    assert_eq!(limit(), 64, "asked for one page");
    for (asked, got) in [(0, 64), (63, 64), (64, 64), (65, 65), (1000, 1000)] {
        rt.set_cache_limit(asked * PAGE as u64);
        assert_eq!(limit(), got, "asked for {asked} pages");
    }
    let store_of = || Box::new(Scratch::new((256 * PAGE) as u64));
    let object = rt.object((256 * PAGE) as u64).fill_window_pages(1).cache_limit(PAGE as u64).store(store_of());
    let object = object.expect("object");
    let a = arena(&rt, rt.delivery().chosen, EXTENT);
    map(&a, 0, &object, Prot::Read, Sharing::Shared);
    for asked in [None, Some(0), Some(PAGE as u64)] {
        asked.into_iter().for_each(|bytes| object.set_cache_limit(bytes).expect("it has a limit of its own"));
        let pin = a.pin(0..64 * PAGE, Access::Read).expect("64 pages of an object");
        assert_eq!(load(&a, 64 * PAGE), Err(BUS), "{asked:?}: and no more");
        drop(pin);
        assert_eq!(load(&a, 64 * PAGE), Ok(0), "{asked:?}");
    }
}

#[test]
fn out_of_memory_is_sigbus_whatever_the_policy_for_failing_stores() {
    let _serial = serial();
    for policy in [FailurePolicy::Poison, FailurePolicy::Zero, FailurePolicy::Abort] {
        common::each_mode("oom by policy", |_, mode| {
            let rt = builder(64 * PAGE).fill_window_pages(1).build().expect("runtime");
            let disk = Disk::new(&vec![7; 96 * PAGE], Behaviour::default());
            let builder = rt.object((96 * PAGE) as u64).writable(true).on_failure(policy);
            let object = builder.store(Box::new(VolatileStore(Arc::clone(&disk)))).expect("object");
            let a = arena(&rt, mode, EXTENT);
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            let pin = a.pin(0..64 * PAGE, Access::Read).expect("pin");
            disk.clear_events();
            let oom = |got: Result<usize, Error>| {
                assert!(
                    matches!(&got, Err(Error::Fault { reason, .. }) if reason.contains(VmFaultReason::OOM)),
                    "{mode:?}, {policy:?}: {got:?}"
                );
            };
            for p in [70, 70, 80] {
                assert_eq!(load(&a, p * PAGE), Err(BUS), "{mode:?}, {policy:?}: a load");
                assert_eq!(store(&a, p * PAGE, 1), Err(BUS), "{mode:?}, {policy:?}: a store");
                oom(object.read_at((p * PAGE) as u64, &mut [0; 8]));
                oom(object.write_at((p * PAGE) as u64, &[1; 8]));
            }
            assert_eq!(rt.stats()["pgpoison"], 0, "{mode:?}, {policy:?}: no page failed");
            assert!(disk.events().is_empty(), "{mode:?}, {policy:?}: the store was not asked");
            drop(pin);
            for p in 64..96 {
                assert_eq!(
                    load(&a, p * PAGE),
                    Ok(7),
                    "{mode:?}, {policy:?}: page {p}: nothing made up, nothing stored"
                );
            }
        });
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
            assert!(rt.stats()["nr_cached_pages"] <= 64);
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
        assert!(rt.stats()["pgsteal"] > 0);
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
fn tables_and_page_tables_are_reported() {
    let _serial = serial();
    common::each_mode("tables", |_, mode| {
        let rt = builder(256 << 20).build().expect("runtime");
        let of = |name: &str| rt.stats()[name];
        let names = ["folio_table_bytes", "queue_bytes", "arena_table_bytes", "process_page_table_bytes"];
        let before = names.map(of);
        assert_eq!((before[0], before[2]), (0, 0), "{mode:?}: no object, no arena");
        let len = 64 << 20;
        let object = scratch(&rt, len, true);
        let a = arena(&rt, mode, len);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        (0..len / PAGE).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(0)));
        let [folios, queues, arenas, page_tables] = names.map(of);
        let words = (len / PAGE * 8) as u64;
        assert!((words..=words + 2 * PAGE as u64).contains(&folios), "{mode:?}: {folios} bytes for {words} of words");
        // An entry a page, in one queue or another.
        assert!(queues >= words / 2 && queues <= of("queue_bytes_reserved"), "{mode:?}: {queues} bytes of queues");
        assert!(
            arenas > 0 && arenas <= (len / EXTENT * 256) as u64,
            "{mode:?}: {arenas} bytes of {} extents",
            len / EXTENT
        );
        // One page of entries for each 2 MiB of the arena.
        let tables = page_tables - before[3];
        assert!(tables >= (len / EXTENT * PAGE) as u64, "{mode:?}: {tables} bytes of page tables more");
        drop((a, object));
        assert_eq!(
            (of("folio_table_bytes"), of("arena_table_bytes")),
            (0, 0),
            "{mode:?}: they go with what they are of"
        );
    });
}

/// Half of the machine's memory, or of the memory group's.
#[test]
fn the_default_limit_is_a_share_of_what_there_is() {
    let name = "the_default_limit_is_a_share_of_what_there_is";
    for mib in [256u64, 32] {
        let group = Group::new(mib << 20);
        let out = common::child(name, &format!("{mib}"), move || {
            // The parent has made one, too, and removes it when this process is gone.
            let joined =
                group.and_then(|own| Group::join(&Group::dir(&own.1, std::os::unix::process::parent_id(), own.2)));
            if let Err(why) = joined {
                println!("a group of {mib} MiB skipped: {why}");
                return;
            }
            setup();
            let rt = Runtime::new().expect("runtime");
            println!("limit {}", rt.stats()["nr_cache_limit_pages"] * PAGE as u64);
        });
        let said = common::ended(out, Ok(0));
        println!("{}", said.lines().filter(|l| l.contains("limit ") || l.contains("skipped")).collect::<String>());
        assert!(
            said.is_empty() || said.contains("skipped") || said.contains(&format!("limit {}\n", mib << 19)),
            "half of {mib} MiB: {said}"
        );
    }
    setup();
    let rt = Runtime::new().expect("runtime");
    let limit = rt.stats()["nr_cache_limit_pages"] * PAGE as u64;
    let info = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let total = info.lines().find_map(|l| l.strip_prefix("MemTotal:")).expect("MemTotal");
    let machine = total.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10;
    assert!(limit >= 64 * PAGE as u64 && limit <= machine / 2 + PAGE as u64, "{limit} of {machine}");
}

/// A memory control group, version 1, of a limit: its folder, below the controller's. Removed on drop.
struct Group(PathBuf, PathBuf, u64);

impl Group {
    fn dir(root: &Path, pid: u32, limit_bytes: u64) -> PathBuf {
        root.join(format!("softfault-test.{pid}.{limit_bytes}"))
    }
    /// Says why where there is none to be had.
    fn new(limit_bytes: u64) -> Result<Self, String> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut found = mounts.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, point, kind, options, ..] = fields[..] else { return None };
            (kind == "cgroup" && options.split(',').any(|o| o == "memory")).then(|| PathBuf::from(point))
        });
        let root = found.next().ok_or("no memory controller of cgroup version 1 is mounted")?;
        let dir = Self::dir(&root, std::process::id(), limit_bytes);
        std::fs::create_dir(&dir).map_err(|e| format!("mkdir: {e}"))?;
        let group = Self(dir, root, limit_bytes);
        let file = group.0.join("memory.limit_in_bytes");
        std::fs::write(file, limit_bytes.to_string()).map_err(|e| format!("memory.limit_in_bytes: {e}"))?;
        Ok(group)
    }
    /// Moves this process into one.
    fn join(dir: &Path) -> Result<(), String> {
        std::fs::write(dir.join("cgroup.procs"), std::process::id().to_string()).map_err(|e| format!("joining: {e}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has ended a moment ago may still be leaving.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} could not be removed", self.0.display());
    }
}
