//! The audit log: one line for every write, and no secret anywhere in the log.

use std::io::Write;
use std::sync::{Arc, Mutex};

use http::Method;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use crate::world::{KEY, VIEWER, World, request};

/// Captures the log of this thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Installs the capture for this thread.
    pub(crate) fn capture(&self) -> (tracing::Dispatch, tracing::subscriber::DefaultGuard) {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(self.clone())
            .finish();
        // With two dispatchers, tracing evaluates a callsite's interest for each line; with one, it
        // caches the interest of the thread that reaches the line first, which may run another
        // test.
        (tracing::Dispatch::new(tracing_subscriber::registry()), tracing::subscriber::set_default(subscriber))
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn every_write_leaves_one_line_and_no_secret() {
    let log = Log::default();
    let _guard = log.capture();

    let world = World::start().await;
    let pair = world.pair("test.com");
    let document = json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "sni": "test.com"});
    let revision = world.put("/ssls/1", document.clone()).await.ok().revision();
    let mut refused = document;
    refused["status"] = json!("confidential");
    world.put("/ssls/1", refused).await;
    world.call(Method::PUT, "/ssls/1", "{\"confidential").await;
    world.patch("/ssls/1/labels", json!({"a": "confidential"})).await.ok();
    world.get(&format!("/ssls/1?api_key={KEY}")).await.ok();
    world.delete(&format!("/ssls/1?api_key={KEY}")).await.ok();
    world.delete("/ssls/1\u{25}0aforged").await;
    // An unauthorized write leaves a warning and no audit line.
    world.send(Some(&world.identity), request(Method::DELETE, "/ssls/1", Some(VIEWER), "".into())).await;

    let log = log.text();
    let lines: Vec<_> = log.lines().filter(|line| line.contains(" audit: ")).collect();
    let has_all = |line: &str, parts: &[&str]| parts.iter().all(|part| line.contains(part));
    assert_eq!(lines.len(), 6, "{log}");
    for line in &lines {
        assert!(has_all(line, &["key=\"admin\"", "certificate=\"CN=tester\"", "peer=127.0.0.1:"]), "{line}");
    }
    let revision = format!("revision={revision}");
    assert!(
        has_all(lines[0], &["method=PUT", "resource=\"ssls/1\"", "status=201", &revision]),
        "{}",
        lines[0]
    );
    assert!(has_all(lines[1], &["status=400"]) && !lines[1].contains("revision"), "{}", lines[1]);
    assert!(has_all(lines[2], &["status=400"]), "{}", lines[2]);
    assert!(has_all(lines[3], &["method=PATCH", "resource=\"ssls/1/labels\"", "status=200"]), "{}", lines[3]);
    assert!(has_all(lines[4], &["method=DELETE", "status=200"]), "{}", lines[4]);
    assert!(has_all(lines[5], &["status=404", "resource=\"ssls/1\\nforged\""]), "{}", lines[5]);
    assert!(log.contains("failed to check token: invalid method for role viewer"), "{log}");
    for secret in [KEY, VIEWER, "PRIVATE KEY", "confidential", &pair.key_pem[40..80]] {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
    }
}

#[tokio::test]
async fn a_batch_leaves_a_line_for_each_operation() {
    let log = Log::default();
    let _guard = log.capture();
    let world = World::start().await;
    let put = |id: &str| {
        let path = format!("/apisix/admin/upstreams/{id}");
        json!({"method": "PUT", "path": path, "body": {"nodes": {}}})
    };
    world.post("/batch", json!({"operations": [put("1"), put("2")]})).await.ok();
    world.post("/batch?dry_run=true", json!({"operations": [put("3")]})).await.ok();
    // What reaches no commit has one line for the whole.
    world.post("/batch", json!([])).await;
    world.call(Method::POST, "/batch", "{").await;
    world.put("/configs", json!({})).await;
    let digest = ("x-digest", "one");
    world
        .call_with(digest, Method::PUT, "/configs", "{\"upstreams\": [{\"id\": \"1\", \"nodes\": {}}]}")
        .await;
    world.call_with(digest, Method::PUT, "/configs", "{}").await;
    let same = "{\"upstreams\": [{\"id\": \"1\", \"nodes\": {}}]}";
    world.call_with(("x-digest", "two"), Method::PUT, "/configs", same).await;
    let text = log.text();
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(" audit: ")).collect();
    let expected: [&[&str]; 9] = [
        &["method=PUT", "resource=\"upstreams/1\"", "status=201", "revision="],
        &["method=PUT", "resource=\"upstreams/2\"", "status=201", "revision="],
        &["resource=\"upstreams/3\"", "status=200", "dry_run=true"],
        &["method=POST", "resource=\"batch\"", "status=400"],
        &["method=POST", "resource=\"batch\"", "status=400"],
        &["method=PUT", "resource=\"configs\"", "status=400"],
        &["method=DELETE", "resource=\"upstreams/2\"", "status=200", "revision="],
        &["method=PUT", "resource=\"configs\"", "status=204"],
        // Nothing differs, but the digest is stored.
        &["method=PUT", "resource=\"configs\"", "status=202"],
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for ((_, line), parts) in lines.iter().zip(expected) {
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?}: {line}");
    }
}

/// A write that is denied before its handler leaves its line, too; a read leaves none.
#[tokio::test]
async fn a_denied_write_leaves_its_line() {
    let log = Log::default();
    let _guard = log.capture();
    let world = World::start().await;
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(world.call(method, "/stream_routes/1", "").await.status, 400);
    }
    let open = crate::world::Builder { keys: false, ..World::builder() }.start().await;
    for (method, path) in [(Method::POST, "/configs/validate"), (Method::PUT, "/upstreams/1")] {
        let denied = open.call_with(("sec-fetch-site", "cross-site"), method, path, "{}").await;
        assert_eq!(denied.status, 403);
    }
    let text = log.text();
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(" audit: ")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    for ((_, line), parts) in lines.iter().zip([
        ["method=DELETE", "resource=\"stream_routes/1\"", "status=400"],
        ["method=PUT", "resource=\"upstreams/1\"", "status=403"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?}: {line}");
    }
}
