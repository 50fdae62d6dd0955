//! The same traces through the running cache: real faults, counted by the runtime, beside what the simulation foretells.

use softfault::{Delivery, HandlerStore, PageMut, Prot, Runtime, Sharing, Store, StoreError};
use softfault_benches::area::{View, check_sum, page_byte};
use softfault_benches::replacement::lru::Lru;
use softfault_benches::replacement::opt::Opt;
use softfault_benches::replacement::staged::{Staged, Tuning};
use softfault_benches::replacement::trace::Shape;
use softfault_benches::replacement::{self, Counts};
use softfault_benches::{Error, PAGE, Result};

/// Cache sizes, in percent of the object.
const CACHES_PCT: &[u32] = &[10, 25];
/// Accesses per page of the object; a quarter of them warms the cache up.
const PASSES: usize = 16;

/// Runs `shapes` over an object of `nr_pages` and prints both sides, in faults per million accesses.
pub(crate) fn run(shapes: &[Shape], nr_pages: u32) -> Result<()> {
    println!("object {nr_pages} pages, {PASSES} accesses a page, the first quarter not counted");
    println!("faults per million accesses, in the running cache and in the simulation");
    println!("lru and opt: the misses of policies that see every access");
    let heads = ["major", "simulated", "lru", "opt", "minor", "simulated", "unmapped", "simulated"];
    let heads: String = heads.iter().map(|h| format!("{h:>11}")).collect();
    println!("{:>16}{:>7}{heads}{:>10}", "trace", "cache", "stalls");
    for &cache_pct in CACHES_PCT {
        for &shape in shapes {
            let limit = nr_pages * cache_pct / 100;
            let trace = shape.generate(nr_pages, limit, nr_pages as usize * PASSES);
            let (live, stalls) = replay(&trace, nr_pages as usize, u64::from(limit))?;
            let mut policy = Staged::new(nr_pages as usize, limit as usize, Tuning::RUNNING);
            let simulated = replacement::run(&mut policy, &trace, trace.len() / 4);
            let counted = trace.len() / 4;
            let lru = replacement::run(&mut Lru::new(nr_pages as usize, limit as usize), &trace, counted);
            let opt = replacement::run(&mut Opt::new(nr_pages as usize, limit as usize, &trace), &trace, counted);
            print(shape, cache_pct, [&live, &simulated], [&lru, &opt], stalls);
        }
    }
    Ok(())
}

fn print(shape: Shape, cache_pct: u32, sides: [&Counts; 2], yardsticks: [&Counts; 2], stalls: u64) {
    let of = |counts: [&Counts; 2], f: fn(&Counts) -> f64| counts.map(|c| format!("{:>11.0}", 1000.0 * f(c))).concat();
    let row = of(sides, Counts::major_per_1000)
        + &of(yardsticks, Counts::major_per_1000)
        + &of(sides, Counts::minor_per_1000)
        + &of(sides, Counts::unmapped_per_1000);
    println!("{:>16}{cache_pct:>6}%{row}{stalls:>10}", shape.name());
}

/// Loads from each page of `trace` in an arena of its own; returns what the runtime counted, and how often the loading
/// thread had to make room by itself.
fn replay(trace: &[u32], nr_pages: usize, limit_pages: u64) -> Result<(Counts, u64)> {
    let wrong = |e: softfault::Error| Error::Wrong(e.to_string());
    let len_bytes = nr_pages * PAGE;
    let runtime = Runtime::builder().cache_limit(limit_pages * PAGE as u64).build().map_err(wrong)?;
    let object = runtime.object(len_bytes as u64).fill_window_pages(1);
    let object = object.handler_store(Box::new(Pattern)).map_err(wrong)?;
    // Page by page: what the simulation knows nothing of is off.
    let arena = runtime.arena(len_bytes).delivery(Delivery::InThread).fault_around(false).native_extents(false);
    let arena = arena.build().map_err(wrong)?;
    arena.map(0, &object, 0, len_bytes, Prot::Read, Sharing::Shared).map_err(wrong)?;
    // SAFETY: the whole arena stays mapped until the end of this function, and nobody stores to it.
    let view = unsafe { View::new(arena.as_ptr() as usize, len_bytes) };
    let (cold, counted) = trace.split_at(trace.len() / 4);
    check_sum(view.sum(cold), cold)?;
    let before = runtime.stats();
    check_sum(view.sum(counted), counted)?;
    let after = runtime.stats();
    let of = |name| after[name] - before[name];
    let (minor, major, unmapped) = (of("pgminfault"), of("pgmajfault"), of("pgdeactivate"));
    Ok((Counts { accesses: counted.len() as u64, minor, major, unmapped }, of("allocstall")))
}

/// A store without any bytes of its own.
#[derive(Debug)]
struct Pattern;

impl Store for Pattern {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> std::result::Result<(), StoreError> {
        let first = usize::try_from(pos_bytes).unwrap_or(0) / PAGE;
        for (i, page) in page.as_mut_slice().chunks_mut(PAGE).enumerate() {
            page.fill(page_byte(first + i));
        }
        Ok(())
    }
}

// SAFETY: arithmetic and stores to the bytes it is lent.
unsafe impl HandlerStore for Pattern {}
