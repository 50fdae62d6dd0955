//! Two threads that fault at once, against one: what the kernel and the runtime serialise.

use crate::subject::{Delivery, Shape, Subject};
use softfault_benches::area::{Mapping, Memfd, View, check_sum, shuffled};
use softfault_benches::machine::Cpus;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::together::together;
use softfault_benches::trap::{self, Trapped, with_sigbus};
use softfault_benches::{PAGE, Result};
use softfault_platform::sys::mem::PROT_READ;

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
        with_sigbus(&trapped.continuing(1), || touched(trapped.map().view(), orders, cpus))
    };
    let mut series = vec![
        Series::new("bare_threads_1", || bare(&[&order])),
        Series::new("bare_threads_2", || bare(&[&halves.0, &halves.1])),
    ];
    if let Some(a) = &arena {
        let (order, halves) = (&order, &halves);
        let ours = move |orders: &[&[u32]]| {
            a.zap()?;
            touched(a.view(), orders, cpus)
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
fn touched(view: View<'_>, orders: &[&[u32]], cpus: Cpus) -> Result<f64> {
    let (ns, sums) = together(cpus, orders.iter().map(|&order| move || view.sum(order)).collect())?;
    sums.iter().zip(orders).try_for_each(|(sum, order)| check_sum(*sum, order))?;
    Ok(ns / orders.iter().map(|o| o.len()).sum::<usize>() as f64)
}
