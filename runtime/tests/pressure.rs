//! The kernel takes memory back: what was stored is in the store after a sync, whatever it did to the page tables.
//!
//! `.ci/real-hosts` runs this inside a memory group of its own, beside swap of its own, and names the group in
//! `SOFTFAULT_PRESSURE_GROUP`. Elsewhere every scenario says that it is skipped.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "stores to arenas by address")]

mod common;
mod group;

use common::{MODES, PAGE, Rng, StopOnDrop, bytes, serial, setup, until};
use group::{Group, Setting};
use softfault::{Access, Arena, Delivery, Object, Prot, Runtime, Sharing};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pages of the object: 16 MiB, eight extents.
const NR: usize = 4096;
const LEN: usize = NR * PAGE;
/// Words of a page that are stored to, at equal distances.
const SLOTS: usize = 8;
/// What the group may have while a hog of this size runs in it, beside the cache.
const HOG: usize = 32 << 20;
const GROUP: usize = 32 << 20;
/// How long is stored in one round.
const STORES: Duration = Duration::from_millis(250);
/// How long the kernel may take to bring a quarter of the cache to swap.
const TO_SWAP: Duration = Duration::from_secs(120);
const BUSY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));
const QUIET: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(3600));

/// What is mapped, and what the runtime does by itself meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Everything fits; nothing scans or writes but the sync.
    Quiet,
    /// Everything fits; scans and writes are always under way.
    Busy,
    /// Extents that are the kernel's, whose stores are noted.
    Tracked,
    /// Half of it fits: our own reclaim runs against the kernel's.
    Bounded,
    /// Pages of private memory.
    Exclusive,
    /// The same, copied where they could be moved.
    Copied,
}

const KINDS: [Kind; 6] = [Kind::Quiet, Kind::Busy, Kind::Tracked, Kind::Bounded, Kind::Exclusive, Kind::Copied];

impl Kind {
    fn fits(self, mode: Delivery) -> bool {
        match self {
            Self::Tracked => mode != Delivery::Segv,
            Self::Exclusive | Self::Copied => mode == Delivery::InThread,
            _ => true,
        }
    }
    fn is_private(self) -> bool {
        matches!(self, Self::Exclusive | Self::Copied)
    }
    fn limit_pages(self) -> usize {
        if self == Self::Bounded { NR / 2 } else { 2 * NR }
    }
}

/// A file that is removed on drop: word `i` of page `p` is `base(p, i)`.
struct Below(PathBuf);

impl Below {
    fn new(what: &str) -> Self {
        let path = std::env::temp_dir().join(format!("softfault-pressure-{}-{what}", std::process::id()));
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path).expect("a file"));
        for word in (0..NR).flat_map(|p| (0..PAGE / 8).map(move |i| base(p, i))) {
            file.write_all(&word.to_le_bytes()).expect("write the file");
        }
        file.flush().expect("write the file");
        Self(path)
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn base(page: usize, word: usize) -> u64 {
    1 << 63 | (page as u64) << 16 | word as u64
}

/// An object over a file, mapped whole, and what should be in it.
struct World {
    what: String,
    kind: Kind,
    below: Below,
    object: Object,
    arena: Arena,
    /// The last value of each word that is stored to; 0: none yet.
    model: Vec<AtomicU64>,
    rt: Runtime,
}

impl World {
    fn new(what: &str, mode: Delivery, kind: Kind) -> Option<Self> {
        setup();
        let (interval, expire) = if kind == Kind::Quiet { QUIET } else { BUSY };
        let builder = Runtime::builder().cache_limit((kind.limit_pages() * PAGE) as u64).writeback(interval, expire);
        let rt = builder.build().expect("runtime");
        if let Some(finding) = rt.delivery().finding(mode).filter(|f| !f.available) {
            println!("{what}: {mode:?} {kind:?} skipped: {}", finding.why);
            return None;
        }
        let below = Below::new(&format!("{mode:?}-{kind:?}"));
        let options = rt.file_options().writable(true).with(|o| match kind {
            Kind::Exclusive => o.exclusive(true),
            Kind::Copied => o.exclusive_by_copy(),
            _ => o,
        });
        let object = options.open(&below.0).expect("open");
        let arena = rt.arena(LEN).delivery(mode).native_extents(kind == Kind::Tracked).build().expect("arena");
        let sharing = if kind.is_private() { Sharing::Private } else { Sharing::Shared };
        arena.map(0, &object, 0, LEN, Prot::ReadWrite, sharing).expect("map");
        arena.fault_in(0..LEN, Access::Read).expect("fault_in");
        if kind == Kind::Tracked {
            arena.promote(0..LEN).expect("promote");
            assert_eq!(arena.native_extents(), LEN >> 21, "{what}: every extent is the kernel's");
        }
        let model = (0..NR * SLOTS).map(|_| AtomicU64::new(0)).collect();
        let what = format!("{what}: {mode:?} {kind:?}");
        Some(Self { what, kind, below, object, arena, model, rt })
    }

    /// Stores here and there until `end`, to every `nth` page from `first` on; each page is looked at before.
    fn store_until(&self, end: Instant, (first, nth): (usize, usize), stop: &AtomicBool) -> u64 {
        let mut rng = Rng(0x9e37_79b9 ^ (end.elapsed().as_nanos() as u64 + first as u64 + 1));
        let mut nr = 0;
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            let page = rng.below(NR / nth) * nth + first;
            let slot = rng.below(SLOTS);
            let at = self.arena.as_ptr().wrapping_add(page * PAGE + slot * (PAGE / SLOTS)).cast::<u64>();
            let known = &self.model[page * SLOTS + slot];
            // SAFETY: inside the arena, aligned; no other thread stores to this page.
            let seen = unsafe { at.read_volatile() };
            let want = match known.load(Ordering::Relaxed) {
                0 => base(page, slot * (PAGE / SLOTS) / 8),
                last => last,
            };
            assert_eq!(seen, want, "{}: page {page} slot {slot}: a store is gone", self.what);
            let value = (page as u64) << 32 | (rng.below(1 << 31) as u64 + 1);
            // SAFETY: as above; write-back may read it meanwhile.
            unsafe { at.write_volatile(value) };
            known.store(value, Ordering::Relaxed);
            nr += 1;
        }
        nr
    }

    /// What page `p` should hold.
    fn want(&self, p: usize) -> Vec<u8> {
        let mut words: Vec<u64> = (0..PAGE / 8).map(|i| base(p, i)).collect();
        for slot in 0..SLOTS {
            match self.model[p * SLOTS + slot].load(Ordering::Relaxed) {
                0 => {}
                value => words[slot * (PAGE / SLOTS) / 8] = value,
            }
        }
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// Compares every byte that `page` gives with the model.
    fn compare(&self, how: &str, page: impl Fn(usize) -> Vec<u8>) {
        let wrong: Vec<usize> = (0..NR).filter(|p| page(*p) != self.want(*p)).collect();
        let first = wrong.first().map_or(String::new(), |p| format!("; the first is page {p}"));
        assert!(wrong.is_empty(), "{}: {how}: {} of {NR} pages are old{first}", self.what, wrong.len());
    }

    fn address(&self) -> std::ops::Range<usize> {
        let base = self.arena.as_ptr() as usize;
        base..base + LEN
    }

    /// Waits until a quarter of the cache has been in swap; returns how many pages were.
    fn wait_for_swap(&self) -> usize {
        let enough = self.kind.limit_pages().min(NR) / 4;
        let (began, mut most) = (Instant::now(), 0);
        let mut were = group::WereSwapped::new(self.address());
        while most < enough {
            let waited = began.elapsed();
            assert!(
                waited < TO_SWAP,
                "{}: after {waited:?} no more than {most} of {NR} pages were in swap: {}",
                self.what,
                group::hindrance()
            );
            // Of shared memory the page tables do not say what is in swap, and the sum of the mapping does.
            most = group::swapped_pages(&self.address()).max(were.look()).max(most);
            std::thread::sleep(Duration::from_millis(1));
        }
        most
    }

    /// Everything stored so far is in the file after a sync.
    fn sync_and_compare(&self) {
        self.object.sync_all().expect("sync_all");
        let file = std::fs::read(&self.below.0).expect("read the file");
        self.compare("the file after sync_all", |p| file[p * PAGE..(p + 1) * PAGE].to_vec());
    }

    /// And is there again after it has left the cache.
    fn evict_and_compare(&self) {
        until("the cache is empty", || {
            self.object.evict(0..LEN as u64).expect("evict");
            self.object.cached_pages() == 0
        });
        self.compare("the mapping after an eviction", |p| bytes(&self.arena, p * PAGE..(p + 1) * PAGE));
    }

    /// Two threads store, each to its own pages, while `beside` runs; then everything is synced, while it still runs.
    fn round(&self, swaps: bool, beside: impl Fn(&AtomicBool) + Sync) -> (u64, usize) {
        let stop = AtomicBool::new(false);
        let result = std::thread::scope(|s| {
            let stopper = StopOnDrop(&stop);
            s.spawn(|| beside(&stop));
            let end = Instant::now() + STORES;
            let writers = [0, 1].map(|i| {
                s.spawn({
                    let stop = &stop;
                    move || self.store_until(end, (i, 2), stop)
                })
            });
            let stores: u64 = writers.into_iter().map(|w| w.join().expect("a writer")).sum();
            let swapped = if swaps { self.wait_for_swap() } else { 0 };
            self.sync_and_compare();
            drop(stopper);
            (stores, swapped)
        });
        self.evict_and_compare();
        result
    }
}

/// Runs `f` for each mode and each kind that fits. Only a kernel without userfaultfd may lack modes.
fn each_world(what: &str, kinds: &[Kind], f: impl Fn(&World)) {
    let mut ran = Vec::new();
    for (mode, kind) in MODES.into_iter().flat_map(|m| kinds.iter().map(move |k| (m, *k))) {
        let began = Instant::now();
        if let Some(world) = kind.fits(mode).then(|| World::new(what, mode, kind)).flatten() {
            f(&world);
            println!("{} took {:?}", world.what, began.elapsed());
            ran.push(mode);
        }
    }
    assert!(ran.contains(&Delivery::Segv) || !kinds.iter().any(|k| k.fits(Delivery::Segv)), "{what}: Segv never ran");
    let wanted = MODES.into_iter().filter(|m| kinds.iter().any(|k| k.fits(*m)));
    let missing: Vec<_> = wanted.filter(|m| !ran.contains(m)).collect();
    assert!(missing.is_empty() || !group::has_userfaultfd(), "{what}: {missing:?} never ran, and userfaultfd is there");
}

/// No test: what [`stores_beside_a_hog`] runs beside itself, in a process of its own.
#[test]
fn a_hog() {
    group::be_one_if_asked();
}

#[test]
fn stores_beside_a_hog() {
    let _serial = serial();
    let Some(group) = Group::of_lane("hog") else { return };
    each_world("hog", &KINDS, |w| {
        group.limit(Some(GROUP));
        for round in 0..2 {
            let killed = AtomicU64::new(0);
            let (stores, swapped) = w.round(true, |stop| {
                killed.store(group::keep_hog("a_hog", HOG, stop) as u64, Ordering::Relaxed);
            });
            println!(
                "{}, round {round}: {stores} stores, {swapped} of {NR} pages in swap before the sync, {} hogs killed",
                w.what,
                killed.into_inner()
            );
        }
        group.limit(None);
        println!("{}: {} pages written", w.what, w.rt.stats().get("pgpgout").expect("a counter"));
    });
}

#[test]
fn stores_beside_reclaim_on_request() {
    let _serial = serial();
    let Some(group) = Group::of_lane("reclaim") else { return };
    each_world("reclaim", &KINDS, |w| {
        let (stores, swapped) = w.round(true, |stop| group::squeeze(&group, Duration::from_millis(20), stop));
        println!("{}: {stores} stores, {swapped} of {NR} pages in swap before the sync", w.what);
    });
}

/// Compaction moves pages: their entries are none, or say where they went, for a while.
#[test]
fn stores_beside_compaction() {
    let _serial = serial();
    let Some(_group) = Group::of_lane("compaction") else { return };
    let compact = Path::new("/proc/sys/vm/compact_memory");
    if !compact.exists() {
        println!("compaction skipped: this kernel has none");
        return;
    }
    each_world("compaction", &[Kind::Quiet, Kind::Tracked, Kind::Exclusive], |w| {
        let (stores, _) = w.round(false, |stop| {
            while !stop.load(Ordering::Relaxed) {
                std::fs::write(compact, "1").expect("compact_memory");
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        println!("{}: {stores} stores", w.what);
    });
}

/// Swap that is switched off brings every page in that is there, wherever it was moved meanwhile.
#[test]
fn stores_beside_swap_that_comes_and_goes() {
    let _serial = serial();
    let Some(group) = Group::of_lane("swapoff") else { return };
    let Some(spare) = group::Spare::of_lane() else {
        println!("swapoff skipped: {} names no swap that may come and go", group::SPARE);
        return;
    };
    let turns = AtomicU64::new(0);
    each_world("swapoff", &[Kind::Quiet, Kind::Exclusive, Kind::Copied], |w| {
        let (stores, _) = w.round(false, |stop| {
            loop {
                spare.on();
                group.reclaim();
                spare.off();
                turns.fetch_add(1, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        println!("{}: {stores} stores", w.what);
    });
    println!("swapoff: {} times", turns.load(Ordering::Relaxed));
}

/// Splitting a huge page of shared memory takes its entries away, whoever asked for the huge page.
#[test]
fn stores_with_each_setting_of_huge_pages() {
    let _serial = serial();
    let Some(group) = Group::of_lane("huge") else { return };
    let path = Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let Some(setting) = Setting::of_choices(path) else {
        println!("huge skipped: this kernel has no huge pages in shared memory");
        return;
    };
    for value in ["always", "within_size", "advise", "force", "deny", "never"] {
        setting.set(value).expect("shmem_enabled");
        let kinds: &[Kind] = if value == "always" { &[Kind::Quiet, Kind::Bounded] } else { &[Kind::Quiet] };
        each_world(&format!("huge {value}"), kinds, |w| {
            let (stores, swapped) = w.round(true, |stop| group::squeeze(&group, Duration::from_millis(20), stop));
            println!("{}: {stores} stores, {swapped} of {NR} pages in swap before the sync", w.what);
        });
    }
}

/// Pins hold: the kernel can use them at any time, though it takes what it can of everything else.
#[test]
fn pins_beside_reclaim_on_request() {
    let _serial = serial();
    let Some(group) = Group::of_lane("pins") else { return };
    each_world("pins", &[Kind::Quiet, Kind::Tracked, Kind::Bounded, Kind::Exclusive], |w| {
        let range = |i: usize| 61 * i * PAGE..(61 * i + 3) * PAGE;
        let pins: Vec<_> = (0..16).map(|i| w.arena.pin(range(i), Access::Read).expect("pin")).collect();
        assert!(pins.iter().all(softfault::Pin::is_locked));
        let stop = AtomicBool::new(false);
        let (mut calls, mut swapped) = (0, 0);
        std::thread::scope(|s| {
            let stopper = StopOnDrop(&stop);
            s.spawn(|| group::squeeze(&group, Duration::from_millis(5), &stop));
            let end = Instant::now() + STORES;
            while Instant::now() < end || swapped < NR / 16 {
                for (i, pin) in pins.iter().enumerate() {
                    for page in 0..3 {
                        // By a system call alone: a load would map what is missing.
                        let got = into_a_pipe(pin.as_ptr().wrapping_add(page * PAGE));
                        let want = base(61 * i + page, 0).to_le_bytes();
                        assert_eq!(got, Ok(want), "{}: page {page} of pin {i}", w.what);
                        calls += 1;
                    }
                }
                swapped = swapped.max(group::swapped_pages(&w.address()));
                assert!(end.elapsed() < TO_SWAP, "{}: {swapped} pages in swap: {}", w.what, group::hindrance());
            }
            drop(stopper);
        });
        println!("{}: {calls} system calls on pins, {swapped} of {NR} pages in swap beside them", w.what);
    });
}

/// write(2) of eight bytes into a pipe, and what comes out; or errno.
fn into_a_pipe(at: *const u8) -> Result<[u8; 8], i32> {
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    // SAFETY: arena memory of which no reference exists; the kernel checks the address.
    if unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), at.cast(), 8) } != 8 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    let mut got = [0; 8];
    reader.read_exact(&mut got).expect("read");
    Ok(got)
}

/// The advice that a process may give another since Linux 5.10, and 6.1.
const ADVICE: [(&str, i32); 3] = [("cold", libc::MADV_COLD), ("pageout", libc::MADV_PAGEOUT), ("collapse", 25)];

#[test]
fn stores_beside_an_agent() {
    let _serial = serial();
    if std::env::var(group::VARIABLE).is_err() {
        let _ = Group::of_lane("agent");
        return;
    }
    for (name, advice) in ADVICE {
        let beside = |child: &mut std::process::Child| {
            let mut advised = 0usize;
            while child.try_wait().expect("wait").is_none() {
                advised = advised.saturating_add(group::advise_all(child.id(), advice));
                std::thread::sleep(Duration::from_millis(5));
            }
            println!("agent: {name}: {} MiB advised", advised >> 20);
        };
        let out = common::child_beside("stores_beside_an_agent", name, beside, || {
            let pageout = name == "pageout";
            let kinds = KINDS.into_iter().filter(|k| pageout || *k == Kind::Quiet || k.is_private());
            each_world(&format!("agent {name}"), &kinds.collect::<Vec<_>>(), |w| {
                // What is moved comes and goes beside the advice each time.
                for _ in 0..if pageout && w.kind.is_private() { 3 } else { 1 } {
                    let (stores, _) = w.round(false, |_| ());
                    println!("{}: {stores} stores", w.what);
                }
            });
        });
        print!("{}", common::ended(out, Ok(0)));
    }
}

/// How long one run of another test binary may take, and after how long none is begun any more.
const SQUEEZED: Duration = Duration::from_secs(240);

/// Runs another test binary in the group while everything is taken from it again and again: until a quarter of its cache has
/// been seen in swap. A run that ends before the kernel has come round to its cache says nothing about that, whatever it
/// says about the rest, and is made again; each has a seed of its own.
fn squeezed(group: &Group, variable: &str, cache_pages: usize, arguments: &[&str]) {
    let began = Instant::now();
    let binary = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names no test binary"));
    let (mut most, mut rounds, mut runs) = (0, 0, 0);
    while runs == 0 || most < cache_pages / 4 {
        assert!(
            began.elapsed() < SQUEEZED,
            "{arguments:?}: squeezed {rounds} times in {runs} runs, and never more than {most} of {cache_pages} pages of the \
             cache were seen in swap: {}",
            group::hindrance()
        );
        let (seen, squeezes) = run_squeezed(group, &binary, arguments);
        most = seen.max(most);
        rounds += squeezes;
        runs += 1;
    }
    println!(
        "{arguments:?}: {rounds} times squeezed in {runs} runs and {:?}, at most {most} of {cache_pages} pages of the cache in swap",
        began.elapsed()
    );
}

/// One run, which must succeed; returns how many pages of its cache were seen in swap at most, and how often it was squeezed.
/// It writes to a file: a pipe that nobody reads would stop it when it is full.
fn run_squeezed(group: &Group, binary: &str, arguments: &[&str]) -> (usize, usize) {
    let began = Instant::now();
    let path = std::env::temp_dir().join(format!("softfault-squeezed-{}", std::process::id()));
    let file = std::fs::File::create(&path).expect("a file");
    let mut child = Command::new(binary)
        .args(["--nocapture", "--test-threads=1"])
        .args(arguments)
        .env("SOFTFAULT_FSX_OPS", "12000")
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("dup"))
        .stderr(file)
        .spawn()
        .expect("spawn");
    let (mut most, mut squeezes) = (0, 0);
    let ended = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break Ok(status);
        }
        if began.elapsed() > SQUEEZED {
            let _ = child.kill();
            break Err(child.wait().expect("wait"));
        }
        group.reclaim();
        most = group::swapped_cache_pages(child.id()).max(most);
        squeezes += 1;
        std::thread::sleep(Duration::from_millis(20));
    };
    print!("{}", String::from_utf8_lossy(&std::fs::read(&path).expect("what it said")));
    std::fs::remove_file(&path).expect("removed");
    let status =
        ended.unwrap_or_else(|_| panic!("{binary} {arguments:?} did not end in {SQUEEZED:?}; what it said is above"));
    assert!(status.success(), "{binary}: {status}");
    (most, squeezes)
}

#[test]
fn the_exerciser_under_pressure() {
    let _serial = serial();
    let Some(group) = Group::of_lane("exerciser") else { return };
    for test in ["over_a_file", "over_a_file_with_others_evicting"] {
        // Three modes side by side, 64 pages each.
        squeezed(&group, "SOFTFAULT_PRESSURE_FSX", 3 * 64, &["--exact", test]);
    }
}

#[test]
fn crashes_under_pressure() {
    let _serial = serial();
    let Some(group) = Group::of_lane("crashes") else { return };
    squeezed(&group, "SOFTFAULT_PRESSURE_CRASH", 64, &[]);
}
