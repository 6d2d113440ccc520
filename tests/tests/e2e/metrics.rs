//! Metrics: each moves when its fact happens, and only then; every one of a running pair is in
//! `docs/METRICS.md`; series are bounded, and no client chooses a label.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use e2e::client::{HttpClient, full};
use e2e::documents::route;
use e2e::exposition::{Exposition, Family};
use e2e::ports::Reservation;
use e2e::process::EVENT_TIMEOUT;
use e2e::upstream::Upstream;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::{Method, StatusCode};
use rustls::AlertDescription;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::stream::{ask_plain, streaming, to};
use crate::websocket::{enabled, open, plain};

/// Families that move by themselves.
const ALWAYS: [&str; 7] = [
    "process_",
    "countersign_worker_cpu_seconds",
    "countersign_heartbeat_age_seconds",
    "countersign_snapshot_confirmed_timestamp_seconds",
    "countersign_last_good_saved_timestamp_seconds",
    "countersign_log_",
    // Of a request, it depends on the time of the sweep.
    "countersign_upstream_connections_",
];

/// The metrics of a node, before and after each fact.
struct Watch<'a> {
    world: &'a World,
    before: Exposition,
}

async fn scrape(world: &World) -> Exposition {
    let reply = world.status("/metrics").await;
    assert_eq!(reply.status, StatusCode::OK);
    Exposition::parse(&reply.text())
}

impl<'a> Watch<'a> {
    async fn of(world: &'a World) -> Self {
        Self { world, before: settled(world).await }
    }

    /// Makes the fact happen. The samples that moved are exactly these, given without our prefix.
    async fn expect<T>(&mut self, fact: &str, moved: &[&str], happens: impl Future<Output = T>) -> T {
        let result = happens.await;
        let expected: BTreeSet<_> = moved.iter().map(|name| format!("countersign_{name}")).collect();
        let matches = async {
            loop {
                let after = scrape(self.world).await;
                if expected.is_subset(&self.moved(&after)) {
                    return;
                }
            }
        };
        // What does not come is shown below.
        let _comes = timeout(Duration::from_secs(10), matches).await;
        let after = settled(self.world).await;
        assert_eq!(self.moved(&after), expected, "{fact}");
        self.before = after;
        result
    }

    fn moved(&self, after: &Exposition) -> BTreeSet<String> {
        let mut moved = self.before.moved(after);
        moved.retain(|name| !ALWAYS.iter().any(|always| name.starts_with(always)));
        moved
    }
}

/// The metrics after two turns of the worker's housekeeping, which updates some once a second.
async fn settled(world: &World) -> Exposition {
    let turns = async {
        let turn = |all: &Exposition| all.value("countersign_worker_cpu_seconds_total{worker=\"0\"}");
        let (mut last, mut seen) = (turn(&scrape(world).await), 0);
        loop {
            let now = scrape(world).await;
            if turn(&now) != last {
                (last, seen) = (turn(&now), seen + 1);
            }
            if seen == 2 {
                return now;
            }
        }
    };
    timeout(EVENT_TIMEOUT, turns).await.expect("the worker beats")
}

/// What a request moves, but for its status and route.
const REQUEST: [&str; 3] =
    ["http_request_duration_seconds_count", "http_received_bytes_total", "http_sent_bytes_total"];
/// What a new connection to a node moves.
const CONNECTS: [&str; 2] =
    ["upstream_pool_misses_total", "upstream_connect_duration_seconds_count{tls=\"false\"}"];

/// What a request of a route and of the site `app` moves.
fn routed(route: &str, code: u16) -> Vec<String> {
    let class = code / 100;
    let route_and_site = [
        format!("http_requests_total{{code=\"{code}\"}}"),
        format!("http_responses_total{{code_class=\"{class}xx\"}}"),
        format!("route_requests_total{{route=\"{route}\",code=\"{code}\"}}"),
        format!("route_request_duration_seconds_count{{route=\"{route}\"}}"),
        format!("route_upstream_duration_seconds_count{{route=\"{route}\"}}"),
        format!("route_received_bytes_total{{route=\"{route}\"}}"),
        format!("route_sent_bytes_total{{route=\"{route}\"}}"),
        "site_requests_total{site=\"app\"}".to_owned(),
    ];
    route_and_site.into_iter().chain(REQUEST.map(str::to_owned)).collect()
}

fn with<'a>(samples: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    samples.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

/// One worker, so that a connection is in the pool of the next request; and TCP listeners.
async fn one_worker(upstream: &Upstream) -> World {
    let mut settings = streaming();
    e2e::settings::merge(&mut settings, json!({"countersign": {"workers": 1}}));
    let world = World::builder().settings(settings).protected(upstream.address()).start().await;
    persisted(&world).await;
    world
}

/// Waits until the last-good file has what is served, so that it moves no more.
async fn persisted(world: &World) {
    world.wait_persisted(world.metric("countersign_snapshot_revision ").await).await;
}

#[tokio::test]
async fn the_metrics_of_connections_move_with_their_facts() {
    let upstream = Upstream::plain("plain").await;
    let world = one_worker(&upstream).await;
    let tcp = TcpUpstream::plain("tcp", Script::Greet).await;
    let revision = world.apply(&[("stream_routes/1", json!({"upstream": to(&[tcp.address()])}))]).await;
    world.wait_persisted(revision).await;
    let mut watch = Watch::of(&world).await;
    let client = world.verified_client("app.test");
    let config = Arc::new(client.config());
    let handshake = |resumed: bool, result: &str| {
        vec![
            "client_connections_total".to_owned(),
            "client_connections_active".to_owned(),
            format!("tls_handshakes_total{{resumed=\"{resumed}\"}}"),
            format!("tls_handshake_duration_seconds_count{{resumed=\"{resumed}\"}}"),
            format!("site_tls_handshakes_total{{site=\"app\",result=\"{result}\"}}"),
            "verify_cache_hits_total".to_owned(),
        ]
    };

    let full = handshake(false, "full");
    let connect = client.connect_with(Arc::clone(&config));
    let moved = with(&full, &["verify_cache_misses_total"]);
    let connection = watch.expect("a full handshake", &moved, connect).await.unwrap();
    watch.expect("the end of a connection", &["client_connections_active"], async { drop(connection) }).await;
    let resumed = handshake(true, "resumed");
    let connect = client.connect_with(config);
    let connection = watch.expect("a resumed one", &with(&resumed, &[]), connect).await.unwrap();
    assert!(connection.resumed());

    let rejected = "site_tls_handshakes_total{site=\"app\",result=\"rejected\"}";
    let moved = ["client_connections_total", "errors_total{reason=\"no_certificate\"}", rejected];
    let anonymous = world.client("app.test");
    watch.expect("no certificate", &moved, anonymous.expect_alert()).await;
    let moved = [
        "client_connections_total",
        "errors_total{reason=\"bad_certificate\"}",
        "client_certificate_rejections_total{reason=\"unknown_issuer\"}",
        "verify_cache_misses_total",
        rejected,
    ];
    let foreign = world.client("app.test").identity(&world.credentials.untrusted.client("x"));
    watch.expect("the certificate of another CA", &moved, foreign.expect_alert()).await;
    let moved = ["client_connections_total", "errors_total{reason=\"no_site\"}"];
    let unknown = world.client("unknown.test");
    let alert = watch.expect("an unknown name", &moved, unknown.expect_alert()).await;
    assert_eq!(alert, AlertDescription::UnrecognisedName);
    let moved = [
        "client_connections_total",
        "tcp_connections_total",
        "tcp_bytes_total{direction=\"to_upstream\"}",
        "tcp_bytes_total{direction=\"to_client\"}",
        "upstream_connect_duration_seconds_count{tls=\"false\"}",
    ];
    watch.expect("a TCP connection", &moved, ask_plain(&world)).await;
}

#[tokio::test]
async fn the_metrics_of_requests_move_with_their_facts() {
    let upstream = Upstream::plain("plain").await;
    let world = one_worker(&upstream).await;
    let dead = Reservation::any();
    let revision = world
        .apply(&[
            ("routes/dead", route("app.test", "/dead", &[dead.address()])),
            ("routes/retry", route("app.test", "/retry", &[dead.address(), upstream.address()])),
        ])
        .await;
    world.wait_persisted(revision).await;
    let mut connection = world.verified_client("app.test").connect().await.unwrap();
    let mut watch = Watch::of(&world).await;
    let (ok, pooled) = (routed("app", 200), "upstream_pool_hits_total");
    let first_byte = "upstream_first_byte_duration_seconds_count";

    let moved = with(&ok, &[&[first_byte], &CONNECTS[..]].concat());
    watch.expect("a request on a new connection", &moved, connection.get("/")).await.unwrap();
    let moved = with(&ok, &[first_byte, pooled]);
    watch.expect("a request on a pooled one", &moved, connection.get("/")).await.unwrap();
    let not_found = routed("app", 404);
    let moved = with(&not_found, &[first_byte, pooled]);
    watch.expect("another status", &moved, connection.get("/status?code=404")).await.unwrap();

    let failed = routed("dead", 502);
    let reasons = [
        "errors_total{reason=\"upstream_connect\"}",
        "route_errors_total{route=\"dead\",reason=\"upstream_connect\"}",
    ];
    let failed_attempt =
        |route: &str| format!("route_failed_attempts_total{{route=\"{route}\",node=\"{}\"}}", dead.address());
    let of_dead = failed_attempt("dead");
    let moved = with(&failed, &[reasons[0], reasons[1], CONNECTS[0], &of_dead]);
    watch.expect("a node that refuses", &moved, connection.get("/dead")).await.unwrap();
    let retried = routed("retry", 200);
    let of_retry = failed_attempt("retry");
    let moved = with(&retried, &[first_byte, pooled, CONNECTS[0], "upstream_retries_total", &of_retry]);
    let twice = async {
        connection.get("/retry").await.unwrap();
        connection.get("/retry").await.unwrap()
    };
    watch.expect("a retry", &moved, twice).await;

    let mut stranger = world.plain("unknown.test").await;
    let codes = ["http_requests_total{code=\"404\"}", "http_responses_total{code_class=\"4xx\"}"];
    let moved = [
        &REQUEST[..],
        &codes,
        &["errors_total{reason=\"no_route\"}", "client_connections_total", "client_connections_active"],
    ]
    .concat();
    watch.expect("a request without a route", &moved, stranger.get("/")).await.unwrap();
}

#[tokio::test]
async fn a_request_in_flight_and_one_given_up_are_counted() {
    let upstream = Upstream::plain("plain").await;
    let world = one_worker(&upstream).await;
    let mut connection = world.verified_client("app.test").connect().await.unwrap();
    let mut watch = Watch::of(&world).await;
    let held = tokio::spawn(async move {
        let _given_up = connection.get("/hold").await;
    });
    let moved = ["http_requests_active", CONNECTS[0], CONNECTS[1]];
    watch.expect("a request in flight", &moved, upstream.arrived(1)).await;
    let mut given_up = routed("app", 499);
    // No part of a response went out.
    given_up.retain(|sample| !sample.starts_with("http_responses") && !sample.contains("sent_bytes"));
    let moved = with(&given_up, &["http_requests_active", "client_connections_active"]);
    watch.expect("a client that goes away", &moved, async { held.abort() }).await;
}

#[tokio::test]
async fn the_metrics_of_changes_move_with_their_facts() {
    let upstream = Upstream::plain("plain").await;
    let mut world = one_worker(&upstream).await;
    let mut connection = world.verified_client("app.test").connect().await.unwrap();
    connection.get("/").await.unwrap();
    let mut watch = Watch::of(&world).await;
    let changed = [
        "snapshot_revision",
        "snapshot_changes_total{result=\"applied\"}",
        "snapshot_apply_duration_seconds_count",
        "last_good_revision",
    ];
    let change = async {
        let revision = world.apply(&[("routes/new", route("app.test", "/new", &[upstream.address()]))]).await;
        world.wait_persisted(revision).await;
    };
    watch.expect("a change", &changed, change).await;
    let gone = [
        "requests_total{route=\"app\",code=\"200\"}",
        "request_duration_seconds_count{route=\"app\"}",
        "upstream_duration_seconds_count{route=\"app\"}",
        "received_bytes_total{route=\"app\"}",
        "sent_bytes_total{route=\"app\"}",
    ]
    .map(|name| format!("route_{name}"));
    let removal = async {
        let revision = world.admin().delete("routes/app").await;
        world.wait_persisted(revision).await;
    };
    watch.expect("a removed route", &with(&gone, &changed), removal).await;
    let after = &watch.before;
    assert!(
        !after.0.values().any(|family| family.samples.keys().any(|sample| sample.contains("route=\"app\"")))
    );

    let moved = [
        "reloads_total{result=\"applied\"}",
        "reload_success_timestamp_seconds",
        "site_requests_total{site=\"app\"}",
        "site_tls_handshakes_total{site=\"app\",result=\"full\"}",
    ];
    world.change_settings(json!({"countersign": {"metrics": {"by_site": false}}}));
    let mut watch = Watch::of(&world).await;
    let reload = crate::reload::reload_file(&world);
    watch.expect("a reload that ends the series of sites", &moved, reload).await;
    assert!(watch.before.0["countersign_site_requests"].samples.is_empty());
}

#[tokio::test]
async fn the_metrics_of_nodes_move_with_their_facts() {
    let upstream = Upstream::plain("plain").await;
    let world = one_worker(&upstream).await;
    let tls = Upstream::tls("tls", &world.credentials.servers.server(&["node.test"])).await;
    let mut document = route("app.test", "/tls/*", &[tls.address()]);
    document["upstream"]["scheme"] = json!("https");
    document["upstream"]["keepalive_pool"] =
        json!({"size": 1, "idle_timeout": 60, "requests": 100, "max_connections": 1});
    world.wait_persisted(world.apply(&[("routes/tls", document)]).await).await;
    let client = world.verified_client("app.test");
    let mut connection = client.connect().await.unwrap();
    let mut second = client.connect().await.unwrap();
    let mut watch = Watch::of(&world).await;

    let held = tokio::spawn(async move { connection.get("/tls/hold").await.unwrap() });
    let moved = [
        "http_requests_active",
        CONNECTS[0],
        "upstream_connect_duration_seconds_count{tls=\"true\"}",
        "upstream_tls_handshakes_total{verified=\"false\",resumed=\"false\"}",
    ];
    watch.expect("a connection with TLS", &moved, tls.arrived(1)).await;
    let waits = tokio::spawn(async move { second.get("/tls/").await.unwrap() });
    watch.expect("a wait", &["http_requests_active", "upstream_requests_queued"], async {}).await;
    let of_both = routed("tls", 200);
    let more = [
        "client_connections_active",
        "http_requests_active",
        "upstream_requests_queued",
        "upstream_queue_duration_seconds_count",
        "upstream_first_byte_duration_seconds_count",
        "upstream_pool_hits_total",
    ];
    let end = async {
        tls.open_gate();
        (held.await.unwrap(), waits.await.unwrap())
    };
    watch.expect("its end", &with(&of_both, &more), end).await;
}

#[tokio::test]
async fn the_metrics_of_a_websocket_move_with_it() {
    let gateway = enabled().await;
    persisted(&gateway.world).await;
    let mut watch = Watch::of(&gateway.world).await;
    let opened = [
        "client_connections_total",
        "client_connections_active",
        "http_requests_active",
        "http_responses_total{code_class=\"1xx\"}",
        CONNECTS[1],
        "websockets_total",
        "websockets_active",
    ];
    let both_ends = async {
        let mut client = plain(&gateway).await;
        let upstream = open(&gateway, &mut client).await;
        (client, upstream)
    };
    let (mut client, mut upstream) = watch.expect("its handshake", &opened, both_ends).await;
    let sent = ["websocket_bytes_total{direction=\"to_upstream\"}"];
    let send = async {
        client.write_all(b"frames").await.unwrap();
        upstream.read_exact(&mut [0; 6]).await.unwrap();
    };
    watch.expect("bytes", &sent, send).await;
    let mut ended = routed("app", 101);
    ended.retain(|sample| !sample.starts_with("http_responses") && !sample.starts_with("site_"));
    let first_byte = "upstream_first_byte_duration_seconds_count";
    let more = ["client_connections_active", "http_requests_active", "websockets_active", first_byte];
    watch.expect("its end", &with(&ended, &more), async { drop((client, upstream)) }).await;
}

#[tokio::test]
async fn a_lost_control_plane_shows() {
    let mut world = World::start().await;
    let before = settled(&world).await;
    assert_eq!(before.value("countersign_control_plane_connected"), Some(1.0));
    world.stop_control().await;
    let gone = async {
        loop {
            let all = scrape(&world).await;
            let age = all.value("countersign_snapshot_age_seconds").unwrap();
            if all.value("countersign_control_plane_connected") == Some(0.0) && age >= 1.0 {
                return all;
            }
        }
    };
    let after = timeout(EVENT_TIMEOUT, gone).await.expect("the age grows");
    let confirmed = |all: &Exposition| all.value("countersign_snapshot_confirmed_timestamp_seconds").unwrap();
    assert!(confirmed(&after) >= confirmed(&before), "it stays at the end of the session");
    assert_eq!(confirmed(&after), confirmed(&scrape(&world).await));
}

/// Scraped again and again under load, with routes that come and go.
#[tokio::test]
async fn counters_never_fall_while_a_node_is_loaded() {
    let upstream = Upstream::plain("plain").await;
    let world = World::builder().protected(upstream.address()).start().await;
    let client = world.verified_client("app.test");
    let load = async |client: HttpClient| {
        let mut connection = client.connect().await.unwrap();
        loop {
            connection.get("/").await.unwrap();
        }
    };
    let loads: Vec<_> = (0..4).map(|_| tokio::spawn(load(client.clone()))).collect();
    let mut before = scrape(&world).await;
    for number in 0..20 {
        let document = route("app.test", &format!("/{number}"), &[upstream.address()]);
        world.apply(&[("routes/other", document)]).await;
        let after = scrape(&world).await;
        for (name, family) in after.0.iter().filter(|(_, family)| family.kind != "gauge") {
            for (sample, value) in &family.samples {
                let earlier = before.0[name].samples.get(sample).copied().unwrap_or_default();
                assert!(*value >= earlier, "{sample} fell from {earlier} to {value}");
            }
        }
        before = after;
    }
    assert!(loads.iter().all(|load| !load.is_finished()), "no request failed");
    loads.iter().for_each(|load| load.abort());
    let requests = before.value("countersign_http_requests_total{code=\"200\"}").unwrap();
    assert!(requests >= 100.0, "{requests}");
}

/// Requests with other certificates, names, paths, methods and header values.
#[tokio::test]
async fn no_client_chooses_a_label() {
    let upstream = Upstream::plain("plain").await;
    let world = one_worker(&upstream).await;
    let names = async || {
        let all = settled(&world).await;
        let samples = all.0.into_values().flat_map(|family| family.samples.into_keys());
        samples.collect::<BTreeSet<_>>()
    };
    let visit = async |number: usize| {
        let identity = world.credentials.clients.client(&format!("client-{number}"));
        let client = world.client("app.test").identity(&identity);
        let mut connection = client.connect().await.unwrap();
        let method = Method::from_bytes(format!("METHOD-{number}").as_bytes()).unwrap();
        let mut request = connection.request(method, &format!("/{number}?x={number}"), full(""));
        request.headers_mut().insert("user-agent", format!("agent-{number}").parse().unwrap());
        assert_eq!(connection.fetch(request).await.unwrap().status, StatusCode::OK);
        world.client(&format!("unknown-{number}.test")).expect_alert().await;
        let mut plain = world.plain(&format!("host-{number}.test")).await;
        assert_eq!(plain.get("/").await.unwrap().status, StatusCode::NOT_FOUND);
    };
    visit(0).await;
    let before = names().await;
    for number in 1..=30 {
        visit(number).await;
    }
    let after = names().await;
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(!after.iter().any(|name| name.contains("client-") || name.contains("unknown-")));
}

const PAGE: &str = "docs/METRICS.md";

/// A row of the page, without the name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    kind: String,
    /// `None`: there is no series.
    labels: Option<String>,
    help: String,
}

/// The rows of a section of the page, by name.
type Section = BTreeMap<String, Row>;

/// The metrics of `all` that `other` has with the same meaning, or those that it has not.
fn section(all: &Exposition, other: &Exposition, in_both: bool) -> Section {
    let is_in_both = |name: &str, family: &Family| {
        other.0.get(name).is_some_and(|other| (&other.kind, &other.help) == (&family.kind, &family.help))
    };
    let families = all.0.iter().filter(|(name, family)| is_in_both(name, family) == in_both);
    let row = |(name, family): (&String, &Family)| {
        // As queries have it.
        let suffix = match family.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let labels = family.labels().into_iter().collect::<Vec<_>>().join(", ");
        let labels = (!family.samples.is_empty()).then_some(labels);
        let help = family.help.clone();
        (format!("{name}{suffix}"), Row { kind: family.kind.clone(), labels, help })
    };
    families.map(row).collect()
}

/// The section of the page with this heading.
fn written(page: &str, heading: &str) -> Section {
    let text = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}")).1;
    let text = text.split("\n## ").next().unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    rows.map(|row| {
        let [name, kind, labels, help] = row.split(" | ").collect::<Vec<_>>()[..] else { panic!("{row}") };
        let (labels, help) = (Some(labels.replace('`', "").trim().to_owned()), help.to_owned());
        (name.trim_end_matches('`').to_owned(), Row { kind: kind.to_owned(), labels, help })
    })
    .collect()
}

#[tokio::test]
async fn the_page_lists_what_a_pair_exports() {
    let upstream = Upstream::plain("plain").await;
    let world = one_worker(&upstream).await;
    let dead = Reservation::any();
    world.apply(&[("routes/dead", route("app.test", "/dead", &[dead.address()]))]).await;
    let mut connection = world.verified_client("app.test").connect().await.unwrap();
    for path in ["/", "/dead"] {
        connection.get(path).await.unwrap();
    }
    let node = settled(&world).await;
    let control = Exposition::parse(&world.control_status("/metrics").await.text());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE);
    let page = std::fs::read_to_string(path).unwrap_or_default();
    let sections = [
        ("Both programs", section(&node, &control, true)),
        ("Data plane", section(&node, &control, false)),
        ("Control plane", section(&control, &node, false)),
    ];
    let mut differs = false;
    let mut right = String::new();
    for (heading, mut exported) in sections {
        let listed = written(&page, heading);
        for (name, row) in &mut exported {
            if row.labels.is_none() {
                // The page knows more.
                row.labels = Some(listed.get(name).and_then(|row| row.labels.clone()).unwrap_or_default());
            }
        }
        differs |= exported != listed;
        right.push_str(&format!("\n## {heading}\n\n| name | type | labels | meaning |\n|---|---|---|---|\n"));
        for (name, Row { kind, labels, help }) in exported {
            let labels: Vec<_> = labels
                .iter()
                .flat_map(|labels| labels.split(", "))
                .filter(|label| !label.is_empty())
                .collect();
            let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            right.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
        }
    }
    let target = e2e::process::program("dataplane").with_file_name("METRICS.md");
    std::fs::write(&target, right).unwrap();
    assert!(!differs, "{PAGE} is not what a pair exports: {} has the right tables", target.display());
}

/// The reference implementation of the format reads both programs' metrics.
#[tokio::test]
async fn prometheus_own_parser_reads_the_metrics() {
    let Some(python) = crate::api_tools::installed("python") else { return };
    let import = std::process::Command::new(&python).args(["-c", "import prometheus_client"]).output();
    if !import.unwrap().status.success() {
        let skip = "skipped: prometheus_client is not installed: `scripts/setup.sh test` does it\n";
        return std::io::stderr().write_all(skip.as_bytes()).unwrap();
    }
    let upstream = Upstream::plain("plain").await;
    let world = one_worker(&upstream).await;
    world.verified_client("app.test").get("/").await.unwrap();
    let texts = [world.status("/metrics").await.text(), world.control_status("/metrics").await.text()];
    let script = "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse; \
                  print(sum(len(family.samples) for family in parse(sys.stdin.read())))";
    for text in texts {
        let file = world.folder().join("metrics.txt");
        std::fs::write(&file, &text).unwrap();
        let mut command = std::process::Command::new(&python);
        let output =
            command.args(["-c", script]).stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}\n{text}");
        let read: usize = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
        assert_eq!(
            read,
            Exposition::parse(&text).0.values().map(|family| family.samples.len()).sum::<usize>()
        );
    }
}
