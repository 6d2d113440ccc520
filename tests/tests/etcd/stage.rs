//! Shared by the suites: routes to one upstream, requests through the gateway, and starts that must
//! fail.

use e2e::etcd::{Access, Etcd, Keys};
use e2e::process::{ExitOutput, run_to_end};
use e2e::upstream::Upstream;
use e2e::world::{World, WorldBuilder};
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// Both default entries of an APISIX's keyring.
pub(crate) const KEYRING: [&str; 2] = ["qeddd145sfvddff3", "edd1c9f0985e76a2"];

/// An etcd, a control plane on it, a data plane and an upstream.
pub(crate) struct Stage {
    pub etcd: Etcd,
    pub world: World,
    pub upstream: Upstream,
}

impl Stage {
    /// With a plain etcd.
    pub(crate) async fn start() -> Self {
        Self::of(Etcd::plain().await).await
    }

    pub(crate) async fn of(etcd: Etcd) -> Self {
        let builder = World::builder().etcd(&etcd);
        Self::with(etcd, builder).await
    }

    pub(crate) async fn with(etcd: Etcd, builder: WorldBuilder) -> Self {
        Self { etcd, world: builder.start().await, upstream: Upstream::plain("one").await }
    }

    /// Writes a document into etcd, and waits until the data plane has it.
    pub(crate) async fn etcd_put(&self, path: &str, document: &Value) -> u64 {
        self.etcd_put_text(path, document.to_string()).await
    }

    /// The same with any value.
    pub(crate) async fn etcd_put_text(&self, path: &str, value: impl Into<Vec<u8>>) -> u64 {
        let revision = self.etcd.keys().await.put(&name(path), value).await;
        self.world.wait_acknowledged(revision).await;
        revision
    }

    /// The value of a document in etcd, as JSON.
    pub(crate) async fn etcd_get(&self, path: &str) -> Value {
        entry(&mut self.etcd.keys().await, path).await
    }

    /// A route for `uri` on every host.
    pub(crate) fn route(&self, uri: &str) -> Value {
        route(&self.upstream, uri)
    }

    /// The status of a plain HTTP request to `app.test`.
    pub(crate) async fn status(&self, path: &str) -> StatusCode {
        status(&self.world, "app.test", path).await
    }
}

/// The key of a document.
pub(crate) fn name(path: &str) -> String {
    format!("/apisix/{path}")
}

/// The value of a document in etcd, as JSON.
pub(crate) async fn entry(keys: &mut Keys, path: &str) -> Value {
    keys.get(&name(path)).await.unwrap_or_else(|| panic!("etcd has no {path}")).json()
}

/// A route for `uri` on every host.
pub(crate) fn route(upstream: &Upstream, uri: &str) -> Value {
    json!({"uri": uri, "upstream": {"nodes": {upstream.address().to_string(): 1}}})
}

/// The same, with the number in the host at the upstream.
pub(crate) fn numbered(upstream: &Upstream, uri: &str, number: u64) -> Value {
    let mut route = route(upstream, uri);
    route["upstream"]["pass_host"] = json!("rewrite");
    route["upstream"]["upstream_host"] = json!(format!("v{number}"));
    route
}

/// The status of a plain HTTP request.
pub(crate) async fn status(world: &World, host: &str, path: &str) -> StatusCode {
    let reply = world.plain(host).await.get(path).await.unwrap_or_else(|error| panic!("{error}"));
    reply.status
}

/// Starts a control plane that must end with status 1; gives its output.
pub(crate) async fn refused_start(access: impl Into<Access>, more: Value) -> ExitOutput {
    let builder =
        World::builder().etcd(access).settings(json!({"deployment": {"etcd": {"startup_retry": 1}}}));
    let world = builder.settings(more).without_control().nodes(&[]).start().await;
    let config = world.write_config("control");
    let ended = run_to_end("controlplane", &["-c", config.to_str().expect("text")], world.folder()).await;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(!ended.stdout.contains("ready"), "{ended:?}");
    ended
}

#[track_caller]
pub(crate) fn assert_reported(ended: &ExitOutput, words: &[&str]) {
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not in:\n{}", ended.stderr);
    }
}

/// A write through the Admin API that may fail: its status and body.
pub(crate) async fn attempt(
    world: &World,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> (StatusCode, String) {
    let answer = world.admin().call(method, path, body).await.unwrap_or_else(|error| panic!("{error}"));
    (answer.status, answer.reply.text())
}

/// The finding of lint about one resource or directory.
pub(crate) async fn linted(stage: &Stage, resource: &str) -> Value {
    let answer = stage.world.admin().get("lint").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let list = answer.body["list"].as_array().unwrap();
    let about = |finding: &&Value| {
        finding["resource"] == resource
            || finding["message"].as_str().is_some_and(|what| what.contains(resource))
    };
    list.iter()
        .find(about)
        .unwrap_or_else(|| panic!("lint says nothing about {resource}: {:#}", answer.body))
        .clone()
}
