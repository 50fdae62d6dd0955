//! What it takes to make one dirty page durable, by the size of the object: against pwrite(2) of that page and fdatasync(2).
//!
//! The files are sparse, and 64 MiB of each are touched before: 32 runs of 2 MiB, as far apart as the file lets them be. Of
//! `mapped` every page is cached and mapped. Each run stores to another of the touched pages, the same one on both sides.

use crate::subject::{Arena, Subject};
use softfault_benches::area::shuffled;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{Context, MIB, PAGE, Result};
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const RUN: usize = 2 * MIB;
const RUNS: usize = 32;
const GIB: usize = 1 << 30;

/// Row, series of the reference, size, whether all of it is mapped, and the microseconds that it may take more.
const SIZES: &[(&str, &str, usize, bool, f64)] = &[
    ("sync_one_dirty_1g", "pwrite_one_1g", GIB, false, 1000.0),
    ("sync_one_dirty_64g", "pwrite_one_64g", 64 * GIB, false, 1000.0),
    ("sync_one_dirty_1t", "pwrite_one_1t", 1024 * GIB, false, 1000.0),
    ("sync_one_dirty_1g_mapped", "pwrite_one_1g_mapped", GIB, true, 3000.0),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    for (row, reference, len_bytes, mapped, at_most_us) in SIZES {
        let of: &'static [&'static str] = Box::leak(Box::new([*reference]));
        let rows = [RowSpec::floor(reference).unit("ns/sync"), RowSpec::against(row, row, of, None).unit("ns/sync")];
        let rows = session.select(&rows);
        if rows.is_empty() {
            continue;
        }
        // A file of 1 GiB, every page of it, takes a while to cache.
        let len_bytes = if *mapped { session.options.size_bytes(1024, 64) } else { *len_bytes };
        let dir = session.options.dir.clone();
        let plain = Sparse::create(&dir, "pwrite-one", len_bytes)?;
        let file = Sparse::create(&dir, "sync-one", len_bytes)?;
        let arena = Subject::unbounded().and_then(|s| {
            let arena = s.writable_file(&file.path, len_bytes)?;
            Ok((s, arena))
        });
        let pages = touched(len_bytes);
        let (ours, theirs) = (RefCell::new(pages.iter().cycle()), RefCell::new(pages.iter().cycle()));
        let next = |pages: &RefCell<std::iter::Cycle<std::slice::Iter<'_, usize>>>| {
            pages.borrow_mut().next().copied().unwrap_or(0)
        };
        let mut series = vec![Series::new(reference, || plain.pwrite_one(next(&theirs)))];
        match &arena {
            Ok((_, arena)) => {
                if *mapped {
                    arena.fault_in()?;
                }
                let view = arena.view();
                pages.iter().for_each(|p| view.store(*p));
                arena.sync_all()?;
                series.push(Series::new(row, || sync_one(arena, next(&ours))));
            }
            Err(why) => session.lack(row, why),
        }
        session.measure(&rows, series)?;
        session.note_difference(row, *at_most_us);
    }
    Ok(())
}

/// Returns the pages that are touched, in random order.
fn touched(len_bytes: usize) -> Vec<usize> {
    let apart = len_bytes / RUNS / RUN * RUN;
    let page = |i: u32| (i as usize * PAGE / RUN * apart + i as usize * PAGE % RUN) / PAGE;
    shuffled(RUNS * RUN / PAGE).into_iter().map(page).collect()
}

/// Stores to page `page`, then times making that durable; nanoseconds.
fn sync_one(arena: &Arena, page: usize) -> Result<f64> {
    arena.view().store(page);
    let start = Instant::now();
    arena.sync_all()?;
    Ok(start.elapsed().as_nanos() as f64)
}

/// A file of holes, removed when dropped.
struct Sparse {
    file: File,
    path: PathBuf,
}

impl Sparse {
    fn create(dir: &Path, name: &str, len_bytes: usize) -> Result<Self> {
        let path = dir.join(format!("{name}.{}", std::process::id()));
        let open = File::options().read(true).write(true).create_new(true).open(&path);
        let sparse = Self { file: open.context("creating the file")?, path };
        sparse.file.set_len(len_bytes as u64).context("making the file sparse")?;
        Ok(sparse)
    }

    /// Times writing page `page` and making it durable; nanoseconds.
    fn pwrite_one(&self, page: usize) -> Result<f64> {
        let start = Instant::now();
        self.file.write_all_at(&[0x5a; PAGE], (page * PAGE) as u64).context("pwrite")?;
        self.file.sync_data().context("fdatasync")?;
        Ok(start.elapsed().as_nanos() as f64)
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
