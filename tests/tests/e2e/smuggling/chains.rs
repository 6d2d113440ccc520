//! The ways from the gateway to a byte logger: directly, or through a reader that parses and
//! forwards what it gets, over kept connections on both sides.

use std::net::SocketAddr;
use std::path::Path;

use e2e::peers::Peer;
use serde_json::{Value, json};

use super::logger::ByteLogger;

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";

pub(super) struct Chain {
    name: &'static str,
    logger: ByteLogger,
    reader: Option<Peer>,
}

impl Chain {
    /// `direct` first, then those whose program is installed.
    pub(super) async fn all(folder: &Path) -> Vec<Self> {
        let mut chains = vec![Self { name: "direct", logger: ByteLogger::start().await, reader: None }];
        for name in ["nginx", "haproxy", "envoy"] {
            let logger = ByteLogger::start().await;
            let to = logger.address();
            let reader = match name {
                "nginx" => Peer::nginx(folder, 1, |at| nginx(at[0], to)).await,
                "haproxy" => Peer::haproxy(folder, 1, |at| haproxy(at[0], to)).await,
                _ => Peer::envoy(folder, 1, |at| envoy(at[0], to)).await,
            };
            if reader.is_some() {
                chains.push(Self { name, logger, reader });
            }
        }
        chains
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Where the gateway forwards to.
    pub(super) fn address(&self) -> SocketAddr {
        self.reader.as_ref().map_or(self.logger.address(), Peer::address)
    }

    pub(super) fn logger(&self) -> &ByteLogger {
        &self.logger
    }
}

fn nginx(at: SocketAddr, to: SocketAddr) -> String {
    format!(
        "upstream logger {{ server {to}; keepalive 64; }}
server {{
    listen {at};
    client_max_body_size 0;
    location / {{
        proxy_pass http://logger;
        proxy_http_version 1.1;
        proxy_set_header Connection \"\";
        proxy_request_buffering off;
    }}
}}"
    )
}

fn haproxy(at: SocketAddr, to: SocketAddr) -> String {
    format!(
        "defaults
  mode http
  timeout connect 10s
  timeout client 30s
  timeout server 30s
  http-reuse always
frontend in
  bind {at}
  default_backend out
backend out
  server logger {to}"
    )
}

fn envoy(at: SocketAddr, to: SocketAddr) -> Value {
    let address = |of: SocketAddr| {
        let (ip, port) = (of.ip().to_string(), of.port());
        json!({"socket_address": {"address": ip, "port_value": port}})
    };
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": format!("{TYPES}.http.router.v3.Router")},
    });
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "logger", "timeout": "0s"}}]);
    let manager = json!({
        "@type": format!("{TYPES}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "in",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    });
    let filters = json!([{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]);
    let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address(to)}}]}]);
    json!({
        "listeners": [{"name": "in", "address": address(at), "filter_chains": [{"filters": filters}]}],
        "clusters": [{
            "name": "logger",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "logger", "endpoints": endpoints},
        }],
    })
}
