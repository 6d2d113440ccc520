//! What the suites share: routes to one upstream, what a client of the gateway gets, and starts that must fail.

use e2e::etcd::{Access, Etcd, Keys};
use e2e::process::{Ended, run_to_end};
use e2e::upstream::Upstream;
use e2e::world::{World, WorldBuilder};
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// What an APISIX makes its documents readable by; both of its default entries.
pub const KEYRING: [&str; 2] = ["qeddd145sfvddff3", "edd1c9f0985e76a2"];

/// An etcd of its own, a control plane on it, a data plane and an upstream.
pub struct Stage {
    pub etcd: Etcd,
    pub world: World,
    pub upstream: Upstream,
}

impl Stage {
    /// With an etcd that asks for nothing.
    pub async fn start() -> Self {
        Self::of(Etcd::plain().await).await
    }

    /// With this etcd.
    pub async fn of(etcd: Etcd) -> Self {
        let builder = World::builder().etcd(&etcd);
        Self::with(etcd, builder).await
    }

    /// With this etcd and world.
    pub async fn with(etcd: Etcd, builder: WorldBuilder) -> Self {
        Self { etcd, world: builder.start().await, upstream: Upstream::plain("one").await }
    }

    /// Writes a document straight into etcd, and waits until the data plane has taken notice.
    pub async fn etcd_put(&self, path: &str, document: &Value) -> u64 {
        self.etcd_put_text(path, document.to_string()).await
    }

    /// The same with a value that may be anything.
    pub async fn etcd_put_text(&self, path: &str, value: impl Into<Vec<u8>>) -> u64 {
        let revision = self.etcd.keys().await.put(&name(path), value).await;
        self.world.settled(revision).await;
        revision
    }

    /// What etcd has under this path, as JSON.
    pub async fn etcd_get(&self, path: &str) -> Value {
        entry(&mut self.etcd.keys().await, path).await
    }

    /// A route document for `uri` on every host.
    pub fn route(&self, uri: &str) -> Value {
        route(&self.upstream, uri)
    }

    /// Status of a request in plain HTTP to `app.test`.
    pub async fn status(&self, path: &str) -> StatusCode {
        status(&self.world, "app.test", path).await
    }
}

/// The key of a document.
pub fn name(path: &str) -> String {
    format!("/apisix/{path}")
}

/// What etcd has under this path, as JSON.
pub async fn entry(keys: &mut Keys, path: &str) -> Value {
    keys.get(&name(path)).await.unwrap_or_else(|| panic!("etcd has no {path}")).json()
}

/// A route document for `uri` on every host.
pub fn route(upstream: &Upstream, uri: &str) -> Value {
    json!({"uri": uri, "upstream": {"nodes": {upstream.address().to_string(): 1}}})
}

/// The same, whose upstream hears the number as its host.
pub fn numbered(upstream: &Upstream, uri: &str, number: u64) -> Value {
    let mut route = route(upstream, uri);
    route["upstream"]["pass_host"] = json!("rewrite");
    route["upstream"]["upstream_host"] = json!(format!("v{number}"));
    route
}

/// Status of a request in plain HTTP.
pub async fn status(world: &World, host: &str, path: &str) -> StatusCode {
    let reply = world.plain(host).await.get(path).await.unwrap_or_else(|refused| panic!("{refused}"));
    reply.status
}

/// What a control plane says that must not start: it runs with these settings, and ends with 1.
pub async fn refused_start(access: impl Into<Access>, more: Value) -> Ended {
    let builder =
        World::builder().etcd(access).settings(json!({"deployment": {"etcd": {"startup_retry": 1}}}));
    let world = builder.settings(more).without_control().nodes(&[]).start().await;
    let config = world.write_config("control");
    let ended = run_to_end("controlplane", &["-c", config.to_str().expect("text")], world.folder()).await;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(!ended.stdout.contains("ready"), "{ended:?}");
    ended
}

/// It said every one of these.
#[track_caller]
pub fn assert_said(ended: &Ended, words: &[&str]) {
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not in:\n{}", ended.stderr);
    }
}

/// A write through the Admin API that may fail: its status and what was said.
pub async fn attempt(
    world: &World,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> (StatusCode, String) {
    let answer = world.admin().call(method, path, body).await.unwrap_or_else(|refused| panic!("{refused}"));
    (answer.status, answer.reply.text())
}

/// What lint lists about one resource, or directory.
pub async fn linted(stage: &Stage, resource: &str) -> Value {
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
