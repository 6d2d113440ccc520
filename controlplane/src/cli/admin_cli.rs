//! `controlplane admin ...`: a client of the Admin API.
//!
//! `target` finds the Admin API and the credentials, `client` sends requests, `reply` turns
//! responses into errors; then one file for each group of commands. Invariant: nothing here touches
//! the store; a command can do what any client of the Admin API can.
//!
//! Exit codes: 0 success; 1 failure, or `diff` found differences, or `lint` errors; 2 an invalid
//! command line, or trouble of `diff`; 3 a write is stored, and some data planes do not serve it
//! yet (`--wait`).

mod apply;
mod client;
mod desired;
mod dump;
mod input;
mod plan;
mod questions;
mod reply;
mod resource_name;
mod resources;
mod stored;
mod suggestions;
mod table;
mod target;
mod watch;

use std::io::{self, Write};
use std::path::Path;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use telemetry::stdout::CommandOutput;

use self::apply::{ApplyArgs, ApplyError, DiffArgs};
use self::client::{ApiClient, ClientError};
use self::desired::DesiredError;
use self::dump::{DumpArgs, DumpError};
use self::input::InputError;
use self::questions::{ExplainArgs, LintArgs};
use self::reply::ApiError;
use self::resource_name::ResourceNameError;
use self::resources::{DeleteArgs, GetArgs, ListArgs, PatchArgs, PostArgs, PutArgs};
use self::target::{ConnectionArgs, TargetError};
use self::watch::WatchArgs;

const EXIT_SUCCESS: u8 = 0;
const EXIT_FAILURE: u8 = 1;
const EXIT_TROUBLE: u8 = 2;
/// A write is stored, and not every data plane serves it yet.
const EXIT_BEHIND: u8 = 3;

const EXAMPLES: &str = "Examples:
  controlplane admin list routes                        a table; -o json for scripts
  controlplane admin put ssls/1 -f site.json            create or replace
  controlplane admin patch routes/1 --json '{\"status\": 0}'
  controlplane admin apply -f rules/                    shows its plan, then writes it
  controlplane admin explain --sni app.example --client-cert alice.crt --uri /orders

On the control plane's machine nothing else is needed: address, certificate and key are those of the configuration (-c FILE).
From elsewhere:
  export COUNTERSIGN_ADMIN_URL=https://admin.example:9180 COUNTERSIGN_ADMIN_CA=admin-ca.crt
  export COUNTERSIGN_ADMIN_CERT=me.crt COUNTERSIGN_ADMIN_CERT_KEY=me.key COUNTERSIGN_ADMIN_KEY=$(cat admin.key)

Exit codes: 0 success; 1 failure, differences (diff) or errors (lint); 2 an invalid command line, or trouble of diff; 3 written, but not yet
served by every data plane (--wait).";

/// Read and write the configuration through the Admin API.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Show one resource
    Get(GetArgs),
    /// Show the resources of a kind
    List(ListArgs),
    /// Create or replace a resource
    Put(PutArgs),
    /// Create a resource under a new id, or send another POST of the Admin API
    Post(PostArgs),
    /// Change a part of a resource
    Patch(PatchArgs),
    /// Delete a resource
    Delete(DeleteArgs),
    /// Make the stored resources those of files: shows its plan, then writes it
    Apply(ApplyArgs),
    /// Show what apply would change; exits with 1 if there is something
    Diff(DiffArgs),
    /// Write all resources in the form that apply reads
    Dump(DumpArgs),
    /// Print changes as they come
    Watch(WatchArgs),
    /// Explain what happens to a connection or request, and why
    Explain(ExplainArgs),
    /// List likely misconfigurations; exits with 1 if one is an error
    Lint(LintArgs),
}

/// The form of an output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum OutputForm {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    Yaml,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminCliError {
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Api(#[from] ApiError),
    #[error("{0}")]
    Input(#[from] InputError),
    #[error("{0}")]
    Name(#[from] ResourceNameError),
    #[error("{0}")]
    Desired(#[from] DesiredError),
    #[error("{0}")]
    Apply(#[from] ApplyError),
    #[error("{0}")]
    Dump(#[from] DumpError),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// Runs one command. Returns the exit code, or that of an error with the error.
///
/// # Errors
/// [`AdminCliError`], whose message says what to do.
pub(crate) async fn run(
    config: &Path,
    args: &AdminArgs,
    out: &mut CommandOutput,
) -> Result<u8, (u8, AdminCliError)> {
    let trouble = match args.command {
        AdminCommand::Diff(_) => EXIT_TROUBLE,
        _ => EXIT_FAILURE,
    };
    run_command(config, args, out).await.map_err(|error| (trouble, error))
}

async fn run_command(config: &Path, args: &AdminArgs, out: &mut CommandOutput) -> Result<u8, AdminCliError> {
    let mut client = ApiClient::new(args.connection.target(config)?)?;
    match &args.command {
        AdminCommand::Get(args) => resources::get(&mut client, args, out).await,
        AdminCommand::List(args) => resources::list(&mut client, args, out).await,
        AdminCommand::Put(args) => resources::put(&mut client, args, out).await,
        AdminCommand::Post(args) => resources::post(&mut client, args, out).await,
        AdminCommand::Patch(args) => resources::patch(&mut client, args, out).await,
        AdminCommand::Delete(args) => resources::delete(&mut client, args, out).await,
        AdminCommand::Apply(args) => apply::apply(&mut client, args, out).await,
        AdminCommand::Diff(args) => apply::diff(&mut client, args, out).await,
        AdminCommand::Dump(args) => dump::dump(&mut client, args, out).await,
        AdminCommand::Watch(args) => watch::watch(&mut client, args, out).await,
        AdminCommand::Explain(args) => questions::explain(&mut client, args, out).await,
        AdminCommand::Lint(args) => questions::lint(&mut client, args, out).await,
    }
}

/// Prints a value as JSON or YAML.
fn print_value(out: &mut dyn Write, value: &Value, form: OutputForm) -> io::Result<()> {
    match form {
        OutputForm::Yaml => write!(out, "{}", super::rules_file::render_value(value)),
        OutputForm::Json | OutputForm::Table => writeln!(out, "{value:#}"),
    }
}

/// A line on standard error, beside the result.
fn note(text: &dyn std::fmt::Display) {
    telemetry::log::write_unfiltered(&format_args!("{text}"));
}

#[cfg(test)]
mod tests;
