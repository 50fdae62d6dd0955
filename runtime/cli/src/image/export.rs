//! `softfault image export`.

use crate::console::Console;
use crate::failure::{Outcome, Result};
use crate::source::{self, How};
use serde::Serialize;
use softfault_image::oci;
use std::fmt;
use std::path::PathBuf;

/// The layout is made if there is none. Parents go with the image, and the working set that lies beside it. The image has to be an
/// `.sfi` whose every byte has a digest: `image verify --write-sidecar` or `image convert` make one.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault image export heap.sfi layout heap:1.4
  oras copy --from-oci-layout layout:heap:1.4 registry.example/heap:1.4")]
pub(crate) struct Args {
    /// The image.
    image: PathBuf,
    /// The folder of the layout.
    folder: PathBuf,
    /// What it is called there; who had the name before loses it.
    name: String,
}

#[derive(Debug, Serialize)]
struct Report {
    folder: String,
    name: String,
    manifest: String,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let image = source::open(&args.image, &How::default(), console)?;
    let going_on = console.progress("exporting");
    let manifest = oci::export(&image, &args.folder, &args.name)?;
    drop(going_on);
    let report = Report { folder: args.folder.display().to_string(), name: args.name.clone(), manifest };
    console.say("image export", &report)?;
    Ok(Outcome::Done)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} is {}", self.folder, self.name, self.manifest)
    }
}
