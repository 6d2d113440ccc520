//! Prints a command for pasting, runs it, and prints its result in one line.
//!
//! curl gets more options than are printed (`-sS`, and the status at the end).

use std::io::IsTerminal;
use std::process::{Output, Stdio};

use anyhow::Context;
use tokio::process::Command;
use tokio::time::timeout;

use crate::process::EVENT_TIMEOUT;

/// The expected result of a step.
#[derive(Clone, Copy)]
pub(super) enum Expect {
    /// An HTTP response with this status whose body contains the text.
    Answer(u16, &'static str),
    /// A rejected TLS handshake.
    Rejected,
}

/// The result of a curl command.
pub(super) struct Outcome {
    status: u16,
    http: String,
    body: String,
    message: String,
}

/// Prints the text of a step (empty: it continues the one before), the command, and its result;
/// gives whether that was expected.
pub(super) async fn step(about: &str, command: &str, expected: Expect) -> anyhow::Result<bool> {
    if !about.is_empty() {
        println!("\n   {about}");
    }
    print_command(command);
    let outcome = run(command).await?;
    let good = outcome.is(expected);
    println!("   {} {}", mark(good), outcome.line());
    if !good {
        println!("     expected {}", wanted(expected));
    }
    Ok(good)
}

/// Prints and runs a command that must fail with `text` in its last line, which it prints; gives
/// whether it did.
pub(super) async fn expect_failure(about: &str, command: &str, text: &str) -> anyhow::Result<bool> {
    println!("\n   {about}");
    print_command(command);
    let output = in_shell(command).await?;
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    let last =
        printed.lines().rfind(|line| line.contains(text)).or(printed.lines().last()).unwrap_or_default();
    let good = !output.status.success() && last.contains(text);
    println!("   {} exit {}: {last}", mark(good), output.status.code().unwrap_or(-1));
    if !good {
        println!("     expected a failure and `{text}`");
    }
    Ok(good)
}

/// Prints and runs a command that must succeed and print these texts; gives whether it did.
pub(super) async fn expect_output(about: &str, command: &str, texts: &[&str]) -> anyhow::Result<bool> {
    println!("\n   {about}");
    print_command(command);
    let output = in_shell(command).await?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let good = output.status.success() && texts.iter().all(|text| printed.contains(text));
    println!("   {} {}", mark(good), shortened(&printed, 150));
    if !good {
        println!("     expected {texts:?}; {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(good)
}

/// Ends a program that does not end within [`EVENT_TIMEOUT`].
async fn in_shell(command: &str) -> anyhow::Result<Output> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("NO_COLOR", "1").stdin(Stdio::null()).kill_on_drop(true);
    Ok(timeout(EVENT_TIMEOUT, shell.output())
        .await
        .with_context(|| format!("still running: {command}"))??)
}

/// Runs a curl command without printing.
pub(super) async fn run(command: &str) -> anyhow::Result<Outcome> {
    let measured = command.replacen("curl", "curl -sS --max-time 30 -w '\\n%{http_code} %{http_version}'", 1);
    let output = Command::new("sh").args(["-c", &measured]).output().await?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, last) = stdout.rsplit_once('\n').unwrap_or(("", &stdout));
    let (status, http) = last.split_once(' ').unwrap_or(("0", "0"));
    Ok(Outcome {
        status: status.parse().unwrap_or_default(),
        http: http.to_owned(),
        body: body.trim().to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// The prompt and the command; its later lines are indented.
pub(super) fn print_command(command: &str) {
    println!("   $ {}", command.replace('\n', "\n     "));
}

/// A tick or a cross, coloured on a terminal.
pub(super) fn mark(good: bool) -> &'static str {
    match (good, std::io::stdout().is_terminal()) {
        (true, true) => "\x1b[32m✓\x1b[0m",
        (false, true) => "\x1b[31m✗\x1b[0m",
        (true, false) => "✓",
        (false, false) => "✗",
    }
}

fn wanted(expected: Expect) -> String {
    match expected {
        Expect::Answer(status, "") => format!("status {status}"),
        Expect::Answer(status, text) => format!("status {status} and `{text}` in the body"),
        Expect::Rejected => "a refused handshake, and no answer".to_owned(),
    }
}

impl Outcome {
    pub(super) fn body(&self) -> &str {
        &self.body
    }

    fn is(&self, expected: Expect) -> bool {
        match expected {
            Expect::Answer(status, text) => self.status == status && self.body.contains(text),
            // curl names the TLS alert; a connection that failed for another reason must not pass.
            Expect::Rejected => {
                let tls = ["alert", "SSL", "TLS", "handshake"];
                self.status == 0 && tls.iter().any(|word| self.message.contains(word))
            }
        }
    }

    fn line(&self) -> String {
        if self.status == 0 {
            return format!("no answer; {}", shortened(&self.message, 150));
        }
        // The title of an error page is enough.
        let title = self.body.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
        let body = title.map_or(self.body.as_str(), |(title, _)| title);
        format!("{} over HTTP/{}: {}", self.status, self.http, shortened(body, 130))
    }
}

fn shortened(text: &str, length: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= length {
        return line;
    }
    format!("{} ...", line.chars().take(length).collect::<String>())
}
