//! The images that are measured: the same memory as a raw file and as containers, hot in the kernel's page cache or cold.

use crate::subject;
use softfault_benches::area::page_byte;
use softfault_benches::args::Options;
use softfault_benches::{Context, MIB, PAGE, Result};
use softfault_platform::sys::file;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Returns how long the images are.
pub(crate) fn len_mib(options: &Options) -> usize {
    if options.quick { 32 } else { 1024 }
}

/// Bytes of a page that the loads look at lie in the first of these; what is behind them can be compressed to about half.
const HEAD: usize = 128;

/// Writes page `index`: the byte that loads look for at its head, and then words of which every second one is random, as a
/// heap's are rather than a file of zeros.
pub(crate) fn fill(page: &mut [u8], index: usize) {
    let (head, rest) = page.split_at_mut(HEAD);
    head.fill(page_byte(index));
    let mut x = index as u64 + 1;
    for (i, word) in rest.chunks_exact_mut(8).enumerate() {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&if i % 2 == 0 { x } else { index as u64 }.to_le_bytes());
    }
}

/// A file that is measured; removed on drop.
#[derive(Debug)]
pub(crate) struct Measured {
    path: PathBuf,
    file: File,
}

impl Measured {
    /// Takes a file that was made, and makes it durable: write-back in the middle would be charged to whoever is measured.
    fn new(path: PathBuf) -> Result<Self> {
        let file = File::options().read(true).write(true).open(&path).context("opening the image")?;
        file.sync_all().context("syncing the image")?;
        Ok(Self { path, file })
    }

    /// Makes a sparse file, all of it a hole.
    pub(crate) fn sparse(dir: &Path, name: &str, len_bytes: u64) -> Result<Self> {
        let path = path(dir, name);
        let file = File::create_new(&path).context("creating the image")?;
        file.set_len(len_bytes).context("making the image sparse")?;
        Self::new(path)
    }

    /// Writes the memory as a raw file.
    pub(crate) fn raw(dir: &Path, len_bytes: usize) -> Result<Self> {
        let path = path(dir, "memory.raw");
        let mut file = File::create_new(&path).context("creating the image")?;
        blocks(len_bytes, |_, block| file.write_all(block).context("writing the image"))?;
        Self::new(path)
    }

    /// Writes the memory as a container, of frames that are compressed or as they are.
    pub(crate) fn container(dir: &Path, name: &str, len_bytes: usize, compressed: bool) -> Result<Self> {
        let path = path(dir, name);
        let mut writer = subject::Writer::create(&path, len_bytes, compressed)?;
        blocks(len_bytes, |page, block| writer.write(page, block))?;
        writer.finish()?;
        Self::new(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Takes the file out of the kernel's page cache.
    pub(crate) fn cool(&self) -> Result<()> {
        file::fadvise_dontneed(self.fd()).context("posix_fadvise")
    }

    /// Reads all of it, as cat(1) does: 128 KiB at a time, and nothing is done with it.
    pub(crate) fn cat(&self) -> Result<()> {
        let mut file = File::open(&self.path).context("opening the image")?;
        let mut block = vec![0u8; 128 << 10];
        while file.read(&mut block).context("reading the image")? > 0 {}
        Ok(())
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        // A file left behind costs space in a temporary folder, nothing more.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Returns where a file of this process is put.
pub(crate) fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("snapshot-{}-{name}", std::process::id()))
}

/// Calls `write` with the memory, a mebibyte at a time, and the page that it begins with.
fn blocks(len_bytes: usize, mut write: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
    let mut block = vec![0u8; MIB];
    for at in (0..len_bytes).step_by(MIB) {
        let first = at / PAGE;
        block.chunks_exact_mut(PAGE).enumerate().for_each(|(i, page)| fill(page, first + i));
        write(first, &block)?;
    }
    Ok(())
}
