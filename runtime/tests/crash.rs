//! What survives a crash: hundreds of crash points on a disk that drops and reorders everything since its last flush.
//!
//! `SOFTFAULT_CRASH_SEED` sets the seed, which is printed.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "stores to arenas by address")]

mod common;
mod disk;

use common::{PAGE, Rng, StopOnDrop, arena, setup};
use disk::{Behaviour, Disk, SECTOR, VolatileStore};
use softfault::{Arena, Delivery, Error, Held, Object, Prot, Runtime, Sharing};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const NR: usize = 64;
const LEN: usize = NR * PAGE;
const SECTORS: usize = LEN / SECTOR;

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    std::env::var("SOFTFAULT_CRASH_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(now) | 1
}

/// Write-back is always under way.
fn runtime(limit_pages: usize) -> Runtime {
    setup();
    let often = Duration::from_millis(1);
    let limit = (limit_pages * PAGE) as u64;
    Runtime::builder().cache_limit(limit).writeback(often, often).fill_window_pages(4).build().expect("runtime")
}

struct World {
    disk: Arc<Disk>,
    object: Object,
    arena: Arena,
    _rt: Runtime,
}

fn world(mode: Delivery, behaviour: Behaviour, limit_pages: usize) -> World {
    let rt = runtime(limit_pages);
    let disk = Disk::new(&vec![0; LEN], behaviour);
    let store = Box::new(VolatileStore(Arc::clone(&disk)));
    let object = rt.object(LEN as u64).writable(true).store(store).expect("object");
    let arena = arena(&rt, mode, LEN);
    arena.map(0, &object, 0, LEN, Prot::ReadWrite, Sharing::Shared).expect("map");
    World { disk, object, arena, _rt: rt }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")))
}

/// A sector full of one number, by a store or by a call.
fn put(w: &World, sector: usize, value: u64, by_call: bool) {
    let at = sector * SECTOR;
    if by_call {
        let bytes: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), SECTOR / 8).flatten().collect();
        assert_eq!(w.object.write_at(at as u64, &bytes).expect("write_at"), SECTOR);
        return;
    }
    let first = w.arena.as_ptr().wrapping_add(at).cast::<u64>();
    for i in 0..SECTOR / 8 {
        // SAFETY: inside the arena and the object; aligned. Write-back may read it meanwhile.
        unsafe { first.wrapping_add(i).write_volatile(value) };
    }
}

/// What is known of each sector. Its numbers only grow.
struct Book {
    /// About to be stored.
    begun: Vec<AtomicU64>,
    /// Stored.
    done: Vec<AtomicU64>,
    /// Durable: a call that covers it has said so.
    safe: Vec<AtomicU64>,
}

impl Book {
    fn new() -> Self {
        let zeros = || (0..SECTORS).map(|_| AtomicU64::new(0)).collect();
        Self { begun: zeros(), done: zeros(), safe: zeros() }
    }
    fn write(&self, w: &World, sector: usize, value: u64, by_call: bool) {
        self.begun[sector].store(value, Ordering::SeqCst);
        put(w, sector, value, by_call);
        self.done[sector].store(value, Ordering::SeqCst);
    }
    /// Runs a call that makes the sectors durable, and notes it if it says so.
    fn sync(&self, sectors: &Range<usize>, f: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let before: Vec<_> = sectors.clone().map(|s| self.done[s].load(Ordering::SeqCst)).collect();
        f()?;
        for (s, value) in sectors.clone().zip(before) {
            self.safe[s].fetch_max(value, Ordering::SeqCst);
        }
        Ok(())
    }
    /// Pulls the plug, and compares what the next boot finds.
    fn crash(&self, what: &str, disk: &Disk, seed: u64) {
        let all = |v: &[AtomicU64]| v.iter().map(|a| a.load(Ordering::SeqCst)).collect::<Vec<_>>();
        let safe = all(&self.safe);
        let after = disk.crash(seed).content();
        let begun = all(&self.begun);
        for (s, bytes) in after.chunks_exact(SECTOR).enumerate() {
            for value in words(bytes) {
                assert!(
                    (safe[s]..=begun[s]).contains(&value),
                    "{what}, crash {seed}: sector {s} (page {}) is {value}; {} is durable, {} was written",
                    s / (PAGE / SECTOR),
                    safe[s],
                    begun[s]
                );
            }
        }
    }
}

/// Syncs until it succeeds: what a failed flush took away is written again. Returns how often it failed.
fn sync_stubbornly(w: &World, book: &Book, value: &AtomicU64, range: &Range<u64>) -> u64 {
    let sectors = range.start as usize / SECTOR..(range.end as usize).div_ceil(SECTOR);
    for failures in 0..1_000 {
        match book.sync(&sectors, || w.object.sync(range.clone())) {
            Ok(()) => return failures,
            Err(Error::Lost { ranges, .. }) => {
                for r in ranges {
                    for s in r.start as usize / SECTOR..r.end as usize / SECTOR {
                        book.write(w, s, value.fetch_add(1, Ordering::SeqCst), false);
                    }
                }
            }
            Err(Error::Writeback { .. } | Error::Flush { .. }) => {}
            Err(e) => panic!("sync: {e}"),
        }
    }
    panic!("sync never succeeds");
}

#[test]
fn what_a_sync_acknowledged_survives() {
    let seed = seed();
    println!("SOFTFAULT_CRASH_SEED={seed}");
    common::each_mode("acknowledged", |_, mode| {
        for (what, behaviour) in [
            ("good", Behaviour::default()),
            ("failing", Behaviour { seed, write_error_in: 15, flush_error_in: 5, ..Behaviour::default() }),
            ("unflushed", Behaviour { seed, rereads_unflushed: false, is_stable: true, ..Behaviour::default() }),
        ] {
            let (w, book, value) = (world(mode, behaviour, NR / 2), Book::new(), AtomicU64::new(1));
            let mut rng = Rng(seed);
            let (mut crashes, mut failures) = (0, 0);
            while crashes < 120 {
                let sector = rng.below(SECTORS);
                let range = (sector * SECTOR) as u64..((sector + 1 + rng.below(SECTORS - sector)) * SECTOR) as u64;
                match rng.below(24) {
                    0 => failures += sync_stubbornly(&w, &book, &value, &range),
                    1 => failures += sync_stubbornly(&w, &book, &value, &(0..LEN as u64)),
                    2 => {
                        let _ = w.object.evict(range).expect("evict");
                    }
                    3 | 4 => {
                        book.crash(&format!("{mode:?} {what}"), &w.disk, seed ^ crashes);
                        crashes += 1;
                    }
                    k => book.write(&w, sector, value.fetch_add(1, Ordering::SeqCst), k % 4 == 0),
                }
            }
            println!("{mode:?} {what}: {crashes} crashes, {failures} failed syncs");
        }
    });
}

#[test]
fn crashes_beside_writers_and_a_syncer() {
    let seed = seed();
    println!("SOFTFAULT_CRASH_SEED={seed}");
    common::each_mode("beside", |_, mode| {
        let (w, book, value) = (world(mode, Behaviour::default(), NR / 2), Book::new(), AtomicU64::new(1));
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            let (w, book, value, stop) = (&w, &book, &value, &stop);
            for t in 0..2usize {
                s.spawn(move || {
                    let mut rng = Rng(seed ^ (t as u64 + 77));
                    while !stop.load(Ordering::Relaxed) {
                        // Each sector has one writer, so its numbers grow.
                        let sector = rng.below(SECTORS / 2) * 2 + t;
                        book.write(w, sector, value.fetch_add(1, Ordering::SeqCst), rng.below(4) == 0);
                    }
                });
            }
            s.spawn(move || {
                let mut rng = Rng(seed ^ 99);
                while !stop.load(Ordering::Relaxed) {
                    let first = rng.below(SECTORS);
                    let sectors = first..first + 1 + rng.below(SECTORS - first);
                    let range = (sectors.start * SECTOR) as u64..(sectors.end * SECTOR) as u64;
                    let r = match rng.below(3) {
                        0 => book.sync(&(0..SECTORS), || w.object.barrier()),
                        _ => book.sync(&sectors, || w.object.sync(range)),
                    };
                    r.expect("sync");
                }
            });
            let stopper = StopOnDrop(stop);
            for crash in 0..100 {
                book.crash(&format!("{mode:?}"), &w.disk, seed ^ crash);
                std::thread::sleep(Duration::from_micros(300));
            }
            drop(stopper);
        });
        let safe = book.safe.iter().filter(|s| s.load(Ordering::SeqCst) > 0).count();
        assert!(safe > SECTORS / 2, "only {safe} sectors were ever synced");
    });
}

// ---- a storage engine: a write-ahead log and data pages in one object ------------------------------------------------

const LOG: Range<usize> = 0..16 * PAGE;
/// The log's first sector says which epoch's records count.
const RECORDS: usize = LOG.start + SECTOR;
const DATA: Range<usize> = 16 * PAGE..48 * PAGE;
/// Accounts, one in a page; a transaction moves something from one to another, so the sum stays.
const ACCOUNTS: usize = 32;
const START: u64 = 1000;

/// A redo record: epoch, number, two accounts with their new values, check.
type Record = [u64; 7];

fn check(r: &Record) -> u64 {
    r[..6].iter().fold(0x9e37_79b9_7f4a_7c15, |h: u64, v| (h ^ v).rotate_left(23).wrapping_mul(0x5851_f42d_4c95_7f2d))
}

struct Engine<'a> {
    w: &'a World,
    held: Option<Held>,
    /// Whether data pages are kept back until their log is durable.
    holds: bool,
    accounts: [u64; ACCOUNTS],
    epoch: u64,
    nr: u64,
    at: usize,
}

impl<'a> Engine<'a> {
    fn new(w: &'a World, holds: bool) -> Self {
        let mut e = Self { w, held: None, holds, accounts: [START; ACCOUNTS], epoch: 1, nr: 0, at: RECORDS };
        e.word(LOG.start, e.epoch);
        (0..ACCOUNTS).for_each(|i| e.put_account(i, START));
        w.object.sync_all().expect("sync_all");
        e.hold();
        e
    }
    fn hold(&mut self) {
        if self.holds {
            self.held = Some(self.w.object.hold_dirty(DATA.start as u64..DATA.end as u64).expect("hold_dirty"));
        }
    }
    fn word(&self, at: usize, value: u64) {
        // SAFETY: inside the arena and the object; aligned.
        unsafe { self.w.arena.as_ptr().wrapping_add(at).cast::<u64>().write_volatile(value) };
    }
    fn put_account(&mut self, i: usize, value: u64) {
        self.accounts[i] = value;
        self.word(DATA.start + i * PAGE + 64, value);
    }
    /// Changes two accounts, in memory: the log and the pages.
    fn transfer(&mut self, rng: &mut Rng) {
        let from = rng.below(ACCOUNTS);
        let to = (from + 1 + rng.below(ACCOUNTS - 1)) % ACCOUNTS;
        let amount = (rng.below(50) as u64).min(self.accounts[from]);
        let (a, b) = (self.accounts[from] - amount, self.accounts[to] + amount);
        self.nr += 1;
        let mut record: Record = [self.epoch, self.nr, (from * ACCOUNTS + to) as u64, a, b, 0, 0];
        record[6] = check(&record);
        for (i, v) in record.into_iter().enumerate() {
            self.word(self.at + i * 8, v);
        }
        self.at += 64;
        self.put_account(from, a);
        self.put_account(to, b);
    }
    /// Makes every transfer so far durable.
    fn commit(&self) {
        self.w.object.sync(LOG.start as u64..LOG.end as u64).expect("commit");
    }
    /// Has the data pages catch up, and begins the log anew.
    fn checkpoint(&mut self) {
        self.commit();
        self.held = None;
        self.w.object.sync(DATA.start as u64..DATA.end as u64).expect("checkpoint");
        // The old records are void from here, before the first of them is written over.
        self.epoch += 1;
        self.word(LOG.start, self.epoch);
        self.commit();
        self.at = RECORDS;
        self.hold();
    }
}

/// What a boot finds: the pages, and over them the records of the log's newest epoch in their order.
fn recover(disk: &[u8]) -> [u64; ACCOUNTS] {
    let word = |at: usize| u64::from_le_bytes(disk[at..at + 8].try_into().expect("eight bytes"));
    let mut accounts = [0; ACCOUNTS];
    for (i, a) in accounts.iter_mut().enumerate() {
        *a = word(DATA.start + i * PAGE + 64);
    }
    let record = |at: usize| -> Option<Record> {
        let r: Record = std::array::from_fn(|i| word(at + i * 8));
        (r[0] == word(LOG.start) && r[6] == check(&r)).then_some(r)
    };
    let mut last: Option<Record> = None;
    for at in (RECORDS..LOG.end).step_by(64) {
        let Some(r) = record(at) else { break };
        if last.is_some_and(|l| l[1] + 1 != r[1]) {
            break;
        }
        accounts[r[2] as usize / ACCOUNTS] = r[3];
        accounts[r[2] as usize % ACCOUNTS] = r[4];
        last = Some(r);
    }
    accounts
}

/// Runs the engine and crashes it all the time; returns how many crashes were no state between the last commit and now.
fn run_engine(mode: Delivery, seed: u64, holds: bool, crashes: u64) -> u64 {
    // Room for what is held, and a little for the log.
    let w = world(mode, Behaviour::default(), ACCOUNTS + 8);
    let mut e = Engine::new(&w, holds);
    let mut rng = Rng(seed);
    // The states that a crash may leave: the last committed, and every one after it.
    let mut states = vec![e.accounts];
    let (mut done, mut bad) = (0, 0);
    while done < crashes {
        match rng.below(16) {
            0 => {
                e.commit();
                states.drain(..states.len() - 1);
            }
            1 if rng.below(4) == 0 => {
                e.checkpoint();
                states.drain(..states.len() - 1);
            }
            2 => {
                // Pressure, and a wait in which write-back would get on.
                let _ = w.object.evict(0..LEN as u64).expect("evict");
                std::thread::sleep(Duration::from_micros(500));
            }
            3..=5 => {
                let after = recover(&w.disk.crash(seed ^ done).content());
                done += 1;
                bad += u64::from(!states.contains(&after));
            }
            _ => {
                if e.at + 64 > LOG.end {
                    e.checkpoint();
                    states.drain(..states.len() - 1);
                }
                e.transfer(&mut rng);
                states.push(e.accounts);
            }
        }
    }
    bad
}

#[test]
fn an_engine_with_a_log_recovers_from_every_crash() {
    let seed = seed();
    println!("SOFTFAULT_CRASH_SEED={seed}");
    common::each_mode("engine", |_, mode| {
        assert_eq!(run_engine(mode, seed, true, 200), 0, "{mode:?}: crashes that left no state of the engine's");
        // The same without holding pages back: the test would see it.
        let bad: u64 =
            (0..20).map(|i| run_engine(mode, seed + 2 * i, false, 50)).take_while(|bad| *bad == 0).count() as u64;
        assert!(bad < 20, "{mode:?}: data pages never got to the disk before their log: the test proves nothing");
    });
}
