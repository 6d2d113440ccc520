//! Private keys in the wrong members: no response and no log line repeats one, whatever the error.

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use pki::ca::CrlSpec;
use serde_json::{Value, json};

use crate::audit::Log;
use crate::world::{KEY, Response, World, request};

/// Texts that a user may paste for a key, and whether the text is recognizable as one.
fn forms(key: &str) -> Vec<(String, bool)> {
    let body: String = key.lines().filter(|line| !line.starts_with('-')).collect();
    let half = key.len() / 2;
    vec![
        (key.to_owned(), true),
        (format!("\n{}\r\n", key.replace('\n', "\r\n")), true),
        (key.replace("PRIVATE", "ENCRYPTED PRIVATE").replace('\n', "\\n"), true),
        // Truncated at the end, and at the beginning.
        (key[..half].to_owned(), true),
        (key[half..].to_owned(), true),
        // A line of its base64.
        (body[..64].to_owned(), false),
    ]
}

/// Pieces of the key, 12 characters each.
fn pieces(key: &str) -> Vec<&str> {
    let lines = key.lines().filter(|line| !line.starts_with('-'));
    lines.flat_map(|line| (0..line.len() / 12).map(move |at| &line[at * 12..][..12])).collect()
}

fn documents(world: &World) -> Vec<(&'static str, Value)> {
    let pair = world.pair("test.com");
    let upstream = json!({
        "nodes": [{"host": "127.0.0.1", "port": 1980, "weight": 1}], "scheme": "https", "pass_host": "rewrite",
        "upstream_host": "up.test", "timeout": {"connect": 1, "send": 1, "read": 1},
        "tls": {"client_cert": pair.certificate_pem, "client_key": &*pair.key_pem},
    });
    let route = json!({
        "uris": ["/"], "hosts": ["a.test"], "methods": ["GET"], "remote_addrs": ["10.0.0.1"], "upstream": upstream,
        "vars": [["arg_a", "==", "b"]], "plugins": {"proxy-rewrite": {"headers": {"set": {"X-A": "$uri"}}}},
        "client_identity": {"allow": [{"dns": "a.test"}], "forward": ["xfcc"]}, "labels": {"a": "b"},
    });
    let ssl = json!({
        "cert": pair.certificate_pem, "key": &*pair.key_pem, "snis": ["test.com"], "type": "server", "desc": "d",
        "certs": [pair.certificate_pem], "keys": [&*pair.key_pem], "ssl_protocols": ["TLSv1.3"],
        "client": {"ca": world.clients.certificate_pem(), "skip_mtls_uri_regex": ["^/a$"],
            "crl": [world.clients.crl_pem(&CrlSpec::new()).unwrap()], "crl_policy": "prefer"},
    });
    vec![
        ("ssls", ssl),
        ("upstreams", upstream.clone()),
        ("services", json!({"upstream": upstream, "hosts": ["a.test"], "name": "n"})),
        ("routes", route),
        ("stream_routes", json!({"sni": "a.test", "upstream": upstream, "remote_addr": "10.0.0.0/8"})),
    ]
}

/// The document with `text` in every position: as a value, as a further member, as a member's name.
fn misplaced(document: &Value, text: &str) -> Vec<Value> {
    fn places(value: &Value, here: &str, found: &mut Vec<String>) {
        found.push(here.to_owned());
        match value {
            Value::Object(members) => {
                members.iter().for_each(|(name, inner)| places(inner, &format!("{here}/{name}"), found));
            }
            Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(at, inner)| places(inner, &format!("{here}/{at}"), found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    places(document, "", &mut found);
    let mut all = Vec::new();
    for place in found {
        let with = |value: Value| {
            let mut changed = document.clone();
            *changed.pointer_mut(&place).unwrap() = value;
            changed
        };
        all.push(with(json!(text)));
        all.push(with(json!([text, text])));
        if let Some(Value::Object(members)) = document.pointer(&place) {
            for (name, value) in [("unknown", json!(text)), (text, json!(1)), (text, json!("x"))] {
                let mut members = members.clone();
                members.insert(name.to_owned(), value);
                all.push(with(Value::Object(members)));
            }
        }
    }
    all
}

/// One connection for many calls.
struct KeptConnection(SendRequest<Full<Bytes>>);

impl KeptConnection {
    async fn connect(world: &World) -> Self {
        let stream = world.connect(Some(&world.identity)).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn call(&mut self, method: Method, path: &str, body: impl ToString) -> Response {
        self.0.ready().await.unwrap();
        let response =
            self.0.send_request(request(method, path, Some(KEY), body.to_string().into())).await.unwrap();
        let (head, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Response { status: head.status, headers: head.headers, text }
    }
}

#[tokio::test]
async fn no_response_and_no_log_line_repeats_a_key() {
    let log = Log::default();
    let _guard = log.capture();
    let mut builder = World::builder();
    builder.streams = true;
    let world = builder.start().await;
    let key = world.pair("secret.test").key_pem.to_string();
    let pieces = pieces(&key);
    let leak =
        |text: &str| pieces.iter().find(|piece| text.contains(**piece)).map(|piece| (*piece).to_owned());
    let (mut refused, mut accepted) = (0, 0);
    let mut connection = KeptConnection::connect(&world).await;
    for (kind, document) in documents(&world) {
        connection.call(Method::PUT, &format!("/{kind}/good"), &document).await.ok();
        for (index, (text, recognizable)) in forms(&key).into_iter().enumerate() {
            for body in misplaced(&document, &text) {
                let mut responses = vec![connection.call(Method::PUT, &format!("/{kind}/x"), &body).await];
                // The other methods share all but their first step.
                if index == 0 {
                    responses.push(connection.call(Method::PATCH, &format!("/{kind}/good"), &body).await);
                    responses.push(
                        connection.call(Method::POST, &format!("/schema/validate/{kind}"), &body).await,
                    );
                }
                for response in responses {
                    let counted = if response.status.is_success() { &mut accepted } else { &mut refused };
                    *counted += 1;
                    // A text that is not recognizable as a key is kept in free-text members.
                    let kept = response.status.is_success() && !recognizable;
                    assert!(kept || leak(&response.text).is_none(), "{kind} {body} {response:?}");
                }
            }
        }
    }
    assert!(refused > 1000 && accepted > 30, "{refused} {accepted}");
    let log = log.text();
    assert!(log.contains("status=400"), "{log}");
    let leaking: Vec<&str> = log.lines().filter(|line| leak(line).is_some()).collect();
    assert_eq!(leaking, [""; 0]);
}

#[tokio::test]
async fn no_body_that_is_not_json_is_repeated() {
    let world = World::start().await;
    let key = world.pair("secret.test").key_pem.to_string();
    let pasted = format!("{{\"cert\": \"x\", \"key\": \"{key}\", \"snis\": [\"a.test\"]}}");
    let mut bodies: Vec<String> = (1..pasted.len()).step_by(13).map(|end| pasted[..end].to_owned()).collect();
    bodies.extend([
        format!("{pasted}}}"),
        format!("{key}{pasted}"),
        format!("{{{pasted}"),
        pasted.replace(": \"x\"", ": x"),
        pasted.replace("\"key\"", "key"),
        pasted.replace("}", ", \"key\": 1}"),
        pasted.replace("\"key\": ", "\"key\": \"\\x"),
        format!("{{\"{key}\": 1, \"{key}\": 1}}"),
        format!("key={key}"),
    ]);
    let mut connection = KeptConnection::connect(&world).await;
    for body in bodies {
        for path in ["/ssls/1", "/explain", "/schema/validate/ssls"] {
            let method = if path == "/ssls/1" { Method::PUT } else { Method::POST };
            let response = connection.call(method, path, &body).await;
            let error = response.json();
            assert_eq!(response.status, 400, "{body} {response:?}");
            assert!(error["error_msg"].as_str().unwrap().starts_with("invalid request body: "), "{error}");
            assert!(!pieces(&key).iter().any(|piece| response.text.contains(piece)), "{response:?}");
        }
    }
}

#[tokio::test]
async fn explain_rejects_a_private_key_without_repeating_it() {
    let world = World::start().await;
    let key = world.pair("secret.test").key_pem.to_string();
    let mut connection = KeptConnection::connect(&world).await;
    for (text, recognizable) in forms(&key) {
        for name in ["sni", "host", "uri", "method", "remote_addr", "client_cert"] {
            let response = connection.call(Method::POST, "/explain", json!({ name: text })).await;
            // A line of base64 is a valid name or method.
            assert!(!recognizable || response.status == 400, "{name} {text} {response:?}");
            let repeated = pieces(&key).iter().any(|piece| response.text.contains(piece));
            assert!(response.status.is_success() || !repeated, "{name} {text} {response:?}");
        }
    }
}

#[tokio::test]
async fn without_a_keyring_no_write_repeats_the_key() {
    let mut builder = World::builder();
    builder.keyring = Vec::new();
    builder.streams = true;
    let world = builder.start().await;
    for (kind, document) in documents(&world) {
        let whole = document.to_string();
        for (method, path) in [
            (Method::PUT, format!("/{kind}/x")),
            (Method::PATCH, format!("/{kind}/x")),
            (Method::POST, format!("/{kind}")),
        ] {
            if method == Method::PATCH && kind == "stream_routes" {
                continue;
            }
            let response = world.call(method, &path, whole.as_str()).await.ok();
            assert!(!response.text.contains("PRIVATE KEY"), "{path} {response:?}");
            assert!(response.text.contains("BEGIN CERTIFICATE"), "{path} {response:?}");
        }
    }
}

#[tokio::test]
async fn line_breaks_in_a_pasted_pem_are_accepted() {
    let world = World::start().await;
    let pair = world.pair("test.com");
    let pasted = format!(
        "{{\n\t\"cert\" : \"{}\",\r\n \"key\": \"{}\", \"snis\": [\"test.com\"],\n\"client\": {{\"ca\": \"{}\", \"depth\": 10}}}}",
        pair.certificate_pem,
        &*pair.key_pem,
        world.clients.certificate_pem().replace('\n', "\r\n"),
    );
    let created = world.call(Method::PUT, "/ssls/1", pasted.as_str()).await.ok().json();
    assert_eq!(created["value"]["cert"], pair.certificate_pem);
    assert_eq!(&*world.keyring.open(created["value"]["key"].as_str().unwrap()).unwrap(), &*pair.key_pem);
    let question = format!("{{\"sni\": \"test.com\", \"client_cert\": \"{}\"}}", world.identity.chain_pem);
    world.call(Method::POST, "/explain", question.as_str()).await.ok();
    // A part of the document as one text.
    let part = format!("\"{}\"", pair.certificate_pem);
    world.call(Method::PATCH, "/ssls/1/cert", part.as_str()).await.ok();
    let nul = pasted.replace("test.com", "test\u{0}.com");
    let refused = world.call(Method::PUT, "/ssls/1", nul.as_str()).await;
    assert!(refused.json()["error_msg"].as_str().unwrap().contains("control character"), "{refused:?}");
    let twice = pasted.replacen("\"cert\" :", "\"snis\": [\"*\"], \"cert\" :", 1);
    let refused = world.call(Method::PUT, "/ssls/1", twice.as_str()).await;
    let error = refused.json()["error_msg"].as_str().unwrap().to_owned();
    assert!(
        error.starts_with("invalid request body: the member \"snis\" occurs twice in one object at line "),
        "{error}"
    );
}

#[tokio::test]
async fn a_key_behind_a_certificate_is_rejected() {
    let world = World::start().await;
    let pair = world.pair("test.com");
    let both = format!("{}{}", pair.certificate_pem, &*pair.key_pem);
    let response =
        world.put("/ssls/1", json!({"cert": both, "key": &*pair.key_pem, "sni": "test.com"})).await;
    response.assert_error("invalid configuration: property \"cert\": the text holds a private key");
    assert_eq!(response.json()["field"], "cert");
}
