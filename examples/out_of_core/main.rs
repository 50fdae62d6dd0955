//! Sorts a file that is four times as large as the cache it is mapped through, and draws how the cache fared.
//!
//! `cargo run --release --example out_of_core -- [--cache 32M] [--size 128M] [--threads N] [--dir DIR] [--keep] [--svg FILE]`
//!
//! It makes a file of random records, maps it and a second, empty file into arenas, and sorts from the one into the
//! other with plain loads and stores: count the keys, scatter the records to their buckets, sort each bucket in place.
//! Pages come and go as the limit of the cache demands, dirty ones by way of the file. `sync_all` makes the result
//! durable. Then the same sort is done without the runtime, by `pread(2)` into memory, and every record is compared.
//!
//! The exit status is 1 when a record is wrong, or when the cache took more memory than it may.

#[path = "../bytes.rs"]
mod bytes;
mod options;
mod picture;
mod plain;
mod record;
mod sort;
mod units;
mod watch;

use bytes::mib;
use options::Options;
use record::RECORD_BYTES;
use softfault::{Runtime, Stats};
use sort::Table;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use units::{PAGE, Result, hit_rate, rate};
use watch::{Line, Progress, Watch};

/// What the memory of the cache may take beyond the limit: pages that come while others go.
const SLACK_BYTES: u64 = 32 << 20;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("out_of_core: {e}\n\n{}", options::HELP);
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("out_of_core: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let unwritable = |e| format!("{}: {e}", options.svg.display());
    // Before the work, not after it: a path that cannot be had.
    let mut svg = File::create(&options.svg).map_err(unwritable)?;
    let mut line = Line::new();
    let input = plain::create(options, "input")?;
    let output = plain::create(options, "output")?;
    plain::make(&input, options.records(), &mut line)?;
    output.set_len(options.size_bytes)?;

    let rt = Runtime::builder().cache_limit(options.cache_bytes).build()?;
    println!(
        "{} records of {RECORD_BYTES} bytes ({}), cache {}, {} threads, {:?} delivery\n",
        options.records(),
        mib(options.size_bytes),
        mib(options.cache_bytes),
        options.threads,
        rt.delivery().chosen
    );
    let source = Table::map(&rt, &rt.file_options().direct(true).file(&input)?, false)?;
    let sorted = Table::map(&rt, &rt.file_options().writable(true).direct(true).file(&output)?, true)?;
    let progress = Progress::default();
    let watch = Watch::new(&rt, &progress, options.cache_bytes);
    let (result, seen) = watch.during(&mut line, || sort::run(&source, &sorted, options, &progress));
    result?;
    let stats = rt.stats();
    // The arenas go, the cache with them: from here on there are only files.
    drop((source, sorted, rt));

    summary(options, &stats, &seen);
    svg.write_all(picture::draw(options, &stats, &seen).as_bytes()).map_err(unwritable)?;
    println!("  picture         {}", options.svg.display());
    plain::check(&input, &output, options.records(), &mut line)?;
    println!("\nthe same sort by plain reads gives the same file, record for record");
    let peak = seen.peak(|s| s.allocated_bytes);
    if peak > options.cache_bytes + SLACK_BYTES {
        return Err(format!(
            "the cache took {}, which is more than {} and {}",
            mib(peak),
            mib(options.cache_bytes),
            mib(SLACK_BYTES)
        )
        .into());
    }
    Ok(())
}

fn summary(options: &Options, stats: &Stats, seen: &watch::Seen) {
    let took = seen.took();
    println!(
        "sorted and synced in {:.2} s: {:.2} million records/s",
        took.as_secs_f64(),
        rate(options.records(), took) / 1e6
    );
    for (name, took) in seen.phases() {
        println!("  {name:<15} {:>7.2} s", took.as_secs_f64());
    }
    let pages = |name| mib(stats[name] * PAGE);
    println!("  read            {:>11}   written {}", pages("pgpgin"), pages("pgpgout"));
    let (faults, major) = (stats["pgfault"], stats["pgmajfault"]);
    println!(
        "  faults          {faults:>11}   {major} of them major: hit rate {:.1} %",
        100.0 * hit_rate(faults, major)
    );
    println!("  left the cache  {:>11}   {} came back soon", pages("pgsteal"), pages("workingset_activate"));
    println!(
        "  cached at most  {:>11}   of {}; memory of the cache at most {}",
        mib(seen.peak(|s| s.cached_bytes)),
        mib(options.cache_bytes),
        mib(seen.peak(|s| s.allocated_bytes))
    );
}
