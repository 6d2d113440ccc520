//! Documents that another program (an APISIX) stored, past the Admin API: what becomes of those
//! that this gateway cannot honour.
//!
//! The Admin API refuses what it cannot honour; what is in the store already cannot be refused.
//! Three things can become of it: it is served (what it asks for beside protection and direction
//! may be missing, `left_out`), it is blocked (`matchers`), or it is no valid document and what it
//! was before goes on. Invariant: nothing is served with less protection than its document asks
//! for, and nothing is left out so that something broader takes its place ([decision
//! 16](../../docs/decisions/0016-what-another-program-wrote.md)).

mod ignored_fields;
mod matchers;
mod salvage;

use std::borrow::Cow;

use pki::Keyring;
pub use salvage::SalvagedDocument;
use serde_json::Value;

use crate::document::{compile, unsupported_plugin};
use crate::id::{Id, Key, Kind};
use crate::lint::{Finding, Findings, Severity};
use crate::problem::{Problem, ProblemKind};
use crate::resource::{Blocked, Resource};

/// Most problems that are looked for in one document.
const PROBLEMS_MAX: usize = 16;
/// Bytes of a message in a finding: some quote what they found.
const MESSAGE_MAX: usize = 1024;

/// What becomes of a stored document.
#[derive(Debug)]
pub struct CompileOutcome {
    key: Key,
    verdict: Verdict,
    problems: Vec<Problem>,
    left_out: Vec<Finding>,
}

#[derive(Debug)]
enum Verdict {
    /// It is served.
    Served(Resource),
    /// It asks for what cannot be had: blocked, whatever it was before.
    Blocked(Resource),
    /// It is not valid: what it was before goes on. Where there is nothing, this takes its place,
    /// if its matchers can be read.
    Invalid(Option<Resource>),
}

/// Takes up a stored document: as [`check`] does, and where that refuses, as much of it as is safe.
pub fn compile_stored(kind: Kind, id: &Id, document: &Value, keyring: &Keyring) -> CompileOutcome {
    let key = Key::new(kind, id.clone());
    let served = |resource, left_out| CompileOutcome {
        key: key.clone(),
        verdict: Verdict::Served(resource),
        problems: Vec::new(),
        left_out,
    };
    if let Ok(resource) = compile(kind, id, document, keyring) {
        return served(resource, Vec::new());
    }
    if !document.is_object() {
        let problem = not_an_object(&key, document.as_str());
        return block_or_keep(key, document, vec![problem], Vec::new());
    }
    let mut rest = ignored_fields::strip_ignored(kind, document.clone(), Findings::for_resource(key.clone()));
    let mut problems: Vec<Problem> =
        rest.unsupported_plugins.iter().map(|name| unsupported_plugin(name)).collect();
    while problems.len() < PROBLEMS_MAX {
        match compile(kind, id, &rest.document, keyring) {
            Ok(resource) if problems.is_empty() => return served(resource, rest.ignored),
            Ok(_) => break,
            Err(problem) => {
                let (fault, member) = (problem.kind, top_level_member(&problem.field).to_owned());
                // What is not valid only because of what was taken out below is none of the document's
                // problems.
                if fault != ProblemKind::Invalid || problems.is_empty() {
                    problems.push(problem);
                }
                // The search goes on without the member: behind a slip there may be a protection that is
                // asked for in vain. Nothing is served from what is left.
                if rest.document.as_object_mut().and_then(|members| members.remove(&member)).is_none() {
                    break;
                }
            }
        }
    }
    block_or_keep(key, document, problems, rest.ignored)
}

/// A stored document that cannot even be looked at, because of this.
pub fn stored_with_problem(kind: Kind, id: &Id, document: &Value, problem: Problem) -> CompileOutcome {
    block_or_keep(Key::new(kind, id.clone()), document, vec![problem], Vec::new())
}

/// A stored value that is no valid document, or has a name that is no id (`found` says which), and
/// of which matchers could be read. What an APISIX may obey is blocked whatever was there before;
/// of a text that is not whole, what it was before goes on.
pub fn compile_salvaged(key: &Key, found: &str, salvaged: &SalvagedDocument) -> CompileOutcome {
    let fault = if salvaged.is_complete() { ProblemKind::Unsupported } else { ProblemKind::Invalid };
    let problem = not_an_object(key, Some(found)).with_kind(fault);
    block_or_keep(key.clone(), salvaged.matchers(), vec![problem], Vec::new())
}

fn not_an_object(key: &Key, found: Option<&str>) -> Problem {
    // A store describes what it could not read in such a text; any other may be a key.
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
    let place = matchers::blocked_resource(&key, document, why);
    let valid = problems.iter().any(|problem| problem.kind != ProblemKind::Invalid);
    let verdict = match place {
        Some(place) if valid => Verdict::Blocked(place),
        place => Verdict::Invalid(place),
    };
    CompileOutcome { key, verdict, problems, left_out }
}

/// The member of the document that a field is in.
fn top_level_member(field: &str) -> &str {
    field.split(['.', '[']).next().unwrap_or_default()
}

impl CompileOutcome {
    /// What is to take the document's place, with everything to be said about it. `before` is what
    /// the document's predecessor was adopted as; nothing is to be changed where there is no
    /// resource in the answer.
    pub fn resolve(self, before: Option<&Resource>) -> (Option<Resource>, Vec<Finding>) {
        // Blocked, there is nothing to keep: the newer document says at least what is to be blocked now.
        let kept = before.is_some_and(|before| before.blocked().is_none());
        let (resource, what) = match self.verdict {
            Verdict::Served(resource) => return (Some(resource), self.left_out),
            Verdict::Blocked(resource) => (Some(resource), self.key.kind.blocked_effect()),
            Verdict::Invalid(_) if kept => (None, "the data planes keep what it was before"),
            Verdict::Invalid(Some(place)) => (Some(place), self.key.kind.blocked_effect()),
            Verdict::Invalid(None) if before.is_some() => (None, "it stays blocked as it was before"),
            Verdict::Invalid(None) => {
                (None, "the data planes have none, and it cannot be told what it was to take")
            }
        };
        let told = self.problems.into_iter().map(|problem| {
            let (field, message, hint) = problem.redacted();
            Finding {
                severity: Severity::Error,
                resource: Some(self.key.clone()),
                message: format!(
                    "the stored {} cannot be honoured: {}; {what}",
                    self.key.kind.noun(),
                    truncated(&message)
                ),
                field: field.into_owned(),
                hint: hint.map_or_else(|| "write it again through the Admin API".to_owned(), Cow::into_owned),
            }
        });
        (resource, told.chain(self.left_out).collect())
    }
}

impl Kind {
    /// What it means to others that one of this kind is blocked.
    fn blocked_effect(self) -> &'static str {
        match self {
            Kind::Ssl => "its names are answered to nobody, and as an identity it is not shown",
            Kind::Upstream => "requests that lead to it are answered 503",
            Kind::Service => "requests to its routes are answered 503",
            Kind::Route => "the requests that it takes are answered 503",
            Kind::StreamRoute => "the connections that it takes are closed",
            Kind::GlobalRule => "every HTTP request is answered 503",
        }
    }
}

fn truncated(message: &str) -> &str {
    let end = (0..=MESSAGE_MAX.min(message.len())).rev().find(|at| message.is_char_boundary(*at));
    message.get(..end.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
