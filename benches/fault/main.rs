//! What one fault costs, against the floors of this machine and against how others resolve faults.
//!
//! `cargo bench -p softfault-benches --bench fault -- [--json FILE] [--quick] [--only ROW,..]`

mod floors;
mod major;
mod native;
mod peers;
mod segv;
mod subject;
mod threads;

use softfault_benches::args::Options;
use softfault_benches::machine;
use softfault_benches::program::{Group, Program};
use std::process::ExitCode;

const GROUPS: &[Group] = &[
    ("floors", floors::run),
    ("peers", peers::run),
    ("native", native::run),
    ("major", major::run),
    ("segv", segv::run),
    ("threads", threads::run),
];

fn main() -> ExitCode {
    let dir = env!("CARGO_TARGET_TMPDIR");
    Program { name: "fault", dir, groups: GROUPS, describe, child: None }.main()
}

fn describe(options: &Options) {
    println!("{}", machine::describe());
    println!("{} runs of each side in turn, after one for warmth; p: median of paired ratios", options.runs);
}
