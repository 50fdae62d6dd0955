//! A file-system exerciser: random reads, stores, truncations, holes, syncs, invalidations and evictions, through arenas,
//! by calls and through the file itself, compared with a model in memory: what a step touched after each step, everything
//! now and then, and after all of it was dropped and opened again.
//!
//! `SOFTFAULT_FSX_OPS` sets the number of steps of each test over all modes, which run side by side, `SOFTFAULT_FSX_SEED`
//! the seed; both are printed. `.ci/fsx` makes a million of each.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "stores to arenas by address")]

mod common;
mod disk;

use common::{MODES, PAGE, Rng, StopOnDrop, TempFile, arena, bytes, load, map, same, setup, store, until};
use disk::{Behaviour, Disk, VolatileStore};
use softfault::{Access, Arena, Delivery, Error, Object, Prot, Runtime, Sharing};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The longest the object gets.
const MAX: usize = 104 * PAGE;
/// The most that one step touches.
const STEP: usize = 5 * PAGE;
/// The cache is smaller than the object: as small as it may be.
const LIMIT: usize = 64 * PAGE;
/// Steps between two comparisons of everything.
const EVERYTHING: u64 = 256;
const BUS: i32 = libc::SIGBUS;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    env("SOFTFAULT_FSX_SEED", now) | 1
}

fn runtime() -> Runtime {
    setup();
    // Write-back and scans are always under way.
    let often = Duration::from_millis(1);
    Runtime::builder().cache_limit(LIMIT as u64).writeback(often, often).fill_window_pages(4).build().expect("runtime")
}

/// Where the object's bytes are when they are not in the cache.
enum Below {
    File(TempFile, File),
    Disk(Arc<Disk>),
}

impl Below {
    fn open(&self, rt: &Runtime) -> Object {
        match self {
            Self::File(file, _) => {
                rt.file_options().writable(true).with(|o| o.max_len(MAX as u64)).open(file.path()).expect("open")
            }
            Self::Disk(disk) => {
                let store = Box::new(VolatileStore(Arc::clone(disk)));
                let len = disk.content().len() as u64;
                rt.object(len).max_len(MAX as u64).writable(true).store(store).expect("object")
            }
        }
    }

    fn content(&self) -> Vec<u8> {
        match self {
            Self::File(file, _) => std::fs::read(file.path()).expect("read the file"),
            Self::Disk(disk) => disk.content(),
        }
    }
}

struct Run<'a> {
    rt: &'a Runtime,
    mode: Delivery,
    rng: Rng,
    below: Below,
    object: Object,
    arenas: [Arena; 2],
    model: Vec<u8>,
    /// The store fails now and then.
    faulty: bool,
    /// Nobody else has the object.
    alone: bool,
    step: u64,
    /// Accesses that raised SIGBUS, because the store failed.
    buses: AtomicU64,
}

const KINDS: usize = 18;

impl<'a> Run<'a> {
    fn new(rt: &'a Runtime, mode: Delivery, seed: u64, below: Below, faulty: bool) -> Self {
        let model = below.content();
        let object = below.open(rt);
        let arenas = Self::arenas(rt, mode, &object);
        let mut rng = Rng(seed);
        (0..4).for_each(|_| {
            rng.below(2);
        });
        let buses = AtomicU64::new(0);
        Self { rt, mode, rng, below, object, arenas, model, faulty, alone: true, step: 0, buses }
    }

    fn arenas(rt: &Runtime, mode: Delivery, object: &Object) -> [Arena; 2] {
        let arenas = [(); 2].map(|()| arena(rt, mode, MAX));
        for a in &arenas {
            a.map(0, object, 0, MAX, Prot::ReadWrite, Sharing::Shared).expect("map");
        }
        arenas
    }

    /// A range inside the object; perhaps empty, if that is.
    fn range(&mut self) -> Range<usize> {
        let len = self.model.len();
        if len == 0 {
            return 0..0;
        }
        let from = self.rng.below(len);
        let most = if self.rng.below(3) == 0 { 64 } else { STEP };
        from..(from + 1 + self.rng.below(most)).min(len)
    }
    fn fresh(&mut self, len: usize) -> Vec<u8> {
        let mut x = self.rng.below(usize::MAX) as u64 | 1;
        (0..len)
            .map(|_| {
                x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (x >> 56) as u8
            })
            .collect()
    }

    /// Tries a call again for as long as the store fails it.
    fn patiently<T>(&self, what: &str, f: impl Fn() -> Result<T, Error>) -> T {
        let mut last = String::new();
        for _ in 0..10_000 {
            let got = f();
            if let Err(e) = &got {
                last = e.to_string();
            }
            match got {
                Ok(v) => return v,
                Err(e) if !self.faulty => panic!("step {}: {what}: {e}", self.step),
                Err(Error::Lost { ranges, .. }) => self.rewrite(&ranges),
                Err(Error::Fault { .. } | Error::Writeback { .. } | Error::Flush { .. }) => {}
                Err(e) => panic!("step {}: {what}: {e}", self.step),
            }
        }
        panic!("step {}: {what} never succeeds: {last}", self.step);
    }

    /// What a failed flush took away is written again.
    fn rewrite(&self, lost: &[Range<u64>]) {
        for r in lost {
            let r = r.start as usize..(r.end as usize).min(self.model.len());
            if !r.is_empty() {
                self.patiently("rewrite", || self.object.write_at(r.start as u64, &self.model[r.clone()]));
            }
        }
    }

    /// Touches bytes without a pin: where the store fails that raises SIGBUS, changes nothing, and can be tried again.
    fn touch<T>(&self, what: &str, at: usize, f: impl Fn() -> Result<T, i32>) -> T {
        for _ in 0..10_000 {
            match f() {
                Ok(v) => return v,
                Err(BUS) if self.faulty => drop(self.buses.fetch_add(1, Ordering::Relaxed)),
                Err(signo) => panic!("step {}: {what} at {at:#x}: signal {signo}", self.step),
            }
        }
        panic!("step {}: {what} at {at:#x} raises SIGBUS for ever", self.step);
    }

    /// The bytes of a range that are touched one by one: a few of each page.
    fn some_of(range: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
        let start = range.start;
        range.clone().filter(move |at| (at - start) % PAGE < 24 || at % PAGE < 8)
    }

    /// Loads by plain instructions, and compares.
    fn load_some(&self, range: &Range<usize>) {
        let a = &self.arenas[0];
        for at in Self::some_of(range) {
            let got = self.touch("load", at, || load(a, at));
            self.compare("load", &[got], &(at..at + 1));
        }
    }

    /// Stores by plain instructions.
    fn store_some(&mut self, range: &Range<usize>) {
        let a = self.arenas[self.rng.below(2)].clone();
        for at in Self::some_of(range) {
            let value = self.rng.below(256) as u8;
            self.touch("store", at, || store(&a, at, value));
            self.model[at] = value;
        }
    }

    /// Reads by loads or by calls.
    fn read(&mut self, range: Range<usize>) -> Vec<u8> {
        // A pin of more than the cache would hold cannot be had.
        let way = if self.faulty && range.len() > LIMIT / 4 { 2 } else { self.rng.below(3) };
        if self.faulty && way == 0 {
            self.load_some(&range);
        }
        if way == 2 {
            let mut got = vec![0; range.len()];
            let mut done = 0;
            while done < got.len() {
                let (head, part) = got.split_at_mut(done);
                let at = (range.start + head.len()) as u64;
                let cell = std::cell::RefCell::new(part);
                let n = self.patiently("read_at", || self.object.read_at(at, &mut cell.borrow_mut()));
                assert!(n > 0, "step {}: read_at gives nothing at {at:#x}", self.step);
                done += n;
            }
            return got;
        }
        let a = self.arenas[way].clone();
        let _pin = self.pin(&a, &range, Access::Read);
        bytes(&a, range)
    }

    /// Pins what is touched where the store fails: an error is a result then, and no signal.
    fn pin(&self, a: &Arena, range: &Range<usize>, access: Access) -> Option<softfault::Pin> {
        if !self.faulty || range.is_empty() {
            return None;
        }
        let pages = range.start & !(PAGE - 1)..range.end.next_multiple_of(PAGE);
        Some(self.patiently("pin", || a.pin(pages.clone(), access)))
    }

    fn store(&mut self, range: Range<usize>) {
        let fresh = self.fresh(range.len());
        let a = self.arenas[self.rng.below(2)].clone();
        let _pin = self.pin(&a, &range, Access::Write);
        let dst = a.as_ptr().wrapping_add(range.start);
        // SAFETY: inside the arena and the object; nobody else stores.
        unsafe { std::ptr::copy_nonoverlapping(fresh.as_ptr(), dst, fresh.len()) };
        self.model[range].copy_from_slice(&fresh);
    }

    fn write_at(&mut self, range: Range<usize>) {
        let fresh = self.fresh(range.len());
        let n = self.patiently("write_at", || self.object.write_at(range.start as u64, &fresh));
        assert_eq!(n, fresh.len(), "step {}: write_at", self.step);
        self.model[range].copy_from_slice(&fresh);
    }

    fn set_len(&mut self) {
        let len = if self.rng.below(4) == 0 { self.rng.below(MAX / PAGE + 1) * PAGE } else { self.rng.below(MAX + 1) };
        self.patiently("set_len", || self.object.set_len(len as u64));
        self.model.resize(len, 0);
        assert_eq!(self.object.len(), len as u64);
        let past = len.next_multiple_of(PAGE);
        if past < MAX {
            assert_eq!(load(&self.arenas[0], past), Err(BUS), "step {}: past the end {len:#x}", self.step);
        }
    }

    fn punch(&mut self, range: Range<usize>) {
        self.patiently("punch_hole", || self.object.punch_hole(range.start as u64..range.end as u64));
        self.model[range].fill(0);
    }

    /// Another process changes the file.
    fn outside_write(&mut self, range: Range<usize>) {
        let fresh = self.fresh(range.len());
        let Below::File(_, file) = &self.below else { return };
        let r = range.start as u64..range.end as u64;
        // Nothing of it is cached while it is changed: what is, might be written over the change.
        until("dropped before", || {
            self.object.sync(r.clone()).expect("sync");
            self.object.invalidate(r.clone()).expect("invalidate").kept == 0
        });
        file.write_all_at(&fresh, r.start).expect("pwrite");
        until("invalidated", || self.object.invalidate(r.clone()).expect("invalidate").kept == 0);
        self.model[range].copy_from_slice(&fresh);
    }

    fn outside_read(&mut self, range: &Range<usize>) {
        self.patiently("sync", || self.object.sync(range.start as u64..range.end as u64));
        let got = match &self.below {
            Below::File(_, file) => {
                let mut got = vec![0; range.len()];
                file.read_exact_at(&mut got, range.start as u64).expect("pread");
                got
            }
            Below::Disk(disk) => disk.durable()[range.clone()].to_vec(),
        };
        self.compare("outside", &got, range);
    }

    fn compare(&self, what: &str, got: &[u8], range: &Range<usize>) {
        same(&format!("{:?} step {}: {what} {range:x?}", self.mode, self.step), got, &self.model[range.clone()]);
    }

    /// Drops everything and opens it again.
    fn reopen(&mut self) {
        // Nobody is left to be told of errors then: what must be there is synced.
        self.patiently("sync_all", || self.object.sync_all());
        let nothing = self.rt.anonymous(PAGE as u64).expect("anonymous");
        let tiny = [(); 2].map(|()| arena(self.rt, self.mode, PAGE));
        drop(std::mem::replace(&mut self.arenas, tiny));
        drop(std::mem::replace(&mut self.object, nothing));
        same(&format!("{:?} step {}: closed", self.mode, self.step), &self.below.content(), &self.model);
        self.object = self.below.open(self.rt);
        self.arenas = Self::arenas(self.rt, self.mode, &self.object);
        assert_eq!(self.object.len(), self.model.len() as u64);
    }

    fn remap(&mut self) {
        let a = &self.arenas[self.rng.below(2)];
        a.unmap(0..MAX).expect("unmap");
        if self.rng.0.is_multiple_of(2) {
            map(a, 0, &self.object, Prot::ReadWrite, Sharing::Shared);
            // The object may have been shorter than its room.
            let _ = a.unmap(0..MAX);
        }
        a.map(0, &self.object, 0, MAX, Prot::ReadWrite, Sharing::Shared).expect("map");
    }

    fn one(&mut self) {
        let range = self.range();
        let (r, kind) = (range.start as u64..range.end as u64, self.rng.below(KINDS));
        if range.is_empty() && kind != 8 {
            return self.set_len();
        }
        match kind {
            0 if self.faulty => self.store_some(&range),
            0..=3 => self.store(range.clone()),
            4 | 5 => self.write_at(range.clone()),
            6 | 7 => {}
            8 => self.set_len(),
            9 => self.punch(range.clone()),
            10 => self.patiently("sync", || self.object.sync(r.clone())),
            11 => {
                let _ = self.object.evict(r).expect("evict");
            }
            12 => {
                let _ = self.object.invalidate(r).expect("invalidate");
            }
            13 => self.outside_write(range.clone()),
            14 => self.outside_read(&range),
            15 if self.rng.below(8) == 0 => self.remap(),
            16 if self.alone && self.rng.below(64) == 0 => self.reopen(),
            17 if self.rng.below(4) == 0 => {
                let a = &self.arenas[self.rng.below(2)];
                // A neighbour that is being filled or reclaimed may be pinned for long on a busy machine.
                assert!(matches!(a.zap(0..MAX), Ok(()) | Err(Error::System { .. })), "zap");
            }
            _ => {}
        }
        // What was changed, or something else.
        let look = if self.rng.below(4) == 0 { self.range() } else { range };
        let look = look.start.min(self.model.len())..look.end.min(self.model.len());
        let got = self.read(look.clone());
        self.compare("read", &got, &look);
    }

    fn steps(&mut self, ops: u64) {
        for step in 0..ops {
            self.step = step;
            self.one();
            if step % EVERYTHING == 0 {
                let got = self.read(0..self.model.len());
                self.compare("everything", &got, &(0..self.model.len()));
                if let Below::Disk(disk) = &self.below {
                    disk.clear_events();
                }
            }
        }
    }

    /// Opens it again after the last step; returns how many steps there were.
    fn end(&mut self, ops: u64) -> u64 {
        self.reopen();
        let got = self.read(0..self.model.len());
        self.compare("reopened", &got, &(0..self.model.len()));
        ops
    }
}

/// Runs in every mode that can be had, an equal share of the steps in each, side by side.
fn exercise(what: &str, ops: u64, run: impl Fn(&Runtime, Delivery, u64, u64) -> u64 + Sync) {
    let (ops, seed) = (env("SOFTFAULT_FSX_OPS", ops), seed());
    println!("{what}: SOFTFAULT_FSX_SEED={seed} SOFTFAULT_FSX_OPS={ops}");
    let probe = common::runtime();
    let (modes, skipped): (Vec<_>, Vec<_>) = MODES.iter().partition(|m| probe.delivery().is_available(**m));
    for mode in skipped {
        println!("{what}: {mode:?} skipped: {}", probe.delivery());
    }
    assert!(!modes.is_empty(), "{what}: every mode was skipped");
    let share = ops.div_ceil(modes.len() as u64);
    let run = &run;
    let done: u64 = std::thread::scope(|s| {
        let one = |(i, mode): (usize, Delivery)| {
            s.spawn(move || {
                let rt = runtime();
                let done = run(&rt, mode, seed.wrapping_add(2 * i as u64), share);
                let of = |name| rt.stats()[name];
                println!("{what}: {mode:?}: {} reclaimed, {} written back", of("pgsteal"), of("pgpgout"));
                done
            })
        };
        let threads: Vec<_> = modes.into_iter().enumerate().map(one).collect();
        threads.into_iter().map(|t| t.join().expect("a mode")).sum()
    });
    assert!(done >= ops);
    println!("{what}: {done} steps, each compared");
}

/// As [`exercise`], over what `below` makes; the store fails where it says so.
fn exercise_alone(what: &str, ops: u64, below: impl Fn(u64) -> (Below, bool) + Sync) {
    exercise(what, ops, |rt, mode, seed, ops| {
        let (below, faulty) = below(seed);
        let mut run = Run::new(rt, mode, seed, below, faulty);
        run.steps(ops);
        let done = run.end(ops);
        let buses = run.buses.into_inner();
        println!("{what}: {mode:?}: {buses} accesses raised SIGBUS");
        // A monitored access is looked at more than once, and the store asked anew each time: some ten times as few are refused, and
        // a run may see none.
        let refuses = faulty && ops >= 10_000 && mode != Delivery::Monitor;
        assert!(!refuses || buses > 0, "{what}: {mode:?}: the store failed no access");
        done
    });
}

fn file() -> Below {
    let file = TempFile::new(MAX / 2 + 99);
    let opened = File::options().read(true).write(true).open(file.path()).expect("open");
    Below::File(file, opened)
}

#[test]
fn over_a_file() {
    exercise_alone("fsx", 3_000, |_| (file(), false));
}

#[test]
fn over_a_file_with_others_evicting() {
    exercise("fsx_noise", 1_500, |rt, mode, seed, ops| {
        let mut run = Run::new(rt, mode, seed, file(), false);
        run.alone = false;
        let (object, stop) = (run.object.clone(), AtomicBool::new(false));
        let beside = run.arenas[0].clone();
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut rng = Rng(seed ^ 0x55);
                while !stop.load(Ordering::Relaxed) {
                    let from = rng.below(MAX) as u64;
                    let r = from..from + rng.below(STEP) as u64;
                    match rng.below(5) {
                        0 => drop(object.sync(r)),
                        1 => drop(beside.promote(0..MAX)),
                        2 => drop(beside.zap(0..PAGE * (1 + rng.below(MAX / PAGE)))),
                        _ => drop(object.evict(r)),
                    }
                    std::thread::yield_now();
                }
            });
            let _stopper = StopOnDrop(&stop);
            run.steps(ops);
        });
        drop((object, beside));
        run.end(ops)
    });
}

#[test]
fn over_a_disk_that_fails() {
    exercise_alone("fsx_faulty", 3_000, |seed| {
        let behaviour = Behaviour {
            seed,
            read_error_in: 40,
            write_error_in: 20,
            flush_error_in: 10,
            delay_in: 100,
            ..Behaviour::default()
        };
        (Below::Disk(Disk::new(&common::content(3, 0..(MAX / 2 + 1) as u64), behaviour)), true)
    });
}

#[test]
fn over_a_disk_whose_reads_wait_for_the_flush() {
    exercise_alone("fsx_unflushed", 3_000, |seed| {
        let behaviour = Behaviour { seed, rereads_unflushed: false, is_stable: true, ..Behaviour::default() };
        (Below::Disk(Disk::new(&common::content(3, 0..(MAX / 2 + 1) as u64), behaviour)), false)
    });
}
