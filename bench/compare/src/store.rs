//! The stores through the Admin API: writes of ssls by one and by many writers, a page of a long
//! list, and a start from many objects; and writes on etcd, one by one and in batches, beside plain
//! puts of the same value.
//!
//! The end-to-end harness starts real programs and a real etcd. Invariant: a write counts when the
//! Admin API acknowledges it, and a start when the control plane is ready.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use e2e::admin::{Admin, AdminConnection};
use e2e::credentials::Authority;
use e2e::documents::site;
use e2e::etcd::{Authorities, Etcd};
use e2e::world::World;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::load::{latencies, nanos};

/// The writers of the second figure, and of the preparation.
const WRITERS: usize = 16;
/// Documents per batch of the preparation; certificates stay below a batch's 1.5 MiB.
const PER_BATCH: usize = 100;
const PAGE_SIZE: usize = 500;
const PAGES: usize = 100;

/// Measures the stores of the control plane through its Admin API.
///
/// Starts an etcd with client certificates, and the control planes beside this program: use release
/// builds.
#[derive(Parser, Debug)]
#[command(name = "store", version, after_long_help = "Example:\n  target/release/store --objects 100000")]
pub struct StoreOptions {
    /// Seconds of each figure of writes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Ssls in the list that is paged.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    ssls: u32,
    /// Objects at the start: these ssls, and routes.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    objects: u32,
}

pub fn run(options: &StoreOptions) -> ExitCode {
    crate::exit_code("store", measure(options))
}

fn measure(options: &StoreOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let seconds = Duration::from_secs(options.seconds.into());
        let sites = Arc::new(Sites::generate());
        let mut world = World::builder().nodes(&[]).start().await;
        for writers in [1, WRITERS] {
            let rate = puts(&world.admin(), &sites, writers, seconds).await?;
            println!("embedded, PUT of an ssl, {writers} writers: {rate:.0}/s");
        }
        fill(&world.admin(), &sites, options).await?;
        let (p50, most) = page(&world.admin(), options.ssls as usize).await?;
        println!("a page of {PAGE_SIZE} among {} ssls: p50 {p50:.2} ms, most {most:.2} ms", options.ssls);
        world.kill_control().await;
        let began = Instant::now();
        world.start_control().await;
        let took = began.elapsed().as_secs_f64();
        println!("start from {} objects until the control plane is ready: {took:.2} s", options.objects);
        drop(world);
        etcd(&sites, seconds).await
    })
}

/// Ssl documents. Each has its own certificate.
struct Sites(Vec<Value>);

impl Sites {
    fn generate() -> Self {
        let authority = Authority::root("Sites");
        let site = |number: usize| {
            let name = format!("site-{number}.test");
            site(&authority.server(&[&name]), &name)
        };
        Self((0..256).map(site).collect())
    }

    /// The same certificates serve more ssls, under other names.
    fn of(&self, number: usize) -> Value {
        let mut document = self.0.get(number % self.0.len()).cloned().unwrap_or_default();
        if let Some(members) = document.as_object_mut() {
            members.insert("snis".to_owned(), json!([format!("site-{number}.test")]));
        }
        document
    }
}

/// Acknowledged ssls per second, written in batches.
async fn batches(
    admin: &Admin,
    sites: &Arc<Sites>,
    writers: usize,
    lasting: Duration,
) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let (sites, admin) = (Arc::clone(sites), admin.clone());
        tasks.spawn(async move {
            let mut connection = admin.connect().await.map_err(anyhow::Error::msg)?;
            let numbers = writer * PER_BATCH..(writer + 1) * PER_BATCH;
            let operations: Vec<Value> = numbers.map(|number| object(&sites, number, usize::MAX)).collect();
            let batch = json!({"operations": operations});
            let mut written = 0_u32;
            while began.elapsed() < lasting {
                write(&mut connection, Method::POST, "batch", &batch).await?;
                written += PER_BATCH as u32;
            }
            anyhow::Ok(written)
        });
    }
    let mut total = 0;
    while let Some(written) = tasks.join_next().await {
        total += written??;
    }
    Ok(f64::from(total) / began.elapsed().as_secs_f64())
}

/// Acknowledged writes per second.
async fn puts(admin: &Admin, sites: &Arc<Sites>, writers: usize, lasting: Duration) -> anyhow::Result<f64> {
    let mut connections = Vec::new();
    for _ in 0..writers {
        connections.push(admin.connect().await.map_err(anyhow::Error::msg)?);
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (writer, mut connection) in connections.into_iter().enumerate() {
        let sites = Arc::clone(sites);
        tasks.spawn(async move {
            let mut written = 0_u32;
            while began.elapsed() < lasting {
                let path = format!("ssls/{writer}-{}", written % 64);
                let document = sites.of(writer * 64 + written as usize % 64);
                write(&mut connection, Method::PUT, &path, &document).await?;
                written += 1;
            }
            anyhow::Ok(written)
        });
    }
    let mut total = 0;
    while let Some(written) = tasks.join_next().await {
        total += written??;
    }
    Ok(f64::from(total) / began.elapsed().as_secs_f64())
}

async fn write(
    connection: &mut AdminConnection,
    method: Method,
    path: &str,
    document: &Value,
) -> anyhow::Result<()> {
    let answer = connection.call(method, path, Some(document)).await.map_err(anyhow::Error::msg)?;
    ensure!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.reply.text());
    Ok(())
}

/// Creates the ssls and routes, in batches.
async fn fill(admin: &Admin, sites: &Arc<Sites>, options: &StoreOptions) -> anyhow::Result<()> {
    let (ssls, objects) = (options.ssls as usize, options.objects as usize);
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (sites, admin) = (Arc::clone(sites), admin.clone());
        tasks.spawn(async move {
            let mut connection = admin.connect().await.map_err(anyhow::Error::msg)?;
            for first in (0..objects).step_by(PER_BATCH).skip(writer).step_by(WRITERS) {
                let numbers = first..objects.min(first + PER_BATCH);
                let operations: Vec<Value> = numbers.map(|number| object(&sites, number, ssls)).collect();
                write(&mut connection, Method::POST, "batch", &json!({"operations": operations})).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(filled) = tasks.join_next().await {
        filled??;
    }
    Ok(())
}

fn object(sites: &Sites, number: usize, ssls: usize) -> Value {
    let (path, body) = if number < ssls {
        (format!("ssls/{number:06}"), sites.of(number))
    } else {
        let upstream = json!({"nodes": {"127.0.0.1:1980": 1}});
        (format!("routes/{number:06}"), json!({"uri": format!("/{number}"), "upstream": upstream}))
    };
    json!({"method": "PUT", "path": format!("/apisix/admin/{path}"), "body": body})
}

/// Milliseconds of a page from all parts of the list: the median and the most.
async fn page(admin: &Admin, ssls: usize) -> anyhow::Result<(f64, f64)> {
    let mut connection = admin.connect().await.map_err(anyhow::Error::msg)?;
    let mut seen = latencies();
    for number in 0..PAGES {
        let page = number * 7 % (ssls / PAGE_SIZE) + 1;
        let path = format!("ssls?page={page}&page_size={PAGE_SIZE}");
        let began = Instant::now();
        let answer = connection.call(Method::GET, &path, None).await.map_err(anyhow::Error::msg)?;
        seen.saturating_record(nanos(began.elapsed()));
        let items = answer.body.get("list").and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(items == PAGE_SIZE, "{path}: {} with {items} items", answer.status);
    }
    Ok((seen.value_at_quantile(0.5) as f64 / 1e6, seen.max() as f64 / 1e6))
}

/// Writes through the control plane, and plain puts of a value of the same size by as many clients,
/// as `benchmark put` of etcd makes them.
async fn etcd(sites: &Arc<Sites>, lasting: Duration) -> anyhow::Result<()> {
    let etcd = Etcd::mutual(&Authorities::generate()).await;
    let world = World::builder().etcd(&etcd).nodes(&[]).start().await;
    for writers in [1, WRITERS] {
        let ours = puts(&world.admin(), sites, writers, lasting).await?;
        let batched = batches(&world.admin(), sites, writers, lasting).await?;
        let value = etcd.keys().await.get("/apisix/ssls/0-0").await.context("an ssl is in etcd")?.value;
        let plain = plain_puts(&etcd, &value, writers, lasting).await?;
        println!(
            "etcd, {} bytes, {writers} writers: {ours:.0}/s, in batches {batched:.0}/s; plain puts: {plain:.0}/s; {:.2} and {:.2} of them",
            value.len(),
            ours / plain,
            batched / plain
        );
    }
    Ok(())
}

async fn plain_puts(etcd: &Etcd, value: &[u8], writers: usize, lasting: Duration) -> anyhow::Result<f64> {
    let mut clients = Vec::new();
    for _ in 0..writers {
        clients.push(etcd.keys().await);
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (writer, mut keys) in clients.into_iter().enumerate() {
        let value = value.to_vec();
        tasks.spawn(async move {
            let mut written = 0_u32;
            while began.elapsed() < lasting {
                keys.put(&format!("/plain/{writer}-{}", written % 64), value.clone()).await;
                written += 1;
            }
            written
        });
    }
    let mut total = 0;
    while let Some(written) = tasks.join_next().await {
        total += written?;
    }
    Ok(f64::from(total) / began.elapsed().as_secs_f64())
}
