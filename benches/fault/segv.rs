//! Delivery by SIGSEGV, for machines where userfaultfd is forbidden: a whole granule becomes accessible at once.

use crate::subject::{Delivery, Shape, Subject};
use softfault_benches::area::{HotFile, Mapping, Memfd, ascending, shuffled};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::trap::{Action, Target, with_sigsegv};
use softfault_benches::{EXTENT, PAGE, Result};
use softfault_platform::sys::mem::{PROT_NONE, PROT_READ, PROT_WRITE};
use std::time::Instant;

const ROWS: &[RowSpec] = &[
    RowSpec::floor("segv_floor").unit("ns/fault"),
    RowSpec::floor("bare_segv"),
    RowSpec::floor("bare_major_segv"),
    RowSpec::against("minor_segv", "minor_segv", &["bare_segv"], None),
    RowSpec::against("major_segv", "major_segv", &["bare_major_segv"], None),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(128, 16);
    let file = HotFile::create(&session.options.dir, "segv", len_bytes)?;
    let (full, sparse) = (Memfd::filled(len_bytes)?, Memfd::sparse(len_bytes)?);
    let cached = Mapping::shared(full.fd(), len_bytes, PROT_NONE)?;
    let empty = Mapping::shared(sparse.fd(), len_bytes, PROT_NONE)?;
    let alias = Mapping::shared(sparse.fd(), len_bytes, PROT_READ | PROT_WRITE)?;
    let (random, sequential) = (shuffled(len_bytes / PAGE), ascending(len_bytes / PAGE));

    let subject = Subject::start(Delivery::Segv)?;
    let shape = Shape { len_bytes, fault_around: true, ..Shape::TRAPPED };
    let arena = |shape| subject.as_ref().map(|s| s.arena_of(&file, shape)).transpose();
    let (minor, major) = (arena(shape)?, arena(Shape { opaque_store: true, ..shape })?);

    let mut series = vec![
        Series::new("segv_floor", || segv_floor(&cached, random.len())),
        Series::new("bare_segv", || {
            cached.protect(PROT_NONE)?;
            cached.zap()?;
            let target = target(&cached, Action::Expose, None);
            with_sigsegv(&target, || cached.view().time_touches(&random))
        }),
        Series::new("bare_major_segv", || {
            empty.protect(PROT_NONE)?;
            sparse.punch()?;
            let target = target(&empty, Action::FillExpose, Some((&alias, file.fd())));
            with_sigsegv(&target, || empty.view().time_touches(&sequential))
        }),
    ];
    if let Some(a) = &minor {
        a.fault_in()?;
        series.push(Series::new("minor_segv", || a.first_touch(&random)));
    }
    if let Some(a) = &major {
        series.push(Series::new("major_segv", || {
            a.evict()?;
            a.view().time_touches(&sequential)
        }));
    }
    session.measure(&rows, series)
}

fn target<'a>(map: &'a Mapping, action: Action, source: Option<(&'a Mapping, i32)>) -> Target<'a> {
    Target { map, action, window_bytes: EXTENT, uffd: None, source }
}

/// Times faults whose handler does nothing but step over the load.
fn segv_floor(map: &Mapping, count: usize) -> Result<f64> {
    map.protect(PROT_NONE)?;
    with_sigsegv(&target(map, Action::Skip, None), || {
        let view = map.view();
        let start = Instant::now();
        for _ in 0..count {
            let _unspecified = view.touch(0);
        }
        Ok(start.elapsed().as_nanos() as f64 / count as f64)
    })
}
