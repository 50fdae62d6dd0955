//! `softfault image verify`.

use crate::console::Console;
use crate::failure::{Outcome, Result};
use crate::source::{self, How};
use crate::units::bytes;
use serde::Serialize;
use softfault_image::write_sidecar;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Reads everything that has a digest, on all processors, and ends with exit code 3 at the first thing that is wrong.
///
/// An image without digests (a raw file, another program's snapshot) cannot be verified: exit code 4. With --write-sidecar it gets
/// digests, in a file of its own beside it, which is the same memory from then on, verified.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault image verify heap.sfi
  softfault image verify memory.raw --write-sidecar memory.raw.sfi")]
pub(crate) struct Args {
    /// The image.
    image: PathBuf,
    /// Makes digests of an image that has none, in a new file in the same folder.
    #[arg(long, value_name = "FILE")]
    write_sidecar: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    /// Bytes that were read and compared; none where digests were made.
    verified_bytes: u64,
    content_digest: Option<String>,
    sidecar: Option<Sidecar>,
}

#[derive(Debug, Serialize)]
struct Sidecar {
    path: String,
    file_digest: String,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let image = Arc::new(source::open(&args.image, &args.how, console)?);
    let path = args.image.display().to_string();
    let report = if let Some(side) = &args.write_sidecar {
        let _going_on = console.progress("making digests");
        let file_digest = write_sidecar(&image, side)?.to_string();
        let content_digest = softfault_image::Image::open(side)?.content_digest().map(|d| d.to_string());
        let sidecar = Some(Sidecar { path: side.display().to_string(), file_digest });
        Report { path, verified_bytes: 0, content_digest, sidecar }
    } else {
        let (progress, mut verified_bytes) = (console.progress("verifying"), 0);
        image.verify(&mut |done| {
            verified_bytes = done;
            progress.set(done);
        })?;
        drop(progress);
        Report { path, verified_bytes, content_digest: image.content_digest().map(|d| d.to_string()), sidecar: None }
    };
    console.say("image verify", &report)?;
    Ok(Outcome::Done)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.sidecar {
            Some(side) => writeln!(f, "{}: digests are in {}, {}", self.path, side.path, side.file_digest),
            None => writeln!(f, "{}: whole, {} verified", self.path, bytes(self.verified_bytes)),
        }
    }
}
