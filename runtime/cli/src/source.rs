//! Images by the name of a file: in which format it is read, and how a new one stores its pages.

use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::units;
use clap::{Args, ValueEnum};
use softfault_image::{Codec, FRAME_MAX, Image, PAGE_SIZE, import, ops};
use std::path::{Path, PathBuf};

/// What an image is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Our container.
    Sfi,
    /// The memory as it is: Firecracker, dd, anything. Holes are zero.
    Raw,
    /// A dump of CRIU: a folder. Needs --pid.
    Criu,
    /// A snapshot of Cloud Hypervisor: a folder.
    CloudHypervisor,
    /// A migration of QEMU with mapped-ram: a file.
    Qemu,
}

/// Returns how a file is called that is read or written as `.sfi`; else it is raw.
pub(crate) fn is_called_sfi(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "sfi")
}

/// How an image is read.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct How {
    /// The format of the image; by default `.sfi` where the file is called so, else raw.
    #[arg(long, value_enum, value_name = "FORMAT")]
    from: Option<Format>,
    /// A sparse file over a raw image, whose data replaces what is below; may be given again, the oldest first.
    #[arg(long = "diff", value_name = "FILE")]
    diffs: Vec<PathBuf>,
    /// Which process of a CRIU dump.
    #[arg(long)]
    pid: Option<u32>,
}

impl How {
    /// A format alone.
    pub(crate) fn of(from: Option<Format>) -> Self {
        Self { from, ..Self::default() }
    }

    /// By the name of the file, or as `from` says.
    pub(crate) fn format(&self, path: &Path) -> Format {
        self.from.unwrap_or_else(|| if is_called_sfi(path) { Format::Sfi } else { Format::Raw })
    }
}

/// Opens an image.
///
/// # Errors
/// [`Failure::Usage`]: the arguments do not go together; errors of the crate of images.
pub(crate) fn open(path: &Path, how: &How, console: &Console) -> Result<Image> {
    let format = how.format(path);
    let only = |is: bool, arg: &str, of: &str| match is {
        true => Err(Failure::Usage(format!("{arg} goes with {of} alone"))),
        false => Ok(()),
    };
    only(format != Format::Raw && !how.diffs.is_empty(), "--diff", "raw images")?;
    only(format != Format::Criu && how.pid.is_some(), "--pid", "--from criu")?;
    match format {
        Format::Sfi => open_sfi(path),
        Format::Raw => {
            let image = Image::raw_stack(path, &how.diffs)?;
            if how.from.is_none() && is_sfi(path) {
                let name = path.display();
                console
                    .note(&format!("{name} is read as raw memory, though it begins as an .sfi file does: --from sfi"));
            }
            Ok(image)
        }
        Format::Criu => match how.pid {
            Some(pid) => Ok(import::criu::open(path, pid)?),
            None => Err(Failure::Usage("--from criu needs --pid: a dump has several processes".into())),
        },
        Format::CloudHypervisor => Ok(import::cloud_hypervisor::open(path)?),
        Format::Qemu => Ok(import::qemu::open(path)?),
    }
}

/// Opens a file that has to be an `.sfi`, whatever it is called.
fn open_sfi(path: &Path) -> Result<Image> {
    let image = Image::open(path)?;
    match image.file_digest() {
        Some(_) => Ok(image),
        None => Err(softfault_image::Error::Corrupt {
            path: path.into(),
            what: "the header",
            offset: 0,
            why: "it does not begin as an .sfi file does".into(),
        }
        .into()),
    }
}

/// Returns whether a file begins as an `.sfi` does, whole or not.
fn is_sfi(path: &Path) -> bool {
    !matches!(Image::open(path), Ok(image) if image.file_digest().is_none())
}

/// How a new `.sfi` file stores its pages.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// How pages are stored: raw, lz4, zstd or zstd:LEVEL.
    #[arg(long, value_parser = parse_codec, default_value = "raw")]
    codec: Codec,
    /// How many bytes are compressed together, up to 2M; who needs one page of them decodes all.
    #[arg(long = "frame", value_parser = parse_frame, value_name = "BYTES", default_value = "64K")]
    frame_bytes: usize,
}

impl Stored {
    pub(crate) fn stored(&self) -> ops::Stored {
        ops::Stored { codec: self.codec, frame_bytes: self.frame_bytes }
    }
}

fn parse_codec(text: &str) -> Result<Codec, String> {
    match text.split_once(':') {
        None if text == "raw" => Ok(Codec::Raw),
        None if text == "lz4" => Ok(Codec::Lz4),
        None if text == "zstd" => Ok(Codec::Zstd { level: 3 }),
        Some(("zstd", level)) => match level.parse() {
            Ok(level @ 1..=22) => Ok(Codec::Zstd { level }),
            _ => Err("levels of zstd are 1 to 22".into()),
        },
        _ => Err(format!("`{text}` is no codec: raw, lz4, zstd, zstd:LEVEL")),
    }
}

fn parse_frame(text: &str) -> Result<usize, String> {
    match units::parse_bytes(text)? {
        bytes if bytes > 0 && bytes <= FRAME_MAX && bytes.is_multiple_of(PAGE_SIZE) => Ok(bytes),
        _ => Err("frames are whole pages of 4K, and 2M at most".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_and_frames_are_read() {
        assert_eq!(parse_codec("zstd:19"), Ok(Codec::Zstd { level: 19 }));
        assert_eq!(parse_codec("lz4"), Ok(Codec::Lz4));
        for bad in ["", "zstd:0", "zstd:23", "lz4:1", "gzip"] {
            assert!(parse_codec(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_frame("2M"), Ok(FRAME_MAX));
        for bad in ["0", "4097", "4M"] {
            assert!(parse_frame(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_suffix_decides_unless_the_format_is_said() {
        let of = |name: &str, from| How::of(from).format(Path::new(name));
        assert_eq!([of("a.sfi", None), of("a.raw", None), of("a.img", None)], [Format::Sfi, Format::Raw, Format::Raw]);
        assert_eq!(of("a.sfi", Some(Format::Raw)), Format::Raw);
    }
}
