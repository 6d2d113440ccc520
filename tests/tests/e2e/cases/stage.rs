//! Shared set-up of the cases: a world with one upstream and the fixtures as files, curl like in
//! the originals, and `openssl s_client`.
//!
//! Helpers wait only for responses and acknowledged revisions.

use e2e::client::bounded;
use e2e::credentials::Credential;
use e2e::fixtures::FIXTURES;
use e2e::tools;
use e2e::tools::{CurlOutput, curl};
use e2e::upstream::Upstream;
use e2e::world::{World, WorldBuilder};
use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

/// A running installation with the files of a case.
pub(super) struct Stage {
    pub world: World,
    pub upstream: Upstream,
}

impl Stage {
    pub(super) async fn start() -> Self {
        Self::of(World::builder()).await
    }

    /// With a route for every path and host to the upstream.
    pub(super) async fn of(builder: WorldBuilder) -> Self {
        let stage = Self { world: builder.start().await, upstream: Upstream::plain("1980").await };
        let fixtures = &*FIXTURES;
        stage.world.write("mtls_ca.crt", &fixtures.mtls_ca);
        for (name, credential) in [
            ("mtls_client", &fixtures.mtls_client),
            ("tutorial", &fixtures.tutorial_client),
            ("apisix", &fixtures.apisix),
            ("test2", &fixtures.test2),
            ("apisix_ecc", &fixtures.apisix_ecc),
        ] {
            stage.world.write_credential(name, credential);
        }
        let nodes = json!({stage.upstream.address().to_string(): 1});
        stage.put("routes/all", json!({"uri": "/*", "upstream": {"nodes": nodes}})).await;
        stage
    }

    /// PUT, then waits until the data plane serves it.
    pub(super) async fn put(&self, path: &str, document: Value) {
        self.world.apply(&[(path, document)]).await;
    }

    /// PATCH, then waits until the data plane serves it.
    pub(super) async fn patch(&self, path: &str, change: Value) {
        let revision = self.world.admin().write(Method::PATCH, path, Some(&change)).await;
        self.world.wait_acknowledged(revision).await;
    }

    /// DELETE, then waits until the data plane has applied it.
    pub(super) async fn delete(&self, path: &str) {
        let revision = self.world.admin().delete(path).await;
        self.world.wait_acknowledged(revision).await;
    }

    /// Restarts the control plane with the current settings and environment and waits for the data
    /// plane.
    pub(super) async fn restart_control(&mut self) {
        self.world.stop_control().await;
        self.world.start_control().await;
        let fleet = self.world.admin().get("dataplanes").await;
        self.world
            .wait_acknowledged(fleet.body["revision"].as_u64().expect("the store has a revision"))
            .await;
    }

    /// A PUT that must be answered 400; returns its `error_msg`.
    pub(super) async fn refused(&self, path: &str, document: Value) -> String {
        let answer = self.world.admin().call(Method::PUT, path, Some(&document)).await;
        let answer = answer.unwrap_or_else(|error| panic!("PUT {path}: {error}"));
        assert_eq!(answer.status, 400, "{answer:?}");
        answer.body["error_msg"].as_str().unwrap_or_else(|| panic!("no error_msg: {answer:?}")).to_owned()
    }

    /// `curl -k https://NAME:PORT/PATH ARGUMENTS`, in the folder of the fixtures.
    pub(super) async fn curl(&self, name: &str, path: &str, arguments: &[&str]) -> CurlOutput {
        let port = self.world.https().port();
        let (resolve, url) = (format!("{name}:{port}:127.0.0.1"), format!("https://{name}:{port}{path}"));
        let given = ["-k", "--resolve", &resolve, &url];
        curl(self.world.folder(), &[&given[..], arguments].concat()).await
    }

    /// The same over plain HTTP.
    pub(super) async fn plain(&self, name: &str, path: &str) -> CurlOutput {
        let port = self.world.http().port();
        let (resolve, url) = (format!("{name}:{port}:127.0.0.1"), format!("http://{name}:{port}{path}"));
        curl(self.world.folder(), &["--resolve", &resolve, &url]).await
    }

    /// A handshake by `openssl s_client`, with one request unless `request` is empty. Returns its
    /// output.
    pub(super) async fn s_client(&self, arguments: &[&str], request: &str) -> String {
        let waiting: &[&str] = if request.is_empty() { &[] } else { &["-ign_eof"] };
        let mut child =
            tools::s_client(self.world.https(), self.world.folder(), &[arguments, waiting].concat());
        let mut stdin = child.stdin.take().expect("a pipe");
        // A rejected handshake may have ended the process already.
        let _ = stdin.write_all(request.as_bytes()).await;
        drop(stdin);
        let output =
            bounded("openssl s_client", child.wait_with_output()).await.expect("it can be waited for");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Whether the handshake of `s_client` succeeded, and its output.
    pub(super) async fn shakes(&self, arguments: &[&str]) -> (bool, String) {
        let text = self.s_client(arguments, "").await;
        // s_client prints the cipher that the server chose even if the handshake fails later.
        let agreed = text.contains("\nNew, TLSv1") && !text.contains("Cipher is (NONE)");
        (agreed && !text.contains("SSL alert number"), text)
    }
}

/// `{cert, key, sni}` of a fixture.
pub(super) fn ssl(credential: &Credential, name: &str) -> Value {
    json!({"cert": credential.certificate_pem, "key": credential.key_pem, "sni": name})
}

/// The same with `client.ca` and `client.depth` 2.
pub(super) fn ssl_for(credential: &Credential, name: &str, ca: &str) -> Value {
    with(ssl(credential, name), json!({"client": {"ca": ca, "depth": 2}}))
}

/// A document with some members set.
pub(super) fn with(mut document: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("members") {
        document[name] = value.clone();
    }
    document
}

/// Asserts that the upstream answered this path.
#[track_caller]
pub(super) fn served(answered: &CurlOutput, path: &str) {
    assert_eq!((answered.exit, answered.status), (0, 200), "{answered:?}");
    assert!(answered.body.contains(&format!("\"uri\":\"{path}\"")), "{answered:?}");
}

/// Asserts that the gateway answered with its error page, without the reason.
#[track_caller]
pub(super) fn page(answered: &CurlOutput, status: u16) {
    assert_eq!((answered.exit, answered.status), (0, status), "{answered:?}");
    assert!(answered.body.contains(&format!("<h1>{status} ")), "{answered:?}");
}

/// Asserts that the handshake was rejected, without any HTTP.
#[track_caller]
pub(super) fn no_handshake(answered: &CurlOutput) {
    assert!(answered.exit != 0 && answered.status == 0, "{answered:?}");
}
