//! Exclusive objects: private frames that are recycled, against a monitor and against a buffer pool that never faults.
//!
//! Bytes come from a memfd by pread(2) on every side, as a pool would read a file that is hot in the kernel's page cache;
//! the monitor alone copies them straight into the missing page, which is kinder to it.

use crate::monitor::Monitored;
use crate::pool::Pool;
use crate::rows::{self, THREADS};
use crate::source::{Source, Transfer};
use crate::subject::Subject;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::workload::{Load, Workload};
use softfault_benches::{Error, Result};
use std::cell::RefCell;
use std::sync::Arc;

/// Accesses in one timed run, and with a monitor.
const ACCESSES: usize = 65_536;
const ACCESSES_MONITOR: usize = 16_384;

fn specs(w: Workload) -> Vec<RowSpec> {
    rows::each_threads(|t| {
        vec![
            rows::own("pool", w, t),
            rows::own("exclusive_monitor", w, t),
            rows::against("exclusive", "", (w, t), &["exclusive_monitor"], Some(0.8)),
            rows::against("exclusive", "_vs_pool", (w, t), &["pool"], Some(1.3)),
        ]
    })
}

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let wanted = Workload::ALL.map(|w| (w, session.select(&specs(w))));
    if wanted.iter().all(|(_, rows)| rows.is_empty()) {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(1024, 64);
    let source = || Source::new(len_bytes, Transfer::Pread);
    let pool = Pool::new(source()?, len_bytes / 4);
    let monitored = Monitored::new(source()?, len_bytes / 4)?;
    let ours = Arc::new(source()?);
    let subject = Subject::start(len_bytes / 4);
    for (workload, rows) in wanted {
        if !rows.is_empty() {
            one(session, (workload, &rows), (&pool, &monitored), (subject.as_ref(), &ours))?;
        }
    }
    Ok(())
}

fn one(
    session: &mut Session,
    (workload, rows): (Workload, &[RowSpec]),
    (pool, monitored): (&Pool, &Monitored),
    (subject, source): (std::result::Result<&Subject, &Error>, &Arc<Source>),
) -> Result<()> {
    let (cpus, pages) = (session.cpus, source.pages());
    let scale = if session.options.quick { 16 } else { 1 };
    let (fast, slow) = (ACCESSES / scale, ACCESSES_MONITOR / scale);
    let warm = workload.warm_up(pages / 4);
    let load = || RefCell::new(Load::new(workload, pages));
    let (at, at_pool, at_monitor) = (load(), load(), load());

    let arena = subject.map_err(Error::again).and_then(|s| {
        let arena = s.exclusive(source, workload)?;
        arena.run(&mut at.borrow_mut(), 1, warm, cpus)?;
        Ok(arena)
    });
    pool.run(&mut at_pool.borrow_mut(), 1, warm, cpus)?;
    let same = cpus.measuring;
    monitored.run(&mut at_monitor.borrow_mut(), 1, warm, (cpus, same))?;
    let mut series = Vec::new();
    for t in THREADS.into_iter().filter(|t| *t == 1 || cpus.other.is_some()) {
        let name = |side| rows::series(side, workload, t);
        let (at, at_pool, at_monitor) = (&at, &at_pool, &at_monitor);
        series.push(Series::new(name("pool"), move || pool.run(&mut at_pool.borrow_mut(), t, fast, cpus)));
        match &arena {
            Ok(arena) => {
                series.push(Series::new(name("exclusive"), move || arena.run(&mut at.borrow_mut(), t, fast, cpus)));
            }
            Err(why) => session.lack(name("exclusive"), why),
        }
        series.push(Series::new(name("exclusive_monitor"), move || {
            monitored.run(&mut at_monitor.borrow_mut(), t, slow, (cpus, same))
        }));
    }
    session.measure(rows, series)
}
