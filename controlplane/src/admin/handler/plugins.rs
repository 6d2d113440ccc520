//! `/apisix/admin/plugins` and `/apisix/admin/schema/plugins`: the plugins that documents may have
//! (contract 2.8). `model` has the table; this file has APISIX's shapes.

use http::StatusCode;
use model::{Plugin, plugin, plugins};
use serde_json::{Map, Value, json};

use crate::admin::query::Query;
use crate::admin::reply::{self, Reply};

/// The version that APISIX gives most of its plugins.
const VERSION: f64 = 0.1;

/// `GET plugins/list`: names in the order in which plugins run.
pub(super) fn list(query: &Query) -> Reply {
    match subsystem(query) {
        Ok(stream) => {
            let names: Vec<&str> = of_subsystem(stream).map(|plugin| plugin.name).collect();
            reply::json(StatusCode::OK, &names)
        }
        Err(_) => reply::text(StatusCode::BAD_REQUEST, "invalid subsystem passed"),
    }
}

/// `GET plugins?all=true`: every plugin with its schema. `GET plugins/{name}`: a schema.
pub(super) fn show(name: Option<&str>, query: &Query) -> Reply {
    let stream = match subsystem(query) {
        Ok(stream) => stream,
        Err(other) => {
            let message = format!("unsupported subsystem: {other}");
            return reply::error(StatusCode::BAD_REQUEST, &message, None);
        }
    };
    if query.get("all") == Some("true") {
        let all = of_subsystem(stream).map(|plugin| (plugin.name.to_owned(), entry(plugin)));
        return reply::json(StatusCode::OK, &Value::Object(all.collect()));
    }
    let Some(found) = name.and_then(plugin).filter(|plugin| plugin.stream || !stream) else {
        let message = format!("plugin not found in subsystem {}", if stream { "stream" } else { "http" });
        return reply::error(StatusCode::NOT_FOUND, &message, Some("GET plugins/list has the names"));
    };
    if query.get("schema_type") == Some("consumer") {
        return reply::error(StatusCode::BAD_REQUEST, "not found schema", None);
    }
    reply::json(StatusCode::OK, found.schema())
}

/// Whether the query names the stream subsystem.
///
/// # Errors
/// Its value where it names none.
fn subsystem(query: &Query) -> Result<bool, &str> {
    match query.get("subsystem") {
        None | Some("http") => Ok(false),
        Some("stream") => Ok(true),
        Some(other) => Err(other),
    }
}

fn of_subsystem(stream: bool) -> impl Iterator<Item = &'static Plugin> {
    plugins().iter().filter(move |plugin| plugin.stream || !stream)
}

fn entry(plugin: &Plugin) -> Value {
    let mut entry = Map::new();
    entry.insert("version".to_owned(), json!(VERSION));
    entry.insert("priority".to_owned(), plugin.priority.into());
    entry.insert("schema".to_owned(), plugin.schema().clone());
    if plugin.global {
        entry.insert("scope".to_owned(), "global".into());
    }
    Value::Object(entry)
}
