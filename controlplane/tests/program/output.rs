//! Output of commands into a closed pipe and onto a full disk.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Output, Stdio};

use crate::site::{Site, program};

/// Every command that prints.
fn commands(site: &Site) -> Vec<Vec<String>> {
    let (config, out) = (site.config().display().to_string(), site.path("made").display().to_string());
    let (pki, ca) =
        (site.path("more-pki").display().to_string(), site.path("pki/push-ca").display().to_string());
    let show = site.path("pki/node.crt").display().to_string();
    let copied = format!("yaml:{}", site.path("copied.yaml").display());
    let rows: &[&[&str]] = &[
        &["check", "-c", &config],
        &["doctor", "-c", &config],
        &["doctor", "--json", "-c", &config],
        &["pki", "init", "--dir", &pki, "--force"],
        &["pki", "issue", "node", "edge-2", "--ca", &ca, "--out", &out, "--force"],
        &["pki", "show", &show],
        &["completions", "bash"],
        &["copy", "--from", "embedded", "--to", &copied, "--overwrite", "-c", &config],
    ];
    rows.iter().map(|row| row.iter().map(|word| (*word).to_owned()).collect()).collect()
}

fn run_into(arguments: &[String], stdout: Stdio) -> (Option<i32>, String) {
    let ran: Output = program().args(arguments).stdout(stdout).stderr(Stdio::piped()).output().unwrap();
    (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
}

fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn exists(path: &Path) -> bool {
    fs::metadata(path).is_ok()
}

#[test]
fn a_closed_pipe_changes_neither_work_nor_exit_code() {
    let site = Site::new();
    assert_eq!(site.start().stop().0, Some(0), "so that there is a store to copy");
    for arguments in commands(&site) {
        let (code, stderr) = run_into(&arguments, closed_pipe());
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
    for made in ["made.crt", "made.key", "more-pki/node.key", "copied.yaml"] {
        assert!(exists(&site.path(made)), "{made}");
    }
    // The exit code still reports errors.
    let config = site.with("/deployment/admin/admin_api_mtls/admin_ssl_ca_cert", "nowhere.crt".into());
    let wrong = ["check", "-c", &config.display().to_string()].map(str::to_owned);
    assert_eq!(run_into(&wrong, closed_pipe()), (Some(1), String::new()));
    let odd = program().env("RUST_LOG", "a=b=c").args(&wrong).output().unwrap();
    assert!(String::from_utf8_lossy(&odd.stderr).contains("is no filter"), "{odd:?}");
    for flag in ["--help", "--version"] {
        let (code, stderr) = run_into(&[flag.to_owned()], closed_pipe());
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{flag}");
    }
}

#[test]
fn a_full_disk_is_reported_after_the_work() {
    let site = Site::new();
    assert_eq!(site.start().stop().0, Some(0), "so that there is a store to copy");
    for arguments in commands(&site) {
        let (code, stderr) = run_into(&arguments, full_disk());
        let reported =
            stderr.starts_with("controlplane: cannot write to standard output: No space left on device");
        assert!(
            code == Some(1) && reported && stderr.lines().count() == 1,
            "{arguments:?}: {code:?} {stderr}"
        );
    }
    for made in ["made.crt", "made.key", "more-pki/node.key", "copied.yaml"] {
        assert!(exists(&site.path(made)), "{made}");
    }
}

#[test]
fn the_server_runs_without_a_reader_of_its_ready_line() {
    for stdout in [closed_pipe(), full_disk()] {
        let mut site = Site::new();
        let status = e2e::ports::Reservation::any();
        site.settings["countersign"]["control_plane"]["status"] = status.address().to_string().into();
        let config = site.config();
        let mut child =
            program().arg("-c").arg(config).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let log = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
        let reported = log.map_while(Result::ok).any(|line| line.contains("ready line cannot be written"));
        let connected = std::net::TcpStream::connect(status.address());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(reported && connected.is_ok(), "{connected:?}");
    }
}
