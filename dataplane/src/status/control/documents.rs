//! The resources of the snapshot as documents.

use http::StatusCode;
use model::{Id, Key, Kind, Resource, Snapshot};
use serde_json::{Value, json};
use telemetry::status::PageReply;

use super::paging::PageQuery;
use super::{error, json_reply};

/// `/v1/routes` and its likes.
pub(super) fn list(snapshot: &Snapshot, kind: Kind, page: &PageQuery) -> PageReply {
    page.reply(snapshot.len(kind), snapshot.resources_of_kind(kind).map(entry))
}

/// `/v1/route/{id}` and its likes.
pub(super) fn one(snapshot: &Snapshot, kind: Kind, id: &str) -> PageReply {
    match find(snapshot, kind, id) {
        Some(resource) => json_reply(&entry(resource)),
        None => error(StatusCode::NOT_FOUND, &format!("{}[{id}] not found", kind.singular())),
    }
}

/// `/v1/healthcheck/{kind}/{id}`: no document with checks is accepted, so there is no checker.
pub(super) fn health_check(snapshot: &Snapshot, kind: &str, id: &str) -> PageReply {
    let Some(found) = super::listed(kind) else {
        return error(StatusCode::BAD_REQUEST, &format!("invalid src type {kind}"));
    };
    let message = match find(snapshot, found, id) {
        Some(_) => format!("no checker for {kind}[{id}]"),
        None => format!("{kind}[{id}] not found"),
    };
    error(StatusCode::NOT_FOUND, &message)
}

fn find<'a>(snapshot: &'a Snapshot, kind: Kind, id: &str) -> Option<&'a Resource> {
    let key = Key::new(kind, Id::parse(id).ok()?);
    snapshot.get(&key).map(|versioned| &versioned.resource)
}

/// APISIX's form, without what only APISIX keeps about a document.
fn entry(resource: &Resource) -> Value {
    let key = format!("/{}/{}", resource.kind().plural(), resource.id());
    json!({"key": key, "value": resource.to_document()})
}
