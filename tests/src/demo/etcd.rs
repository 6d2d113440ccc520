//! The demo's etcd, with mutual TLS, and a control plane that keeps its documents in it.
//!
//! Both run beside the embedded store's gateway while their scenario does. Invariant: without etcd
//! on this machine nothing is started, and that is said.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::process::Command;

use super::stage::Stage;
use crate::process::{Launch, Log, Process};

/// What the scenario needs and a machine may not have.
const PROGRAMS: [&str; 2] = ["etcd", "etcdctl"];

/// The first of etcd's programs that this machine does not have.
pub fn lacking() -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    PROGRAMS.into_iter().find(|name| !there(name))
}

/// A running etcd.
pub struct Etcd {
    url: String,
    _process: Process,
}

impl Etcd {
    /// Starts it, and waits until it serves.
    pub async fn start(stage: &Stage) -> anyhow::Result<Self> {
        let url = format!("https://127.0.0.1:{}", stage.etcd_port());
        let log = Log::file(stage.path("etcd.log").into());
        let mut command = Command::new("etcd");
        command
            .args(arguments(stage, &url))
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = Process::foreign("etcd", command, None).context("cannot start etcd")?;
        let logging = log.follow(process.stderr().context("its standard error is piped")?);
        tokio::select! {
            _ = log.line_with(&["serving client traffic"]) => {}
            status = process.wait() => {
                logging.await?;
                bail!("etcd ended ({status}):\n{}", log.text());
            }
        }
        Ok(Self { url, _process: process })
    }

    /// The command that started it, as it can be pasted.
    pub fn command(&self, stage: &Stage) -> String {
        let lines: Vec<_> = arguments(stage, &self.url).chunks(2).map(|pair| pair.join(" ")).collect();
        format!("etcd {}", lines.join(" \\\n  "))
    }

    /// A curl command for its health, with these options.
    pub fn health(&self, stage: &Stage, options: &str) -> String {
        let between = if options.is_empty() { String::new() } else { format!(" {options}") };
        format!("curl --cacert {}{between} {}/health", stage.file("etcd-ca.crt"), self.url)
    }

    /// An etcdctl command.
    pub fn etcdctl(&self, stage: &Stage, command: &str) -> String {
        format!(
            "etcdctl --endpoints {} --cacert {} \\\n  --cert {} --key {} {command}",
            self.url,
            stage.file("etcd-ca.crt"),
            stage.file("etcd-client.crt"),
            stage.file("etcd-client.key"),
        )
    }

    /// The settings of a control plane on it: written as a file, whose path this gives.
    pub fn settings(&self, stage: &Stage) -> anyhow::Result<String> {
        let path = stage.path("etcd.yaml");
        let pki = fs::canonicalize(stage.file(""))?;
        fs::write(&path, settings(&self.url, &pki, stage.admin_key()))
            .with_context(|| format!("cannot write {path}"))?;
        Ok(path)
    }
}

/// What etcd is started with, two words a line.
fn arguments(stage: &Stage, url: &str) -> Vec<String> {
    let [data, cert, key, ca] = [
        stage.path("etcd"),
        stage.file("etcd-server.crt"),
        stage.file("etcd-server.key"),
        stage.file("etcd-client-ca.crt"),
    ];
    [
        ("--name", "demo"),
        ("--data-dir", &data),
        ("--listen-client-urls", url),
        ("--advertise-client-urls", url),
        ("--listen-peer-urls", "http://127.0.0.1:0"),
        ("--cert-file", &cert),
        ("--key-file", &key),
        ("--trusted-ca-file", &ca),
        ("--client-cert-auth", ""),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value.to_owned()])
    .filter(|word| !word.is_empty())
    .collect()
}

fn settings(url: &str, pki: &Path, admin_key: &str) -> String {
    let pki = pki.display();
    format!(
        "# Made by `make demo`: a control plane that keeps its documents in etcd, over mutual TLS.
deployment:
  role_traditional:
    config_provider: etcd
  etcd:
    host: [\"{url}\"]
    startup_retry: 1
    tls:
      cert: ${{{{ETCD_CLIENT:={pki}/etcd-client}}}}.crt
      key: ${{{{ETCD_CLIENT:={pki}/etcd-client}}}}.key
  admin:
    admin_key: [{{name: admin, key: {admin_key}, role: admin}}]
    admin_listen: {{ip: 127.0.0.1, port: 0}}
    https_admin: true
    admin_api_mtls:
      admin_ssl_cert: {pki}/admin-server.crt
      admin_ssl_cert_key: {pki}/admin-server.key
      admin_ssl_ca_cert: {pki}/admin-ca.crt
apisix:
  ssl:
    ssl_trusted_certificate: {pki}/etcd-ca.crt
countersign:
  keyring_file: {pki}/keyring
  push:
    listen: 127.0.0.1:0
    cert: {pki}/push-server.crt
    key: {pki}/push-server.key
    ca: {pki}/push-ca.crt
"
    )
}

/// Starts a control plane with these settings, and gives it with the port of its Admin API.
pub async fn control_plane(stage: &Stage, settings: &str) -> anyhow::Result<(Process, u16)> {
    let log = Log::file(stage.path("controlplane-etcd.log").into());
    let config = fs::canonicalize(settings)?;
    let process = Launch::new("controlplane", &config).try_start(&log).await.map_err(anyhow::Error::msg)?;
    let address = process.ready()["admin"].as_str().and_then(|text| text.parse().ok());
    let address: std::net::SocketAddr = address.context("the control plane says where its Admin API is")?;
    Ok((process, address.port()))
}
