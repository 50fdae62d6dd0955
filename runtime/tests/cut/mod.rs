//! Threads that store in orders which an image has to keep, and the judge of images of them.
//!
//! ```text
//! pages 0..chains       writer k owns every nr-th page from k on, and stores its turn to one after the other, in an order that
//!                       jumps about: each turn fills a page, word by word, then tells the turn to the others by ordinary memory,
//!                       then keeps beside it how far the next writer was
//! pages of witnesses    a thread loads a word of somebody's page, and stores what it saw here
//! the log               what happened to the last two areas, told after it has
//! an area with holes    filled, punched, filled, ...
//! the tail              filled, cut off, given back, ...
//! ```
//! Everything that is stored only grows, so each order of two stores is a comparison of two numbers of the image.

#![allow(dead_code, reason = "each of the files that have it uses a part")]

mod judge;

use softfault::image::Image;
use softfault::{Arena, Capture, Error, Object, Prot, Runtime, RuntimeBuilder, Sharing};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) const PAGE: usize = 4096;
/// Words of a page that a turn fills, and the bytes between two.
const WORDS: usize = 32;
const STRIDE: usize = PAGE / WORDS;
/// Where a page has how far the next writer was.
const SEEN: usize = 8;
/// Pages of witnesses, of holes, and of the tail.
const WITNESSES: usize = 16;
const HOLES: usize = 24;
const TAIL: usize = 24;
/// What the log says of a turn: so many pages are filled, they are about to go, they went.
const GOING: usize = HOLES + 1;
const GONE: usize = HOLES + 2;
const STEPS: u64 = HOLES as u64 + 3;

/// Where everything is, in pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) writers: usize,
    /// Pages of each writer; a prime, so that every step goes through all of them.
    pub(crate) own: usize,
    /// The first writer stores by `write_at`, a page at once.
    pub(crate) first_by_call: bool,
    /// Its store punches holes as a whole; where it does not, zeros are written page by page.
    pub(crate) punches: bool,
}

impl Plan {
    fn chains(self) -> usize {
        self.writers * self.own
    }
    fn page_of(self, writer: usize, turn: u64) -> usize {
        ((turn as usize % self.own) * 41 % self.own) * self.writers + writer
    }
    fn witness_at(self, page: usize) -> usize {
        (self.chains() + page % WITNESSES) * PAGE + page / WITNESSES * 8
    }
    fn log_at(self, area: usize) -> usize {
        (self.chains() + WITNESSES) * PAGE + area * STRIDE
    }
    pub(crate) fn holes(self) -> std::ops::Range<usize> {
        let first = self.chains() + WITNESSES + 1;
        // In one extent: longer holes are punched one by one.
        let first = if first % 512 + HOLES > 512 { first.next_multiple_of(512) } else { first };
        first..first + HOLES
    }
    pub(crate) fn tail(self) -> std::ops::Range<usize> {
        let first = self.holes().end;
        first..first + TAIL
    }
    pub(crate) fn nr_pages(self) -> usize {
        self.tail().end
    }
    pub(crate) fn len_bytes(self) -> usize {
        self.nr_pages() * PAGE
    }
}

/// An arena over an object, perhaps a second one, and how far each writer is.
pub(crate) struct World {
    pub(crate) rt: Runtime,
    pub(crate) arena: Arena,
    pub(crate) other: Option<Arena>,
    pub(crate) object: Object,
    pub(crate) plan: Plan,
    pub(crate) folder: PathBuf,
    turns: Vec<AtomicU64>,
    pub(crate) stop: AtomicBool,
    /// How long the closure takes.
    pub(crate) lingers: Duration,
    /// Each image is one over the last one.
    pub(crate) increments: bool,
    last: Mutex<Option<PathBuf>>,
    /// The second half of the pages, if they are another object's.
    second: Option<Object>,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for World {
    fn drop(&mut self) {
        quiet();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// No rule is broken, nobody is delayed.
pub(crate) fn quiet() {
    #[cfg(debug_assertions)]
    {
        use softfault::mm::trace::{Point, disarm};
        softfault::mm::cut::naive::set(0);
        let points = [Point::CAPTURE_ADMITTED, Point::CAPTURE_HELD, Point::CAPTURE_COPIED, Point::CAPTURE_WALKED];
        points.into_iter().chain([Point::CAPTURE_CUT]).for_each(disarm);
    }
}

/// Stores come to most pages before the walker does: otherwise nobody would have to save one.
pub(crate) fn slow_walker() {
    #[cfg(debug_assertions)]
    softfault::mm::trace::arm_spin(softfault::mm::trace::Point::CAPTURE_WALKED, 200);
}

/// Captures, their failpoints and their rules are the process's: a test has its turn.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder for files of test `name`, empty.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("softfault-cut-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Makes an arena that can be captured; `None`: it cannot be had here, which is said.
pub(crate) fn capturable(rt: &Runtime, len_bytes: usize) -> Option<Arena> {
    match rt.arena(len_bytes).capturable(true).build() {
        Ok(arena) => Some(arena),
        Err(Error::Delivery { why, .. }) => {
            println!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// What an object of the test is made of.
pub(crate) type Make = fn(&Runtime, &Path, usize) -> Object;

pub(crate) fn anonymous(rt: &Runtime, _: &Path, len_bytes: usize) -> Object {
    rt.anonymous(len_bytes as u64).expect("memory")
}

pub(crate) fn file(rt: &Runtime, folder: &Path, len_bytes: usize) -> Object {
    let path = folder.join("file");
    std::fs::write(&path, vec![0u8; len_bytes]).expect("room");
    rt.open_file_rw(&path).expect("it is there")
}

pub(crate) fn map(arena: &Arena, object: &Object, len_bytes: usize) {
    arena.map(0, object, 0, len_bytes, Prot::ReadWrite, Sharing::Shared).expect("room");
}

pub(crate) fn word(arena: &Arena, at: usize) -> &AtomicU64 {
    // SAFETY: mapped for stores by each test, aligned, and every access of it is atomic.
    unsafe { &*arena.as_ptr().wrapping_add(at).cast() }
}

impl World {
    /// `None`: capturable arenas cannot be had here.
    pub(crate) fn new(name: &str, plan: Plan, builder: RuntimeBuilder, make: Make) -> Option<Self> {
        let turn = turn();
        quiet();
        slow_walker();
        let folder = folder(name);
        let rt = builder.build().expect("a runtime");
        let arena = capturable(&rt, plan.len_bytes())?;
        let object = make(&rt, &folder, plan.len_bytes());
        map(&arena, &object, plan.len_bytes());
        let turns = (0..plan.writers).map(|_| AtomicU64::new(0)).collect();
        let (stop, lingers) = (AtomicBool::new(false), Duration::ZERO);
        Some(Self {
            rt,
            arena,
            other: None,
            object,
            plan,
            folder,
            turns,
            stop,
            lingers,
            last: Mutex::default(),
            increments: false,
            second: None,
            _turn: turn,
        })
    }

    /// Maps the object in a second arena, through which every second writer stores.
    pub(crate) fn twice(mut self) -> Self {
        let other = capturable(&self.rt, self.plan.len_bytes()).expect("as the first");
        map(&other, &self.object, self.plan.len_bytes());
        self.other = Some(other);
        self
    }

    /// Maps another object in place of the first one's second half: each writer's chain runs through both.
    pub(crate) fn split(mut self, make: Make) -> Self {
        let half = self.plan.nr_pages() / 2 * PAGE;
        let (len, folder) = (self.plan.len_bytes() - half, self.folder.join("second"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let second = make(&self.rt, &folder, len);
        self.arena.unmap(half..self.plan.len_bytes()).expect("it is mapped");
        self.arena.map(half, &second, 0, len, Prot::ReadWrite, Sharing::Shared).expect("room");
        self.second = Some(second);
        self
    }

    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Stores turn after turn.
    fn write(&self, writer: usize) {
        let arena = self.other.as_ref().filter(|_| writer % 2 == 1).unwrap_or(&self.arena);
        let by_call = self.plan.first_by_call && writer == 0;
        let next = &self.turns[(writer + 1) % self.plan.writers];
        // On from an earlier run.
        let mut turn = self.turns[writer].load(Ordering::Relaxed);
        while self.goes_on() {
            turn += 1;
            let at = self.plan.page_of(writer, turn) * PAGE;
            if by_call {
                self.write_by_call(at, turn);
            } else {
                (0..WORDS).for_each(|w| word(arena, at + w * STRIDE).store(turn, Ordering::Relaxed));
            }
            // Release and acquire: who has seen the turn stores after it.
            self.turns[writer].store(turn, Ordering::Release);
            let seen = next.load(Ordering::Acquire);
            word(arena, at + SEEN).store(seen, Ordering::Relaxed);
        }
    }

    fn write_by_call(&self, at: usize, turn: u64) {
        let mut page = [0u8; PAGE];
        page.chunks_exact_mut(STRIDE).for_each(|s| s[..8].copy_from_slice(&turn.to_le_bytes()));
        assert_eq!(self.object.write_at(at as u64, &page).expect("room"), PAGE);
    }

    /// Stores what it has seen of others' pages.
    fn witness(&self) {
        let mut x = 1u64;
        while self.goes_on() {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let page = (x >> 33) as usize % self.plan.chains();
            // The last word that a turn fills. Acquire: the store beneath comes after what was seen, for the compiler too.
            let seen = word(&self.arena, page * PAGE + (WORDS - 1) * STRIDE).load(Ordering::Acquire);
            word(&self.arena, self.plan.witness_at(page)).store(seen, Ordering::Relaxed);
        }
    }

    /// Fills pages, has them go, and so on; says of each page that it is filled, that they are about to go, and that they went.
    pub(crate) fn fill_and_drop(&self, area: usize, go: impl Fn(&std::ops::Range<usize>)) {
        let pages = [self.plan.holes(), self.plan.tail()][area].clone();
        let log = word(&self.arena, self.plan.log_at(area));
        let mut turn = log.load(Ordering::Relaxed) / STEPS;
        while self.goes_on() {
            turn += 1;
            let say = |step: usize| log.store(turn * STEPS + step as u64, Ordering::Relaxed);
            for (nr, page) in pages.clone().enumerate() {
                word(&self.arena, page * PAGE).store(turn, Ordering::Relaxed);
                word(&self.arena, page * PAGE + PAGE - 8).store(turn, Ordering::Relaxed);
                say(nr + 1);
            }
            say(GOING);
            go(&(pages.start * PAGE..pages.end * PAGE));
            say(GONE);
        }
    }

    /// Makes a cut for an image, and keeps what its closure saw.
    ///
    /// # Errors
    /// Those of the capture.
    pub(crate) fn begin(&self, path: &Path, mirrors: bool) -> Result<(Capture, Seen), Error> {
        let bytes = vec![0u8; if mirrors { self.plan.len_bytes() } else { 0 }];
        let mut seen = Seen { bytes, turns: vec![0; self.plan.writers] };
        let at_cut = || {
            // SAFETY: loads of what each test has mapped; whoever stores to it waits.
            unsafe { self.arena.as_ptr().copy_to_nonoverlapping(seen.bytes.as_mut_ptr(), seen.bytes.len()) };
            seen.turns.iter_mut().zip(&self.turns).for_each(|(seen, turn)| *seen = turn.load(Ordering::Acquire));
            if !self.lingers.is_zero() {
                std::thread::sleep(self.lingers);
            }
            Ok::<(), Infallible>(())
        };
        let mut builder = self.rt.capture().arena(&self.arena);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parent) = last.as_ref().filter(|_| self.increments) {
            builder = builder.over(Arc::new(Image::open(parent).expect("an image")));
        }
        let capture = builder.begin(path, at_cut)?;
        *last = Some(path.to_path_buf());
        Ok((capture, seen))
    }

    /// Says what is wrong with an image.
    ///
    /// # Errors
    /// What is not of the moment of the cut.
    pub(crate) fn judge(&self, path: &Path, seen: &Seen) -> Result<(), String> {
        let bytes = read(path);
        // A closure that did not look has seen nothing.
        if let Some(at) = bytes.iter().zip(&seen.bytes).position(|(a, b)| a != b) {
            return Err(format!("byte {at:#x} (page {}) is not what the closure saw", at / PAGE));
        }
        judge::turns(self.plan, &bytes, &seen.turns)?;
        judge::judge(self.plan, &bytes)
    }

    /// Runs writers, a witness, and whoever else, while `f` does.
    pub(crate) fn run(&self, others: &[&(dyn Fn(&Self) + Sync)], f: impl FnOnce()) {
        self.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|s| {
            let _stop = StopOnDrop(&self.stop);
            (0..self.plan.writers).for_each(|writer| _ = s.spawn(move || self.write(writer)));
            s.spawn(|| self.witness());
            others.iter().for_each(|other| _ = s.spawn(|| other(self)));
            f();
        });
    }

    /// Waits until the writers have got on.
    pub(crate) fn gets_on(&self) {
        for (writer, turn) in self.turns.iter().enumerate() {
            let before = turn.load(Ordering::Relaxed);
            until(&format!("writer {writer}"), || turn.load(Ordering::Relaxed) > before);
        }
    }

    /// Captures `nr` times while all run; returns what is wrong with images. `mirrors`: the closure of every second cut copies
    /// everything, and the image has to be the same.
    pub(crate) fn cuts(&self, nr: u32, mirrors: bool, others: &[&(dyn Fn(&Self) + Sync)]) -> Vec<String> {
        let path = |number: u32| self.folder.join(format!("{number}.sfi"));
        let mut all = Vec::new();
        self.run(others, || {
            for number in 0..nr {
                self.gets_on();
                let (capture, seen) = self.begin(&path(number), mirrors && number % 2 == 1).expect("a cut");
                capture.commit().expect("an image");
                all.push(seen);
            }
        });
        // When the others have ended, who would take the processors.
        (0..nr).zip(&all).filter_map(|(number, seen)| self.judge(&path(number), seen).err()).collect()
    }
}

/// Says what is wrong with an image of whose cut nothing else is known.
///
/// # Errors
/// What is not of one moment.
pub(crate) fn judge_file(plan: Plan, path: &Path) -> Result<(), String> {
    judge::judge(plan, &read(path))
}

/// What the closure of a cut saw: all bytes, if it looked, and how far the writers were.
pub(crate) struct Seen {
    bytes: Vec<u8>,
    turns: Vec<u64>,
}

/// The bytes that an image has.
pub(crate) fn read(path: &Path) -> Vec<u8> {
    let image = Image::open(path).expect("an image");
    let mut bytes = vec![0u8; image.nr_pages() as usize * PAGE];
    image.reader().read(0, &mut bytes).expect("it is whole");
    bytes
}

/// Tells the threads of a scope to stop, when the test is done and when it fails.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for what must come.
pub(crate) fn until(what: &str, f: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if f() {
            return;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    panic!("{what}: never");
}
