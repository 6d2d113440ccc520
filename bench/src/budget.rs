//! Instruction counts of a handshake and a proxied request, checked against a budget.
//!
//! [`machine`] compares this machine with that of `bench/budget.toml`; [`count`] runs each
//! [`cases::Case`] under callgrind; [`callgrind`] reads its output and separates the crypto
//! library's instructions; [`figures`] holds the budget and judges.
//!
//! Invariant: a measure passes only if it was counted. A measure that could not be counted is
//! reported as skipped, and one without a budget fails.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

pub mod callgrind;
pub mod cases;
pub mod count;
pub mod figures;
pub mod machine;
mod proxied;

use cases::Case;
use count::Counted;
use figures::{Budget, Entry, Verdict};
use machine::Machine;

/// Counts instructions and compares them with the budget.
#[derive(Parser, Debug)]
#[command(name = "budget", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The budget file.
    #[arg(long, global = true, default_value = "bench/budget.toml")]
    file: PathBuf,
    /// Also list so many functions with the most instructions of their own in the whole run.
    #[arg(long, global = true, default_value_t = 0)]
    dearest: usize,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Fails when a measure is more than 3 % over its budget.
    Check,
    /// Prints new figures; with a reason, writes those that moved into the budget.
    Write {
        /// Why the figures moved, in a few words; kept beside them.
        #[arg(long)]
        why: Option<String>,
    },
    /// The program that runs under callgrind.
    #[command(hide = true)]
    Count {
        /// The measure.
        #[arg(value_enum)]
        case: Case,
        /// Its repetitions.
        operations: u32,
    },
}

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
    let budget = Budget::read(file)?;
    let obstacles = match Machine::read() {
        Ok(here) => budget.machine.differences(&here),
        Err(error) => vec![error.to_string()],
    };
    if !obstacles.is_empty() {
        print!("{}", skipped(&obstacles, file));
        return Ok(());
    }
    let mut over = 0;
    for counted in count::all(dearest)? {
        let verdict = budget.judge(counted.case, counted.instructions);
        tell(&counted, &verdict, file);
        over += usize::from(matches!(verdict, Verdict::Over { .. } | Verdict::Unknown));
    }
    if over > 0 {
        bail!("{over} of {} measures are over their budget", Case::ALL.len());
    }
    Ok(())
}

fn tell(counted: &Counted, verdict: &Verdict, file: &Path) {
    println!("{}", figures::line(counted.case, verdict, counted.instructions, file));
    for (name, cost) in &counted.dearest {
        println!("  {cost:>12} {name}");
    }
}

/// One line a measure, so that a log cannot be read as if it had passed.
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
    let before = file.exists().then(|| Budget::read(file)).transpose()?;
    let mut budget = before.unwrap_or_else(|| Budget::empty(here.clone()));
    let moved_house = !budget.machine.differences(&here).is_empty();
    for counted in count::all(dearest)? {
        let Counted { case, instructions, .. } = counted;
        tell(&counted, &budget.judge(case, instructions), file);
        let stays = budget.entry(case).is_some_and(|entry| !moved_house && entry.is_about(instructions));
        if let (false, Some(why)) = (stays, why) {
            budget.set(case, Entry::new(instructions, why));
        }
    }
    let Some(_) = why else {
        println!("nothing is written without a reason: make budget WHY='what the instructions are for'");
        return Ok(());
    };
    budget.machine = here;
    std::fs::write(file, budget.to_text()?).with_context(|| format!("writing {}", file.display()))?;
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
    fn the_repository_has_a_budget_for_every_case() {
        let budget = Budget::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.toml")).unwrap();
        for case in Case::ALL {
            assert!(budget.entry(case).is_some_and(|entry| entry.instructions > 0), "{}", case.name());
        }
    }
}
