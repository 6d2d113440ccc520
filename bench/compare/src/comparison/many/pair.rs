//! Countersign with many certificates: written through the Admin API, pushed to a data plane that is started again and again.

use std::time::Instant;

use futures_util::future::try_join_all;
use serde_json::json;

use super::others::{self, Asked};
use super::{await_any, await_leaf, check_some, millis, name, spread_out};
use crate::comparison::Options;
use crate::comparison::figures::Figures;
use crate::comparison::measure::Measure;
use crate::comparison::workbench::Workbench;
use crate::peer::admin::Admin;
use crate::peer::countersign::{Countersign, Programs, document, site_document};
use crate::peer::{HOST, Kind, Peer};
use crate::process;

const OURS: Kind = Kind::Countersign;
/// Connections to the Admin API while it is filled.
const WRITERS: u32 = 8;

/// All of it with a pair of its own.
///
/// # Errors
/// When it does not serve what it was given.
pub fn measure(
    options: &Options,
    bench: &Workbench,
    programs: &Programs,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let folder = bench.folder_for(OURS, "-many")?;
    let mut pair = Countersign::start(programs, &folder, bench.cores, &bench.credentials)?;
    bench.runtime.block_on(pair.configure(&bench.credentials, bench.plain()))?;
    let last = name(options.objects - 1);
    // Memory with next to none, from a fresh start like the reading it is compared with.
    pair.start_data(true)?;
    await_any(bench, pair.address(), HOST)?;
    let empty = process::resident_bytes(&[pair.pid()])?;
    pair.stop_data();
    let revision = bench.runtime.block_on(fill(options, bench, &pair))?;

    for round in 1..=options.idle_rounds {
        let started = pair.start_data(true)?;
        let served = await_any(bench, pair.address(), &last)?;
        check_some(bench, pair.address(), options.objects)?;
        bench.runtime.block_on(async { pair.admin()?.wait_acknowledged(revision).await })?;
        let report = json!({"objects": options.objects, "from": "empty"});
        figures.add(Measure::ManyPushed, OURS, round, millis(served - started), report);

        let resident = process::resident_bytes(&[pair.pid()])?;
        let each = resident.saturating_sub(empty) as f64 / f64::from(options.objects) / 1024.0;
        let report = json!({"objects": options.objects, "resident": resident, "resident_without": empty});
        figures.add(Measure::ManyMemory, OURS, round, each, report);
    }
    for round in 1..=options.idle_rounds {
        let started = pair.start_data(false)?;
        let served = await_any(bench, pair.address(), &last)?;
        check_some(bench, pair.address(), options.objects)?;
        let report = json!({"objects": options.objects, "from": "last good snapshot"});
        figures.add(Measure::ManyStart, OURS, round, millis(served - started), report);
    }
    bench.runtime.block_on(async { pair.admin()?.wait_acknowledged(revision).await })?;
    change_some(options, bench, &pair, figures)
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
        let (started, Asked { name, leaf }) = ask(options, bench, &mut admin, round)?;
        let answered = Instant::now();
        let served = await_leaf(bench, pair.address(), &name, Some(leaf.der()))?;
        let report = json!({"put_ms": millis(answered - started)});
        figures.add(Measure::Change, OURS, round, millis(served - started), &report);
        figures.add(Measure::ChangeServed, OURS, round, millis(served - answered), &report);
    }
    if options.wants(Measure::ChangeOthers) {
        process::stand_back(pair.control_pid())?;
    }
    let mut next = options.changes;
    others::measure(options, bench, (OURS, pair.address(), pair.pid()), figures, || {
        next += 1;
        Ok(ask(options, bench, &mut admin, next)?.1)
    })
}

/// PUTs another certificate for one of the names; gives the moment before, too.
fn ask(
    options: &Options,
    bench: &Workbench,
    admin: &mut Admin,
    round: u32,
) -> anyhow::Result<(Instant, Asked)> {
    let index = spread_out(round, options.objects);
    let name = name(index);
    let minted = bench.credentials.site(&name)?;
    let changed = document(&bench.credentials, &name, &minted);
    let started = Instant::now();
    bench.runtime.block_on(admin.put(&format!("ssls/many-{index}"), &changed))?;
    Ok((started, Asked { name, leaf: minted.certificate }))
}
