//! The table of the Admin API's operations (contract 2.2, 2.3, 2.8).
//!
//! All code that needs the operations reads this table: the match of a path (`path`), the key check
//! and the calls (`handler`), the OpenAPI document, and the tests of which credentials an operation
//! accepts. A new operation is one row here and one arm in `handler`. Invariant: a request without
//! a row reaches no handler.

use std::sync::LazyLock;

use conf::AdminRole;
use http::{Method, StatusCode};
use model::Kind;

use super::absent::{ABSENT_KINDS, AbsentKind};

/// An operation: a path with a method.
#[derive(Clone, Debug)]
pub struct Operation {
    pub method: Method,
    /// Below `/apisix/admin`: `{id}` is one segment, `{*sub_path}` is the rest of the path.
    pub path: String,
    pub effect: Effect,
    pub(super) call: Call,
    /// One line for the OpenAPI document.
    pub summary: String,
}

/// What an operation does, which decides who may call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Shows or explains something. A viewer may call it.
    Reads,
    /// Checks a body. In APISIX a viewer may only GET (contract 2.1), so it needs an admin.
    Checks,
    /// Writes. It needs an admin, runs to its end when the client disconnects, and leaves one audit
    /// line.
    Writes,
}

/// What handles an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// The documents of a kind.
    Documents(Kind),
    /// Several writes of documents in one commit.
    Batch,
    /// A kind of APISIX that this gateway has no documents of.
    Absent(&'static AbsentKind),
    /// A method that always gets the same error.
    Reject(Rejection),
    /// The JSON Schema of a kind.
    Schema,
    /// Validates a document against the JSON Schema of its kind.
    ValidateDocument,
    /// The names of the plugins.
    PluginList,
    /// The plugins with their schemas, or one schema.
    Plugins,
    /// Nothing: the plugins are part of the program.
    ReloadPlugins,
    /// This control plane's name and version.
    ServerInfo,
    /// The OpenAPI document.
    OpenApi,
    /// The whole configuration, as an API-driven standalone APISIX has it.
    Configs,
    /// Replaces the whole configuration.
    PutConfigs,
    /// Validates a whole configuration.
    ValidateConfigs,
    /// The data planes and the revisions they serve.
    DataPlanes,
    AcceptStore,
    /// The deny-list of data planes.
    DeniedNodes,
    /// Explains what happens to a connection and request.
    Explain,
    /// Reports likely misconfigurations.
    Lint,
}

/// The error of a method that is known and not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// 405: `PATCH` for this noun.
    NotSupported(&'static str),
    /// 405: plugins are reloaded by PUT.
    ReloadByPut,
    /// 400: the path has no id of this noun.
    MissingId(&'static str),
    /// 400: the path has an id of this noun, and the store creates them.
    UnwantedId(&'static str),
}

impl Operation {
    /// The least role of a caller.
    pub fn role(&self) -> AdminRole {
        match self.effect {
            Effect::Reads => AdminRole::Viewer,
            Effect::Checks | Effect::Writes => AdminRole::Admin,
        }
    }

    /// Whether every call gets the same error.
    pub fn is_rejected(&self) -> bool {
        matches!(self.call, Call::Reject(_))
    }
}

impl Rejection {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::NotSupported(_) | Self::ReloadByPut => StatusCode::METHOD_NOT_ALLOWED,
            Self::MissingId(_) | Self::UnwantedId(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// APISIX's text.
    pub(super) fn message(self, method: &Method) -> String {
        match self {
            Self::NotSupported(noun) => format!("not supported `{method}` method for {noun}"),
            Self::ReloadByPut => {
                format!("please use PUT method to reload the plugins, {method} method is not allowed.")
            }
            Self::MissingId(noun) => format!("missing {noun} id"),
            Self::UnwantedId(noun) => format!("wrong {noun} id, do not need it"),
        }
    }
}

/// Methods that APISIX has switched off for a kind, by its plural (contract 2.2 (3)).
const SWITCHED_OFF: [(&str, Method); 3] =
    [("stream_routes", Method::PATCH), ("plugin_configs", Method::POST), ("global_rules", Method::POST)];

/// Every operation. `HEAD` is answered wherever there is a row with `GET`, and `OPTIONS`
/// everywhere.
pub fn operations() -> &'static [Operation] {
    static TABLE: LazyLock<Vec<Operation>> = LazyLock::new(|| {
        let documents = Kind::ALL.into_iter().flat_map(documents);
        let absent = ABSENT_KINDS.iter().flat_map(absent);
        documents.chain(absent).chain(endpoints()).chain(own_endpoints()).collect()
    });
    &TABLE
}

fn row(method: Method, path: &str, effect: Effect, call: Call, summary: &str) -> Operation {
    Operation { method, path: path.to_owned(), effect, call, summary: summary.to_owned() }
}

fn documents(kind: Kind) -> Vec<Operation> {
    use Effect::{Reads, Writes};
    let (noun, call) = (kind.noun(), Call::Documents(kind));
    let missing_id = Call::Reject(Rejection::MissingId(noun));
    let unwanted_id = Call::Reject(Rejection::UnwantedId(noun));
    let all = format!("/{}", kind.plural());
    let one = format!("{all}/{{id}}");
    let part = format!("{one}/{{*sub_path}}");
    let mut rows = vec![
        row(Method::GET, &all, Reads, call, "List the {noun}s"),
        row(Method::POST, &all, Writes, call, "Create a {noun} under an id of the store's"),
        row(Method::PUT, &all, Writes, call, "Create or replace the {noun} whose id is in the body"),
        row(Method::PATCH, &all, Writes, missing_id, ""),
        row(Method::DELETE, &all, Writes, missing_id, ""),
        row(Method::GET, &one, Reads, call, "Get a {noun}"),
        row(Method::PUT, &one, Writes, call, "Create or replace a {noun}"),
        row(Method::PATCH, &one, Writes, call, "Merge the body into a {noun}"),
        row(Method::DELETE, &one, Writes, call, "Delete a {noun}"),
        row(Method::POST, &one, Writes, unwanted_id, ""),
        row(Method::PATCH, &part, Writes, call, "Replace one member of a {noun}"),
    ];
    for row in &mut rows {
        row.summary = row.summary.replace("{noun}", noun);
        if SWITCHED_OFF.contains(&(kind.plural(), row.method.clone())) {
            row.call = Call::Reject(Rejection::NotSupported(noun));
        }
    }
    rows
}

fn absent(kind: &'static AbsentKind) -> Vec<Operation> {
    use Effect::{Reads, Writes};
    let call = Call::Absent(kind);
    let (all, one, noun) = (kind.path, format!("{}/{}", kind.path, kind.id), kind.noun);
    let mut rows = vec![
        row(Method::GET, all, Reads, call, "List the {noun}s: there are none"),
        row(Method::GET, &one, Reads, call, "Get a {noun}: there is none"),
        row(Method::DELETE, &one, Writes, call, "Delete a {noun}: there is none"),
    ];
    for method in [Method::PUT, Method::POST, Method::PATCH] {
        let switched_off = kind.switched_off.contains(&method);
        let call = if switched_off { Call::Reject(Rejection::NotSupported(noun)) } else { call };
        let summary = "Always an error: this gateway has no {noun}s";
        rows.extend([all, &one].map(|path| row(method.clone(), path, Writes, call, summary)));
    }
    for row in &mut rows {
        row.summary = row.summary.replace("{noun}", noun);
    }
    rows
}

/// What APISIX has beside its resources.
fn endpoints() -> Vec<Operation> {
    use Effect::{Checks, Reads, Writes};
    let mut rows = vec![
        row(Method::GET, "/schema/{name}", Reads, Call::Schema, "Get the JSON Schema of a resource"),
        row(Method::GET, "/schema/plugins/{name}", Reads, Call::Plugins, "Get the JSON Schema of a plugin"),
        row(
            Method::POST,
            "/schema/validate/{resource}",
            Checks,
            Call::ValidateDocument,
            "Validate a document against its JSON Schema",
        ),
        row(Method::GET, "/plugins", Reads, Call::Plugins, "Get every plugin with its JSON Schema"),
        row(Method::GET, "/plugins/list", Reads, Call::PluginList, "List the names of the plugins"),
        row(Method::GET, "/plugins/{name}", Reads, Call::Plugins, "Get the JSON Schema of a plugin"),
        row(
            Method::PUT,
            "/plugins/reload",
            Writes,
            Call::ReloadPlugins,
            "Reload the plugins: they are part of the program, so nothing happens",
        ),
        row(Method::GET, "/server_info", Reads, Call::ServerInfo, "Get the name and version of this server"),
        row(
            Method::PUT,
            "/configs",
            Writes,
            Call::PutConfigs,
            "Replace the whole configuration in one commit",
        ),
        row(Method::GET, "/configs", Reads, Call::Configs, "Get the whole configuration"),
        row(
            Method::POST,
            "/configs/validate",
            Checks,
            Call::ValidateConfigs,
            "Validate a whole configuration",
        ),
    ];
    for method in [Method::GET, Method::POST, Method::DELETE, Method::PATCH] {
        let effect = if method == Method::GET { Reads } else { Writes };
        rows.push(row(method, "/plugins/reload", effect, Call::Reject(Rejection::ReloadByPut), ""));
    }
    rows
}

/// What only this gateway has.
fn own_endpoints() -> Vec<Operation> {
    use Effect::{Reads, Writes};
    let missing_node = Call::Reject(Rejection::MissingId("denied node"));
    vec![
        row(
            Method::POST,
            "/batch",
            Writes,
            Call::Batch,
            "Write several objects in one commit, or none of them",
        ),
        row(
            Method::GET,
            "/dataplanes",
            Reads,
            Call::DataPlanes,
            "List the data planes, or wait for a revision",
        ),
        row(
            Method::POST,
            "/dataplanes/accept_store",
            Writes,
            Call::AcceptStore,
            "Let data planes that hold another store's state take over this one's",
        ),
        row(Method::GET, "/denied_nodes", Reads, Call::DeniedNodes, "List the denied data planes"),
        row(Method::GET, "/denied_nodes/{id}", Reads, Call::DeniedNodes, "Get an entry of the deny-list"),
        row(Method::PUT, "/denied_nodes/{id}", Writes, Call::DeniedNodes, "Deny a data plane"),
        row(
            Method::DELETE,
            "/denied_nodes/{id}",
            Writes,
            Call::DeniedNodes,
            "Remove an entry of the deny-list",
        ),
        row(Method::PUT, "/denied_nodes", Writes, missing_node, ""),
        row(Method::DELETE, "/denied_nodes", Writes, missing_node, ""),
        row(
            Method::POST,
            "/explain",
            Reads,
            Call::Explain,
            "Explain what happens to a connection and request",
        ),
        row(Method::GET, "/lint", Reads, Call::Lint, "List likely misconfigurations"),
        row(Method::GET, "/openapi.json", Reads, Call::OpenApi, "Get this document"),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_operation_has_one_row() {
        let mut seen = BTreeSet::new();
        for operation in operations() {
            assert!(seen.insert((operation.method.as_str(), &*operation.path)), "{operation:?}");
            assert!(operation.is_rejected() || !operation.summary.is_empty(), "{operation:?}");
            assert!(!operation.summary.contains("{noun}"), "{operation:?}");
        }
    }

    #[test]
    fn only_reads_are_for_a_viewer() {
        for operation in operations() {
            let get = operation.method == Method::GET;
            let reads = get || operation.path == "/explain";
            assert_eq!(operation.role() == AdminRole::Viewer, reads, "{operation:?}");
        }
    }

    #[test]
    fn what_apisix_switches_off_is_not_supported() {
        let off: Vec<_> = operations()
            .iter()
            .filter(|operation| matches!(operation.call, Call::Reject(Rejection::NotSupported(_))))
            .map(|operation| format!("{} {}", operation.method, operation.path))
            .collect();
        for expected in [
            "PATCH /stream_routes/{id}",
            "POST /consumers",
            "PATCH /consumers/{username}",
            "PATCH /consumers/{username}/credentials/{id}",
            "POST /consumer_groups",
            "POST /secrets",
            "PATCH /plugin_metadata/{name}",
            "PATCH /protos/{id}",
        ] {
            assert!(off.iter().any(|row| row == expected), "{expected}: {off:?}");
        }
        assert!(!off.iter().any(|row| row == "POST /routes" || row == "POST /protos"), "{off:?}");
    }
}
