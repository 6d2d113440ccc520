//! A data plane's worker inside a benchmark: the settings of a file, and resources put straight
//! into its snapshot.
//!
//! Only the agent is missing: no control plane pushes, and nothing changes during a measurement.

#![allow(clippy::expect_used, reason = "a measurement that cannot be set up stops, like a test")]

use std::path::Path;
use std::sync::Arc;

use dataplane::testing::config;
use dataplane::testing::lifecycle::handles::{SnapshotHandle, TicketRingHandle};
use dataplane::testing::observability::metrics::series::SeriesTable;
use dataplane::testing::proxy::worker::SharedState;
use dataplane::testing::reporting::trace::queue::TraceQueues;
use dataplane::testing::tls::site_config::{self, SiteConfigFactory};
use dataplane::testing::upstream::{ClientTlsConfigs, Resolver, TrustDefaults};
use model::{Id, Kind, Resource, Snapshot, TicketRing, TicketSecret, TlsVersion, Versioned};
use pki::TrustAnchors;
use serde_json::Value;
use zeroize::Zeroizing;

/// The smallest valid settings; everything else has its default.
const SETTINGS: &str = r#"{
    "deployment": {"admin": {"admin_key": [{"name": "admin", "key": "only-for-benchmarks", "role": "admin"}]}},
    "countersign": {"node": {"cert": "node.crt", "key": "node.key"}}
}"#;

/// A snapshot of these documents, checked as the Admin API checks them.
pub fn snapshot<'a>(documents: impl IntoIterator<Item = (Kind, &'a str, Value)>) -> Snapshot {
    let resources = documents.into_iter().map(|(kind, id, document)| checked(kind, id, &document));
    Snapshot::from_resources(1, resources.map(|resource| Versioned { version: 1, resource }))
}

/// One document, checked as the Admin API checks it.
pub fn checked(kind: Kind, id: &str, document: &Value) -> Resource {
    let id = Id::parse(id).expect("an id");
    model::compile(kind, &id, document, &pki::Keyring::empty()).expect("a good document")
}

/// The state that boot makes of settings, with `versions` for sites that name none and `anchors`
/// for verified upstreams.
pub fn shared(
    snapshot: Snapshot,
    versions: &[TlsVersion],
    anchors: Option<Arc<TrustAnchors>>,
) -> Arc<SharedState> {
    let none = |_: &str| None;
    let (file, folder) = (Path::new("bench.yaml"), Path::new("/"));
    let settings = conf::load_text(file, SETTINGS, folder, &none).expect("good settings");
    let provider = Arc::new(site_config::crypto_provider());
    let secrets = Arc::new(TicketRingHandle::default());
    // As many secrets as a ring has after some rotations.
    let secret = |nth: u8| TicketSecret::new(u64::from(nth), Zeroizing::new([nth; 32]));
    secrets.store(Arc::new(TicketRing { lifetime: 3600, secrets: (1..=5).map(secret).collect() }));
    let trust = TrustDefaults { anchors, ..TrustDefaults::default() };
    let upstream_tls = ClientTlsConfigs::new(Arc::clone(&provider), trust, config::record_layer(&settings));
    Arc::new(SharedState {
        snapshot: Arc::new(SnapshotHandle::new(Arc::new(snapshot))),
        sites: SiteConfigFactory::new(
            provider,
            versions,
            true,
            Some(secrets),
            config::record_layer(&settings),
        ),
        upstream_tls: Arc::new(upstream_tls),
        resolver: Resolver::start().expect("the resolver's threads"),
        trace_queues: TraceQueues::unread(1),
        series: Arc::new(SeriesTable::new(settings.countersign.metrics)),
        config: Arc::new(config::worker_config(&settings).expect("good settings")).into(),
    })
}
