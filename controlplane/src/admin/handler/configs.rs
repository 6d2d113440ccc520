//! `/apisix/admin/configs`: the whole configuration in the form of an API-driven standalone APISIX
//! (contract 2.8): `{"routes": [...], "routes_conf_version": 7, ...}`.
//!
//! `validate` applies the checks of a write to each document except those of references, and stores
//! nothing.

use std::collections::HashSet;
use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, StatusCode};
use model::{Id, Kind, lua_type};
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value, json};

use super::put_digest::{DIGEST, LAST_MODIFIED, PutDigest};
use super::{AdminApi, AdminRequest, YAML, error_reply};
use crate::admin::absent::{self, AbsentKind};
use crate::admin::body::BodyError;
use crate::admin::list::{self, DocumentView};
use crate::admin::reply::{self, Reply};
use crate::change::{ChangeError, extension_fields};
use crate::compile::compile;
use crate::store::{CachedDocuments, DocumentList, StoreError};

impl AdminApi {
    /// `GET configs`
    pub(super) async fn configs(&self, request: &AdminRequest) -> Reply {
        let read = async {
            match self.store.load().await {
                Ok(documents) => {
                    let digest = PutDigest::of(&*self.store, &documents).await?;
                    Ok((documents, digest, None))
                }
                Err(error @ StoreError::Unavailable { .. }) => {
                    let CachedDocuments { age, documents } = self.store.cached(None).ok_or(error)?;
                    Ok((documents, None, Some(age)))
                }
                Err(error) => Err(error),
            }
        };
        let yaml = wants_yaml(&request.headers);
        let prefix = self.store.prefix().to_owned();
        let reply = list::reply_from_full_read(read, move |(documents, digest, age)| {
            let versions = digest.as_ref().map(|digest| &digest.versions);
            let mut reply = to_reply(&prefix, documents, versions, yaml);
            if let Some(digest) = digest {
                digest.add_headers(&mut reply);
            }
            age.into_iter().fold(reply, reply::with_age)
        });
        reply.await.unwrap_or_else(|error| error_reply(ChangeError::Store(error)))
    }

    /// `POST configs/validate`
    pub(super) async fn validate_configs(&self, request: AdminRequest) -> Reply {
        let body = match body_object(request.body) {
            Ok(body) => body,
            Err(reply) => return reply,
        };
        let keyring = Arc::clone(&self.keyring);
        // Hundreds of certificates take a while.
        let work = tokio::task::spawn_blocking(move || validate(&body, &keyring, UnixTime::now()));
        match work.await {
            Ok(errors) if errors.is_empty() => reply::json(StatusCode::OK, &json!({})),
            Ok(errors) => {
                let body = json!({"error_msg": "Configuration validation failed", "errors": errors});
                reply::json(StatusCode::BAD_REQUEST, &body)
            }
            Err(_) => reply::empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// The configuration in a body.
///
/// # Errors
/// The response to a body that is none.
#[allow(clippy::result_large_err)] // the error is the response
pub(super) fn body_object(body: Result<Option<Value>, BodyError>) -> Result<Map<String, Value>, Reply> {
    match body {
        Ok(Some(Value::Object(body))) => Ok(body),
        Ok(None) => Err(invalid_body("empty request body")),
        Ok(Some(other)) => Err(invalid_body(&format!("expected an object, got {}", lua_type(&other)))),
        Err(error) => Err(error.into()),
    }
}

fn invalid_body(why: &str) -> Reply {
    reply::error(StatusCode::BAD_REQUEST, &format!("invalid request body: {why}"), None)
}

/// Every JSON text is YAML, so the body is the same.
fn wants_yaml(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT).is_some_and(|value| value.as_bytes().starts_with(YAML.as_bytes()))
}

/// The version of a kind is the newest revision among its documents, so it never exceeds what a
/// client that read all of them has seen. `given_versions`: those of the last PUT, while no
/// document has changed since.
fn to_reply(
    prefix: &str,
    documents: DocumentList,
    given_versions: Option<&Map<String, Value>>,
    yaml: bool,
) -> Reply {
    let DocumentList { revision, items } = documents;
    let time = |value: &Value| value.get("update_time").and_then(Value::as_u64);
    let last_modified = items.iter().filter_map(|item| time(&item.document)).max();
    let mut config = Map::new();
    for name in Kind::ALL.map(Kind::plural).into_iter().chain(absent::sections().map(AbsentKind::name)) {
        config.insert(version_key(name), 0.into());
    }
    for item in items.into_iter().filter(|item| Kind::ALL.contains(&item.key.kind)) {
        let (name, modified) = (item.key.kind.plural(), item.mod_revision);
        if let Some(version) = config.get_mut(&version_key(name)) {
            *version = version.as_u64().unwrap_or_default().max(modified).into();
        }
        let section = config.entry(name).or_insert_with(|| json!([]));
        if let Some(section) = section.as_array_mut() {
            section.push(DocumentView::of(prefix, item).into_value());
        }
    }
    for (name, version) in given_versions.into_iter().flatten() {
        config.insert(name.clone(), version.clone());
    }
    let mut reply = reply::json(StatusCode::OK, &config);
    let headers = reply.headers_mut();
    if let Some(time) = last_modified {
        headers.insert(LAST_MODIFIED, HeaderValue::from(time));
        headers.insert(DIGEST, HeaderValue::from(revision));
    }
    if yaml {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(YAML));
    }
    reply
}

pub(super) fn version_key(name: &str) -> String {
    format!("{name}_conf_version")
}

/// The errors of a configuration, in the order of kinds and documents.
pub(super) fn validate(body: &Map<String, Value>, keyring: &Keyring, now: UnixTime) -> Vec<Value> {
    let mut errors = Vec::new();
    let mut known = HashSet::new();
    for kind in Kind::ALL {
        let check = |id: &Id, item: &Value| check(kind, id, item, keyring, now);
        validate_section(kind.plural(), body, &check, &mut errors);
        known.insert(kind.plural());
    }
    for absent in absent::sections() {
        validate_section(absent.name(), body, &|_, _| Err(absent.message()), &mut errors);
        known.insert(absent.name());
    }
    // The names of APISIX's plugins, and what a GET adds.
    known.extend(["plugins", "X-Last-Modified", "X-Digest"]);
    for name in body.keys() {
        let section = name.strip_suffix("_conf_version").unwrap_or(name);
        if !known.contains(section) {
            errors.push(json!({"resource_type": name, "error": "unknown resource type"}));
        }
    }
    errors
}

type Check<'a> = dyn Fn(&Id, &Value) -> Result<(), String> + 'a;

fn validate_section(name: &str, body: &Map<String, Value>, check: &Check<'_>, errors: &mut Vec<Value>) {
    if let Some(version) = body.get(&version_key(name)).filter(|version| !version.is_number()) {
        let error = format!("{} must be a number, got {}", version_key(name), lua_type(version));
        errors.push(json!({"resource_type": name, "error": error}));
    }
    let items = match body.get(name) {
        Some(Value::Array(items)) => items.as_slice(),
        None | Some(Value::Null) => &[],
        Some(other) => {
            let error = format!("wrong type: expected array, got {}", lua_type(other));
            errors.push(json!({"resource_type": name, "error": error}));
            &[]
        }
    };
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let identifier = item.get("id").or_else(|| item.get("username"));
        let text = match identifier {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let checked = match text.as_deref().map(Id::parse) {
            None => Id::parse("1").map_err(|problem| problem.message).and_then(|id| check(&id, item)),
            Some(Ok(id)) => check(&id, item),
            Some(Err(problem)) => Err(problem.message),
        };
        let duplicate = text.as_ref().filter(|text| !seen.insert((*text).clone()));
        let duplicate = duplicate.map(|id| format!("found duplicate id {id} in {name}"));
        for error in checked.err().into_iter().chain(duplicate) {
            let id = text.as_deref().unwrap_or_default();
            errors.push(json!({
                "resource_type": name,
                "resource_id": model::redact(id),
                "index": index,
                "error": model::redact(&error),
            }));
        }
    }
}

/// The id of a document, as text.
pub(super) fn id_of(document: &Value) -> Option<String> {
    match document.get("id") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    }
}

/// A document without what a store adds to it: times, and the revision that ADC repeats.
pub(super) fn without_metadata(document: &Value) -> Value {
    let mut document = document.clone();
    if let Some(members) = document.as_object_mut() {
        members.retain(|name, _| !["create_time", "update_time", "modifiedIndex"].contains(&name.as_str()));
    }
    document
}

/// The checks of a write, without those of references.
fn check(kind: Kind, id: &Id, item: &Value, keyring: &Keyring, now: UnixTime) -> Result<(), String> {
    let mut document = without_metadata(item);
    extension_fields::remove_nulls(kind, &mut document);
    let checked = compile(kind, id, &document, keyring)
        .and_then(|resource| model::check_validity_period(&resource, now).map(|()| resource));
    checked.map(drop).map_err(|problem| problem.redacted().1.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(body: Value) -> Vec<Value> {
        let Value::Object(body) = body else { panic!("{body}") };
        validate(&body, &Keyring::empty(), UnixTime::now())
    }

    #[test]
    fn every_error_of_a_configuration_is_listed() {
        let upstream = json!({"nodes": {"127.0.0.1:1980": 1}});
        let good = json!({"id": "r1", "uri": "/a", "upstream": upstream, "service_id": "missing"});
        assert_eq!(
            errors(json!({"routes": [good], "consumers": [], "plugins": [{"name": "x"}]})),
            [Value::Null; 0]
        );
        let open = json!({"id": "r2", "uri": "/a", "upstream": upstream, "client_identity": null});
        assert_eq!(errors(json!({"routes": [open], "ssls": null})), [Value::Null; 0], "null removes it");
        let found = errors(json!({
            "routes": [{"id": "r1", "uri": 1}, {"uri": "/b", "upstream": upstream}, good],
            "consumers": [{"username": "jack"}],
            "ssls_conf_version": "adc",
            "upstreams": {},
            "rutes": [],
        }));
        let place = |error: &Value| {
            let member = |name: &str| error.get(name).cloned().unwrap_or_default();
            (member("resource_type"), member("resource_id"), member("index"))
        };
        let places: Vec<_> = found.iter().map(place).collect();
        assert_eq!(
            places,
            [
                (json!("ssls"), Value::Null, Value::Null),
                (json!("upstreams"), Value::Null, Value::Null),
                (json!("routes"), json!("r1"), json!(0)),
                (json!("routes"), json!("r1"), json!(2)),
                (json!("consumers"), json!("jack"), json!(0)),
                (json!("rutes"), Value::Null, Value::Null),
            ],
            "{found:?}"
        );
        assert_eq!(found[0]["error"], "ssls_conf_version must be a number, got string");
        assert_eq!(found[3]["error"], "found duplicate id r1 in routes");
    }
}
