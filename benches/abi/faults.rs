//! Faults through the C ABI, against the same from Rust.

use crate::child::{self, arguments};
use crate::library::Library;
use crate::subject::Kind;
use softfault_benches::area::HotFile;
use softfault_benches::child::Child;
use softfault_benches::report::{RowSpec, median};
use softfault_benches::session::{Series, Session};
use softfault_benches::{Error, Result};
use std::cell::RefCell;
use std::process::Command;

const ROWS: &[RowSpec] = &[
    RowSpec::floor("rust_minor_single"),
    RowSpec::floor("rust_custom_fault"),
    // Rust against itself, in two processes: how far from 1 a ratio is by chance.
    RowSpec::against("rust_custom_fault_aa", "rust_custom_fault_aa", &["rust_custom_fault"], None).paired(),
    RowSpec::against("abi_minor_single", "abi_minor_single", &["rust_minor_single"], Some(1.02)).paired(),
    RowSpec::against("abi_custom_fault", "abi_custom_fault", &["rust_custom_fault"], None).paired(),
];

/// What a fault callback in C may cost more than one in Rust.
const CALLBACK_GOAL_NS: f64 = 100.0;

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(ROWS);
    if rows.is_empty() {
        return Ok(());
    }
    let len_bytes = session.options.size_bytes(64, 4);
    let file = HotFile::create(&session.options.dir, "abi", len_bytes)?;
    let cpu = session.cpus.measuring;
    let rust = |kind| child::rust(kind, file.path(), len_bytes, cpu);
    let (mut rust_minor, mut rust_custom, mut rust_again) =
        (rust(Kind::Minor)?, rust(Kind::Custom)?, rust(Kind::Custom)?);
    let program = Library::build().and_then(|l| l.program());
    let c = |kind| {
        let program = program.as_ref().map_err(Error::again)?;
        Child::start(arguments(&mut Command::new(program), kind, file.path(), len_bytes, cpu))
    };
    let (mut c_minor, mut c_custom) = (c(Kind::Minor), c(Kind::Custom));
    // Runs of the callbacks, for the difference.
    let [of_c, of_rust, of_again] = [const { RefCell::new(Vec::new()) }; 3];
    let kept = |of: &RefCell<Vec<f64>>, ns: f64| {
        of.borrow_mut().push(ns);
        Ok(ns)
    };
    let mut series = vec![
        Series::new("rust_minor_single", || rust_minor.ask_one("run")),
        Series::new("rust_custom_fault", || kept(&of_rust, rust_custom.ask_one("run")?)),
        Series::new("rust_custom_fault_aa", || kept(&of_again, rust_again.ask_one("run")?)),
    ];
    match &mut c_minor {
        Ok(child) => series.push(Series::new("abi_minor_single", || child.ask_one("run"))),
        Err(why) => session.lack("abi_minor_single", why),
    }
    match &mut c_custom {
        Ok(child) => series.push(Series::new("abi_custom_fault", || kept(&of_c, child.ask_one("run")?))),
        Err(why) => session.lack("abi_custom_fault", why),
    }
    session.measure(&rows, series)?;
    let (of_c, of_rust, of_again) = (of_c.into_inner(), of_rust.into_inner(), of_again.into_inner());
    if let Some(more) = difference(&of_again, &of_rust) {
        session.note("rust_custom_fault_aa", &format!("{more:.1} ns more a fault"));
    }
    if let Some(more) = difference(&of_c, &of_rust) {
        let met = if more < CALLBACK_GOAL_NS { "yes" } else { "NO" };
        session.note("abi_custom_fault", &format!("{more:.1} ns more a fault, < {CALLBACK_GOAL_NS} {met}"));
    }
    Ok(())
}

/// Returns the median of what neighbouring runs differ by, but for the first ones, which were for warmth.
fn difference(of: &[f64], from: &[f64]) -> Option<f64> {
    let more: Vec<f64> = of.iter().zip(from).skip(1).map(|(a, b)| a - b).collect();
    (!more.is_empty()).then(|| median(&more))
}
