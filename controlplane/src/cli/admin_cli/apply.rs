//! `apply` and `diff`: the plan, the question whether to make it, and its batches.
//!
//! Invariant: `apply` writes the printed plan, or it ends with an error and has written a part.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use http::Method;
use model::Kind;
use serde_json::Value;
use telemetry::stdout::CommandOutput;

use super::client::{ApiClient, ApiReply, ApiRequest};
use super::desired::DesiredResources;
use super::plan::{ApplyPlan, DRY_RUN_BYTES_MAX, DRY_RUN_OPERATIONS_MAX};
use super::reply::ApiError;
use super::resources::behind_code;
use super::{AdminCliError, EXIT_FAILURE, EXIT_SUCCESS, note, stored};
use crate::cli::progress::ProgressLog;

/// Operations that `apply` shows; `diff` shows all.
const SHOWN_MAX: usize = 100;
/// Per operation, over a slow store.
const OPERATION_TIME_MAX: Duration = Duration::from_millis(10);

const FORMS: &str = "Files (JSON or YAML) have lists of resources with ids:
  routes:
    - {id: 1, uri: /*, upstream_id: u}
  upstreams:
    - {id: u, nodes: {\"127.0.0.1:8080\": 1}}
A folder has such files, or folders named by kinds with one resource a file: rules/routes/1.yaml. ${{NAME}} in YAML is replaced by the
environment variable. An ssl without its private key keeps the stored one while its certificate stays. Extension fields that the files do not
mention (client.crl, client_identity) are kept; null removes them.";

/// Make the stored resources those of files.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  controlplane admin apply -f rules.yaml
  controlplane admin apply -f rules/ --prune --yes --wait 10
  controlplane admin apply -f rules/ --dry-run              all checks of the control plane, and nothing is written

{FORMS}

Up to 128 changes are written as one, all or none; more are written in several steps, and a dry run checks all of them together. If a resource is changed by others between the plan and
its write, that step writes nothing; run it again."))]
pub(crate) struct ApplyArgs {
    /// File or folder; - for standard input. May be given several times
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
    /// Delete resources that the files do not have, of the kinds that they name (routes: [] names
    /// one)
    #[arg(long)]
    prune: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Have the control plane check everything, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until every data plane serves the changes, at most this long
    #[arg(long, value_name = "SECONDS", conflicts_with = "dry_run",
          value_parser = clap::value_parser!(u32).range(1..=60))]
    wait: Option<u32>,
    /// Write although it protects less (deployment.admin.protect_client_auth)
    #[arg(long)]
    weaken: bool,
}

/// Show what apply would change.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  controlplane admin diff -f rules/
  controlplane admin diff -f rules.yaml --prune || echo 'something would change'

{FORMS}

Exits with 0 without differences, 1 with some, 2 when it cannot tell."))]
pub(crate) struct DiffArgs {
    /// File or folder; - for standard input. May be given several times
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
    /// Count resources that the files do not have, of the kinds that they name
    #[arg(long)]
    prune: bool,
}

/// Why a plan is not made, or only in part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("nothing was written: give --yes to apply without a terminal that can be asked")]
    NotAsked,
    #[error("nothing was written: the answer was not yes")]
    Declined,
    #[error(
        "{operations} changes are more than a dry run takes ({DRY_RUN_OPERATIONS_MAX}, in {} MiB): each must be checked beside all others. Give fewer \
         files that do not refer to each other; diff shows the plan of any size",
        DRY_RUN_BYTES_MAX >> 20
    )]
    TooManyToCheck { operations: usize },
    #[error(
        "{error}\n{done} of {total} changes are written, the others are not. Mend this and run it again: it writes the rest"
    )]
    Partly { done: usize, total: usize, error: Box<AdminCliError> },
}

pub(super) async fn diff(
    client: &mut ApiClient,
    args: &DiffArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let plan = plan(client, &args.files, args.prune).await?;
    plan.print(out, usize::MAX)?;
    Ok(if plan.operations.is_empty() { EXIT_SUCCESS } else { EXIT_FAILURE })
}

pub(super) async fn apply(
    client: &mut ApiClient,
    args: &ApplyArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let plan = plan(client, &args.files, args.prune).await?;
    plan.print(out, SHOWN_MAX)?;
    if plan.operations.is_empty() {
        return Ok(EXIT_SUCCESS);
    }
    if !args.yes && !args.dry_run {
        confirm(&args.files)?;
    }
    write(client, args, &plan, out).await
}

async fn plan(client: &mut ApiClient, files: &[PathBuf], prune: bool) -> Result<ApplyPlan, AdminCliError> {
    let desired = DesiredResources::read(files)?;
    let kinds: Vec<Kind> = desired.kinds.iter().copied().collect();
    let stored = stored::read(client, &kinds).await?;
    Ok(ApplyPlan::of(desired, &stored, prune))
}

/// Reads the answer from the terminal.
fn confirm(files: &[PathBuf]) -> Result<(), ApplyError> {
    let stdin = io::stdin();
    if !stdin.is_terminal() || files.iter().any(|file| file == Path::new("-")) {
        return Err(ApplyError::NotAsked);
    }
    note(&"apply this plan? yes or no:");
    let mut answer = String::new();
    match stdin.read_line(&mut answer) {
        Ok(_) if matches!(answer.trim(), "y" | "yes") => Ok(()),
        _ => Err(ApplyError::Declined),
    }
}

async fn write(
    client: &mut ApiClient,
    args: &ApplyArgs,
    plan: &ApplyPlan,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let total = plan.operations.len();
    let batches = match args.dry_run {
        true => vec![plan.dry_run_batch().ok_or(ApplyError::TooManyToCheck { operations: total })?],
        false => plan.batches(),
    };
    let mut progress = ProgressLog::new(total, "changes");
    let (mut done, mut revision, mut code) = (0, None, EXIT_SUCCESS);
    let count = batches.len();
    for ((operations, body), number) in batches.into_iter().zip(1..) {
        // Every node serves the last change after those before it.
        let wait = args.wait.filter(|_| number == count);
        let result = send_batch(client, args, wait, &body).await;
        let reply = result.map_err(|error| match done {
            0 => error,
            done => ApplyError::Partly { done, total, error: Box::new(error) }.into(),
        })?;
        print_warnings(&reply.json()?);
        revision = reply.revision().or_else(|| number_member(&reply.json().ok()?, "revision"));
        code = behind_code(&reply);
        done += operations;
        progress.advance(operations);
    }
    let [created, updated, deleted] = plan.counts();
    let revision = revision.map_or_else(String::new, |revision| format!(" (revision {revision})"));
    let counts = format!("{created} created, {updated} updated, {deleted} deleted");
    match args.dry_run {
        true => writeln!(out, "checked: {counts}; nothing was written (--dry-run)")?,
        false => writeln!(out, "applied: {counts}{revision}")?,
    }
    Ok(code)
}

async fn send_batch(
    client: &mut ApiClient,
    args: &ApplyArgs,
    wait: Option<u32>,
    body: &Value,
) -> Result<ApiReply, AdminCliError> {
    let flags = [("dry_run=true", args.dry_run), ("weaken=true", args.weaken)];
    let flags = flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| flag.to_owned());
    let wait_argument = wait.map(|seconds| format!("wait={seconds}"));
    let query = flags.chain(wait_argument).collect::<Vec<_>>().join("&");
    let mark = if query.is_empty() { "" } else { "?" };
    let path = format!("batch{mark}{query}");
    let request = ApiRequest {
        wait: Duration::from_secs(wait.unwrap_or_default().into()) + checking_time(body),
        ..ApiRequest::new(Method::POST, path, Some(body.to_string().into_bytes()))
    };
    let reply = client.send(&request).await?;
    let failed = failed_operation(&reply, body);
    let reply = reply.success(client, failed.as_deref().unwrap_or("batch"));
    Ok(reply.map_err(|error| name_resource(error, failed))?)
}

/// What the check of a batch may take beside the usual time of a response.
fn checking_time(body: &Value) -> Duration {
    let operations = body.get("operations").and_then(Value::as_array).map_or(0, Vec::len);
    OPERATION_TIME_MAX * u32::try_from(operations).unwrap_or(u32::MAX)
}

/// The resource of the operation that an error names.
fn failed_operation(reply: &ApiReply, body: &Value) -> Option<String> {
    let number = reply.json().ok()?.get("operation")?.as_u64()?;
    let operation = body.get("operations")?.get(usize::try_from(number).ok()?)?;
    Some(operation.get("path")?.as_str()?.trim_start_matches("/apisix/admin/").to_owned())
}

fn name_resource(error: ApiError, resource: Option<String>) -> ApiError {
    match (error, resource) {
        (ApiError::Other { status, message }, Some(resource)) => {
            ApiError::Other { status, message: format!("{resource}: {message}") }
        }
        (error, _) => error,
    }
}

fn number_member(body: &Value, name: &str) -> Option<String> {
    Some(body.get(name)?.as_u64()?.to_string())
}

/// The warnings of each operation.
fn print_warnings(body: &Value) {
    let results = body.get("results").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for result in results {
        let key = result.get("key").and_then(Value::as_str).unwrap_or_default();
        let warnings =
            result.get("warnings").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for warning in warnings.iter().filter_map(Value::as_str) {
            let key = key.trim_start_matches("/apisix/");
            note(&format_args!("warning: {key}: {warning}"));
        }
    }
}
