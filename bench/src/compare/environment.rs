//! Where and with what a comparison was made: enough to make it again.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::peer::countersign::Programs;
use crate::peer::nginx;

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
    /// nginx, if it takes part.
    pub nginx: Option<String>,
    /// Countersign, if it takes part.
    pub countersign: Option<String>,
}

impl Environment {
    /// Looks around.
    pub fn read(nginx: Option<&Path>, programs: Option<&Programs>) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).ok();
        let field = |text: String, name: &str, separator: char| {
            let line =
                text.lines().find(|line| line.starts_with(name))?.split_once(separator)?.1.trim().to_owned();
            Some(line.trim_matches('"').to_owned())
        };
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
            nginx: nginx.map(nginx::version),
            countersign: programs.map(Programs::version),
        }
    }
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
