//! What the user asked for.

use crate::units::Result;
use std::path::PathBuf;

pub(crate) const HELP: &str = "\
usage: warm_start [OPTIONS]
       warm_start save|rebuild|eager|restore DIR --heap HEAP [OPTIONS]

  --documents N    documents of the index (default 200000)
  --heap HEAP      talc, mimalloc, or both (default)
  --runs N         processes that are timed for each figure; their median is printed (default 3)
  --dir DIR        where the documents and the image are made, in a folder that goes at the end (default: the temp folder)

The second line is one process of those that the first starts: `save` builds the index in an arena and saves it; the others come
to their first answer by building it, by reading the image, or by restoring it. `restore --check` then compares all of it
with what is built anew, goes on with it, and compares again.
";

/// What a process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Compare,
    Save,
    Rebuild,
    Eager,
    Restore,
}

/// Whose the heap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allocator {
    Talc,
    Mimalloc,
}

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) role: Role,
    pub(crate) dir: PathBuf,
    pub(crate) documents: u64,
    pub(crate) heaps: Vec<Allocator>,
    pub(crate) runs: usize,
    pub(crate) check: bool,
}

impl Options {
    /// Reads the command line; `None`: help was asked for.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut args = args.peekable();
        let role = match args.peek().map(String::as_str) {
            Some("save") => Role::Save,
            Some("rebuild") => Role::Rebuild,
            Some("eager") => Role::Eager,
            Some("restore") => Role::Restore,
            _ => Role::Compare,
        };
        let heaps = vec![Allocator::Talc, Allocator::Mimalloc];
        let mut o = Self { role, dir: std::env::temp_dir(), documents: 200_000, heaps, runs: 3, check: false };
        if role != Role::Compare {
            args.next();
            o.dir = args.next().filter(|d| !d.starts_with('-')).ok_or("of which DIR?")?.into();
        }
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{name}: needs a value"));
            match name.as_str() {
                "--documents" => o.documents = value()?.parse().map_err(|e| format!("{name}: {e}"))?,
                "--runs" => o.runs = value()?.parse().map_err(|e| format!("{name}: {e}"))?,
                "--heap" => o.heaps = parse_heap(&value()?)?,
                "--dir" => o.dir = value()?.into(),
                "--check" => o.check = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("{name}: no such option").into()),
            }
        }
        if !(100..=20_000_000).contains(&o.documents) {
            return Err(format!("--documents {}: must be between 100 and 20000000", o.documents).into());
        }
        if !(1..=99).contains(&o.runs) {
            return Err(format!("--runs {}: must be between 1 and 99", o.runs).into());
        }
        Ok(Some(o))
    }
}

fn parse_heap(name: &str) -> Result<Vec<Allocator>> {
    match name {
        "talc" => Ok(vec![Allocator::Talc]),
        "mimalloc" => Ok(vec![Allocator::Mimalloc]),
        "both" => Ok(vec![Allocator::Talc, Allocator::Mimalloc]),
        _ => Err(format!("--heap {name}: talc, mimalloc or both").into()),
    }
}
