//! Compiles documents that another program (such as APISIX) wrote to the store, bypassing the Admin
//! API.
//!
//! The Admin API rejects an unsupported document, but one in the store is already there. Such a
//! document is served without the fields that neither protect nor direct traffic
//! (`ignored_fields`), or blocked (`matchers`), or it is invalid and its predecessor stays in
//! force. Invariant: no document is served with less protection than it asks for, and none is
//! dropped so that a broader route or site takes its traffic ([decision
//! 16](../../docs/decisions/0016-what-another-program-wrote.md)).

mod ignored_fields;
mod matchers;
mod salvage;

use std::borrow::Cow;
use std::sync::Arc;

use pki::Keyring;
pub use salvage::SalvagedDocument;
use serde_json::Value;

use crate::client_identity::ClientIdentity;
use crate::document::{compile, compile_client_policy};
use crate::id::{Id, Key, Kind};
use crate::lint::{Finding, Findings, Severity};
use crate::plugin::unknown_plugin;
use crate::problem::{Problem, ProblemKind};
use crate::redact::truncated;
use crate::resource::{Blocked, Resource, Route, Service, Ssl};

/// Bounds the problems that are collected from one document.
const PROBLEMS_MAX: usize = 16;
/// Bounds the message of a finding in bytes, because some messages quote values.
const MESSAGE_MAX: usize = 1024;

/// The outcome of compiling a stored document.
#[derive(Debug)]
pub struct CompileOutcome {
    key: Key,
    verdict: Verdict,
    problems: Vec<Problem>,
    left_out: Vec<Finding>,
}

#[derive(Debug)]
enum Verdict {
    /// The resource is served.
    Served(Resource),
    /// The document asks for an unsupported feature: the resource is blocked and replaces its
    /// predecessor.
    Blocked(Resource),
    /// The document is invalid and its predecessor stays. Without a predecessor, this blocked
    /// resource is used, if the matchers are readable.
    Invalid(Option<Resource>),
}

/// Compiles a stored document as [`compile`] does, and falls back to the part that is safe to
/// serve.
pub fn compile_stored(kind: Kind, id: &Id, document: &Value, keyring: &Keyring) -> CompileOutcome {
    let key = Key::new(kind, id.clone());
    let served = |resource, left_out| CompileOutcome {
        key: key.clone(),
        verdict: Verdict::Served(resource),
        problems: Vec::new(),
        left_out,
    };
    if let Ok(resource) = compile(kind, id, document, keyring) {
        let mut notes = Findings::for_resource(key.clone());
        ignored_fields::note_observers(document, &mut notes);
        return served(resource, notes.findings);
    }
    if !document.is_object() {
        let problem = not_an_object(&key, document.as_str());
        return block_or_keep(key, document, vec![problem], Vec::new());
    }
    let mut stripped =
        ignored_fields::strip_ignored(kind, document.clone(), Findings::for_resource(key.clone()));
    let mut problems: Vec<Problem> =
        stripped.unknown_plugins.iter().map(|name| unknown_plugin(name)).collect();
    while problems.len() < PROBLEMS_MAX {
        match compile(kind, id, &stripped.document, keyring) {
            Ok(resource) if problems.is_empty() => return served(resource, stripped.ignored),
            Ok(_) => break,
            Err(problem) => {
                let (fault, member) = (problem.kind, top_level_member(&problem.field).to_owned());
                // Removing members can make the rest invalid; that is no problem of the document.
                if fault != ProblemKind::Invalid || problems.is_empty() {
                    problems.push(problem);
                }
                // The search continues without the member, because an unsupported protection may
                // follow a plain mistake. The stripped document is never served.
                if stripped.document.as_object_mut().and_then(|members| members.remove(&member)).is_none() {
                    break;
                }
            }
        }
    }
    block_or_keep(key, document, problems, stripped.ignored)
}

/// Adds the client policy or allow-list of a document to its blocked resource, for comparisons: the
/// resource stays blocked, and what takes its place should deny as much. What cannot be read is
/// left out.
#[must_use]
pub fn with_readable_policy(blocked: Resource, document: &Value) -> Resource {
    if blocked.blocked().is_none() {
        return blocked;
    }
    let identity = || {
        let source = document.get("client_identity").filter(|source| !source.is_null())?;
        ClientIdentity::compile(source).ok().map(Arc::new)
    };
    match blocked {
        Resource::Ssl(ssl) if ssl.client.is_none() && !ssl.client_side => {
            let client = document.get("client").filter(|client| client.is_object());
            let policy = client.and_then(|client| compile_client_policy(client).ok());
            Resource::Ssl(Arc::new(Ssl { client: policy.map(Arc::new), ..(*ssl).clone() }))
        }
        Resource::Route(route) => {
            Resource::Route(Arc::new(Route { client_identity: identity(), ..(*route).clone() }))
        }
        Resource::Service(service) => {
            Resource::Service(Arc::new(Service { client_identity: identity(), ..(*service).clone() }))
        }
        other => other,
    }
}

/// The outcome for a stored document that could not be prepared for compilation, for example
/// because a reference did not resolve.
pub fn stored_with_problem(kind: Kind, id: &Id, document: &Value, problem: Problem) -> CompileOutcome {
    block_or_keep(Key::new(kind, id.clone()), document, vec![problem], Vec::new())
}

/// The outcome for a stored value that is no valid document, or whose key is no valid id (`found`
/// says which), but whose matchers could be salvaged. A complete text blocks, because APISIX may
/// obey it; a truncated one is invalid and its predecessor stays.
pub fn compile_salvaged(key: &Key, found: &str, salvaged: &SalvagedDocument) -> CompileOutcome {
    let fault = if salvaged.is_complete() { ProblemKind::Unsupported } else { ProblemKind::Invalid };
    let problem = not_an_object(key, Some(found)).with_kind(fault);
    block_or_keep(key.clone(), salvaged.matchers(), vec![problem], Vec::new())
}

fn not_an_object(key: &Key, found: Option<&str>) -> Problem {
    // The store replaces an unreadable value with a description in angle brackets; any other text
    // may be a key.
    let found =
        found.filter(|text| text.starts_with('<')).map(|text| format!(": {text}")).unwrap_or_default();
    Problem::new("", format!("invalid item data of [/apisix/{key}], it should be an object{found}"))
}

fn block_or_keep(
    key: Key,
    document: &Value,
    problems: Vec<Problem>,
    left_out: Vec<Finding>,
) -> CompileOutcome {
    let why = Blocked::new(&problems.first().map(ToString::to_string).unwrap_or_default());
    let resource = matchers::blocked_resource(&key, document, why);
    let valid = problems.iter().any(|problem| problem.kind != ProblemKind::Invalid);
    let verdict = match resource {
        Some(resource) if valid => Verdict::Blocked(resource),
        resource => Verdict::Invalid(resource),
    };
    CompileOutcome { key, verdict, problems, left_out }
}

/// The top-level member that contains the field.
fn top_level_member(field: &str) -> &str {
    field.split(['.', '[']).next().unwrap_or_default()
}

impl CompileOutcome {
    /// Returns the resource that replaces `before`, the predecessor's resource, and the findings to
    /// report. Without a resource, the predecessor stays.
    pub fn resolve(self, before: Option<&Resource>) -> (Option<Resource>, Vec<Finding>) {
        // A blocked predecessor serves no traffic, so the newer document decides what is blocked
        // now.
        let keeps_predecessor = before.is_some_and(|before| before.blocked().is_none());
        let (resource, what) = match self.verdict {
            Verdict::Served(resource) => return (Some(resource), self.left_out),
            Verdict::Blocked(resource) => (Some(resource), self.key.kind.blocked_effect()),
            Verdict::Invalid(_) if keeps_predecessor => (None, "the data planes keep its predecessor"),
            Verdict::Invalid(Some(resource)) => (Some(resource), self.key.kind.blocked_effect()),
            Verdict::Invalid(None) if before.is_some() => (None, "it stays blocked"),
            Verdict::Invalid(None) => {
                (None, "the data planes have none, because its matchers are unreadable")
            }
        };
        let findings = self.problems.into_iter().map(|problem| {
            let (field, message, hint) = problem.redacted();
            Finding {
                severity: Severity::Error,
                resource: Some(self.key.clone()),
                message: format!(
                    "the stored {} is invalid or unsupported: {}; {what}",
                    self.key.kind.noun(),
                    truncated(&message, MESSAGE_MAX)
                ),
                field: field.into_owned(),
                hint: hint.map_or_else(|| "write it again through the Admin API".to_owned(), Cow::into_owned),
            }
        });
        (resource, findings.chain(self.left_out).collect())
    }
}

impl Kind {
    /// The effect on clients when a resource of this kind is blocked.
    fn blocked_effect(self) -> &'static str {
        match self {
            Kind::Ssl => "its names are not served, and it is not used as a client certificate",
            Kind::Upstream => "requests to it get a 503",
            Kind::Service => "requests to its routes get a 503",
            Kind::PluginConfig => "requests to the routes that name it get a 503",
            Kind::Route => "the requests that it matches get a 503",
            Kind::StreamRoute => "the connections that it matches are closed",
            Kind::GlobalRule => "every HTTP request gets a 503",
        }
    }
}

#[cfg(test)]
mod tests;
