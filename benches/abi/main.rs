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
use softfault_benches::session::Session;
use softfault_benches::{Error, Result, machine, report};
use std::process::ExitCode;

/// A group of rows whose sides are measured in turn.
type Group = (&'static str, fn(&mut Session) -> Result<()>);

const GROUPS: &[Group] = &[("faults", faults::run), ("numpy", numpy::run)];

fn main() -> ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        Some(child::ARGUMENT) => child::main().map(|()| true),
        _ => run(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("abi: {e}");
            ExitCode::from(if matches!(e, Error::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn run() -> Result<bool> {
    let options = Options::from_env(env!("CARGO_TARGET_TMPDIR"))?;
    let mut session = Session::new(options)?;
    if !session.options.list {
        println!("{}", machine::describe());
        println!("{}", machine::file_system(&session.options.dir));
        println!(
            "{} runs of each side in turn, after one for warmth; p: median of paired ratios",
            session.options.runs
        );
        println!("{}", report::heading());
    }
    for (name, group) in GROUPS {
        // One group that cannot be had on this machine does not cost the others.
        if let Err(e) = group(&mut session) {
            session.failed(name, &e);
        }
    }
    session.finish()
}
