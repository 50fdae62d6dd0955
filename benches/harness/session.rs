//! Measuring: every series of a group once per run, in turn, so that drift hits all sides alike.

use crate::args::Options;
use crate::machine::{Cpus, Pinned};
use crate::report::{Row, RowSpec, combine, write_json};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Something that is measured once per run.
pub struct Series<'a> {
    name: &'static str,
    measure: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Series<'a> {
    /// Names a measurement. It prepares what it needs, untimed, and returns one figure.
    pub fn new(name: &'static str, measure: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { name, measure: Box::new(measure) }
    }
}

impl fmt::Debug for Series<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Series").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One run of a benchmark program: its options, and the rows so far.
#[derive(Debug)]
pub struct Session {
    /// The command line.
    pub options: Options,
    /// The processors to use.
    pub cpus: Cpus,
    rows: Vec<Row>,
    known: BTreeSet<&'static str>,
    /// Reasons, and the rows that each of them costs.
    absent: BTreeMap<String, Vec<&'static str>>,
    reasons: BTreeMap<&'static str, String>,
    failed: Vec<String>,
}

impl Session {
    /// Starts a run.
    ///
    /// # Errors
    /// As [`Cpus::find`].
    pub fn new(options: Options) -> Result<Self> {
        let cpus = Cpus::find()?;
        Ok(Self {
            options,
            cpus,
            rows: Vec::new(),
            known: BTreeSet::new(),
            absent: BTreeMap::new(),
            reasons: BTreeMap::new(),
            failed: Vec::new(),
        })
    }

    /// Returns those of `specs` that were asked for; a group without any need not be set up.
    pub fn select(&mut self, specs: &[RowSpec]) -> Vec<RowSpec> {
        self.known.extend(specs.iter().map(|s| s.name));
        if self.options.list {
            specs.iter().for_each(|s| println!("{}", s.name));
            return Vec::new();
        }
        specs.iter().filter(|s| self.options.wants(s.name)).copied().collect()
    }

    /// Measures the series that `specs` need and adds the rows.
    ///
    /// A row whose series is not among `series` is reported as absent, not as an error: a side may be missing on this
    /// machine.
    ///
    /// # Errors
    /// Whatever a series failed with.
    pub fn measure(&mut self, specs: &[RowSpec], series: Vec<Series<'_>>) -> Result<()> {
        let wanted: BTreeSet<&str> = specs.iter().flat_map(needs).collect();
        let mut series: Vec<_> = series.into_iter().filter(|s| wanted.contains(s.name)).collect();
        let samples = {
            let _pinned = Pinned::to(self.cpus.measuring)?;
            sample(&mut series, self.options.runs)?
        };
        for spec in specs {
            if let Some(missing) = needs(spec).find(|n| !samples.contains_key(n)) {
                let why = self.reasons.get(missing).cloned();
                let why = why.unwrap_or_else(|| format!("{missing} is not measured here"));
                self.absent.entry(why).or_default().push(spec.name);
                continue;
            }
            let reference = combine(spec.combine, spec.reference.iter().map(|r| &samples[r]));
            let row = Row::new(*spec, samples[spec.series].clone(), reference);
            println!("{}", row.to_line());
            self.rows.push(row);
        }
        Ok(())
    }

    /// Says why `series` will be missing, for the rows that need it. It is a failure unless something is
    /// [`Error::Absent`].
    pub fn lack(&mut self, series: &'static str, why: &Error) {
        self.reasons.insert(series, why.to_string());
        if !matches!(why, Error::Absent(_)) {
            self.failed(series, why);
        }
    }

    /// Says of a row in nanoseconds that was measured how much more than its reference it took, and how much it may.
    pub fn note_difference(&mut self, name: &str, at_most_us: f64) {
        if let Some(more) = self.rows.iter().find(|r| r.name() == name).and_then(Row::difference) {
            let word = if more <= at_most_us * 1e3 { "yes" } else { "NO" };
            self.note(name, &format!("{:.0} us more than the reference, <= {at_most_us:.0} {word}", more / 1e3));
        }
    }

    /// Says of a row in nanoseconds that was measured whether its median is what it may be.
    pub fn note_at_most(&mut self, name: &str, at_most_us: f64) {
        if let Some(median) = self.rows.iter().find(|r| r.name() == name).map(Row::median) {
            let word = if median <= at_most_us * 1e3 { "yes" } else { "NO" };
            self.note(name, &format!("{:.0} us, <= {at_most_us:.0} {word}", median / 1e3));
        }
    }

    /// Adds a remark to a row that was measured; nothing happens when it was not.
    pub fn note(&mut self, name: &str, text: &str) {
        if let Some(row) = self.rows.iter_mut().find(|r| r.name() == name) {
            row.note(text);
            println!("  {name}: {text}");
        }
    }

    /// Reports a group that could not be measured; the others go on.
    pub fn failed(&mut self, group: &str, why: &Error) {
        self.failed.push(format!("{group}: {why}"));
    }

    /// Writes the JSON file and names what is absent; returns whether no group failed.
    ///
    /// # Errors
    /// The file system's, or [`Error::Usage`] when a row that `--only` names does not exist.
    pub fn finish(self) -> Result<bool> {
        if let Some(unknown) = self.options.only.iter().find(|o| !self.known.contains(o.as_str())) {
            return Err(Error::Usage(format!("--only {unknown}: no such row; --list names them")));
        }
        if let Some(path) = &self.options.json {
            write_json(path, &self.rows)?;
        }
        self.absent.iter().for_each(|(why, rows)| println!("absent ({why}): {}", rows.join(", ")));
        self.failed.iter().for_each(|f| println!("FAILED: {f}"));
        Ok(self.failed.is_empty())
    }
}

fn needs(spec: &RowSpec) -> impl Iterator<Item = &'static str> {
    std::iter::once(spec.series).chain(spec.reference.iter().copied())
}

/// Runs every series once for warmth, then `runs` times in turn, forwards and backwards.
fn sample(series: &mut [Series<'_>], runs: usize) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let mut samples: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for s in series.iter_mut() {
        (s.measure)()?;
    }
    let n = series.len();
    for run in 0..runs {
        // Who comes first changes, and who follows whom, because a side also gains by what its predecessor left in the
        // caches: two mappings of one object share the kernel's page structures.
        for at in 0..n {
            let at = if run % 2 == 0 { at } else { n - 1 - at };
            let s = &mut series[(run / 2 + at) % n];
            let figure = (s.measure)()?;
            samples.entry(s.name).or_default().push(figure);
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn series_alternate_after_one_warm_up() {
        let order = RefCell::new(String::new());
        let take = |name: char| {
            order.borrow_mut().push(name);
            Ok(1.0)
        };
        let mut series = vec![Series::new("a", || take('a')), Series::new("b", || take('b'))];
        let samples = sample(&mut series, 3).expect("nothing fails");
        drop(series);
        assert_eq!(order.into_inner(), "ab".to_owned() + "ab" + "ba" + "ba");
        assert_eq!(samples["a"].len(), 3);
    }
}
