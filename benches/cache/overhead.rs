//! What the runtime itself takes in memory, per gibibyte of address space mapped and per gibibyte cached.
//!
//! Counted in a fresh process, by `taken`.

use crate::child::{Child, Kind};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{Error, Result};
use std::path::Path;

const UNIT: &str = "bytes/GiB";

const ROWS: &[RowSpec] = &[
    RowSpec::floor("overhead_mapped").unit(UNIT),
    RowSpec::floor("overhead_cached").unit(UNIT),
    RowSpec::floor("overhead_page_tables").unit(UNIT),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(1024, 64);
    let one = move |at: usize| {
        let mut child = Child::start(Kind::Overhead, Path::new("-"), len_bytes, None, 0)?;
        let figures = child.ask("count")?;
        figures.get(at).copied().ok_or_else(|| Error::Wrong("too few figures".to_owned()))
    };
    let series = ROWS.iter().enumerate().map(|(at, row)| Series::new(row.series, move || one(at))).collect();
    session.measure(&rows, series)
}
