//! Touching the pages of a session, against the kernel's private mmap of the same memory as a raw file.
//!
//! `hot`: every page, in order, of a memory that is in the session's cache, or in the kernel's. `cold`: a tenth of the memory, in runs of
//! 64 KiB at random places, and nothing of the file is in any cache.

use crate::files::{self, Measured};
use crate::subject::{self, Subject};
use softfault_benches::area::{Mapping, ascending, shuffled};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{PAGE, Result};
use softfault_platform::sys::mem::{MADV_POPULATE_READ, PROT_READ};
use std::time::Instant;

const ROWS: &[RowSpec] = &[
    RowSpec::floor("mmap_hot"),
    RowSpec::against("session_hot", "session_hot", &["mmap_hot"], Some(1.1)),
    RowSpec::against("session_direct_hot", "session_direct_hot", &["mmap_hot"], Some(1.05)),
    RowSpec::floor("mmap_cold"),
    RowSpec::against("session_cold_raw", "session_cold_raw", &["mmap_cold"], Some(1.1)),
    RowSpec::against("session_cold", "session_cold", &["mmap_cold"], Some(1.1)),
    RowSpec::against("session_cold_lz4", "session_cold_lz4", &["mmap_cold"], None),
    RowSpec::against("session_cold_replay", "session_cold_replay", &["mmap_cold"], Some(0.5)),
];

/// Pages in a run of the working set.
const RUN: u32 = 16;

/// Returns a tenth of the pages, run by run.
fn working_set(nr_pages: usize) -> Vec<u32> {
    let runs = shuffled(nr_pages / RUN as usize);
    let some = runs.into_iter().take(nr_pages / RUN as usize / 10);
    some.flat_map(|r| r * RUN..(r + 1) * RUN).collect()
}

/// Times the touches of a session behind one that has had everything cached.
fn second(all: &[u32], make: impl Fn() -> Result<subject::Session>) -> Result<f64> {
    make()?.view()?.time_touches(all)?;
    make()?.view()?.time_touches(all)
}

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let (dir, len_bytes) = (session.options.dir.clone(), files::len_mib(&session.options) << 20);
    let raw = Measured::raw(&dir, len_bytes)?;
    let sfi = Measured::container(&dir, "raw.sfi", len_bytes, false)?;
    let lz4 = Measured::container(&dir, "lz4.sfi", len_bytes, true)?;
    let of_raw = Subject::open(raw.path(), len_bytes)?;
    let of_sfi = Subject::open(sfi.path(), len_bytes)?;
    let of_lz4 = Subject::open(lz4.path(), len_bytes)?;
    let trusted = Subject::open_trusted(raw.path(), len_bytes)?;
    let (all, set) = (ascending(len_bytes / PAGE), working_set(len_bytes / PAGE));
    let touched = of_sfi.record(|s| s.view()?.time_touches(&set).map(|_| ()))?;
    let cpus = session.cpus;
    let cold = |file: &Measured, subject: &Subject| {
        subject.evict()?;
        file.cool()?;
        // Making the session is part of what a restore takes.
        let start = Instant::now();
        let session = subject.session()?;
        session.view()?.time_touches(&set)?;
        Ok(start.elapsed().as_nanos() as f64 / set.len() as f64)
    };
    let series = vec![
        Series::new("mmap_hot", || {
            Mapping::private(raw.fd(), len_bytes, PROT_READ)?.advise(MADV_POPULATE_READ)?;
            Mapping::private(raw.fd(), len_bytes, PROT_READ)?.view().time_touches(&all)
        }),
        Series::new("session_hot", || second(&all, || of_sfi.session())),
        Series::new("session_direct_hot", || second(&all, || trusted.direct())),
        Series::new("mmap_cold", || {
            raw.cool()?;
            let start = Instant::now();
            Mapping::private(raw.fd(), len_bytes, PROT_READ)?.view().time_touches(&set)?;
            Ok(start.elapsed().as_nanos() as f64 / set.len() as f64)
        }),
        Series::new("session_cold_raw", || cold(&raw, &of_raw)),
        Series::new("session_cold", || cold(&sfi, &of_sfi)),
        Series::new("session_cold_lz4", || cold(&lz4, &of_lz4)),
        Series::new("session_cold_replay", || {
            of_sfi.evict()?;
            sfi.cool()?;
            let start = Instant::now();
            let spread = cpus.spread()?;
            let session = of_sfi.replaying(&touched)?;
            drop(spread);
            session.view()?.time_touches(&set)?;
            Ok(start.elapsed().as_nanos() as f64 / set.len() as f64)
        }),
    ];
    session.measure(&rows, series)?;
    session.note("session_cold", &of_sfi.counters());
    Ok(())
}
