//! Writes the man pages and completions of both programs into a folder, for `scripts/packages.sh`.
//!
//! They come from the command lines themselves, so that they cannot differ from what the programs
//! accept. The programs do not contain the code for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, Parser};
use clap_complete::Shell;

/// Write man pages and completions of controlplane and dataplane.
#[derive(Debug, Parser)]
#[command(name = "manuals")]
struct Arguments {
    /// The folder, with a folder for each program in it.
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Arguments { folder } = Arguments::parse();
    for command in [controlplane::command(), dataplane::command()] {
        let folder = folder.join(command.get_name());
        write(command, &folder).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}

/// Writes `man1` and `completions`.
fn write(command: Command, folder: &Path) -> anyhow::Result<()> {
    let (man, completions) = (folder.join("man1"), folder.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), &name, &completions)?;
    }
    clap_mangen::generate_to(command, &man)?;
    Ok(())
}
