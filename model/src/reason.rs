//! The closed list of reasons why a connection or a request fails, with the status, error page,
//! metric label and log field of each.
//!
//! Each stage of the data plane has an error type with a `reason()`. The list is part of this crate
//! because the explain API uses the same words. Invariant 10: the reason goes to logs and metrics;
//! the peer sees only the status or the TLS alert.

use http::StatusCode;

macro_rules! reasons {
    ($( $(#[doc = $doc:literal])+ $variant:ident => $label:literal, $status:expr; )+) => {
        /// Why a connection or a request failed. The list is closed, because alerts are built on
        /// the labels.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $( $(#[doc = $doc])+ $variant, )+ }

        impl Reason {
            /// Every reason, in the order of a connection's life.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The metric label and log field.
            pub fn label(self) -> &'static str {
                match self { $( Self::$variant => $label, )+ }
            }

            /// The response status of a failed request; `None` before there is a request.
            pub fn status(self) -> Option<StatusCode> {
                match self { $( Self::$variant => $status, )+ }
            }
        }
    };
}

reasons! {
    /// The listener reads the PROXY protocol, and the connection begins with no header of it.
    BadProxyProtocol => "bad_proxy_protocol", None;
    /// The client sent plain HTTP to a TLS port.
    PlainHttp => "plain_http", Some(StatusCode::BAD_REQUEST);
    /// The handshake violates the TLS protocol, or is no TLS.
    BadHandshake => "bad_handshake", None;
    /// The peer closed the connection during the handshake.
    HandshakeAbandoned => "handshake_abandoned", None;
    /// The peer rejected the handshake with an alert.
    RejectedByPeer => "rejected_by_peer", None;
    /// The handshake, or the PROXY protocol header before it, exceeded `limits.handshake_timeout`.
    HandshakeTimeout => "handshake_timeout", None;
    /// The ClientHello has no SNI, and `apisix.ssl.fallback_sni` is not set.
    NoSni => "no_sni", None;
    /// No ssl object has the SNI, or the site of an open connection was deleted.
    NoSite => "no_site", None;
    /// The site cannot be served, because the TLS engine does not accept its certificate.
    BadSite => "bad_site", None;
    /// The site is blocked, because another program stored an unsupported document.
    BlockedSite => "blocked_site", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The client and the site have no TLS version in common.
    NoCommonVersion => "no_common_version", None;
    /// The client and the site have no cipher suite, group, signature scheme or application
    /// protocol in common.
    NoCommonParameters => "no_common_parameters", None;
    /// The site requires a client certificate and the client sent none.
    NoCertificate => "no_certificate", Some(StatusCode::BAD_REQUEST);
    /// `pki` rejected the client certificate; the log has the rule.
    BadCertificate => "bad_certificate", Some(StatusCode::BAD_REQUEST);
    /// The client policy of the site changed and rejects the client of an open connection, or the
    /// client's certificate expired.
    PolicyChanged => "policy_changed", Some(StatusCode::BAD_REQUEST);

    /// No stream route matches the connection.
    NoStreamRoute => "no_stream_route", None;
    /// The stream route is blocked, because another program stored an unsupported document.
    BlockedStreamRoute => "blocked_stream_route", None;
    /// The TLS of the connection may not be passed on: the site of its SNI (without one, any site)
    /// has a client policy or is blocked, its upstream would put it into another TLS, or its stream
    /// route changed meanwhile.
    PassthroughDenied => "passthrough_denied", None;
    /// A stream or WebSocket was idle, or one side accepted no data, for longer than the upstream's
    /// timeouts.
    TcpTimeout => "tcp_timeout", None;

    /// The client sent no complete request head within `client_header_timeout`.
    HeadTimeout => "head_timeout", None;
    /// The client accepted no data for `send_timeout`, on a connection or on one HTTP/2 stream.
    SendTimeout => "send_timeout", None;
    /// The host, path or framing of the request is malformed.
    BadRequest => "bad_request", Some(StatusCode::BAD_REQUEST);
    /// The request line is longer than `limits.header_line_bytes`.
    UriTooLong => "uri_too_long", Some(StatusCode::URI_TOO_LONG);
    /// A header field is longer than `limits.header_line_bytes`, or the request head larger than
    /// `limits.header_bytes`.
    HeadTooLarge => "head_too_large", Some(StatusCode::BAD_REQUEST);
    /// The method is CONNECT or TRACE, which the gateway does not forward.
    MethodNotAllowed => "method_not_allowed", Some(StatusCode::METHOD_NOT_ALLOWED);
    /// The request body has a transfer coding other than `chunked`.
    TransferCoding => "transfer_coding", Some(StatusCode::NOT_IMPLEMENTED);
    /// The request asks for a protocol upgrade that is not enabled.
    UpgradeNotSupported => "upgrade_not_supported", Some(StatusCode::UPGRADE_REQUIRED);
    /// An extended CONNECT of HTTP/2 asks for a protocol that is not enabled.
    ProtocolNotSupported => "protocol_not_supported", Some(StatusCode::NOT_IMPLEMENTED);
    /// The Host belongs to a site with another client policy than the connection's.
    Misdirected => "misdirected", Some(StatusCode::MISDIRECTED_REQUEST);
    /// The allow-list of the route or its service does not include the client, or the client is not
    /// verified.
    NotAllowed => "not_allowed", Some(StatusCode::FORBIDDEN);
    /// The body is larger than `client_max_body_size`.
    BodyTooLarge => "body_too_large", Some(StatusCode::PAYLOAD_TOO_LARGE);
    /// The client stopped sending its body.
    BodyTimeout => "body_timeout", Some(StatusCode::REQUEST_TIMEOUT);
    /// The client exceeds `limits.requests_per_client`, its concurrent requests.
    TooManyRequests => "too_many_requests", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// A global rule is blocked, because another program stored an unsupported document.
    BlockedGlobalRule => "blocked_global_rule", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// No route matches the request.
    NoRoute => "no_route", Some(StatusCode::NOT_FOUND);
    /// The route is blocked, because another program stored an unsupported document.
    BlockedRoute => "blocked_route", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The route's service is blocked, because another program stored an unsupported document.
    BlockedService => "blocked_service", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The route's plugin config is blocked, because another program stored an unsupported
    /// document.
    BlockedPluginConfig => "blocked_plugin_config", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The upstream is blocked, because another program stored an unsupported document.
    BlockedUpstream => "blocked_upstream", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The route's plugin config does not exist.
    NoPluginConfig => "no_plugin_config", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The route's service does not exist.
    NoService => "no_service", Some(StatusCode::NOT_FOUND);
    /// Neither the route nor its service has an upstream.
    NoUpstream => "no_upstream", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The route's upstream does not exist.
    UpstreamMissing => "upstream_missing", Some(StatusCode::BAD_GATEWAY);
    /// The client certificate for the upstream is missing: no such ssl object, or not of type
    /// client.
    UpstreamIdentity => "upstream_identity", Some(StatusCode::BAD_GATEWAY);
    /// The upstream of an HTTP request has a scheme for TCP.
    UpstreamScheme => "upstream_scheme", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The upstream has no usable node.
    NoNode => "no_node", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The host name of the node does not resolve.
    UpstreamName => "upstream_name", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The worker is at its limit of connections to the node, or to upstreams altogether, and none
    /// became free in time.
    UpstreamLimit => "upstream_limit", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The node refused the connection.
    UpstreamConnect => "upstream_connect", Some(StatusCode::BAD_GATEWAY);
    /// The TLS handshake with the node failed, or the node ended it afterwards with an alert.
    UpstreamTls => "upstream_tls", Some(StatusCode::BAD_GATEWAY);
    /// The node closed the connection before its response, or in the middle of a stream.
    UpstreamClosed => "upstream_closed", Some(StatusCode::BAD_GATEWAY);
    /// The response of the node is not HTTP, or its framing is ambiguous.
    UpstreamInvalid => "upstream_invalid", Some(StatusCode::BAD_GATEWAY);
    /// The node did not accept the connection in time.
    UpstreamConnectTimeout => "upstream_connect_timeout", Some(StatusCode::GATEWAY_TIMEOUT);
    /// The node did not accept the request in time.
    UpstreamSendTimeout => "upstream_send_timeout", Some(StatusCode::GATEWAY_TIMEOUT);
    /// The node did not respond in time.
    UpstreamReadTimeout => "upstream_read_timeout", Some(StatusCode::GATEWAY_TIMEOUT);
    /// The deadline of a gRPC call (`grpc-timeout`) passed before its response.
    DeadlineExceeded => "deadline_exceeded", Some(StatusCode::GATEWAY_TIMEOUT);
    /// `retry_timeout` elapsed before a node responded.
    RetryTimeout => "retry_timeout", Some(StatusCode::BAD_GATEWAY);
}

impl Reason {
    /// The index in [`Reason::ALL`], which orders the counters.
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_is_documented_with_its_status() {
        let page = include_str!("../../docs/REASONS.md");
        for reason in Reason::ALL {
            let status = reason.status().map_or(String::new(), |status| status.as_u16().to_string());
            let row = format!("| `{}` | {status} |", reason.label());
            assert!(page.contains(&row), "docs/REASONS.md lacks {row}");
        }
    }

    #[test]
    fn every_verify_reason_is_documented_with_its_alert() {
        let page = include_str!("../../docs/REASONS.md");
        for rule in pki::VerifyReason::ALL {
            let row = format!("| `{rule}` | `{}` |", rule.alert());
            assert!(page.contains(&row), "docs/REASONS.md lacks {row}");
        }
    }

    #[test]
    fn labels_are_unique_and_indexes_match_the_list() {
        let labels: HashSet<_> = Reason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), i);
        }
    }
}
