//! The rows that come in workloads and thread counts, with their goals.

use softfault_benches::report::RowSpec;
use softfault_benches::workload::Workload;

/// Thread counts of every workload.
pub(crate) const THREADS: [usize; 2] = [1, 2];

/// What one access costs, by the clock on the wall, over all threads.
pub(crate) const UNIT: &str = "ns/access";

/// Makes a name that lives as long as the program: there are some dozens.
pub(crate) fn name(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// The series `side` in a workload: `hot_rand_read_1`.
pub(crate) fn series(side: &str, workload: Workload, threads: usize) -> &'static str {
    name(format!("{side}_{}_{threads}", workload.name()))
}

/// One row of `side`, named after it.
pub(crate) fn own(side: &str, workload: Workload, threads: usize) -> RowSpec {
    RowSpec::floor(series(side, workload, threads)).unit(UNIT)
}

/// A row of `side` against the references, of which the best counts; `suffix` makes several rows of one side.
pub(crate) fn against(
    side: &str,
    suffix: &str,
    (workload, threads): (Workload, usize),
    references: &[&str],
    goal: Option<f64>,
) -> RowSpec {
    let of = series(side, workload, threads);
    let references: Vec<&'static str> = references.iter().map(|r| series(r, workload, threads)).collect();
    let row = RowSpec::against(name(format!("{of}{suffix}")), of, Box::leak(references.into_boxed_slice()), goal);
    let row = row.unit(UNIT);
    if row.reference.len() > 1 { row.best() } else { row }
}

/// Both thread counts.
pub(crate) fn each_threads(of: impl Fn(usize) -> Vec<RowSpec>) -> Vec<RowSpec> {
    THREADS.iter().flat_map(|&threads| of(threads)).collect()
}
