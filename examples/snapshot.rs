//! An image of memory while threads store to it: of one moment, and restored page by page.
//!
//! `cargo run --release --example snapshot`
//!
//! Four threads move money between accounts that are spread over 8 MiB, all the time. A capture writes an image of these
//! meanwhile. Its closure runs at the moment of the cut, when stores wait for a millisecond or so: it adds the accounts up, and takes
//! a sum that depends on each byte. A program would note there what belongs to the moment and lies elsewhere: registers, devices,
//! the position in a log; reading all memory is for the sake of this example. The image is then restored, lazily, beside the
//! memory it is of, and has to give the same two sums.

use softfault::{Arena, OpenImage, Prot, Restore, Runtime, Sharing};
use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PAGE: usize = 4096;
const PAGES: usize = 2048;
/// One account in each 512 bytes.
const STRIDE: usize = 512;
const ACCOUNTS: usize = PAGES * PAGE / STRIDE;
const THREADS: usize = 4;
const FIRST_BALANCE: u64 = 1000;

const HELP: &str = "usage: snapshot\n\nCaptures 8 MiB of memory while four threads store to it, restores the image, and compares. No options.";

fn main() -> ExitCode {
    if let Some(arg) = std::env::args().nth(1) {
        if arg == "--help" || arg == "-h" {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        eprintln!("snapshot: {arg}: no such option\n\n{HELP}");
        return ExitCode::from(2);
    }
    let folder = std::env::temp_dir().join(format!("softfault-snapshot-{}", std::process::id()));
    let done = std::fs::create_dir_all(&folder).map_err(Into::into).and_then(|()| run(&folder));
    // What is left of a run is of no use to anybody.
    let _ = std::fs::remove_dir_all(&folder);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("snapshot: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The accounts at an address: all that is read or stored there is read and stored atomically.
#[derive(Clone, Copy)]
struct Bank<'a> {
    base: *mut u8,
    _mapped: &'a Arena,
}

// SAFETY: it names memory that the arena keeps mapped, and every access is atomic.
unsafe impl Send for Bank<'_> {}
// SAFETY: as above.
unsafe impl Sync for Bank<'_> {}

/// What an image has to give again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    /// Of all accounts. Money on its way is in none, and no more than each thread's one coin.
    money: u64,
    /// Of all accounts, each by its place.
    mixed: u64,
}

impl<'a> Bank<'a> {
    /// `base`: where `ACCOUNTS * STRIDE` bytes of the arena are mapped.
    fn new(base: *mut u8, mapped: &'a Arena) -> Self {
        Self { base, _mapped: mapped }
    }

    fn account(self, i: usize) -> &'a AtomicU64 {
        let at = self.base.wrapping_add(i % ACCOUNTS * STRIDE);
        // SAFETY: mapped for as long as the arena is borrowed, aligned, and of atomics alone.
        unsafe { &*at.cast::<AtomicU64>() }
    }

    fn sums(self) -> Sums {
        (0..ACCOUNTS).fold(Sums::default(), |sums, i| {
            let balance = self.account(i).load(Ordering::Relaxed);
            let mixed = (sums.mixed ^ balance).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
            Sums { money: sums.money + balance, mixed }
        })
    }

    /// Moves coins until it is told to stop; returns how many.
    fn trade(self, seed: usize, stop: &AtomicBool) -> u64 {
        let (mut at, mut moved) = (seed, 0);
        while !stop.load(Ordering::Relaxed) {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (from, to) = (self.account(at >> 33), self.account(at >> 17));
            if from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |b| b.checked_sub(1)).is_ok() {
                to.fetch_add(1, Ordering::Relaxed);
                moved += 1;
            }
        }
        moved
    }
}

fn run(folder: &Path) -> Result<()> {
    let rt = Runtime::new()?;
    let len = PAGES * PAGE;
    let arena = rt.arena(len).capturable(true).build()?;
    arena.map(0, &rt.anonymous(len as u64)?, 0, len, Prot::ReadWrite, Sharing::Shared)?;
    let bank = Bank::new(arena.as_ptr(), &arena);
    (0..ACCOUNTS).for_each(|i| bank.account(i).store(FIRST_BALANCE, Ordering::Relaxed));

    let path = folder.join("bank.sfi");
    let (stop, at_cut) = (AtomicBool::new(false), Cell::new(Sums::default()));
    let moved: Result<u64> = std::thread::scope(|s| {
        let stop = &stop;
        let traders: Vec<_> = (0..THREADS).map(|seed| s.spawn(move || bank.trade(seed, stop))).collect();
        let captured = capture(&rt, &arena, &path, &|| at_cut.set(bank.sums()));
        stop.store(true, Ordering::Relaxed);
        let moved = traders.into_iter().map(|t| t.join().unwrap_or(0)).sum();
        captured.map(|()| moved)
    });
    println!("coins moved meanwhile: {}", moved?);

    let image = rt.open_image(&path)?;
    let restored = restore(&image)?;
    let (expected, now) = (at_cut.get(), bank.sums());
    println!("at the cut {expected:?}\nrestored   {restored:?}\nnow        {now:?}");
    let all = ACCOUNTS as u64 * FIRST_BALANCE;
    if restored != expected || all - restored.money > THREADS as u64 {
        return Err("the image is not what the memory was at the cut".into());
    }
    println!("the image is of one moment");
    Ok(())
}

/// Writes an image of the arena, and says what it took.
fn capture(rt: &Runtime, arena: &Arena, path: &Path, at_cut: &dyn Fn()) -> Result<()> {
    // After a tenth of a second stores would be let through, and the closure called again.
    let closure = || {
        at_cut();
        Ok::<(), Infallible>(())
    };
    let capture = rt.capture().arena(arena).key("made by", b"the example snapshot").begin(path, closure)?;
    let held = capture.progress().held;
    let digest = capture.commit()?;
    let stats = rt.stats();
    println!("image {digest}: stores waited for {held:?} at most, the closure's time included");
    let [kept, copied] = ["saved", "walked"].map(|who| stats[format!("process_capture_{who}_pages").as_str()]);
    println!("pages kept for stores to them: {kept}, copied in passing: {copied}");
    Ok(())
}

/// Adds up what an image has, each page read when it is touched.
fn restore(image: &OpenImage) -> Result<Sums> {
    let session = Restore::new(image).build()?;
    let region = session.regions().first().ok_or("the image has no region")?;
    Ok(Bank::new(region.as_ptr(), region.arena()).sums())
}
