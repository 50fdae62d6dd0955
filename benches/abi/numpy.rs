//! A sum by numpy over a cached arena, against the same over `numpy.memmap` of a hot file and over ordinary memory.

use crate::library::{self, Library};
use softfault_benches::area::{HotFile, page_byte};
use softfault_benches::child::Child;
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{Error, PAGE, Result};
use std::cell::RefCell;
use std::process::Command;

const FIRST: &str = "abi_numpy_sum_first_touch";
const AGAIN: &str = "abi_numpy_sum_again";
const MEMMAP: &str = "numpy_memmap_first_touch";
const MEMFD: &str = "numpy_memfd_first_touch";
const MEMORY: &str = "numpy_memory_sum";
const HUGE: &str = "abi_numpy_sum_huge";
const ALL: [&str; 6] = [FIRST, AGAIN, HUGE, MEMMAP, MEMFD, MEMORY];

const ROWS: &[RowSpec] = &[
    RowSpec::floor(MEMMAP),
    RowSpec::floor(MEMFD),
    RowSpec::floor(MEMORY),
    RowSpec::against(FIRST, FIRST, &[MEMMAP], Some(1.1)).paired(),
    // A memmap of pages such as the cache has: ext4's come in folios, of which the kernel maps several at once.
    RowSpec::against("abi_numpy_sum_vs_memfd", FIRST, &[MEMFD], None).paired(),
    RowSpec::against(HUGE, HUGE, &[MEMMAP], Some(1.1)).paired(),
    RowSpec::against(AGAIN, AGAIN, &[MEMORY], None).paired(),
];

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if let Err(why) = has_numpy(&python) {
        ALL.iter().for_each(|s| session.lack(s, &why));
        return session.measure(&rows, Vec::new());
    }
    let len_bytes = session.options.size_bytes(256, 16);
    let file = HotFile::create(&session.options.dir, "abi_numpy", len_bytes)?;
    let cpu = session.cpus.measuring.to_string();
    let library = Library::build()?;
    let start = |kind: &str| {
        let mut command = Command::new(&python);
        command.env("SOFTFAULT_LIBRARY", library.shared()).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("PYTHONPATH", library::repository("examples/python"));
        Child::start(command.arg(library::file("numpy_side.py")).arg(kind).arg(file.path()).arg(&cpu))
    };
    let arena = RefCell::new(start("softfault")?);
    let (mut memmap, mut memfd, mut memory) = (start("memmap")?, start("memfd")?, start("memory")?);
    let mut huge = start("huge")?;
    let pages = len_bytes / PAGE;
    let made = sum(&mut huge, "first", pages);
    let mut series = vec![
        // The fresh arena comes first, and the sum over it again at some time after it.
        Series::new(FIRST, || sum(&mut arena.borrow_mut(), "first", pages)),
        Series::new(MEMMAP, || sum(&mut memmap, "first", pages)),
        Series::new(MEMFD, || sum(&mut memfd, "first", pages)),
        Series::new(AGAIN, || sum(&mut arena.borrow_mut(), "again", pages)),
        Series::new(MEMORY, || sum(&mut memory, "again", pages)),
    ];
    match made {
        Ok(_) => series.push(Series::new(HUGE, || sum(&mut huge, "first", pages))),
        Err(why) => session.lack(HUGE, &why),
    }
    session.measure(&rows, series)
}

/// Asks the interpreter for numpy.
fn has_numpy(python: &str) -> Result<()> {
    let out = Command::new(python).args(["-c", "import numpy"]).output();
    let out = out.map_err(|e| Error::Absent(format!("no {python}: {e}")))?;
    if out.status.success() { Ok(()) } else { Err(Error::Absent(format!("{python} has no numpy"))) }
}

/// Has a child sum all of `pages` pages, checks the sum, and returns nanoseconds a page.
fn sum(child: &mut Child, line: &str, pages: usize) -> Result<f64> {
    let word = |i| u64::from(page_byte(i)).wrapping_mul(0x0101_0101_0101_0101);
    let of_page = |i| word(i).wrapping_mul((PAGE / size_of::<u64>()) as u64);
    let expected = (0..pages).map(of_page).fold(0, u64::wrapping_add);
    match child.ask(line)?[..] {
        // Both are rounded to the nearest double.
        [ns, sum] if sum == expected as f64 => Ok(ns / pages as f64),
        [_, sum] => Err(Error::Wrong(format!("numpy summed to {sum}, not to {expected}"))),
        _ => Err(Error::Wrong("too few figures".to_owned())),
    }
}
