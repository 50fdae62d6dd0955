//! `softfault explain`: what the statistics of a runtime mean.

mod reading;
mod rules;

use crate::console::Console;
use crate::failure::{Failure, Outcome, Result};
use crate::finding::Finding;
use crate::units::count;
use reading::Reading;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Reads what `Stats::to_json` and `softfault_stats_json()` write, and says what of it is as it should be, what is remarkable and
/// what is wrong, and what changes it. With --since it is about the time between two readings.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault explain stats.json
  softfault explain --since monday.json tuesday.json
  curl -s localhost:9000/stats | softfault explain -")]
pub(crate) struct Args {
    /// The statistics; `-`: standard input.
    stats: PathBuf,
    /// An earlier reading of the same runtime.
    #[arg(long, value_name = "STATS")]
    since: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    faults: u64,
    findings: Vec<Entry>,
    /// Counters of another version, about which nothing is said.
    unknown: usize,
}

#[derive(Debug, Serialize)]
struct Entry {
    about: &'static str,
    #[serde(flatten)]
    finding: Finding,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let mut reading = read(&args.stats)?;
    if let Some(path) = &args.since {
        let before = read(path)?;
        reading.subtract(&before).map_err(|why| Failure::Corrupt { path: path.clone(), why })?;
    }
    let explained = rules::explain(&reading).into_iter().map(|(about, finding)| Entry { about, finding });
    let report = Report {
        path: args.stats.display().to_string(),
        faults: reading.of("pgfault"),
        findings: explained.collect(),
        unknown: reading.nr_unknown(),
    };
    console.say("explain", &report)?;
    Ok(Outcome::Done)
}

fn read(path: &PathBuf) -> Result<Reading> {
    let text =
        if path.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(Failure::io("read", path))?;
    Reading::parse(&text).map_err(|why| Failure::Corrupt { path: path.clone(), why })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { about, finding } in &self.findings {
            writeln!(f, "{:<8} {about:<10} {}", finding.level.word(), finding.says)?;
            if let Some(mend) = &finding.mend {
                writeln!(f, "{:19} mend: {mend}", "")?;
            }
        }
        if self.unknown > 0 {
            writeln!(f, "{} of another version", count(self.unknown as u64, "counter"))?;
        }
        Ok(())
    }
}
