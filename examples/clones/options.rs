//! What the user asked for.

use crate::bytes;
use crate::units::{PAGE, Result};

pub(crate) const HELP: &str = "\
usage: clones [OPTIONS]

  --clones N       sessions of the image (default 1000)
  --size BYTES     the image (default 64M)
  --touch N        pages that each clone loads (default 512)
  --store N        pages of those that each clone stores to (default 16)
  --copies N       copies that are made whole, to compare (default 4)

BYTES are a number with K, M or G behind it. The image lies in the temp folder (TMPDIR), and goes at the end.
";

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) clones: usize,
    pub(crate) pages: u64,
    pub(crate) touch: u64,
    pub(crate) store: u64,
    pub(crate) copies: usize,
}

/// Reads the command line; `None`: help was asked for.
pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut o = Options { clones: 1000, pages: (64 << 20) / PAGE as u64, touch: 512, store: 16, copies: 4 };
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{name}: needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{name}: {e}"));
        match name.as_str() {
            "--clones" => o.clones = usize::try_from(number(value()?)?)?,
            "--size" => o.pages = bytes::parse(&name, &value()?)?.div_ceil(PAGE as u64),
            "--touch" => o.touch = number(value()?)?,
            "--store" => o.store = number(value()?)?,
            "--copies" => o.copies = usize::try_from(number(value()?)?)?,
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("{name}: no such option").into()),
        }
    }
    if !(1..=5000).contains(&o.clones) || !(1..=16).contains(&o.copies) {
        return Err("between 1 and 5000 clones, and 1 and 16 copies".into());
    }
    if !(1..=1 << 20).contains(&o.pages) || o.touch > o.pages || o.store > o.touch {
        return Err("the image has between 4K and 4G, of which a clone loads pages, of which it stores to some".into());
    }
    Ok(Some(o))
}
