//! Many certificates: the time of a start until all are served, the memory of one, and the delay of
//! a change.
//!
//! Every name has a certificate and a key of its own. A probe handshakes in a loop and compares the
//! certificate that it gets. [`pair`] fills Countersign through the Admin API, [`files`] the others
//! through files, [`others`] measures the effect of changes on other requests. The servers of the
//! rounds are stopped first: thousands of certificates need the memory.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Options;
use super::figures::Figures;
use super::measure::Measure;
use super::workbench::Workbench;
use crate::peer::countersign::Programs;
use crate::peer::{Installed, Kind, UNROUTED};

mod files;
mod others;
mod pair;

/// Names that are checked once the last one is served.
const CHECKED: u32 = 50;
/// Limit until a name is served with the expected certificate.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures each peer in turn; nothing with `--objects 0`. A failure of one peer does not end the
/// others.
///
/// # Errors
/// When the programs of Countersign are gone.
pub(super) fn run(
    options: &Options,
    installed: &[Box<dyn Installed>],
    bench: &mut Workbench,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    if options.objects == 0 || !Measure::all().any(|measure| measure.of_many() && options.wants(measure)) {
        return Ok(());
    }
    bench.peers.clear();
    for program in installed {
        let kind = program.kind();
        let done = match kind {
            Kind::Countersign => {
                let programs = Programs::find(options.bin_dir.as_deref())?;
                pair::measure(options, bench, &programs, figures)
            }
            _ => files::measure(options, bench, program.as_ref(), figures),
        };
        if let Err(error) = done {
            figures.add_failed(Measure::ManyStart, kind, 0, format!("{error:#}"), ());
        }
    }
    Ok(())
}

fn name(index: u32) -> String {
    format!("s{index}.many.test")
}

/// Spreads consecutive rounds over the whole table.
pub fn spread_out(round: u32, size: u32) -> u32 {
    (u64::from(round).wrapping_mul(2_654_435_761) % u64::from(size)) as u32
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Waits until a handshake for a name succeeds; gives the moment.
fn await_any(bench: &Workbench, address: SocketAddr, name: &str) -> anyhow::Result<Instant> {
    await_leaf(bench, address, name, None)
}

/// Waits until a handshake for a name gets this leaf; gives the moment.
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
            // On a small machine a probe without pauses would slow the server down.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    bench.runtime.block_on(asking)
}

/// Checks that other names are served, too: each with its own certificate, and with a response.
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
