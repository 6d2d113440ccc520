//! Which configurations are one, how long they are in use, and what they never do.

use model::{Id, Key, Kind, VerifyPolicy, Versioned};
use pki::TrustAnchors;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use serde_json::{Value, json};

use super::*;
use crate::tls::site_config;

fn configs(defaults: TrustDefaults) -> ClientTlsConfigs {
    ClientTlsConfigs::new(Arc::new(site_config::crypto_provider()), defaults, RecordLayerKind::Rustls)
}

struct Pki(Authority);

impl Pki {
    fn new() -> Self {
        Self(Authority::root(&AuthoritySpec::new("upstreams")).unwrap())
    }

    /// `cert` and `key` of a client certificate.
    fn pair(&self, name: &str) -> (String, String) {
        let pair = self.0.issue(&LeafSpec::client(name)).unwrap();
        (pair.certificate_pem.clone(), pair.key_pem.to_string())
    }
}

fn compiled(kind: Kind, id: &str, document: &Value) -> Versioned {
    let resource = model::compile(kind, &Id::parse(id).unwrap(), document, &pki::Keyring::empty()).unwrap();
    Versioned { version: 1, resource }
}

fn upstream(id: &str, weight: u32, tls: Value) -> Versioned {
    let document = json!({"scheme": "https", "nodes": {"127.0.0.1:1": weight}, "tls": tls});
    compiled(Kind::Upstream, id, &document)
}

fn ssl(id: &str, (cert, key): &(String, String)) -> Versioned {
    compiled(Kind::Ssl, id, &json!({"type": "client", "cert": cert, "key": key}))
}

fn config(configs: &ClientTlsConfigs, snapshot: &Snapshot, id: &str) -> Arc<ClientTlsConfig> {
    let upstream = snapshot.upstream(&Id::parse(id).unwrap()).unwrap();
    configs.client_config(upstream, &configs.prepared(upstream), snapshot).unwrap()
}

/// Applies a change as the push client does.
fn change(
    configs: &ClientTlsConfigs,
    before: &Snapshot,
    upserts: Vec<Versioned>,
    removals: Vec<Key>,
) -> Snapshot {
    let (from, to) = (before.revision(), before.revision() + 1);
    let delta = Delta { from, to, upserts, removals };
    let next = before.apply(&delta);
    configs.on_snapshot_change(before, &delta, &next);
    next
}

#[test]
fn configurations_with_one_content_are_one() {
    let (pki, configs) = (Pki::new(), configs(TrustDefaults::default()));
    let (pair, other) = (pki.pair("a"), pki.pair("b"));
    let inline = |(cert, key): &(String, String)| json!({"client_cert": cert, "client_key": key});
    let snapshot = Snapshot::from_resources(
        1,
        [
            upstream("1", 1, json!({})),
            upstream("2", 1, json!({"verify": false})),
            upstream("3", 1, json!({"verify": true})),
            upstream("4", 1, inline(&pair)),
            upstream("5", 1, inline(&other)),
            upstream("6", 1, json!({"client_cert_id": "1"})),
            upstream("7", 1, json!({"client_cert_id": "1", "verify": true})),
            ssl("1", &pair),
        ],
    );
    let generation = |id: &str| config(&configs, &snapshot, id).generation;
    assert_eq!(generation("1"), generation("2"));
    assert_eq!(generation("4"), generation("6"), "an ssl and its upstream's own pair are one identity");
    let different = ["1", "3", "4", "5", "7"].map(generation);
    for (index, one) in different.iter().enumerate() {
        assert!(!different[..index].contains(one), "{different:?}");
        assert_eq!(*one, ["1", "3", "4", "5", "7"].map(generation)[index], "and they stay");
    }
}

#[test]
fn an_unrelated_change_keeps_the_configuration() {
    let (pki, configs) = (Pki::new(), configs(TrustDefaults::default()));
    let pair = pki.pair("a");
    let named = json!({"client_cert_id": "1"});
    let first = Snapshot::from_resources(1, [upstream("1", 1, named.clone()), ssl("1", &pair)]);
    let before = config(&configs, &first, "1");
    // A quiet upstream: nothing asks for its configuration in between.
    let second = change(&configs, &first, vec![upstream("1", 2, named.clone())], vec![]);
    drop(first);
    let third = change(&configs, &second, vec![ssl("1", &pair)], vec![]);
    drop(second);
    assert!(!before.is_retired());
    assert!(Arc::ptr_eq(&before, &config(&configs, &third, "1")));
    let fourth = change(&configs, &third, vec![upstream("1", 1, json!({"verify": true}))], vec![]);
    assert!(before.is_retired());
    assert_ne!(before.generation, config(&configs, &fourth, "1").generation);
}

#[test]
fn a_rotated_certificate_retires_the_configuration() {
    let (pki, configs) = (Pki::new(), configs(TrustDefaults::default()));
    let named = json!({"client_cert_id": "1"});
    let routed = json!({"uri": "/", "upstream": {"scheme": "https", "nodes": {"a.test:1": 1}, "tls": named}});
    let resources = [upstream("1", 1, named), compiled(Kind::Route, "1", &routed), ssl("1", &pki.pair("a"))];
    let first = Snapshot::from_resources(1, resources);
    let Resource::Route(route) =
        &first.get(&Key::new(Kind::Route, Id::parse("1").unwrap())).unwrap().resource
    else {
        panic!("no route")
    };
    let Some(model::UpstreamRef::Inline(inline)) = &route.upstream else { panic!("not inline") };
    let of_route = |snapshot: &Snapshot| configs.client_config(inline, &configs.prepared(inline), snapshot);
    // A request in flight still has it, and its snapshot.
    let old = config(&configs, &first, "1");
    assert!(Arc::ptr_eq(&old, &of_route(&first).unwrap()));
    let second = change(&configs, &first, vec![ssl("1", &pki.pair("b"))], vec![]);
    assert!(old.is_retired());
    let new = config(&configs, &second, "1");
    assert!(!new.is_retired() && new.generation != old.generation);
    // A straggler on the old snapshot gets the old certificate, and its connection is not kept.
    let straggler = config(&configs, &first, "1");
    assert!(straggler.is_retired() && straggler.generation != new.generation);
    assert!(Arc::ptr_eq(&new, &config(&configs, &second, "1")));
    // Without the ssl there is no connection without the certificate.
    let third = change(&configs, &second, vec![], vec![Key::new(Kind::Ssl, Id::parse("1").unwrap())]);
    assert!(new.is_retired());
    let error = of_route(&third).err().unwrap().to_string();
    assert_eq!(error, "failed to get ssl cert: ssl id [1] not exits");
}

#[test]
fn a_removed_upstream_retires_its_configuration() {
    let configs = configs(TrustDefaults::default());
    let first = Snapshot::from_resources(1, [upstream("1", 1, json!({})), upstream("2", 1, json!({}))]);
    let shared = config(&configs, &first, "1");
    assert!(Arc::ptr_eq(&shared, &config(&configs, &first, "2")));
    let key = |id: &str| Key::new(Kind::Upstream, Id::parse(id).unwrap());
    let second = change(&configs, &first, vec![], vec![key("1")]);
    assert!(!shared.is_retired(), "another upstream has it");
    change(&configs, &second, vec![], vec![key("2")]);
    assert!(shared.is_retired());
}

#[test]
fn the_settings_decide_for_upstreams_that_say_nothing() {
    for (verify, expected) in [
        (VerifyPolicy::WhereAsked, [false, false, true]),
        (VerifyPolicy::UnlessExcepted, [true, false, true]),
        (VerifyPolicy::Always, [true, true, true]),
    ] {
        let configs = configs(TrustDefaults { verify, ..TrustDefaults::default() });
        let tls = [json!({}), json!({"verify": false}), json!({"verify": true})];
        let upstreams = ["1", "2", "3"].into_iter().zip(tls).map(|(id, tls)| upstream(id, 1, tls));
        let snapshot = Snapshot::from_resources(1, upstreams);
        assert_eq!(["1", "2", "3"].map(|id| config(&configs, &snapshot, id).verifies), expected);
    }
}

#[test]
fn each_protocol_has_its_own_sessions() {
    let configs = configs(TrustDefaults::default());
    let snapshot = Snapshot::from_resources(1, [upstream("1", 1, json!({}))]);
    let config = config(&configs, &snapshot, "1");
    let offered = [Alpn::Http1, Alpn::Http2, Alpn::Http2OrHttp1, Alpn::None]
        .map(|alpn| config.for_protocol(alpn).alpn_protocols.clone());
    assert_eq!(offered[0], [b"http/1.1".to_vec()]);
    assert_eq!(offered[1], [b"h2".to_vec()]);
    assert_eq!(offered[2], [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(offered[3].is_empty());
    assert!(Arc::ptr_eq(config.for_protocol(Alpn::Http1), config.for_protocol(Alpn::Http1)));
    assert!(!Arc::ptr_eq(config.for_protocol(Alpn::Http1), config.for_protocol(Alpn::Http2)));
}

#[test]
fn other_defaults_retire_what_they_change() {
    let (pki, other) = (Pki::new(), Pki::new());
    let anchors = |pki: &Pki| Arc::new(TrustAnchors::new(vec![pki.0.certificate().clone()]).unwrap());
    let defaults =
        |pki: &Pki, depth| TrustDefaults { anchors: Some(anchors(pki)), depth, ..TrustDefaults::default() };
    let configs = configs(defaults(&pki, None));
    let own = json!({"verify": true, "ca_certs": [other.0.certificate_pem()]});
    let snapshot = Arc::new(Snapshot::from_resources(
        1,
        [
            upstream("unverified", 1, json!({})),
            upstream("default", 1, json!({"verify": true})),
            upstream("own", 1, own),
            upstream("unused", 1, json!({"verify": true})),
        ],
    ));
    let used = || ["unverified", "default", "own"].map(|id| config(&configs, &snapshot, id));
    let before = used();
    let set = |defaults| {
        let before = used();
        configs.set_defaults(defaults, || Arc::clone(&snapshot));
        let after = used();
        std::array::from_fn::<_, 3, _>(|nth| {
            let same = before[nth].generation == after[nth].generation;
            assert_eq!(same, !before[nth].is_retired());
            same
        })
    };
    assert_eq!(set(defaults(&pki, None)), [true, true, true], "the same bundle, read again");
    assert_eq!(set(defaults(&other, None)), [true, false, true]);
    assert_eq!(
        set(defaults(&other, Some(1))),
        [true, false, false],
        "the depth holds for every verified upstream"
    );
    let verify = VerifyPolicy::of_settings(true, false);
    assert_eq!(set(TrustDefaults { verify, ..defaults(&other, Some(1)) }), [false, true, true]);
    assert!(before.iter().all(|config| config.is_retired()));
}
