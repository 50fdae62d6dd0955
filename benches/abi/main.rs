//! What a fault costs through the C ABI, against the same from Rust, and what numpy sees of it, against `numpy.memmap`.
//!
//! `cargo bench -p softfault-benches --bench abi -- [--json FILE] [--quick] [--only ROW,..]`
//!
//! Each side is a process of its own, which takes lines on its standard input: two runtimes in one process would chain
//! their handlers, and one would pay for the other.

mod child;
mod faults;
mod library;
mod numpy;
mod subject;

use softfault_benches::args::Options;
use softfault_benches::machine;
use softfault_benches::program::{Group, Program};
use std::process::ExitCode;

const GROUPS: &[Group] = &[("faults", faults::run), ("numpy", numpy::run)];

fn main() -> ExitCode {
    let dir = env!("CARGO_TARGET_TMPDIR");
    Program { name: "abi", dir, groups: GROUPS, describe, child: Some(child::main) }.main()
}

fn describe(options: &Options) {
    println!("{}", machine::describe());
    println!("{}", machine::file_system(&options.dir));
    println!("{} runs of each side in turn, after one for warmth; p: median of paired ratios", options.runs);
}
