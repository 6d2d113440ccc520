//! APISIX's Prometheus exporter: its names and labels, read by Prometheus' own parser, and the
//! queries of APISIX's dashboard. The client is curl.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Command;

use e2e::documents::weighted;
use e2e::tools::{CurlOutput, curl};
use e2e::world::World;
use serde_json::{Value, json};

/// The metrics and labels that the queries of APISIX's Grafana dashboard name, as of 3.18, but for
/// those about Lua's shared memory.
const DASHBOARD: &[(&str, &[&str])] = &[
    ("apisix_http_requests_total", &[]),
    ("apisix_nginx_http_current_connections", &["state"]),
    ("apisix_bandwidth", &["type", "service", "route"]),
    ("apisix_http_status", &["code", "service", "route"]),
    ("apisix_http_latency_bucket", &["type", "service", "consumer", "node", "route", "le"]),
    ("apisix_etcd_modify_indexes", &["key"]),
    ("apisix_etcd_reachable", &[]),
];

/// Prints name, labels, value and type of each sample as JSON.
const PARSE: &str = "import json, sys; from prometheus_client.parser import text_string_to_metric_families as parse; \
                     print(json.dumps([[s.name, s.labels, s.value, f.type] for f in parse(sys.stdin.read()) for s in f.samples]))";

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
    kind: String,
}

impl Sample {
    fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        let has_label = |(name, value): &(&str, &str)| self.labels.get(*name).is_some_and(|own| own == value);
        self.name == name && labels.iter().all(has_label)
    }
}

async fn scrape(world: &World, path: &str) -> CurlOutput {
    let url = format!("http://{}{path}", world.node_address(0, "prometheus"));
    curl(world.folder(), &[&url]).await
}

/// What Prometheus' parser for Python reads; `None` where it is not installed.
async fn samples(world: &World) -> Option<Vec<Sample>> {
    let python = crate::api_tools::installed("python")?;
    let import = Command::new(&python).args(["-c", "import prometheus_client"]).output().unwrap();
    if !import.status.success() {
        eprintln!("skipped: prometheus_client is not installed: `scripts/setup.sh test` does it");
        return None;
    }
    let output = scrape(world, "/apisix/prometheus/metrics").await;
    assert_eq!(output.status, 200, "{output:?}");
    let file = world.write("apisix.txt", &output.body);
    let parsed = Command::new(&python).args(["-c", PARSE]).stdin(File::open(file).unwrap()).output().unwrap();
    assert!(parsed.status.success(), "{}\n{}", String::from_utf8_lossy(&parsed.stderr), output.body);
    let parsed: Vec<(String, BTreeMap<String, String>, Value, String)> =
        serde_json::from_slice(&parsed.stdout).unwrap();
    let sample = |(name, labels, value, kind): (String, _, Value, String)| {
        // The parser gives counters the name that OpenMetrics demands.
        let written = name.strip_suffix("_total").filter(|_| kind == "counter").unwrap_or(&name).to_owned();
        assert!(output.body.contains(&format!("\n{written}")), "{written}");
        Sample { name: written, labels, value: value.as_f64().unwrap(), kind }
    };
    Some(parsed.into_iter().map(sample).collect())
}

#[track_caller]
fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let found = samples.iter().find(|sample| sample.has(name, labels));
    found.unwrap_or_else(|| panic!("no {name} {labels:?} in {samples:#?}")).value
}

#[tokio::test]
async fn apisix_dashboard_has_its_metrics() {
    let (world, upstream) = World::open(json!({})).await;
    world
        .apply(&[
            (
                "services/shop",
                json!({"upstream": {"type": "roundrobin", "nodes": weighted(&[upstream.address()])}}),
            ),
            ("routes/orders", json!({"uri": "/orders", "hosts": ["app.test"], "service_id": "shop"})),
        ])
        .await;
    let mut client = world.client("app.test").connect().await.unwrap();
    for _ in 0..3 {
        client.get("/orders").await.unwrap();
    }
    let Some(samples) = samples(&world).await else { return };
    let route = [("route", "orders"), ("service", "shop")];
    let with = |more: &[(&'static str, &'static str)]| [&route, more].concat();
    let status = with(&[
        ("code", "200"),
        ("matched_uri", "/orders"),
        ("matched_host", "app.test"),
        ("node", "127.0.0.1"),
    ]);
    assert_eq!(value(&samples, "apisix_http_status", &status), 3.0);
    for kind in ["request", "upstream", "apisix"] {
        assert_eq!(value(&samples, "apisix_http_latency_count", &with(&[("type", kind)])), 3.0, "{kind}");
        let all = with(&[("type", kind), ("le", "+Inf")]);
        assert_eq!(value(&samples, "apisix_http_latency_bucket", &all), 3.0, "{kind}");
    }
    assert!(value(&samples, "apisix_bandwidth", &with(&[("type", "egress")])) > 100.0);
    assert!(value(&samples, "apisix_bandwidth", &with(&[("type", "ingress")])) > 50.0);
    assert_eq!(value(&samples, "apisix_http_requests_total", &[]), 3.0);
    let state = "apisix_nginx_http_current_connections";
    assert_eq!(value(&samples, state, &[("state", "active")]), 1.0);
    assert_eq!(value(&samples, state, &[("state", "waiting")]), 1.0);
    assert_eq!(value(&samples, "apisix_etcd_reachable", &[]), 1.0);
    let revision = world.status("/status").await.json()["revision"].as_f64().unwrap();
    assert_eq!(value(&samples, "apisix_etcd_modify_indexes", &[("key", "max_modify_index")]), revision);
    assert_eq!(value(&samples, "apisix_node_info", &[]), 1.0);

    for (name, labels) in DASHBOARD {
        let sample = samples.iter().find(|sample| sample.name == *name);
        let sample = sample.unwrap_or_else(|| panic!("no {name}"));
        for label in *labels {
            assert!(sample.labels.contains_key(*label), "{name} has no {label}: {sample:?}");
        }
    }
    let kinds: BTreeMap<&str, &str> =
        samples.iter().map(|sample| (sample.name.as_str(), sample.kind.as_str())).collect();
    for (name, kind) in [
        ("apisix_http_status", "counter"),
        ("apisix_bandwidth", "counter"),
        ("apisix_http_latency_bucket", "histogram"),
        ("apisix_http_requests_total", "gauge"),
    ] {
        assert_eq!(kinds[name], kind, "{name}");
    }
}

#[tokio::test]
async fn the_exporter_has_its_path_and_prefix() {
    let exporter = json!({"export_uri": "/my/metrics", "metric_prefix": "edge_"});
    let world = World::builder().settings(json!({"plugin_attr": {"prometheus": exporter}})).start().await;
    world.node_log().line_with(&["connected"]).await;
    let found = scrape(&world, "/my/metrics").await;
    assert!(found.status == 200 && found.body.contains("edge_etcd_reachable 1\n"), "{found:?}");
    assert!(!found.body.contains("apisix_"), "{}", found.body);
    assert_eq!(scrape(&world, "/apisix/prometheus/metrics").await.status, 404);
    let off = json!({"plugin_attr": {"prometheus": {"enable_export_server": false}}});
    let world = World::builder().settings(off).start().await;
    assert_eq!(world.node_ready()["prometheus"], Value::Null);
}
