//! The commands of APISIX's pages as users copy them, run by a shell with the system's curl.
//!
//! Host, port, key and paths are shell variables; nothing else is changed. The Admin API uses plain
//! HTTP here, as on the pages; `readme` runs the README's commands over mutual TLS. Left out are
//! subjects that do not exist here: the `yq` line that reads the admin key, consumers, credentials,
//! consumer groups, global rules, plugin configs, plugin metadata and protos, secrets, the list of
//! plugins, `docker` and `mysql`, UDP and the PROXY protocol, `apisix` and `goreman`.

mod admin_api;
mod certificate;
mod mtls;
mod ssl_protocol;
mod stream_proxy;

use e2e::admin::ADMIN_KEY;
use e2e::client::{HttpConnection, full};
use e2e::shell::{Shell, ShellOutput};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::Method;
use serde_json::{Value, json};

/// A command and its expected result.
struct Step {
    run: &'static str,
    /// The HTTP status of the last response; 0: the handshake was rejected.
    status: u16,
    /// A part of its output.
    says: &'static str,
}

const fn step(status: u16, says: &'static str, run: &'static str) -> Step {
    Step { run, status, says }
}

/// A pair with the Admin API of the pages: `$admin` for `127.0.0.1:9180`, `$https` and `$http` for
/// 9443 and 9080, `$httpbin` for an upstream, `$admin_key`, and the certificates in `$certs`.
struct Page {
    world: World,
    upstream: Upstream,
    shell: Shell,
}

impl Page {
    async fn open(settings: Value) -> Self {
        let mut all = json!({"deployment": {"admin": {"https_admin": false}}});
        e2e::settings::merge(&mut all, settings);
        let world = World::builder().settings(all).start().await;
        let upstream = Upstream::plain("httpbin").await;
        let shell = Shell::new(world.folder())
            .set("admin", world.admin_address())
            .set("admin_key", ADMIN_KEY)
            .set("https", world.https().port())
            .set("http", world.http().port())
            .set("httpbin", upstream.address())
            .set("certs", world.folder().display());
        Self { world, upstream, shell }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.shell = self.shell.set(name, value);
        self
    }

    /// Runs the commands in turn. One that does not use the Admin API waits first until the data
    /// plane serves everything written.
    async fn follow(&self, steps: &[Step]) {
        for step in steps {
            if !step.run.contains("apisix/admin") {
                self.wait_acknowledged().await;
            }
            let output = self.shell.run(step.run).await;
            assert_eq!(output.status(), step.status, "{}\n{output:?}", step.run);
            assert!(output.out.contains(step.says), "{}\n{output:?}\nexpected {}", step.run, step.says);
            if step.status == 0 {
                assert_refused(&output, step.run);
            }
        }
    }

    async fn admin(&self, path: &str) -> Value {
        let mut session = HttpConnection::plain(self.world.admin_address(), "127.0.0.1").await.unwrap();
        let mut request = session.request(Method::GET, &format!("/apisix/admin/{path}"), full(""));
        request.headers_mut().insert("x-api-key", ADMIN_KEY.parse().unwrap());
        session.fetch(request).await.unwrap().json()
    }

    async fn wait_acknowledged(&self) {
        // The list of data planes may lag behind the store, which serves the documents.
        let mut revision = Some(0);
        for kind in ["ssls", "routes", "upstreams", "services", "stream_routes"] {
            let listed = self.admin(kind).await;
            let items = listed["list"].as_array().into_iter().flatten();
            revision = revision.max(items.filter_map(|item| item["modifiedIndex"].as_u64()).max());
        }
        let revision = revision.unwrap_or_default();
        let fleet = self.admin(&format!("dataplanes?acknowledged={revision}&timeout=30")).await;
        assert!(fleet["list"][0]["acknowledged"].as_u64() >= Some(revision), "{fleet}");
    }

    /// The stored value of a document, without its times.
    async fn value(&self, path: &str) -> Value {
        let mut value = self.admin(path).await["value"].take();
        for time in ["create_time", "update_time"] {
            value.as_object_mut().unwrap().remove(time);
        }
        value
    }
}

/// A connection that failed for another reason is no rejection.
fn assert_refused(output: &ShellOutput, command: &str) {
    let alert = output.err.contains("alert") || output.err.contains("SSL") || output.err.contains("TLS");
    assert!(output.exit != 0 && alert, "{command}\n{output:?}");
}
