//! A minor delegate: told of the first touch of each cached page, before it is mapped; it counts and rewrites.
//!
//! `cargo run --release --example minor_delegate`
//!
//! The scenario is the kernel's own self-test of minor faults: the memory is populated through the other side (here:
//! by call), then every page's first touch through the arena goes to a delegate that flips every byte. Eight threads
//! race on every page; each page is told once, and nobody sees a byte that was not flipped.

use softfault::{Access, MinorDelegate, MinorFault, MinorVerdict, Prot, Runtime, Sharing};
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PAGE: usize = 4096;
const PAGES: usize = 2048;
const READERS: usize = 8;

#[derive(Default)]
struct Counts {
    told: AtomicU64,
    failed: AtomicU64,
}

/// Flips every byte of each page. It runs on a worker thread, so it may allocate, lock and print.
struct Flip(Arc<Counts>);

impl MinorDelegate for Flip {
    fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
        self.0.told.fetch_add(1, Ordering::Relaxed);
        let flipped = fault.rewrite(&mut |page| page.iter_mut().for_each(|b| *b = !*b));
        if flipped.is_err() {
            // The page is shown as it is then; this example calls that a failure.
            self.0.failed.fetch_add(1, Ordering::Relaxed);
        }
        MinorVerdict::Continue
    }
}

fn content(page: usize, i: usize) -> u8 {
    u8::try_from((page * 31 + i) % 251).unwrap_or(0)
}

const HELP: &str = "usage: minor_delegate\n\nA delegate is told of the first touch of each of 2048 cached pages, and rewrites it. No options.";

fn main() -> ExitCode {
    if let Some(arg) = std::env::args().nth(1) {
        if arg == "--help" || arg == "-h" {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        eprintln!("minor_delegate: {arg}: no such option\n\n{HELP}");
        return ExitCode::from(2);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("minor_delegate: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let rt = Runtime::new()?;
    print!("{}", rt.delivery());
    let len = PAGES * PAGE;
    let object = rt.anonymous(len as u64)?;
    for page in 0..PAGES {
        let bytes: Vec<u8> = (0..PAGE).map(|i| content(page, i)).collect();
        object.write_at((page * PAGE) as u64, &bytes)?;
    }

    let arena = rt.arena(len).build()?;
    arena.map(0, &object, 0, len, Prot::Read, Sharing::Shared)?;
    let counts = Arc::new(Counts::default());
    arena.delegate_minor(0..len, Box::new(Flip(Arc::clone(&counts))))?;

    let wrong: usize = std::thread::scope(|s| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                s.spawn(|| {
                    // SAFETY: mapped readable above, never unmapped. The delegate rewrites a page only before it is
                    // mapped here, so no byte changes that a load has seen.
                    let bytes = unsafe { arena.as_slice(0..len) };
                    (0..PAGES).filter(|p| (0..PAGE).any(|i| bytes[p * PAGE + i] != !content(*p, i))).count()
                })
            })
            .collect();
        readers.into_iter().map(|r| r.join().unwrap_or(PAGES)).sum()
    });

    let (told, failed) = (counts.told.load(Ordering::Relaxed), counts.failed.load(Ordering::Relaxed));
    let stats = rt.stats();
    println!("{PAGES} pages, {READERS} threads racing on each");
    println!("minor faults told: {told} (counted by the runtime: {})", stats["uffd_minor_told"]);
    println!("missing faults on the delegated range: {}", stats["uffd_missing"]);
    println!("pages with a byte that was not flipped: {wrong}");
    // What is told stays told: touching again calls nobody.
    arena.fault_in(0..len, Access::Read)?;
    let again = counts.told.load(Ordering::Relaxed) - told;
    let exact = told == PAGES as u64 && again == 0 && failed == 0 && wrong == 0 && stats["uffd_missing"] == 0;
    if exact { Ok(()) } else { Err(format!("told {told}, again {again}, failed {failed}, wrong {wrong}").into()) }
}
