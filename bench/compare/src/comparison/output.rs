//! Writes a comparison: `results.json` with every run, the configuration of each peer, `README.md`
//! with the tables, and `figures.svg` with bars.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;
use time::macros::format_description;

use super::Options;
use super::environment::Environment;
use super::figures::{Busy, Figures, Spread, Verdict};
use super::measure::Measure;
use super::plot;
use super::workbench::Workbench;
use crate::peer::Kind;

/// Makes `<out>/<date and time, UTC>`.
///
/// # Errors
/// When it cannot be made, or exists.
pub(super) fn make_folder(out: &Path) -> io::Result<PathBuf> {
    let format = format_description!("[year]-[month]-[day]-[hour][minute][second]");
    let date = time::UtcDateTime::now().format(format).map_err(io::Error::other)?;
    std::fs::create_dir_all(out)?;
    let folder = out.join(date);
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

/// Copies the configuration files of the running peers.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn write_settings(folder: &Path, bench: &Workbench) -> anyhow::Result<()> {
    for file in bench.peers.iter().flat_map(|peer| peer.configuration()) {
        let text = std::fs::read_to_string(&file)?;
        if let Some(name) = file.file_name() {
            std::fs::write(folder.join(name), bench.without_folder(&text))?;
        }
    }
    Ok(())
}

/// Writes everything else and gives the tables.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write(
    folder: &Path,
    options: &Options,
    environment: &Environment,
    figures: &Figures,
) -> anyhow::Result<String> {
    let verdicts: Vec<_> = Measure::all().flat_map(|measure| figures.verdicts(measure)).collect();
    let raw = json!({"environment": environment, "verdicts": verdicts, "runs": figures.runs});
    std::fs::write(folder.join("results.json"), format!("{raw:#}\n"))?;
    std::fs::write(folder.join("figures.svg"), plot::svg(figures))?;
    let tables = format!("{}\n{}", values(figures), ratios(figures));
    std::fs::write(folder.join("README.md"), page(options, environment, figures, &tables))?;
    Ok(tables)
}

fn page(options: &Options, environment: &Environment, figures: &Figures, tables: &str) -> String {
    let mut page = String::from("# Side by side\n\n");
    let _ = writeln!(page, "{tables}");
    page.push_str(
        "Medians, with the smallest and largest run in brackets. The second table is Countersign's figure over each peer's, taken \
         round by round between neighbouring runs; the median of those is compared. CPU is that of all threads and \
         children of the server, from schedstat.\n\n![The same as bars](figures.svg)\n\n",
    );
    page.push_str(&busy(figures));
    page.push_str(&paces(figures));
    let problems: Vec<String> = environment.left_out.iter().cloned().chain(figures.problems()).collect();
    if !problems.is_empty() {
        page.push_str("Without a figure:\n\n");
        for problem in problems {
            let _ = writeln!(page, "- {problem}");
        }
        page.push('\n');
    }
    page.push_str("## How\n\n");
    facts(&mut page, environment);
    let _ = writeln!(
        page,
        "- rounds: {} of {} s with {} connections at a time; memory with {} idle connections, {} rounds; {} certificates",
        options.rounds,
        options.seconds,
        options.connections,
        options.idle,
        options.idle_rounds,
        options.objects
    );
    let _ = writeln!(
        page,
        "- each server on core {}, one worker; load, upstreams and control plane on core {}",
        options.cores.server, options.cores.load
    );
    page.push_str(
        "- TLS 1.3, X25519, TLS_AES_128_GCM_SHA256, both sides with a P-256 leaf and a P-256 intermediate (for RSA, the \
         server's leaf has RSA-2048), client certificates required, session tickets on where the server has them, keep-alive \
         connections to the shared upstreams; the mTLS upstream's certificate is verified and it verifies the gateway's\n",
    );
    page
}

fn facts(page: &mut String, environment: &Environment) {
    let cpu = environment.cpu.clone().unwrap_or_else(|| "unknown".to_owned());
    let facts = [
        ("command", Some(format!("`{}`", environment.command))),
        ("started", Some(environment.started.clone())),
        ("machine", Some(format!("{cpu}, {} cores", environment.cores))),
        ("system", environment.system.clone()),
        ("kernel", environment.kernel.clone()),
        ("load average at the start", environment.load_average.clone()),
        ("commit", environment.commit.clone()),
        ("compiler", environment.rustc.clone()),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            let _ = writeln!(page, "- {name}: {value}");
        }
    }
    for program in &environment.peers {
        let _ = write!(page, "- {}: {}", program.peer.name(), program.version);
        match &program.command {
            Some(command) => drop(writeln!(page, "; `{command}`")),
            None => page.push('\n'),
        }
    }
}

/// Measures by peers. A measure without any value has no line.
fn values(figures: &Figures) -> String {
    let peers = figures.peers();
    let mut table = header("what", peers.iter().map(|peer| peer.name()));
    for measure in Measure::all() {
        let cells: Vec<_> = peers.iter().map(|peer| figures.spread(measure, *peer)).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|spread| cell(spread, measure.unit()));
            row(&mut table, measure.label(), cells);
        }
    }
    table
}

/// Utilisation of the servers' cores, for measures of CPU time.
fn busy(figures: &Figures) -> String {
    let peers = figures.peers();
    let mut table = header(
        "utilisation of the server's core, time slices an operation",
        peers.iter().map(|peer| peer.name()),
    );
    let mut any = false;
    for measure in Measure::all() {
        let cells: Vec<_> = peers.iter().map(|peer| figures.busy(measure, *peer)).collect();
        if cells.iter().any(Option::is_some) {
            any = true;
            row(&mut table, measure.label(), cells.into_iter().map(how_busy));
        }
    }
    if !any {
        return String::new();
    }
    format!(
        "{table}\nCPU is that of a server at capacity: enough connections are in flight that it need not sleep, \
         and the load verifies the server's chain once a lane. Where the core was less than 95 % busy with time \
         slices, the server waited for the load, and each time slice includes waking up, which a server at capacity \
         does not pay; without time slices, something else ran on the machine.\n\n"
    )
}

fn how_busy(busy: Option<Busy>) -> String {
    busy.map_or_else(
        || "-".to_owned(),
        |Busy { share, timeslices }| {
            let timeslices =
                timeslices.map_or_else(|| "-".to_owned(), |timeslices| format!("{timeslices:.2}"));
            format!("{:.0} %, {timeslices}", share * 100.0)
        },
    )
}

/// The pace of certificate changes, and the latencies behind the ratio.
fn paces(figures: &Figures) -> String {
    let mut lines = Vec::new();
    for peer in figures.peers() {
        let of = |pointer| figures.reported(Measure::ChangeOthers, peer, pointer);
        let found = (
            of("/pace_ms"),
            of("/quiet/latency_us/p99"),
            of("/changing/latency_us/p99"),
            of("/changing/operations"),
        );
        if let (Some(pace), Some(quiet), Some(changing), Some(requests)) = found {
            lines.push(format!(
                "- {}: one each {pace:.0} ms; 99th percentile {quiet:.0} us in quiet phases, {changing:.0} us in changing ones, of {requests:.0} requests each\n",
                peer.name()
            ));
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    format!(
        "Certificates changed each 100 ms, or, where a change takes longer than half of that, each twice as long as it takes. \
         Others make 1,000 requests a second on four kept connections, measured from when they were due; quiet and changing phases \
         alternate.\n\n{}\n",
        lines.concat()
    )
}

/// Countersign over each peer, over the best of them, and the verdicts.
fn ratios(figures: &Figures) -> String {
    let others: Vec<Kind> = figures.peers().into_iter().filter(|peer| *peer != Kind::Countersign).collect();
    let columns = others.iter().map(|peer| peer.name()).chain(["best peer", "target", ""]);
    let mut table = header("Countersign over", columns);
    for measure in Measure::all() {
        let ratios: Vec<_> = others.iter().map(|peer| figures.ratio(measure, *peer)).collect();
        let verdicts = figures.verdicts(measure);
        if ratios.iter().all(Option::is_none) && verdicts.is_empty() {
            continue;
        }
        let best = figures.best(measure).and_then(|best| Some((best, figures.ratio(measure, best)?)));
        let best = best.map(|(kind, ratio)| format!("{:.2} ({})", ratio.median, kind.name()));
        let each = |tell: fn(&Verdict) -> String| verdicts.iter().map(tell).collect::<Vec<_>>().join("<br>");
        let compared = [
            best.unwrap_or_else(|| "-".to_owned()),
            if verdicts.is_empty() { "-".to_owned() } else { each(|verdict| verdict.goal.clone()) },
            each(|verdict| format!("{:.2} {}", verdict.measured, if verdict.ok { "ok" } else { "short" })),
        ];
        row(&mut table, measure.label(), ratios.into_iter().map(ratio).chain(compared));
    }
    table
}

fn header<'a>(first: &'a str, columns: impl Iterator<Item = &'a str>) -> String {
    let columns: Vec<&str> = std::iter::once(first).chain(columns).collect();
    format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()))
}

fn row(table: &mut String, first: &str, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.collect();
    let _ = writeln!(table, "| {first} | {} |", cells.join(" | "));
}

fn cell(spread: Option<Spread>, unit: &str) -> String {
    spread.map_or_else(
        || "-".to_owned(),
        |Spread { median, min, max, .. }| format!("{median:.1} {unit} ({min:.1}-{max:.1})"),
    )
}

fn ratio(ratio: Option<Spread>) -> String {
    ratio.map_or_else(
        || "-".to_owned(),
        |Spread { median, min, max, .. }| format!("{median:.2} ({min:.2}-{max:.2})"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::figures;
    use super::*;

    #[test]
    fn the_utilisation_table_shows_a_server_that_slept() {
        let mut figures = figures(&[(Kind::Nginx, &[1000.0])]);
        assert_eq!(busy(&figures), "", "no CPU time was read");
        let report = json!({"server": {"busy": 0.64, "timeslices_per_operation": 1.95}});
        figures.add(Measure::New, Kind::Countersign, 1, 100.0, report);
        let table = busy(&figures);
        assert!(table.contains("+ one proxied request: server CPU | 64 %, 1.95 | - |\n"), "{table}");
    }

    #[test]
    fn the_pace_of_changes_is_listed_with_latencies() {
        let mut figures = Figures::default();
        assert_eq!(paces(&figures), "");
        let phase = |p99: f64| json!({"operations": 10_000, "latency_us": {"p99": p99}});
        let report = json!({"pace_ms": 2900.0, "quiet": phase(200.0), "changing": phase(500.4)});
        figures.add(Measure::ChangeOthers, Kind::Nginx, 1, 2.5, report);
        let line = "- nginx: one each 2900 ms; 99th percentile 200 us in quiet phases, 500 us in changing ones, of 10000 requests each\n";
        assert!(paces(&figures).contains(line), "{}", paces(&figures));
    }

    #[test]
    fn tables_have_a_column_a_peer_and_a_dash_without_value() {
        let mut figures = figures(&[
            (Kind::Countersign, &[100.0, 110.0, 120.0]),
            (Kind::Nginx, &[1000.0, 1100.0, 1200.0]),
            (Kind::Pingora, &[200.0, 220.0, 240.0]),
        ]);
        figures.add(Measure::Idle, Kind::Countersign, 1, 20.0, ());
        assert_eq!(
            values(&figures),
            "| what | countersign | nginx | pingora |
|---|---|---|---|
| full mTLS handshake, P-256, + one proxied request: server CPU | 110.0 us (100.0-120.0) | 1100.0 us (1000.0-1200.0) | 220.0 us (200.0-240.0) |
| idle mTLS connection (one request was made): resident memory | 20.0 KiB (20.0-20.0) | - | - |
"
        );
        assert_eq!(
            ratios(&figures),
            "| Countersign over | nginx | pingora | best peer | target |  |
|---|---|---|---|---|---|
| full mTLS handshake, P-256, + one proxied request: server CPU | 0.10 (0.10-0.10) | 0.50 (0.50-0.50) | 0.50 (pingora) | <= 0.45 x best peer (pingora)<br><= 0.2 x nginx | 0.50 short<br>0.10 ok |
| idle mTLS connection (one request was made): resident memory | - | - | - | <= 12 KiB | 20.00 short |
"
        );
    }
}
