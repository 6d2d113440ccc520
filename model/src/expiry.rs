//! When the certificates and CRLs of a snapshot expire: for the metrics and the status of both
//! planes.
//!
//! Resources that serve nothing do not count: disabled sites and routes, and what is blocked.
//! Invariant: the result is bounded ([`ExpirySummary::new`]), and a certificate that several
//! resources share, such as the CA of ten thousand sites, is in it once.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use pki::{Certificate, Crl};
use rustls_pki_types::UnixTime;

use crate::id::Key;
use crate::resource::{KeyPair, Resource, Ssl, Upstream, UpstreamIdentity};
use crate::snapshot::Snapshot;

/// The use of a certificate or CRL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExpiryKind {
    /// A site's certificate, or an intermediate of its chain.
    Server,
    /// An anchor of a site's client policy.
    ClientCa,
    /// A CRL of a site's client policy.
    Crl,
    /// A client certificate for upstreams, or an intermediate of its chain.
    UpstreamClient,
    /// An anchor for the certificates of upstreams.
    UpstreamCa,
}

impl ExpiryKind {
    /// Every kind.
    pub const ALL: [ExpiryKind; 5] = [
        ExpiryKind::Server,
        ExpiryKind::ClientCa,
        ExpiryKind::Crl,
        ExpiryKind::UpstreamClient,
        ExpiryKind::UpstreamCa,
    ];

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            ExpiryKind::Server => "server",
            ExpiryKind::ClientCa => "client_ca",
            ExpiryKind::Crl => "crl",
            ExpiryKind::UpstreamClient => "upstream_client",
            ExpiryKind::UpstreamCa => "upstream_ca",
        }
    }
}

/// A certificate or CRL of a resource.
#[derive(Debug, Clone, Copy)]
pub enum Expiring<'a> {
    /// Expires at its notAfter.
    Certificate(&'a Certificate),
    /// Is stale at its nextUpdate.
    Crl(&'a Crl),
}

impl<'a> Expiring<'a> {
    /// notAfter or nextUpdate.
    pub fn end(self) -> UnixTime {
        match self {
            Expiring::Certificate(certificate) => certificate.not_after(),
            Expiring::Crl(crl) => crl.next_update(),
        }
    }

    fn der(self) -> &'a [u8] {
        match self {
            Expiring::Certificate(certificate) => certificate.der(),
            Expiring::Crl(crl) => crl.der(),
        }
    }
}

/// Passes every certificate and CRL that data planes serve or use to `visit`, in the order of keys.
pub fn visit_expiring<'a>(
    snapshot: &'a Snapshot,
    mut visit: impl FnMut(&'a Resource, ExpiryKind, Expiring<'a>),
) {
    for versioned in snapshot.resources() {
        let resource = &versioned.resource;
        let mut visit = |kind, expiring| visit(resource, kind, expiring);
        let is_disabled = match resource {
            Resource::Route(route) => !route.enabled,
            // Upstreams may use a disabled ssl of type client (contract 6.1).
            Resource::Ssl(ssl) => !ssl.enabled && !ssl.client_side,
            _ => false,
        };
        match resource {
            _ if is_disabled || resource.blocked().is_some() => {}
            Resource::Ssl(ssl) => visit_ssl(ssl, &mut visit),
            _ => {
                if let Some(upstream) = resource.own_upstream() {
                    visit_upstream(upstream, &mut visit);
                }
            }
        }
    }
}

fn visit_ssl<'a>(ssl: &'a Ssl, visit: &mut impl FnMut(ExpiryKind, Expiring<'a>)) {
    let kind = if ssl.client_side { ExpiryKind::UpstreamClient } else { ExpiryKind::Server };
    ssl.pairs.iter().for_each(|pair| visit_pair(pair, kind, visit));
    if let Some(policy) = &ssl.client {
        for anchor in policy.anchors().certificates() {
            visit(ExpiryKind::ClientCa, Expiring::Certificate(anchor));
        }
        policy.crls().iter().for_each(|crl| visit(ExpiryKind::Crl, Expiring::Crl(crl)));
    }
}

fn visit_upstream<'a>(upstream: &'a Upstream, visit: &mut impl FnMut(ExpiryKind, Expiring<'a>)) {
    if let Some(UpstreamIdentity::Inline(pair)) = &upstream.tls.identity {
        visit_pair(pair, ExpiryKind::UpstreamClient, visit);
    }
    if let Some(anchors) = &upstream.tls.anchors {
        for anchor in anchors.certificates() {
            visit(ExpiryKind::UpstreamCa, Expiring::Certificate(anchor));
        }
    }
}

fn visit_pair<'a>(pair: &'a KeyPair, kind: ExpiryKind, visit: &mut impl FnMut(ExpiryKind, Expiring<'a>)) {
    pair.chain.iter().for_each(|certificate| visit(kind, Expiring::Certificate(certificate)));
}

/// The end of one certificate or CRL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// The first resource with it, in the order of keys.
    pub resource: Key,
    /// The certificate's subject, or the CRL's issuer.
    pub subject: String,
    /// SHA-256 over a certificate's DER, in lower-case hexadecimal; empty for a CRL.
    pub fingerprint: String,
    /// notAfter or nextUpdate, in Unix seconds.
    pub end: u64,
}

/// The certificates or CRLs of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindExpiry {
    /// The kind.
    pub kind: ExpiryKind,
    /// How many the resources have; one that several resources share counts for each.
    pub count: u64,
    /// The soonest to end, each once, in the order of their ends.
    pub soonest: Vec<Expiry>,
}

/// The certificates and CRLs of a snapshot, by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpirySummary {
    /// In the order of [`ExpiryKind::ALL`].
    pub kinds: Vec<KindExpiry>,
}

impl ExpirySummary {
    /// At most `max` of each kind, but at least one: the soonest to end.
    pub fn new(snapshot: &Snapshot, max: usize) -> ExpirySummary {
        let mut kinds: Vec<_> = ExpiryKind::ALL.into_iter().map(Soonest::new).collect();
        visit_expiring(snapshot, |resource, kind, expiring| {
            if let Some(soonest) = kinds.iter_mut().find(|soonest| soonest.kind == kind) {
                soonest.add(resource, expiring, max.max(1));
            }
        });
        ExpirySummary { kinds: kinds.into_iter().map(Soonest::into_expiry).collect() }
    }
}

/// What of one kind ends soonest, so far.
struct Soonest<'a> {
    kind: ExpiryKind,
    count: u64,
    /// By end and DER, so that each is there once.
    found: BTreeMap<(u64, &'a [u8]), (&'a Resource, Expiring<'a>)>,
}

impl<'a> Soonest<'a> {
    fn new(kind: ExpiryKind) -> Self {
        Self { kind, count: 0, found: BTreeMap::new() }
    }

    fn add(&mut self, resource: &'a Resource, expiring: Expiring<'a>, max: usize) {
        self.count += 1;
        let end = expiring.end().as_secs();
        let is_later = || self.found.last_key_value().is_some_and(|((last, _), _)| *last < end);
        if self.found.len() >= max && is_later() {
            return;
        }
        self.found.entry((end, expiring.der())).or_insert((resource, expiring));
        if self.found.len() > max {
            self.found.pop_last();
        }
    }

    fn into_expiry(self) -> KindExpiry {
        let soonest = self.found.into_iter().map(|((end, _), (resource, expiring))| {
            let (subject, fingerprint) = match expiring {
                Expiring::Certificate(certificate) => {
                    (certificate.subject().to_owned(), HEXLOWER.encode(certificate.fingerprint_sha256()))
                }
                Expiring::Crl(crl) => (crl.issuer(), String::new()),
            };
            Expiry { resource: resource.key(), subject, fingerprint, end }
        });
        KindExpiry { kind: self.kind, count: self.count, soonest: soonest.collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pki::ca::{Authority, AuthoritySpec, CrlSpec, LeafSpec};
    use pki::{ClientAuth, ClientAuthInput, TrustAnchors};

    use super::*;
    use crate::resource::{CacheSlot, PassHost, Scheme, Service, UpstreamRef, UpstreamTls};
    use crate::samples::{PAIRS, id};
    use crate::snapshot::Versioned;

    fn pair(authority: &Authority, name: &str, days: u32) -> KeyPair {
        let issued = authority.issue(&LeafSpec::server(name).valid(UnixTime::now(), days)).unwrap();
        KeyPair { key: Arc::new(issued.key().unwrap()), chain: issued.chain }
    }

    fn summary(resources: impl IntoIterator<Item = Resource>, max: usize) -> ExpirySummary {
        let versioned = resources.into_iter().map(|resource| Versioned { resource, version: 1 });
        ExpirySummary::new(&Snapshot::from_resources(1, versioned), max)
    }

    fn of(summary: &ExpirySummary, kind: ExpiryKind) -> &KindExpiry {
        summary.kinds.iter().find(|found| found.kind == kind).unwrap()
    }

    fn site(name: &str, pair: &KeyPair) -> Ssl {
        Ssl { pairs: vec![pair.clone()], ..Ssl::new(id(name)) }
    }

    fn ssl(ssl: Ssl) -> Resource {
        Resource::Ssl(Arc::new(ssl))
    }

    fn upstream(tls: UpstreamTls) -> Upstream {
        Upstream {
            id: Some(id("1")),
            scheme: Scheme::Https,
            nodes: Vec::new(),
            retries: None,
            retry_timeout: None,
            timeout: None,
            pass_host: PassHost::Pass,
            upstream_host: None,
            keepalive: None,
            tls,
            http2: false,
            cache: CacheSlot::new(),
            blocked: None,
        }
    }

    fn service(upstream: UpstreamRef) -> Service {
        Service {
            id: id("1"),
            hosts: Vec::new(),
            upstream: Some(upstream),
            client_identity: None,
            proxy_rewrite: None,
            enable_websocket: false,
            blocked: None,
        }
    }

    #[test]
    fn the_soonest_are_kept_and_all_are_counted() {
        let authority = Authority::root(&AuthoritySpec::new("ca")).unwrap();
        let pairs: Vec<_> = (1..=9).map(|n| pair(&authority, &format!("{n}.test"), n)).collect();
        let sites = pairs.iter().rev().enumerate().map(|(place, pair)| ssl(site(&place.to_string(), pair)));
        let found = summary(sites, 3);
        let server = of(&found, ExpiryKind::Server);
        assert_eq!(server.count, 9);
        let subjects: Vec<_> = server.soonest.iter().map(|expiry| expiry.subject.as_str()).collect();
        assert_eq!(subjects, ["CN=1.test", "CN=2.test", "CN=3.test"]);
        let first = &server.soonest[0];
        let leaf = pairs[0].leaf().unwrap();
        assert_eq!(
            (first.resource.to_string(), first.end),
            ("ssls/8".to_owned(), leaf.not_after().as_secs())
        );
        assert_eq!(first.fingerprint, HEXLOWER.encode(leaf.fingerprint_sha256()));
    }

    #[test]
    fn a_shared_certificate_is_listed_once() {
        let found = summary((0..100).map(|n| ssl(site(&n.to_string(), &PAIRS[0]))), 1000);
        let server = of(&found, ExpiryKind::Server);
        assert_eq!((server.count, server.soonest.len()), (100, 1));
    }

    #[test]
    fn each_use_has_its_kind_and_the_disabled_none() {
        let ca = Authority::root(&AuthoritySpec::new("ca")).unwrap();
        let crl = ca.crl(&CrlSpec::default()).unwrap();
        let anchors = vec![ca.certificate().clone()];
        let input = ClientAuthInput { anchors: anchors.clone(), crls: vec![crl], ..Default::default() };
        let client = Some(Arc::new(ClientAuth::new(input).unwrap()));
        let full = Ssl { client, ..site("1", &PAIRS[0]) };
        let disabled = Ssl { enabled: false, id: id("2"), ..full.clone() };
        let for_upstreams = Ssl { client_side: true, enabled: false, ..site("x", &PAIRS[1]) };
        let tls = UpstreamTls {
            identity: Some(UpstreamIdentity::Inline(PAIRS[0].clone())),
            anchors: Some(Arc::new(TrustAnchors::new(anchors).unwrap())),
            ..UpstreamTls::default()
        };
        let upstream = upstream(tls);
        let inline = service(UpstreamRef::Inline(Arc::new(upstream.clone())));
        let found = summary(
            [
                ssl(full),
                ssl(disabled),
                ssl(for_upstreams),
                Resource::Upstream(Arc::new(upstream)),
                Resource::Service(Arc::new(inline)),
            ],
            10,
        );
        let counts: Vec<_> =
            found.kinds.iter().map(|of| (of.kind.as_str(), of.count, of.soonest.len())).collect();
        let expected = [
            ("server", 1, 1),
            ("client_ca", 1, 1),
            ("crl", 1, 1),
            ("upstream_client", 3, 2),
            ("upstream_ca", 2, 1),
        ];
        assert_eq!(counts, expected);
        let crl = &of(&found, ExpiryKind::Crl).soonest[0];
        assert_eq!((crl.subject.as_str(), crl.fingerprint.as_str()), ("CN=ca", ""));
    }
}
