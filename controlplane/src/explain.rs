//! Explains what a data plane does with a connection and a request, and how to fix a failure.
//!
//! `query` parses the question; `site` shows which ssl an SNI selects, `client` how the certificate
//! is verified, `request` where the request ends. Nothing is decided here: each step calls the
//! function that the data plane decides by (`model::Snapshot::lookup_site`, `pki::verify_client`,
//! `model::admission::admit`, `model::destination::find`) and describes the result. Invariant:
//! explaining changes nothing.

mod client;
mod query;
mod request;
mod site;

use model::{Reason, Snapshot};
use pki::VerifyReason;
pub(crate) use query::{ExplainQuery, parse};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use crate::current_snapshot::ListenerSettings;

/// The result of a connection or request.
enum Outcome {
    /// The handshake succeeds, and the question has no request.
    Established,
    /// The request is forwarded to an upstream.
    Forwarded(Value),
    Failed(FailureExplanation),
}

/// A failure, with the reason from the data plane's log.
struct FailureExplanation {
    reason: Reason,
    verify_reason: Option<VerifyReason>,
    /// The TLS alert, when the handshake fails.
    alert: Option<&'static str>,
    message: String,
    fix: Option<String>,
}

impl FailureExplanation {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, verify_reason: None, alert: None, message: message.into(), fix: None }
    }

    fn with_alert(mut self, alert: &'static str) -> Self {
        self.alert = Some(alert);
        self
    }

    fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl Outcome {
    fn into_json(self) -> Value {
        match self {
            Self::Established => json!({"result": "established"}),
            Self::Forwarded(to) => json!({"result": "forwarded", "to": to}),
            Self::Failed(failure) => {
                let mut json = json!({
                    "result": if failure.alert.is_some() { "handshake_rejected" } else { "not_forwarded" },
                    "reason": failure.reason.label(),
                    "message": failure.message,
                });
                let status = failure.reason.status().filter(|_| failure.alert.is_none());
                let more = [
                    ("alert", failure.alert.map(Value::from)),
                    ("status", status.map(|status| status.as_u16().into())),
                    ("verify_reason", failure.verify_reason.map(|reason| reason.as_str().into())),
                    ("fix", failure.fix.map(Value::from)),
                ];
                for (name, value) in more {
                    if let Some(value) = value {
                        put(&mut json, name, value);
                    }
                }
                json
            }
        }
    }
}

/// The fix for every blocked resource.
const BLOCKED: &str =
    "`lint` lists what the stored document asks for and cannot get; write it again without that";

fn put(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Value::Object(members) = object {
        members.insert(name.to_owned(), value.into());
    }
}

/// Explains a question by one snapshot.
pub(crate) fn explain(
    query: &ExplainQuery,
    snapshot: &Snapshot,
    listeners: &ListenerSettings,
    now: UnixTime,
) -> Value {
    let mut explanation = json!({"revision": snapshot.revision()});
    let outcome = walk(query, snapshot, listeners, now, &mut explanation);
    put(&mut explanation, "outcome", outcome.into_json());
    explanation
}

/// The steps of `docs/WALKS.md`, up to the first failure.
fn walk(
    query: &ExplainQuery,
    snapshot: &Snapshot,
    listeners: &ListenerSettings,
    now: UnixTime,
    explanation: &mut Value,
) -> Outcome {
    let Some(sni) = query.sni.as_ref().or(listeners.fallback_sni.as_ref()) else {
        let message = "no sni was given, and apisix.ssl.fallback_sni is not set: there is no default site";
        return Outcome::Failed(
            FailureExplanation::new(Reason::NoSni, message)
                .with_alert("unrecognized_name")
                .with_fix("have the client send a name (SNI)"),
        );
    };
    put(explanation, "sni", sni.as_str());
    put(explanation, "site", site::site_json(snapshot, sni, listeners));
    let Some(ssl) = snapshot.lookup_site(sni).ssl() else {
        let message = site::match_message(snapshot, sni);
        let fix = format!("add {sni}, or a wildcard one label above it, to the snis of an ssl object");
        return Outcome::Failed(
            FailureExplanation::new(Reason::NoSite, message).with_alert("unrecognized_name").with_fix(fix),
        );
    };
    if let Some(blocked) = &ssl.blocked {
        return Outcome::Failed(
            FailureExplanation::new(Reason::BlockedSite, site::blocked_message(ssl, blocked))
                .with_alert("unrecognized_name")
                .with_fix(BLOCKED),
        );
    }
    let client = client::evaluate(ssl.client.as_deref(), query.chain.as_deref(), now);
    put(explanation, "client_certificate", client.json.clone());
    if let Some(failure) = client.handshake_failure(ssl) {
        return Outcome::Failed(failure);
    }
    match &query.request {
        None => Outcome::Established,
        Some(request) => {
            let connection = request::ExplainedConnection { sni, ssl, client: &client };
            let (json, outcome) = request::explain_request(request, &connection, snapshot, listeners);
            put(explanation, "request", json);
            outcome
        }
    }
}
