//! What it takes to make dirty pages durable, against pwrite(2) of the same pages and fdatasync(2).
//!
//! The reference's time has both calls in it, as a program without a mapping would make them; ours is `sync_all` alone:
//! the stores to the mapping are the program's own work.

use crate::subject::{Arena, Subject};
use softfault_benches::area::{HotFile, ascending, shuffled};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{Context, PAGE, Result};
use std::os::unix::fs::FileExt;
use std::time::Instant;

const ROWS: &[RowSpec] = &[
    RowSpec::floor("pwrite_random"),
    RowSpec::floor("pwrite_sequential"),
    RowSpec::against("sync_random", "sync_random", &["pwrite_random"], Some(1.3)),
    RowSpec::against("sync_sequential", "sync_sequential", &["pwrite_sequential"], Some(1.3)),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(1024, 64);
    let dirty_pages = session.options.size_bytes(64, 4) / PAGE;
    let plain = HotFile::create(&session.options.dir, "pwrite", len_bytes)?;
    let (ascending, shuffled) = (ascending(len_bytes / PAGE), shuffled(len_bytes / PAGE));

    let file = HotFile::create(&session.options.dir, "sync", len_bytes)?;
    let subject = Subject::unbounded()?;
    let arena = subject.writable_file(file.path(), len_bytes).and_then(|a| {
        a.fault_in()?;
        a.sync_all()?;
        Ok(a)
    });

    let (mut random, mut sequential) = (Turns::new(&shuffled, dirty_pages), Turns::new(&ascending, dirty_pages));
    let mut series = vec![
        Series::new("pwrite_random", || pwrite(&plain, random.next())),
        Series::new("pwrite_sequential", || pwrite(&plain, sequential.next())),
    ];
    match &arena {
        Ok(arena) => {
            let (mut random, mut sequential) =
                (Turns::new(&shuffled, dirty_pages), Turns::new(&ascending, dirty_pages));
            series.push(Series::new("sync_random", move || sync(arena, random.next())));
            series.push(Series::new("sync_sequential", move || sync(arena, sequential.next())));
        }
        Err(why) => ["sync_random", "sync_sequential"].iter().for_each(|s| session.lack(s, why)),
    }
    session.measure(&rows, series)
}

/// Other pages in each run, the same ones on both sides.
struct Turns<'a> {
    turns: std::iter::Cycle<std::slice::ChunksExact<'a, u32>>,
}

impl<'a> Turns<'a> {
    fn new(order: &'a [u32], pages: usize) -> Self {
        Self { turns: order.chunks_exact(pages).cycle() }
    }

    fn next(&mut self) -> &'a [u32] {
        self.turns.next().unwrap_or(&[])
    }
}

/// Times writing `pages` and making them durable; nanoseconds a page.
fn pwrite(file: &HotFile, pages: &[u32]) -> Result<f64> {
    let bytes = [0x5a; PAGE];
    let start = Instant::now();
    for page in pages {
        file.file().write_all_at(&bytes, u64::from(*page) * PAGE as u64).context("pwrite")?;
    }
    file.file().sync_data().context("fdatasync")?;
    Ok(start.elapsed().as_nanos() as f64 / pages.len() as f64)
}

/// Dirties `pages`, then times making them durable; nanoseconds a page.
fn sync(arena: &Arena, pages: &[u32]) -> Result<f64> {
    let view = arena.view();
    pages.iter().for_each(|p| view.store(*p as usize));
    let start = Instant::now();
    arena.sync_all()?;
    Ok(start.elapsed().as_nanos() as f64 / pages.len() as f64)
}
