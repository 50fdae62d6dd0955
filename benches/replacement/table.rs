//! The report: tables for people, rows for programs.

use crate::candidates::{Candidate, Group};
use serde_json::json;
use softfault_benches::replacement::trace::Shape;
use softfault_benches::replacement::{Counts, MAJOR_US, MINOR_US, UNMAP_US};
use softfault_benches::{Context, Result};
use std::path::Path;

/// Cache sizes, in percent of the object.
pub(crate) const CACHES_PCT: &[u32] = &[1, 10, 25];
/// What one candidate did to one trace in one cache.
pub(crate) struct Cell {
    pub(crate) cache_pct: u32,
    pub(crate) shape: Shape,
    pub(crate) candidate: &'static str,
    pub(crate) group: Group,
    pub(crate) counts: Counts,
}

/// One table: what it shows, of whom, and its decimals.
struct View {
    title: &'static str,
    value: fn(&Counts) -> f64,
    decimals: usize,
    staged_only: bool,
}

const VIEWS: &[View] = &[
    View { title: "hit rate, percent", value: |c| 100.0 * c.hit_rate(), decimals: 1, staged_only: false },
    View { title: "major faults per 1000 accesses", value: Counts::major_per_1000, decimals: 1, staged_only: false },
    View { title: "minor faults per 1000 accesses", value: Counts::minor_per_1000, decimals: 1, staged_only: true },
    View { title: "cost, us per 1000 accesses", value: Counts::cost_us, decimals: 0, staged_only: false },
];

/// Prints all tables.
pub(crate) fn print(cells: &[Cell], shapes: &[Shape], candidates: &[Candidate]) {
    println!("cost: {MINOR_US} us a minor fault, {MAJOR_US} us a major one, {UNMAP_US} us a page unmapped");
    println!(
        "opt to two_lists see every access (opt the future too): yardsticks, not to be had; the others see faults"
    );
    for &cache_pct in CACHES_PCT {
        for view in VIEWS {
            println!("\ncache {cache_pct}% of the object: {}", view.title);
            print_view(cells, cache_pct, shapes, candidates, view);
        }
    }
    print_means(cells, shapes, candidates);
}

fn print_view(cells: &[Cell], cache_pct: u32, shapes: &[Shape], candidates: &[Candidate], view: &View) {
    let width = name_width(candidates);
    let heads: String = shapes.iter().map(|s| format!(" {:>13}", s.name())).collect();
    println!("{:width$}{heads}", "");
    for c in candidates.iter().filter(|c| !view.staged_only || c.group == Group::Faults) {
        let decimals = view.decimals;
        let row = shapes.iter().filter_map(|&s| find(cells, cache_pct, s, c.name));
        let row: String = row.map(|cell| format!(" {:>13.decimals$}", (view.value)(&cell.counts))).collect();
        println!("{:width$}{row}", c.name);
    }
}

/// Prints, for each candidate, the geometric mean of its cost as a multiple of the optimum's.
fn print_means(cells: &[Cell], shapes: &[Shape], candidates: &[Candidate]) {
    let width = name_width(candidates);
    println!();
    println!("cost as a multiple of the optimum's, geometric mean over the caches");
    let heads: String = shapes.iter().map(|s| format!(" {:>13}", s.name())).collect();
    println!("{:width$}{heads} {:>13}", "", "all");
    for c in candidates {
        let mut row = String::new();
        for &shape in shapes {
            row += &format!(" {:>13.3}", mean(cells, &[shape], c.name));
        }
        println!("{:width$}{row} {:>13.3}", c.name, mean(cells, shapes, c.name));
    }
}

fn mean(cells: &[Cell], shapes: &[Shape], name: &str) -> f64 {
    let mut sum = 0.0;
    let mut nr = 0.0;
    for &shape in shapes {
        for &cache_pct in CACHES_PCT {
            let (Some(a), Some(b)) = (find(cells, cache_pct, shape, name), find(cells, cache_pct, shape, "opt")) else {
                continue;
            };
            sum += (a.counts.cost_us() / b.counts.cost_us()).ln();
            nr += 1.0;
        }
    }
    f64::exp(sum / nr)
}

fn name_width(candidates: &[Candidate]) -> usize {
    candidates.iter().map(|c| c.name.len()).max().unwrap_or(0)
}

fn find<'a>(cells: &'a [Cell], cache_pct: u32, shape: Shape, candidate: &str) -> Option<&'a Cell> {
    cells.iter().find(|c| c.cache_pct == cache_pct && c.shape == shape && c.candidate == candidate)
}

/// Writes one row for each cell.
///
/// # Errors
/// The file system's.
pub(crate) fn write_json(path: &Path, nr_pages: u32, cells: &[Cell]) -> Result<()> {
    let rows: Vec<_> = cells.iter().map(row).collect();
    let report = json!({ "bench": "replacement", "object_pages": nr_pages, "rows": rows });
    std::fs::write(path, format!("{report:#}\n")).context("write the report")
}

fn row(cell: &Cell) -> serde_json::Value {
    json!({
        "row": format!("{}_{}_{}", cell.candidate, cell.shape.name(), cell.cache_pct),
        "policy": cell.candidate,
        "trace": cell.shape.name(),
        "cache_pct": cell.cache_pct,
        "sees_every_access": cell.group == Group::Sees,
        "accesses": cell.counts.accesses,
        "hit_rate": cell.counts.hit_rate(),
        "minor_per_1000": cell.counts.minor_per_1000(),
        "major_per_1000": cell.counts.major_per_1000(),
        "unmapped_per_1000": cell.counts.unmapped_per_1000(),
        "cost_us_per_1000": cell.counts.cost_us(),
    })
}
