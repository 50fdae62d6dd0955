//! The cells of a heatmap: so many pages, in so much time.

use super::Recording;
use serde::Serialize;
use std::ops::Range;

/// Pages side by side, and how many of them were touched in each stretch of time.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) region: String,
    pub(super) page: u64,
    pub(super) pages: u64,
    pub(super) touched: Vec<u64>,
}

/// Rows of pages, columns of time.
#[derive(Debug)]
pub(super) struct Grid {
    pub(super) time_ns: Range<u64>,
    pub(super) rows: Vec<Row>,
}

impl Grid {
    /// Makes a grid of a recording: about `rows` rows, one for each region at least, and `columns` columns. A window that reaches
    /// across several columns is in that of its middle: when within the window its pages were touched nobody knows.
    pub(super) fn new(recording: &Recording, rows: usize, columns: usize) -> Self {
        let windows = recording.set.windows();
        let time_ns = windows.first().map_or(0, |w| w.time_ns().start)..windows.last().map_or(0, |w| w.time_ns().end);
        let all: u64 = recording.regions.iter().map(|(_, pages)| pages.end - pages.start).sum();
        // The rows of all regions are of one height.
        let each = all.div_ceil(rows.max(1) as u64).max(1);
        let mut grid = Self { time_ns, rows: Vec::new() };
        for (region, pages) in &recording.regions {
            let mut page = pages.start;
            while page < pages.end {
                let nr = each.min(pages.end - page);
                grid.rows.push(Row { region: region.clone(), page, pages: nr, touched: vec![0; columns.max(1)] });
                page += nr;
            }
        }
        for window in windows {
            let time = window.time_ns();
            let column = grid.column(time.start + (time.end - time.start) / 2, columns.max(1));
            window.runs().for_each(|run| grid.add(&run, column));
        }
        grid
    }

    /// Returns the column of a point in time.
    fn column(&self, at: u64, columns: usize) -> usize {
        let (since, all) = (u128::from(at - self.time_ns.start), u128::from(self.time_ns.end - self.time_ns.start));
        let column = (since * columns as u128).checked_div(all).unwrap_or(0);
        usize::try_from(column).unwrap_or(columns).min(columns - 1)
    }

    /// Adds pages to a column. Rows are in the order of their pages.
    fn add(&mut self, run: &Range<u64>, column: usize) {
        let first = self.rows.partition_point(|row| row.page + row.pages <= run.start);
        for row in self.rows.iter_mut().skip(first).take_while(|row| row.page < run.end) {
            let nr = run.end.min(row.page + row.pages).saturating_sub(run.start.max(row.page));
            if let Some(cell) = row.touched.get_mut(column) {
                *cell += nr;
            }
        }
    }

    /// Returns a cell as a shade, 0 (nothing) to `shades`: a single page of many is seen.
    pub(super) fn shade(row: &Row, column: usize, shades: u64) -> u64 {
        let touched = row.touched.get(column).copied().unwrap_or(0);
        (touched.saturating_mul(shades)).div_ceil(row.pages.max(1)).min(shades)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use softfault_image::Digest;
    use softfault_image::workingset::{Resolution, WorkingSet};

    fn recording() -> Recording {
        let mut set = WorkingSet::new(Digest::ZERO, 1000, Resolution::PAGE);
        set.push(0..10, [0, 1, 99, 100]).expect("push");
        set.push(10..40, [500]).expect("push");
        Recording { set, regions: vec![("a".into(), 0..100), ("b".into(), 100..1000)] }
    }

    #[test]
    fn each_page_is_in_one_cell() {
        let grid = Grid::new(&recording(), 10, 4);
        assert_eq!(grid.rows.len(), 10);
        assert_eq!(grid.rows[0].touched, [3, 0, 0, 0]);
        assert_eq!((grid.rows[1].region.as_str(), &grid.rows[1].touched[..]), ("b", &[1, 0, 0, 0][..]));
        assert_eq!(grid.rows[5].touched, [0, 0, 1, 0], "the middle of 10..40 of 40");
        let all: u64 = grid.rows.iter().flat_map(|r| &r.touched).sum();
        assert_eq!(all, 5);
        assert_eq!((Grid::shade(&grid.rows[5], 2, 4), Grid::shade(&grid.rows[5], 0, 4)), (1, 0), "one page is seen");
    }

    #[test]
    fn an_empty_recording_has_an_empty_grid() {
        let set = WorkingSet::new(Digest::ZERO, 7, Resolution::PAGE);
        let grid = Grid::new(&Recording { set, regions: vec![("all".into(), 0..7)] }, 0, 0);
        assert_eq!((grid.rows.len(), grid.rows[0].touched.len(), grid.time_ns), (1, 1, 0..0));
    }
}
