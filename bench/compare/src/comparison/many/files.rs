//! A peer with many certificates in files: started repeatedly, and changed as its operator would.

use std::time::Instant;

use serde_json::json;

use super::others::{self, RequestedChange, leaf};
use super::{await_any, await_leaf, check_some, millis, name, spread_out};
use crate::comparison::Options;
use crate::comparison::figures::Figures;
use crate::comparison::measure::Measure;
use crate::comparison::workbench::Workbench;
use crate::peer::credentials::write_pair;
use crate::peer::{HOST, Installed, ManySites};
use e2e::resources;

/// Changes that take seconds each are measured only twice.
const SLOW_CHANGES: u32 = 2;
const SLOW_MS: f64 = 1000.0;

/// Measures a peer; nothing when it does not take part with many names.
///
/// # Errors
/// When it does not serve what it was given.
pub(super) fn measure(
    options: &Options,
    bench: &Workbench,
    program: &dyn Installed,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let kind = program.kind();
    let folder = bench.folder_for(kind, "-many")?;
    // The memory with few names, after a fresh start like the reading it is compared with.
    let Some(few) = program.start_many(&bench.context(&folder, &[])) else { return Ok(()) };
    let mut few = few?;
    await_any(bench, few.peer().address(), HOST)?;
    let empty = resources::resident_bytes(&resources::family(few.peer().pid())?)?;
    drop(few);

    let names: Vec<String> = (0..options.objects).map(name).collect();
    for name in &names {
        write_pair(&folder, name, &bench.credentials.site(name))?;
    }
    let Some(running) = program.start_many(&bench.context(&folder, &names)) else { return Ok(()) };
    let mut running = running?;
    let last = name(options.objects - 1);
    for round in 1..=options.idle_rounds {
        if round > 1 {
            running.peer().restart()?;
        }
        let served = await_any(bench, running.peer().address(), &last)?;
        let report = json!({"objects": options.objects});
        figures.add(Measure::ManyStart, kind, round, millis(served - running.peer().started()), report);

        let resident = resources::resident_bytes(&resources::family(running.peer().pid())?)?;
        let each = resident.saturating_sub(empty) as f64 / f64::from(options.objects) / 1024.0;
        let report = json!({"objects": options.objects, "resident": resident, "resident_without": empty});
        figures.add(Measure::ManyMemory, kind, round, each, report);
    }
    let (address, pid) = (running.peer().address(), running.peer().pid());
    check_some(bench, address, options.objects)?;
    let mut slow = 0;
    for round in 1..=options.changes {
        let (started, RequestedChange { name, leaf }) = ask(options, bench, running.as_mut(), round)?;
        let taken = Instant::now();
        let served = await_leaf(bench, address, &name, Some(&leaf))?;
        let value = millis(served - started);
        figures.add(Measure::Change, kind, round, value, json!({"taken_ms": millis(taken - started)}));
        slow += u32::from(value > SLOW_MS);
        if slow == SLOW_CHANGES {
            break;
        }
    }
    let mut next = options.changes;
    let server = (kind, address, pid);
    others::measure(options, bench, server, figures, || {
        next += 1;
        Ok(ask(options, bench, running.as_mut(), next)?.1)
    })
}

/// Changes the certificate of one name; gives the moment of the request, too.
fn ask(
    options: &Options,
    bench: &Workbench,
    running: &mut dyn ManySites,
    round: u32,
) -> anyhow::Result<(Instant, RequestedChange)> {
    let name = name(spread_out(round, options.objects));
    let certificate = bench.credentials.site(&name);
    let asked = running.change(&name, &certificate)?;
    Ok((asked, RequestedChange { name, leaf: leaf(&certificate) }))
}
