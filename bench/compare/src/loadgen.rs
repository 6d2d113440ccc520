//! The command line of `loadgen`: options become a plan for [`load`], its report goes to standard
//! output.
//!
//! Load on another machine, and a run without an end, need an explicit option.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::identity::{ClientIdentity, Group, Version};
use crate::load::idle::IdlePlan;
use crate::load::{self, Amount, Mode, Plan};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples, beside a running `make demo` (P=demo-run/pki):
  # Full mTLS handshakes for 10 s, 8 at a time, from core 0, with the server's CPU an operation:
  loadgen new https://127.0.0.1:9443/hello --sni app.example --cacert $P/site-ca.crt --cert $P/alice.crt --key $P/alice.key \\
      --cpu 0 --pid $(pidof dataplane)

  # 50,000 requests on 32 open connections, HTTP/1.1, as JSON:
  loadgen keepalive https://127.0.0.1:9443/hello --sni app.example --cacert $P/site-ca.crt --cert $P/alice.crt --key $P/alice.key \\
      --connections 32 --count 50000 --json

  # The same over HTTP/2, 10 requests at once on each of 4 connections:
  loadgen keepalive https://127.0.0.1:9443/hello --h2 --streams 10 --connections 4 ...

  # Memory of 2,000 idle connections:
  loadgen idle https://127.0.0.1:9443/hello --connections 2000 --pid $(pidof dataplane) ...

The server's CPU comes from /proc/PID/task/*/schedstat, its memory from /proc/PID/smaps_rollup; children count
with their parent. Exit status: 0 when there are figures (failures are among them), 1 when there are none,
2 for a bad command line.";

/// Load with client certificates, for a server on this machine.
#[derive(Parser, Debug)]
#[command(name = "loadgen", version, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// A new connection with a full mTLS handshake for every request.
    New(Load),
    /// A new connection for every request, resumed with the ticket of the one before.
    Resumed(Load),
    /// Requests on connections that stay open.
    Keepalive {
        #[command(flatten)]
        load: Load,
        /// HTTP/2 instead of HTTP/1.1.
        #[arg(long)]
        h2: bool,
        /// Requests at once on each HTTP/2 connection.
        #[arg(long, default_value_t = 1, requires = "h2", value_parser = clap::value_parser!(u16).range(1..=100))]
        streams: u16,
    },
    /// Unary gRPC calls of a method that echoes its message, over HTTP/2.
    Grpc {
        #[command(flatten)]
        load: Load,
        /// Calls at once on each connection.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
        streams: u16,
    },
    /// Messages over WebSockets that echo them.
    Websocket(Load),
    /// Opens connections, keeps them idle and reports the server's memory for each.
    Idle {
        #[command(flatten)]
        client: Client,
        /// Connections to open.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        connections: u32,
        /// Do not send a request before a connection becomes idle.
        #[arg(long)]
        handshake_only: bool,
        /// Seconds of idleness before memory is read.
        #[arg(long, default_value_t = 1.0, value_parser = seconds)]
        hold: f64,
        /// The server's process.
        #[arg(long)]
        pid: u32,
    },
}

#[derive(Args, Debug)]
struct Client {
    /// https://HOST:PORT/PATH on this machine.
    url: String,
    /// Name for SNI, Host and the check of the server's certificate [default: the URL's host].
    #[arg(long)]
    sni: Option<String>,
    /// PEM file with the CA that the server's certificate must come from.
    #[arg(long)]
    cacert: PathBuf,
    /// PEM file with the client's certificate, followed by its intermediates.
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// PEM file with the client's private key.
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    /// TLS version to offer.
    #[arg(long = "tls", value_enum, default_value = "1.3")]
    version: Version,
    /// Key-exchange group to offer.
    #[arg(long, value_enum, default_value = "x25519")]
    group: Group,
    /// Expected status of every response.
    #[arg(long, default_value_t = 200)]
    expect_status: u16,
    /// Limit of a single operation, in seconds.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,
    /// Hard limit of the whole run, in seconds.
    #[arg(long, default_value_t = 120.0, value_parser = seconds)]
    limit: f64,
    /// Core to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Dial an address that is not loopback; use it for a machine of your own only.
    #[arg(long)]
    allow_remote: bool,
}

#[derive(Args, Debug)]
struct Load {
    #[command(flatten)]
    client: Client,
    /// Connections at a time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Measure this many operations.
    #[arg(long, conflicts_with = "seconds")]
    count: Option<u64>,
    /// Measure this many seconds [default: 10].
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Seconds of load before the measured part.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    warmup: f64,
    /// The server's process: reports its CPU time an operation.
    #[arg(long)]
    pid: Option<u32>,
}

/// Runs the command line.
pub fn run(cli: Cli) -> ExitCode {
    crate::exit_code("loadgen", measure(cli))
}

fn measure(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::New(load) => run_load(load, Mode::New),
        Command::Resumed(load) => run_load(load, Mode::Resumed),
        Command::Keepalive { load, h2: false, .. } => run_load(load, Mode::KeepAlive),
        Command::Keepalive { load, h2: true, streams } => {
            run_load(load, Mode::KeepAliveH2 { streams: usize::from(streams) })
        }
        Command::Grpc { load, streams } => run_load(load, Mode::Grpc { streams: usize::from(streams) }),
        Command::Websocket(load) => run_load(load, Mode::WebSocket),
        Command::Idle { client, connections, handshake_only, hold, pid } => {
            let json = client.json;
            let report = load::idle::run(IdlePlan {
                target: client.target()?,
                identity: client.identity()?,
                version: client.version,
                group: client.group,
                connections: usize::try_from(connections)?,
                request: (!handshake_only).then_some(client.expect_status),
                hold: Duration::from_secs_f64(hold),
                timeout: Duration::from_secs_f64(client.timeout),
                limit: Duration::from_secs_f64(client.limit),
                server: pid,
                cpu: client.cpu,
            })?;
            print(&report, json)
        }
    }
}

fn run_load(load: Load, mode: Mode) -> anyhow::Result<()> {
    let client = &load.client;
    let amount = match (load.count, load.seconds) {
        (Some(count), _) => Amount::Count(count),
        (None, seconds) => Amount::Time(Duration::from_secs_f64(seconds.unwrap_or(10.0))),
    };
    let connections = usize::try_from(load.connections)?;
    e2e::resources::allow_descriptors(u64::from(load.connections) + 256)?;
    let report = load::run(Plan {
        target: client.target()?,
        identity: client.identity()?,
        version: client.version,
        group: client.group,
        mode,
        connections,
        every: None,
        amount,
        warmup: Amount::Time(Duration::from_secs_f64(load.warmup)),
        timeout: Duration::from_secs_f64(client.timeout),
        limit: Duration::from_secs_f64(client.limit),
        expect_status: client.expect_status,
        server: load.pid,
        cpu: client.cpu,
        progress: Some(mode.as_str().to_owned()),
    })?;
    print(&report, client.json)
}

fn print<R: serde::Serialize + std::fmt::Display>(report: &R, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

impl Client {
    fn target(&self) -> anyhow::Result<Target> {
        Ok(Target::parse(&self.url, self.sni.as_deref(), self.allow_remote)?)
    }

    fn identity(&self) -> anyhow::Result<Arc<ClientIdentity>> {
        let pair = self.cert.as_deref().zip(self.key.as_deref());
        Ok(Arc::new(ClientIdentity::from_files(&self.cacert, pair)?))
    }
}

/// A finite number of seconds, at most a day.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds between 0 and 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
