//! The OpenAPI 3.1 document of the Admin API, made from the operation table and the JSON Schemas.
//!
//! A row gives path, method, role and summary; [`shape`] adds what a call takes and answers, by
//! name of `openapi/components.json`, which has the parts that no table knows. Invariant: every
//! operation that can succeed is in the document.

use std::sync::LazyLock;

use bytes::Bytes;
use conf::AdminRole;
use http::{Method, StatusCode};
use model::{Kind, plugins};
use serde_json::{Map, Value, json};

use super::operation::{Call, Operation, operations};
use super::reply::{self, Reply};

const COMPONENTS: &str = include_str!("openapi/components.json");

/// `GET openapi.json`
pub(super) fn show() -> Reply {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    reply::json_text(StatusCode::OK, TEXT.clone())
}

/// What a call takes and answers. Names are those of the components.
struct Shape {
    parameters: &'static [&'static str],
    /// The schema of the body.
    body: Option<Value>,
    /// Media types of the body.
    media: &'static [&'static str],
    /// Statuses of a success, and the schema of its body; `None`: it has none.
    success: Vec<(u16, Option<Value>)>,
    errors: &'static [u16],
    /// Headers of a success.
    headers: &'static [&'static str],
}

const JSON: &[&str] = &["application/json"];
const READ: &[&str] = &["known"];
const LIST: &[&str] = &["page", "page_size", "name", "label", "uri", "filter", "known"];
const WRITE: &[&str] = &["ttl", "dry_run", "weaken", "wait", "if_match", "if_none_match"];
const READ_HEADERS: &[&str] = &["ETag", "X-Countersign-Stale"];
const WRITE_HEADERS: &[&str] =
    &["ETag", "X-Countersign-Revision", "X-Countersign-Kept", "X-Countersign-Warning"];
const DELETE: &[&str] = &["force", "dry_run", "weaken", "wait", "if_match"];

fn document() -> Value {
    let mut paths = Map::new();
    for operation in operations().iter().filter(|operation| !operation.is_rejected()) {
        let path = paths.entry(operation.path.replace('*', "")).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(operation.method.as_str().to_lowercase(), describe(operation));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Countersign Admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "APISIX's Admin API. Errors have field and hint beside error_msg.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/apisix/admin"}],
        "security": [{"header": []}, {"query": []}, {"cookie": []}, {"certificate": []}],
        "paths": paths,
        "components": components(),
    })
}

fn components() -> Value {
    // A test proves that the file is JSON.
    let mut components: Value = serde_json::from_str(COMPONENTS).unwrap_or_default();
    if let Some(schemas) = components.get_mut("schemas").and_then(Value::as_object_mut) {
        for kind in Kind::ALL {
            let mut schema = modern(model::json_schema(kind));
            if let Some(known) = schema.pointer_mut("/properties/plugins") {
                let names = plugins()
                    .iter()
                    .map(|plugin| (plugin.name.to_owned(), reference(&plugin_schema(plugin.name))));
                *known = json!({
                    "type": "object",
                    "properties": names.collect::<Map<_, _>>(),
                    "additionalProperties": false,
                });
            }
            schemas.insert(kind.singular().to_owned(), schema);
        }
        for plugin in plugins() {
            schemas.insert(plugin_schema(plugin.name), modern(plugin.schema()));
        }
    }
    components
}

fn plugin_schema(name: &str) -> String {
    format!("plugin.{name}")
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

/// A draft-07 schema in the words of draft 2020-12, which OpenAPI 3.1 uses. A pattern with Unicode
/// classes is left out: many programs that read such documents do not know them.
fn modern(schema: &Value) -> Value {
    match schema {
        Value::Object(members) => {
            let unknown = |name: &str, value: &Value| {
                name == "$schema"
                    || (name == "pattern" && value.as_str().is_some_and(|text| text.contains("\\p{")))
            };
            let kept = members.iter().filter(|(name, value)| !unknown(name, value));
            let renamed = kept.map(|(name, value)| {
                let name = if name == "dependencies" { "dependentSchemas" } else { name };
                (name.to_owned(), modern(value))
            });
            Value::Object(renamed.collect())
        }
        Value::Array(items) => items.iter().map(modern).collect(),
        other => other.clone(),
    }
}

fn describe(operation: &Operation) -> Value {
    let shape = shape(operation);
    let in_path = operation.path.split('/').filter_map(|segment| {
        let name = segment.strip_prefix('{')?.strip_suffix('}')?.trim_start_matches('*');
        let schema = match name {
            "id" => {
                json!({"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[a-zA-Z0-9-_.]+$"})
            }
            _ => json!({"type": "string", "minLength": 1}),
        };
        Some(json!({"name": name, "in": "path", "required": true, "schema": schema}))
    });
    let by_name = |name: &&str| json!({"$ref": format!("#/components/parameters/{name}")});
    let parameters: Vec<Value> = in_path.chain(shape.parameters.iter().map(by_name)).collect();
    let role = match operation.role() {
        AdminRole::Viewer => "viewer",
        AdminRole::Admin => "admin",
    };
    let mut described = json!({
        "operationId": operation_id(operation),
        "summary": operation.summary,
        "tags": [operation.path.split('/').nth(1).unwrap_or_default()],
        "x-role": role,
        "parameters": parameters,
        "responses": responses(&shape),
    });
    if let (Some(schema), Some(members)) = (&shape.body, described.as_object_mut()) {
        let content = shape.media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema})));
        let body = json!({"required": true, "content": content.collect::<Map<_, _>>()});
        members.insert("requestBody".to_owned(), body);
    }
    described
}

/// `get_routes_id` for `GET /routes/{id}`.
fn operation_id(operation: &Operation) -> String {
    let path = operation.path.replace(['{', '}', '*', '.'], "").replace('/', "_");
    operation.method.as_str().to_lowercase() + &path
}

fn responses(shape: &Shape) -> Value {
    let mut responses = Map::new();
    for (status, schema) in &shape.success {
        let headers = shape
            .headers
            .iter()
            .map(|name| ((*name).to_owned(), json!({"$ref": format!("#/components/headers/{name}")})));
        let headers: Map<_, _> = headers.collect();
        let mut response = json!({"description": "Success.", "headers": headers});
        if let (Some(schema), Some(response)) = (schema, response.as_object_mut()) {
            let media = if *schema == json!({"type": "string"}) { "text/plain" } else { "application/json" };
            response.insert("content".to_owned(), json!({media: {"schema": schema}}));
        }
        responses.insert(status.to_string(), response);
    }
    for status in [400, 401, 403, 429].iter().chain(shape.errors) {
        let name = match status {
            304 => "not_modified",
            400 => "bad_request",
            401 => "unauthorized",
            403 => "forbidden",
            404 => "not_found",
            408 => "timeout",
            409 => "weakens",
            412 => "precondition_failed",
            429 => "too_many_requests",
            _ => "unavailable",
        };
        let response = json!({"$ref": format!("#/components/responses/{name}")});
        responses.entry(status.to_string()).or_insert(response);
    }
    Value::Object(responses)
}

/// A call without a body.
fn read(schema: Value) -> Shape {
    Shape {
        parameters: READ,
        body: None,
        media: JSON,
        success: vec![(200, Some(schema))],
        errors: &[304, 404, 503],
        headers: READ_HEADERS,
    }
}

/// A call with a body that is no document; `schema` is that of the answer.
fn body(body: Value, schema: Option<Value>) -> Shape {
    Shape {
        parameters: &[],
        body: Some(body),
        media: JSON,
        success: vec![(200, schema)],
        errors: &[404, 408, 503],
        headers: &[],
    }
}

fn any() -> Value {
    json!({})
}

fn shape(operation: &Operation) -> Shape {
    let (get, one) = (operation.method == Method::GET, operation.path.ends_with('}'));
    match operation.call {
        Call::Documents(_) if get && !one => Shape { parameters: LIST, ..read(reference("objects")) },
        Call::Documents(_) if get => read(reference("object")),
        Call::Documents(kind) => write_shape(operation, kind),
        Call::Absent(_) if get && !one => Shape { parameters: LIST, ..read(reference("objects")) },
        Call::Absent(_) => Shape { parameters: &[], success: Vec::new(), errors: &[404, 408], ..read(any()) },
        Call::Batch => Shape {
            parameters: &["dry_run", "weaken", "wait"],
            success: vec![(200, Some(reference("batch_results"))), (202, Some(reference("batch_results")))],
            errors: &[404, 408, 409, 412, 503],
            headers: &["X-Countersign-Revision"],
            ..body(reference("batch"), None)
        },
        Call::Schema => read(any()),
        Call::ValidateDocument => body(any(), None),
        Call::ServerInfo => read(reference("server_info")),
        Call::DataPlanes => Shape {
            parameters: &["acknowledged", "timeout", "known"],
            success: vec![(200, Some(json!({"type": "object"}))), (504, Some(json!({"type": "object"})))],
            ..read(any())
        },
        Call::AcceptStore => {
            Shape { parameters: &[], errors: &[408, 503], ..read(json!({"type": "object"})) }
        }
        Call::DeniedNodes if operation.method == Method::PUT => {
            let entry = Some(json!({"type": "object"}));
            Shape {
                success: vec![(200, entry.clone()), (201, entry.clone())],
                ..body(reference("denied_node"), entry)
            }
        }
        Call::DeniedNodes if get => read(json!({"type": "object"})),
        Call::DeniedNodes => Shape { parameters: &[], ..read(reference("deleted")) },
        Call::Explain => body(reference("question"), Some(json!({"type": "object"}))),
        Call::Lint => read(json!({"type": "object"})),
        Call::OpenApi => read(json!({"type": "object"})),
        Call::Plugins | Call::PluginList | Call::ReloadPlugins => plugin_shape(operation.call, one),
        Call::Configs | Call::ValidateConfigs | Call::PutConfigs => configs_shape(operation.call),
        // Not in the document.
        Call::Reject(_) => read(any()),
    }
}

/// The plugins; `one`: the path names one of them.
fn plugin_shape(call: Call, one: bool) -> Shape {
    match call {
        Call::Plugins if one => Shape { parameters: &["subsystem", "known"], ..read(any()) },
        Call::Plugins => {
            Shape { parameters: &["all", "subsystem", "known"], ..read(json!({"type": "object"})) }
        }
        Call::PluginList => Shape {
            parameters: &["subsystem", "known"],
            ..read(json!({"type": "array", "items": {"type": "string"}}))
        },
        _ => Shape { parameters: &[], errors: &[408], headers: &[], ..read(json!({"type": "string"})) },
    }
}

/// The whole configuration.
fn configs_shape(call: Call) -> Shape {
    match call {
        Call::Configs => Shape {
            headers: &["ETag", "X-Countersign-Stale", "X-Digest", "X-Last-Modified"],
            ..read(reference("configs"))
        },
        Call::ValidateConfigs => Shape {
            media: &["application/json", "application/yaml"],
            ..body(reference("configs"), Some(json!({"type": "object"})))
        },
        _ => Shape {
            parameters: &["digest", "dry_run", "weaken", "wait"],
            media: &["application/json", "application/yaml"],
            success: vec![
                (200, Some(json!({"type": "object"}))),
                (202, Some(json!({"type": "object"}))),
                (204, None),
            ],
            errors: &[404, 408, 409, 412, 503],
            headers: &["X-Countersign-Revision", "X-Digest", "X-Last-Modified"],
            ..body(reference("configs"), None)
        },
    }
}

/// A write of a document.
fn write_shape(operation: &Operation, kind: Kind) -> Shape {
    let written = || Some(reference("written"));
    let shape = Shape {
        parameters: WRITE,
        body: Some(reference(kind.singular())),
        media: JSON,
        success: vec![(200, written()), (201, written()), (202, written())],
        errors: &[404, 408, 409, 412, 503],
        headers: WRITE_HEADERS,
    };
    match operation.method {
        Method::PATCH => {
            let body = if operation.path.ends_with("{id}") { json!({"type": "object"}) } else { json!({}) };
            Shape { body: Some(body), success: vec![(200, written()), (202, written())], ..shape }
        }
        Method::DELETE => {
            let deleted = || Some(reference("deleted"));
            Shape {
                parameters: DELETE,
                body: None,
                success: vec![(200, deleted()), (202, deleted())],
                ..shape
            }
        }
        _ => shape,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of a value.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_operation_that_can_succeed_is_described() {
        let document = document();
        for operation in operations() {
            let pointer = format!(
                "/paths/{}/{}",
                operation.path.replace('*', "").replace('/', "~1"),
                operation.method.as_str().to_lowercase()
            );
            assert_eq!(document.pointer(&pointer).is_some(), !operation.is_rejected(), "{pointer}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100, "{found:?}");
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_component_is_used() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        for part in ["parameters", "headers", "responses", "schemas"] {
            for name in document["components"][part].as_object().unwrap().keys() {
                let reference = format!("#/components/{part}/{name}");
                assert!(found.contains(&reference), "{reference}");
            }
        }
    }

    #[test]
    fn schemas_have_the_words_of_2020_12() {
        let old = json!({"$schema": "x", "dependencies": {"a": {"required": ["b"]}}, "pattern": "^\\p{L}$"});
        let schema = modern(&old);
        assert_eq!(schema, json!({"dependentSchemas": {"a": {"required": ["b"]}}}));
    }
}
