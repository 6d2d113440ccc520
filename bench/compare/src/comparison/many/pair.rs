//! Countersign with many certificates: written through the Admin API, pushed to a data plane that
//! is restarted.

use std::time::Instant;

use futures_util::future::try_join_all;
use serde_json::json;

use super::others::{self, RequestedChange, leaf};
use super::{await_any, await_leaf, check_some, millis, name, spread_out};
use crate::comparison::Options;
use crate::comparison::figures::Figures;
use crate::comparison::measure::Measure;
use crate::comparison::workbench::Workbench;
use crate::peer::countersign::{Admin, Countersign, Programs, document, site_document};
use crate::peer::{HOST, Kind};
use e2e::resources;

const OURS: Kind = Kind::Countersign;
/// Connections to the Admin API while it is filled.
const WRITERS: u32 = 8;

/// Measures a pair of its own.
///
/// # Errors
/// When it does not serve what it was given.
pub(super) fn measure(
    options: &Options,
    bench: &Workbench,
    programs: &Programs,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let starting = Countersign::start(programs, bench.cores, &bench.credentials);
    let mut pair = bench.runtime.block_on(starting)?;
    bench.runtime.block_on(pair.configure(&bench.credentials, bench.plain()))?;
    let last = name(options.objects - 1);
    // The memory with few names, after a fresh start like the reading it is compared with.
    restart(bench, &mut pair, true)?;
    await_any(bench, pair.address(), HOST)?;
    let empty = resources::resident_bytes(&[pair.pid()])?;
    let revision = bench.runtime.block_on(fill(options, bench, &pair))?;

    for round in 1..=options.idle_rounds {
        let started = restart(bench, &mut pair, true)?;
        let served = await_any(bench, pair.address(), &last)?;
        check_some(bench, pair.address(), options.objects)?;
        bench.runtime.block_on(pair.wait_acknowledged(revision));
        let report = json!({"objects": options.objects, "from": "empty"});
        figures.add(Measure::ManyPushed, OURS, round, millis(served - started), report);

        let resident = resources::resident_bytes(&[pair.pid()])?;
        let each = resident.saturating_sub(empty) as f64 / f64::from(options.objects) / 1024.0;
        let report = json!({"objects": options.objects, "resident": resident, "resident_without": empty});
        figures.add(Measure::ManyMemory, OURS, round, each, report);
    }
    for round in 1..=options.idle_rounds {
        let started = restart(bench, &mut pair, false)?;
        let served = await_any(bench, pair.address(), &last)?;
        check_some(bench, pair.address(), options.objects)?;
        let report = json!({"objects": options.objects, "from": "last good snapshot"});
        figures.add(Measure::ManyStart, OURS, round, millis(served - started), report);
    }
    bench.runtime.block_on(pair.wait_acknowledged(revision));
    change_some(options, bench, &pair, figures)
}

/// Stops the data plane, and starts it with or without its last-good file.
fn restart(bench: &Workbench, pair: &mut Countersign, forget: bool) -> anyhow::Result<Instant> {
    Ok(bench.runtime.block_on(async {
        pair.stop_data().await;
        pair.start_data(forget).await
    })?)
}

/// PUTs all objects over several connections; gives the last revision.
async fn fill(options: &Options, bench: &Workbench, pair: &Countersign) -> anyhow::Result<u64> {
    let started = Instant::now();
    let one = async |writer: u32| {
        let mut admin = pair.admin().await?;
        let mut revision = 0;
        for index in (writer..options.objects).step_by(WRITERS as usize) {
            let document = site_document(&bench.credentials, &name(index));
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
    let mut admin = bench.runtime.block_on(pair.admin())?;
    for round in 1..=options.changes {
        let (started, RequestedChange { name, leaf }) = ask(options, bench, &mut admin, round)?;
        let answered = Instant::now();
        let served = await_leaf(bench, pair.address(), &name, Some(&leaf))?;
        let report = json!({"put_ms": millis(answered - started)});
        figures.add(Measure::Change, OURS, round, millis(served - started), &report);
        figures.add(Measure::ChangeServed, OURS, round, millis(served - answered), &report);
    }
    if options.wants(Measure::ChangeOthers) {
        resources::set_idle_policy(pair.control_pid())?;
    }
    let mut next = options.changes;
    others::measure(options, bench, (OURS, pair.address(), pair.pid()), figures, || {
        next += 1;
        Ok(ask(options, bench, &mut admin, next)?.1)
    })
}

/// PUTs another certificate for one of the names; gives the moment of the request, too.
fn ask(
    options: &Options,
    bench: &Workbench,
    admin: &mut Admin,
    round: u32,
) -> anyhow::Result<(Instant, RequestedChange)> {
    let index = spread_out(round, options.objects);
    let name = name(index);
    let certificate = bench.credentials.site(&name);
    let changed = document(&bench.credentials, &name, &certificate);
    let started = Instant::now();
    bench.runtime.block_on(admin.put(&format!("ssls/many-{index}"), &changed))?;
    Ok((started, RequestedChange { name, leaf: leaf(&certificate) }))
}
