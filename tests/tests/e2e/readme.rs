//! The README's commands, run unchanged by bash in a folder with the two programs.
//!
//! Only ports are changed, `cargo build` is replaced, and a stand-in listens for the upstream of
//! port 8080.

use std::path::Path;
use std::process::Stdio;

use e2e::ports::Reservation;
use e2e::process::{EVENT_TIMEOUT, program};
use e2e::shell::Shell;
use e2e::upstream::Upstream;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The indented blocks below a heading, up to the next heading of its level, in order.
fn commands(heading: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, section) = readme.split_once(&format!("\n{heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap().split("\n### ").next().unwrap();
    let mut blocks = vec![String::new()];
    for line in section.lines() {
        match line.strip_prefix("    ") {
            Some(command) => *blocks.last_mut().unwrap() += &format!("{command}\n"),
            // An empty line within a block does not end it.
            None if line.is_empty() => blocks.last_mut().unwrap().push('\n'),
            None => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.trim().is_empty());
    blocks
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The commands of a block: one ends where its quotes and its here-document are closed.
fn split(block: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut open = String::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        open += &format!("{line}\n");
        let in_document = open.contains("<<END\n") && line != "END";
        if open.matches('\'').count().is_multiple_of(2) && !line.ends_with('\\') && !in_document {
            commands.push(std::mem::take(&mut open));
        }
    }
    assert!(open.is_empty(), "{open}");
    commands
}

/// A program that runs until this is dropped.
struct Running {
    _program: Child,
}

impl Running {
    /// Runs a line of the README, and waits until the program is ready.
    async fn start(folder: &Path, variables: &[(String, String)], line: &str) -> Self {
        let mut child = Command::new("bash")
            .args(["-c", &format!("exec {line}")])
            .current_dir(folder)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.starts_with("ready ") {
                    return;
                }
            }
            panic!("{line} ended");
        };
        timeout(EVENT_TIMEOUT, ready).await.unwrap_or_else(|_| panic!("{line} is not ready"));
        Self { _program: child }
    }
}

#[tokio::test]
async fn the_readmes_commands_work() {
    let [start, pki, protect, by_curl] = commands("## Run it").try_into().unwrap();
    assert!(!start.contains("jq ") && !protect.contains("jq "), "jq is not needed");
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    std::fs::create_dir_all(home.join("conf")).unwrap();
    std::fs::create_dir_all(home.join("target/release")).unwrap();
    std::fs::copy(repository().join("conf/config.yaml"), home.join("conf/config.yaml")).unwrap();
    for name in ["controlplane", "dataplane"] {
        std::os::unix::fs::symlink(program(name), home.join("target/release").join(name)).unwrap();
    }
    let upstream = Upstream::plain("readme").await;
    // Reserved while the programs run.
    let kept =
        ["ADMIN", "PUSH", "HTTP", "HTTPS", "STATUS", "CONTROL_STATUS"].map(|name| (name, Reservation::any()));
    let port = |at: usize| kept[at].1.address().port().to_string();
    let variables: Vec<(String, String)> =
        (0..kept.len()).map(|at| (format!("COUNTERSIGN_{}_PORT", kept[at].0), port(at))).collect();
    let moved = |text: &str| {
        let text = text.replace("127.0.0.1:8080", &upstream.address().to_string());
        text.replace("9180", &port(0)).replace("9443", &port(3))
    };
    let shell = variables.iter().fold(Shell::new(home), |shell, (name, value)| shell.set(name, value));

    let [set_up, build, init, control, data] = start.trim().lines().collect::<Vec<_>>().try_into().unwrap();
    assert!(set_up.starts_with("make setup") && build.starts_with("cargo build --release"), "{start}");
    let made = shell.run(init).await;
    assert_eq!(made.exit, 0, "{made:?}");
    let running =
        [Running::start(home, &variables, control).await, Running::start(home, &variables, data).await];
    let made = shell.run(&pki).await;
    assert_eq!(made.exit, 0, "{made:?}");

    // Runs each command by itself to see its result. All get the definitions of the first lines.
    let (define, calls) = protect.split_once("\n\n").unwrap();
    let run = |command: &str| {
        let script = moved(&format!("{define}\n{command}"));
        let shell = &shell;
        async move { shell.run(&script).await }
    };
    let [site, route, fleet, alice, anonymous] = split(calls).try_into().unwrap();
    for (command, says) in [(site, "ssls/1 created"), (route, "routes/1 created")] {
        let output = run(&command).await;
        assert!(output.exit == 0 && output.out.contains(says), "{command}\n{output:?}");
    }
    let output = run(&fleet).await;
    assert!(output.exit == 0 && output.out.contains("\ndataplane "), "{output:?}");
    let output = run(&by_curl).await;
    assert!(output.status() == 200 && output.out.contains("/apisix/routes/1"), "{by_curl}\n{output:?}");
    let output = run(&alice).await;
    assert!(output.status() == 200 && output.out.contains("\"upstream\":\"readme\""), "{alice}\n{output:?}");
    let output = run(&anonymous).await;
    assert!(
        output.exit != 0 && output.status() == 0 && output.err.contains("alert"),
        "{anonymous}\n{output:?}"
    );
    drop(running);
}
