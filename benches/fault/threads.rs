//! Two threads that fault at once, against one: what the kernel and the runtime serialise.

use crate::subject::{Delivery, Shape, Subject};
use softfault_benches::area::{Mapping, Memfd, View, check_sum, shuffled};
use softfault_benches::machine::{Cpus, Pinned};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::trap::{self, Trapped, with_sigbus};
use softfault_benches::{Error, PAGE, Result};
use softfault_platform::sys::mem::PROT_READ;
use std::sync::Barrier;
use std::time::Instant;

const ROWS: &[RowSpec] = &[
    RowSpec::floor("bare_threads_1"),
    RowSpec::against("bare_threads_2", "bare_threads_2", &["bare_threads_1"], None),
    RowSpec::against("threads_2", "threads_2", &["threads_1"], None),
    RowSpec::against("threads_2_vs_bare", "threads_2", &["bare_threads_2"], Some(1.25)),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let cpus = session.cpus;
    cpus.other()?;
    let len_bytes = session.options.size_bytes(64, 8);
    let memfd = Memfd::filled(len_bytes)?;
    let trapped = Trapped::new(Mapping::shared(memfd.fd(), len_bytes, PROT_READ)?, trap::Delivery::Sigbus)?;
    let order = shuffled(len_bytes / PAGE);
    let halves = halves(&order);

    let subject = Subject::start(Delivery::InThread)?;
    let shape = Shape { len_bytes, ..Shape::TRAPPED };
    let arena = subject.as_ref().map(|s| s.arena_cached(&session.options.dir, shape)).transpose()?;

    let bare = |orders: &[&[u32]]| {
        trapped.map().zap()?;
        with_sigbus(&trapped.continuing(1), || together(trapped.map().view(), orders, cpus))
    };
    let mut series = vec![
        Series::new("bare_threads_1", || bare(&[&order])),
        Series::new("bare_threads_2", || bare(&[&halves.0, &halves.1])),
    ];
    if let Some(a) = &arena {
        let (order, halves) = (&order, &halves);
        let ours = move |orders: &[&[u32]]| {
            a.zap()?;
            together(a.view(), orders, cpus)
        };
        series.push(Series::new("threads_1", move || ours(&[order])));
        series.push(Series::new("threads_2", move || ours(&[&halves.0, &halves.1])));
    }
    session.measure(&rows, series)
}

/// The pages of the lower and of the upper half: two threads never share a page-table page but the middle one.
fn halves(order: &[u32]) -> (Vec<u32>, Vec<u32>) {
    order.iter().partition(|&&p| (p as usize) < order.len() / 2)
}

/// Touches each of `orders` on a thread of its own and returns nanoseconds a page, by the clock on the wall.
fn together(view: View<'_>, orders: &[&[u32]], cpus: Cpus) -> Result<f64> {
    let start = Barrier::new(orders.len());
    let spans = std::thread::scope(|scope| {
        let places = [Some(cpus.measuring), cpus.other].into_iter().flatten();
        let spawn = |(&order, cpu)| {
            let start = &start;
            scope.spawn(move || one(view, order, cpu, start))
        };
        let threads: Vec<_> = orders.iter().zip(places).map(spawn).collect();
        let panicked = |_| Err(Error::Wrong("a measuring thread panicked".to_owned()));
        threads.into_iter().map(|t| t.join().unwrap_or_else(panicked)).collect::<Result<Vec<_>>>()
    })?;
    let wall = spans.iter().map(|s| s.0).min().zip(spans.iter().map(|s| s.1).max());
    let pages: usize = orders.iter().map(|o| o.len()).sum();
    Ok(wall.map_or(f64::NAN, |(first, last)| (last - first).as_nanos() as f64) / pages as f64)
}

/// One thread's part: when it began and when it ended.
fn one(view: View<'_>, order: &[u32], cpu: usize, start: &Barrier) -> Result<(Instant, Instant)> {
    let pinned = Pinned::to(cpu);
    // Before any error: the other thread waits here too.
    start.wait();
    let _pinned = pinned?;
    let begin = Instant::now();
    let sum = view.sum(order);
    let end = Instant::now();
    check_sum(sum, order)?;
    Ok((begin, end))
}
