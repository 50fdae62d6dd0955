//! Extents that were handed back to the kernel, against mappings that were the kernel's all along.

use crate::subject::{Delivery, Shape, Subject};
use softfault_benches::area::{HotFile, Mapping, Memfd, shuffled};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{PAGE, Result};
use softfault_platform::sys::mem::{MADV_POPULATE_READ, PROT_READ};
use std::cell::Cell;

const ROWS: &[RowSpec] = &[
    RowSpec::floor("memfd_first"),
    RowSpec::floor("memfd_steady").unit("ns/load"),
    // The kernel against itself: how far from 1 a ratio is by chance.
    RowSpec::against("memfd_first_aa", "memfd_first_aa", &["memfd_first"], None).paired(),
    RowSpec::against("memfd_steady_aa", "memfd_steady_aa", &["memfd_steady"], None).paired().unit("ns/load"),
    RowSpec::against("ext4_mmap", "ext4_first", &["memfd_first"], None).paired(),
    RowSpec::against("ext4_mmap_steady", "ext4_steady", &["memfd_steady"], None).paired().unit("ns/load"),
    RowSpec::against("minor_native", "minor_native", &["memfd_first"], Some(1.10)).paired(),
    RowSpec::against("steady_random", "steady_random", &["memfd_steady"], Some(1.05)).paired().unit("ns/load"),
];

/// Random loads in one steady run.
const LOADS: usize = 1_000_000;

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(1024, 64);
    let file = HotFile::create(&session.options.dir, "native", len_bytes)?;
    let memfd = Memfd::filled(len_bytes)?;
    let shared = |fd| Mapping::shared(fd, len_bytes, PROT_READ);
    // Each side's pages are mapped once: where a page is mapped elsewhere already the kernel skips its counters, which is
    // a sixth of a first touch.
    let twin = Memfd::filled(len_bytes)?;
    let (reference, again, ext4) = (shared(memfd.fd())?, shared(twin.fd())?, shared(file.fd())?);
    let order = shuffled(len_bytes / PAGE);

    let subject = Subject::start(Delivery::InThread)?;
    let shape = Shape { len_bytes, native: true, ..Shape::TRAPPED };
    let arena = subject.as_ref().map(|s| s.arena_of(&file, shape)).transpose()?;
    let entries = Cell::new(0);

    // First and steady touches of one side follow each other, as they would in a program.
    let mut series = vec![
        Series::new("memfd_first", || first(&reference, &order)),
        Series::new("memfd_first_aa", || first(&again, &order)),
        Series::new("ext4_first", || first(&ext4, &order)),
        Series::new("memfd_steady", || steady(&reference)),
        Series::new("memfd_steady_aa", || steady(&again)),
        Series::new("ext4_steady", || steady(&ext4)),
    ];
    if let Some(a) = &arena {
        a.fault_in()?;
        a.promote()?;
        series.push(Series::new("minor_native", || {
            // Trapped, promoted, demoted, promoted: what is timed must not remember that it was ever ours.
            a.demote()?;
            a.promote()?;
            let before = a.counters();
            let ns = a.first_touch(&order)?;
            entries.set(entries.get() + a.counters().entries - before.entries);
            Ok(ns)
        }));
        series.push(Series::new("steady_random", || a.view().time_random_loads(LOADS)));
    }
    session.measure(&rows, series)?;
    if let Some(a) = &arena {
        let c = a.counters();
        let note = format!(
            "{} promotions, {} demotions, {} handler entries while timed",
            c.promotions,
            c.demotions,
            entries.get()
        );
        session.note("minor_native", &note);
    }
    Ok(())
}

fn first(map: &Mapping, order: &[u32]) -> Result<f64> {
    map.zap()?;
    map.view().time_touches(order)
}

fn steady(map: &Mapping) -> Result<f64> {
    map.advise(MADV_POPULATE_READ)?;
    map.view().time_random_loads(LOADS)
}
