//! `softfault image inspect`.

use crate::console::Console;
use crate::failure::{Outcome, Result};
use crate::source::{self, Format, How};
use crate::units::{bytes, count, of_pages};
use clap::ValueEnum;
use serde::Serialize;
use softfault_image::{Image, Prot, Source};
use std::fmt;
use std::path::PathBuf;

/// Nothing is read but the header and the tables: what they say is verified, the pages are not.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault image inspect heap.sfi
  softfault image inspect --json memory.raw --diff monday.diff --diff tuesday.diff
  softfault image inspect --from criu --pid 17 /var/lib/dump")]
pub(crate) struct Args {
    /// The image.
    image: PathBuf,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    format: String,
    pages: u64,
    bytes: u64,
    /// Bytes of pages that are stored, whatever they take on disk.
    stored_bytes: u64,
    /// Of those, what lies in frames that are decoded whole.
    framed_bytes: u64,
    file_digest: Option<String>,
    content_digest: Option<String>,
    verifiable: bool,
    regions: Vec<Region>,
    keys: Vec<Key>,
    needs: Vec<String>,
    pieces: Pieces,
}

#[derive(Debug, Serialize)]
struct Region {
    name: String,
    address: u64,
    offset: u64,
    bytes: u64,
    protection: String,
}

#[derive(Debug, Serialize)]
struct Key {
    key: String,
    bytes: usize,
    /// The value, if a person can read it.
    text: Option<String>,
}

/// What decides whether an image should be compacted.
#[derive(Debug, Serialize)]
struct Pieces {
    total: u64,
    extents: u64,
    most_in_one_extent: u64,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let image = source::open(&args.image, &args.how, console)?;
    console.say("image inspect", &report(&image, args)?)?;
    Ok(Outcome::Done)
}

fn report(image: &Image, args: &Args) -> Result<Report> {
    let (map, format) = (image.map()?, args.how.format(&args.image));
    let pages_of = |wanted: fn(&Source) -> bool| map.runs().iter().filter(|r| wanted(&r.source)).map(|r| r.nr).sum();
    let lies = map.fragmentation();
    Ok(Report {
        path: args.image.display().to_string(),
        format: name_of(format),
        pages: image.nr_pages(),
        bytes: of_pages(image.nr_pages()),
        stored_bytes: of_pages(pages_of(|s| *s != Source::Zero)),
        framed_bytes: of_pages(pages_of(|s| matches!(s, Source::Frame { .. }))),
        file_digest: image.file_digest().map(|d| d.to_string()),
        content_digest: image.content_digest().map(|d| d.to_string()),
        verifiable: image.is_verifiable()?,
        regions: image.regions().iter().map(Region::of).collect(),
        keys: image.keys().iter().map(|(key, value)| Key::of(key, value)).collect(),
        needs: image.needs().iter().map(|p| p.display().to_string()).collect(),
        pieces: Pieces { total: lies.pieces, extents: lies.extents, most_in_one_extent: lies.most },
    })
}

/// Returns what `--from` calls a format.
fn name_of(format: Format) -> String {
    format.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

impl Region {
    fn of(region: &softfault_image::Region) -> Self {
        let letter = |prot, letter| if region.prot.contains(prot) { letter } else { '-' };
        let protection = [letter(Prot::READ, 'r'), letter(Prot::WRITE, 'w'), letter(Prot::EXEC, 'x')];
        Self {
            name: region.name.clone(),
            address: region.address,
            offset: region.offset,
            bytes: region.len_bytes,
            protection: protection.iter().collect(),
        }
    }
}

impl Key {
    fn of(key: &str, value: &[u8]) -> Self {
        let text = std::str::from_utf8(value).ok().filter(|t| !t.chars().any(char::is_control));
        Self { key: key.to_owned(), bytes: value.len(), text: text.map(str::to_owned) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = || "none".to_owned();
        writeln!(f, "{}: {}, {} in {}", self.path, self.format, bytes(self.bytes), count(self.pages, "page"))?;
        writeln!(f, "stored    {}, of which {} in frames", bytes(self.stored_bytes), bytes(self.framed_bytes))?;
        writeln!(f, "file      {}", self.file_digest.clone().unwrap_or_else(none))?;
        writeln!(f, "contents  {}", self.content_digest.clone().unwrap_or_else(none))?;
        let verifiable = if self.verifiable { "every byte has a digest" } else { "bytes without a digest: unverified" };
        writeln!(f, "digests   {verifiable}")?;
        let (pieces, extents) = (count(self.pieces.total, "piece"), count(self.pieces.extents, "extent"));
        writeln!(f, "pieces    {pieces} in {extents}, at most {} in one", self.pieces.most_in_one_extent)?;
        for r in &self.regions {
            let (name, at) = (if r.name.is_empty() { "-" } else { &r.name }, r.address);
            let (size, offset) = (bytes(r.bytes), r.offset);
            // A name is somebody else's: what a terminal would obey is written out.
            writeln!(f, "region    {} at {at:#x}, {size} {}, from byte {offset}", name.escape_debug(), r.protection)?;
        }
        for k in &self.keys {
            let value = k.text.clone().unwrap_or_else(|| count(k.bytes as u64, "byte"));
            writeln!(f, "key       {} = {value}", k.key.escape_debug())?;
        }
        self.needs.iter().try_for_each(|path| writeln!(f, "needs     {path}"))
    }
}
