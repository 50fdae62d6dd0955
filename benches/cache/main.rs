//! What a cache of fixed size costs, against bare code that keeps one, monitors, an explicit pool, and the kernel's mmap.
//!
//! `cargo bench -p softfault-benches --bench cache -- [--json FILE] [--quick] [--only ROW,..]`

mod bounded;
mod cgroup;
mod child;
mod exclusive;
mod floor;
mod hot;
mod monitor;
mod overhead;
mod pool;
mod readahead;
mod reclaim;
mod ring;
mod rows;
mod source;
mod subject;
mod sync;
mod sync_one;
mod taken;
mod thp;

use softfault_benches::args::Options;
use softfault_benches::machine;
use softfault_benches::program::{Group, Program};
use std::process::ExitCode;

const GROUPS: &[Group] = &[
    ("hot", hot::run),
    ("exclusive", exclusive::run),
    ("bounded", bounded::run),
    ("thp", thp::run),
    ("sync", sync::run),
    ("sync_one", sync_one::run),
    ("readahead", readahead::run),
    ("reclaim", reclaim::run),
    ("overhead", overhead::run),
];

fn main() -> ExitCode {
    let dir = env!("CARGO_TARGET_TMPDIR");
    Program { name: "cache", dir, groups: GROUPS, describe, child: Some(child::main) }.main()
}

fn describe(options: &Options) {
    println!("{}", machine::describe());
    println!("{}", machine::file_system(&options.dir));
    println!("{}", hot::describe(options.quick));
    println!("{}", bounded::describe(options.quick));
    println!("{} runs of each side in turn, after one for warmth", options.runs);
}
