//! Programs of others against the Admin API, on a plain loopback listener: a validator of OpenAPI
//! documents, schemathesis, and apisix-client.
//!
//! `scripts/setup.sh test` installs them into `target/python`; where it could not, the tests report
//! that they were skipped.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use e2e::admin::ADMIN_KEY;
use e2e::world::World;
use serde_json::json;
use tokio::process::Command;

/// Checks of schemathesis that contradict the contract:
/// - `unsupported_method` wants 405 for a method that is not in the document; APISIX has 404 for it
///   (contract 2.2 (3)).
/// - `positive_data_acceptance` wants 2xx for what fits the schema; certificates, keys, references
///   and expressions are checked beyond it (contract 4.1, 2.7).
const EXCLUDED: &str = "unsupported_method,positive_data_acceptance";

fn python_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// A program of `target/python`; `None`, and a message, where it is not installed.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin").join(name);
    if path.exists() {
        return Some(path);
    }
    let skip = format!("skipped: {name} is not installed: `scripts/setup.sh test` does it where Python is\n");
    std::io::stderr().write_all(skip.as_bytes()).unwrap();
    None
}

async fn world() -> World {
    let settings = json!({
        "apisix": {"proxy_mode": "http&stream", "stream_proxy": {"tcp": [{"addr": "127.0.0.1:0"}]}},
        "deployment": {"admin": {"https_admin": false, "admin_api_mtls": null}},
        // schemathesis sends wrong keys by the hundred.
        "countersign": {"admin": {"wrong_keys_per_minute": 0}},
    });
    World::builder().settings(settings).start().await
}

async fn run(world: &World, command: &mut Command) -> Output {
    command
        .current_dir(world.folder())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Writes `openapi.json` to the world's folder, as the gateway serves it.
async fn download(world: &World) {
    let url = format!("http://{}/apisix/admin/openapi.json", world.admin_address());
    let key = format!("X-API-KEY: {ADMIN_KEY}");
    let fetched = e2e::tools::curl(world.folder(), &["-H", &key, "-o", "openapi.json", &url]).await;
    assert_eq!((fetched.exit, fetched.status), (0, 200), "{fetched:?}");
}

#[tokio::test]
async fn the_openapi_document_is_valid() {
    let Some(python) = installed("python") else { return };
    let world = world().await;
    download(&world).await;
    let output =
        run(&world, Command::new(python).args(["-m", "openapi_spec_validator", "openapi.json"])).await;
    assert!(output.status.success(), "{}", shown(&output));
}

#[tokio::test]
async fn schemathesis_finds_no_fault() {
    let Some(schemathesis) = installed("schemathesis") else { return };
    let world = world().await;
    download(&world).await;
    let url = format!("http://{}/apisix/admin", world.admin_address());
    let key = format!("X-API-KEY: {ADMIN_KEY}");
    let common = ["run", "openapi.json", "--url", &url, "-H", &key, "--exclude-checks", EXCLUDED];
    // Boundaries of every kind's schema would take a quarter of an hour: two kinds stand for all.
    let small = "^/(routes|services|stream_routes|global_rules|plugin_configs|configs|batch)";
    let phases: [&[&str]; 2] =
        [&["--phases", "fuzzing", "-n", "8"], &["--phases", "coverage", "--exclude-path-regex", small]];
    for phase in phases {
        let mut command = Command::new(&schemathesis);
        command.args(common).args(phase).args(["--seed", "1", "--continue-on-failure"]);
        command.args(["--generation-database", "none", "--no-color"]);
        command.env("SCHEMATHESIS_HOOKS", "schemathesis_hooks").env("PYTHONPATH", python_folder());
        let output = run(&world, &mut command).await;
        assert!(output.status.success(), "{}", shown(&output));
    }
}

#[tokio::test]
async fn apisix_client_drives_the_admin_api() {
    let Some(python) = installed("python") else { return };
    let world = world().await;
    let pair = world.credentials.servers.server(&["a.test"]);
    world.write_credential("site", &pair);
    let url = format!("http://{}/", world.admin_address());
    let script = python_folder().join("apisix_client_calls.py");
    let mut command = Command::new(python);
    command.arg(script).args([&url, ADMIN_KEY, "site.crt", "site.key"]);
    let output = run(&world, &mut command).await;
    assert!(output.status.success() && shown(&output).contains("done"), "{}", shown(&output));
}
