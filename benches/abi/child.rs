//! A side in a process of its own: the C side, or this program again.
//!
//! A child makes its runtime first, then moves to the processor that measures, so that its background threads are not
//! bound to it.

use crate::subject::{Kind, Side};
use softfault_benches::Result;
use softfault_benches::child::{self, Child, usage};
use softfault_benches::machine::Pinned;
use std::path::Path;
use std::process::Command;

/// Starts this program again, as the Rust side.
pub(crate) fn rust(kind: Kind, path: &Path, len_bytes: usize, cpu: usize) -> Result<Child> {
    Child::start(arguments(&mut child::this_program()?, kind, path, len_bytes, cpu))
}

/// Adds what both the Rust side and the C side take.
pub(crate) fn arguments<'a>(
    command: &'a mut Command,
    kind: Kind,
    path: &Path,
    len_bytes: usize,
    cpu: usize,
) -> &'a mut Command {
    command.arg(kind.name()).arg(path).args([len_bytes.to_string(), cpu.to_string()])
}

/// Runs the Rust side until its input ends.
pub(crate) fn main() -> Result<()> {
    let args = child::arguments();
    let [kind, path, len_bytes, cpu] = &args[..] else { return Err(usage()) };
    let number = |text: &String| text.parse::<usize>().map_err(|_| usage());
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind).ok_or_else(usage)?;
    let side = Side::new(kind, Path::new(path), number(len_bytes)?)?;
    let _pinned = Pinned::to(number(cpu)?)?;
    child::serve(|_| side.run().map(|ns| ns.to_string()))
}
