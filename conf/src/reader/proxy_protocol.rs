//! `apisix.proxy_protocol`: the HTTP listeners that read the PROXY protocol, and whether anybody's
//! header counts (contract 1.3 and 1.4).

use std::net::SocketAddr;

use super::Reader;
use super::real_ip::STREAM_REAL_IP_FROM;
use crate::settings::{ProxyMode, ProxyProtocolListen, Settings};
use crate::value;

const HTTP_PORT: &str = "apisix.proxy_protocol.listen_http_port";
const HTTPS_PORT: &str = "apisix.proxy_protocol.listen_https_port";

impl Reader<'_> {
    /// `ssl`: whether TLS listeners are opened at all.
    pub(super) fn proxy_protocol_listen(
        &mut self,
        mode: ProxyMode,
        ssl: bool,
        enable_ipv6: bool,
    ) -> ProxyProtocolListen {
        let listen = ProxyProtocolListen {
            http: self.listen_port(HTTP_PORT, enable_ipv6),
            https: self.listen_port(HTTPS_PORT, enable_ipv6),
        };
        for (field, addresses) in [(HTTP_PORT, &listen.http), (HTTPS_PORT, &listen.https)] {
            if !addresses.is_empty() && !mode.http() {
                self.warn(field, "not listened on, because proxy_mode is stream; set it to http&stream");
            }
        }
        if ssl || listen.https.is_empty() {
            return listen;
        }
        self.warn(HTTPS_PORT, "not listened on, because apisix.ssl.enable is false");
        ProxyProtocolListen { https: Vec::new(), ..listen }
    }

    /// The addresses of a port, as of an entry of `node_listen`.
    fn listen_port(&mut self, field: &str, enable_ipv6: bool) -> Vec<SocketAddr> {
        self.optional(field, |node| value::listener(node, value::port(node)?, enable_ipv6))
            .unwrap_or_default()
    }

    /// Warns where headers are read and none can count, and where they would count and none is
    /// read: both look like a working set-up until an address matters.
    pub(crate) fn check_proxy_protocol(&mut self, settings: &Settings) {
        let (apisix, real_ip) = (&settings.apisix, &settings.real_ip);
        let listen = &apisix.proxy_protocol;
        let reads = !listen.http.is_empty() || !listen.https.is_empty();
        let counts = real_ip.header == "proxy_protocol";
        let field = if listen.http.is_empty() { HTTPS_PORT } else { HTTP_PORT };
        if reads && (!counts || real_ip.from.is_empty()) {
            let text = "the addresses in PROXY protocol headers are read and ignored: they count with \
                        nginx_config.http.real_ip_header: proxy_protocol, from the peers in real_ip_from";
            self.warn(field, text);
        }
        if counts && !reads {
            let text = "has no effect: no listener reads the PROXY protocol (apisix.proxy_protocol.listen_http_port \
                        and listen_https_port)";
            self.warn("nginx_config.http.real_ip_header", text);
        }
        if !apisix.proxy_mode.streams() {
            return;
        }
        let reads = apisix.streams.iter().any(|listener| listener.proxy_protocol);
        let counts = !settings.stream_real_ip_from.is_empty();
        if reads && !counts {
            let text = format!(
                "the addresses in PROXY protocol headers are read and ignored: they count from the peers in \
                 {STREAM_REAL_IP_FROM}"
            );
            self.warn("apisix.stream_proxy.tcp", &text);
        }
        if counts && !reads {
            self.warn(STREAM_REAL_IP_FROM, "has no effect: no stream listener reads the PROXY protocol");
        }
    }
}
