//! A cache of a quarter of its object, over a store that is hot: what replacement itself costs.

use crate::floor::{Fill, Floor};
use crate::monitor::Monitored;
use crate::rows::{self, THREADS};
use crate::source::{Source, Transfer};
use crate::subject::Subject;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::workload::{Load, Workload};
use softfault_benches::{Error, PAGE, Result};
use std::cell::RefCell;
use std::sync::Arc;

/// Accesses in one timed run of code in the faulting thread, and of a monitor.
const ACCESSES: usize = 65_536;
const ACCESSES_MONITOR: usize = 16_384;

/// The rows of one workload.
fn specs(w: Workload) -> Vec<RowSpec> {
    let mut all = rows::each_threads(|t| {
        vec![
            rows::own("floor_hot", w, t),
            rows::own("monitor", w, t),
            rows::own("monitor_same_cpu", w, t),
            rows::against("hot", "", (w, t), &["floor_hot"], Some(1.15)),
            rows::against("hot", "_vs_monitor", (w, t), &["monitor"], Some(0.2)),
            rows::against("hot", "_vs_monitor_same_cpu", (w, t), &["monitor_same_cpu"], None),
            rows::against("floor_hot", "_vs_monitor", (w, t), &["monitor"], None),
        ]
    });
    if w == Workload::RandRead {
        let threads = |name, two, one, goal| RowSpec::against(name, two, one, goal).unit(rows::UNIT);
        all.push(threads("floor_threads", "floor_hot_rand_read_2", &["floor_hot_rand_read_1"], None));
        all.push(threads("hot_threads", "hot_rand_read_2", &["hot_rand_read_1"], Some(1.0)));
        all.extend(rows::each_threads(|t| {
            vec![rows::own("floor_pwrite", w, t), rows::against("hot", "_vs_pwrite", (w, t), &["floor_pwrite"], None)]
        }));
    }
    all
}

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let wanted = Workload::ALL.map(|w| (w, session.select(&specs(w))));
    if wanted.iter().all(|(_, rows)| rows.is_empty()) {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(1024, 64);
    let source = || Source::new(len_bytes, Transfer::Copy);
    let floor = |fill| Floor::new(source()?, len_bytes / 4, fill);
    let at_random = wanted.iter().any(|(w, rows)| *w == Workload::RandRead && !rows.is_empty());
    let floors = (floor(Fill::Alias)?, if at_random { Some(floor(Fill::Pwrite)?) } else { None });
    let monitored = Monitored::new(source()?, len_bytes / 4)?;
    let subject = Subject::start(len_bytes / 4);
    let ours = Arc::new(source()?);
    for (workload, rows) in wanted {
        if !rows.is_empty() {
            one(session, workload, &rows, (&floors.0, floors.1.as_ref(), &monitored), (subject.as_ref(), &ours))?;
        }
    }
    Ok(())
}

/// Measures one workload, on one thread and on two.
fn one(
    session: &mut Session,
    workload: Workload,
    rows: &[RowSpec],
    (floor, by_pwrite, monitored): (&Floor, Option<&Floor>, &Monitored),
    (subject, source): (std::result::Result<&Subject, &Error>, &Arc<Source>),
) -> Result<()> {
    let (cpus, pages) = (session.cpus, source.pages());
    let scale = if session.options.quick { 16 } else { 1 };
    let (fast, slow) = (ACCESSES / scale, ACCESSES_MONITOR / scale);
    let warm = workload.warm_up(pages / 4);
    let load = || RefCell::new(Load::new(workload, pages));
    let (at, at_floor, at_pwrite, at_monitor) = (load(), load(), load(), load());

    let arena = subject.map_err(Error::again).and_then(|s| {
        let arena = s.shared(source, workload)?;
        arena.run(&mut at.borrow_mut(), 1, warm, cpus)?;
        Ok(arena)
    });
    floor.run(&mut at_floor.borrow_mut(), 1, warm, cpus)?;
    let by_pwrite = by_pwrite.filter(|_| workload == Workload::RandRead);
    if let Some(by_pwrite) = by_pwrite {
        by_pwrite.run(&mut at_pwrite.borrow_mut(), 1, warm, cpus)?;
    }
    // On one processor a monitor is faster by far, and this is not timed.
    let same = cpus.measuring;
    monitored.run(&mut at_monitor.borrow_mut(), 1, warm, (cpus, same))?;
    let mut series = Vec::new();
    for t in THREADS.into_iter().filter(|t| *t == 1 || cpus.other.is_some()) {
        let name = |side| rows::series(side, workload, t);
        let (at, at_floor, at_pwrite, at_monitor) = (&at, &at_floor, &at_pwrite, &at_monitor);
        let monitor = move |cpu| monitored.run(&mut at_monitor.borrow_mut(), t, slow, (cpus, cpu));
        series.push(Series::new(name("floor_hot"), move || floor.run(&mut at_floor.borrow_mut(), t, fast, cpus)));
        if let Some(by_pwrite) = by_pwrite {
            let run = move || by_pwrite.run(&mut at_pwrite.borrow_mut(), t, fast, cpus);
            series.push(Series::new(name("floor_pwrite"), run));
        }
        match &arena {
            Ok(arena) => {
                series.push(Series::new(name("hot"), move || arena.run(&mut at.borrow_mut(), t, fast, cpus)));
            }
            Err(why) => session.lack(name("hot"), why),
        }
        series.push(Series::new(name("monitor_same_cpu"), move || monitor(same)));
        if let Some(other) = cpus.other {
            series.push(Series::new(name("monitor"), move || monitor(other)));
        }
    }
    session.measure(rows, series)?;
    if let (Ok(_), Ok(subject)) = (&arena, subject) {
        session.note(rows::series("hot", workload, 1), &subject.remark());
    }
    Ok(())
}

/// Says what the figures are of.
pub(crate) fn describe(quick: bool) -> String {
    let (object, scale) = if quick { (64, 16) } else { (1024, 1) };
    format!(
        "hot, exclusive: object {object} MiB ({} pages), cache {} MiB, {} accesses a run ({} with a monitor)",
        (object << 20) / PAGE,
        object / 4,
        ACCESSES / scale,
        ACCESSES_MONITOR / scale
    )
}
