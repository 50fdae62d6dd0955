//! `softfault image tag` and `gc`: a folder of images.

use crate::console::Console;
use crate::failure::{Failure, Outcome, Result};
use crate::units::{bytes, count};
use clap::Args;
use serde::Serialize;
use softfault_image::{Catalog, Digest, Entry, Error, Image, Kept, Plan};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A tag names one image of the folder, by the digest of its file; while it does, `gc` leaves the image alone.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  softfault image tag /srv/images
  softfault image tag /srv/images release:1.4 /srv/images/heap.sfi
  softfault image tag /srv/images release:1.3 --delete")]
pub(crate) struct Tag {
    /// The folder; with nothing else its tags are listed.
    folder: PathBuf,
    /// The tag.
    tag: Option<String>,
    /// What it names from now on: a file of the folder, the digest of one, or another tag.
    #[arg(conflicts_with = "delete")]
    image: Option<String>,
    /// Takes the tag away.
    #[arg(long, short, requires = "tag")]
    delete: bool,
}

/// What no tag names, no process holds and no other image needs. While a file of the folder is damaged nothing is removed, since
/// nobody knows what it needs: exit code 3.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  softfault image gc /srv/images
  softfault image gc /srv/images --delete")]
pub(crate) struct Gc {
    /// The folder.
    folder: PathBuf,
    /// Removes it; without this nothing is changed.
    #[arg(long)]
    delete: bool,
}

#[derive(Debug, Serialize)]
struct Tags {
    folder: String,
    tags: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Collection {
    folder: String,
    /// It was done, not only planned.
    deleted: bool,
    remove: Vec<Removed>,
    remove_bytes: u64,
    working_sets: Vec<String>,
    keep: Vec<Keep>,
    damaged: Vec<Damaged>,
}

#[derive(Debug, Serialize)]
struct Removed {
    path: String,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Keep {
    path: String,
    why: &'static str,
    /// The tags that name it, or the file that needs it.
    by: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Damaged {
    path: String,
    why: String,
}

/// Opens a folder that is there: one that was mistyped is not made.
fn open(folder: &Path) -> Result<Catalog> {
    std::fs::read_dir(folder).map_err(Failure::io("read the folder", folder))?;
    Ok(Catalog::open(folder)?)
}

pub(crate) fn tag(args: &Tag, console: &Console) -> Result<Outcome> {
    let catalog = open(&args.folder)?;
    match (&args.tag, &args.image) {
        (Some(tag), _) if args.delete => catalog.untag(tag)?,
        (Some(tag), Some(image)) => catalog.tag(tag, &digest_of(&catalog, image)?)?,
        (Some(_), None) => return Err(Failure::Usage("what shall the tag name? --delete takes it away".into())),
        (None, _) => {}
    }
    let tags = catalog.tags()?.into_iter().map(|(tag, digest)| (tag, digest.to_string())).collect();
    console.say("image tag", &Tags { folder: args.folder.display().to_string(), tags })?;
    Ok(Outcome::Done)
}

/// Returns the digest of what a person calls a file, a digest or a tag.
fn digest_of(catalog: &Catalog, image: &str) -> Result<Digest> {
    let found = match Path::new(image).is_file() {
        true => Image::open(image)?,
        false => catalog.image(image)?,
    };
    let none = || Error::Unsupported {
        path: image.into(),
        what: "a tag for an image without a digest".into(),
        why: "convert it, or write a sidecar of digests",
    };
    Ok(found.file_digest().ok_or_else(none)?)
}

pub(crate) fn gc(args: &Gc, console: &Console) -> Result<Outcome> {
    let catalog = open(&args.folder)?;
    let plan = if args.delete { catalog.collect()? } else { catalog.plan()? };
    let damaged = plan.damaged.first().cloned();
    console.say("image gc", &collection(args, plan))?;
    match damaged {
        None => Ok(Outcome::Done),
        Some((path, why)) => Err(Error::Corrupt { path, what: "the file", offset: 0, why }.into()),
    }
}

fn collection(args: &Gc, plan: Plan) -> Collection {
    let text = |path: &Path| path.display().to_string();
    let keep = |(entry, kept): &(Entry, Kept)| {
        let (why, by) = match kept {
            Kept::Tagged => ("tagged", entry.tags.clone()),
            Kept::Held => ("held", Vec::new()),
            Kept::Needed(by) => ("needed", vec![text(by)]),
        };
        Keep { path: text(&entry.path), why, by }
    };
    Collection {
        folder: text(&args.folder),
        deleted: args.delete,
        remove_bytes: plan.remove.iter().map(|e| e.len_bytes).sum(),
        remove: plan.remove.iter().map(|e| Removed { path: text(&e.path), bytes: e.len_bytes }).collect(),
        working_sets: plan.working_sets.iter().map(|p| text(p)).collect(),
        keep: plan.keep.iter().map(keep).collect(),
        damaged: plan.damaged.into_iter().map(|(path, why)| Damaged { path: text(&path), why }).collect(),
    }
}

impl fmt::Display for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tags.is_empty() {
            return writeln!(f, "{}: no tags", self.folder);
        }
        self.tags.iter().try_for_each(|(tag, digest)| writeln!(f, "{digest}  {tag}"))
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.deleted { "removed" } else { "would be removed" };
        for removed in &self.remove {
            writeln!(f, "{verb}: {} ({})", removed.path, bytes(removed.bytes))?;
        }
        self.working_sets.iter().try_for_each(|path| writeln!(f, "{verb}: {path}"))?;
        for keep in &self.keep {
            let by = if keep.by.is_empty() { String::new() } else { format!(" by {}", keep.by.join(", ")) };
            writeln!(f, "kept: {}: {}{by}", keep.path, keep.why)?;
        }
        self.damaged.iter().try_for_each(|d| writeln!(f, "damaged: {}: {}", d.path, d.why))?;
        let (images, verb) = (count(self.remove.len() as u64, "image"), if self.deleted { "freed" } else { "to free" });
        writeln!(f, "{}: {images}, {} {verb}", self.folder, bytes(self.remove_bytes))
    }
}
