//! Documents of the Admin API that many tests need.
//!
//! Each function gives the JSON of one resource, which a test may change.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::credentials::{Authority, Credential};

/// An `ssl` document of type server for one name.
pub fn site(credential: &Credential, name: &str) -> Value {
    json!({"cert": credential.certificate_pem, "key": credential.key_pem, "snis": [name]})
}

/// A route on `host` for `uri`, to plain HTTP nodes.
pub fn route(host: &str, uri: &str, nodes: &[SocketAddr]) -> Value {
    json!({"uri": uri, "host": host, "upstream": {"type": "roundrobin", "nodes": weighted(nodes)}})
}

/// The `nodes` of an upstream, all of weight 1.
pub fn weighted(nodes: &[SocketAddr]) -> Value {
    nodes.iter().map(|node| (node.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into()
}

/// Makes a site require client certificates of this authority or of one intermediate.
pub fn protected(mut site: Value, authority: &Authority) -> Value {
    site["client"] = json!({"ca": authority.certificate_pem(), "depth": 1});
    site
}
