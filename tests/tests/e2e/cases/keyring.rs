//! Case K: sites whose keys were encrypted with one keyring, after a restart with another
//! (`t/admin/ssl4.t`).
//!
//! A data plane stops serving a site whose key the control plane cannot decrypt.

use e2e::fixtures::FIXTURES;
use e2e::world::World;
use serde_json::{Value, json};

use super::stage::{Stage, no_handshake, served, ssl};

const FIRST: &str = "edd1c9f0985e76a1";
const SECOND: &str = "qeddd145sfvddff3";

fn settings(keyring: Value) -> Value {
    json!({"apisix": {"data_encryption": {"keyring": keyring}}})
}

async fn restarted_with(stage: &mut Stage, keyring: Value) {
    stage.world.change_settings(settings(keyring));
    stage.restart_control().await;
}

#[tokio::test]
async fn case_k01_k07_k11_a_keyring_is_rotated() {
    let made = &*FIXTURES;
    let builder = World::builder().settings(settings(json!([FIRST, SECOND])));
    let mut stage = Stage::of(builder).await;
    stage.put("ssls/1", ssl(&made.apisix, "www.test.com")).await;
    // K3, K4: one key, or a list of one.
    for keyring in [json!(FIRST), json!([FIRST])] {
        restarted_with(&mut stage, keyring).await;
        served(&stage.curl("www.test.com", "/hello", &[]).await, "/hello");
    }
    // K5: the encrypting key is gone. (A keyring that decrypts nothing at all ends the start.)
    restarted_with(&mut stage, json!([SECOND, FIRST])).await;
    stage.put("ssls/2", ssl(&made.test2, "test2.com")).await;
    restarted_with(&mut stage, json!([SECOND])).await;
    served(&stage.curl("test2.com", "/hello", &[]).await, "/hello");
    let words =
        ["ERROR", "a stored document is not usable", "ssls/1", "failed to decrypt previous encrypted key"];
    stage.world.control_log().line_with(&words).await;
    no_handshake(&stage.curl("www.test.com", "/hello", &[]).await);
    // K6, K11: the new key first, the old one behind it; objects of both are served.
    restarted_with(&mut stage, json!([SECOND, FIRST])).await;
    served(&stage.curl("www.test.com", "/hello", &[]).await, "/hello");
    served(&stage.curl("test2.com", "/hello", &[]).await, "/hello");
    // K7
    stage.delete("ssls/1").await;
    no_handshake(&stage.curl("www.test.com", "/hello", &[]).await);
}

#[tokio::test]
async fn case_k08_k09_without_a_keyring() {
    let made = &*FIXTURES;
    let stage = Stage::of(World::builder().settings(settings(Value::Null))).await;
    stage.put("ssls/1", ssl(&made.apisix, "www.test.com")).await;
    served(&stage.curl("www.test.com", "/hello", &[]).await, "/hello");
    stage.delete("ssls/1").await;
    no_handshake(&stage.curl("www.test.com", "/hello", &[]).await);
}
