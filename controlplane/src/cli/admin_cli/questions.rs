//! `explain` and `lint`: questions about what is served, printed for people.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use http::Method;
use mtls::ConfiguredFileRef;
use serde_json::{Map, Value};
use telemetry::stdout::CommandOutput;

use super::client::{ApiClient, ApiRequest};
use super::target::TargetError;
use super::{AdminCliError, EXIT_FAILURE, EXIT_SUCCESS, OutputForm, print_value, suggestions};

/// Explain what happens to a connection or request.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin explain --sni app.example                                        the handshake without a certificate
  controlplane admin explain --sni app.example --client-cert alice.crt --uri /orders  a request, too
  controlplane admin explain --sni app.example --host other.example --method POST -o json")]
pub(crate) struct ExplainArgs {
    /// The name in the ClientHello. Default: apisix.ssl.fallback_sni
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The client's certificate and what it sends behind it, a PEM file. Default: it sends none
    #[arg(long, value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// The Host header. Default: the SNI
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Path and query as the client writes them. Default: /
    #[arg(long, value_name = "URI")]
    uri: Option<String>,
    /// Default: GET
    #[arg(long, value_name = "METHOD", value_parser = suggestions::methods(), hide_possible_values = true)]
    method: Option<String>,
    /// The client's address. Default: this machine's
    #[arg(long, value_name = "ADDRESS")]
    remote_addr: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputForm,
}

/// List likely misconfigurations.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin lint
  controlplane admin lint -o json | jq '.list[] | select(.severity == \"error\")'

Exits with 1 if a finding is an error.")]
pub(crate) struct LintArgs {
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputForm,
}

pub(super) async fn explain(
    client: &mut ApiClient,
    args: &ExplainArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let body = args.question()?.to_string().into_bytes();
    let request = ApiRequest::new(Method::POST, "explain", Some(body));
    let explanation = client.send(&request).await?.success(client, "explain")?.json()?;
    match args.output {
        OutputForm::Table => print_explanation(out, &explanation)?,
        form => print_value(out, &explanation, form)?,
    }
    Ok(EXIT_SUCCESS)
}

impl ExplainArgs {
    fn question(&self) -> Result<Value, AdminCliError> {
        let file = self.client_cert.as_ref().map(|path| {
            let text = ConfiguredFileRef { setting: "--client-cert", path }.read_text();
            text.map(|text| text.to_string()).map_err(TargetError::File)
        });
        let members = [
            ("sni", self.sni.clone()),
            ("client_cert", file.transpose()?),
            ("host", self.host.clone()),
            ("uri", self.uri.clone()),
            ("method", self.method.clone()),
            ("remote_addr", self.remote_addr.clone()),
        ];
        let given = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        Ok(Value::Object(given.collect::<Map<_, _>>()))
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

/// One line for each step, the outcome last.
fn print_explanation(out: &mut dyn Write, explanation: &Value) -> io::Result<()> {
    let mut line = |name: &str, text: Option<String>| match text {
        Some(text) => writeln!(out, "{name:<12}{text}"),
        None => Ok(()),
    };
    let at = |pointer: &str| text(explanation, pointer).map(str::to_owned);
    line("site", at("/site/message"))?;
    line("certificate", certificate_text(explanation.get("client_certificate")))?;
    line("path", forwarded_path(explanation))?;
    line("skip rule", at("/request/skip_pattern"))?;
    if let Some(to) = explanation.pointer("/outcome/to") {
        let id = |name: &str| text(to, &format!("/{name}")).map(|id| format!("{name} {id}"));
        let nodes = to.get("nodes").map(|nodes| format!("nodes {nodes}"));
        let parts = [id("route"), id("service"), id("upstream"), nodes];
        line("to", Some(parts.into_iter().flatten().collect::<Vec<_>>().join(", ")))?;
    }
    let outcome = at("/outcome/result").unwrap_or_default().replace('_', " ");
    let detail = ["/outcome/reason", "/outcome/verify_reason", "/outcome/alert"].into_iter().filter_map(at);
    let status = explanation.pointer("/outcome/status").map(ToString::to_string);
    let details: Vec<String> = status.into_iter().chain(detail).collect();
    let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) };
    line("outcome", Some(format!("{outcome}{details}")))?;
    line("why", at("/outcome/message"))?;
    line("fix", at("/outcome/fix"))?;
    near_misses(explanation, out)
}

fn certificate_text(certificate: Option<&Value>) -> Option<String> {
    let certificate = certificate?;
    if let Some(message) = text(certificate, "/message") {
        return Some(message.to_owned());
    }
    let subject = text(certificate, "/leaf/subject").unwrap_or_default();
    if let Some(anchor) = text(certificate, "/anchor") {
        return Some(format!("{subject}, verified up to {anchor}"));
    }
    let failing = text(certificate, "/failing_certificate/subject").unwrap_or(subject);
    let position = text(certificate, "/failing_certificate/position");
    let position = position.map_or_else(String::new, |position| format!(" ({position})"));
    Some(format!("{subject}, rejected; the certificate that fails is {failing}{position}"))
}

/// The path that rules see, and the forwarded one where it is another.
fn forwarded_path(explanation: &Value) -> Option<String> {
    let path = text(explanation, "/request/path")?;
    match text(explanation, "/request/forwarded_path") {
        Some(forwarded) if forwarded != path => Some(format!("{path}, forwarded as {forwarded}")),
        _ => Some(path.to_owned()),
    }
}

fn near_misses(explanation: &Value, out: &mut dyn Write) -> io::Result<()> {
    let misses = explanation.pointer("/request/near_misses").and_then(Value::as_array);
    for miss in misses.map(Vec::as_slice).unwrap_or_default() {
        let (route, why) =
            (text(miss, "/route").unwrap_or_default(), text(miss, "/mismatch").unwrap_or_default());
        writeln!(out, "{:<12}route {route}: {why}", "near miss")?;
    }
    Ok(())
}

pub(super) async fn lint(
    client: &mut ApiClient,
    args: &LintArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let report = client.send(&ApiRequest::get("lint")).await?.success(client, "lint")?.json()?;
    let findings = report.get("list").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let has_errors = findings.iter().any(|finding| text(finding, "/severity") == Some("error"));
    match args.output {
        OutputForm::Table => print_findings(out, findings)?,
        form => print_value(out, &report, form)?,
    }
    Ok(if has_errors { EXIT_FAILURE } else { EXIT_SUCCESS })
}

/// One line for each finding; its hint is indented below.
fn print_findings(out: &mut dyn Write, findings: &[Value]) -> io::Result<()> {
    for finding in findings {
        let at = |name: &str| text(finding, &format!("/{name}")).unwrap_or_default();
        writeln!(out, "{:<8} {} {}: {}", at("severity"), at("resource"), at("field"), at("message"))?;
        if !at("hint").is_empty() {
            writeln!(out, "{:<8} -> {}", "", at("hint"))?;
        }
    }
    writeln!(out, "{} findings", findings.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn explained(explanation: Value) -> String {
        let mut out = Vec::new();
        print_explanation(&mut out, &explanation).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_explanation_is_printed_step_by_step() {
        let text = explained(json!({
            "revision": 7,
            "site": {"message": "a.test is an entry of ssl 1"},
            "client_certificate": {"requested": true, "presented": true, "leaf": {"subject": "CN=mallory"},
                "failing_certificate": {"subject": "CN=mallory", "position": "client_cert[1]"}},
            "request": {"path": "/a b", "forwarded_path": "/a%20b", "near_misses": [{"route": "2", "mismatch": "the method"}]},
            "outcome": {"result": "not_forwarded", "reason": "bad_certificate", "status": 400,
                "verify_reason": "unknown_issuer", "message": "no trusted CA", "fix": "add it"},
        }));
        let expected = "\
site        a.test is an entry of ssl 1
certificate CN=mallory, rejected; the certificate that fails is CN=mallory (client_cert[1])
path        /a b, forwarded as /a%20b
outcome     not forwarded (400, bad_certificate, unknown_issuer)
why         no trusted CA
fix         add it
near miss   route 2: the method
";
        assert_eq!(text, expected);
        let forwarded = explained(json!({
            "client_certificate": {"leaf": {"subject": "CN=alice"}, "anchor": "CN=ca"},
            "outcome": {"result": "forwarded", "to": {"route": "1", "service": null, "nodes": ["a:80"]}},
        }));
        let expected = "\
certificate CN=alice, verified up to CN=ca
to          route 1, nodes [\"a:80\"]
outcome     forwarded
";
        assert_eq!(forwarded, expected);
    }

    #[test]
    fn findings_are_lines_with_hints() {
        let mut out = Vec::new();
        let finding = json!({"severity": "error", "resource": "ssls/1", "field": "cert", "message": "expired", "hint": "renew"});
        print_findings(&mut out, &[finding]).unwrap();
        let expected = "error    ssls/1 cert: expired\n         -> renew\n1 findings\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
