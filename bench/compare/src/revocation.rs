//! The cost of a revocation among thousands of live connections, each of a client of its own.
//!
//! Every change of the list revalidates all connections. A prober makes requests back to back on
//! one connection: each round compares the 99th percentile of the second after a change with that
//! of the second before it.
//!
//! Invariant: a round counts only if the revoked connection ended and every other one is still
//! open.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use e2e::credentials::Credential;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::client::TlsStream;

use crate::identity::{ClientIdentity, Group, Version};
use crate::load::{Dialler, http1, latencies, nanos};
use crate::peer::countersign::{Countersign, Programs, site_document};
use crate::peer::credentials::Credentials;
use crate::peer::{Cores, HOST, PROXIED};
use crate::target::Target;
use e2e::resources;
use e2e::upstream::FixedUpstream;

/// Handshakes in flight while the connections are opened.
const AT_ONCE: usize = 32;
/// The length of one probe.
const WINDOW: Duration = Duration::from_secs(1);
/// Limit until the revoked connection ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures the revocation of one client among many that are connected.
///
/// Starts a control plane and a data plane with one worker, opens the connections (each with a
/// certificate of its own), and in each round adds one client to the revocation list. Prints one
/// line a round, and the medians.
#[derive(Parser, Debug)]
#[command(
    name = "revocation",
    version,
    after_long_help = "Example:\n  revocation --connections 10000 --rounds 7"
)]
pub struct RevocationOptions {
    /// Live connections, each of another client.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    connections: u32,
    /// Clients revoked, one after the other.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    #[command(flatten)]
    cores: Cores,
    /// Folder of controlplane and dataplane [default: that of this program].
    #[arg(long)]
    bin_dir: Option<std::path::PathBuf>,
}

pub fn run(options: &RevocationOptions) -> ExitCode {
    crate::exit_code("revocation", measure(options))
}

/// One client's connection.
struct Connected {
    stream: TlsStream<TcpStream>,
    certificate: Credential,
}

/// What one round found.
struct Round {
    quiet: Duration,
    changed: Duration,
    ended: Duration,
}

fn measure(options: &RevocationOptions) -> anyhow::Result<()> {
    ensure!(
        options.rounds < options.connections,
        "--rounds must be below --connections: each takes one away"
    );
    resources::allow_descriptors(u64::from(options.connections) + 1024)?;
    let cores = options.cores;
    let programs = Programs::find(options.bin_dir.as_deref())?;
    let credentials = Credentials::generate();
    let upstream = FixedUpstream::start(cores.load, None);
    resources::pin_current_thread(cores.load)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let pair = Countersign::start(&programs, cores, &credentials).await?;
        pair.configure(&credentials, upstream.address()).await?;
        let setup = Setup { credentials, pair };
        setup.change(&[]).await?;
        setup.rounds(options).await
    })
}

struct Setup {
    credentials: Credentials,
    pair: Countersign,
}

impl Setup {
    async fn rounds(&self, options: &RevocationOptions) -> anyhow::Result<()> {
        let mut open = self.open(options.connections).await?;
        let mut prober = Prober::connect(self).await?;
        let mut rounds = Vec::new();
        let mut revoked = Vec::new();
        println!(
            "{:>5} {:>14} {:>14} {:>8} {:>10}",
            "round", "quiet p99", "changed p99", "ratio", "ended in"
        );
        for number in 1..=options.rounds {
            let Connected { stream, certificate } = open.pop().context("no connection is left")?;
            revoked.push(certificate);
            let round = self.round(&mut prober, stream, &revoked).await?;
            let ratio = round.changed.as_secs_f64() / round.quiet.as_secs_f64();
            println!(
                "{number:>5} {:>11} us {:>11} us {ratio:>8.2} {:>7} ms",
                round.quiet.as_micros(),
                round.changed.as_micros(),
                round.ended.as_millis()
            );
            rounds.push((ratio, round));
        }
        for connected in &mut open {
            ensure!(is_open(&mut connected.stream), "a connection ended whose client was not revoked");
        }
        let middle = |of: &dyn Fn(&(f64, Round)) -> f64| median(rounds.iter().map(of).collect());
        println!(
            "median of {} rounds, {} connections still open: p99 of others {:.2} of a quiet second, connection ended in {:.0} ms",
            rounds.len(),
            open.len(),
            middle(&|(ratio, _)| *ratio),
            middle(&|(_, round)| round.ended.as_secs_f64() * 1000.0),
        );
        Ok(())
    }

    async fn round(
        &self,
        prober: &mut Prober,
        mut victim: TlsStream<TcpStream>,
        revoked: &[Credential],
    ) -> anyhow::Result<Round> {
        let quiet = prober.window().await?;
        let ending = tokio::task::spawn_local(async move {
            let ended = tokio::time::timeout(PATIENCE, victim.read(&mut [0; 1])).await;
            (Instant::now(), ended)
        });
        let answered = self.put(revoked).await?;
        let changed = prober.window().await?;
        match ending.await? {
            (_, Err(_)) => bail!("the revoked client's connection is still open after {PATIENCE:?}"),
            (_, Ok(Ok(read))) if read > 0 => bail!("the revoked client was sent something"),
            (at, Ok(_)) => Ok(Round { quiet, changed, ended: at.saturating_duration_since(answered) }),
        }
    }

    /// Puts the site with lists that revoke these; the moment of the answer.
    async fn put(&self, revoked: &[Credential]) -> anyhow::Result<Instant> {
        let mut site: Value = site_document(&self.credentials, HOST);
        let client = site.get_mut("client").context("the site demands certificates")?;
        *client = json!({
            "ca": self.credentials.client_authorities_pem(),
            "depth": 1,
            "crl": self.credentials.client_crls_pem(&revoked.iter().collect::<Vec<_>>()),
        });
        let mut admin = self.pair.admin().await?;
        admin.put("ssls/bench", &site).await?;
        Ok(Instant::now())
    }

    async fn change(&self, revoked: &[Credential]) -> anyhow::Result<()> {
        self.put(revoked).await?;
        let mut admin = self.pair.admin().await?;
        let revision = admin.put("ssls/settled", &site_document(&self.credentials, "settled.test")).await?;
        self.pair.wait_acknowledged(revision).await;
        Ok(())
    }

    async fn open(&self, count: u32) -> anyhow::Result<Vec<Connected>> {
        let started = Instant::now();
        let address = self.pair.address();
        let mut open = Vec::new();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let certificate = self.credentials.another_client(&format!("client {number}"));
            let identity = self.credentials.identity(&certificate)?;
            tasks.spawn_local(async move {
                let stream = dialler(address, &identity)?.dial().await?;
                Ok::<_, anyhow::Error>(Connected { stream, certificate })
            });
            while tasks.len() >= AT_ONCE {
                open.extend(tasks.join_next().await.transpose()?.transpose()?);
            }
            if number % 2000 == 1999 {
                eprintln!("revocation: {} of {count} connections open", number + 1);
            }
        }
        while let Some(done) = tasks.join_next().await {
            open.push(done??);
        }
        eprintln!("revocation: {count} connections opened in {:.1} s", started.elapsed().as_secs_f64());
        Ok(open)
    }
}

fn dialler(address: std::net::SocketAddr, identity: &ClientIdentity) -> anyhow::Result<Dialler> {
    let target = Target::parse(&format!("https://{address}{PROXIED}"), Some(HOST), false)?;
    let config = identity.client_config(Version::V13, Group::X25519, &[b"http/1.1"], false)?;
    Ok(Dialler::new(target, config))
}

/// Makes one request after the other on one connection.
struct Prober {
    stream: TlsStream<TcpStream>,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Prober {
    async fn connect(setup: &Setup) -> anyhow::Result<Self> {
        let stream = dialler(setup.pair.address(), setup.credentials.loader()?.as_ref())?.dial().await?;
        let mut prober = Self { stream, request: http1::get(HOST, PROXIED), buffer: Vec::new() };
        prober.window().await?;
        Ok(prober)
    }

    /// The 99th percentile of a window.
    async fn window(&mut self) -> anyhow::Result<Duration> {
        let (started, mut seen) = (Instant::now(), latencies());
        while started.elapsed() < WINDOW {
            let asked = Instant::now();
            let answer = http1::exchange(&mut self.stream, &self.request, &mut self.buffer).await?;
            ensure!(answer.status == 200, "the prober was answered {}", answer.status);
            seen.saturating_record(nanos(asked.elapsed()));
        }
        ensure!(!seen.is_empty(), "the prober made no request");
        Ok(Duration::from_nanos(seen.value_at_quantile(0.99)))
    }
}

/// Nothing to read and not at its end.
fn is_open(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut byte = [0];
    let mut buffer = tokio::io::ReadBuf::new(&mut byte);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let polled = tokio::io::AsyncRead::poll_read(std::pin::Pin::new(stream), &mut context, &mut buffer);
    polled.is_pending()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
