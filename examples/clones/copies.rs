//! What there is without clones: each copy is read whole.

use crate::image::word;
use crate::memory::Memory;
use crate::options::Options;
use crate::units::{PAGE, Result};
use softfault::image::Image;
use std::path::Path;
use std::time::{Duration, Instant};

/// What one copy takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copies {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

/// Makes some copies, and says what one takes.
pub(crate) fn make(path: &Path, options: &Options) -> Result<Copies> {
    let image = Image::open(path)?;
    let len = usize::try_from(options.pages)? * PAGE;
    let (before, begun) = (Memory::of(None)?, Instant::now());
    let mut copies = Vec::new();
    for _ in 0..options.copies {
        let mut bytes = vec![0u8; len];
        image.reader().read(0, &mut bytes)?;
        copies.push(bytes);
    }
    let (time, taken) = (begun.elapsed(), Memory::of(None)? - before);
    for bytes in &copies {
        let last = bytes.last_chunk::<8>().map(|w| u64::from_le_bytes(*w));
        if last != Some(word(options.pages - 1, PAGE / 8 - 1)) {
            return Err("a copy is not the image".into());
        }
    }
    let nr = u32::try_from(options.copies)?;
    Ok(Copies { bytes: taken.total() / u64::from(nr), time: time / nr })
}
