//! A machine to install on: a root folder in a mount and network namespace of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The namespaces live as long as the value; what runs in them ends with it.
pub(crate) struct Machine {
    holder: Child,
    root: PathBuf,
    _folder: TempDir,
}

#[derive(Debug)]
pub(crate) struct CommandResult {
    pub(crate) success: bool,
    pub(crate) text: String,
}

impl Machine {
    /// This machine's own files, as a copy that is discarded. `None`, with a line that says so,
    /// where namespaces or overlays are not permitted.
    pub(crate) fn copy_of_this() -> Option<Self> {
        Self::start(
            "mount -t overlay overlay -o lowerdir=/,upperdir=\"$F/upper\",workdir=\"$F/work\" \"$R\"
             mount -t tmpfs tmpfs \"$R/run\" && mount -t tmpfs tmpfs \"$R/tmp\"",
        )
    }

    /// A folder that is mounted read-only, with a writable /var/lib/countersign and the settings of
    /// `etc`.
    pub(crate) fn read_only(image: &Path, etc: &Path) -> Option<Self> {
        Self::start(&format!(
            "mount --bind '{}' \"$R\" && mount --bind '{}' \"$R/etc/countersign\"
             mount -t tmpfs -o uid=65532,gid=65532,mode=0700 tmpfs \"$R/var/lib/countersign\"
             mount -o remount,bind,ro \"$R\"",
            image.display(),
            etc.display()
        ))
    }

    fn start(mounts: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        // An overlay's upper folder is not on an overlay.
        let script = format!(
            "set -e; F=$1; R=$1/root; mount -t tmpfs tmpfs \"$F\"; mkdir \"$F/upper\" \"$F/work\" \"$R\"
             {mounts}
             mount -t proc proc \"$R/proc\" 2>/dev/null || true
             mount --rbind /dev \"$R/dev\" 2>/dev/null || true
             ip link set lo up; echo ready; exec sleep infinity"
        );
        let mut holder = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", &script, "sh"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let root = folder.path().join("root");
        if line.trim() != "ready" {
            let output = holder.wait_with_output().unwrap();
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            let skip = format!("skipped: installing in a scratch root needs root and namespaces: {why}\n");
            std::io::stderr().write_all(skip.as_bytes()).unwrap();
            return None;
        }
        Some(Self { holder, root, _folder: folder })
    }

    /// A shell command in it.
    pub(crate) fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        let process = self.inner_process();
        command.args(["--mount", "--net", "--pid", "--target", &process, "chroot"]);
        command.arg(&self.root).args(["/bin/bash", "-c", script]).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("NO_COLOR", "1");
        command
    }

    /// A program in it, without a shell, as this user.
    pub(crate) fn program(&self, user: u32, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let process = self.inner_process();
        command.args(["--mount", "--net", "--pid", "--target", &process, "chroot"]);
        command.arg(format!("--userspec={user}:{user}")).arg(&self.root).args(words).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("NO_COLOR", "1");
        command
    }

    /// A program of this machine, with the network of that one.
    pub(crate) fn client(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.inner_process()]).args(words);
        command
    }

    /// The process in the namespaces: the child of `unshare --fork`.
    fn inner_process(&self) -> String {
        let id = self.holder.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.split_whitespace().next().expect("the holder has a child").to_owned()
    }

    pub(crate) fn try_run(&self, script: &str) -> CommandResult {
        let output = self.command(script).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        CommandResult { success: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
    }

    /// Runs a command that must succeed; returns its output.
    pub(crate) fn run(&self, script: &str) -> String {
        let result = self.try_run(script);
        assert!(result.success, "{script}: {}", result.text);
        result.text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel ends every process of the namespace with its first one.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
