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
use softfault_benches::session::Session;
use softfault_benches::{Error, Result, machine, report};
use std::process::ExitCode;

/// A group of rows whose sides are measured in turn.
type Group = (&'static str, fn(&mut Session) -> Result<()>);

const GROUPS: &[Group] = &[
    ("floors", floors::run),
    ("peers", peers::run),
    ("native", native::run),
    ("major", major::run),
    ("segv", segv::run),
    ("threads", threads::run),
];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("fault: {e}");
            ExitCode::from(if matches!(e, Error::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn run() -> Result<bool> {
    let options = Options::from_env(env!("CARGO_TARGET_TMPDIR"))?;
    let mut session = Session::new(options)?;
    if !session.options.list {
        println!("{}", machine::describe());
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
