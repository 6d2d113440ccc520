//! With etcd as the store: the delay from a commit in etcd to its effect, and the duration of a
//! start from many ssls.
//!
//! The end-to-end harness starts real programs and a real etcd. The change goes straight into etcd,
//! past the Admin API, and the clock starts with etcd's response.
//!
//! Invariant: a change counts when a request is served by it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;
use e2e::credentials::Authority;
use e2e::documents::{route, site};
use e2e::etcd::{Authorities, Etcd};
use e2e::upstream::Upstream;
use e2e::world::World;
use hdrhistogram::Histogram;
use http::StatusCode;
use serde_json::{Value, json};

use crate::load::{latencies, nanos};

/// Limit until a change is served.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures the delay of a change from etcd to a data plane, and a start from many ssls in etcd.
///
/// Starts an etcd with client certificates, and the control plane and data plane beside this
/// program: use release builds.
#[derive(Parser, Debug)]
#[command(
    name = "etcd_store",
    version,
    after_long_help = "Example:\n  target/release/etcd_store --changes 1000 --ssls 10000"
)]
pub struct EtcdStoreOptions {
    /// Changes, one after the other.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    changes: u32,
    /// Ssl objects in etcd at the start, each with a certificate of its own.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    ssls: u32,
    /// Prints JSON instead of lines.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &EtcdStoreOptions) -> ExitCode {
    crate::exit_code("etcd_store", measure(options))
}

fn measure(options: &EtcdStoreOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let visible = changes(options.changes).await?;
        let start = start(options.ssls).await?;
        let at = |quantile| visible.value_at_quantile(quantile) as f64 / 1e6;
        let (p50, p99, most) = (at(0.5), at(0.99), visible.max() as f64 / 1e6);
        if options.json {
            let change = json!({"count": options.changes, "p50_ms": p50, "p99_ms": p99, "max_ms": most});
            let start = json!({"ssls": options.ssls, "seconds": start.as_secs_f64()});
            println!("{}", json!({"change_visible": change, "start_to_handshake": start}));
        } else {
            println!(
                "change visible after etcd's commit: p50 {p50:.2} ms, p99 {p99:.2} ms, most {most:.2} ms"
            );
            println!("start from {} ssls to the first handshake: {:.2} s", options.ssls, start.as_secs_f64());
        }
        Ok(())
    })
}

async fn changes(count: u32) -> anyhow::Result<Histogram<u64>> {
    let etcd = Etcd::mutual(&Authorities::generate()).await;
    let upstream = Upstream::plain("one").await;
    let world = World::builder().etcd(&etcd).start().await;
    world.apply(&[("routes/1", route("app.test", "/first", &[upstream.address()]))]).await;
    let mut keys = etcd.keys().await;
    let mut session = world.plain("app.test").await;
    let mut seen = latencies();
    for number in 0..count {
        let document = stored("1", route("app.test", &format!("/change-{number}"), &[upstream.address()]));
        keys.put("/apisix/routes/1", document.to_string()).await;
        let written = Instant::now();
        loop {
            let reply = session.get(&format!("/change-{number}")).await.map_err(anyhow::Error::msg)?;
            if reply.status == StatusCode::OK {
                break;
            }
            ensure!(written.elapsed() < PATIENCE, "change {number} is not served after {PATIENCE:?}");
        }
        seen.saturating_record(nanos(written.elapsed()));
        if number % 500 == 499 {
            eprintln!("etcd_store: {} of {count} changes", number + 1);
        }
    }
    Ok(seen)
}

/// The document as an Admin API stores it.
fn stored(id: &str, mut document: Value) -> Value {
    if let Some(document) = document.as_object_mut() {
        document.insert("id".to_owned(), id.into());
    }
    document
}

async fn start(ssls: u32) -> anyhow::Result<Duration> {
    let etcd = Etcd::mutual(&Authorities::generate()).await;
    let mut keys = etcd.keys().await;
    let authority = Authority::root("Sites");
    for number in 0..ssls {
        let name = format!("site-{number}.test");
        let document = stored(&number.to_string(), site(&authority.server(&[&name]), &name));
        keys.put(&format!("/apisix/ssls/{number}"), document.to_string()).await;
        if number % 2000 == 1999 {
            eprintln!("etcd_store: {} of {ssls} ssls written", number + 1);
        }
    }
    let began = Instant::now();
    let world = World::builder().etcd(&etcd).start().await;
    let roots = e2e::credentials::certificates(authority.certificate_pem());
    let last = format!("site-{}.test", ssls - 1);
    let client = e2e::client::HttpClient::new(world.https(), &last, roots);
    while client.handshake().await.is_err() {
        ensure!(began.elapsed() < PATIENCE * 6, "{last} is not served after {:?}", began.elapsed());
    }
    Ok(began.elapsed())
}
