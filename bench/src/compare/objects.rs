//! Many ssl objects: how long until a data plane that starts serves them all, and until one changed certificate is served.
//!
//! Every object has a certificate, a key and a name of its own. What is asked, again and again, is what a client
//! would see: which certificate a handshake shows for a name.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use serde_json::json;

use super::Options;
use super::figures::{Figures, Measure};
use super::workbench::Workbench;
use crate::peer::countersign::{Countersign, site_document};
use crate::peer::credentials::write_pair;
use crate::peer::nginx::Nginx;
use crate::peer::{Peer, UNROUTED};
use crate::process;

/// Connections to the Admin API while it is filled.
const WRITERS: u32 = 8;
/// Names that are checked once the last one is served.
const CHECKED: u32 = 50;
/// nginx reads everything again for each: many seconds, and two show it.
const NGINX_CHANGES: u32 = 2;
/// Until a name must be served with the expected certificate.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both peers in turn; nothing when `--objects 0`.
///
/// # Errors
/// When a peer does not serve what it was given.
pub fn run(options: &Options, bench: &mut Workbench, figures: &mut Figures) -> anyhow::Result<()> {
    if options.objects == 0 {
        return Ok(());
    }
    if let Some(program) = bench.nginx_program.clone() {
        nginx(options, bench, &program, figures).context("many certificates with nginx")?;
    }
    if let Some(mut pair) = bench.countersign.take() {
        let done = countersign(options, bench, &mut pair, figures);
        bench.countersign = Some(pair);
        done.context("many ssl objects with Countersign")?;
    }
    Ok(())
}

fn name(index: u32) -> String {
    format!("s{index}.many.test")
}

fn countersign(
    options: &Options,
    bench: &Workbench,
    pair: &mut Countersign,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let last = name(options.objects - 1);
    // Memory with one object, from a fresh start like the reading it is compared with.
    pair.start_data(true)?;
    await_any(bench, pair.address(), crate::peer::HOST)?;
    let empty = process::resident_bytes(&[pair.pid()])?;
    pair.stop_data();
    let revision = bench.runtime.block_on(fill(options, bench, pair))?;

    for round in 1..=options.idle_rounds {
        let started = pair.start_data(true)?;
        let served = await_any(bench, pair.address(), &last)?;
        check_some(bench, pair.address(), options.objects)?;
        bench.runtime.block_on(async { pair.admin()?.wait_acknowledged(revision).await })?;
        let report = json!({"objects": options.objects, "from": "empty"});
        figures.add(Measure::ObjectsPushed, "countersign", round, millis(served - started), report);

        let resident = process::resident_bytes(&[pair.pid()])?;
        let each = resident.saturating_sub(empty) as f64 / f64::from(options.objects) / 1024.0;
        let report = json!({"objects": options.objects, "resident": resident, "resident_with_one": empty});
        figures.add(Measure::ObjectMemory, "countersign", round, each, report);
    }
    for round in 1..=options.idle_rounds {
        let started = pair.start_data(false)?;
        let served = await_any(bench, pair.address(), &last)?;
        check_some(bench, pair.address(), options.objects)?;
        let report = json!({"objects": options.objects, "from": "last good snapshot"});
        figures.add(Measure::ObjectsStart, "countersign", round, millis(served - started), report);
    }
    bench.runtime.block_on(async { pair.admin()?.wait_acknowledged(revision).await })?;
    change_some(options, bench, pair, figures)
}

/// PUTs all objects over several connections and gives the last revision.
async fn fill(options: &Options, bench: &Workbench, pair: &Countersign) -> anyhow::Result<u64> {
    let started = Instant::now();
    let one = async |writer: u32| {
        let mut admin = pair.admin()?;
        let mut revision = 0;
        for index in (writer..options.objects).step_by(WRITERS as usize) {
            let document = site_document(&bench.credentials, &name(index))?;
            revision = admin.put(&format!("ssls/many-{index}"), &document).await?;
            if index % 2000 == 0 {
                eprintln!("compare: {index} of {} ssl objects written", options.objects);
            }
        }
        Ok::<_, crate::peer::PeerError>(revision)
    };
    let revisions = try_join_all((0..WRITERS).map(one)).await?;
    eprintln!("compare: {} ssl objects written in {:.1} s", options.objects, started.elapsed().as_secs_f64());
    Ok(revisions.into_iter().max().unwrap_or(0))
}

fn change_some(
    options: &Options,
    bench: &Workbench,
    pair: &Countersign,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut admin = pair.admin()?;
    for round in 1..=options.changes {
        let index = spread_out(round, options.objects);
        let minted = bench.credentials.site(&name(index))?;
        let document = json!({
            "cert": minted.chain_pem,
            "key": minted.key_pem.as_str(),
            "snis": [name(index)],
            "client": {"ca": bench.credentials.client_ca_pem(), "depth": 1},
        });
        let sent = Instant::now();
        bench.runtime.block_on(admin.put(&format!("ssls/many-{index}"), &document))?;
        let answered = Instant::now();
        let served = await_leaf(bench, pair.address(), &name(index), Some(minted.certificate.der()))?;
        let report = json!({"name": name(index), "put_ms": millis(answered - sent)});
        figures.add(Measure::Change, "countersign", round, millis(served - answered), report);
    }
    Ok(())
}

fn nginx(
    options: &Options,
    bench: &Workbench,
    program: &std::path::Path,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let folder = bench.folder_for("nginx-many")?;
    bench.credentials.write_site(&folder)?;
    let names: Vec<String> = (0..options.objects).map(name).collect();
    for name in &names {
        write_pair(&folder, name, &bench.credentials.site(name)?)?;
    }
    let start = || Nginx::start(program, &folder, bench.cores.server, bench.upstream.address, &names);
    let last = name(options.objects - 1);
    let mut running = start()?;
    for round in 1..=options.idle_rounds {
        if round > 1 {
            running.restart()?;
        }
        let served = await_any(bench, running.address(), &last)?;
        let report = json!({"objects": options.objects});
        figures.add(Measure::ObjectsStart, "nginx", round, millis(served - running.started()), report);
    }
    check_some(bench, running.address(), options.objects)?;
    for round in 1..=options.changes.min(NGINX_CHANGES) {
        let changed = name(spread_out(round, options.objects));
        let minted = bench.credentials.site(&changed)?;
        write_pair(&folder, &changed, &minted)?;
        let signalled = Instant::now();
        running.reload()?;
        let served = await_leaf(bench, running.address(), &changed, Some(minted.certificate.der()))?;
        figures.add(Measure::Change, "nginx", round, millis(served - signalled), json!({"name": changed}));
    }
    Ok(())
}

/// Changes do not hit neighbours: each is somewhere else among the objects.
fn spread_out(round: u32, objects: u32) -> u32 {
    (u64::from(round).wrapping_mul(2_654_435_761) % u64::from(objects)) as u32
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Until a handshake for a name succeeds; gives the moment it did.
fn await_any(bench: &Workbench, address: SocketAddr, name: &str) -> anyhow::Result<Instant> {
    await_leaf(bench, address, name, None)
}

/// Until a handshake for a name shows this leaf; gives the moment it did.
fn await_leaf(
    bench: &Workbench,
    address: SocketAddr,
    name: &str,
    leaf: Option<&[u8]>,
) -> anyhow::Result<Instant> {
    let dialler = bench.dialler(address, name)?;
    let asking = async {
        let until = Instant::now() + PATIENCE;
        loop {
            let stream = tokio::time::timeout(PATIENCE, dialler.dial()).await.context("a handshake hangs")?;
            let failure = match stream {
                Ok(stream) => {
                    let shown =
                        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
                    if leaf.is_none_or(|leaf| shown.as_deref() == Some(leaf)) {
                        return Ok(Instant::now());
                    }
                    "it shows the former certificate".to_owned()
                }
                Err(failure) => failure.to_string(),
            };
            if Instant::now() > until {
                bail!("{name} is not served as it should be after {PATIENCE:?}: {failure}");
            }
            // The machine is small: asking without a pause would slow what is waited for.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    bench.runtime.block_on(asking)
}

/// Once the last is served all must be: each with its own certificate, and a request must get its answer.
fn check_some(bench: &Workbench, address: SocketAddr, objects: u32) -> anyhow::Result<()> {
    let mut seen = HashMap::new();
    for round in 1..=CHECKED.min(objects) {
        let name = name(spread_out(round, objects));
        let dialler = bench.dialler(address, &name)?;
        let request = crate::load::http1::get(&name, UNROUTED);
        let asking = async {
            let mut stream = dialler.dial().await?;
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
            let answer = crate::load::http1::exchange(&mut stream, &request, &mut Vec::new()).await?;
            Ok::<_, crate::failure::Failure>((shown, answer.status))
        };
        let asked = async { tokio::time::timeout(PATIENCE, asking).await };
        let (shown, status) = bench.runtime.block_on(asked).context("a handshake hangs")??;
        if status != 404 {
            bail!("{name} answered {status} instead of 404");
        }
        if let Some(other) = seen.insert(shown, name.clone()).filter(|other| *other != name) {
            bail!("{name} and {other} show the same certificate");
        }
    }
    Ok(())
}
