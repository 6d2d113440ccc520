//! Instruction counts: what a handshake and a proxied request may cost, checked before a change goes in.
//!
//! The walk: [`machine`] says whether the figures of `bench/budget.toml` are for this machine -> [`count`] runs each
//! [`cases::Case`] under callgrind -> [`callgrind`] reads what it wrote and keeps our instructions apart from the crypto
//! library's -> [`book`] holds the budget, and judges. The invariant: a measure passes only if it was counted; what could not be
//! counted is named as skipped, and what is missing from the budget fails.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

pub mod book;
pub mod callgrind;
pub mod cases;
pub mod count;
pub mod machine;
mod proxied;

use book::{Book, Entry, Verdict};
use cases::Case;
use count::Counted;
use machine::Machine;

/// Counts instructions and holds them against the budget.
#[derive(Parser, Debug)]
#[command(name = "budget", version, about, long_about = None)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The budget.
    #[arg(long, global = true, default_value = "bench/budget.toml")]
    file: PathBuf,
    /// Also lists so many functions of ours that cost most, with their own instructions in the whole run.
    #[arg(long, global = true, default_value_t = 0)]
    dearest: usize,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Fails when a measure is more than 3 % over its budget.
    Check,
    /// Prints new figures; with a reason it writes those that moved into the budget.
    Write {
        /// Why the figures moved, in a few words; kept beside them.
        #[arg(long)]
        why: Option<String>,
    },
    /// What runs under callgrind.
    #[command(hide = true)]
    Count {
        /// Which measure.
        #[arg(value_enum)]
        case: Case,
        /// How often.
        operations: u32,
    },
}

/// Runs what the command line says.
pub fn run(cli: &Cli) -> ExitCode {
    compare::exit_code(
        "budget",
        match &cli.command {
            Command::Check => check(&cli.file, cli.dearest),
            Command::Write { why } => write(&cli.file, why.as_deref(), cli.dearest),
            Command::Count { case, operations } => case.run(*operations),
        },
    )
}

fn check(file: &Path, dearest: usize) -> anyhow::Result<()> {
    let book = Book::read(file)?;
    let obstacles = match Machine::read() {
        Ok(here) => book.machine.differences(&here),
        Err(error) => vec![error.to_string()],
    };
    if !obstacles.is_empty() {
        print!("{}", skipped(&obstacles, file));
        return Ok(());
    }
    let mut over = 0;
    for counted in count::all(dearest)? {
        let verdict = book.judge(counted.case, counted.instructions);
        tell(&counted, &verdict, file);
        over += usize::from(matches!(verdict, Verdict::Over { .. } | Verdict::Unknown));
    }
    if over > 0 {
        bail!("{over} of {} measures are over their budget", Case::ALL.len());
    }
    Ok(())
}

fn tell(counted: &Counted, verdict: &Verdict, file: &Path) {
    println!("{}", book::told(counted.case, verdict, counted.instructions, file));
    for (name, cost) in &counted.dearest {
        println!("  {cost:>12} {name}");
    }
}

/// Loud, and one line a measure, so that no log can be read as if they had passed.
fn skipped(obstacles: &[String], file: &Path) -> String {
    let mut text = String::from("*** budget: NOT CHECKED ***\n");
    for obstacle in obstacles {
        text.push_str(&format!("budget: {obstacle}\n"));
    }
    for case in Case::ALL {
        text.push_str(&format!("budget: skipped: {}\n", case.name()));
    }
    text.push_str(&format!(
        "budget: figures hold for one kind of machine alone; `make budget WHY=...` writes this one's into {}\n",
        file.display()
    ));
    text
}

fn write(file: &Path, why: Option<&str>, dearest: usize) -> anyhow::Result<()> {
    let here = Machine::read()?;
    let before = file.exists().then(|| Book::read(file)).transpose()?;
    let mut book = before.unwrap_or_else(|| Book::empty(here.clone()));
    let moved_house = !book.machine.differences(&here).is_empty();
    for counted in count::all(dearest)? {
        let Counted { case, instructions, .. } = counted;
        tell(&counted, &book.judge(case, instructions), file);
        let stays = book.entry(case).is_some_and(|entry| !moved_house && entry.is_about(instructions));
        if let (false, Some(why)) = (stays, why) {
            book.set(case, Entry::new(instructions, why));
        }
    }
    let Some(_) = why else {
        println!("nothing is written without a reason: make budget WHY='what the instructions are for'");
        return Ok(());
    };
    book.machine = here;
    std::fs::write(file, book.to_text()?).with_context(|| format!("writing {}", file.display()))?;
    println!("written to {}", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_skip_names_every_measure_and_every_reason() {
        let text = skipped(&["rustc is 2, the figures are for 1".to_owned()], Path::new("b.toml"));
        assert!(text.starts_with("*** budget: NOT CHECKED ***\n") && text.contains("rustc is 2"), "{text}");
        for case in Case::ALL {
            assert!(text.contains(&format!("skipped: {}\n", case.name())), "{text}");
        }
    }

    #[test]
    fn the_budget_in_the_repository_is_whole() {
        let book = Book::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.toml")).unwrap();
        for case in Case::ALL {
            assert!(book.entry(case).is_some_and(|entry| entry.instructions > 0), "{}", case.name());
        }
    }
}
