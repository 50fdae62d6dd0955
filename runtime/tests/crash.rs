//! What survives a crash: hundreds of crash points on a disk that drops and reorders everything since its last flush.
//!
//! `SOFTFAULT_CRASH_SEED` sets the seed, which is printed.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "stores to arenas by address")]

mod book;
mod common;
mod disk;

use book::Book;
use common::{PAGE, Rng, StopOnDrop, arena, setup};
use disk::{Behaviour, Disk, InHandler, SECTOR, VolatileStore};
use softfault::{Access, Arena, Delivery, Error, Held, Object, Pin, Prot, Runtime, Sharing};
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
    book: Book,
    /// The next number to be written.
    value: AtomicU64,
    has_dsync: bool,
    _rt: Runtime,
}

fn world(mode: Delivery, behaviour: Behaviour, limit_pages: usize) -> World {
    world_of(mode, behaviour, limit_pages, false)
}

/// With `has_dsync` the store has made a page's block durable before the first store to it lands.
fn world_of(mode: Delivery, behaviour: Behaviour, limit_pages: usize, has_dsync: bool) -> World {
    let rt = runtime(limit_pages);
    let disk = Disk::new(&vec![0; LEN], behaviour);
    let store = VolatileStore(Arc::clone(&disk));
    let builder = rt.object(LEN as u64).writable(true);
    let object = if has_dsync {
        builder.dsync(true).handler_store(Box::new(InHandler(store)))
    } else {
        builder.store(Box::new(store))
    };
    let object = object.expect("object");
    let arena = arena(&rt, mode, LEN);
    arena.map(0, &object, 0, LEN, Prot::ReadWrite, Sharing::Shared).expect("map");
    let (book, value) = (Book::new(SECTORS), AtomicU64::new(1));
    World { disk, object, arena, book, value, has_dsync, _rt: rt }
}

fn sectors_of(range: &Range<u64>) -> Range<usize> {
    range.start as usize / SECTOR..(range.end as usize).div_ceil(SECTOR)
}

impl World {
    /// A sector full of one number, by a store or by a call.
    fn put(&self, sector: usize, by_call: bool) {
        let value = self.value.fetch_add(1, Ordering::SeqCst);
        self.book.write(sector..sector + 1, value, || self.fill(sector * SECTOR, value, by_call));
        // By calls the kernel's promise is not given: there is no page-table entry to hold back.
        let is_durable = self.disk.is_dsynced((sector * SECTOR) as u64);
        assert!(!self.has_dsync || by_call || is_durable, "sector {sector} was stored to before its block was durable");
    }
    fn fill(&self, at: usize, value: u64, by_call: bool) {
        let word = book::word(value);
        if by_call {
            assert_eq!(self.object.write_at(at as u64, &word.repeat(SECTOR / 8)).expect("write_at"), SECTOR);
            return;
        }
        let first = self.arena.as_ptr().wrapping_add(at).cast::<u64>();
        for i in 0..SECTOR / 8 {
            // SAFETY: inside the arena and the object; aligned. Write-back may read it meanwhile.
            unsafe { first.wrapping_add(i).write_volatile(u64::from_le_bytes(word)) };
        }
    }
    /// A hole, or a new end, however often the store has to be asked.
    fn cut(&self, rng: &mut Rng) {
        let stubbornly = |f: &dyn Fn() -> Result<(), Error>| {
            for _ in 0..1_000 {
                match f() {
                    Ok(()) => return,
                    Err(Error::Writeback { .. } | Error::Flush { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            panic!("it never succeeds");
        };
        if rng.below(2) == 0 {
            // Some end at their page's, most do not.
            let len = (1 + rng.below(SECTORS)).next_multiple_of(1 + 7 * rng.below(2)) * SECTOR;
            self.book.set_len(len as u64, || stubbornly(&|| self.object.set_len(len as u64)));
        } else {
            let range = self.some_range(rng);
            let sectors = sectors_of(&range);
            self.book.write(sectors, 0, || stubbornly(&|| self.object.punch_hole(range.clone())));
        }
    }
    fn some_range(&self, rng: &mut Rng) -> Range<u64> {
        let all = self.object.len() as usize / SECTOR;
        let first = rng.below(all);
        (first * SECTOR) as u64..((first + 1 + rng.below(all - first)) * SECTOR) as u64
    }
    /// Syncs until it succeeds: what a failed flush took away is written again, once nobody has it pinned. Returns how
    /// often it failed.
    fn sync_stubbornly(&self, range: &Range<u64>, pin: &mut Option<Pin>) -> u64 {
        let (sectors, end) = (sectors_of(range), self.object.len());
        for failures in 0..1_000 {
            match self.book.sync(&sectors, || self.object.sync(range.clone())) {
                Ok(()) => return failures,
                Err(Error::Lost { ranges, .. }) => {
                    *pin = None;
                    let lost = ranges.into_iter().flat_map(|r| sectors_of(&(r.start..r.end.min(end))));
                    lost.for_each(|s| self.put(s, false));
                }
                Err(Error::Writeback { .. } | Error::Flush { .. }) => {}
                Err(e) => panic!("sync: {e}"),
            }
        }
        panic!("sync never succeeds");
    }
    fn crash(&self, what: &str, seed: u64) {
        self.book.crash(what, &self.disk, seed);
    }
}

/// Writes, syncs, evicts, and with `cuts` makes holes and moves the end, and crashes all the time.
fn run_and_crash(w: &World, what: &str, seed: u64, cuts: bool) {
    let mut rng = Rng(seed);
    let (mut crashes, mut failures) = (0, 0);
    // A few pages that are written as they are.
    let mut pin = None;
    while crashes < 120 {
        let range = w.some_range(&mut rng);
        match rng.below(24) {
            0 => failures += w.sync_stubbornly(&range, &mut pin),
            1 => failures += w.sync_stubbornly(&(0..LEN as u64), &mut pin),
            2 => {
                let _ = w.object.evict(range).expect("evict");
            }
            3 | 4 => {
                w.crash(what, seed ^ crashes);
                crashes += 1;
            }
            5 if cuts => {
                pin = None;
                w.cut(&mut rng);
            }
            6 => {
                let page = range.start as usize / PAGE;
                let pages =
                    page * PAGE..(page + 1 + rng.below(3)).min(w.object.len().div_ceil(PAGE as u64) as usize) * PAGE;
                pin = rng.below(2).checked_sub(1).map(|_| w.arena.pin(pages, Access::Write).expect("pin"));
            }
            k => w.put(sectors_of(&range).start, k % 4 == 0),
        }
    }
    println!("{what}: {crashes} crashes, {failures} failed syncs");
}

#[test]
fn what_a_sync_acknowledged_survives() {
    let seed = seed();
    println!("SOFTFAULT_CRASH_SEED={seed}");
    common::each_mode("acknowledged", |_, mode| {
        let good = || Behaviour { seed, ..Behaviour::default() };
        for (what, behaviour) in [
            ("good", good()),
            ("failing", Behaviour { write_error_in: 15, flush_error_in: 5, ..good() }),
            ("unflushed", Behaviour { rereads_unflushed: false, is_stable: true, ..good() }),
            ("reordered", Behaviour { reorders: true, ..good() }),
        ] {
            for cuts in [false, true] {
                let w = world(mode, behaviour.clone(), NR / 2);
                run_and_crash(&w, &format!("{mode:?} {what}, cuts {cuts}"), seed, cuts);
            }
        }
    });
}

/// As with `MAP_SYNC`: no store lands in a page whose block a crash could take away.
#[test]
fn blocks_are_durable_before_the_first_store() {
    let seed = seed();
    println!("SOFTFAULT_CRASH_SEED={seed}");
    common::each_of("dsync", &[Delivery::InThread, Delivery::Segv], |_, mode| {
        let w = world_of(mode, Behaviour { seed, ..Behaviour::default() }, NR / 2, true);
        run_and_crash(&w, &format!("{mode:?} dsync"), seed, true);
        assert!(w.disk.events().iter().any(|e| matches!(e, disk::Event::Dsync(..))), "{mode:?}: nobody asked");
    });
}

#[test]
fn crashes_beside_writers_and_a_syncer() {
    let seed = seed();
    println!("SOFTFAULT_CRASH_SEED={seed}");
    common::each_mode("beside", |_, mode| {
        for reorders in [false, true] {
            let w = world(mode, Behaviour { seed, reorders, ..Behaviour::default() }, NR / 2);
            crash_beside(&w, &format!("{mode:?}, reordered {reorders}"), seed);
        }
    });
}

fn crash_beside(w: &World, what: &str, seed: u64) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let stop = &stop;
        for t in 0..2usize {
            s.spawn(move || {
                let mut rng = Rng(seed ^ (t as u64 + 77));
                while !stop.load(Ordering::Relaxed) {
                    // Each sector has one writer.
                    w.put(rng.below(SECTORS / 2) * 2 + t, rng.below(4) == 0);
                }
            });
        }
        s.spawn(move || {
            let mut rng = Rng(seed ^ 99);
            while !stop.load(Ordering::Relaxed) {
                let range = w.some_range(&mut rng);
                let r = match rng.below(3) {
                    0 => w.book.sync(&(0..SECTORS), || w.object.barrier()),
                    _ => w.book.sync(&sectors_of(&range), || w.object.sync(range)),
                };
                r.expect("sync");
            }
        });
        let stopper = StopOnDrop(stop);
        for crash in 0..100 {
            w.crash(what, seed ^ crash);
            std::thread::sleep(Duration::from_micros(300));
        }
        drop(stopper);
    });
    assert!(w.book.nr_safe() > SECTORS / 2, "{what}: only {} sectors were ever synced", w.book.nr_safe());
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
