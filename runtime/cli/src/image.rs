//! `softfault image`: what is done with images.

mod catalog;
mod diff;
mod export;
mod extract;
mod inspect;
mod rewrite;
mod verify;

use crate::console::Console;
use crate::failure::{Outcome, Result};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Says what an image is: its regions, its digests, how its pages lie.
    Inspect(inspect::Args),
    /// Reads everything and compares it with its digests; or makes digests for what has none.
    Verify(verify::Args),
    /// Writes an image in another format, or by another codec.
    Convert(rewrite::Convert),
    /// Names an image of a folder, takes a name away, or lists them.
    Tag(catalog::Tag),
    /// Says which images of a folder nobody needs, and with --delete removes them.
    Gc(catalog::Gc),
    /// Writes pages of an image into a raw file.
    Extract(extract::Args),
    /// Says which pages of two images differ.
    Diff(diff::Args),
    /// Writes an image as a child of another: the pages that differ.
    Rebase(rewrite::Rebase),
    /// Writes a chain of images as one file of few pieces.
    Compact(rewrite::Compact),
    /// Adds an image to an OCI layout, for registries and their tools.
    Export(export::Args),
}

pub(crate) fn run(verb: &Verb, console: &Console) -> Result<Outcome> {
    match verb {
        Verb::Inspect(args) => inspect::run(args, console),
        Verb::Verify(args) => verify::run(args, console),
        Verb::Convert(args) => rewrite::convert(args, console),
        Verb::Tag(args) => catalog::tag(args, console),
        Verb::Gc(args) => catalog::gc(args, console),
        Verb::Extract(args) => extract::run(args, console),
        Verb::Diff(args) => diff::run(args, console),
        Verb::Rebase(args) => rewrite::rebase(args, console),
        Verb::Compact(args) => rewrite::compact(args, console),
        Verb::Export(args) => export::run(args, console),
    }
}
