//! Explains what a data plane does with a connection and a request, and how to fix a failure.
//!
//! `query` parses the question; `site` shows which ssl an SNI selects, `client` how the certificate
//! is verified, `request` where the request ends. Nothing is decided here: each step calls the
//! function that the data plane decides by (`model::Snapshot::lookup`, `pki::verify_client`,
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
    fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, verify_reason: None, alert: None, message: why.into(), fix: None }
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
    fn to_json(self) -> Value {
        match self {
            Self::Established => json!({"result": "established"}),
            Self::Forwarded(to) => json!({"result": "forwarded", "to": to}),
            Self::Failed(refusal) => {
                let mut shown = json!({
                    "result": if refusal.alert.is_some() { "refused in the handshake" } else { "refused" },
                    "reason": refusal.reason.label(),
                    "why": refusal.message,
                });
                let status = refusal.reason.status().filter(|_| refusal.alert.is_none());
                let more = [
                    ("alert", refusal.alert.map(Value::from)),
                    ("status", status.map(|status| status.as_u16().into())),
                    ("rule", refusal.verify_reason.map(|rule| rule.as_str().into())),
                    ("fix", refusal.fix.map(Value::from)),
                ];
                for (name, value) in more {
                    if let Some(value) = value {
                        put(&mut shown, name, value);
                    }
                }
                shown
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
    question: &ExplainQuery,
    snapshot: &Snapshot,
    listeners: &ListenerSettings,
    now: UnixTime,
) -> Value {
    let mut answer = json!({"revision": snapshot.revision()});
    let outcome = walk(question, snapshot, listeners, now, &mut answer);
    put(&mut answer, "outcome", outcome.to_json());
    answer
}

/// The steps of `docs/WALKS.md`, up to the first failure.
fn walk(
    question: &ExplainQuery,
    snapshot: &Snapshot,
    listeners: &ListenerSettings,
    now: UnixTime,
    answer: &mut Value,
) -> Outcome {
    let Some(sni) = question.sni.as_ref().or(listeners.fallback_sni.as_ref()) else {
        let why = "no sni was given, and apisix.ssl.fallback_sni is not set: there is no default site";
        return Outcome::Failed(
            FailureExplanation::new(Reason::NoSni, why)
                .with_alert("unrecognized_name")
                .with_fix("have the client send a name (SNI)"),
        );
    };
    put(answer, "sni", sni.as_str());
    put(answer, "site", site::site_json(snapshot, sni, listeners));
    let Some(ssl) = snapshot.lookup_site(sni).ssl() else {
        let why = site::match_message(snapshot, sni);
        let fix = format!("add {sni}, or a wildcard one label above it, to the snis of an ssl object");
        return Outcome::Failed(
            FailureExplanation::new(Reason::NoSite, why).with_alert("unrecognized_name").with_fix(fix),
        );
    };
    if let Some(blocked) = &ssl.blocked {
        return Outcome::Failed(
            FailureExplanation::new(Reason::BlockedSite, site::blocked_message(ssl, blocked))
                .with_alert("unrecognized_name")
                .with_fix(BLOCKED),
        );
    }
    let judged = client::evaluate(ssl.client.as_deref(), question.chain.as_deref(), now);
    put(answer, "client_certificate", judged.json.clone());
    if let Some(refusal) = judged.handshake_failure(ssl) {
        return Outcome::Failed(refusal);
    }
    match &question.request {
        None => Outcome::Established,
        Some(asked) => {
            let connection = request::ExplainedConnection { sni, ssl, client: &judged };
            let (shown, outcome) = request::explain_request(asked, &connection, snapshot, listeners.paths);
            put(answer, "request", shown);
            outcome
        }
    }
}
