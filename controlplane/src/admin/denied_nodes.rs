//! `/apisix/admin/denied_nodes`: the deny-list of data planes over the Admin API.
//!
//! GET lists or shows entries, PUT with an id adds or replaces one, DELETE removes one.
//! `publish::deny_list` owns the list and how an entry matches; this file owns the JSON and the
//! statuses.

use http::{Method, StatusCode};
use model::{Id, Problem};
use serde_json::{Value, json};

use super::reply::{self, Reply};
use crate::publish::DeniedNodes;
use crate::publish::deny_list::{DeniedNode, DenyListError};

/// Handles a request of an authorized caller. `body` is that of a PUT.
pub(super) async fn handle(
    denied: &DeniedNodes,
    method: &Method,
    id: Option<&str>,
    body: Option<Value>,
) -> Reply {
    let result = match (method, id) {
        (&Method::GET, None) => Ok(list(denied)),
        (&Method::GET, Some(id)) => Ok(show(denied, id)),
        (&Method::PUT, Some(id)) => put(denied, id, body).await,
        (&Method::DELETE, Some(id)) => denied.remove(id).await.map(|existed| {
            if existed {
                reply::json(StatusCode::OK, &json!({"deleted": "1", "id": id}))
            } else {
                reply::key_not_found()
            }
        }),
        _ => Ok(reply::error(StatusCode::NOT_FOUND, "not found", None)),
    };
    result.unwrap_or_else(error_reply)
}

fn list(denied: &DeniedNodes) -> Reply {
    let list = denied.list();
    let list = list.borrow();
    let entries: Vec<Value> = list.entries().map(|(id, entry)| entry_json(id, entry)).collect();
    reply::json(StatusCode::OK, &json!({"total": entries.len(), "list": entries}))
}

fn show(denied: &DeniedNodes, id: &str) -> Reply {
    let list = denied.list();
    let list = list.borrow();
    list.get(id)
        .map_or_else(reply::key_not_found, |entry| reply::json(StatusCode::OK, &entry_json(id, entry)))
}

async fn put(denied: &DeniedNodes, id: &str, body: Option<Value>) -> Result<Reply, DenyListError> {
    let id = match Id::parse(id) {
        Ok(id) => id,
        Err(problem) => return Ok(reply::problem(&problem)),
    };
    let entry: DeniedNode = match serde_json::from_value(body.unwrap_or_default()) {
        Ok(entry) => entry,
        Err(error) => {
            let hint = r#"send {"serial": "..."} or {"spki_sha256": "..."}, as GET dataplanes shows them"#;
            return Ok(reply::problem(&Problem::new("", error.to_string()).with_hint(hint)));
        }
    };
    let entry = entry.validate()?;
    let existed = denied.put(id.as_str(), entry.clone()).await?;
    let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
    Ok(reply::json(status, &entry_json(id.as_str(), &entry)))
}

fn entry_json(id: &str, entry: &DeniedNode) -> Value {
    let mut value = serde_json::to_value(entry).unwrap_or_default();
    if let Some(members) = value.as_object_mut() {
        members.insert("id".to_owned(), id.into());
    }
    value
}

fn error_reply(error: DenyListError) -> Reply {
    match error {
        DenyListError::Entry { field, problem } => reply::problem(&Problem::new(field, problem)),
        DenyListError::Full => reply::problem(&Problem::new("", error.to_string())),
        DenyListError::Damaged(_) | DenyListError::Store(_) => {
            reply::error(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), None)
        }
    }
}
