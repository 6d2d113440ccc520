//! The same connection code on four runtimes: monoio on io_uring and on epoll, tokio-uring, and
//! tokio.
//!
//! Each serves from a process of its own with one thread on one core. The load generator runs on
//! the other, and reads the server's CPU time for a full mutual TLS connection with one request,
//! and for a request on a kept connection. Runtimes alternate in each round, so that a slow minute
//! is slow for all. Criterion cannot measure another process's CPU time; `--rounds N` and
//! `--seconds N` make a run longer. `docs/decisions/0022-runtimes.md` has the conclusion.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up stops, like a test")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use compare::identity::{ClientIdentity, Group, Version};
use compare::load::{self, Amount, Mode, Plan};
use compare::target::Target;
use e2e::resources;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use serde_json::{Value, json};

#[path = "runtimes/connection.rs"]
mod connection;
#[path = "runtimes/hosts.rs"]
mod hosts;

use hosts::Host;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HOST: &str = "bench.test";
/// The server's core, and the load's.
const CORES: (usize, usize) = (0, 1);
/// The measured modes, and their connections at a time.
const MODES: [(&str, Mode, usize); 2] =
    [("full connection", Mode::New, 8), ("kept request", Mode::KeepAlive, 32)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let after = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option)?;
        arguments.get(at + 1).map(String::as_str)
    };
    if let Some(name) = after("--serve") {
        let host = Host::ALL.into_iter().find(|host| host.name() == name).expect("a runtime's name");
        hosts::serve(host);
        return ExitCode::SUCCESS;
    }
    let asked_for = |argument: &String| argument.starts_with('-') || "runtimes".contains(argument.as_str());
    let number = |option, usual: f64| after(option).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (rounds, seconds) = (number("--rounds", 3.0), number("--seconds", 1.0));
    let options = ["--rounds", "--seconds"].into_iter().filter_map(after).collect::<Vec<_>>();
    if !arguments.iter().filter(|argument| !options.contains(&argument.as_str())).all(asked_for) {
        return ExitCode::SUCCESS;
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("runtimes: NOT MEASURED: one core is the server's, and there is no other");
        return ExitCode::SUCCESS;
    }
    // As criterion does: without `cargo bench`'s own argument it only checks that everything works.
    let smoke = !arguments.iter().any(|argument| argument == "--bench");
    if smoke {
        measure(1, 0.05)
    } else {
        measure(rounds as usize, seconds)
    }
    ExitCode::SUCCESS
}

fn measure(rounds: usize, seconds: f64) {
    let setting = Setting::generate();
    let mut figures: Vec<(Host, [Vec<f64>; MODES.len()])> =
        Host::ALL.into_iter().map(|host| (host, Default::default())).collect();
    for round in 1..=rounds {
        for (host, figures) in &mut figures {
            println!("runtimes: round {round} of {rounds}: {}", host.name());
            match setting.one(*host, seconds) {
                Ok(found) => figures.iter_mut().zip(found).for_each(|(all, one)| all.push(one)),
                Err(problem) => println!("runtimes: {}: NOT MEASURED: {problem}", host.name()),
            }
        }
    }
    println!("server CPU, microseconds: median (smallest-largest) of {rounds} rounds, ratio to the first");
    for (at, (mode, ..)) in MODES.into_iter().enumerate() {
        let first = figures.first().and_then(|(_, figures)| median(figures.get(at)?));
        for (host, figures) in &figures {
            let Some(found) = figures.get(at) else { continue };
            let Some(middle) = median(found) else { continue };
            let (least, most) =
                found.iter().fold((f64::MAX, 0.0_f64), |(a, b), &one| (a.min(one), b.max(one)));
            let ratio = first.map_or_else(String::new, |first| format!("{:.2}", middle / first));
            println!("{mode:<16} {:<16} {middle:>7.1} ({least:.1}-{most:.1})  {ratio}", host.name());
        }
    }
}

fn median(found: &[f64]) -> Option<f64> {
    let mut found = found.to_vec();
    found.sort_by(f64::total_cmp);
    found.get(found.len() / 2).copied()
}

/// The site of all servers, and its client.
struct Setting {
    ssl: Value,
    client: Arc<ClientIdentity>,
}

impl Setting {
    fn generate() -> Self {
        let root = Authority::root(&AuthoritySpec::new("Bench Root")).expect("a root");
        let issuer = root.intermediate(&AuthoritySpec::new("Bench Intermediate")).expect("an intermediate");
        let site = issuer.issue(&LeafSpec::server(HOST)).expect("a leaf");
        let client = issuer.issue(&LeafSpec::client("client")).expect("a leaf");
        let ca = root.certificate_pem();
        let pair = (client.chain_pem.as_bytes(), client.key_pem.as_bytes());
        let identity = ClientIdentity::from_pem(ca.as_bytes(), Some(pair)).expect("the client's identity");
        let key = site.key_pem.as_str();
        let demands = json!({"ca": ca, "depth": 1});
        let ssl = json!({"cert": site.chain_pem, "key": key, "snis": [HOST], "client": demands});
        Self { ssl, client: Arc::new(identity) }
    }

    /// Starts a server; gives its CPU microseconds in each mode.
    fn one(&self, host: Host, seconds: f64) -> Result<[f64; MODES.len()], String> {
        let server = Server::start(host, &self.ssl)?;
        let mut found = [0.0; MODES.len()];
        for (found, (_, mode, connections)) in found.iter_mut().zip(MODES) {
            let report =
                load::run(self.plan(&server, mode, connections, seconds)).map_err(|e| e.to_string())?;
            let used = report.server.as_ref().ok_or("the server's CPU was not read")?;
            *found = used.cpu_ns_per_operation as f64 / 1e3;
        }
        Ok(found)
    }

    fn plan(&self, server: &Server, mode: Mode, connections: usize, seconds: f64) -> Plan {
        let url = format!("https://127.0.0.1:{}/", server.port);
        Plan {
            target: Target::parse(&url, Some(HOST), false).expect("a target"),
            identity: Arc::clone(&self.client),
            version: Version::V13,
            group: Group::X25519,
            mode,
            connections,
            every: None,
            amount: Amount::Time(Duration::from_secs_f64(seconds)),
            warmup: Amount::Time(Duration::from_secs_f64(seconds / 4.0)),
            timeout: Duration::from_secs(10),
            limit: Duration::from_secs(120),
            expect_status: 200,
            server: Some(server.child.id()),
            cpu: Some(CORES.1),
            progress: None,
        }
    }
}

/// This program again, as a server. It ends with its standard input, at the latest when this
/// process ends.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(host: Host, ssl: &Value) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(["--serve", host.name()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = resources::pinned(CORES.0, || command.spawn())
            .and_then(|spawned| spawned)
            .map_err(|error| error.to_string())?;
        let sent = child.stdin.as_mut().map(|input| writeln!(input, "{ssl}"));
        let mut line = String::new();
        let heard = child.stdout.as_mut().map(|output| BufReader::new(output).read_line(&mut line));
        match (sent, heard, line.trim().parse()) {
            (Some(Ok(())), Some(Ok(_)), Ok(port)) => Ok(Self { child, port }),
            _ => {
                let _already_gone = child.kill();
                let _reaped = child.wait();
                Err(format!("it did not start: {line:?}"))
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
