//! `get`, `list`, `put`, `post`, `patch` and `delete`: one request each.
//!
//! Invariant: standard output has the result alone; warnings go to standard error.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use http::{Method, StatusCode};
use model::redact;
use serde_json::Value;
use telemetry::stdout::CommandOutput;

use super::client::{ApiClient, ApiReply, ApiRequest};
use super::input::InputArgs;
use super::resource_name::ResourceName;
use super::{AdminCliError, EXIT_BEHIND, EXIT_SUCCESS, OutputForm, note, print_value, suggestions, table};

/// Show one resource.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin get routes 1
  controlplane admin get ssls/1 -o yaml
  controlplane admin get dataplanes                 who serves which revision
  controlplane admin get dataplanes -o json | jq .revision")]
pub(crate) struct GetArgs {
    /// KIND and ID, such as routes 1 or routes/1; or another path of the Admin API
    #[arg(required = true, num_args = 1..=3, value_name = "KIND [ID]", value_parser = suggestions::readable(),
          hide_possible_values = true)]
    resource: Vec<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputForm,
}

/// Show the resources of a kind.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin list ssls
  controlplane admin list routes --uri '^/api/' --label env
  controlplane admin list routes --page 2 --page-size 100 -o json")]
pub(crate) struct ListArgs {
    /// Such as routes
    #[arg(value_parser = suggestions::kinds(), hide_possible_values = true)]
    kind: String,
    /// Only those whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    name: Option<String>,
    /// Only those with a label of this name
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Only those of which a uri matches this regular expression
    #[arg(long, value_name = "REGEX")]
    uri: Option<String>,
    /// One page, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    page: Option<u32>,
    /// Resources of a page, 10 to 500
    #[arg(long, value_name = "N", default_value_t = 100, requires = "page",
          value_parser = clap::value_parser!(u32).range(10..=500))]
    page_size: u32,
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputForm,
}

/// What every write can be asked for.
#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    /// Check the write and show what it would change; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until every data plane serves the change, at most this long
    #[arg(long, value_name = "SECONDS", conflicts_with = "dry_run",
          value_parser = clap::value_parser!(u32).range(1..=60))]
    wait: Option<u32>,
    /// Write although it protects less (deployment.admin.protect_client_auth)
    #[arg(long)]
    weaken: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputForm,
}

/// What a write of a resource that may exist can be asked for.
#[derive(Debug, Args)]
pub(crate) struct IfMatchArgs {
    /// Write only if the resource still has this ETag (its modifiedIndex)
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
}

/// Create or replace a resource.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin put routes 1 -f route.yaml
  controlplane admin put ssls/1 -f site.json --wait 10
  controlplane admin put routes -f route.json       the id is in the file
  controlplane admin put routes/1 --json '{\"uri\": \"/*\", \"upstream_id\": \"1\"}' --dry-run")]
pub(crate) struct PutArgs {
    /// KIND and ID, such as routes 1 or routes/1; without ID the document has it
    #[arg(required = true, num_args = 1..=2, value_name = "KIND [ID]", value_parser = suggestions::kinds(),
          hide_possible_values = true)]
    resource: Vec<String>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    if_match: IfMatchArgs,
    #[command(flatten)]
    write: WriteArgs,
}

/// Create a resource under a new id, or send another POST.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin post routes -f route.yaml
  controlplane admin post dataplanes/accept_store")]
pub(crate) struct PostArgs {
    /// Such as routes
    #[arg(required = true, num_args = 1..=3, value_name = "KIND", value_parser = suggestions::kinds(),
          hide_possible_values = true)]
    resource: Vec<String>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    write: WriteArgs,
}

/// Change a part of a resource.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin patch routes 1 --json '{\"status\": 0}'          members are merged, null removes one
  controlplane admin patch ssls 1 client/ca --json \"$(jq -Rs . < ca.crt)\"
  controlplane admin patch services/1 upstream/nodes -f nodes.json")]
pub(crate) struct PatchArgs {
    /// KIND, ID and, to set just one member, its path
    #[arg(required = true, num_args = 1..=3, value_name = "KIND ID [SUB/PATH]", value_parser = suggestions::kinds(),
          hide_possible_values = true)]
    resource: Vec<String>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    if_match: IfMatchArgs,
    #[command(flatten)]
    write: WriteArgs,
}

/// Delete a resource.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin delete routes 1
  controlplane admin delete upstreams/1 --force")]
pub(crate) struct DeleteArgs {
    /// KIND and ID, such as routes 1 or routes/1
    #[arg(required = true, num_args = 1..=2, value_name = "KIND ID", value_parser = suggestions::kinds(),
          hide_possible_values = true)]
    resource: Vec<String>,
    /// Delete it although others refer to it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    if_match: IfMatchArgs,
    #[command(flatten)]
    write: WriteArgs,
}

impl WriteArgs {
    /// The query arguments of the write.
    fn query(&self, force: bool) -> String {
        let wait = self.wait.map(|seconds| format!("wait={seconds}"));
        let flags = [("dry_run", self.dry_run), ("weaken", self.weaken), ("force", force)];
        let flags = flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| format!("{name}=true"));
        flags.chain(wait).collect::<Vec<_>>().join("&")
    }
}

/// One write of a document, or another POST.
struct WriteCommand<'a> {
    method: Method,
    name: &'a ResourceName,
    body: Option<&'a Value>,
    args: &'a WriteArgs,
    if_match: Option<&'a IfMatchArgs>,
    force: bool,
}

impl WriteCommand<'_> {
    fn to_request(&self) -> ApiRequest {
        let body = self.body.map(|body| body.to_string().into_bytes());
        let if_match = self.if_match.and_then(|args| args.if_match.as_deref());
        ApiRequest {
            if_match: if_match.map(quoted_etag),
            wait: Duration::from_secs(self.args.wait.unwrap_or_default().into()),
            ..ApiRequest::new(self.method.clone(), self.name.path_with(&self.args.query(self.force)), body)
        }
    }
}

/// An ETag with its quotes, which a shell takes away.
fn quoted_etag(etag: &str) -> String {
    if etag == "*" || etag.starts_with('"') || etag.starts_with("W/") {
        etag.to_owned()
    } else {
        format!("\"{etag}\"")
    }
}

pub(super) async fn get(
    client: &mut ApiClient,
    args: &GetArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let name = ResourceName::parse(&args.resource)?;
    let reply = client.send(&ApiRequest::get(name.path_with(""))).await?.success(client, &name.shown())?;
    show(&name, &reply, args.output, out)?;
    Ok(EXIT_SUCCESS)
}

pub(super) async fn list(
    client: &mut ApiClient,
    args: &ListArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let name = ResourceName::parse(std::slice::from_ref(&args.kind))?;
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (argument, value) in [("name", &args.name), ("label", &args.label), ("uri", &args.uri)] {
        value.iter().for_each(|value| {
            query.append_pair(argument, value);
        });
    }
    if let Some(page) = args.page {
        query.append_pair("page", &page.to_string());
        query.append_pair("page_size", &args.page_size.to_string());
    }
    let request = ApiRequest::get(name.path_with(&query.finish()));
    let reply = client.send(&request).await?.success(client, &name.shown())?;
    show(&name, &reply, args.output, out)?;
    if let (Some(page), OutputForm::Table) = (args.page, args.output) {
        let total = reply.json()?.get("total").and_then(Value::as_u64).unwrap_or_default();
        note(&format_args!(
            "page {page} of {}, {total} in all",
            total.div_ceil(args.page_size.into()).max(1)
        ));
    }
    Ok(EXIT_SUCCESS)
}

/// Prints a response to GET. What has no columns is printed as JSON.
fn show(
    name: &ResourceName,
    reply: &ApiReply,
    form: OutputForm,
    out: &mut CommandOutput,
) -> Result<(), AdminCliError> {
    reply.notes().iter().for_each(|text| note(text));
    let value = reply.json()?;
    if form != OutputForm::Table {
        return Ok(print_value(out, &value, form)?);
    }
    let list = value.get("list").and_then(Value::as_array);
    match (list, value.get("value")) {
        (Some(_), _) if name.collection == "dataplanes" => table::data_planes(&value).print(out)?,
        (Some(list), _) if list.iter().all(is_document) => {
            let rows: Vec<_> = list.iter().map(row).collect();
            table::documents(name.kind, &rows).print(out)?;
        }
        (None, Some(_)) if is_document(&value) => {
            table::documents(name.kind, &[row(&value)]).print(out)?;
        }
        _ => print_value(out, &value, OutputForm::Json)?,
    }
    Ok(())
}

fn is_document(item: &Value) -> bool {
    item.get("key").is_some_and(Value::is_string) && item.get("value").is_some_and(Value::is_object)
}

/// The id and the document of an item.
fn row(item: &Value) -> (String, Value) {
    let key = item.get("key").and_then(Value::as_str).unwrap_or_default();
    let id = key.rsplit('/').next().unwrap_or_default().to_owned();
    (id, item.get("value").cloned().unwrap_or_default())
}

/// The document of a PUT: what a GET answers may be sent back with the members around it.
fn unwrapped(mut body: Value) -> Value {
    let wrapped = is_document(&body) && body.get("modifiedIndex").is_some();
    match body.get_mut("value").filter(|_| wrapped) {
        Some(value) => value.take(),
        None => body,
    }
}

pub(super) async fn put(
    client: &mut ApiClient,
    args: &PutArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let name = ResourceName::parse(&args.resource)?;
    let body = unwrapped(args.input.read()?);
    let write = WriteCommand {
        method: Method::PUT,
        name: &name,
        body: Some(&body),
        args: &args.write,
        if_match: Some(&args.if_match),
        force: false,
    };
    send(client, write, out).await
}

pub(super) async fn post(
    client: &mut ApiClient,
    args: &PostArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let name = ResourceName::parse(&args.resource)?;
    let body = args.input.read_optional()?;
    let write = WriteCommand {
        method: Method::POST,
        name: &name,
        body: body.as_ref(),
        args: &args.write,
        if_match: None,
        force: false,
    };
    send(client, write, out).await
}

pub(super) async fn patch(
    client: &mut ApiClient,
    args: &PatchArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let mut name = ResourceName::parse(&args.resource)?;
    let sub_path = name.sub_path.take();
    name = ResourceName { sub_path, ..ResourceName::parse_one(&[name.shown()])? };
    let body = args.input.read()?;
    let write = WriteCommand {
        method: Method::PATCH,
        name: &name,
        body: Some(&body),
        args: &args.write,
        if_match: Some(&args.if_match),
        force: false,
    };
    send(client, write, out).await
}

pub(super) async fn delete(
    client: &mut ApiClient,
    args: &DeleteArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let name = ResourceName::parse_one(&args.resource)?;
    let write = WriteCommand {
        method: Method::DELETE,
        name: &name,
        body: None,
        args: &args.write,
        if_match: Some(&args.if_match),
        force: args.force,
    };
    send(client, write, out).await
}

async fn send(
    client: &mut ApiClient,
    write: WriteCommand<'_>,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let WriteCommand { method, name, args, .. } = &write;
    let reply = client.send(&write.to_request()).await?.success(client, &name.shown())?;
    reply.notes().iter().for_each(|text| note(&format_args!("warning: {text}")));
    if args.output != OutputForm::Table {
        print_value(out, &reply.json()?, args.output)?;
    } else if args.dry_run {
        print_dry_run(out, name, &reply.json()?)?;
    } else {
        print_written(out, method, name, &reply)?;
    }
    Ok(behind_code(&reply))
}

/// The exit code of a write. Reports what a 202 says.
pub(super) fn behind_code(reply: &ApiReply) -> u8 {
    if reply.status != StatusCode::ACCEPTED {
        return EXIT_SUCCESS;
    }
    let behind = behind_text(&reply.json().unwrap_or_default());
    note(&format_args!("it is stored; {behind} (controlplane admin get dataplanes)"));
    EXIT_BEHIND
}

/// Who does not serve a write yet, from the member `behind`.
fn behind_text(body: &Value) -> String {
    let list = body.get("behind").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let name = |entry: &Value| {
        let text = |member: &str| entry.get(member).and_then(Value::as_str);
        match (text("node").or_else(|| text("control_plane")), text("problem")) {
            (Some(name), Some(problem)) => Some(format!("{name} ({problem})")),
            (name, problem) => name.or(problem).map(str::to_owned),
        }
    };
    let names: Vec<_> = list.iter().filter_map(name).collect();
    match names.as_slice() {
        [] => "no data plane is connected, or not every one serves it yet".to_owned(),
        names => format!("not served yet: {}", names.join(", ")),
    }
}

fn print_written(
    out: &mut dyn Write,
    method: &Method,
    name: &ResourceName,
    reply: &ApiReply,
) -> Result<(), AdminCliError> {
    let body = reply.json().unwrap_or_default();
    let key = body.get("key").and_then(Value::as_str).unwrap_or_default();
    // A POST learns its id here. `/apisix/routes/1`, whatever the store's prefix.
    let shown = match key.rsplit('/').next() {
        Some(id) if !id.is_empty() && name.id.is_none() => format!("{}/{id}", name.collection),
        _ => name.shown(),
    };
    let done = match (method, reply.status) {
        (&Method::DELETE, _) => "deleted",
        (&Method::PATCH, _) => "patched",
        (_, StatusCode::CREATED) => "created",
        (&Method::PUT, _) => "replaced",
        _ => "done",
    };
    let revision = reply.revision().map_or_else(String::new, |revision| format!(" (revision {revision})"));
    writeln!(out, "{shown} {done}{revision}")?;
    Ok(())
}

/// The differences as lines: `replace /uri "/b"`, what is kept, and the warnings.
fn print_dry_run(out: &mut dyn Write, name: &ResourceName, body: &Value) -> Result<(), AdminCliError> {
    let list = |member: &str| body.get(member).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, member: &str| {
        value.get(member).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let path = |operation: &Value| text(operation, "path");
    // Each write sets the times.
    let is_time = |operation: &Value| matches!(path(operation).as_str(), "/create_time" | "/update_time");
    let difference: Vec<Value> = list("difference").into_iter().filter(|one| !is_time(one)).collect();
    let whole = difference.iter().find(|operation| path(operation).is_empty());
    for operation in difference.iter().filter(|operation| !path(operation).is_empty()) {
        let value = operation.get("value").map_or_else(String::new, |value| format!(" {}", clipped(value)));
        writeln!(out, "{:<8}{}{value}", text(operation, "op"), path(operation))?;
    }
    for (member, word) in [("kept", "kept"), ("warnings", "warning"), ("findings", "finding")] {
        for text in list(member).iter().filter_map(Value::as_str) {
            writeln!(out, "{word}: {text}")?;
        }
    }
    let result = match (whole.map(|operation| operation.get("value")), difference.len()) {
        (Some(Some(Value::Null)), _) => "would be deleted".to_owned(),
        (Some(_), _) => "would be created".to_owned(),
        (None, 0) => "nothing would change".to_owned(),
        (None, count) => format!("{count} differences"),
    };
    writeln!(out, "{}: {result}; nothing was written (--dry-run)", name.shown())?;
    Ok(())
}

/// A value in one line, without private keys.
pub(super) fn clipped(value: &Value) -> String {
    const VALUE_MAX: usize = 72;
    match value {
        Value::String(text) if text.contains("-----BEGIN") || text.contains('\n') => {
            format!("({} lines)", text.lines().count())
        }
        value => {
            let text = value.to_string();
            redact(&model::truncated(&text, VALUE_MAX)).into_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_become_query_and_headers() {
        let args = WriteArgs { dry_run: true, wait: Some(5), weaken: true, output: OutputForm::Table };
        let if_match = IfMatchArgs { if_match: Some("12".to_owned()) };
        let name = ResourceName::parse(&["routes/1".to_owned()]).unwrap();
        let write = WriteCommand {
            method: Method::PUT,
            name: &name,
            body: Some(&json!({})),
            args: &args,
            if_match: Some(&if_match),
            force: true,
        };
        let request = write.to_request();
        assert_eq!(request.path, "routes/1?dry_run=true&weaken=true&force=true&wait=5");
        assert_eq!(request.if_match.as_deref(), Some("\"12\""));
        assert_eq!(request.wait, Duration::from_secs(5));
        for etag in ["*", "\"12\"", "W/\"12\""] {
            assert_eq!(quoted_etag(etag), etag);
        }
    }

    #[test]
    fn a_202_names_who_is_behind() {
        let body = json!({"behind": [
            {"node": "edge-1", "acknowledged": 3, "problem": "behind"}, {"control_plane": "cp-2"},
        ]});
        assert_eq!(behind_text(&body), "not served yet: edge-1 (behind), cp-2");
        let none = json!({"behind": [{"acknowledged": null, "problem": "no data plane is connected"}]});
        assert_eq!(behind_text(&none), "not served yet: no data plane is connected");
        assert!(behind_text(&json!({"behind": []})).starts_with("no data plane is connected"));
    }

    #[test]
    fn values_are_clipped_and_hold_no_private_key() {
        let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----\n";
        assert_eq!(clipped(&json!(key)), "(3 lines)");
        assert!(!clipped(&json!({"key": key})).contains("MC4C"));
        assert!(clipped(&json!("x".repeat(500))).len() < 100);
        assert_eq!(clipped(&json!({"a": 1})), "{\"a\":1}");
    }

    #[test]
    fn a_dry_run_prints_its_difference() {
        let name = ResourceName::parse(&["routes/1".to_owned()]).unwrap();
        let printed = |difference: Value| {
            let body = json!({"dry_run": true, "warnings": ["client: removed"], "difference": difference});
            let mut out = Vec::new();
            print_dry_run(&mut out, &name, &body).unwrap();
            String::from_utf8(out).unwrap()
        };
        let time = json!({"op": "replace", "path": "/update_time", "value": 7});
        let text = printed(json!([
            time, {"op": "replace", "path": "/uri", "value": "/b"}, {"op": "remove", "path": "/client"},
        ]));
        let expected = "replace /uri \"/b\"\nremove  /client\nwarning: client: removed\n\
                        routes/1: 2 differences; nothing was written (--dry-run)\n";
        assert_eq!(text, expected);
        for (difference, expected) in [
            (json!([time]), "routes/1: nothing would change; "),
            (json!([{"op": "replace", "path": "", "value": null}]), "routes/1: would be deleted; "),
            (json!([{"op": "replace", "path": "", "value": {}}]), "routes/1: would be created; "),
        ] {
            let text = printed(difference);
            assert!(text.lines().nth(1).unwrap().starts_with(expected), "{text}");
        }
    }
}
