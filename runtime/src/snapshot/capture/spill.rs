//! The file into which saved bytes go when there are many: without a name, as long as the image, a page where the image has it.
//!
//! # Context: the saver, who neither allocates nor locks; the walker

use crate::by_std;
use softfault_platform::sys::fd::{self, Descriptor};
use softfault_platform::sys::{Errno, file};
use std::fs::OpenOptions;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// The file. Nothing written is zeros.
#[derive(Debug)]
pub(super) struct Spill(Descriptor);

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Spill {
    /// Makes one of `len_bytes` beside `image`.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn beside(image: &Path, len_bytes: u64) -> std::io::Result<Self> {
        let folder = image.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let nr = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Who is killed before the name is gone leaves what a collection of the folder removes.
        let path = folder.join(format!(".softfault-spill-{}-{nr}", std::process::id()));
        let made = by_std::open(OpenOptions::new().read(true).write(true).create_new(true).mode(0o600), &path)?;
        by_std::remove_file(&path)?;
        made.set_len(len_bytes)?;
        Ok(Self(Descriptor::new(fd::raise(made.into_raw_fd()))))
    }

    /// Writes a page.
    ///
    /// # Errors
    /// The kernel's; `EBADF` where the program has closed the descriptor.
    pub(super) fn write(&self, pos: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|r| !r.is_empty()) {
            let number = self.0.check()?;
            match file::write_at(number, rest, pos + done as u64) {
                Err(Errno::EINTR) => {}
                Ok(0) => return Err(Errno::ENOSPC),
                n => done += n?,
            }
        }
        Ok(())
    }

    /// Reads a page.
    ///
    /// # Errors
    /// As [`Spill::write`].
    pub(super) fn read(&self, pos: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|r| !r.is_empty()) {
            let number = self.0.check()?;
            match file::read_at(number, rest, pos + done as u64) {
                Err(Errno::EINTR) => {}
                Ok(0) => return Err(Errno::EIO),
                n => done += n?,
            }
        }
        Ok(())
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if !softfault_platform::child::in_child() {
            self.0.close();
        }
    }
}
