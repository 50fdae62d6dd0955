//! A thousand clones of one image: what they have not stored to is in memory once.
//!
//! `cargo run --release --example clones -- [--clones N] [--size BYTES]`
//!
//! It makes an image, opens it once, and restores it a thousand times in this process. Every clone loads pages and stores to some;
//! then all of them are checked: each has the image's bytes, its own stores, and nobody else's. Then everything clean is evicted,
//! and all are checked once more. What that takes of memory is printed beside copies that are read whole, of which a few are made.
#![allow(clippy::cast_possible_truncation, reason = "a usize is a u64 here")]

#[path = "../bytes.rs"]
mod bytes;
mod copies;
mod fleet;
mod image;
mod memory;
mod options;
mod units;

use options::{HELP, Options};
use std::process::ExitCode;
use units::Result;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("clones: {e}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("clones: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let folder = image::Folder::new()?;
    image::make(&folder.image(), options.pages)?;
    let copies = copies::make(&folder.image(), options)?;
    fleet::show(&folder.image(), options, &copies)
}
