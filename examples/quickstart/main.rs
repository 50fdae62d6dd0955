//! What the runtime is for, and what it costs.
//!
//! `cargo run --release --example quickstart -- [--size BYTES] [--cache BYTES] [FILE]`
//!
//! It makes a file of lz4 frames, whose content is larger than the cache, maps it, and checks every byte by plain loads; one
//! frame is corrupt, and is said to be. Then it reads a plain file (FILE, or one that it makes) through an arena and through
//! the kernel's own mmap, cold and hot, and compares. The exit status is 1 when a byte is wrong.

#[path = "../bytes.rs"]
mod bytes;
mod content;
mod cost;
mod frames;
mod units;

use content::Content;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use units::{EXTENT, Result};

const HELP: &str = "\
usage: quickstart [OPTIONS] [FILE]

  --size BYTES     content of the files that are made (default 256M)
  --cache BYTES    limit of the cache that the file of lz4 frames is mapped through (default a quarter of the size)

BYTES are a number with K, M or G behind it. FILE is compared with what pread(2) says of it; without it one is made in the
temp folder (TMPDIR), and goes with the process.
";

struct Options {
    size_bytes: u64,
    cache_bytes: u64,
    file: Option<OsString>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("quickstart: {e}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("quickstart: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    frames::show(options.size_bytes, options.cache_bytes, threads)?;
    let (file, content, name) = match &options.file {
        Some(path) => {
            let (file, content) = content::open(Path::new(path))?;
            (file, content, path.to_string_lossy().into_owned())
        }
        None => (content::make(options.size_bytes)?, Content::Known, "a file of known content".to_owned()),
    };
    cost::compare(&file, &content, &name, threads)
}

/// Reads the command line; `None`: help was asked for.
fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<Options>> {
    let (mut size, mut cache, mut file) = (256 << 20, None, None);
    while let Some(arg) = args.next() {
        let mut value = |name: &str| {
            let value = args.next().ok_or_else(|| format!("{name}: needs a value"))?;
            bytes::parse(name, &value.to_string_lossy())
        };
        match arg.to_str() {
            Some("--help" | "-h") => return Ok(None),
            Some("--size") => size = value("--size")?,
            Some("--cache") => cache = Some(value("--cache")?),
            Some(name) if name.starts_with("--") => return Err(format!("{name}: no such option").into()),
            _ if file.is_none() => file = Some(arg),
            _ => return Err("one FILE, not several".into()),
        }
    }
    let size_bytes = size.checked_next_multiple_of(EXTENT).filter(|s| (1..1 << 40).contains(s));
    let size_bytes = size_bytes.ok_or_else(|| format!("--size {size}: must be between 1 byte and 1 TiB"))?;
    let cache_bytes = cache.unwrap_or(size_bytes / 4).max(EXTENT);
    Ok(Some(Options { size_bytes, cache_bytes, file }))
}
