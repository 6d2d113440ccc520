//! The machine and the programs of a comparison, so that it can be repeated.

use std::path::Path;

use serde::Serialize;

use super::workbench::Workbench;
use crate::peer::{Installed, Kind, program};

/// A fact that cannot be found out is absent.
#[derive(Debug, Serialize)]
pub(super) struct Environment {
    /// When the run started, UTC.
    pub started: String,
    pub command: String,
    /// The model name in `/proc/cpuinfo`.
    pub cpu: Option<String>,
    pub cores: usize,
    pub kernel: Option<String>,
    pub system: Option<String>,
    /// Load average at the start: other work makes figures noisy.
    pub load_average: Option<String>,
    /// The commit in the current folder, with `-dirty` when files differ.
    pub commit: Option<String>,
    /// The installed compiler.
    pub rustc: Option<String>,
    pub peers: Vec<Program>,
    /// Peers that are left out, with the reason.
    pub left_out: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Program {
    pub peer: Kind,
    pub version: String,
    /// Without the name of the temporary folder.
    pub command: Option<String>,
}

impl Program {
    fn of(installed: &dyn Installed) -> Self {
        Self { peer: installed.kind(), version: installed.version(), command: None }
    }
}

impl Environment {
    pub(super) fn read(installed: &[Box<dyn Installed>], left_out: Vec<String>) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).ok();
        let field = |text: String, name: &str, separator: char| {
            let line =
                text.lines().find(|line| line.starts_with(name))?.split_once(separator)?.1.trim().to_owned();
            Some(line.trim_matches('"').to_owned())
        };
        let output_of = |name: &str, arguments: &[&str]| program::output_of(Path::new(name), arguments);
        Self {
            started: time::UtcDateTime::now().to_string(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            cpu: file("/proc/cpuinfo").and_then(|text| field(text, "model name", ':')),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            kernel: file("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            system: file("/etc/os-release").and_then(|text| field(text, "PRETTY_NAME", '=')),
            load_average: file("/proc/loadavg").map(|text| text.trim().to_owned()),
            commit: output_of("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            rustc: output_of("rustc", &["--version"]),
            peers: installed.iter().map(|one| Program::of(one.as_ref())).collect(),
            left_out,
        }
    }

    /// Adds the command lines of the running peers.
    pub(super) fn note_commands(&mut self, bench: &Workbench) {
        for program in &mut self.peers {
            let running = bench.peers.iter().find(|peer| peer.kind() == program.peer);
            program.command = running.map(|peer| bench.without_folder(&peer.command()));
        }
    }
}
