//! `softfault generate`: man pages and shell completions, for who packages the program.

use crate::console::Console;
use crate::failure::{Failure, Outcome, Result};
use clap::{Command, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Writes a man page for each verb into a folder.
    #[command(after_help = "Examples:\n  softfault generate man /usr/local/share/man/man1")]
    Man {
        /// The folder, which is made if there is none.
        folder: PathBuf,
    },
    /// Writes the completions of a shell to standard output.
    #[command(after_help = "Examples:\n  softfault generate completions bash > /etc/bash_completion.d/softfault")]
    Completions {
        /// Whose.
        #[arg(value_enum)]
        shell: Shell,
    },
}

pub(crate) fn run(verb: &Verb, mut command: Command, console: &Console) -> Result<Outcome> {
    match verb {
        Verb::Man { folder } => {
            std::fs::create_dir_all(folder).map_err(Failure::io("make the folder", folder))?;
            clap_mangen::generate_to(command, folder).map_err(Failure::io("write man pages into", folder))?;
        }
        Verb::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command, "softfault", &mut text);
            console.write_bytes(&text).map_err(Failure::io("write", "standard output"))?;
        }
    }
    Ok(Outcome::Done)
}
