//! A hundred sessions of one image: what one of them takes to make, and what all of them are in memory when each has touched
//! everything.

use crate::files::Measured;
use crate::subject::{Session as Clone, Subject};
use softfault_benches::area::ascending;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{Context, Error, PAGE, Result};
use std::time::Instant;

const CLONES: usize = 100;

/// What making one may take, in microseconds.
const AT_MOST_US: f64 = 40.0;

const ROWS: &[RowSpec] = &[
    RowSpec::floor("clone_create").unit("ns/clone"),
    RowSpec::floor("one_copy").unit("bytes"),
    RowSpec::against("clones_100", "clones_100", &["one_copy"], Some(1.02)).unit("bytes"),
];

/// Returns the bytes of anonymous memory of the process that are resident.
fn anonymous_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let kb = status
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:"))
        .and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kb.map(|kb| kb << 10).ok_or_else(|| Error::Absent("the kernel does not tell what memory is anonymous".to_owned()))
}

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(128, 8);
    let file = Measured::container(&session.options.dir, "lz4.sfi", len_bytes, true)?;
    let (subject, order) = (Subject::open(file.path(), len_bytes)?, ascending(len_bytes / PAGE));
    let series = vec![
        Series::new("one_copy", || Ok(len_bytes as f64)),
        Series::new("clone_create", || {
            let start = Instant::now();
            let clones = (0..CLONES).map(|_| subject.session()).collect::<Result<Vec<Clone>>>()?;
            let ns = start.elapsed().as_nanos() as f64;
            drop(clones);
            Ok(ns / CLONES as f64)
        }),
        Series::new("clones_100", || {
            let before = anonymous_bytes()?;
            let clones = (0..CLONES).map(|_| subject.session()).collect::<Result<Vec<Clone>>>()?;
            for clone in &clones {
                clone.view()?.time_touches(&order)?;
            }
            Ok((subject.cached_bytes() + anonymous_bytes()?.saturating_sub(before)) as f64)
        }),
    ];
    session.measure(&rows, series)?;
    session.note_at_most("clone_create", AT_MOST_US);
    Ok(())
}
