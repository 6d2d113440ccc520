//! The resources that the control plane has, read through its lists.

use std::collections::BTreeMap;

use http::StatusCode;
use model::{Id, Key, Kind};
use serde_json::Value;

use super::AdminCliError;
use super::client::{ApiClient, ApiRequest};
use super::reply::ApiError;

/// A resource of the control plane.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredResource {
    pub value: Value,
    /// `modifiedIndex`, its ETag.
    pub modified: u64,
}

/// By key: kinds in the order of dependency.
pub(super) type StoredResources = BTreeMap<Key, StoredResource>;

/// Reads all resources of these kinds. A kind that the Admin API does not have, or that is switched
/// off, has none.
///
/// # Errors
/// When a list cannot be read.
pub(super) async fn read(client: &mut ApiClient, kinds: &[Kind]) -> Result<StoredResources, AdminCliError> {
    let mut resources = StoredResources::new();
    for kind in kinds {
        let reply = client.send(&ApiRequest::get(kind.plural())).await?;
        let reply = match reply.success(client, kind.plural()) {
            Ok(reply) => reply,
            Err(error) if is_absent_kind(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        reply.notes().iter().for_each(|text| super::note(text));
        resources.extend(parse_list(*kind, reply.json()?)?);
    }
    Ok(resources)
}

/// The newest revision of the store.
///
/// # Errors
/// When it cannot be read.
pub(super) async fn revision(client: &mut ApiClient) -> Result<u64, AdminCliError> {
    let reply = client.send(&ApiRequest::get("dataplanes")).await?.success(client, "dataplanes")?;
    let revision = reply.json()?.get("revision").and_then(Value::as_u64);
    Ok(revision.ok_or_else(|| ApiError::NotAdmin("dataplanes has no revision".to_owned()))?)
}

/// Whether the Admin API has no resources of a kind.
fn is_absent_kind(error: &ApiError) -> bool {
    match error {
        ApiError::Other { status: StatusCode::NOT_FOUND, message } => {
            message.contains("Unsupported resource type")
        }
        ApiError::Other { status: StatusCode::BAD_REQUEST, message } => {
            message.contains("stream mode is disabled")
        }
        // APISIX answers so for a kind that never had a resource.
        ApiError::NotFound(_) => true,
        _ => false,
    }
}

fn parse_list(kind: Kind, body: Value) -> Result<StoredResources, ApiError> {
    let invalid = || ApiError::NotAdmin(format!("{} is no list of resources", kind.plural()));
    let Value::Object(mut body) = body else { return Err(invalid()) };
    let Some(Value::Array(list)) = body.remove("list") else { return Err(invalid()) };
    let resource = |mut item: Value| {
        let members = item.as_object_mut()?;
        let id = members.get("key")?.as_str()?.rsplit('/').next()?;
        let key = Key::new(kind, Id::parse(id).ok()?);
        let modified = members.get("modifiedIndex")?.as_u64()?;
        Some((key, StoredResource { value: members.remove("value")?, modified }))
    };
    list.into_iter().map(|item| resource(item).ok_or_else(invalid)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_parsed() {
        let item =
            json!({"key": "/apisix/routes/7", "value": {"uri": "/"}, "createdIndex": 1, "modifiedIndex": 3});
        let parsed = parse_list(Kind::Route, json!({"list": [item], "total": 1})).unwrap();
        let (key, resource) = parsed.first_key_value().unwrap();
        assert_eq!((key.to_string().as_str(), resource.modified), ("routes/7", 3));
        assert_eq!(resource.value, json!({"uri": "/"}));
        for wrong in [json!([]), json!({}), json!({"list": [{}]}), json!({"list": [{"key": "/a/b c"}]})] {
            assert!(parse_list(Kind::Route, wrong).is_err());
        }
    }
}
