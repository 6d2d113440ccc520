//! Every row of the operation table, with every kind of certificate and key: an operation that has
//! no sample here fails the test.

use conf::AdminRole;
use controlplane::testing::admin::{Operation, operations};
use http::{HeaderValue, Method};
use pki::ca::{Authority, IssuedCertificate, LeafSpec};
use serde_json::{Value, json};

use crate::client_roles::world_with_roles;
use crate::world::{KEY, Response, VIEWER, World, exchange, request};

/// A valid request of an operation: path, body, and the status that an admin gets.
struct Sample {
    path: String,
    body: Value,
    status: u16,
}

/// A valid document of a kind.
fn document(kind: &str, world: &World) -> Value {
    match kind {
        "ssls" => {
            let pair = world.pair("a.test");
            json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "sni": "a.test"})
        }
        "upstreams" => json!({"nodes": {"127.0.0.1:1980": 1}}),
        "services" => json!({"upstream": {"nodes": {"127.0.0.1:1980": 1}}}),
        "routes" => json!({"uri": "/a", "upstream": {"nodes": {"127.0.0.1:1980": 1}}}),
        "stream_routes" => json!({"upstream": {"nodes": {"127.0.0.1:1980": 1}}}),
        "plugin_configs" | "global_rules" => json!({"plugins": {"prometheus": {}}}),
        other => panic!("there is no document for {other}"),
    }
}

/// The row with a parameter for what is the same for every kind, and the kind.
fn template(operation: &Operation) -> (String, String) {
    let mut segments: Vec<&str> = operation.path.trim_start_matches('/').split('/').collect();
    let kind = segments[0];
    let documents = model::Kind::ALL.iter().any(|known| known.plural() == kind);
    if documents {
        segments[0] = "{documents}";
    }
    (format!("{} /{}", operation.method, segments.join("/")), kind.to_owned())
}

fn sample(operation: &Operation, world: &World) -> Sample {
    let (row, kind) = template(operation);
    let all = |body, status| Sample { path: operation.path.clone(), body, status };
    let at = |path: &str, body, status| Sample { path: path.to_owned(), body, status };
    let document = || document(&kind, world);
    if operation.is_rejected() {
        let path = operation.path.replace("{id}", "1").replace("{*sub_path}", "desc");
        // What APISIX has switched off; elsewhere only the id is missing or unwanted.
        let switched_off = match operation.method {
            Method::PATCH => kind == "stream_routes",
            Method::POST => ["plugin_configs", "global_rules"].contains(&kind.as_str()),
            _ => false,
        };
        let not_allowed = switched_off || kind == "plugins" || ABSENT.contains(&kind.as_str());
        let status = if not_allowed { 405 } else { 400 };
        return at(&fill(&path), json!({}), status);
    }
    match row.as_str() {
        "GET /{documents}" => all(json!(null), 200),
        "POST /{documents}" => all(document(), 201),
        "PUT /{documents}" => {
            let mut body = document();
            body["id"] = json!("new");
            if kind == "global_rules" {
                // A plugin is in one global rule only.
                body["plugins"] = json!({"datadog": {}});
            }
            all(body, 201)
        }
        "GET /{documents}/{id}" | "DELETE /{documents}/{id}" => at(&format!("/{kind}/1"), json!(null), 200),
        "PUT /{documents}/{id}" => at(&format!("/{kind}/1"), document(), 200),
        "PATCH /{documents}/{id}" => at(&format!("/{kind}/1"), json!({"desc": "patched"}), 200),
        "PATCH /{documents}/{id}/{*sub_path}" => at(&format!("/{kind}/1/desc"), json!("patched"), 200),
        "POST /batch" => {
            let operation =
                json!({"method": "PUT", "path": "/apisix/admin/upstreams/b", "body": {"nodes": {}}});
            all(json!({"operations": [operation]}), 200)
        }
        "GET /schema/{name}" => at("/schema/route", json!(null), 200),
        "GET /schema/plugins/{name}" => at("/schema/plugins/proxy-rewrite", json!(null), 200),
        "POST /schema/validate/{resource}" => {
            at("/schema/validate/upstreams", json!({"nodes": {"127.0.0.1:1": 1}}), 200)
        }
        "GET /plugins" => at("/plugins?all=true", json!(null), 200),
        "GET /plugins/list" | "GET /server_info" | "GET /configs" => all(json!(null), 200),
        "GET /plugins/{name}" => at("/plugins/proxy-rewrite", json!(null), 200),
        "PUT /plugins/reload" => all(json!(null), 200),
        "PUT /configs" => all(json!({}), 202),
        "POST /configs/validate" => all(json!({"routes": []}), 200),
        "GET /dataplanes" | "GET /denied_nodes" | "GET /lint" | "GET /openapi.json" => all(json!(null), 200),
        "POST /dataplanes/accept_store" => all(json!(null), 200),
        "GET /denied_nodes/{id}" | "DELETE /denied_nodes/{id}" => at("/denied_nodes/1", json!(null), 200),
        "PUT /denied_nodes/{id}" => at("/denied_nodes/1", json!({"serial": "01"}), 200),
        "POST /explain" => all(json!({"sni": "a.test", "uri": "/"}), 200),
        _ if ABSENT.contains(&kind.as_str()) => {
            let path = fill(&operation.path);
            let status = match operation.method {
                Method::GET if !operation.path.ends_with('}') => 200,
                Method::GET | Method::DELETE => 404,
                _ => 400,
            };
            at(&path, json!({}), status)
        }
        other => panic!("{other} is a new operation: add its sample here"),
    }
}

const ABSENT: [&str; 5] = ["consumers", "consumer_groups", "protos", "secrets", "plugin_metadata"];

/// Each parameter as a valid segment.
fn fill(path: &str) -> String {
    ["{id}", "{username}", "{manager}", "{name}"]
        .iter()
        .fold(path.to_owned(), |path, name| path.replace(name, "1"))
}

async fn world() -> World {
    let mut builder = world_with_roles();
    builder.streams = true;
    builder.start().await
}

/// Writes what the samples with an id refer to, and removes what they create.
async fn prepare(operation: &Operation, world: &World) {
    let (row, kind) = template(operation);
    if row.contains("/{documents}/{id}") {
        world.put(&format!("/{kind}/1"), document(&kind, world)).await.ok();
    } else if row == "PUT /{documents}" {
        world.delete(&format!("/{kind}/new")).await;
    } else if row.contains("/denied_nodes/{id}") {
        world.put("/denied_nodes/1", json!({"serial": "01"})).await.ok();
    }
}

async fn send(world: &World, sample: &Sample, method: Method, key: Option<&str>) -> Response {
    world.send(Some(&world.identity), ask(sample, method, key)).await
}

fn ask(
    sample: &Sample,
    method: Method,
    key: Option<&str>,
) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    let body = if sample.body.is_null() { "".into() } else { sample.body.clone().into() };
    request(method, &sample.path, key, body)
}

/// The role that a certificate or a key gives; `Err`: it is rejected.
type Given = Result<Option<AdminRole>, ()>;

struct Credentials {
    certificates: Vec<(Option<IssuedCertificate>, Given)>,
    keys: [(Option<&'static str>, Given); 4],
}

impl Credentials {
    fn of(world: &World) -> Self {
        let (viewer, admin) = (Ok(Some(AdminRole::Viewer)), Ok(Some(AdminRole::Admin)));
        let issue = |ca: &Authority, spec: &LeafSpec| Some(ca.issue(spec).unwrap());
        let operator = LeafSpec::client("a").uri("spiffe://test/ops");
        let certificates = vec![
            (None, Err(())),
            (issue(&world.servers, &operator), Err(())),
            (issue(&world.clients, &LeafSpec::client("tester")), Ok(None)),
            (issue(&world.clients, &LeafSpec::client("b").dns("one.ci.test")), viewer),
            (issue(&world.clients, &operator), admin),
        ];
        let keys = [(None, Ok(None)), (Some("wrong"), Err(())), (Some(VIEWER), viewer), (Some(KEY), admin)];
        Self { certificates, keys }
    }
}

/// The `description` of the 401; `None`: the caller has the role.
fn denial(key: Given, certificate: Option<AdminRole>, required: AdminRole) -> Option<&'static str> {
    let Ok(key) = key else { return Some("wrong apikey") };
    match key.max(certificate) {
        None => Some("missing apikey"),
        Some(AdminRole::Viewer) if required == AdminRole::Admin => Some("invalid method for role viewer"),
        Some(_) => None,
    }
}

#[tokio::test]
async fn every_operation_accepts_its_role_alone() {
    let world = world().await;
    let Credentials { certificates, keys } = Credentials::of(&world);
    for operation in operations() {
        let sample = sample(operation, &world);
        prepare(operation, &world).await;
        let mut before = world.store.load().await.unwrap();
        for ((certificate, of_certificate), (key, of_key)) in
            certificates.iter().flat_map(|certificate| keys.iter().map(move |key| (certificate, key)))
        {
            let row = format!("{} {} {of_certificate:?} {key:?}", operation.method, operation.path);
            let mut request = ask(&sample, operation.method.clone(), *key);
            // Only PUT configs reads it, and answers the same one with 204.
            request.headers_mut().insert("x-digest", HeaderValue::from_str(&row.replace('"', "")).unwrap());
            let stream = world.connect(certificate.as_ref()).await.unwrap();
            // Thousands of requests would each wait for a delayed ACK.
            stream.get_ref().0.set_nodelay(true).unwrap();
            let response = exchange(stream, request).await;
            let denied = match of_certificate {
                Err(()) => {
                    assert_eq!(response.status, 400, "{row}");
                    assert!(response.text.contains("<h1>400 Bad Request</h1>"), "{row}: {response:?}");
                    true
                }
                Ok(of_certificate) => match denial(*of_key, *of_certificate, operation.role()) {
                    Some(why) => {
                        let expected = json!({"error_msg": "failed to check token", "description": why});
                        assert_eq!((response.status.as_u16(), response.json()), (401, expected), "{row}");
                        true
                    }
                    None => {
                        assert_eq!(response.status, sample.status, "{row}: {response:?}");
                        false
                    }
                },
            };
            if denied {
                assert_eq!(
                    world.store.load().await.unwrap(),
                    before,
                    "{row}: a denied call changed something"
                );
            } else {
                prepare(operation, &world).await;
                before = world.store.load().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn head_and_options_are_answered_wherever_get_is() {
    let world = world().await;
    for operation in operations() {
        let row = format!("{} {}", operation.method, operation.path);
        prepare(operation, &world).await;
        let sample = sample(operation, &world);
        let options = send(&world, &sample, Method::OPTIONS, None).await;
        assert_eq!((options.status.as_u16(), options.text.as_str()), (200, ""), "{row}");
        if operation.method != Method::GET {
            continue;
        }
        let get = send(&world, &sample, Method::GET, Some(VIEWER)).await;
        let head = send(&world, &sample, Method::HEAD, Some(VIEWER)).await;
        assert_eq!((head.status, head.text.as_str()), (get.status, ""), "{row}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{row}");
        let missing = send(&world, &sample, Method::HEAD, None).await;
        assert_eq!(missing.status, 401, "{row}");
    }
}

#[tokio::test]
async fn a_key_may_be_in_the_query_or_a_cookie() {
    let world = world().await;
    let url = format!("/routes?api_key={VIEWER}");
    assert_eq!(
        world.send(Some(&world.identity), request(Method::HEAD, &url, None, "".into())).await.status,
        200
    );
    let mut cookie = request(Method::GET, "/plugins/list", None, "".into());
    let value = format!("theme=dark; x_api_key={VIEWER}");
    cookie.headers_mut().insert("cookie", HeaderValue::from_str(&value).unwrap());
    world.send(Some(&world.identity), cookie).await.ok();
}
