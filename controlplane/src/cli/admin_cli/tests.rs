//! The command lines of `admin`.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct AdminCommandLine {
    #[command(flatten)]
    args: AdminArgs,
}

fn parsed(line: &str) -> Result<AdminArgs, String> {
    let words = std::iter::once("admin").chain(line.split(' '));
    AdminCommandLine::try_parse_from(words).map(|line| line.args).map_err(|error| error.to_string())
}

#[test]
fn command_lines_are_parsed() {
    for line in [
        "get routes 1",
        "get routes/1 -o yaml --url https://a:1",
        "list ssls --name a --page 2 --page-size 10",
        "put routes 1 -f - --wait 5 --if-match 12 --weaken",
        "put consumers jack -f - --dry-run --if-match 12",
        "post routes -f - --dry-run --weaken",
        "post dataplanes/accept_store",
        "patch routes 1 upstream/nodes --json {}",
        "delete routes 1 --force --if-match 3",
        "apply -f a -f b --prune --yes --wait 60",
        "diff -f -",
        "dump --to rules --overwrite -o json",
        "dump -o json",
        "watch ssls -o json",
        "explain --sni a --client-cert b",
        "lint -o json",
    ] {
        parsed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    for line in [
        "get",
        "apply",
        "put routes/1 -f a --json {}",
        "put routes/1 --wait 0",
        "list routes --page-size 20",
        "list routes --page 1 --page-size 501",
        "get routes/1 --key secret",
        // Each would mean nothing.
        "post routes -f a --if-match 3",
        "put routes/1 -f a --dry-run --wait 5",
        "put routes/1 -f a --force",
        "apply -f a --dry-run --wait 5",
        "dump --overwrite",
        "watch ssls -o yaml",
        "diff -f a --weaken",
    ] {
        assert!(parsed(line).is_err(), "{line}");
    }
}
