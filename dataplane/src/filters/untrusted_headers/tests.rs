use std::collections::HashSet;

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

const UNTRUSTED: PeerTrust = PeerTrust { forwarded: false, address: false };
const TRUSTED: PeerTrust = PeerTrust { forwarded: true, address: true };

/// The bytes of a header's name that are no letters or digits (RFC 9110 section 5.6.2).
const SEPARATORS: &str = "-_.!#$%&'*+^`|~";

/// Names of client certificates, as products document them.
const CERTIFICATES: &str = "Client-Cert Client-Cert-Chain X-Forwarded-Client-Cert X-Forwarded-Client-Cert-Chain \
    X-Forwarded-Cert X-ARR-ClientCert X-Forwarded-SSL-Client-Cert X-Forwarded-SSL-Client-S-DN \
    Cf-Client-Cert-Der-Base64 Cf-Client-Cert-Sha256 Cf-Cert-Verified Cf-Cert-Subject-Dn \
    ssl-client-cert ssl-client-verify ssl-client-subject-dn SSL_CLIENT_S_DN \
    SSL_CLIENT_CERT_CHAIN_0 SSL_CLIENT_ESCAPED_CERT CERT_CHAIN_1 X-Forwarded-Tls-Client-Cert \
    X-Forwarded-Tls-Client-Cert-Info X-SSL-Client-Verify X-SSL-Client-SHA1 X-SSL-Client-CN \
    X-SSL-Issuer X-SSL-Cert X-Amzn-Mtls-Clientcert X-Amzn-Mtls-Clientcert-Leaf \
    X-Client-Cert-Present X-Client-Cert-SPIFFE X-Client-Cert-URI-SANs X-Client-Certificate \
    X-Client-Verify X-Client-DN SSLClientCertSubject $WSCC $WSRU $wsra WL-Proxy-Client-Cert \
    l5d-client-id CloudFront-Viewer-Cert-Subject X-TLS-Client-Subject \
    MS-ASPNETCORE-CLIENTCERT X-ClientCert ClientCert X-Certificate Certificate X-Certificate-Subject X-ClientDN \
    X-MTLS-Subject X-MTLS-Verified SSL-Subject SSL-Verify SSL_CIPHER X-TLS-Subject X-TLS-Cert TLS-Verified \
    X-Peer-Subject X-Peer-DN X-Peer-Verified Proxy-Auth-Cert Proxy-Ssl-Id HTTP_SSL_CLIENT_S_DN";

/// Names of authenticated users and services.
const USERS: &str = "Remote-User REMOTE_USER X-Remote-User X-Remote-Group X-Remote-Extra-Scopes Remote-Groups \
    X-Forwarded-User X-Forwarded-Email X-Forwarded-Groups X-Forwarded-Preferred-Username \
    X-Auth-Request-User X-Auth-Request-Email X-Authenticated-User X-WEBAUTH-USER \
    X-Authentik-Username X-Consumer-Username X-Credential-Identifier X-MS-CLIENT-PRINCIPAL-NAME \
    X-Goog-Authenticated-User-Email Cf-Access-Authenticated-User-Email Tailscale-User-Login \
    SM_USER SM_USERDN iv-user OIDC_CLAIM_sub OAM_REMOTE_USER Shib-Session-ID \
    X-Amzn-Oidc-Identity X-Pomerium-Claim-Email MS-ASPNETCORE-WINAUTHTOKEN MS-ASPNETCORE-TOKEN \
    X-Vouch-User X-Vouch-IdP-Claims-Email X-Token-Subject X-Token-User-Email X-ID-Token LOGON_USER AUTH_USER \
    X-iisnode-LOGON_USER Dapr-Caller-App-Id X-Envoy-Peer-Metadata X-Envoy-Peer-Metadata-Id X-Auth-Subject \
    X-Auth-Username X-ProxiedEntitiesChain HTTP_REMOTE_USER HTTP_X_REMOTE_USER Proxy HTTP_PROXY";

/// Names of one address.
const ADDRESSES: &str = "True-Client-IP X-Client-IP Client-IP X-Cluster-Client-IP CF-Connecting-IP CF-Connecting-IPv6 \
    X-Original-Forwarded-For X-Azure-ClientIP X-Azure-SocketIP Fastly-Client-IP \
    X-Envoy-External-Address WL-Proxy-Client-IP Proxy-Client-IP X-ProxyUser-Ip \
    X-Appengine-User-Ip X-Remote-Addr REMOTE_ADDR Forwarded-For CloudFront-Viewer-Address \
    X-Forwarded X-Vercel-Forwarded-For X-Vercel-Proxied-For X-Original-For HTTP_CLIENT_IP http-http.x_client_ip";

/// Names of a scheme, a host or a path.
const SCHEMES: &str = "X-Forwarded-Ssl X-Forwarded-Scheme Front-End-Https X-Url-Scheme HTTPS X-Original-URL \
    X-Original-URI X-Original-Proto X-Envoy-Original-Path X-Envoy-Original-Dst-Host X-Forwarded-Prefix \
    X-Forwarded-Uri X-Forwarded-Server X-Proxied-Https X-ProxyContextPath X-Script-Name HTTP_X_FORWARDED_SSL";

/// Names without a claim.
const ORDINARY: &str = "host user-agent accept accept-encoding accept-language authorization cookie content-type \
    content-length content-encoding content-disposition cache-control connection origin referer \
    range if-none-match if-modified-since te trailer expect via from dnt priority sec-fetch-mode \
    sec-ch-ua sec-websocket-key upgrade-insecure-requests traceparent tracestate baggage \
    x-request-id x-correlation-id x-trace-id x-b3-traceid x-amzn-trace-id x-cloud-trace-context \
    x-requested-with x-csrf-token x-xsrf-token x-api-key x-auth-token x-auth-user x-auth-key \
    x-access-token x-user-id x-user-dn x-user x-username x-tenant-id x-client-id \
    x-client-version x-client-name x-client-sandbox x-client-data client-id idempotency-key \
    x-idempotency-key x-http-method-override x-refresh-token x-vouch-token http http- http2-settings http-method \
    x-content-length x-upload-content-length x-goog-iap-jwt-assertion x-amzn-oidc-data \
    cf-access-jwt-assertion cf-ray cf-ipcountry x-azure-fdid x-envoy-upstream-rq-timeout-ms \
    impersonate-user grpc-timeout soapaction x-real-time x-forwarded-for x-real-ip \
    x-forwarded-proto x-forwarded-host x-forwarded-port forwarded x-goog-api-client \
    x-goog-user-project remote x x- - s client x-cookie auth-token token x-token id-token date x-peer-id certificate-id \
    dapr-app-id dapr-api-token traceparent proxy-status x-original-name x-proxy";

/// Names that a row matches.
fn names(row: &str) -> Vec<String> {
    let (stem, both) = match row.strip_prefix("[x-]") {
        Some(stem) => (stem, true),
        None => (row, false),
    };
    let ends: &[&str] = if stem.ends_with('*') { &["", "s-dn", "x"] } else { &[""] };
    let stem = stem.trim_end_matches('*');
    let starts: &[&str] = if both { &["", "x-"] } else { &[""] };
    starts.iter().flat_map(|start| ends.iter().map(move |end| format!("{start}{stem}{end}"))).collect()
}

/// A name in every spelling that replaces all of its separators, or one of them, by another.
fn spellings(name: &str) -> HashSet<String> {
    let folds = |byte: char| !byte.is_ascii_alphanumeric();
    let mut all = HashSet::from([name.to_owned()]);
    for separator in SEPARATORS.chars() {
        all.insert(name.replace(folds, &separator.to_string()));
        for (at, _) in name.match_indices(folds) {
            let mut one = name.to_owned();
            one.replace_range(at..=at, &separator.to_string());
            all.insert(one);
        }
    }
    all
}

/// Whether a header of this name, with two values and an ordinary neighbour, passes.
fn passes(name: &str, trust: PeerTrust) -> bool {
    passes_beside(name, trust, None)
}

fn passes_beside(name: &str, trust: PeerTrust, real_ip_header: Option<&str>) -> bool {
    let mut headers = HeaderMap::new();
    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
    for value in ["forged", "forged too"] {
        headers.append(&name, HeaderValue::from_static(value));
    }
    headers.insert("accept", HeaderValue::from_static("*/*"));
    let real_ip_header = real_ip_header.map(|name| HeaderName::from_bytes(name.as_bytes()).unwrap());
    remove_untrusted(&mut headers, trust, real_ip_header.as_ref());
    assert!(headers.contains_key("accept"));
    headers.contains_key(name)
}

#[test]
fn every_name_in_every_spelling_passes_as_its_row_allows() {
    let peers = [
        UNTRUSTED,
        TRUSTED,
        PeerTrust { forwarded: true, address: false },
        PeerTrust { forwarded: false, address: true },
    ];
    for (row, claim, source) in UNTRUSTED_HEADERS {
        assert!(!source.is_empty(), "{row} has a source");
        for name in names(row) {
            // A longer name may match another row first.
            let claim = UNTRUSTED_HEADERS
                .iter()
                .find(|(other, ..)| names(other).contains(&name))
                .map_or(*claim, |(_, claim, _)| *claim);
            for spelling in spellings(&name) {
                for trust in peers {
                    let expected = match claim {
                        Certificate | User | Environment => false,
                        Ours | Framing => spelling == *row,
                        Address => trust.address || trust.forwarded,
                        Scheme => trust.forwarded,
                    };
                    assert_eq!(passes(&spelling, trust), expected, "{row}: {spelling} from {trust:?}");
                }
            }
        }
    }
}

#[test]
fn documented_names_of_products_are_in_the_table() {
    for certificate in CERTIFICATES.split_whitespace() {
        assert!(!passes(&certificate.to_lowercase(), TRUSTED), "{certificate}");
    }
    for user in USERS.split_whitespace() {
        assert!(!passes(&user.to_lowercase(), TRUSTED), "{user}");
    }
    for address in ADDRESSES.split_whitespace() {
        let address = address.to_lowercase();
        assert!(!passes(&address, UNTRUSTED) && passes(&address, TRUSTED), "{address}");
    }
    for scheme in SCHEMES.split_whitespace() {
        let scheme = scheme.to_lowercase();
        assert!(
            !passes(&scheme, PeerTrust { address: true, ..UNTRUSTED }) && passes(&scheme, TRUSTED),
            "{scheme}"
        );
    }
}

#[test]
fn the_name_of_a_cgi_variable_is_untrusted() {
    for (row, ..) in UNTRUSTED_HEADERS {
        for name in names(row) {
            for cgi in [format!("http-{name}"), format!("http_{}", name.replace('-', "_"))] {
                assert!(!passes(&cgi, UNTRUSTED), "{cgi}");
            }
        }
    }
}

#[test]
fn real_ip_header_passes_only_from_trusted_peers() {
    let peers =
        [TRUSTED, PeerTrust { forwarded: true, ..UNTRUSTED }, PeerTrust { address: true, ..UNTRUSTED }];
    for real_ip in ["X-Edge-Addr", "X_Edge_Addr", "edge", "x-forwarded-address"] {
        let own = real_ip.to_lowercase();
        assert!(!passes_beside(&own, UNTRUSTED, Some(real_ip)), "{real_ip}");
        for trust in peers {
            assert!(passes_beside(&own, trust, Some(real_ip)), "{real_ip}");
            for spelling in spellings(&own).into_iter().filter(|spelling| *spelling != own) {
                assert!(!passes_beside(&spelling, trust, Some(real_ip)), "{spelling}");
            }
            assert!(!passes_beside(&format!("http_{own}"), trust, Some(real_ip)), "{real_ip}");
        }
        assert!(passes_beside("x-edge", UNTRUSTED, Some(real_ip)) && passes(&own, UNTRUSTED));
    }
    for ours in ["X-Forwarded-For", "X-Real-IP"] {
        assert!(passes_beside(&ours.to_lowercase(), UNTRUSTED, Some(ours)), "{ours} is set from it");
    }
}

#[test]
fn ordinary_headers_pass() {
    for name in ORDINARY.split_whitespace() {
        assert!(passes(name, UNTRUSTED), "{name}");
    }
}

/// The claim of a name, looked up row by row.
fn linear_claim_of(name: &str) -> Option<Claim> {
    let folded: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let mut folded = &*folded;
    while let Some(rest) = folded.strip_prefix("http-") {
        folded = rest;
    }
    let fits = |row: &str| {
        let one = |pattern: String| match pattern.strip_suffix('*') {
            Some(prefix) => folded.starts_with(prefix),
            None => *folded == *pattern,
        };
        let row = row.replace('$', "-");
        match row.strip_prefix("[x-]") {
            Some(stem) => one(stem.to_owned()) || one(format!("x-{stem}")),
            None => one(row),
        }
    };
    let (row, claim, _) = UNTRUSTED_HEADERS.iter().find(|(row, ..)| fits(row))?;
    (!(matches!(claim, Ours | Framing) && name == *row)).then_some(*claim)
}

fn rows_cut_and_joined() -> impl Strategy<Value = String> {
    let row = proptest::sample::select(UNTRUSTED_HEADERS)
        .prop_map(|(row, ..)| row.replace("[x-]", "x-").replace('*', ""));
    let switches = (any::<bool>(), any::<bool>(), any::<bool>());
    (row, "[a-z_.-]{0,3}", 0_usize..40, switches).prop_map(|(row, more, cut, (x, turn, cgi))| {
        let row: String = row.chars().take(cut.max(1)).collect();
        let row = if x { row } else { row.trim_start_matches("x-").to_owned() };
        let name = format!("{row}{more}");
        let name = if turn { name.replace('-', "_") } else { name };
        if cgi { format!("http_{name}") } else { name }
    })
}

proptest! {
    /// The buckets neither omit nor add a match.
    #[test]
    fn buckets_find_what_a_linear_search_finds(name in prop_oneof![rows_cut_and_joined(), "[a-z$_.-]{1,12}"]) {
        prop_assume!(!name.is_empty());
        prop_assert_eq!(claim_of(&HeaderName::from_bytes(name.as_bytes()).unwrap()), linear_claim_of(&name), "{}", name);
    }
}
