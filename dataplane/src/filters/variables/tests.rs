use std::net::SocketAddr;

use http::{HeaderValue, request};
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use pki::{ClientAuth, ClientAuthInput};

use super::*;
use crate::filters::real_ip::ClientAddress;
use crate::tls::client_verifier;

const PARAMS: NegotiatedParams = NegotiatedParams {
    protocol: "TLSv1.3",
    cipher: "TLS_AES_256_GCM_SHA384",
    curve: Some("X25519"),
    alpn: Some("h2"),
    resumed: false,
};

fn parts(uri: &str, headers: &[(&str, &[u8])]) -> Parts {
    let mut builder = request::Builder::new().uri(uri).header("host", "A.example:8443");
    for (name, value) in headers {
        builder = builder.header(*name, HeaderValue::from_bytes(value).unwrap());
    }
    builder.body(()).unwrap().into_parts().0
}

/// The value of one variable on a TLS connection of this client.
fn value_for(name: &str, parts: &Parts, client: &ClientVerification) -> Option<String> {
    let target = crate::http::request::parse_target(
        parts.version,
        &parts.uri,
        &parts.headers,
        model::PathOptions::default(),
    )
    .unwrap();
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let info = ConnectionInfo::new(
        address("[::ffff:192.0.2.7]:1234"),
        address("10.0.0.1:9443"),
        ListenerProtocol::Https,
    );
    let sni = HostName::from_sni("a.example").unwrap();
    let info = ConnectionInfo { direct_peer: address("198.51.100.9:4711"), ..info };
    let tls = Some((&sni, &PARAMS));
    let request = RequestContext { parts, target: &target, info: &info, tls, client };
    request.value(&Variable::parse(name).unwrap()).map(Cow::into_owned)
}

#[test]
fn variables_describe_the_request() {
    let sent = parts(
        "/a/%2e/b%20c?x=1%202&y&x=3&+z=%C3%A9",
        &[
            ("x-tag", b"one"),
            ("x_tag", b"two"),
            ("x-odd", b"\xe9"),
            ("cookie", b"a=1; b=2"),
            ("cookie", b"c=3"),
        ],
    );
    for (name, expected) in [
        ("uri", Some("/a/b c")),
        ("request_uri", Some("/a/b c?x=1%202&y&x=3&+z=%C3%A9")),
        ("host", Some("a.example")),
        ("http_host", Some("A.example:8443")),
        ("scheme", Some("https")),
        ("request_method", Some("GET")),
        ("remote_addr", Some("192.0.2.7")),
        ("remote_port", Some("1234")),
        ("server_port", Some("9443")),
        ("is_args", Some("?")),
        ("arg_x", Some("1 2")),
        ("arg_y", Some("")),
        ("arg_ z", Some("é")),
        ("arg_none", None),
        ("http_x_tag", Some("one, two")),
        ("http_x_odd", Some("é")),
        ("http_none", None),
        ("cookie_b", Some("2")),
        ("cookie_c", Some("3")),
        ("cookie_d", None),
        ("ssl_server_name", Some("a.example")),
        ("ssl_protocol", Some("TLSv1.3")),
        ("ssl_cipher", Some("TLS_AES_256_GCM_SHA384")),
        ("ssl_curve", Some("X25519")),
        ("ssl_session_reused", Some(".")),
        ("ssl_alpn_protocol", Some("h2")),
        ("ssl_early_data", None),
        ("ssl_client_verify", Some("NONE")),
        ("ssl_client_s_dn", None),
        ("ssl_client_v_remain", None),
    ] {
        assert_eq!(value_for(name, &sent, &ClientVerification::NoCertificate).as_deref(), expected, "{name}");
    }
}

#[test]
fn invalid_bytes_hide_no_cookie() {
    for (field, name, expected) in [
        (&b"role=guest; x=\xff"[..], "cookie_role", Some("guest")),
        (b"\xff; role=guest", "cookie_role", Some("guest")),
        (b"\xc3\xa9=1; role=guest", "cookie_role", Some("guest")),
        (b"role=\xe9", "cookie_role", Some("\u{e9}")),
        (b"role=\xc3\xa9; x", "cookie_role", Some("\u{e9}")),
        (b"role=a=b", "cookie_role", Some("a=b")),
        (b"xrole=a; role", "cookie_role", None),
    ] {
        let sent = parts("/", &[("cookie", field)]);
        assert_eq!(
            value_for(name, &sent, &ClientVerification::NoCertificate).as_deref(),
            expected,
            "{field:?}"
        );
    }
}

#[test]
fn x_forwarded_for_is_read_as_the_client_sent_it() {
    for (sent, expected) in [
        (
            &[("x-real-ip", &b"192.0.2.7"[..]), ("x-forwarded-for", b"10.0.0.1, 192.0.2.7")][..],
            Some("10.0.0.1"),
        ),
        (&[("x-real-ip", b"192.0.2.7"), ("x-forwarded-for", b"a, b, 192.0.2.7")], Some("a, b")),
        (&[("x-real-ip", b"192.0.2.7"), ("x-forwarded-for", b"192.0.2.7")], None),
        (&[("x-real-ip", b"192.0.2.7"), ("x-forwarded-for", b"192.0.2.7, 192.0.2.7")], Some("192.0.2.7")),
        (&[("x-real-ip", b"2.7"), ("x-forwarded-for", b"192.0.2.7")], None),
    ] {
        let sent = parts("/", sent);
        assert_eq!(
            value_for("http_x_forwarded_for", &sent, &ClientVerification::NoCertificate).as_deref(),
            expected
        );
    }
}

#[test]
fn client_variables_need_a_verified_client() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let anchors = vec![root.certificate().clone()];
    let policy = ClientAuth::new(ClientAuthInput { anchors, ..ClientAuthInput::default() }).unwrap();
    let now = UnixTime::now();
    let today = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs() - 3600));
    let leaf = root.issue(&LeafSpec::client("Älice").organization("Acme").valid(today, 10)).unwrap();
    let verified = client_verifier::evaluate_client(Some(&policy), Some(&[leaf.chain[0].der().clone()]), now);
    let sent = parts("/", &[]);
    let value = |name: &str| value_for(name, &sent, &verified).unwrap();
    assert_eq!(value("ssl_client_verify"), "SUCCESS");
    assert_eq!(value("ssl_client_s_dn"), "CN=\\C3\\84lice,O=Acme");
    assert_eq!(value("ssl_client_s_dn_legacy"), "/O=Acme/CN=\\xC3\\x84lice");
    assert_eq!(value("ssl_client_i_dn"), "CN=Root");
    assert_eq!(value("ssl_client_i_dn_legacy"), "/CN=Root");
    assert_eq!(value("ssl_client_serial"), leaf.chain[0].serial_hex());
    assert_eq!(value("ssl_client_fingerprint").len(), 40);
    assert!(value("ssl_client_v_end").ends_with(" GMT"));
    assert_eq!(value("ssl_client_v_remain"), "9");
    let pem = leaf.chain[0].to_pem();
    assert_eq!(value("ssl_client_raw_cert"), pem);
    assert_eq!(value("ssl_client_cert").replace("\n\t", "\n"), pem.trim_end());
    let escaped = value("ssl_client_escaped_cert");
    assert_eq!(percent_decode(escaped.as_bytes()).decode_utf8().unwrap(), pem);
    assert!(escaped.starts_with("-----BEGIN%20CERTIFICATE-----%0A"));

    let rejected = ClientVerification::Rejected(VerifyReason::Expired);
    assert_eq!(value_for("ssl_client_verify", &sent, &rejected).unwrap(), "FAILED:certificate has expired");
    for name in ["s_dn", "i_dn", "serial", "fingerprint", "v_start", "cert", "escaped_cert"] {
        assert_eq!(value_for(&format!("ssl_client_{name}"), &sent, &rejected), None, "{name}");
    }
}

#[test]
fn addresses_are_those_of_client_and_proxy() {
    let local: SocketAddr = "10.0.0.1:9443".parse().unwrap();
    let info = |peer: &str| ConnectionInfo::new(peer.parse().unwrap(), local, ListenerProtocol::Https);
    let real_ip = model::RealIp::new("X-Forwarded-For", &["198.51.100.0/24".parse().unwrap()], true).unwrap();
    for (peer, sent, [addr, port, direct_addr, direct_port], displayed) in [
        (
            "198.51.100.9:4711",
            "6.6.6.6, 192.0.2.7",
            ["192.0.2.7", "", "198.51.100.9", "4711"],
            "192.0.2.7 via 198.51.100.9:4711",
        ),
        (
            "198.51.100.9:4711",
            "192.0.2.7:99",
            ["192.0.2.7", "99", "198.51.100.9", "4711"],
            "192.0.2.7:99 via 198.51.100.9:4711",
        ),
        ("203.0.113.9:4711", "192.0.2.7", ["203.0.113.9", "4711", "203.0.113.9", "4711"], "203.0.113.9:4711"),
    ] {
        let parts = parts("/", &[("x-forwarded-for", sent.as_bytes())]);
        let client = ClientAddress::resolve(&info(peer), Some(&real_ip), &parts.headers);
        let path_options = model::PathOptions::default();
        let target =
            crate::http::request::parse_target(parts.version, &parts.uri, &parts.headers, path_options)
                .unwrap();
        let request = RequestContext {
            parts: &parts,
            target: &target,
            info: &client.info,
            tls: None,
            client: &ClientVerification::NotRequested,
        };
        let value = |name: &str| request.value(&Variable::parse(name).unwrap()).unwrap().into_owned();
        let values = ["remote_addr", "remote_port", "realip_remote_addr", "realip_remote_port"].map(value);
        assert_eq!(values, [addr, port, direct_addr, direct_port], "{peer} {sent}");
        assert_eq!(client.to_string(), displayed);
        let expression =
            model::Vars::compile(&serde_json::json!([["remote_addr", "ipmatch", ["192.0.2.0/24"]]])).unwrap();
        assert_eq!(expression.matches(&request), addr == "192.0.2.7");
    }
}
