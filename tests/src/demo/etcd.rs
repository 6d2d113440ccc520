//! The demo's etcd, with mutual TLS, and a control plane on it.
//!
//! Both run during their scenario only, beside the gateway with the embedded store. Without etcd on
//! this machine the scenario is skipped.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::process::Command;

use super::environment::Environment;
use crate::process::{Launch, Log, Process};

/// The programs of the scenario.
const PROGRAMS: [&str; 2] = ["etcd", "etcdctl"];

/// The first program that this machine does not have.
pub(super) fn lacking() -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    PROGRAMS.into_iter().find(|name| !there(name))
}

pub(super) struct DemoEtcd {
    url: String,
    _process: Process,
}

impl DemoEtcd {
    /// Starts it, and waits until it serves.
    pub(super) async fn start(demo: &Environment) -> anyhow::Result<Self> {
        let url = format!("https://127.0.0.1:{}", demo.etcd_port());
        let log = Log::file(demo.path("etcd.log").into());
        let mut command = Command::new("etcd");
        command
            .args(arguments(demo, &url))
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

    /// The command that started it, for pasting.
    pub(super) fn command(&self, demo: &Environment) -> String {
        let lines: Vec<_> = arguments(demo, &self.url).chunks(2).map(|pair| pair.join(" ")).collect();
        format!("etcd {}", lines.join(" \\\n  "))
    }

    /// A curl command for its health, with these options.
    pub(super) fn health(&self, demo: &Environment, options: &str) -> String {
        let between = if options.is_empty() { String::new() } else { format!(" {options}") };
        format!("curl --cacert {}{between} {}/health", demo.file("etcd-ca.crt"), self.url)
    }

    pub(super) fn etcdctl(&self, demo: &Environment, command: &str) -> String {
        format!(
            "etcdctl --endpoints {} --cacert {} \\\n  --cert {} --key {} {command}",
            self.url,
            demo.file("etcd-ca.crt"),
            demo.file("etcd-client.crt"),
            demo.file("etcd-client.key"),
        )
    }

    /// Writes the settings of a control plane on it; gives the path.
    pub(super) fn settings(&self, demo: &Environment) -> anyhow::Result<String> {
        let path = demo.path("etcd.yaml");
        let pki = fs::canonicalize(demo.file(""))?;
        fs::write(&path, settings(&self.url, &pki, demo.admin_key()))
            .with_context(|| format!("cannot write {path}"))?;
        Ok(path)
    }
}

/// etcd's arguments, two words a line.
fn arguments(demo: &Environment, url: &str) -> Vec<String> {
    let [data, cert, key, ca] = [
        demo.path("etcd"),
        demo.file("etcd-server.crt"),
        demo.file("etcd-server.key"),
        demo.file("etcd-client-ca.crt"),
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

/// Starts a control plane with these settings; gives it with the port of its Admin API.
pub(super) async fn control_plane(demo: &Environment, settings: &str) -> anyhow::Result<(Process, u16)> {
    let log = Log::file(demo.path("controlplane-etcd.log").into());
    let config = fs::canonicalize(settings)?;
    let process = Launch::new("controlplane", &config).try_start(&log).await.map_err(anyhow::Error::msg)?;
    let address = process.ready()["admin"].as_str().and_then(|text| text.parse().ok());
    let address: std::net::SocketAddr = address.context("the control plane says where its Admin API is")?;
    Ok((process, address.port()))
}
