//! Errors of the file, with all that is needed for the fix: file and line, key, found value,
//! instruction.
//!
//! All problems of a file are reported together, in the order of its lines.

use std::fmt;
use std::path::PathBuf;

/// Why a configuration cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// The file could not be read.
    #[error("{path}: cannot read the configuration file: {error}{hint}", path = path.display())]
    Unreadable {
        /// As given on the command line.
        path: PathBuf,
        /// The system's error. Not a `source`, because the message contains it.
        error: std::io::Error,
        /// Advice; empty or starts with a blank.
        hint: &'static str,
    },
    /// The text is not YAML.
    #[error("{path}:{line}:{column}: not valid YAML: {message}", path = path.display())]
    Syntax {
        /// As given on the command line.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// 1-based, in characters.
        column: usize,
        /// What the parser expected.
        message: String,
    },
    /// The YAML is valid, its content is not.
    #[error("{}", list(path, problems))]
    Invalid {
        /// As given on the command line.
        path: PathBuf,
        /// At least one, in the order of their lines.
        problems: Vec<ConfProblem>,
    },
}

/// One problem of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfProblem {
    /// 1-based line in the file; `None` when the key is not in the file.
    pub line: Option<usize>,
    /// Dotted path, e.g. `deployment.admin.admin_listen`.
    pub field: String,
    /// The found value and what to do.
    pub message: String,
}

fn list(path: &std::path::Path, problems: &[ConfProblem]) -> String {
    use fmt::Write;
    let mut text = String::new();
    if problems.len() > 1 {
        let _ = writeln!(text, "{} has {} problems:", path.display(), problems.len());
    }
    for (nth, problem) in problems.iter().enumerate() {
        if nth > 0 {
            text.push('\n');
        }
        let _ = match problem.line {
            Some(line) => write!(text, "{}:{line}: ", path.display()),
            None => write!(text, "{}: ", path.display()),
        };
        if !problem.field.is_empty() {
            let _ = write!(text, "{}: ", problem.field);
        }
        text.push_str(&problem.message);
    }
    text
}
