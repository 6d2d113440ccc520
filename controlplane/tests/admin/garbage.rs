//! Random documents: each is rejected or stored, and a data plane accepts whatever is stored.

use controlplane::testing::change::{
    AcceptedChanges, Action, ChangeError, ChangePipeline, ChangeRequest, RejectedChanges,
    RequestPrecondition, WriteOptions,
};
use model::Kind;
use proptest::prelude::*;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use crate::world::World;

fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof!["[a-z*./:-]{0,8}", Just("-----BEGIN CERTIFICATE-----".to_owned()), "\\PC{0,12}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_filter_map("finite", |n| n.is_finite().then(|| Value::from(n))),
        text.prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("nodes"),
        Just("tls"),
        Just("client_key"),
        Just("upstream"),
        Just("uri"),
        Just("uris"),
        Just("sni"),
        Just("snis"),
        Just("cert"),
        Just("key"),
        Just("client"),
        Just("ca"),
        Just("timeout"),
        Just("id"),
        Just("x"),
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..5).prop_map(|members| members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()),
        ]
    })
}

/// A valid document of each kind.
fn good(world: &World, kind: Kind) -> Value {
    let pair = world.pair("test.com");
    let upstream = json!({"nodes": {"127.0.0.1:1980": 1}, "timeout": {"connect": 1, "send": 1, "read": 1}});
    match kind {
        Kind::Ssl => {
            json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "snis": ["test.com"], "labels": {"a": "b"}})
        }
        Kind::Upstream => upstream,
        Kind::Service => json!({"upstream": upstream, "hosts": ["a.test"]}),
        Kind::Route => json!({"uri": "/", "upstream": upstream, "methods": ["GET"]}),
        Kind::StreamRoute => json!({"sni": "a.test", "upstream": upstream, "remote_addr": "10.0.0.0/8"}),
        Kind::PluginConfig => json!({"plugins": {"proxy-rewrite": {"uri": "/x"}}}),
        Kind::GlobalRule => json!({"plugins": {"prometheus": {}}}),
    }
}

#[test]
fn random_documents_are_rejected_or_compile() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::start());
    let changes = ChangePipeline::new(world.store.clone(), world.keyring.clone());
    let apply = async |kind, id: Option<&str>, action| {
        let precondition = RequestPrecondition::Unconditional;
        let request = ChangeRequest { kind, id: id.map(str::to_owned), action, precondition, ttl: None };
        changes.apply(&[request], WriteOptions::at(UnixTime::now()), None).await
    };
    let documents = Kind::ALL.map(|kind| good(&world, kind));
    let paths: Vec<Vec<String>> = documents
        .iter()
        .map(|document| {
            document
                .as_object()
                .unwrap()
                .keys()
                .flat_map(|name| [name.clone(), format!("{name}/x")])
                .collect()
        })
        .collect();
    let runner_config = ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() };
    let judged = |done: Result<AcceptedChanges, RejectedChanges>| match done {
        Ok(accepted) => {
            let change = &accepted.changes[0];
            let id = &change.key.as_ref().unwrap().id;
            model::compile(change.kind, id, &change.document, &world.keyring)
                .expect("a data plane accepts it");
        }
        Err(RejectedChanges { operation: Some(0), error: ChangeError::Invalid(problem) }) => {
            assert!(!problem.message.is_empty());
        }
        Err(other) => panic!("{other:?}"),
    };
    proptest!(runner_config, |(kind in prop::sample::select(&Kind::ALL[..]), whole in any_json(), part in any_json(), at in any::<prop::sample::Index>())| {
        runtime.block_on(async {
            judged(apply(kind, Some("odd"), Action::Put { body: Some(whole.clone()) }).await);
            judged(apply(kind, None, Action::Post { body: Some(whole) }).await);
            let index = Kind::ALL.iter().position(|other| *other == kind).unwrap();
            let good = Some(documents[index].clone());
            apply(kind, Some("good"), Action::Put { body: good }).await.unwrap();
            let sub_path = Some(at.get(&paths[index]).clone());
            let body = Some(part.clone());
            judged(apply(kind, Some("good"), Action::Patch { sub_path, body }).await);
            let body = Some(json!({"x": part}));
            judged(apply(kind, Some("good"), Action::Patch { sub_path: None, body }).await);
        });
    });
}
