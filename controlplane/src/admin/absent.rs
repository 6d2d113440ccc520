//! Kinds of APISIX that this gateway has no documents of: consumers and what belongs to them,
//! protos, secrets and plugin metadata.
//!
//! Their lists are empty and no id exists, as in an APISIX without any, because ADC and the
//! dashboard read them. Invariant: a write is an error that names the kind and stores nothing, so
//! that no operator relies on an authentication that does not take place.

use http::{Method, StatusCode};
use serde_json::json;

use super::reply::{self, Reply};

/// A kind without documents.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AbsentKind {
    /// Below `/apisix/admin`.
    pub path: &'static str,
    /// The rest of the path of one.
    pub id: &'static str,
    /// APISIX's word in messages.
    pub noun: &'static str,
    /// Methods that APISIX answers with 405 (contract 2.2 (3)).
    pub switched_off: &'static [Method],
    /// What an operator uses instead.
    hint: &'static str,
}

pub(super) const ABSENT_KINDS: [AbsentKind; 6] = [
    AbsentKind {
        path: "/consumers",
        id: "{username}",
        noun: "consumer",
        switched_off: &[Method::POST, Method::PATCH],
        hint: CONSUMERS_HINT,
    },
    AbsentKind {
        path: "/consumers/{username}/credentials",
        id: "{id}",
        noun: "credential",
        switched_off: &[Method::POST, Method::PATCH],
        hint: CONSUMERS_HINT,
    },
    AbsentKind {
        path: "/consumer_groups",
        id: "{id}",
        noun: "consumer group",
        switched_off: &[Method::POST],
        hint: CONSUMERS_HINT,
    },
    AbsentKind {
        path: "/protos",
        id: "{id}",
        noun: "proto",
        switched_off: &[Method::PATCH],
        hint: "gRPC is not transcoded to HTTP",
    },
    AbsentKind {
        path: "/secrets",
        id: "{manager}/{id}",
        noun: "secret",
        switched_off: &[Method::POST],
        hint: "a certificate or key may be a reference to the environment: $env://NAME",
    },
    AbsentKind {
        path: "/plugin_metadata",
        id: "{name}",
        noun: "plugin_metadata",
        switched_off: &[Method::POST, Method::PATCH],
        hint: "no plugin of this gateway reads metadata",
    },
];

const CONSUMERS_HINT: &str =
    "clients are authenticated by certificate: ssls with client.ca, routes with client_identity.allow";

/// The kinds that have a list of their own in a whole configuration: credentials have none.
pub(super) fn sections() -> impl Iterator<Item = &'static AbsentKind> {
    ABSENT_KINDS.iter().filter(|kind| !kind.path.contains('{'))
}

impl AbsentKind {
    /// The name of its list.
    pub(super) fn name(&self) -> &'static str {
        self.path.trim_start_matches('/')
    }

    /// Why a write is an error.
    pub(super) fn message(&self) -> String {
        let plural = if self.noun.ends_with('a') { "" } else { "s" };
        format!("this gateway has no {}{plural}", self.noun)
    }
}

/// Handles a request to an absent kind. `all`: its path is that of the list.
pub(super) fn handle(kind: &AbsentKind, method: &Method, all: bool) -> Reply {
    let reply = match *method {
        Method::GET if all => reply::json(StatusCode::OK, &json!({"list": [], "total": 0})),
        Method::GET | Method::DELETE => reply::key_not_found(),
        _ => reply::error(StatusCode::BAD_REQUEST, &kind.message(), Some(kind.hint)),
    };
    reply::with_api_version(reply)
}
