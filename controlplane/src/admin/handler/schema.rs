//! JSON Schemas of the kinds, and validation against them alone, without the checks of
//! `change::check` (contract 2.8).

use http::StatusCode;
use model::Kind;
use serde_json::Value;

use super::AdminRequest;
use crate::admin::reply::{self, Reply};
use crate::change::extension_fields;

/// `GET schema/{kind}`
pub(super) fn show(request: AdminRequest) -> Reply {
    let name = request.id.unwrap_or_default();
    match Kind::ALL.into_iter().find(|kind| kind.singular() == name) {
        Some(kind) => reply::json(StatusCode::OK, model::json_schema(kind)),
        None => reply::error(StatusCode::BAD_REQUEST, &format!("not found schema: {name}"), None),
    }
}

/// `POST schema/validate/{kinds}`
pub(super) fn validate(request: AdminRequest) -> Reply {
    let body = match request.body {
        Ok(body) => body,
        Err(error) => return error.into(),
    };
    let plural = request.id.unwrap_or_default();
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.plural() == plural) else {
        return reply::error(StatusCode::NOT_FOUND, &format!("Unsupported resource type: {plural}"), None);
    };
    let mut document = body.unwrap_or(Value::Null);
    extension_fields::remove_nulls(kind, &mut document);
    match model::validate(kind, &document) {
        Ok(()) => reply::empty(StatusCode::OK),
        Err(problem) => reply::problem(&problem),
    }
}
