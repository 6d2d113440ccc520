//! Encoding and decoding, splitting and reassembly, and the errors of an assembler.

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::id::Kind;
use crate::resource::{Resource, Route, Ssl, Upstream, UpstreamRef};
use crate::samples::{AUTHORITY, PAIRS, patterns, some_snapshot, some_versioned};
use crate::snapshot::Snapshot;
use crate::snapshot::{Delta, Versioned};

/// Encodes to bytes and decodes them.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn route(id: &str) -> Versioned {
    let wire = push::Resource {
        id: id.to_owned(),
        kind: Some(push::resource::Kind::Route(push::Route { uris: vec!["/".into()], ..Default::default() })),
    };
    Versioned { version: 1, resource: resource_from_wire(wire).unwrap() }
}

fn delta(from: u64, to: u64, ids: &[&str]) -> Delta {
    Delta { from, to, upserts: ids.iter().map(|id| route(id)).collect(), removals: vec![] }
}

/// One chunk per resource.
fn cut(delta: &Delta) -> Vec<push::Chunk> {
    chunks(delta, 1).map(|chunk| sent(&chunk)).collect()
}

#[track_caller]
fn error_text(result: Result<Option<Delta>, Vec<ResourceError>>) -> String {
    match result {
        Err(errors) => errors.iter().map(|error| error.problem.to_string()).collect::<Vec<_>>().join("; "),
        Ok(_) => panic!("was not rejected"),
    }
}

#[test]
fn equal_policies_are_shared() {
    let ssl = |id: &str, depth: u32| {
        let input = pki::ClientAuthInput {
            anchors: vec![AUTHORITY.certificate().clone()],
            depth,
            ..pki::ClientAuthInput::default()
        };
        let ssl = Ssl {
            names: patterns(&["a.com"]),
            pairs: vec![PAIRS[0].clone()],
            client: Some(Arc::new(pki::ClientAuth::new(input).unwrap())),
            ..Ssl::new(Id::parse(id).unwrap())
        };
        Versioned { version: 1, resource: Resource::Ssl(Arc::new(ssl)) }
    };
    let mut assembler = DeltaAssembler::new(0);
    let mut policies = Vec::new();
    for (to, upserts) in [(1, vec![ssl("1", 1), ssl("2", 1), ssl("3", 2)]), (2, vec![ssl("4", 1)])] {
        let delta = Delta { from: to - 1, to, upserts, removals: Vec::new() };
        let arrived = cut(&delta).into_iter().find_map(|chunk| assembler.push(chunk).unwrap()).unwrap();
        assert_eq!(arrived, delta);
        assembler.set_revision(to);
        policies.extend(arrived.upserts.into_iter().filter_map(|upsert| match upsert.resource {
            Resource::Ssl(ssl) => ssl.client.clone(),
            _ => None,
        }));
    }
    let same = |a: usize, b: usize| Arc::ptr_eq(&policies[a], &policies[b]);
    assert!(same(0, 1) && same(0, 3), "within a delta, and with one that came before");
    assert!(!same(0, 2));
    // Dropped policies are not kept.
    assert_eq!(Arc::strong_count(&policies[2]), 1);
}

#[test]
fn equal_anchors_of_upstreams_are_shared() {
    let upstream = |id: Option<&str>| {
        let anchors = pki::TrustAnchors::new(vec![AUTHORITY.certificate().clone()]).unwrap();
        let document = serde_json::json!({"scheme": "https", "nodes": {"127.0.0.1:1": 1}});
        let id = Id::parse(id.unwrap_or("0")).unwrap();
        let compiled = crate::compile(Kind::Upstream, &id, &document, &pki::Keyring::empty()).unwrap();
        let mut upstream = Upstream::clone(compiled.own_upstream().unwrap());
        upstream.tls.anchors = Some(Arc::new(anchors));
        upstream
    };
    let inline = || Some(UpstreamRef::Inline(Arc::new(Upstream { id: None, ..upstream(None) })));
    let Resource::Route(bare) = route("3").resource else { panic!("no route") };
    let resources = [
        Resource::Upstream(Arc::new(upstream(Some("1")))),
        Resource::Upstream(Arc::new(upstream(Some("2")))),
        Resource::Route(Arc::new(Route { upstream: inline(), ..(*bare).clone() })),
    ];
    let upserts = resources.map(|resource| Versioned { version: 1, resource }).to_vec();
    let delta = Delta { from: 0, to: 1, upserts, removals: Vec::new() };
    let mut assembler = DeltaAssembler::new(0);
    let arrived = cut(&delta).into_iter().find_map(|chunk| assembler.push(chunk).unwrap()).unwrap();
    assert_eq!(arrived, delta);
    let anchors = arrived.upserts.iter().map(|upsert| upsert.resource.own_upstream()?.tls.anchors.clone());
    let anchors: Vec<_> = anchors.map(Option::unwrap).collect();
    assert!(anchors.iter().all(|other| Arc::ptr_eq(other, &anchors[0])));
    drop(arrived);
    assert_eq!(Arc::strong_count(&anchors[0]), 3, "the interner keeps none");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn encoding_and_decoding_is_the_identity(versioned in some_versioned()) {
        let wire = sent(&push::Resource::from(&versioned.resource));
        let back = resource_from_wire(wire);
        prop_assert!(back.is_ok(), "{:?}", back);
        prop_assert!(back.unwrap() == versioned.resource);
        let key = versioned.resource.key();
        prop_assert_eq!(key_from_wire(&sent(&key_to_wire(&key))).unwrap(), key);
    }

    #[test]
    fn splitting_and_reassembly_is_the_identity(a in some_snapshot(), b in some_snapshot(), size in 1..6000_usize) {
        let b = Snapshot::from_resources(a.revision() + b.revision(), b.resources().cloned());
        let delta = a.diff(&b);
        let mut assembler = DeltaAssembler::new(a.revision());
        let mut whole = None;
        for chunk in chunks(&delta, size) {
            prop_assert!(whole.is_none(), "nothing comes after the last chunk");
            let pieces = chunk.upserts.len() + chunk.removals.len();
            prop_assert!(chunk.encoded_len() <= size || pieces <= 1, "{} of {}", chunk.encoded_len(), size);
            whole = assembler.push(sent(&chunk)).unwrap();
        }
        let whole = whole.unwrap();
        prop_assert!(whole == delta);
        prop_assert!(a.apply(&whole) == b);
    }
}

#[test]
fn an_empty_delta_is_one_chunk() {
    let empty = Delta { from: 3, to: 5, ..Delta::default() };
    let cut = cut(&empty);
    assert_eq!(cut.len(), 1);
    assert_eq!(DeltaAssembler::new(3).push(cut[0].clone()).unwrap(), Some(empty));
}

#[test]
fn a_delta_is_complete_after_its_last_chunk() {
    let delta = delta(0, 2, &["1", "2", "3"]);
    let cut = cut(&delta);
    let mut assembler = DeltaAssembler::new(0);
    assert_eq!(assembler.push(cut[0].clone()).unwrap(), None);
    assert_eq!(assembler.push(cut[1].clone()).unwrap(), None);
    assert_eq!(assembler.push(cut[2].clone()).unwrap(), Some(delta));
}

#[test]
fn a_delta_from_another_revision_is_rejected() {
    let mut assembler = DeltaAssembler::new(4);
    let text = error_text(assembler.push(cut(&delta(0, 5, &["1"]))[0].clone()));
    assert!(text.contains("starts from revision 0") && text.contains("at 4"), "{text}");
    // A delta that follows a rejected one is rejected, too.
    let next = cut(&delta(4, 6, &["1"]));
    assert!(assembler.push(next[0].clone()).unwrap().is_some());
    error_text(assembler.push(cut(&delta(6, 7, &["2"]))[0].clone()));
    assembler.set_revision(6);
    assert!(assembler.push(cut(&delta(6, 7, &["2"]))[0].clone()).unwrap().is_some());
    assembler.set_revision(7);
    // The store was restored from a backup.
    assert!(assembler.push(cut(&delta(7, 6, &["2"]))[0].clone()).unwrap().is_some());
}

#[test]
fn the_first_delta_never_starts_after_the_newest_revision() {
    let cases = [(("", 0), 0), (("", 0), 9), (("a", 5), 5), (("a", 5), 6), (("a", 5), 4), (("b", 5), 9)];
    let starts = cases.map(|(held, newest)| super::first_delta_base(held, ("a", newest)));
    assert_eq!(starts, [0, 0, 5, 5, 0, 0]);
}

#[test]
fn a_missing_chunk_rejects_the_delta() {
    let first = delta(0, 2, &["1", "2", "3", "4"]);
    let pieces = cut(&first);
    let mut assembler = DeltaAssembler::new(0);
    assert_eq!(assembler.push(pieces[0].clone()).unwrap(), None);
    assert!(error_text(assembler.push(pieces[2].clone())).contains("chunk 2 came where chunk 1 was due"));
    assert_eq!(assembler.push(pieces[3].clone()).unwrap(), None, "the rest says nothing");
    // The next delta is accepted again.
    let again = cut(&delta(0, 3, &["1"]));
    assert!(assembler.push(again[0].clone()).unwrap().is_some());
    // A delta without its first chunk.
    assert!(error_text(assembler.push(pieces[1].clone())).contains("chunk 1 came where chunk 0 was due"));
}

#[test]
fn chunks_of_two_deltas_do_not_mix() {
    let (one, other) = (cut(&delta(0, 2, &["1", "2"])), cut(&delta(0, 3, &["1", "2"])));
    let mut assembler = DeltaAssembler::new(0);
    assembler.push(one[0].clone()).unwrap();
    assert!(error_text(assembler.push(other[1].clone())).contains("within"));
    assert!(assembler.push(other[0].clone()).unwrap().is_none());
    assert!(assembler.push(other[1].clone()).unwrap().is_some());
}

#[test]
fn limits_reject_a_delta_before_it_is_collected() {
    let pieces = cut(&delta(0, 2, &["1", "2", "3"]));
    let mut assembler = DeltaAssembler::with_limits(0, DeltaLimits { bytes: 1 << 20, resources: 2 });
    assembler.push(pieces[0].clone()).unwrap();
    assembler.push(pieces[1].clone()).unwrap();
    assert!(error_text(assembler.push(pieces[2].clone())).contains("limit of 2 resources"));
    let bytes = pieces[0].encoded_len() + 1;
    let mut assembler = DeltaAssembler::with_limits(0, DeltaLimits { bytes, resources: 9 });
    assembler.push(pieces[0].clone()).unwrap();
    assert!(error_text(assembler.push(pieces[1].clone())).contains("bytes"));
}

#[test]
fn a_duplicate_key_is_rejected() {
    let mut twice = delta(0, 2, &["1", "2"]);
    twice.removals.push(twice.upserts[0].resource.key());
    let mut assembler = DeltaAssembler::new(0);
    let pieces = cut(&twice);
    assembler.push(pieces[0].clone()).unwrap();
    assembler.push(pieces[1].clone()).unwrap();
    assert!(error_text(assembler.push(pieces[2].clone())).contains("routes/1 occurs twice"));
}

#[test]
fn every_invalid_resource_is_reported_and_none_applied() {
    let mut pieces = cut(&delta(0, 2, &["1", "2", "3"]));
    for (at, uri) in [(0, "/a*b/c"), (2, "/x*y/z")] {
        let Some(push::resource::Kind::Route(route)) =
            &mut pieces[at].upserts[0].resource.as_mut().unwrap().kind
        else {
            panic!("not a route");
        };
        route.uris = vec![uri.to_owned()];
    }
    let mut assembler = DeltaAssembler::new(0);
    assembler.push(pieces[0].clone()).unwrap();
    assembler.push(pieces[1].clone()).unwrap();
    let errors = assembler.push(pieces[2].clone()).unwrap_err();
    let keys: Vec<_> =
        errors.iter().map(|error| (error.key.as_ref().unwrap().to_string(), &*error.problem.field)).collect();
    assert_eq!(keys, [("routes/1".to_owned(), "uris[1]"), ("routes/3".to_owned(), "uris[1]")]);
    let wire = sent(&errors[0].to_wire());
    assert_eq!(ResourceError::from_wire(&wire).key, errors[0].key);
    assert!(wire.problem.contains("inside a path segment"));
}

#[test]
fn values_that_would_widen_a_resource_are_rejected() {
    let field_of = |kind| {
        let (key, problem) =
            resource_from_wire(push::Resource { id: "1".into(), kind: Some(kind) }).unwrap_err();
        assert!(key.is_some());
        problem.field
    };
    use push::resource::Kind;
    let route = push::Route { uris: vec!["/".into()], ..Default::default() };
    assert_eq!(
        field_of(Kind::Route(push::Route { methods: vec!["BREW".into()], ..route.clone() })),
        "methods[1]"
    );
    assert_eq!(
        field_of(Kind::Route(push::Route { remote_addrs: vec!["x".into()], ..route.clone() })),
        "remote_addrs[1]"
    );
    assert_eq!(field_of(Kind::Route(push::Route { hosts: vec!["".into()], ..route.clone() })), "hosts[1]");
    for (vars, field) in [("[", "vars"), ("{}", "vars"), ("[[\"nope\",\"1\"]]", "vars[1]")] {
        assert_eq!(field_of(Kind::Route(push::Route { vars: vars.into(), ..route.clone() })), field);
    }
    let blocks = push::Route { client_identity: "{\"allow\":[]}".into(), ..route.clone() };
    assert_eq!(field_of(Kind::Route(blocks)), "client_identity.allow");
    let blocks = push::Route { proxy_rewrite: "{\"headers\":{\"x\":\"$nope\"}}".into(), ..route.clone() };
    assert_eq!(field_of(Kind::Route(blocks)), "plugins.proxy-rewrite.headers.x");
    let service = push::Service { client_identity: "x".into(), ..push::Service::default() };
    assert_eq!(field_of(Kind::Service(service)), "client_identity");
    assert_eq!(field_of(Kind::Route(push::Route { uris: vec![], ..route })), "uris");
    assert_eq!(field_of(Kind::Ssl(push::Ssl { versions: vec![9], ..Default::default() })), "ssl_protocols");
    // A build without the engine for TLSv1.1 rejects it.
    let old = push::Ssl { versions: vec![push::TlsVersion::TlsVersion11.into()], ..Default::default() };
    let expected = if cfg!(feature = "engine-boring") { "cert" } else { "ssl_protocols" };
    assert_eq!(field_of(Kind::Ssl(old)), expected);
    assert_eq!(field_of(Kind::Ssl(push::Ssl::default())), "cert");
    assert_eq!(
        field_of(Kind::Ssl(push::Ssl { client: Some(push::ClientAuth::default()), ..Default::default() })),
        "client"
    );
    assert!(resource_from_wire(push::Resource { id: "1".into(), kind: None }).unwrap_err().0.is_none());
}

/// An ssl of `type: client` with this pair.
fn client_side(pair: &crate::resource::KeyPair) -> Resource {
    let id = Id::parse("1").unwrap();
    Resource::Ssl(Arc::new(Ssl { client_side: true, pairs: vec![pair.clone()], ..Ssl::new(id) }))
}

#[test]
fn a_key_of_another_certificate_is_rejected() {
    let [one, other] = &*crate::samples::PAIRS;
    let ssl = |pair: &crate::resource::KeyPair| push::Resource::from(&client_side(pair));
    let mixed = crate::resource::KeyPair { chain: one.chain.clone(), key: other.key.clone() };
    assert!(resource_from_wire(ssl(one)).is_ok());
    assert_eq!(resource_from_wire(ssl(&mixed)).unwrap_err().1.field, "pairs[1].key");
}

#[test]
fn no_private_key_is_ever_shown() {
    let [pair, _] = &*crate::samples::PAIRS;
    let secret = pair.key.der().secret_der().to_vec();
    let ssl = client_side(pair);
    let wire = push::Resource::from(&ssl);
    let delta =
        Delta { from: 0, to: 1, upserts: vec![Versioned { version: 1, resource: ssl }], removals: vec![] };
    let chunk = chunks(&delta, 1 << 20).next().unwrap();
    // Numbers, escaped bytes, base64 and hex of eight bytes from the middle of the key.
    let some = &secret[secret.len() / 2..secret.len() / 2 + 8];
    let spellings = [
        some.iter().map(u8::to_string).collect::<Vec<_>>().join(", "),
        data_encoding::HEXLOWER.encode(some),
        some.escape_ascii().to_string(),
    ];
    for shown in [format!("{delta:?}"), format!("{wire:?}"), format!("{chunk:?}")] {
        for spelling in &spellings {
            assert!(!shown.contains(spelling.as_str()), "{shown}");
        }
    }
}
