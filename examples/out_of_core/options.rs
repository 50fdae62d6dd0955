//! What the user asked for.

use crate::bytes;
use crate::record::RECORD_BYTES;
use crate::units::{PAGE, Result};
use std::path::PathBuf;

pub(crate) const HELP: &str = "\
usage: out_of_core [OPTIONS]

  --cache BYTES    limit of the cache (default 32M)
  --size BYTES     the file to sort (default four times the cache)
  --threads N      threads that sort (default: one a processor)
  --dir DIR        where the two files are made (default: the temp folder)
  --keep           leave the two files there; otherwise they go with the process, however that ends
  --svg FILE       where the picture goes (default: the temp folder)

BYTES are a number with K, M or G behind it.
";

/// A smaller cache would spend its time on the pages that 64 threads have in hand.
const CACHE_MIN_BYTES: u64 = 1 << 20;
/// What a miss reads at once, as the runtime is by default.
const WINDOW_BYTES: u64 = 16 * PAGE;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) cache_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) threads: usize,
    pub(crate) dir: PathBuf,
    pub(crate) keep: bool,
    pub(crate) svg: PathBuf,
}

impl Options {
    /// Reads the command line; `None`: help was asked for.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let temp = std::env::temp_dir();
        let (mut size, mut svg) = (None, None);
        let threads = std::thread::available_parallelism()?.get().min(16);
        let mut o = Self { cache_bytes: 32 << 20, size_bytes: 0, threads, dir: temp, keep: false, svg: PathBuf::new() };
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{name}: needs a value"));
            match name.as_str() {
                "--cache" => o.cache_bytes = bytes::parse(&name, &value()?)?,
                "--size" => size = Some(bytes::parse(&name, &value()?)?),
                "--threads" => o.threads = value()?.parse().map_err(|e| format!("{name}: {e}"))?,
                "--dir" => o.dir = value()?.into(),
                "--keep" => o.keep = true,
                "--svg" => svg = Some(value()?.into()),
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("{name}: no such option").into()),
            }
        }
        if o.cache_bytes < CACHE_MIN_BYTES {
            return Err(format!("--cache {}: must be at least {CACHE_MIN_BYTES} bytes", o.cache_bytes).into());
        }
        if !(1..=64).contains(&o.threads) {
            return Err(format!("--threads {}: must be between 1 and 64", o.threads).into());
        }
        // Whole pages, so that all of it goes past the kernel's cache.
        let size = size.unwrap_or_else(|| o.cache_bytes.saturating_mul(4));
        o.size_bytes = size
            .checked_next_multiple_of(PAGE)
            .filter(|s| (1..1 << 40).contains(s))
            .ok_or_else(|| format!("--size {size}: must be between 1 byte and 1 TiB"))?;
        o.svg = svg
            .unwrap_or_else(|| std::env::temp_dir().join(format!("softfault-out_of_core-{}.svg", std::process::id())));
        Ok(Some(o))
    }

    pub(crate) fn records(&self) -> u64 {
        self.size_bytes / RECORD_BYTES as u64
    }

    /// Returns how many bits of a key name its bucket: as many as make buckets that the threads sort in half of the cache,
    /// if the windows in which all buckets of all threads are being written take no more than an eighth of it.
    pub(crate) fn bucket_bits(&self) -> u32 {
        let threads = self.threads as u64;
        let wanted = self.size_bytes.div_ceil(self.cache_bytes / (4 * threads));
        let most = self.cache_bytes / 8 / (WINDOW_BYTES * threads);
        wanted.min(most).max(2).next_power_of_two().ilog2()
    }
}
