//! Which replacement policy, and how tuned: hit rates, faults and weighted cost of policies over traces.
//!
//! `cargo bench -p softfault-benches --bench replacement -- [--live] [--json FILE] [--quick] [--only TRACE,..]`
//!
//! A simulation with fixed seeds: two runs print the same figures, whatever the machine. `--runs` and `--dir` change
//! nothing. `--live` replays the traces in the running cache instead, and prints its faults beside the simulated ones.

mod candidates;
mod live;
mod table;

use candidates::Candidate;
use softfault_benches::args::Options;
use softfault_benches::program;
use softfault_benches::replacement;
use softfault_benches::replacement::trace::Shape;
use softfault_benches::{Error, Result};
use std::process::ExitCode;
use table::{CACHES_PCT, Cell};

/// Accesses per page of the object; a quarter of them warms the cache up.
const PASSES: usize = 16;

fn main() -> ExitCode {
    program::exit("replacement", run().map(|()| true))
}

fn run() -> Result<()> {
    let (live, args): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|a| a == "--live");
    let options = Options::parse(args.into_iter(), env!("CARGO_TARGET_TMPDIR"))?;
    let shapes = wanted(&options)?;
    if options.list {
        shapes.iter().for_each(|s| println!("{}", s.name()));
        return Ok(());
    }
    let nr_pages: u32 = if options.quick { 1 << 13 } else { 1 << 15 };
    if !live.is_empty() {
        return live::run(&shapes, nr_pages / 2);
    }
    let candidates = candidates::all();
    let mut cells = Vec::new();
    for &cache_pct in CACHES_PCT {
        for &shape in &shapes {
            simulate(nr_pages, cache_pct, shape, &candidates, &mut cells);
        }
    }
    println!("object {nr_pages} pages, {PASSES} accesses a page, the first quarter not counted");
    table::print(&cells, &shapes, &candidates);
    match &options.json {
        Some(path) => table::write_json(path, nr_pages, &cells),
        None => Ok(()),
    }
}

/// Returns the traces that were asked for.
fn wanted(options: &Options) -> Result<Vec<Shape>> {
    if let Some(unknown) = options.only.iter().find(|o| !Shape::ALL.iter().any(|s| s.name() == *o)) {
        return Err(Error::Usage(format!("--only {unknown}: no such trace; see --list")));
    }
    Ok(Shape::ALL.iter().copied().filter(|s| options.wants(s.name())).collect())
}

fn simulate(nr_pages: u32, cache_pct: u32, shape: Shape, candidates: &[Candidate], cells: &mut Vec<Cell>) {
    let limit = nr_pages * cache_pct / 100;
    let trace = shape.generate(nr_pages, limit, nr_pages as usize * PASSES);
    for candidate in candidates {
        let mut policy = (candidate.make)(nr_pages as usize, limit as usize, &trace);
        let counts = replacement::run(policy.as_mut(), &trace, trace.len() / 4);
        cells.push(Cell { cache_pct, shape, candidate: candidate.name, group: candidate.group, counts });
    }
}
