//! Verifying an image, by every processor, against reading its file as cat(1) does.

use crate::files::{self, Measured};
use crate::subject;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{PAGE, Result};
use std::time::Instant;

const ROWS: &[RowSpec] = &[
    RowSpec::floor("cat_cold"),
    RowSpec::against("verify_cold", "verify_cold", &["cat_cold"], Some(1.1)),
    RowSpec::floor("cat_hot"),
    RowSpec::against("verify_hot", "verify_hot", &["cat_hot"], Some(1.4)),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let (dir, len_bytes) = (session.options.dir.clone(), files::len_mib(&session.options) << 20);
    let file = Measured::container(&dir, "raw.sfi", len_bytes, false)?;
    let timed = |work: &dyn Fn() -> Result<()>, hot: bool| {
        if hot {
            file.cat()?;
        } else {
            file.cool()?;
        }
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_nanos() as f64 / (len_bytes / PAGE) as f64)
    };
    let cpus = session.cpus;
    let verify = || {
        let _spread = cpus.spread()?;
        subject::verify(file.path())
    };
    let series = vec![
        Series::new("cat_cold", || timed(&|| file.cat(), false)),
        Series::new("verify_cold", || timed(&verify, false)),
        Series::new("cat_hot", || timed(&|| file.cat(), true)),
        Series::new("verify_hot", || timed(&verify, true)),
    ];
    session.measure(&rows, series)
}
