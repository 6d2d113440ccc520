//! Where and with what a comparison was made: enough to make it again.

use std::path::Path;

use serde::Serialize;

use super::workbench::Workbench;
use crate::peer::{Installed, Kind, program};

/// Facts about the machine and the programs. What cannot be found out is absent.
#[derive(Debug, Serialize)]
pub struct Environment {
    /// When the run started, UTC.
    pub started: String,
    /// The command line.
    pub command: String,
    /// `/proc/cpuinfo`'s model name.
    pub cpu: Option<String>,
    /// Cores of this machine.
    pub cores: usize,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Distribution.
    pub system: Option<String>,
    /// Load average when the run started: other work makes figures noisy.
    pub load_average: Option<String>,
    /// The commit that is checked out here, with `-dirty` when files differ.
    pub commit: Option<String>,
    /// The compiler that is installed here.
    pub rustc: Option<String>,
    /// Those that take part.
    pub peers: Vec<Program>,
    /// Those that were asked for and do not, and why.
    pub left_out: Vec<String>,
}

/// A peer's program.
#[derive(Debug, Serialize)]
pub struct Program {
    /// Which peer.
    pub peer: Kind,
    /// What it says it is.
    pub version: String,
    /// How it was started; the folder is gone.
    pub command: Option<String>,
}

impl Program {
    fn of(installed: &dyn Installed) -> Self {
        Self { peer: installed.kind(), version: installed.version(), command: None }
    }
}

impl Environment {
    /// Looks around.
    pub fn read(installed: &[Box<dyn Installed>], left_out: Vec<String>) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).ok();
        let field = |text: String, name: &str, separator: char| {
            let line =
                text.lines().find(|line| line.starts_with(name))?.split_once(separator)?.1.trim().to_owned();
            Some(line.trim_matches('"').to_owned())
        };
        let said = |name: &str, arguments: &[&str]| program::said(Path::new(name), arguments);
        Self {
            started: time::UtcDateTime::now().to_string(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            cpu: file("/proc/cpuinfo").and_then(|text| field(text, "model name", ':')),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            kernel: file("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            system: file("/etc/os-release").and_then(|text| field(text, "PRETTY_NAME", '=')),
            load_average: file("/proc/loadavg").map(|text| text.trim().to_owned()),
            commit: said("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            rustc: said("rustc", &["--version"]),
            peers: installed.iter().map(|one| Program::of(one.as_ref())).collect(),
            left_out,
        }
    }

    /// Adds how those that run were started.
    pub fn note_commands(&mut self, bench: &Workbench) {
        for program in &mut self.peers {
            let running = bench.peers.iter().find(|peer| peer.kind() == program.peer);
            program.command = running.map(|peer| bench.without_folder(&peer.command()));
        }
    }
}
