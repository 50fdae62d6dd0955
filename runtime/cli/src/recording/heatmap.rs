//! `softfault heatmap`.

use super::grid::{Grid, Row};
use super::{Which, svg};
use crate::console::Console;
use crate::failure::{Failure, Outcome, Result};
use crate::units::{bytes, millis, of_pages};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// What a cell of the terminal shows: nothing, then more and more of its pages.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];

/// Pages from top to bottom, time from left to right: a cell is the darker the more of its pages were touched then for the first
/// time. The recording is what `Restore::record` and `Session::mark` give, saved.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault heatmap first.sws --image heap.sfi
  softfault heatmap first.sws --svg first.svg --rows 200 --columns 200")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// About how many rows of pages.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    rows: u16,
    /// How many columns of time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    columns: u16,
    /// Draws it into a file too, in place of what is there.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    from_ns: u64,
    to_ns: u64,
    columns: u16,
    rows: Vec<Row>,
    svg: Option<String>,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let recording = super::open(&args.which, console)?;
    let grid = Grid::new(&recording, args.rows.into(), args.columns.into());
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::draw(&grid)).map_err(Failure::io("write", path))?;
    }
    let report = Report {
        path: args.which.events.display().to_string(),
        from_ns: grid.time_ns.start,
        to_ns: grid.time_ns.end,
        columns: args.columns,
        rows: grid.rows,
        svg: args.svg.as_ref().map(|p| p.display().to_string()),
    };
    console.say("heatmap", &report)?;
    Ok(Outcome::Done)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for row in &self.rows {
            if last != Some(&row.region) {
                writeln!(f, "{}", row.region.escape_debug())?;
                last = Some(&row.region);
            }
            let shade = |column| Grid::shade(row, column, SHADES.len() as u64 - 1);
            let shades = (0..row.touched.len()).map(|c| usize::try_from(shade(c)).unwrap_or(0));
            let cells: String = shades.map(|s| SHADES.get(s).copied().unwrap_or(' ')).collect();
            writeln!(f, "{:>11} |{cells}|", bytes(of_pages(row.page)))?;
        }
        let (from, to) = (format!("{} ms", millis(self.from_ns)), format!("{} ms", millis(self.to_ns)));
        let room = usize::from(self.columns).saturating_sub(from.len());
        writeln!(f, "{:13}{from}{to:>room$}", "")?;
        self.svg.iter().try_for_each(|path| writeln!(f, "drawn into {path}"))
    }
}
