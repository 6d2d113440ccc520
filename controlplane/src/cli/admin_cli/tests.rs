//! The command lines of `admin`.

use clap::{CommandFactory, Parser};

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
fn every_command_has_examples() {
    let command = AdminCommandLine::command();
    command.clone().debug_assert();
    for command in command.get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.starts_with("Examples:"), "{}", command.get_name());
    }
}

#[test]
fn command_lines_are_parsed() {
    for line in [
        "get routes 1",
        "get routes/1 -o yaml --url https://a:1",
        "list ssls --name a --page 2 --page-size 10",
        "put routes 1 -f - --dry-run --wait 5 --if-match 12 --weaken",
        "post dataplanes/accept_store",
        "patch routes 1 upstream/nodes --json {}",
        "delete routes 1 --force",
        "apply -f a -f b --prune --yes --wait 60",
        "diff -f -",
        "dump --to rules --overwrite -o json",
        "watch ssls",
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
    ] {
        assert!(parsed(line).is_err(), "{line}");
    }
}
