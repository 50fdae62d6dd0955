//! The command line `softfault`: what is done with images of memory and with working sets, and what a machine lets a page-fault
//! runtime do.
//!
//! Each verb is a file of its own: its arguments, what it does, what it answers as text and as JSON. What it does, the crates below
//! do; here are names, words and exit codes.
//!
//! # The floors
//!
//! ```text
//! failure finding units  exit codes, and how numbers are written and read
//! console         what is said, and where
//! source          images by the name of a file
//! bench doctor explain image recording workingset generate  the verbs
//! ```
#![forbid(unsafe_code)]

mod bench;
mod console;
mod doctor;
mod explain;
mod failure;
mod finding;
mod generate;
mod image;
mod recording;
mod source;
mod units;
mod workingset;

use clap::{CommandFactory, Parser, Subcommand};
use console::Console;
use failure::{Failure, Outcome, Result};
use std::process::ExitCode;

/// Images of memory, the working sets of programs, and what a machine lets a page-fault runtime do.
#[derive(Debug, Parser)]
#[command(name = "softfault", version, max_term_width = 120, after_help = failure::EXIT_CODES)]
struct Cli {
    /// Answers in JSON, on one line, errors too; the schemas are published with the source.
    #[arg(long, global = true)]
    json: bool,
    /// Shows no progress.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Works on images of memory: snapshots, whoever made them.
    #[command(subcommand)]
    Image(image::Verb),
    /// Works on working sets: what a program needs first after a restore.
    #[command(subcommand)]
    Workingset(workingset::Verb),
    /// Shows what a session has touched first, pages by time, in the terminal and as SVG.
    Heatmap(recording::heatmap::Args),
    /// Shows what a session has touched first, window by window.
    Timeline(recording::timeline::Args),
    /// Measures what is done with an image here.
    #[command(subcommand)]
    Bench(bench::Verb),
    /// Says what this machine lets the runtime do, and what mends what is in the way.
    Doctor(doctor::Args),
    /// Says what the statistics of a runtime mean, and what changes them.
    Explain(explain::Args),
    /// Writes man pages and shell completions.
    #[command(subcommand)]
    Generate(generate::Verb),
}

fn run(cli: &Cli, console: &Console) -> Result<Outcome> {
    match &cli.verb {
        Verb::Image(verb) => image::run(verb, console),
        Verb::Workingset(verb) => workingset::run(verb, console),
        Verb::Heatmap(args) => recording::heatmap::run(args, console),
        Verb::Timeline(args) => recording::timeline::run(args, console),
        Verb::Bench(verb) => bench::run(verb, console),
        Verb::Doctor(args) => doctor::run(args, console),
        Verb::Explain(args) => explain::run(args, console),
        Verb::Generate(verb) => generate::run(verb, Cli::command(), console),
    }
}

/// Says what is wrong with the command line, or the help that was asked for. A program that asked for JSON by a command line that
/// cannot be read gets its answer as JSON all the same.
fn misunderstood(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().any(|arg| arg == "--json");
    if !wants_json || !error.use_stderr() {
        error.exit();
    }
    let failure = Failure::Usage(error.render().to_string().trim_end().to_owned());
    Console::new(true, true).fail(&failure);
    failure.code()
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return misunderstood(&e),
    };
    let console = Console::new(cli.json, cli.quiet);
    match run(&cli, &console) {
        Ok(outcome) => outcome.code(),
        Err(failure) => {
            console.fail(&failure);
            failure.code()
        }
    }
}
