//! Rows: one figure each, with the samples of both sides, as a table and as JSON.

use crate::{Context, Result};
use serde_json::{Value, json};
use std::path::Path;

/// How a ratio is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ratio {
    /// Median over median.
    Medians,
    /// Median of the ratios of neighbouring runs: for differences of a few per cent, which drift would hide.
    Paired,
}

/// How several references make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Their sum, run by run.
    Sum,
    /// The one whose median is lowest.
    Best,
}

/// What a row is made of.
#[derive(Clone, Copy, Debug)]
pub struct RowSpec {
    /// The row's name.
    pub name: &'static str,
    /// The series it shows.
    pub series: &'static str,
    /// The series it is set against; none for a floor.
    pub reference: &'static [&'static str],
    /// How they make one.
    pub combine: Combine,
    /// How the ratio is taken.
    pub ratio: Ratio,
    /// The ratio it should not exceed, for the table only.
    pub goal: Option<f64>,
    /// What the figure counts.
    pub unit: &'static str,
}

impl RowSpec {
    /// A row without a reference, named like its series, in nanoseconds a page.
    #[must_use]
    pub const fn floor(name: &'static str) -> Self {
        Self {
            name,
            series: name,
            reference: &[],
            combine: Combine::Sum,
            ratio: Ratio::Medians,
            goal: None,
            unit: "ns/page",
        }
    }

    /// A row set against the sum of `reference`.
    #[must_use]
    pub const fn against(
        name: &'static str,
        series: &'static str,
        reference: &'static [&'static str],
        goal: Option<f64>,
    ) -> Self {
        Self { name, series, reference, combine: Combine::Sum, ratio: Ratio::Medians, goal, unit: "ns/page" }
    }

    /// The same row with paired ratios.
    #[must_use]
    pub const fn paired(mut self) -> Self {
        self.ratio = Ratio::Paired;
        self
    }

    /// The same row against the best of its references.
    #[must_use]
    pub const fn best(mut self) -> Self {
        self.combine = Combine::Best;
        self
    }

    /// The same row in another unit.
    #[must_use]
    pub const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }
}

/// A measured row.
#[derive(Clone, Debug)]
pub struct Row {
    spec: RowSpec,
    samples: Vec<f64>,
    reference_samples: Vec<f64>,
    note: Option<String>,
}

impl Row {
    /// Makes a row of its samples and, run by run, those of its reference (empty for a floor).
    #[must_use]
    pub fn new(spec: RowSpec, samples: Vec<f64>, reference_samples: Vec<f64>) -> Self {
        Self { spec, samples, reference_samples, note: None }
    }

    /// Returns the row's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.spec.name
    }

    /// Adds a remark; several are joined.
    pub fn note(&mut self, text: &str) {
        match &mut self.note {
            Some(n) => {
                n.push_str("; ");
                n.push_str(text);
            }
            None => self.note = Some(text.to_owned()),
        }
    }

    /// Returns the median of its samples.
    #[must_use]
    pub fn median(&self) -> f64 {
        median(&self.samples)
    }

    /// Returns the ratio to the reference, where there is one.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        if self.reference_samples.is_empty() {
            return None;
        }
        Some(match self.spec.ratio {
            Ratio::Medians => median(&self.samples) / median(&self.reference_samples),
            Ratio::Paired => {
                let pairs = self.samples.iter().zip(&self.reference_samples);
                median(&pairs.map(|(a, b)| a / b).collect::<Vec<_>>())
            }
        })
    }

    /// Returns the median of what a run took more than its reference did, where there is one.
    #[must_use]
    pub fn difference(&self) -> Option<f64> {
        let pairs = self.samples.iter().zip(&self.reference_samples);
        (!self.reference_samples.is_empty()).then(|| median(&pairs.map(|(a, b)| a - b).collect::<Vec<_>>()))
    }

    fn reference(&self) -> Option<String> {
        let names = self.spec.reference;
        match (names.is_empty(), self.spec.combine) {
            (true, _) => None,
            (false, Combine::Sum) => Some(names.join("+")),
            (false, Combine::Best) => Some(format!("min({})", names.join(","))),
        }
    }

    /// Returns the row as a JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let round = |v: f64| (v * 1000.0).round() / 1000.0;
        let all = |v: &[f64]| v.iter().copied().map(round).collect::<Vec<_>>();
        let (min, max) = range(&self.samples);
        let referred = !self.reference_samples.is_empty();
        let mut row = json!({
            "name": self.spec.name,
            "unit": self.spec.unit,
            "median": round(median(&self.samples)),
            "min": round(min),
            "max": round(max),
            "runs": self.samples.len(),
            "reference": self.reference(),
            "ratio": self.ratio().map(round),
            "samples": all(&self.samples),
            "reference_samples": all(&self.reference_samples),
            "reference_median": referred.then(|| round(median(&self.reference_samples))),
        });
        if let (Some(note), Value::Object(o)) = (&self.note, &mut row) {
            o.insert("note".to_owned(), Value::from(note.as_str()));
        }
        row
    }

    /// Returns the row as a line of the table that [`heading`] heads.
    #[must_use]
    pub fn to_line(&self) -> String {
        let (min, max) = range(&self.samples);
        let mut line = format!("{:<30}{:>11.1}{min:>11.1}{max:>11.1}", self.spec.name, median(&self.samples));
        if let (Some(ratio), Some(reference)) = (self.ratio(), self.reference()) {
            let how = if self.spec.ratio == Ratio::Paired { "p" } else { " " };
            let goal = self
                .spec
                .goal
                .map_or_else(String::new, |g| format!("<= {g:.3} {}", if ratio <= g { "yes" } else { "NO" }));
            let refmed = median(&self.reference_samples);
            line.push_str(&format!("{ratio:>9.3}{how} {goal:<14}{refmed:>10.1}  {reference}"));
        }
        if self.spec.unit != "ns/page" {
            line.push_str(&format!("  [{}]", self.spec.unit));
        }
        if let Some(note) = &self.note {
            line.push_str(&format!("  ({note})"));
        }
        line
    }
}

/// Returns the heading of the table.
#[must_use]
pub fn heading() -> String {
    format!(
        "{:<30}{:>11}{:>11}{:>11}{:>9}  {:<14}{:>10}  reference",
        "row (ns/page)", "median", "min", "max", "ratio", "goal", "ref"
    )
}

/// Writes the rows to `path` as a JSON array.
///
/// # Errors
/// The file system's.
pub fn write_json(path: &Path, rows: &[Row]) -> Result<()> {
    let rows = Value::Array(rows.iter().map(Row::to_json).collect());
    std::fs::write(path, format!("{rows:#}\n")).context("writing the JSON file")
}

/// Makes one reference of several, run by run.
#[must_use]
pub fn combine<'a>(how: Combine, all: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    match how {
        Combine::Sum => {
            let add = |acc: Vec<f64>, next: &Vec<f64>| acc.iter().zip(next).map(|(a, b)| a + b).collect();
            let mut all = all;
            let first = all.next().cloned().unwrap_or_default();
            all.fold(first, add)
        }
        Combine::Best => all.min_by(|a, b| median(a).total_cmp(&median(b))).cloned().unwrap_or_default(),
    }
}

/// Returns the median; the mean of the middle two of an even number, NaN of none.
#[must_use]
pub fn median(samples: &[f64]) -> f64 {
    let mut v = samples.to_vec();
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => v[n / 2],
        n => f64::midpoint(v[n / 2 - 1], v[n / 2]),
    }
}

fn range(samples: &[f64]) -> (f64, f64) {
    samples.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), &s| (lo.min(s), hi.max(s)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: RowSpec = RowSpec::against("row", "a", &["b", "c"], Some(1.0));

    #[test]
    fn medians_of_odd_and_even() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn paired_ratios_survive_drift() {
        // Both sides double half-way; B is 10 % slower in each pair.
        let (a, b) = (vec![1.0, 1.0, 2.0, 2.0, 2.0], vec![1.1, 1.1, 1.1, 2.2, 2.2]);
        let paired = Row::new(SPEC.paired(), b, a).ratio().expect("has a reference");
        assert!((paired - 1.1).abs() < 1e-9, "{paired}");
    }

    #[test]
    fn references_add_up_or_the_best_counts() {
        let (a, b) = (vec![1.0, 2.0], vec![10.0, 20.0]);
        assert_eq!(combine(Combine::Sum, [&a, &b].into_iter()), [11.0, 22.0]);
        assert_eq!(combine(Combine::Best, [&b, &a].into_iter()), [1.0, 2.0]);
        assert!(combine(Combine::Sum, std::iter::empty()).is_empty());
        let best = Row::new(SPEC.best(), vec![1.0], vec![1.0]).to_json();
        assert_eq!(best["reference"], "min(b,c)");
    }

    #[test]
    fn json_has_every_field() {
        let mut row = Row::new(SPEC, vec![2.0, 4.0, 3.0], vec![1.0, 2.0, 1.5]);
        row.note("one");
        row.note("two");
        let j = row.to_json();
        assert_eq!(j["reference"], "b+c");
        assert_eq!((j["ratio"].as_f64(), j["reference_median"].as_f64()), (Some(2.0), Some(1.5)));
        assert_eq!((j["runs"].as_u64(), j["note"].as_str()), (Some(3), Some("one; two")));
        let floor = Row::new(RowSpec::floor("f"), vec![1.0], vec![]).to_json();
        assert!(floor["ratio"].is_null() && floor["reference"].is_null() && floor.get("note").is_none());
    }
}
