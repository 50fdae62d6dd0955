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
use softfault_benches::session::Session;
use softfault_benches::{Error, Result, machine, report};
use std::process::ExitCode;

/// A group of rows whose sides are measured in turn.
type Group = (&'static str, fn(&mut Session) -> Result<()>);

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
    let done = match std::env::args().nth(1).as_deref() {
        Some(child::ARGUMENT) => child::main().map(|()| true),
        _ => run(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("cache: {e}");
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
        println!("{}", hot::describe(session.options.quick));
        println!("{}", bounded::describe(session.options.quick));
        println!("{} runs of each side in turn, after one for warmth", session.options.runs);
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
