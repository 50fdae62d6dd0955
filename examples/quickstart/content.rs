//! What the bytes must be: those that this program makes, or those that pread(2) returns.

use crate::units::{PAGE, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

#[derive(Debug)]
pub(crate) enum Content {
    /// Those that [`page_of`] makes.
    Known,
    /// Those that pread(2) returns.
    File(File),
}

impl Content {
    /// Writes what page `page` must hold to `buf`: zeros behind the end of the file.
    pub(crate) fn expect(&self, page: u64, buf: &mut [u8; PAGE]) -> std::io::Result<()> {
        let Self::File(file) = self else {
            page_of(page, buf);
            return Ok(());
        };
        let mut done = 0;
        while done < PAGE {
            match file.read_at(&mut buf[done..], page * PAGE as u64 + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        buf[done..].fill(0);
        Ok(())
    }

    /// Compares the bytes of a page with what they must be.
    pub(crate) fn check(&self, page: u64, found: &[u8]) -> Result<()> {
        let mut expected = [0; PAGE];
        self.expect(page, &mut expected)?;
        if found == expected {
            return Ok(());
        }
        let i = (0..PAGE).find(|i| found[*i] != expected[*i]).unwrap_or(0);
        let byte = page * PAGE as u64 + i as u64;
        Err(format!("byte {byte:#x} is {:#04x}, must be {:#04x}", found[i], expected[i]).into())
    }
}

/// Makes the content of page `page`: 64 lines, each of a number of a splitmix64 sequence and of words, so that lz4 makes it
/// a fifth as long.
pub(crate) fn page_of(page: u64, buf: &mut [u8; PAGE]) {
    let mut state = page.wrapping_mul(64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for line in buf.chunks_exact_mut(64) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        line.copy_from_slice(b"-------- is a number, and what follows is the same in each line\n");
        line[..8].copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
}

/// Makes a file without a name, which goes with the process, however that ends.
pub(crate) fn nameless(what: &str) -> Result<File> {
    let path = std::env::temp_dir().join(format!("softfault-quickstart-{what}-{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(|e| format!("{}: {e}", path.display()))?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Makes a file of `len` bytes of known content, and has it on the disk, so that the kernel can drop it.
pub(crate) fn make(len: u64) -> Result<File> {
    let file = nameless("plain")?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, &file);
    let mut buf = [0; PAGE];
    for page in 0..len / PAGE as u64 {
        page_of(page, &mut buf);
        out.write_all(&buf).map_err(|e| format!("the temp folder: {e} (it takes {} MiB)", len >> 20))?;
    }
    out.flush()?;
    drop(out);
    file.sync_all()?;
    Ok(file)
}

/// Opens a file of the user's.
pub(crate) fn open(path: &Path) -> Result<(File, Content)> {
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    if !file.metadata()?.is_file() {
        return Err(format!("{}: not a regular file", path.display()).into());
    }
    let again = file.try_clone()?;
    Ok((file, Content::File(again)))
}

/// Returns `0..nr` in an order that looks random and is the same every time.
pub(crate) fn shuffled(nr: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..u32::try_from(nr).unwrap_or(u32::MAX)).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for i in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bound = i as u64 + 1;
        order.swap(i, usize::try_from(state % bound).unwrap_or(0));
    }
    order
}
