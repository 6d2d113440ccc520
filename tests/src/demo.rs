//! The demo: makes a PKI, starts both planes and two upstreams, and runs the scenarios with the
//! system's curl.
//!
//! `controlplane pki` makes the certificates, `conf/config.yaml` is the configuration, and every
//! command is printed before it runs and can be pasted into another terminal.
//!
//! Invariant: a step that is printed as passed was checked, and nothing runs after the end.

mod environment;
mod etcd;
mod scenarios;
mod shell;

use std::fmt;
use std::path::Path;

use clap::Args;

use environment::Environment;
use shell::mark;

#[derive(Args, Clone, Debug)]
pub struct DemoPorts {
    /// The gateway's plain HTTP.
    #[arg(long = "http", default_value_t = 9080)]
    pub http: u16,
    /// The gateway's HTTPS.
    #[arg(long = "https", default_value_t = 9443)]
    pub https: u16,
    /// The Admin API.
    #[arg(long = "admin", default_value_t = 9180)]
    pub admin: u16,
    /// The push.
    #[arg(long = "push", default_value_t = 9280)]
    pub push: u16,
    /// The data plane's status and metrics.
    #[arg(long = "status", default_value_t = 7085)]
    pub status: u16,
    /// The plain upstream.
    #[arg(long = "upstream", default_value_t = 9001)]
    pub upstream: u16,
    /// The upstream that demands a client certificate.
    #[arg(long = "strict-upstream", default_value_t = 9002)]
    pub strict_upstream: u16,
    /// etcd.
    #[arg(long = "etcd", default_value_t = 2379)]
    pub etcd: u16,
}

impl DemoPorts {
    /// Each port with its make variable.
    fn named(&self) -> [(u16, &'static str); 8] {
        [
            (self.http, "HTTP_PORT"),
            (self.https, "HTTPS_PORT"),
            (self.admin, "ADMIN_PORT"),
            (self.push, "PUSH_PORT"),
            (self.status, "STATUS_PORT"),
            (self.upstream, "UPSTREAM_PORT"),
            (self.strict_upstream, "STRICT_UPSTREAM_PORT"),
            (self.etcd, "ETCD_PORT"),
        ]
    }
}

pub struct Demo;

impl Demo {
    /// Starts everything, runs the scenarios, and stays until Ctrl-C unless `check`. Gives the
    /// number of scenarios that failed or, with `check`, were skipped.
    ///
    /// # Errors
    /// A port in use, a program that is not built, or a folder that is not the demo's.
    pub async fn run(dir: &Path, ports: DemoPorts, check: bool) -> anyhow::Result<usize> {
        println!(
            "Countersign: a mutual-TLS gateway, on this machine. Certificates, store and logs are in {}/",
            dir.display()
        );
        let mut demo = Environment::start(dir, ports).await?;
        demo.print_overview();
        let shown = scenarios::run_all(&mut demo).await?;
        if !check {
            demo.print_suggestions(&shown);
            demo.until_interrupted().await?;
        }
        demo.stop().await;
        if check {
            println!("{shown}");
            return Ok(shown.failed + shown.skipped);
        }
        Ok(shown.failed)
    }
}

/// The results of the scenarios.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    /// Skipped for want of a program.
    skipped: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} scenarios passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} NOT SHOWN (see above)", self.skipped)?;
        }
        Ok(())
    }
}

impl Tally {
    fn count(&mut self, result: anyhow::Result<bool>) {
        let good = result.unwrap_or_else(|problem| {
            println!("   {} {problem:#}", mark(false));
            false
        });
        if good {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }
}
