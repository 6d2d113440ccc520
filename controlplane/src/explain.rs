//! Why was I refused? What a data plane would do with a connection and a request, and what would fix it.
//!
//! `question` reads what is asked; `site` says who answers to the name, `client` how the certificate fares, `request` where the request ends.
//! Nothing is decided here: each step asks the function the data plane decides by (`model::Snapshot::lookup`, `pki::verify_client`,
//! `model::admission::admit`, `model::destination::find`) and puts the answer into words. Invariant: nothing is changed by a question.

mod client;
mod question;
mod request;
mod site;

use model::{Reason, Snapshot};
use pki::VerifyReason;
pub use question::{Asked, Question, read};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use crate::current_snapshot::ListenerSettings;

/// How it ends.
enum Outcome {
    /// Nothing refuses; without a request there is nothing more to say.
    Established,
    /// An upstream is asked.
    Forwarded(Value),
    /// It is refused.
    Refused(Refusal),
}

/// A refusal in the words of the data plane's log.
struct Refusal {
    reason: Reason,
    rule: Option<VerifyReason>,
    /// The alert, when it happens in the handshake.
    alert: Option<&'static str>,
    why: String,
    fix: Option<String>,
}

impl Refusal {
    fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, rule: None, alert: None, why: why.into(), fix: None }
    }

    fn alert(mut self, alert: &'static str) -> Self {
        self.alert = Some(alert);
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl Outcome {
    fn shown(self) -> Value {
        match self {
            Self::Established => json!({"result": "established"}),
            Self::Forwarded(to) => json!({"result": "forwarded", "to": to}),
            Self::Refused(refusal) => {
                let mut shown = json!({
                    "result": if refusal.alert.is_some() { "refused in the handshake" } else { "refused" },
                    "reason": refusal.reason.label(),
                    "why": refusal.why,
                });
                let status = refusal.reason.status().filter(|_| refusal.alert.is_none());
                let more = [
                    ("alert", refusal.alert.map(Value::from)),
                    ("status", status.map(|status| status.as_u16().into())),
                    ("rule", refusal.rule.map(|rule| rule.as_str().into())),
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

/// What helps against everything that is blocked.
const BLOCKED: &str =
    "`lint` lists what the stored document asks for and cannot get; write it again without that";

/// Adds a member to an object.
fn put(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Value::Object(members) = object {
        members.insert(name.to_owned(), value.into());
    }
}

/// Answers a question from one snapshot.
pub fn answer(
    question: &Question,
    snapshot: &Snapshot,
    listeners: &ListenerSettings,
    now: UnixTime,
) -> Value {
    let mut answer = json!({"revision": snapshot.revision()});
    let outcome = walk(question, snapshot, listeners, now, &mut answer);
    put(&mut answer, "outcome", outcome.shown());
    answer
}

/// The walk of `docs/WALKS.md`, as far as it goes.
fn walk(
    question: &Question,
    snapshot: &Snapshot,
    listeners: &ListenerSettings,
    now: UnixTime,
    answer: &mut Value,
) -> Outcome {
    let Some(sni) = question.sni.as_ref().or(listeners.fallback_sni.as_ref()) else {
        let why = "no sni was given, and apisix.ssl.fallback_sni is not set: there is no default site";
        return Outcome::Refused(
            Refusal::new(Reason::NoSni, why)
                .alert("unrecognized_name")
                .fix("have the client send a name (SNI)"),
        );
    };
    put(answer, "sni", sni.as_str());
    put(answer, "site", site::shown(snapshot, sni, listeners));
    let Some(ssl) = snapshot.lookup(sni).ssl() else {
        let why = site::why(snapshot, sni);
        let fix = format!("add {sni}, or a wildcard one label above it, to the snis of an ssl object");
        return Outcome::Refused(Refusal::new(Reason::NoSite, why).alert("unrecognized_name").fix(fix));
    };
    if let Some(blocked) = &ssl.blocked {
        return Outcome::Refused(
            Refusal::new(Reason::BlockedSite, site::blocked(ssl, blocked))
                .alert("unrecognized_name")
                .fix(BLOCKED),
        );
    }
    let judged = client::judge(ssl.client.as_deref(), question.chain.as_deref(), now);
    put(answer, "client_certificate", judged.shown.clone());
    if let Some(refusal) = judged.in_the_handshake(ssl) {
        return Outcome::Refused(refusal);
    }
    match &question.request {
        None => Outcome::Established,
        Some(asked) => {
            let connection = request::Connection { sni, ssl, judged: &judged };
            let (shown, outcome) = request::walk(asked, &connection, snapshot, listeners.paths);
            put(answer, "request", shown);
            outcome
        }
    }
}
