//! The command line of a benchmark.

use crate::{Error, MIB, Result};
use std::path::PathBuf;

/// What the command line asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the rows go as JSON; nowhere when absent.
    pub json: Option<PathBuf>,
    /// Small sizes and few runs: proof that the benchmark works, not a measurement.
    pub quick: bool,
    /// Only these rows; all when empty.
    pub only: Vec<String>,
    /// Where files are put; it decides which file system the file rows measure.
    pub dir: PathBuf,
    /// Timed runs of each series.
    pub runs: usize,
    /// Print the rows' names and stop.
    pub list: bool,
}

/// What `--help` prints.
pub const USAGE: &str = "\
options:
  --json FILE        write the rows to FILE as JSON
  --quick            small sizes, 3 runs: does it work?
  --only ROW[,ROW]   measure these rows only
  --runs N           timed runs of each side (default 9, quick 3)
  --dir DIR          where files are put (default: the target directory)
  --list             print the names of the rows";

impl Options {
    /// Reads the process's arguments; `dir` is where files go unless `--dir` says otherwise.
    ///
    /// # Errors
    /// [`Error::Usage`] for an argument it does not know.
    pub fn from_env(dir: &str) -> Result<Self> {
        Self::parse(std::env::args().skip(1), dir)
    }

    /// Reads `args`, without the program's name.
    ///
    /// # Errors
    /// As [`Options::from_env`].
    pub fn parse(args: impl Iterator<Item = String>, dir: &str) -> Result<Self> {
        let mut o = Self { json: None, quick: false, only: Vec::new(), dir: PathBuf::from(dir), runs: 0, list: false };
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| Error::Usage(format!("{arg} needs a value\n{USAGE}")));
            match arg.as_str() {
                // Cargo adds it to whatever the user passed.
                "--bench" => {}
                "--json" => o.json = Some(PathBuf::from(value()?)),
                "--quick" => o.quick = true,
                "--only" => o.only.extend(value()?.split(',').map(str::to_owned)),
                "--dir" => o.dir = PathBuf::from(value()?),
                "--runs" => {
                    let v = value()?;
                    o.runs = v.parse().map_err(|_| Error::Usage(format!("--runs {v}: not a number")))?;
                }
                "--list" => o.list = true,
                other => return Err(Error::Usage(format!("{other}: unknown\n{USAGE}"))),
            }
        }
        if o.runs == 0 {
            o.runs = if o.quick { 3 } else { 9 };
        }
        Ok(o)
    }

    /// Returns whether `row` is to be measured.
    #[must_use]
    pub fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| o == row)
    }

    /// Returns `full` mebibytes in bytes, or `quick` mebibytes for a quick run.
    #[must_use]
    pub fn size_bytes(&self, full_mib: usize, quick_mib: usize) -> usize {
        MIB * if self.quick { quick_mib } else { full_mib }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(args.iter().map(|&a| a.to_owned()), "/nowhere")
    }

    #[test]
    fn cargos_own_flag_is_ignored() {
        let o = parse(&["--quick", "--only", "a,b", "--json", "x.json", "--bench"]).expect("valid");
        assert!(o.quick);
        assert_eq!(o.only, ["a", "b"]);
        assert_eq!(o.runs, 3);
        assert!(o.wants("b") && !o.wants("c"));
    }

    #[test]
    fn an_unknown_argument_is_refused() {
        assert!(matches!(parse(&["--josn", "x"]), Err(Error::Usage(_))));
        assert!(matches!(parse(&["--json"]), Err(Error::Usage(_))));
    }
}
