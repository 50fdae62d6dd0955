//! A heatmap as SVG, for a browser or a report.

use super::grid::{Grid, Row};
use crate::units::{bytes, millis, of_pages};
use std::fmt::Write;

/// Shades of a cell.
const SHADES: u64 = 16;
/// Room for the names on the left and the time below.
const LEFT: usize = 160;
const BELOW: usize = 40;
const CELL: (usize, usize) = (8, 8);

/// Draws a grid.
pub(super) fn draw(grid: &Grid) -> String {
    let columns = grid.rows.first().map_or(0, |row| row.touched.len());
    let (width, height) = (columns * CELL.0, grid.rows.len() * CELL.1);
    let mut svg = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"10\">",
        LEFT + width + 10,
        height + BELOW
    );
    let _ = writeln!(svg, "<rect x=\"{LEFT}\" width=\"{width}\" height=\"{height}\" fill=\"#f4f4f4\"/>");
    let mut last = None;
    for (nr, row) in grid.rows.iter().enumerate() {
        if last != Some(&row.region) {
            let (y, name) = (nr * CELL.1 + CELL.1, escape(&row.region));
            let _ = writeln!(svg, "<text x=\"4\" y=\"{y}\">{name}, from {}</text>", bytes(of_pages(row.page)));
            last = Some(&row.region);
        }
        cells(&mut svg, row, nr);
    }
    let (from, to, y) = (millis(grid.time_ns.start), millis(grid.time_ns.end), height + 16);
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{y}\">{from} ms</text>");
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{to} ms</text>", LEFT + width);
    svg += "</svg>\n";
    svg
}

fn cells(svg: &mut String, row: &Row, nr: usize) {
    for (column, touched) in row.touched.iter().enumerate().filter(|(_, touched)| **touched > 0) {
        let shade = Grid::shade(row, column, SHADES);
        let (x, y) = (LEFT + column * CELL.0, nr * CELL.1);
        // From pale orange to dark red.
        let (green, blue) = (200 - 11 * shade, 120 - 7 * shade);
        let _ = write!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" ", CELL.0, CELL.1);
        let _ =
            writeln!(svg, "fill=\"rgb(230,{green},{blue})\"><title>{touched} of {} pages</title></rect>", row.pages);
    }
}

/// Writes out what XML would take for its own, or cannot have: a region's name is somebody else's.
fn escape(text: &str) -> String {
    let plain = text.escape_debug().to_string();
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_markup() {
        assert_eq!(escape("<script>&\u{1}"), "&lt;script&gt;&amp;\\u{1}");
    }
}
