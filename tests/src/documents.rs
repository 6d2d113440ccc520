//! Admin documents that many tests need, as a user would write them.
//!
//! Each function gives the JSON of one resource; a test changes what it is about.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::credentials::{Authority, Credential};

/// A server `ssl` document for one name.
pub fn site(credential: &Credential, name: &str) -> Value {
    json!({"cert": credential.certificate_pem, "key": credential.key_pem, "snis": [name]})
}

/// A route document for everything below `uri` on `host`, to plain-HTTP `nodes`.
pub fn route(host: &str, uri: &str, nodes: &[SocketAddr]) -> Value {
    json!({"uri": uri, "host": host, "upstream": {"type": "roundrobin", "nodes": weighted(nodes)}})
}

/// The `nodes` of an upstream document, all of weight 1.
pub fn weighted(nodes: &[SocketAddr]) -> Value {
    nodes.iter().map(|node| (node.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into()
}

/// The same site, demanding a client certificate of this authority, signed by it directly or through one intermediate.
pub fn protected(mut site: Value, authority: &Authority) -> Value {
    site["client"] = json!({"ca": authority.certificate_pem(), "depth": 1});
    site
}
