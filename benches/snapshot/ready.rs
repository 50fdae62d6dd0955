//! How long it takes until an image is open, a session of it ready, and the session gone, by the size of the image.
//!
//! The images are sparse raw files: what is measured is what does not depend on the bytes.

use crate::files::Measured;
use crate::subject::{self, Host, Life};
use softfault_benches::Result;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};

const GIB: u64 = 1 << 30;

/// What each may take, in microseconds.
const AT_MOST_US: f64 = 1000.0;

type Phase = fn(Life) -> f64;

/// Rows of an image: its size, and what is measured of a session's life.
const SIZES: &[(u64, [(&str, Phase); 3])] = &[
    (GIB, [("image_open_1g", |l| l.open), ("session_ready_1g", |l| l.ready), ("session_drop_1g", |l| l.dropped)]),
    (
        1024 * GIB,
        [("image_open_1t", |l| l.open), ("session_ready_1t", |l| l.ready), ("session_drop_1t", |l| l.dropped)],
    ),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    for (len_bytes, phases) in SIZES {
        let rows: Vec<_> = phases.iter().map(|(name, _)| RowSpec::floor(name).unit("ns")).collect();
        let rows = session.select(&rows);
        if rows.is_empty() {
            continue;
        }
        let file = Measured::sparse(&session.options.dir, "sparse.raw", *len_bytes)?;
        let host = Host::start()?;
        let series = phases.iter().map(|(name, phase)| {
            let (host, file) = (&host, &file);
            Series::new(name, move || subject::live(host, file.path(), *len_bytes).map(phase))
        });
        session.measure(&rows, series.collect())?;
        phases.iter().for_each(|(name, _)| session.note_at_most(name, AT_MOST_US));
    }
    Ok(())
}
