//! The longest that a store waits while an image is captured, against copying the memory under a stop.
//!
//! One thread stores to a part of the memory, round and round and in random order, and takes the time of each store; another, on
//! the other processor, captures. The figure is the longest store of a capture, from before it begins until its image is durable.

use crate::files;
use crate::subject::Capturable;
use softfault_benches::area::shuffled;
use softfault_benches::machine::Pinned;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{Error, PAGE, Result};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROWS: &[RowSpec] = &[
    RowSpec::floor("copy_stopped").unit("ns"),
    RowSpec::against("capture_wait_1pct", "capture_wait_1pct", &["copy_stopped"], Some(0.02)).unit("ns"),
    RowSpec::against("capture_wait_50pct", "capture_wait_50pct", &["copy_stopped"], Some(0.1)).unit("ns"),
    RowSpec::floor("store_longest_1pct").unit("ns"),
    RowSpec::against("capture_whole", "capture_whole", &["copy_stopped"], None).unit("ns"),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = files::len_mib(&session.options) << 20;
    let (cpus, image) = (session.cpus, files::path(&session.options.dir, "captured.sfi"));
    let capturable = Capturable::new(len_bytes);
    let (measuring, other) = (cpus.measuring, cpus.other);
    let mut series = Vec::new();
    match (&capturable, other) {
        (Ok(subject), Some(other)) => {
            let order = shuffled(len_bytes / PAGE);
            let (few, many) = (order[..order.len() / 100].to_vec(), order[..order.len() / 2].to_vec());
            let image = &image;
            let longest = move |pages: &[u32]| longest(subject, pages, image, other).map(|d| d.0);
            series.push(Series::new("copy_stopped", || subject.copy()));
            let pages = few.clone();
            series.push(Series::new("capture_wait_1pct", move || longest(&pages)));
            series.push(Series::new("capture_wait_50pct", move || longest(&many)));
            let pages = few.clone();
            series.push(Series::new("store_longest_1pct", move || {
                let _pinned = Pinned::to(measuring)?;
                Ok(store_until(subject, &pages, &AtomicBool::new(false), Some(Duration::from_secs(1))))
            }));
            series.push(Series::new("capture_whole", move || longest_of(subject, &few, image, other)));
        }
        (Err(why), _) => ROWS.iter().for_each(|r| session.lack(r.series, why)),
        (_, None) => ROWS.iter().for_each(|r| session.lack(r.series, &Error::Absent("one processor".to_owned()))),
    }
    session.measure(&rows, series)
}

/// Captures beside a thread that stores; returns how long the whole took.
fn longest_of(subject: &Capturable, pages: &[u32], image: &Path, other: usize) -> Result<f64> {
    longest(subject, pages, image, other).map(|d| d.1)
}

/// Captures beside this thread, which stores; returns the longest store and how long the capture took, in nanoseconds.
fn longest(subject: &Capturable, pages: &[u32], image: &Path, other: usize) -> Result<(f64, f64)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let captures = s.spawn(|| {
            let whole = Pinned::to(other).and_then(|_pinned| {
                // The stores go on before.
                std::thread::sleep(Duration::from_millis(20));
                let start = Instant::now();
                subject.capture(image)?;
                Ok(start.elapsed().as_nanos() as f64)
            });
            done.store(true, Ordering::Release);
            whole
        });
        let longest = store_until(subject, pages, &done, None);
        let whole =
            captures.join().unwrap_or_else(|_| Err(Error::Wrong("the capturing thread panicked".to_owned())))?;
        std::fs::remove_file(image).map_err(|source| Error::Io { what: "removing the image", source })?;
        Ok((longest, whole))
    })
}

/// Stores to `pages` until it is `done`, or for a time; returns the longest that a store took, in nanoseconds.
fn store_until(subject: &Capturable, pages: &[u32], done: &AtomicBool, at_most: Option<Duration>) -> f64 {
    let (view, begin) = (subject.view(), Instant::now());
    let mut longest = Duration::ZERO;
    // What was not touched before is a first touch; that is not what is measured.
    pages.iter().for_each(|p| view.store(*p as usize));
    while !done.load(Ordering::Acquire) && at_most.is_none_or(|t| begin.elapsed() < t) {
        for page in pages {
            let start = Instant::now();
            view.store(*page as usize);
            longest = longest.max(start.elapsed());
        }
    }
    longest.as_nanos() as f64
}
