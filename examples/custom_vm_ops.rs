//! A vtable of one's own: memory whose pages are computed when they are first touched.
//!
//! `cargo run --release --example custom_vm_ops`
//!
//! The object is a table of primes: bit `b` of byte `i` says whether `8 * i + b` is prime. No page exists before a load
//! asks for it; `VmOps::fault` then sieves the 32,768 numbers of that page, in the faulting thread, in a signal handler:
//! no allocation, no lock, no panic. Two threads on one page compute it once.

use softfault::{Prot, Runtime, Sharing, VmFault, VmFaultReason, VmOps, filemap};
use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PAGE: usize = 4096;
const PAGES: usize = 1024;
/// Numbers of one page.
const PER_PAGE: u64 = 8 * PAGE as u64;
const NUMBERS: u64 = PER_PAGE * PAGES as u64;

static COMPUTED: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
struct Primes;

impl VmOps for Primes {
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        let first = vmf.pgoff().wrapping_mul(PER_PAGE);
        filemap::fill_with(vmf, &mut |page| {
            COMPUTED.fetch_add(1, Ordering::Relaxed);
            sieve_page(first, page);
        })
    }

    // Neighbours that are computed already are mapped with the touched page.
    fn map_pages(&self, vmf: &mut VmFault<'_>, start: u64, end: u64) -> VmFaultReason {
        filemap::map_pages(vmf, start, end, 0)
    }
}

/// Marks the primes of `first..first + 8 * page.len()`, by crossing out the multiples of every smaller number.
fn sieve_page(first: u64, page: &mut [u8]) {
    page.fill(0xff);
    let end = first + 8 * page.len() as u64;
    let cross_out = |page: &mut [u8], n: u64| {
        let bit = n - first;
        if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|i| page.get_mut(i)) {
            *byte &= !(1 << (bit % 8));
        }
    };
    for n in first..end.min(2) {
        cross_out(page, n);
    }
    let mut d = 2;
    while d * d < end {
        let mut n = (d * d).max(first.next_multiple_of(d));
        while n < end {
            cross_out(page, n);
            n += d;
        }
        d += if d == 2 { 1 } else { 2 };
    }
}

const HELP: &str =
    "usage: custom_vm_ops\n\nA table of primes whose pages are computed when they are first touched. No options.";

fn main() -> ExitCode {
    if let Some(arg) = std::env::args().nth(1) {
        if arg == "--help" || arg == "-h" {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        eprintln!("custom_vm_ops: {arg}: no such option\n\n{HELP}");
        return ExitCode::from(2);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("custom_vm_ops: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let rt = Runtime::new()?;
    print!("{}", rt.delivery());
    let len = PAGES * PAGE;
    // SAFETY: `Primes` is fit for a signal handler: it computes, and counts with an atomic; nothing in it allocates,
    // locks, panics or touches an arena.
    let object = unsafe { rt.object(len as u64).vm_ops(Box::new(Primes)) }?;
    let arena = rt.arena(len).build()?;
    arena.map(0, &object, 0, len, Prot::Read, Sharing::Shared)?;
    // SAFETY: mapped readable above, never unmapped; nobody writes to a read-only object.
    let table = unsafe { arena.as_slice(0..len) };

    // One look at the far end computes one page.
    let far = 8 * (len - 1) + 7;
    println!("is {far} prime? {}", is_prime(table, far));
    println!("pages computed so far: {}", COMPUTED.load(Ordering::Relaxed));

    // All threads race over the whole table.
    let counts = std::thread::scope(|s| {
        let readers: Vec<_> =
            (0..4).map(|_| s.spawn(|| table.iter().map(|b| u64::from(b.count_ones())).sum())).collect();
        readers.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<std::thread::Result<Vec<u64>>>()
    });
    let counts = counts.map_err(|_| "a reader panicked")?;
    println!("primes below {NUMBERS}: {} (each of {} readers)", counts[0], counts.len());

    verify(table, &counts)?;
    let computed = COMPUTED.load(Ordering::Relaxed);
    println!("every bit is right; {computed} pages were computed for {PAGES} pages and 4 readers");
    if computed == PAGES as u64 { Ok(()) } else { Err(format!("{computed} pages computed, must be {PAGES}").into()) }
}

fn is_prime(table: &[u8], n: usize) -> bool {
    table[n / 8] & (1 << (n % 8)) != 0
}

/// Compares the table with an ordinary sieve.
fn verify(table: &[u8], counts: &[u64]) -> Result<()> {
    let nr = 8 * table.len();
    let mut prime = vec![true; nr];
    prime[..2].fill(false);
    for d in 2..nr {
        if d * d >= nr {
            break;
        }
        if prime[d] {
            (d * d..nr).step_by(d).for_each(|n| prime[n] = false);
        }
    }
    if let Some(n) = (0..nr).find(|n| prime[*n] != is_prime(table, *n)) {
        return Err(format!("{n} is wrong: prime is {}", prime[n]).into());
    }
    let must = prime.iter().filter(|p| **p).count() as u64;
    match counts.iter().find(|c| **c != must) {
        Some(c) => Err(format!("a reader counted {c} primes, there are {must}").into()),
        None => Ok(()),
    }
}
