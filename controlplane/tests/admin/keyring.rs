//! Private keys at rest: cases K, L11, M3, C3, C4 and C8 as far as the Admin API and the store show
//! them (contract 4.6).

use pki::Keyring;
use serde_json::{Value, json};

use crate::world::World;

const FOREIGN: &str = "1234567890123456";

fn ssl(world: &World, key: impl Fn(&str) -> String) -> Value {
    let pair = world.pair("www.test.com");
    json!({"cert": pair.certificate_pem, "key": key(&pair.key_pem), "sni": "www.test.com"})
}

#[tokio::test]
async fn k1_the_store_holds_no_key_in_clear() {
    let mut builder = World::builder();
    builder.keyring = vec!["edd1c9f0985e76a1", "qeddd145sfvddff3"];
    let world = builder.start().await;
    let document = ssl(&world, str::to_owned);
    let plain = document["key"].as_str().unwrap().to_owned();
    let created = world.put("/ssls/1", document).await.ok().json();
    // Encrypted with the first entry; a keyring with only the second does not decrypt it.
    let sealed = created["value"]["key"].as_str().unwrap();
    let open =
        |ring: &str| Keyring::new(vec![ring.to_owned()]).unwrap().open(sealed).map(|text| text.to_string());
    assert_eq!(open("edd1c9f0985e76a1").as_deref(), Ok(plain.as_str()));
    assert!(open("qeddd145sfvddff3").is_err());
    let file = std::fs::read(world.folder.path().join("store.redb")).unwrap();
    assert!(!file.windows(16).any(|window| window == b"PRIVATE KEY-----"), "no key in clear on disk");
    // An encrypted key is stored as it is.
    let again = json!({"cert": created["value"]["cert"], "key": sealed, "sni": "www.test.com"});
    assert_eq!(world.put("/ssls/1", again).await.ok().json()["value"]["key"], sealed);
}

#[tokio::test]
async fn l11_m3_a_foreign_key_is_rejected() {
    let world = World::start().await;
    let foreign = Keyring::new(vec![FOREIGN.to_owned()]).unwrap();
    let document = ssl(&world, |key| foreign.seal(key));
    world.put("/ssls/1", document).await.assert_error("failed to decrypt previous encrypted key");
    let mut pair = ssl(&world, str::to_owned);
    pair["certs"] = json!([pair["cert"]]);
    pair["keys"] = json!([foreign.seal(pair["key"].as_str().unwrap())]);
    world
        .put("/ssls/1", pair)
        .await
        .assert_error("failed to handle cert-key pair[1]: failed to decrypt previous encrypted key");
}

#[tokio::test]
async fn k8_without_a_keyring_keys_are_kept_as_they_are() {
    let mut builder = World::builder();
    builder.keyring = Vec::new();
    let world = builder.start().await;
    let document = ssl(&world, str::to_owned);
    let created = world.put("/ssls/1", document.clone()).await.ok().json();
    // Difference from contract 2.3 (its section 12.5): a key stored in clear is not repeated.
    assert_eq!((&created["value"]["key"], &created["value"]["cert"]), (&Value::Null, &document["cert"]));
    let stored = world.store.load().await.unwrap();
    assert_eq!(stored.items[0].document["key"], document["key"]);
    // K10
    let mut labelled = document;
    labelled["labels"] = json!({"long": "x".repeat(70)});
    world.put("/ssls/1", labelled).await.ok();
}

#[tokio::test]
async fn c3_c4_client_keys_of_upstreams_are_encrypted() {
    let world = World::start().await;
    let pair = world.pair("client.test");
    let tls = json!({"client_cert": pair.certificate_pem, "client_key": &*pair.key_pem});
    let upstream = json!({"scheme": "https", "nodes": {"127.0.0.1:1983": 1}, "tls": tls});
    let route = json!({"uri": "/hello", "upstream": upstream});
    for (path, document, place) in [
        ("/routes/1", route, "/value/upstream/tls/client_key"),
        ("/services/1", json!({"upstream": upstream}), "/value/upstream/tls/client_key"),
        ("/upstreams/1", upstream.clone(), "/value/tls/client_key"),
    ] {
        world.put(path, document).await.ok();
        let read = world.get(path).await.ok().json();
        let sealed = read.pointer(place).unwrap().as_str().unwrap();
        assert_eq!(&*world.keyring.open(sealed).unwrap(), &*pair.key_pem);
        assert_ne!(sealed, &*pair.key_pem);
    }
    // C3: text that is no PEM counts as encrypted.
    let mut bad = upstream.clone();
    bad["tls"]["client_key"] = json!("AAA".repeat(128));
    world.put("/upstreams/1", bad).await.assert_error("failed to decrypt previous encrypted key");
    // C2
    let mut half = upstream;
    half["tls"] = json!({"client_cert": pair.certificate_pem});
    world.put("/routes/1", json!({"uri": "/hello", "upstream": half})).await.assert_error(
        "invalid configuration: property \"upstream\" validation failed: property \"tls\" validation failed: failed to validate \
         dependent schema for \"client_cert\": property \"client_key\" is required",
    );
    for path in ["/routes/1", "/services/1", "/upstreams/1"] {
        world.delete(path).await.ok();
    }
}

#[tokio::test]
async fn c8_without_a_keyring_client_keys_are_kept_as_they_are() {
    let mut builder = World::builder();
    builder.keyring = Vec::new();
    let world = builder.start().await;
    let pair = world.pair("client.test");
    let tls = json!({"client_cert": pair.certificate_pem, "client_key": &*pair.key_pem});
    let upstream = json!({"scheme": "https", "nodes": {"127.0.0.1:1983": 1}, "tls": tls});
    for (path, document, place) in [
        ("/routes/1", json!({"uri": "/hello", "upstream": upstream}), "/value/upstream/tls/client_key"),
        ("/services/1", json!({"upstream": upstream}), "/value/upstream/tls/client_key"),
        ("/upstreams/1", upstream.clone(), "/value/tls/client_key"),
    ] {
        world.put(path, document).await.ok();
        assert_eq!(world.get(path).await.ok().json().pointer(place).unwrap(), &*pair.key_pem, "{path}");
    }
}
