//! How this process was started, so that its successor is started in the same way.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;

/// Path, arguments and folder of a program.
///
/// The path is that of the start: a file that has replaced it since is the new program. (After the
/// replacement `current_exe` would name the old file, as deleted.)
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    folder: PathBuf,
}

impl Program {
    /// This program. Call it first: later its file may have been replaced.
    ///
    /// # Errors
    /// Those of `current_exe` and `current_dir`.
    pub fn current() -> io::Result<Self> {
        let folder = std::env::current_dir()?;
        let mut arguments = std::env::args_os();
        let typed = arguments.next().map(PathBuf::from);
        let path = std::env::current_exe()?;
        // A link by which it was started may point to a newer program later.
        let link = typed.filter(|typed| typed.components().count() > 1).map(|typed| folder.join(typed));
        let link = link.filter(|link| link.canonicalize().is_ok_and(|target| target == path));
        Ok(Self { path: link.unwrap_or(path), arguments: arguments.collect(), folder })
    }

    /// A program with its arguments.
    pub fn new(path: PathBuf, arguments: Vec<OsString>, folder: PathBuf) -> Self {
        Self { path, arguments, folder }
    }

    /// Its file.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The working directory.
    pub(super) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).current_dir(&self.folder);
        command
    }
}
