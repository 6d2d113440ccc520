//! Runs this program under callgrind, all counts in parallel: the load of the machine does not
//! change them.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::callgrind::{Instructions, Profile};
use super::cases::{Case, Counting};
use crate::counted;

/// A running callgrind.
struct Run {
    child: Child,
    folder: TempDir,
}

pub struct Counted {
    pub case: Case,
    /// Of one operation.
    pub instructions: Instructions,
    /// The functions with the most instructions in the whole run, most first.
    pub dearest: Vec<(String, u64)>,
}

/// Instructions an operation of every case, and its `dearest` functions.
///
/// # Errors
/// When a run fails, or counted nothing.
pub fn all(dearest: usize) -> anyhow::Result<Vec<Counted>> {
    let program = std::env::current_exe().context("asking for our own path")?;
    let start = |case: Case| {
        let (first, second) = match case.counting() {
            Counting::Alone(count) => (count, None),
            Counting::Between(less, more) => (less, Some(more)),
        };
        let second = second.map(|count| Run::start(&program, case, count)).transpose()?;
        Ok((case, Run::start(&program, case, first)?, second))
    };
    let running: Vec<_> = Case::ALL.into_iter().map(start).collect::<anyhow::Result<_>>()?;
    let finish = |(case, first, second): (Case, Run, Option<Run>)| {
        let doing = || format!("counting {}", case.name());
        let first = first.finish().with_context(doing)?;
        let second = second.map(Run::finish).transpose().with_context(doing)?;
        let name = program.to_string_lossy();
        let of = |profile: &Profile| profile.instructions(&name);
        let both = (of(&first)?, second.as_ref().map(of).transpose()?.unwrap_or_default());
        let longer = second.as_ref().unwrap_or(&first);
        let dearest = longer.dearest(&name, dearest).into_iter().map(|(name, cost)| (name.to_owned(), cost));
        let instructions = an_operation(case.counting(), both.0, both.1)?;
        Ok(Counted { case, instructions, dearest: dearest.collect() })
    };
    running.into_iter().map(finish).collect()
}

fn an_operation(
    counting: Counting,
    first: Instructions,
    second: Instructions,
) -> anyhow::Result<Instructions> {
    match counting {
        Counting::Alone(count) => {
            let each = |all: u64| all / u64::from(count);
            Ok(Instructions { ours: each(first.ours), crypto: each(first.crypto) })
        }
        Counting::Between(less, more) => {
            let each = |first: u64, second: u64| {
                let between = second.checked_sub(first).context("more operations cost less")?;
                Ok::<_, anyhow::Error>(between / u64::from(more - less))
            };
            Ok(Instructions {
                ours: each(first.ours, second.ours)?,
                crypto: each(first.crypto, second.crypto)?,
            })
        }
    }
}

impl Run {
    fn start(program: &Path, case: Case, operations: u32) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        let output = std::fs::File::create(folder.path().join("log")).context("making a log")?;
        let mut command = Command::new("valgrind");
        command.arg("--tool=callgrind").arg(format!("--toggle-collect={}", counted::PATTERN));
        command.arg(format!("--callgrind-out-file={}", folder.path().join("out").display()));
        command.arg(program).args(["count", case.name(), &operations.to_string()]);
        // The allocator would return memory by the clock.
        command.env("MIMALLOC_PURGE_DELAY", "-1");
        // Resolves the C library's functions at the start.
        command.env("LD_BIND_NOW", "1");
        command.stdin(Stdio::null()).stdout(output.try_clone().context("a second handle")?).stderr(output);
        let child = command.spawn().context("starting valgrind")?;
        Ok(Self { child, folder })
    }

    fn finish(mut self) -> anyhow::Result<Profile> {
        let status = self.child.wait().context("waiting for valgrind")?;
        if !status.success() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n");
            bail!("valgrind ended with {status}:\n{tail}");
        }
        let text =
            std::fs::read_to_string(self.folder.path().join("out")).context("reading callgrind's output")?;
        Ok(Profile::parse(&text)?)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // After an error elsewhere; a process that has ended is not killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn count(ours: u64, crypto: u64) -> Instructions {
        Instructions { ours, crypto }
    }

    #[test]
    fn counts_are_divided_by_operations() {
        let alone = an_operation(Counting::Alone(10), count(1000, 50), Instructions::default());
        assert_eq!(alone.unwrap(), count(100, 5));
        let between = an_operation(Counting::Between(10, 30), count(1000, 50), count(3000, 90));
        assert_eq!(between.unwrap(), count(100, 2));
    }

    #[test]
    fn a_larger_count_must_cost_more() {
        assert!(an_operation(Counting::Between(1, 2), count(10, 1), count(9, 1)).is_err());
    }
}
