//! Certificates through the Admin API: cases H, I and J.

use serde_json::{Value, json};

use crate::world::World;

/// A document with a certificate for `name` and its key.
fn ssl(world: &World, name: &str) -> Value {
    let pair = world.pair(name);
    json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "sni": name})
}

fn with(mut document: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        document[name] = value.clone();
    }
    document
}

const CLAUSE: &str = "invalid configuration: then clause did not match";

#[tokio::test]
async fn h1_to_h5_create_read_and_delete() {
    let world = World::start().await;
    let created = world.put("/ssls/1", ssl(&world, "test.com")).await;
    assert_eq!(created.status, 201);
    let body = created.json();
    assert_eq!((&body["key"], &body["value"]["sni"]), (&json!("/apisix/ssls/1"), &json!("test.com")));
    for time in ["create_time", "update_time"] {
        assert!(body["value"][time].as_u64().unwrap() > 1_700_000_000);
    }
    let read = world.get("/ssls/1").await.ok().json();
    assert_eq!(read["value"]["sni"], "test.com");
    assert_eq!(read["value"].get("key"), None);
    world.delete("/ssls/1").await.ok();
    world.delete("/ssls/99999999999999").await.key_not_found();
    world.get("/ssls/1").await.key_not_found();

    let posted = world.post("/ssls", ssl(&world, "foo.com")).await;
    assert_eq!(posted.status, 201);
    let key = posted.json()["key"].as_str().unwrap().to_owned();
    let id = key.strip_prefix("/apisix/ssls/").unwrap();
    assert_eq!((id.len(), posted.json()["value"]["id"].as_str().unwrap()), (20, id));
    world.delete(&format!("/ssls/{id}")).await.ok();
}

#[tokio::test]
async fn h6_to_h18_the_schema() {
    let world = World::start().await;
    let pair = world.pair("foo.com");
    let (cert, key) = (pair.certificate_pem.clone(), pair.key_pem.to_string());
    world.put("/ssls/1", json!({"sni": "test.com"})).await.assert_error(CLAUSE);
    world.put("/ssls/1", json!({"cert": cert, "key": key, "sni": "*.foo.com"})).await.ok();
    world.put("/ssls/1", json!({"cert": cert, "key": key, "snis": ["*.foo.com", "bar.com"]})).await.ok();
    world.put("/ssls/a-b-c-ABC_0123", json!({"cert": cert, "key": key, "sni": "test.com"})).await.ok();
    world.delete("/ssls/a-b-c-ABC_0123").await.ok();
    let invalid = world.put("/ssls/*invalid", json!({"cert": cert, "key": key, "sni": "test.com"})).await;
    invalid.assert_error(
        "invalid configuration: property \"id\" validation failed: object matches none of the required",
    );
    let base = json!({"cert": cert, "key": key, "sni": "test.com"});
    world.put("/ssls/1", with(base.clone(), json!({"certs": [cert], "keys": [key]}))).await.ok();
    world.put("/ssls/1", json!({"sni": "test.com", "certs": [cert], "keys": []})).await.assert_error(CLAUSE);
    world
        .put(
            "/ssls/1",
            with(base.clone(), json!({"labels": {"version": "v2", "build": "16", "env": "production"}})),
        )
        .await
        .ok();
    let labels =
        world.put("/ssls/1", with(base.clone(), json!({"labels": {"env": ["production", "release"]}}))).await;
    labels.assert_error(
        "invalid configuration: property \"labels\" validation failed: failed to validate env (matching \".*\"): \
         wrong type: expected string, got table",
    );
    world.put("/ssls/1", json!({"cert": cert, "key": key})).await.assert_error(CLAUSE);
    world.put("/ssls/1", json!({"type": "client", "cert": cert, "key": key})).await.ok();
    // H16: a PATCH may set the times, and only a PATCH.
    let posted = world.post("/ssls", base.clone()).await.ok().json();
    let path = posted["key"].as_str().unwrap().replace("/apisix", "");
    let patched = world.patch(&path, json!({"create_time": 0, "update_time": 1})).await.ok().json();
    assert_eq!((&patched["value"]["create_time"], &patched["value"]["update_time"]), (&json!(0), &json!(1)));
    let stored = world.get(&path).await.ok().json();
    assert_eq!((&stored["value"]["create_time"], &stored["value"]["update_time"]), (&json!(0), &json!(1)));
    world
        .put("/ssls/1", with(base, json!({"create_time": 1})))
        .await
        .assert_error("the property is forbidden:  create_time");
}

#[tokio::test]
async fn h21_to_h24_several_certificates() {
    let world = World::start().await;
    let (one, two) = (world.pair("test.com"), world.pair("test.com"));
    let base = json!({"cert": one.certificate_pem, "key": &*one.key_pem, "sni": "test.com"});
    let short =
        with(base.clone(), json!({"certs": ["https://APISIX_TEST_SSL_CERTS"], "keys": [&*two.key_pem]}));
    world.put("/ssls/1", short).await.assert_error(
        "invalid configuration: property \"certs\" validation failed: failed to validate item 1: string too short, expected at least 128, got 29",
    );
    let several = with(base, json!({"certs": [two.certificate_pem], "keys": [&*two.key_pem]}));
    world.put("/ssls/1", several).await.ok();
    for document in [
        world.get("/ssls/1").await.json()["value"].clone(),
        world.get("/ssls").await.json()["list"][0]["value"].clone(),
    ] {
        assert_eq!((document.get("key"), document.get("keys")), (None, None));
        assert!(document["cert"].is_string() && document["certs"].is_array());
    }
    world.delete("/ssls/1").await.ok();
}

/// The response without volatile members, and with secrets blanked, as APISIX's tests do.
fn bare(mut body: Value) -> Value {
    let value = body["value"].as_object_mut().unwrap();
    for time in ["create_time", "update_time"] {
        assert!(value.shift_remove(time).unwrap().is_u64());
    }
    for secret in ["cert", "key"] {
        if value.contains_key(secret) {
            value[secret] = json!("");
        }
    }
    body
}

#[tokio::test]
async fn i1_to_i5_the_exact_shapes() {
    let world = World::start().await;
    let mut posted = bare(world.post("/ssls", ssl(&world, "not-unwanted-post.com")).await.ok().json());
    posted["value"].as_object_mut().unwrap().shift_remove("id").unwrap();
    assert_eq!(posted["value"], json!({"cert": "", "key": "", "sni": "not-unwanted-post.com"}));
    assert_eq!(posted.as_object().unwrap().len(), 2);

    let put = bare(world.put("/ssls/1", ssl(&world, "test.com")).await.ok().json());
    let shape =
        |sni: &str| json!({"key": "/apisix/ssls/1", "value": {"cert": "", "id": "1", "key": "", "sni": sni}});
    assert_eq!(put, shape("test.com"));
    assert_eq!(bare(world.patch("/ssls/1", ssl(&world, "t.com")).await.ok().json()), shape("t.com"));

    let mut got = bare(world.get("/ssls/1").await.ok().json());
    let got = got.as_object_mut().unwrap();
    let (created, modified) =
        (got.shift_remove("createdIndex").unwrap(), got.shift_remove("modifiedIndex").unwrap());
    assert!(0 < created.as_u64().unwrap() && created.as_u64() < modified.as_u64());
    let expected = json!({"key": "/apisix/ssls/1", "value": {"cert": "", "id": "1", "sni": "t.com"}});
    assert_eq!(Value::Object(got.clone()), expected);

    let deleted = world.delete("/ssls/1").await.ok();
    assert_eq!(deleted.json(), json!({"deleted": "1", "key": "/apisix/ssls/1"}));
    assert!(deleted.revision() > modified.as_u64().unwrap());
}

#[tokio::test]
async fn i6_to_i10_invalid_certificates_and_keys() {
    let world = World::start().await;
    let good = ssl(&world, "test.com");
    let truncated = |field: &str| Value::from(&good[field].as_str().unwrap()[..150]);
    let cert = "failed to parse cert: PEM_read_bio_X509_AUX() failed";
    let key = "failed to parse key: PEM_read_bio_PrivateKey() failed";
    world.put("/ssls/1", with(good.clone(), json!({"cert": truncated("cert")}))).await.assert_error(cert);
    world.put("/ssls/1", with(good.clone(), json!({"key": truncated("key")}))).await.assert_error(key);
    let pairs = |cert: &Value, key: &Value| with(good.clone(), json!({"certs": [cert], "keys": [key]}));
    let of_pair = |text: &str| format!("failed to handle cert-key pair[1]: {text}");
    world.put("/ssls/1", pairs(&truncated("cert"), &good["key"])).await.assert_error(&of_pair(cert));
    world.put("/ssls/1", pairs(&good["cert"], &truncated("key"))).await.assert_error(&of_pair(key));
    let mut no_names = good.clone();
    no_names.as_object_mut().unwrap().shift_remove("sni");
    world.put("/ssls/1", with(no_names, json!({"snis": []}))).await.assert_error(
        "invalid configuration: property \"snis\" validation failed: expect array to have at least 1 items",
    );
    let other = &*world.pair("other.com").key_pem;
    let mismatch = world.put("/ssls/1", with(good, json!({"key": other}))).await;
    assert_eq!(mismatch.status, 400, "a key that is not the certificate's is refused: {mismatch:?}");
    assert!(world.store.load().await.unwrap().items.is_empty());
}

#[tokio::test]
async fn i11_to_i13_parts() {
    let world = World::start().await;
    let mut several = ssl(&world, "test.com");
    several.as_object_mut().unwrap().shift_remove("sni");
    world.put("/ssls/1", with(several.clone(), json!({"snis": ["update.com"]}))).await.ok();
    let patched = world.patch("/ssls/1/snis", json!(["update1.com", "update2.com"])).await.ok();
    assert_eq!(patched.json()["value"]["snis"], json!(["update1.com", "update2.com"]));
    assert_eq!(patched.status, 200);

    // I12, I13: keys are encrypted, whole and by path.
    let (one, two) = (world.pair("one.com"), world.pair("two.com"));
    let (key_one, key_two) = (&*one.key_pem, &*two.key_pem);
    let change = json!({"cert": one.certificate_pem, "key": key_one, "certs": [two.certificate_pem], "keys": [key_two]});
    let value = world.patch("/ssls/1", change).await.ok().json()["value"].clone();
    assert_eq!(&*world.keyring.open(value["key"].as_str().unwrap()).unwrap(), key_one);
    assert_eq!(&*world.keyring.open(value["keys"][0].as_str().unwrap()).unwrap(), key_two);
    let value = world.patch("/ssls/1/keys", json!([key_two])).await.ok().json()["value"].clone();
    assert!(!value["keys"][0].as_str().unwrap().starts_with("---"));
    assert!(!value["key"].as_str().unwrap().starts_with("---"));

    world.patch("/ssls/1/snis/0", json!("x.com")).await.assert_error("invalid sub-path: /snis");
    world.patch("/ssls/1", json!([])).await.assert_error("invalid configuration");
    world.call(http::Method::PATCH, "/ssls/1", "").await.assert_error("missing new configuration");
    world.patch("/ssls/2", json!({"status": 0})).await.key_not_found();
    world.patch("/ssls", json!({"status": 0})).await.assert_error("missing ssl id");
}

#[tokio::test]
async fn j1_to_j3_lists_and_protocols() {
    let world = World::start().await;
    assert_eq!(world.get("/ssls").await.ok().text, "{\"list\":[],\"total\":0}\n");
    let good = ssl(&world, "test.com");
    world.put("/ssls/1", with(good.clone(), json!({"ssl_protocols": ["TLSv1.0", "TLSv1.2"]}))).await.assert_error(
        "invalid configuration: property \"ssl_protocols\" validation failed: failed to validate item 1: matches none of the enum values",
    );
    let created = world.put("/ssls/1", good).await.ok().json();
    assert_eq!(created["value"].get("ssl_protocols"), None);
    // No defaults are filled in: GET returns what PUT wrote.
    assert_eq!(created["value"].as_object().unwrap().len(), 6);
}

#[tokio::test]
async fn a3_a4_client_authorities() {
    let world = World::start().await;
    let good = ssl(&world, "test.com");
    let not_a_ca = with(good.clone(), json!({"client": {"ca": "test.com".repeat(128)}}));
    world
        .put("/ssls/1", not_a_ca)
        .await
        .assert_error("failed to validate client_cert: failed to parse cert: PEM_read_bio_X509_AUX() failed");
    world.put("/ssls/1", with(good.clone(), json!({"client": {}}))).await.assert_error(
        "invalid configuration: property \"client\" validation failed: property \"ca\" is required",
    );
    let ca = world.clients.certificate_pem();
    world.put("/ssls/1", with(good, json!({"client": {"ca": ca, "depth": 2}}))).await.ok();
}

#[tokio::test]
async fn an_invalid_policy_names_its_field_and_changes_nothing() {
    let world = World::start().await;
    let (ca, key) = (world.clients.certificate_pem(), world.clients.key_pem().to_string());
    let good = with(ssl(&world, "test.com"), json!({"client": {"ca": ca}}));
    world.put("/ssls/1", good.clone()).await.ok();
    let before = world.store.load().await.unwrap();
    let damaged = format!("{ca}{ca}-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n");
    let old = |field: &str, more: Value| {
        let mut client = json!({"ca": ca});
        client[field] = more;
        client
    };
    for (client, field, part) in [
        (json!({"ca": damaged}), "client.ca", "certificate 3 of the text (the one after `CN=clients`)"),
        (json!({"ca": key}), "client.ca", "holds a private key"),
        (json!({"ca": world.pair("a.com").certificate_pem}), "client.ca", "is not a CA"),
        (old("crl", json!(["junk"])), "client.crl[1]", "expected a block `-----BEGIN X509 CRL-----`"),
        (old("skip_mtls_uri_regex", json!(["/(?=a)"])), "client.skip_mtls_uri_regex[1]", "look-around"),
    ] {
        let bad = with(good.clone(), json!({"client": client}));
        for response in
            [world.put("/ssls/1", bad.clone()).await, world.patch("/ssls/1", json!({"client": client})).await]
        {
            assert_eq!(
                (response.status.as_u16(), response.json()["field"].as_str()),
                (400, Some(field)),
                "{response:?}"
            );
            assert!(response.json().to_string().contains(part), "{response:?}");
        }
    }
    let old_version = with(good, json!({"ssl_protocols": ["TLSv1.1"]}));
    let response = world.put("/ssls/1", old_version).await;
    assert_eq!((response.status.as_u16(), response.json()["field"].as_str()), (400, Some("ssl_protocols")));
    assert!(response.text.contains("engine-boring"), "{response:?}");
    assert_eq!(world.store.load().await.unwrap(), before, "nothing stored has changed");
}
