//! The kind of machine that figures hold for: all that selects the executed instructions, besides
//! the source.
//!
//! valgrind presents a processor of its own, whose kind depends on the real one's features;
//! libraries select their code by it. The compiler and the C library are the rest.

use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// Features that select the processor valgrind presents. It hides AVX-512 and the SHA extensions.
const FEATURES: [&str; 12] =
    ["aes", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "pclmulqdq", "rdrand", "rdseed", "sse4_2"];

/// Why nothing can be counted here.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A tool that is not installed.
    #[error("{tool} is missing; install it, on Debian or Ubuntu with: sudo apt-get install {package}")]
    Missing { tool: &'static str, package: &'static str },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Rust's name of it.
    pub architecture: String,
    /// Those of [`FEATURES`] that the processor has.
    pub features: String,
    /// `valgrind --version`
    pub valgrind: String,
    /// Its memory functions are counted.
    pub libc: String,
    /// `rustc --version`
    pub rustc: String,
}

impl Machine {
    /// Describes this machine.
    ///
    /// # Errors
    /// When a tool is missing.
    pub fn read() -> Result<Self, MachineError> {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Ok(Self {
            architecture: std::env::consts::ARCH.to_owned(),
            features: features(&cpu),
            valgrind: output_of("valgrind", "--version", "valgrind")?,
            libc: output_of("getconf", "GNU_LIBC_VERSION", "libc-bin")?,
            rustc: output_of("rustc", "--version", "rustc, or rustup")?,
        })
    }

    /// The differences between the machine of the figures and `here`, as text.
    pub fn differences(&self, here: &Self) -> Vec<String> {
        let pairs = [
            ("architecture", &self.architecture, &here.architecture),
            ("the processor's features", &self.features, &here.features),
            ("valgrind", &self.valgrind, &here.valgrind),
            ("libc", &self.libc, &here.libc),
            ("rustc", &self.rustc, &here.rustc),
        ];
        let other = pairs.into_iter().filter(|(_, budget, here)| budget != here);
        other
            .map(|(what, budget, here)| format!("{what}: here `{here}`, the figures are for `{budget}`"))
            .collect()
    }
}

fn features(cpuinfo: &str) -> String {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let has = |feature: &&&str| flags.split_ascii_whitespace().any(|flag| flag == **feature);
    FEATURES.iter().filter(has).copied().collect::<Vec<_>>().join(" ")
}

fn output_of(tool: &'static str, argument: &str, package: &'static str) -> Result<String, MachineError> {
    let missing = MachineError::Missing { tool, package };
    let output = Command::new(tool).arg(argument).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        _ => Err(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let text = |text: &str| text.to_owned();
        Machine {
            architecture: text("x86_64"),
            features: text("aes avx2"),
            valgrind: text("valgrind-3.19.0"),
            libc: text("glibc 2.36"),
            rustc: text("rustc 1.95.0"),
        }
    }

    #[test]
    fn only_relevant_processor_features_are_read() {
        let text = "processor\t: 0\nflags\t\t: fpu avx512f sha_ni avx2 aes\nbogomips\t: 1\n";
        assert_eq!(features(text), "aes avx2");
        assert_eq!(features(""), "");
    }

    #[test]
    fn every_difference_is_listed() {
        assert_eq!(machine().differences(&machine()), Vec::<String>::new());
        let here = Machine { features: "aes".to_owned(), rustc: "rustc 1.96.0".to_owned(), ..machine() };
        let listed = machine().differences(&here);
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert!(listed[0].contains("here `aes`") && listed[0].contains("for `aes avx2`"), "{listed:?}");
    }

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let error = output_of("no-such-tool", "--version", "a-package").unwrap_err().to_string();
        assert!(error.contains("no-such-tool") && error.contains("apt-get install a-package"), "{error}");
    }
}
