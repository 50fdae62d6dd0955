//! A heap in an arena: a program builds a large structure, saves its heap, and the next process goes on where that one was.
//!
//! `cargo run --release --example warm_start -- [--documents N] [--heap talc|mimalloc|both]`
//!
//! The structure is an index of words over documents. One process builds it in a heap that lies in an arena, has the arena saved
//! (`Runtime::capture`) and ends. The next restores the image at the address where it was (`Restore`), which reads nothing, and answers
//! its first query: what that touches is read, and verified. How long that takes from the start of the process is printed beside the
//! two ways that there are without it: building the index anew, and reading all of the image first.
//!
//! What the next process can do with the heap is the allocator's matter: `heap_talc` and `heap_mimalloc` say what and why.
#![allow(clippy::cast_possible_truncation, reason = "a usize is a u64 here")]

mod compare;
mod heap;
mod heap_mimalloc;
mod heap_talc;
mod index;
mod options;
mod process;
mod texts;
mod units;

use heap_mimalloc::MiHeap;
use heap_talc::TalcHeap;
use options::{Allocator, HELP, Options, Role};
use std::process::ExitCode;
use units::Result;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("warm_start: {e}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("warm_start: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let (dir, first) = (&*options.dir, options.heaps.first());
    match (options.role, first) {
        (Role::Compare, _) => compare::run(options),
        (Role::Rebuild, _) => process::rebuild(dir),
        (Role::Save, Some(Allocator::Mimalloc)) => process::save::<MiHeap>(dir, options.documents),
        (Role::Save, _) => process::save::<TalcHeap>(dir, options.documents),
        (Role::Eager, Some(Allocator::Mimalloc)) => process::eager::<MiHeap>(dir),
        (Role::Eager, _) => process::eager::<TalcHeap>(dir),
        (Role::Restore, Some(Allocator::Mimalloc)) => process::restore::<MiHeap>(dir, options.check),
        (Role::Restore, _) => process::restore::<TalcHeap>(dir, options.check),
    }
}
