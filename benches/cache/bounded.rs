//! Everything in a quarter of the object's size, the kernel's page cache included: a memory group around a whole process.
//!
//! Each side has a child, a group and a file of its own: pages of a shared file would be charged to whichever side read
//! them first, and be free for the other.

use crate::cgroup::Group;
use crate::child::{Child, Kind};
use crate::rows::{self, THREADS};
use crate::subject::Subject;
use softfault_benches::area::HotFile;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::workload::Workload;
use softfault_benches::{MIB, PAGE, Result};
use std::cell::RefCell;
use std::time::Duration;

/// Sizes of the file in mebibytes, full and quick; a group has a quarter.
const FILE_MIB: (usize, usize) = (1024, 128);

fn specs(w: Workload) -> Vec<RowSpec> {
    rows::each_threads(|t| {
        vec![
            rows::own("bounded_mmap", w, t),
            rows::own("bounded_mmap_random", w, t),
            rows::against("bounded", "", (w, t), &["bounded_mmap", "bounded_mmap_random"], Some(1.0)),
        ]
    })
}

/// Accesses in one timed run: about half a second of a disk's time where most of them miss.
fn accesses(workload: Workload, quick: bool) -> usize {
    let full = match workload {
        Workload::RandRead | Workload::RandRw => 8192,
        Workload::ZipfRead => 32_768,
        Workload::SeqRead => 131_072,
    };
    if quick { full / 64 } else { full }
}

/// The longest time of one run: a side that reads far more than it is asked for gets fewer accesses.
fn budget(quick: bool) -> Duration {
    Duration::from_millis(if quick { 100 } else { 2_000 })
}

/// The longest time of filling the memory before. Such a side has filled it long before; the others need their time.
fn warm_up_budget(quick: bool) -> Duration {
    Duration::from_millis(if quick { 500 } else { 20_000 })
}

/// A side, where it can be had.
struct Side {
    name: &'static str,
    child: RefCell<Child>,
    // Goes after the child that maps it.
    _file: HotFile,
}

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let wanted = Workload::ALL.map(|w| (w, session.select(&specs(w))));
    if wanted.iter().all(|(_, rows)| rows.is_empty()) {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(FILE_MIB.0, FILE_MIB.1);
    let mut sides = Vec::new();
    let kinds = [("bounded_mmap", Kind::Mmap), ("bounded_mmap_random", Kind::MmapRandom), ("bounded", Kind::Softfault)];
    for (name, kind) in kinds {
        match start(session, name, kind, len_bytes) {
            Ok(side) => sides.push(side),
            Err(e) => {
                for (w, t) in Workload::ALL.iter().flat_map(|w| THREADS.map(|t| (*w, t))) {
                    session.lack(rows::series(name, w, t), &e);
                }
            }
        }
    }
    for (workload, rows) in wanted.iter().filter(|(_, rows)| !rows.is_empty()) {
        // A child that was killed for want of memory costs its own rows, and those it was being timed for.
        if let Err(e) = one(session, *workload, rows, &sides) {
            session.failed(&format!("bounded {}", workload.name()), &e);
        }
    }
    Ok(())
}

/// Starts a side: its file is cold, its process in its group.
fn start(session: &Session, name: &'static str, kind: Kind, len_bytes: usize) -> Result<Side> {
    let group_bytes = len_bytes / 4;
    // The process has tables, stacks and buffers besides: some 8 to 13 MiB of 256 were charged.
    let limit_bytes = limit(group_bytes);
    if kind == Kind::Softfault {
        Subject::start(limit_bytes)?;
    }
    let group = Group::new(kind.name(), group_bytes)?;
    let file = HotFile::create(&session.options.dir, name, len_bytes)?;
    file.cool()?;
    let child = Child::start(kind, file.path(), len_bytes, Some(group), limit_bytes)?;
    Ok(Side { name, child: RefCell::new(child), _file: file })
}

fn one(session: &mut Session, workload: Workload, rows: &[RowSpec], sides: &[Side]) -> Result<()> {
    let (cpus, pages) = (session.cpus, session.options.size_bytes(FILE_MIB.0, FILE_MIB.1) / PAGE);
    let count = accesses(workload, session.options.quick);
    let (warm, time) = (workload.warm_up(pages / 4), budget(session.options.quick));
    let mut series = Vec::new();
    for side in sides {
        // One thread fills the memory with what this workload keeps there.
        let filled = side.child.borrow_mut().run(workload, 1, warm, warm_up_budget(session.options.quick));
        if let Err(e) = filled {
            THREADS.iter().for_each(|&t| session.lack(rows::series(side.name, workload, t), &e));
            continue;
        }
        for t in THREADS.into_iter().filter(|t| *t == 1 || cpus.other.is_some()) {
            let name = rows::series(side.name, workload, t);
            series.push(Series::new(name, move || side.child.borrow_mut().run(workload, t, count, time)));
        }
    }
    session.measure(rows, series)?;
    for side in sides {
        if let Some(text) = side.child.borrow().remark() {
            session.note(rows::series(side.name, workload, 1), &text);
        }
    }
    Ok(())
}

/// The cache's limit in a group.
fn limit(group_bytes: usize) -> usize {
    (group_bytes / 16 * 15).min(group_bytes.saturating_sub(13 * MIB))
}

/// Says what the figures are of.
pub(crate) fn describe(quick: bool) -> String {
    let mib = if quick { FILE_MIB.1 } else { FILE_MIB.0 };
    format!(
        "bounded: file {mib} MiB, cold, memory group {} MiB, cache limit {} MiB, {} to {} accesses a run",
        mib / 4,
        limit(mib * MIB / 4) / MIB,
        accesses(Workload::RandRead, quick),
        accesses(Workload::SeqRead, quick)
    )
}
