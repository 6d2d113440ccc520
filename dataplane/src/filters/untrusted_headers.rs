//! Request headers that an upstream believes because it stands behind a gateway: who the client is,
//! which address and scheme it came by. One table with the product that sets or reads each name.
//!
//! From outside such a header is an unverified claim. Invariant: a name in the table, in any
//! spelling that an upstream may take for it, passes only as [`What`] says; so what reaches an
//! upstream under it is ours, a trusted proxy's, or absent.

use std::net::IpAddr;

use Claim::{Address, Certificate, Environment, Framing, Ours, Scheme, User};
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use model::RealIp;

/// What a header claims, and so from whom it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// What a client certificate says, or that one was verified. Never passes: this gateway
    /// verifies certificates itself.
    Certificate,
    /// The user or service that a proxy has authenticated. Never passes: `trusted_addresses` lists
    /// the proxies that write `X-Forwarded-*`, not those that authenticate. Tokens that the
    /// upstream verifies itself (`Authorization`, signed JWTs) are no claims.
    User,
    /// One address of the client, as a proxy's. Unlike `X-Forwarded-For` it is no list to which
    /// ours could be appended. Passes from `trusted_addresses` and `real_ip_from`.
    Address,
    /// The scheme, host or path that the client asked a proxy for, beside those we send. Passes
    /// from `trusted_addresses`.
    Scheme,
    /// A variable of CGI that programs take for a setting of their own. Never passes.
    Environment,
    /// A name we set ourselves. Its own spelling is handled where it is set; any other one never
    /// passes.
    Ours,
    /// A name that frames the message. As [`What::Ours`].
    Framing,
}

/// Name, what it claims, and who sets or reads it. `*` at the end: all names that begin so. `[x-]`:
/// with and without `X-`.
pub(super) const UNTRUSTED_HEADERS: &[(&str, Claim, &str)] = &[
    // $
    (
        "$ws*",
        Certificate,
        "IBM WebSphere: $WSCC, $WSRU, $WSRA, $WSSC and the others of its web server plugin",
    ),
    // a
    ("ali-cdn-real-ip", Address, "Alibaba Cloud CDN"),
    ("[x-]appengine-remote-addr", Address, "Google App Engine"),
    ("[x-]appengine-user-ip", Address, "Google App Engine"),
    ("[x-]appengine-user-*", User, "Google App Engine: -Email, -Id, -Nickname, -Is-Admin, -Organization"),
    ("[x-]appengine-inbound-appid", User, "Google App Engine"),
    ("x-apigateway-api-userinfo", User, "Google API Gateway"),
    ("[x-]amzn-mtls-*", Certificate, "AWS Application Load Balancer: X-Amzn-Mtls-Clientcert and its parts"),
    ("[x-]amzn-oidc-identity", User, "AWS Application Load Balancer"),
    ("[x-]arr-clientcert*", Certificate, "Azure App Service and Microsoft's Application Request Routing"),
    ("[x-]arr-ssl", Scheme, "Microsoft's Application Request Routing"),
    ("x-auth-audience", User, "Keycloak Gatekeeper"),
    ("x-auth-email", User, "Keycloak Gatekeeper"),
    ("x-auth-groups", User, "Keycloak Gatekeeper"),
    ("x-auth-roles", User, "Keycloak Gatekeeper"),
    ("x-auth-subject", User, "Keycloak Gatekeeper"),
    ("x-auth-userid", User, "Keycloak Gatekeeper"),
    ("x-auth-username", User, "Keycloak Gatekeeper"),
    ("auth-user", User, "IIS: AUTH_USER as a header; X-Auth-User is data of OpenStack's clients"),
    ("[x-]auth-request-*", User, "oauth2-proxy: -User, -Email, -Groups, -Preferred-Username"),
    ("[x-]authenticated-*", User, "Kong: X-Authenticated-Userid, -Scope, -Groups; X-Authenticated-User"),
    ("[x-]authentik-*", User, "authentik"),
    ("[x-]azure-clientip", Address, "Azure Front Door"),
    ("[x-]azure-socketip", Address, "Azure Front Door"),
    // c
    ("cas-user*", User, "mod_auth_cas"),
    ("cdn-src-ip", Address, "Wangsu and other CDNs"),
    ("[x-]cert", Certificate, "Citrix gateways"),
    ("[x-]cert-*", Certificate, "Keycloak: CERT_CHAIN_0; nginx configurations: X-Cert-Subject"),
    ("[x-]certificate", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-chain*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-cn", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-dn", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-fingerprint*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-issuer*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-pem", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-san*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-serial*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-subject*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]certificate-verif*", Certificate, "nginx and HAProxy configurations"),
    ("cf-access-authenticated-user-*", User, "Cloudflare Access"),
    ("cf-cert-*", Certificate, "Cloudflare: Cf-Cert-Verified, -Presented, -Subject-Dn, -Issuer-Dn"),
    ("cf-client-cert-*", Certificate, "Cloudflare: Cf-Client-Cert-Der-Base64, -Sha256"),
    ("cf-connecting-ip*", Address, "Cloudflare: CF-Connecting-IP, CF-Connecting-IPv6"),
    ("cf-pseudo-ipv4", Address, "Cloudflare"),
    ("cf-visitor", Scheme, "Cloudflare"),
    (
        "[x-]client-cert*",
        Certificate,
        "RFC 9440; Google Cloud: X-Client-Cert-Present, -Hash, -SPIFFE; F5; Citrix; Azure gateway rules",
    ),
    ("[x-]client-cn", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-dn", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-fingerprint", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-i-dn", Certificate, "nginx configurations"),
    ("[x-]client-issuer*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-s-dn", Certificate, "nginx configurations"),
    ("[x-]client-san", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-san-*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-serial", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-serial-*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-serialnumber", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-spiffe*", Certificate, "Google Cloud and HAProxy configurations"),
    ("[x-]client-ssl-*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-subject*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-tls-*", Certificate, "nginx and HAProxy configurations"),
    (
        "[x-]client-verif*",
        Certificate,
        "nginx configurations: X-Client-Verify; Google Cloud: X-Client-Verified",
    ),
    ("[x-]clientcert*", Certificate, "IIS, ASP.NET and Azure configurations"),
    ("[x-]clientcn", Certificate, "nginx and HAProxy configurations"),
    ("[x-]clientdn", Certificate, "nginx and HAProxy configurations"),
    ("[x-]clientssl*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]client-ip*", Address, "Apache Traffic Server; Akamai; many applications"),
    ("[x-]client-real-ip", Address, "applications"),
    ("[x-]cluster-client-ip", Address, "Rackspace, Riverbed and Zeus load balancers"),
    ("cloudfront-forwarded-proto", Scheme, "Amazon CloudFront"),
    ("cloudfront-viewer-address", Address, "Amazon CloudFront"),
    ("cloudfront-viewer-cert-*", Certificate, "Amazon CloudFront"),
    ("[x-]consumer-custom-id", User, "APISIX and Kong"),
    ("[x-]consumer-groups", User, "Kong"),
    ("[x-]consumer-id", User, "Kong"),
    ("[x-]consumer-username", User, "APISIX and Kong"),
    ("[x-]credential-identifier", User, "APISIX and Kong"),
    ("[x-]credential-username", User, "Kong"),
    ("content-length", Framing, "RFC 9110 section 8.6"),
    // d
    ("dapr-caller-*", User, "Dapr: Dapr-Caller-App-Id, -Namespace"),
    ("do-connecting-ip", Address, "DigitalOcean"),
    // e
    ("eo-client-ip", Address, "Tencent EdgeOne"),
    ("eo-connecting-ip", Address, "Tencent EdgeOne"),
    ("[x-]envoy-downstream-service-*", User, "Envoy: the cluster and node a request came from"),
    ("[x-]envoy-external-address", Address, "Envoy"),
    ("[x-]envoy-internal", Address, "Envoy: the client is of one's own network"),
    ("[x-]envoy-original-*", Scheme, "Envoy: X-Envoy-Original-Path, -Host, -Dst-Host"),
    ("[x-]envoy-peer-metadata*", User, "Istio: the workload a request came from"),
    ("x-endpoint-api-userinfo", User, "Google Cloud Endpoints"),
    // f
    ("fastly-client-ip", Address, "Fastly"),
    ("fastly-ssl", Scheme, "Fastly"),
    ("fly-client-ip", Address, "Fly.io"),
    ("forwarded", Ours, "RFC 7239; removed, or a trusted proxy's"),
    ("x-forwarded-for", Ours, "nginx and APISIX: X-Forwarded-For"),
    ("x-forwarded-host", Ours, "APISIX: X-Forwarded-Host"),
    ("x-forwarded-port", Ours, "APISIX: X-Forwarded-Port"),
    ("x-forwarded-proto", Ours, "APISIX: X-Forwarded-Proto"),
    ("x-forwarded", Address, "proxies before RFC 7239"),
    ("forwarded-for", Address, "proxies before X-Forwarded-For"),
    ("[x-]forwarded-for-ip", Address, "proxies"),
    ("[x-]forwarded-client-ip", Address, "proxies"),
    ("[x-]forwarded-protocol", Scheme, "gunicorn, Django deployments"),
    ("[x-]forwarded-proto-version", Scheme, "proxies"),
    ("[x-]forwarded-scheme", Scheme, "ingress-nginx, Rack"),
    ("[x-]forwarded-ssl", Scheme, "gunicorn, Rack, Phusion Passenger"),
    ("forwarded-host", Scheme, "proxies"),
    ("forwarded-port", Scheme, "proxies"),
    ("forwarded-proto", Scheme, "proxies"),
    ("[x-]forwarded-context*", Scheme, "NiFi, Thymeleaf deployments"),
    ("[x-]forwarded-method", Scheme, "Traefik, oauth2-proxy"),
    ("[x-]forwarded-path", Scheme, "proxies"),
    ("[x-]forwarded-prefix", Scheme, "Traefik, Spring, ASP.NET: before every path"),
    ("[x-]forwarded-server", Scheme, "Apache; Jetty takes it for the host"),
    ("[x-]forwarded-uri", Scheme, "Traefik, oauth2-proxy"),
    ("[x-]forwarded-url", Scheme, "proxies"),
    ("[x-]forwarded-cert*", Certificate, "uWSGI and Puma deployments; Vert.x"),
    ("[x-]forwarded-client-cert*", Certificate, "Envoy, Istio, Cloud Foundry's gorouter"),
    ("[x-]forwarded-client-dn", Certificate, "proxies"),
    ("[x-]forwarded-email", User, "oauth2-proxy"),
    ("[x-]forwarded-group*", User, "oauth2-proxy, Jenkins"),
    ("[x-]forwarded-login", User, "SonarQube"),
    ("[x-]forwarded-name", User, "SonarQube"),
    ("[x-]forwarded-preferred-username", User, "oauth2-proxy"),
    ("[x-]forwarded-remote-user", User, "proxies"),
    ("[x-]forwarded-roles", User, "Rundeck"),
    ("[x-]forwarded-ssl-client-*", Certificate, "Apache configurations"),
    ("[x-]forwarded-tls-client-*", Certificate, "Traefik: X-Forwarded-Tls-Client-Cert, -Info"),
    ("[x-]forwarded-user*", User, "oauth2-proxy, Jenkins, Gitea"),
    ("[x-]forwarded-uuid", User, "Rundeck"),
    ("front-end-https", Scheme, "Microsoft's and Citrix's gateways"),
    // g
    ("[x-]goog-authenticated-user-*", User, "Google Identity-Aware Proxy"),
    // h
    ("https", Scheme, "CGI's HTTPS as a header"),
    // i
    ("x-id-token", User, "APISIX's openid-connect: the claims as JSON in base64, without a signature"),
    ("x-iisnode-*", User, "iisnode: X-iisnode-LOGON_USER and other variables of IIS"),
    ("incap-client-ip", Address, "Imperva"),
    ("iv-creds", User, "IBM WebSEAL"),
    ("iv-groups*", User, "IBM WebSEAL"),
    ("iv-remote-address*", Address, "IBM WebSEAL"),
    ("iv-user*", User, "IBM WebSEAL"),
    // k
    ("keep-alive", Framing, "RFC 9110 section 7.6.1"),
    // l
    ("l5d-client-id", Certificate, "Linkerd"),
    ("l5d-remote-ip", Address, "Linkerd"),
    ("[x-]logon-user", User, "IIS: LOGON_USER as a header"),
    // m
    ("mellon-*", User, "mod_auth_mellon"),
    ("[x-]ms-client-principal*", User, "Azure App Service and Container Apps"),
    ("ms-aspnetcore-clientcert*", Certificate, "IIS to ASP.NET Core"),
    ("ms-aspnetcore-*", User, "IIS to ASP.NET Core: -WinAuthToken, -Token, -Event"),
    ("[x-]mtls-*", Certificate, "nginx and HAProxy configurations"),
    // n
    ("[x-]nf-client-connection-ip", Address, "Netlify"),
    // o
    ("oam-identity*", User, "Oracle Access Manager"),
    ("oam-remote-user*", User, "Oracle Access Manager"),
    ("oidc-*", User, "mod_auth_openidc: OIDC_CLAIM_sub and the others"),
    ("[x-]original-forwarded-for", Address, "ingress-nginx"),
    ("[x-]original-for", Address, "ASP.NET Core"),
    ("[x-]original-host", Scheme, "Azure Application Gateway, ASP.NET Core"),
    ("[x-]original-method", Scheme, "nginx configurations with auth_request"),
    ("[x-]original-path", Scheme, "proxies"),
    ("[x-]original-prefix", Scheme, "ASP.NET Core"),
    ("[x-]original-proto", Scheme, "ASP.NET Core"),
    ("[x-]original-remote-addr", Address, "ingress-nginx configurations"),
    ("[x-]original-uri", Scheme, "ingress-nginx, nginx configurations with auth_request"),
    ("[x-]original-url", Scheme, "IIS, Symfony, Zend: the path to serve instead"),
    ("[x-]originating-ip", Address, "mail and web proxies"),
    // p
    ("[x-]peer-cert*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]peer-cn", Certificate, "nginx and HAProxy configurations"),
    ("[x-]peer-dn", Certificate, "nginx and HAProxy configurations"),
    ("[x-]peer-issuer*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]peer-san*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]peer-spiffe*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]peer-subject*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]peer-verif*", Certificate, "nginx and HAProxy configurations"),
    ("[x-]pomerium-claim-*", User, "Pomerium"),
    ("x-proxied-https", Scheme, "Jetty"),
    ("x-proxiedentit*", User, "NiFi: X-ProxiedEntitiesChain"),
    (
        "proxy",
        Environment,
        "CGI programs: HTTP_PROXY, the proxy that they send requests through (CVE-2016-5385)",
    ),
    ("proxy-auth-cert", Certificate, "Jetty"),
    ("proxy-authenticate", Framing, "RFC 9110 section 11.7"),
    ("proxy-authorization", Framing, "RFC 9110 section 11.7"),
    ("proxy-client-cert", Certificate, "Oracle HTTP Server"),
    ("proxy-client-ip", Address, "Oracle HTTP Server"),
    ("proxy-connection", Framing, "RFC 9112 appendix C.2.2"),
    ("proxy-ssl-id", Certificate, "Jetty: the TLS session; that it is there means https"),
    ("x-proxycontextpath", Scheme, "NiFi"),
    ("x-proxyhost", Scheme, "NiFi"),
    ("x-proxyport", Scheme, "NiFi"),
    ("x-proxyscheme", Scheme, "NiFi"),
    ("x-proxy-roles", User, "OpenSearch"),
    ("x-proxy-user", User, "OpenSearch"),
    ("[x-]proxyuser-ip", Address, "Google's services"),
    // r
    ("x-real-ip", Ours, "nginx and APISIX: X-Real-IP"),
    ("[x-]real-client-ip", Address, "proxies"),
    ("[x-]remote-addr*", Address, "CGI's REMOTE_ADDR as a header"),
    ("[x-]remote-email", User, "Authelia"),
    ("[x-]remote-extra-*", User, "Kubernetes' front proxy"),
    ("[x-]remote-group*", User, "Kubernetes' front proxy, Authelia"),
    ("[x-]remote-host", Address, "CGI's REMOTE_HOST as a header"),
    ("[x-]remote-ident*", User, "CGI's REMOTE_IDENT as a header"),
    ("[x-]remote-ip", Address, "proxies"),
    ("[x-]remote-name", User, "Authelia"),
    ("[x-]remote-port", Address, "CGI's REMOTE_PORT as a header"),
    ("[x-]remote-uid", User, "Kubernetes' front proxy"),
    ("[x-]remote-user*", User, "CGI's REMOTE_USER as a header, Kubernetes' front proxy, Authelia, Django"),
    ("x-rh-identity", User, "Red Hat 3scale"),
    ("[x-]rewrite-url", Scheme, "IIS, Symfony, Zend: the path to serve instead"),
    // s
    ("[x-]scheme", Scheme, "ingress-nginx, Flask deployments"),
    ("x-script-name", Scheme, "Flask and Django deployments: before every path"),
    ("shib-*", User, "Shibboleth"),
    ("sm-serversession*", User, "SiteMinder"),
    ("sm-universalid", User, "SiteMinder"),
    ("sm-user*", User, "SiteMinder: SM_USER, SM_USERDN, SM_USERGROUPS"),
    ("spiffe-*", Certificate, "SPIFFE-aware proxies"),
    ("x-spiffe*", Certificate, "SPIFFE-aware proxies"),
    ("x-ssl", Scheme, "HAProxy"),
    ("[x-]ssl-*", Certificate, "mod_ssl, ingress-nginx, HAProxy, this gateway: X-SSL-Client-S-DN"),
    ("[x-]sslclient*", Certificate, "F5: SSLClientCertSubject, SSLClientCertStatus"),
    ("[x-]sucuri-clientip", Address, "Sucuri"),
    // t
    ("tailscale-user-*", User, "Tailscale Serve"),
    ("[x-]tls-*", Certificate, "Caddy, nginx and HAProxy configurations: X-TLS-Client-Subject, X-TLS-Cert"),
    ("x-token-subject", User, "proxies that verify tokens"),
    ("x-token-user-*", User, "proxies that verify tokens"),
    ("transfer-encoding", Framing, "RFC 9112 section 6.1"),
    ("[x-]true-client-ip", Address, "Akamai, Cloudflare"),
    ("[x-]true-ip", Address, "proxies"),
    // u
    ("[x-]url-scheme", Scheme, "OpenACS, Rack deployments"),
    ("x-userinfo", User, "APISIX's openid-connect"),
    // v
    ("x-vercel-forwarded-for", Address, "Vercel"),
    ("x-vercel-proxied-for", Address, "Vercel"),
    ("x-vouch-idp-*", User, "Vouch Proxy: X-Vouch-IdP-Claims-Email, -IdToken; X-Vouch-Token is a client's"),
    ("x-vouch-success", User, "Vouch Proxy"),
    ("x-vouch-user*", User, "Vouch Proxy"),
    // w
    ("[x-]webauth-*", User, "Grafana and Gitea: X-WEBAUTH-USER"),
    ("wl-proxy-client-cert*", Certificate, "Oracle WebLogic"),
    ("wl-proxy-client-ip", Address, "Oracle WebLogic"),
    ("wl-proxy-client-*", Certificate, "Oracle WebLogic: the strength of the client's TLS"),
    ("wl-proxy-ssl", Scheme, "Oracle WebLogic"),
];

/// Whom the peer of a request is trusted to speak for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerTrust {
    /// It is one of `apisix.trusted_addresses`.
    pub forwarded: bool,
    /// It is one of `nginx_config.http.real_ip_from`.
    pub address: bool,
}

impl PeerTrust {
    /// In the peer at this address, by these settings.
    pub fn of(peer: IpAddr, trusted: Option<&[IpNet]>, real_ip: Option<&RealIp>) -> Self {
        let peer = peer.to_canonical();
        Self {
            forwarded: trusted.is_some_and(|nets| nets.iter().any(|net| net.contains(&peer))),
            address: real_ip.is_some_and(|real_ip| real_ip.trusts(peer)),
        }
    }
}

/// A row of the table, taken apart when it is compiled.
#[derive(Clone, Copy)]
struct HeaderPattern {
    /// Without `X-`, `[x-]` and `*`.
    stem: &'static [u8],
    with_x: bool,
    without_x: bool,
    prefix: bool,
    what: Claim,
    /// The spelling that is dealt with elsewhere.
    canonical: &'static str,
}

const fn parse_pattern(name: &'static str, what: Claim) -> HeaderPattern {
    let bytes = name.as_bytes();
    let (skipped, with_x, without_x) = match bytes {
        [b'[', b'x', b'-', b']', ..] => (4, true, true),
        [b'x', b'-', ..] => (2, true, false),
        _ => (0, false, true),
    };
    let (_, stem) = bytes.split_at(skipped);
    let (stem, prefix) = match stem {
        [stem @ .., b'*'] => (stem, true),
        stem => (stem, false),
    };
    HeaderPattern { stem, with_x, without_x, prefix, what, canonical: name }
}

#[allow(clippy::indexing_slicing)] // evaluated when it is compiled
const PATTERNS: [HeaderPattern; UNTRUSTED_HEADERS.len()] = {
    let mut table = [parse_pattern("", Ours); UNTRUSTED_HEADERS.len()];
    let mut row = 0;
    while row < UNTRUSTED_HEADERS.len() {
        table[row] = parse_pattern(UNTRUSTED_HEADERS[row].0, UNTRUSTED_HEADERS[row].1);
        row += 1;
    }
    table
};

/// The rows whose stem begins with a letter, and which letters come second in them: what most names
/// end at.
#[derive(Clone, Copy)]
struct Bucket {
    from: usize,
    to: usize,
    seconds: u32,
}

#[allow(clippy::indexing_slicing)] // evaluated when it is compiled
const BUCKETS: [Bucket; 128] = {
    let mut buckets = [Bucket { from: 0, to: 0, seconds: 0 }; 128];
    let mut row = 0;
    while row < PATTERNS.len() {
        let bucket = &mut buckets[fold(PATTERNS[row].stem[0]) as usize];
        if bucket.to == 0 {
            bucket.from = row;
        }
        assert!(bucket.to == 0 || bucket.to == row, "rows with the same first letter stand together");
        bucket.to = row + 1;
        bucket.seconds |= second_letter_bit(PATTERNS[row].stem);
        row += 1;
    }
    buckets
};

const fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

/// The second letter as one of 32 bits.
const fn second_letter_bit(stem: &[u8]) -> u32 {
    match stem {
        [_, second, ..] => 1 << (fold(*second) & 31),
        _ => 0,
    }
}

/// Whether an upstream may take one name for the other. CGI and its heirs (WSGI, PHP, Rack) turn
/// `-` into `_`, and some of them everything that is no letter or digit; so all of that is one
/// here. Header names are in lower case already.
pub(super) fn is_same_name(name: &str, other: &str) -> bool {
    is_same_folded(name.as_bytes(), other.as_bytes())
}

fn is_same_folded(name: &[u8], other: &[u8]) -> bool {
    name.len() == other.len() && name.iter().zip(other).all(|(a, b)| fold(*a) == fold(*b))
}

/// A name without the `HTTP_` that CGI writes before every header's name: who copies names out of a
/// program's environment reads `HTTP_X_REAL_IP` where `X-Real-IP` is meant.
fn strip_http_prefix(mut name: &[u8]) -> &[u8] {
    while let [b'h', b't', b't', b'p', separator, rest @ ..] = name
        && !separator.is_ascii_alphanumeric()
    {
        name = rest;
    }
    name
}

/// What a header's name claims, in whatever spelling; `None`: an ordinary header, or one of ours in
/// its own spelling.
fn claim_of(name: &HeaderName) -> Option<Claim> {
    let name = name.as_str();
    match strip_http_prefix(name.as_bytes()) {
        [b'x', separator, stem @ ..] if !separator.is_ascii_alphanumeric() => look_up(name, stem, true),
        stem => look_up(name, stem, false),
    }
}

fn look_up(name: &str, stem: &[u8], with_x: bool) -> Option<Claim> {
    let bucket = BUCKETS.get(usize::from(fold(*stem.first()?)))?;
    // Here nearly every name ends.
    if bucket.seconds & second_letter_bit(stem) == 0 {
        return None;
    }
    let rows = PATTERNS.get(bucket.from..bucket.to)?;
    let row = rows.iter().find(|row| {
        let head = if row.prefix { stem.get(..row.stem.len()) } else { Some(stem) };
        (if with_x { row.with_x } else { row.without_x })
            && head.is_some_and(|head| is_same_folded(head, row.stem))
    })?;
    match row.what {
        Ours | Framing if name == row.canonical => None,
        what => Some(what),
    }
}

/// What a name claims that no row has, because `real_ip_header` names it: the client's address in
/// its own spelling, and in any other one a name of ours.
fn configured_claim(name: &HeaderName, real_ip: &HeaderName) -> Option<Claim> {
    if !is_same_folded(strip_http_prefix(name.as_str().as_bytes()), real_ip.as_str().as_bytes()) {
        return None;
    }
    if name != real_ip {
        return Some(Ours);
    }
    // `X-Forwarded-For` and `X-Real-IP` are set from what was read of them.
    let ours = UNTRUSTED_HEADERS.iter().any(|(row, what, _)| *what == Ours && *row == real_ip.as_str());
    (!ours).then_some(Address)
}

/// Removes what may not pass from this peer. `real_ip`: the header that `real_ip_header` names,
/// where addresses are read from it.
pub(super) fn remove_untrusted(headers: &mut HeaderMap, trust: PeerTrust, real_ip: Option<&HeaderName>) {
    let claim = |name: &HeaderName| {
        claim_of(name).or_else(|| real_ip.and_then(|real_ip| configured_claim(name, real_ip)))
    };
    // Most requests carry none: look before collecting.
    if !headers.keys().any(|name| claim(name).is_some()) {
        return;
    }
    let passes = |what| match what {
        Certificate | User | Environment | Ours | Framing => false,
        Address => trust.address || trust.forwarded,
        Scheme => trust.forwarded,
    };
    let removed = |name: &&HeaderName| claim(name).is_some_and(|what| !passes(what));
    let removed: Vec<HeaderName> = headers.keys().filter(removed).cloned().collect();
    for name in removed {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests;
