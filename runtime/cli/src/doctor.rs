//! `softfault doctor`: what this machine lets the runtime do, what stands against it, and what mends that.

mod costs;
mod delivery;
mod kernel;
mod limits;
mod machine;
mod memory;
mod seccomp;
mod signals;
mod storage;

use crate::console::Console;
use crate::failure::{Outcome, Result};
use crate::finding::{Finding, Level};
use crate::units::parse_bytes;
use clap::ValueEnum;
use machine::Machine;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Looks at the machine as a process started from here sees it. A problem is what keeps the runtime from working, or makes it far
/// slower than it could be: exit code 6. A note is what a program may need to know. Each says what mends it.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault doctor
  softfault doctor /srv/data/table.bin --cache 8G --swap /var/lib/app/swap
  softfault doctor --only signals --pid 4711")]
pub(crate) struct Args {
    /// A file that will be mapped: whether its file system serves direct I/O.
    file: Option<PathBuf>,
    /// The limit of the cache that the program will have; by default the runtime's own.
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    cache: Option<usize>,
    /// Where a swap file of the runtime's will be.
    #[arg(long, value_name = "PATH")]
    swap: Option<PathBuf>,
    /// A running process, whose threads are looked at for signals and filters; by default this one, for what is inherited.
    #[arg(long)]
    pid: Option<u32>,
    /// Looks at nothing else; may be given again.
    #[arg(long, value_enum, value_name = "WHAT")]
    only: Vec<Check>,
    /// The folder in which /proc, /sys and /dev are looked for.
    #[arg(long, hide = true, default_value = "/", value_name = "DIR")]
    root: PathBuf,
}

/// What is looked at, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Check {
    /// How faults arrive, and why so.
    Delivery,
    /// What the kernel's version has.
    Kernel,
    /// Settings of the kernel.
    Sysctls,
    /// /dev/userfaultfd.
    Device,
    /// A filter of system calls.
    Seccomp,
    /// Limits of the process.
    Limits,
    /// The memory group, against the limit of the cache.
    Memory,
    /// What swap there is, and where a swap file would be.
    Swap,
    /// Whether a file can be read without the kernel's cache.
    DirectIo,
    /// Threads that block or ignore our signals.
    Signals,
    /// What a fault costs here.
    Costs,
}

#[derive(Debug, Serialize)]
struct Report {
    problems: usize,
    notes: usize,
    findings: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    check: Check,
    #[serde(flatten)]
    finding: Finding,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let machine = Machine::new(&args.root, args.pid);
    let mut findings = Vec::new();
    for check in Check::value_variants().iter().copied() {
        if args.only.is_empty() || args.only.contains(&check) {
            findings.extend(look(check, args, &machine).into_iter().map(|finding| Entry { check, finding }));
        }
    }
    let count = |level| findings.iter().filter(|e| e.finding.level == level).count();
    let (problems, notes) = (count(Level::Problem), count(Level::Note));
    console.say("doctor", &Report { problems, notes, findings })?;
    Ok(if problems > 0 { Outcome::No } else { Outcome::Done })
}

fn look(check: Check, args: &Args, machine: &Machine) -> Vec<Finding> {
    let cache = args.cache.map(|bytes| bytes as u64);
    match check {
        Check::Delivery => delivery::look(),
        Check::Kernel => kernel::version(machine),
        Check::Sysctls => kernel::sysctls(machine),
        Check::Device => kernel::device(machine),
        Check::Seccomp => seccomp::look(machine),
        Check::Limits => limits::look(machine, cache),
        Check::Memory => memory::group(machine, cache),
        Check::Swap => storage::swap(machine, args.swap.as_deref()),
        Check::DirectIo => storage::direct(machine, args.file.as_deref()),
        Check::Signals => signals::look(machine),
        Check::Costs => costs::look(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { check, finding } in &self.findings {
            let name = check.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
            writeln!(f, "{:<8} {name:<10} {}", finding.level.word(), finding.says)?;
            if let Some(mend) = &finding.mend {
                writeln!(f, "{:19} mend: {mend}", "")?;
            }
        }
        let word = |n, word| crate::units::count(n, word);
        writeln!(f, "{}, {}", word(self.problems as u64, "problem"), word(self.notes as u64, "note"))
    }
}
