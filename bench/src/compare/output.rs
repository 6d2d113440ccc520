//! Writes a comparison: `results.json` with every run, `nginx.conf` as it was used, and `README.md` with the table.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;
use time::macros::format_description;

use super::Options;
use super::environment::Environment;
use super::figures::{Figures, Measure, Spread};
use super::workbench::Workbench;

/// Makes `<out>/<date and time, UTC>`.
///
/// # Errors
/// When it cannot be made, or is there already.
pub fn make_folder(out: &Path) -> io::Result<PathBuf> {
    let format = format_description!("[year]-[month]-[day]-[hour][minute][second]");
    let date = time::UtcDateTime::now().format(format).map_err(io::Error::other)?;
    std::fs::create_dir_all(out)?;
    let folder = out.join(date);
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

/// Writes everything and gives the table.
///
/// # Errors
/// When a file cannot be written.
pub fn write(
    folder: &Path,
    options: &Options,
    environment: &Environment,
    bench: &Workbench,
    figures: &Figures,
) -> anyhow::Result<String> {
    let verdicts: Vec<_> = Measure::ALL.iter().filter_map(|measure| figures.verdict(*measure)).collect();
    let raw = json!({"environment": environment, "verdicts": verdicts, "runs": figures.runs});
    std::fs::write(folder.join("results.json"), format!("{raw:#}\n"))?;
    if bench.nginx.is_some() {
        let used = bench.folder_for("nginx")?;
        let text = std::fs::read_to_string(used.join("nginx.conf"))?;
        // The folder is gone by the time anybody reads this.
        std::fs::write(folder.join("nginx.conf"), text.replace(&used.display().to_string(), "FOLDER"))?;
    }
    let table = table(figures);
    std::fs::write(folder.join("README.md"), page(options, environment, figures, &table))?;
    Ok(table)
}

fn page(options: &Options, environment: &Environment, figures: &Figures, table: &str) -> String {
    let mut page = String::from("# Side by side\n\n");
    let _ = writeln!(page, "{table}");
    page.push_str(
        "Medians, with the smallest and largest run in brackets. Ratios are taken round by round between neighbouring \
         runs; their median is told. CPU is that of all threads and children of the server, from schedstat.\n\n",
    );
    let problems: Vec<String> = figures.problems().collect();
    if !problems.is_empty() {
        page.push_str("Runs without a figure:\n\n");
        for problem in problems {
            let _ = writeln!(page, "- {problem}");
        }
        page.push('\n');
    }
    page.push_str("## How\n\n");
    let unknown = || "unknown".to_owned();
    let facts = [
        ("command", Some(format!("`{}`", environment.command))),
        ("started", Some(environment.started.clone())),
        (
            "machine",
            Some(format!("{}, {} cores", environment.cpu.clone().unwrap_or_else(unknown), environment.cores)),
        ),
        ("system", environment.system.clone()),
        ("kernel", environment.kernel.clone()),
        ("load average at the start", environment.load_average.clone()),
        ("commit", environment.commit.clone()),
        ("compiler", environment.rustc.clone()),
        ("nginx", environment.nginx.clone()),
        ("Countersign", environment.countersign.clone()),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            let _ = writeln!(page, "- {name}: {value}");
        }
    }
    let _ = writeln!(
        page,
        "- rounds: {} of {} s with {} connections at a time; memory with {} idle connections, {} rounds; {} objects",
        options.rounds,
        options.seconds,
        options.connections,
        options.idle,
        options.idle_rounds,
        options.objects
    );
    let _ = writeln!(
        page,
        "- server on core {}, one worker; load, upstream and control plane on core {}",
        options.server_cpu, options.load_cpu
    );
    page.push_str(
        "- TLS 1.3, X25519, TLS_AES_128_GCM_SHA256, both sides with a P-256 leaf and a P-256 intermediate, client \
         certificates required, session tickets on where the server has them, HTTP/1.1, keep-alive connections to the shared upstream\n",
    );
    page
}

fn table(figures: &Figures) -> String {
    let mut table =
        String::from("| what | nginx | Countersign | ratio | target | |\n|---|---|---|---|---|---|\n");
    for measure in Measure::ALL {
        let nginx = figures.spread(measure, "nginx");
        let ours = figures.spread(measure, "countersign");
        if nginx.is_none() && ours.is_none() {
            continue;
        }
        let verdict = figures.verdict(measure);
        let cell = |spread: Option<Spread>| {
            spread.map_or_else(|| "-".to_owned(), |spread| told(spread, measure.unit()))
        };
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} |",
            measure.label(),
            cell(nginx),
            cell(ours),
            cell_ratio(figures.ratio(measure)),
            verdict.as_ref().map_or("-", |verdict| verdict.goal.as_str()),
            verdict.as_ref().map_or("", |verdict| if verdict.ok { "ok" } else { "short" }),
        );
    }
    table
}

fn told(spread: Spread, unit: &str) -> String {
    let Spread { median, min, max, .. } = spread;
    format!("{median:.1} {unit} ({min:.1}-{max:.1})")
}

fn cell_ratio(ratio: Option<Spread>) -> String {
    ratio.map_or_else(
        || "-".to_owned(),
        |Spread { median, min, max, .. }| format!("{median:.2} ({min:.2}-{max:.2})"),
    )
}
