//! Touching every page of a memory that lies in compressed frames, cold, against two threads that read and decode the same
//! frames into a buffer and do nothing with them.

use crate::files::{self, Measured};
use crate::subject::Subject;
use softfault_benches::area::ascending;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::together::together;
use softfault_benches::{PAGE, Result};

const ROWS: &[RowSpec] = &[
    RowSpec::floor("decode_bare_2"),
    RowSpec::against("session_lz4_cold", "session_lz4_cold", &["decode_bare_2"], Some(1.15)),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let (dir, len_bytes) = (session.options.dir.clone(), files::len_mib(&session.options) << 20);
    let file = Measured::container(&dir, "lz4.sfi", len_bytes, true)?;
    let (subject, order) = (Subject::open(file.path(), len_bytes)?, ascending(len_bytes / PAGE));
    let (cpus, nr_pages) = (session.cpus, (len_bytes / PAGE) as f64);
    let threads = if cpus.other.is_some() { 2 } else { 1 };
    let series = vec![
        Series::new("decode_bare_2", || {
            file.cool()?;
            let works = (0..threads).map(|part| {
                let subject = &subject;
                move || subject.decode(part, threads)
            });
            let (ns, done) = together(cpus, works.collect())?;
            done.into_iter().collect::<Result<Vec<()>>>()?;
            Ok(ns / nr_pages)
        }),
        Series::new("session_lz4_cold", || {
            subject.evict()?;
            file.cool()?;
            subject.session()?.view()?.time_touches(&order)
        }),
    ];
    session.measure(&rows, series)
}
