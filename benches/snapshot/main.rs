//! What images, restores and clones cost, against the kernel's private mmap of the same bytes and against bare reads.
//!
//! `cargo bench -p softfault-benches --bench snapshot -- [--json FILE] [--quick] [--only ROW,..]`

mod capture;
mod clones;
mod decode;
mod files;
mod ready;
mod subject;
mod touch;
mod verify;

use softfault_benches::args::Options;
use softfault_benches::machine;
use softfault_benches::program::{Group, Program};
use std::process::ExitCode;

const GROUPS: &[Group] = &[
    ("ready", ready::run),
    ("touch", touch::run),
    ("decode", decode::run),
    ("clones", clones::run),
    ("verify", verify::run),
    ("capture", capture::run),
];

fn main() -> ExitCode {
    let dir = env!("CARGO_TARGET_TMPDIR");
    Program { name: "snapshot", dir, groups: GROUPS, describe, child: None }.main()
}

fn describe(options: &Options) {
    println!("{}", machine::describe());
    println!("{}", machine::file_system(&options.dir));
    println!(
        "images of {} MiB; {} runs of each side in turn, after one for warmth",
        files::len_mib(options),
        options.runs
    );
}
