//! Extension fields through the Admin API: kept by a PUT that does not mention them, removed by
//! `null`, and reported in headers either way.

use pki::ca::{Authority, AuthoritySpec, CrlSpec};
use serde_json::{Value, json};

use crate::world::{Response, World};

const KEPT: &str = "x-countersign-kept";
const WARNING: &str = "x-countersign-warning";

fn root(name: &str) -> Authority {
    Authority::root(&AuthoritySpec::new(name)).unwrap()
}

fn list(authority: &Authority) -> String {
    authority.crl_pem(&CrlSpec::default()).unwrap()
}

fn warnings(response: &Response) -> Vec<&str> {
    response.headers.get_all(WARNING).iter().map(|value| value.to_str().unwrap()).collect()
}

/// The document as a tool saves it that knows only APISIX's schema: without times and unknown
/// fields.
async fn without_unknown_fields(world: &World, path: &str) -> Value {
    let mut document = world.get(path).await.ok().json()["value"].clone();
    let members = document.as_object_mut().unwrap();
    for unknown in ["create_time", "update_time", "client_identity"] {
        members.remove(unknown);
    }
    if let Some(client) = members.get_mut("client").and_then(Value::as_object_mut) {
        client.retain(|name, _| ["ca", "depth", "skip_mtls_uri_regex"].contains(&name.as_str()));
    }
    document
}

#[tokio::test]
async fn an_allow_list_survives_a_put_without_it() {
    let world = World::start().await;
    let upstream = json!({"nodes": {"127.0.0.1:1": 1}});
    let identity = json!({"allow": [{"dns": "a.b"}], "forward": ["xfcc"]});
    for path in ["/routes/1", "/services/1"] {
        let mut document = json!({"client_identity": identity, "upstream": upstream});
        if path == "/routes/1" {
            document["uri"] = json!("/a");
        }
        let created = world.put(path, document.clone()).await.ok();
        assert_eq!((created.header(KEPT), warnings(&created)), (None, vec![]));
        for _ in 0..2 {
            let tool = without_unknown_fields(&world, path).await;
            let kept = world.put(path, tool).await.ok();
            assert_eq!((kept.header(KEPT), warnings(&kept)), (Some("client_identity"), vec![]));
            assert_eq!(kept.json()["value"]["client_identity"], identity, "the response has it, too");
            assert_eq!(world.get(path).await.ok().json()["value"]["client_identity"], identity);
        }
        // A new allow-list replaces the old one, with a warning.
        let mut other = document.clone();
        other["client_identity"] = json!({"allow": [{"dns": "c.d"}]});
        let replaced = world.put(path, other).await.ok();
        assert_eq!(replaced.header(KEPT), None);
        assert!(
            warnings(&replaced)[0].starts_with("client_identity.allow[1]: "),
            "{:?}",
            warnings(&replaced)
        );
        // `null` removes it, in each of three ways.
        for way in 0..3 {
            world.put(path, document.clone()).await.ok();
            let removed = match way {
                0 => {
                    let mut tool = without_unknown_fields(&world, path).await;
                    tool["client_identity"] = Value::Null;
                    world.put(path, tool).await.ok()
                }
                1 => world.patch(path, json!({"client_identity": null})).await.ok(),
                _ => world.patch(&format!("{path}/client_identity"), Value::Null).await.ok(),
            };
            assert_eq!(world.get(path).await.ok().json()["value"].get("client_identity"), None, "{way}");
            let warned = warnings(&removed);
            assert!(warned.contains(&"client_identity: removed"), "{way}: {warned:?}");
            assert!(
                warned.iter().any(|warned| warned.starts_with("client_identity.allow: ")),
                "{way}: {warned:?}"
            );
        }
        // A document that is deleted and created again has no kept fields.
        world.put(path, document.clone()).await.ok();
        let tool = without_unknown_fields(&world, path).await;
        world.delete(path).await.ok();
        let clean = world.put(path, tool).await.ok();
        assert_eq!((clean.header(KEPT), clean.json()["value"].get("client_identity")), (None, None));
    }
    let posted = json!({"uri": "/b", "upstream": upstream, "client_identity": null});
    assert_eq!(world.post("/routes", posted.clone()).await.ok().json()["value"].get("client_identity"), None);
    // So it does where nothing is stored, or nothing is written.
    let operation = json!({"method": "PUT", "path": "/apisix/admin/routes/n", "body": posted});
    world.post("/batch", json!({"operations": [operation]})).await.ok();
    world.post("/schema/validate/routes", posted.clone()).await.ok();
    let mut listed = posted;
    listed["id"] = json!("n");
    world.post("/configs/validate", json!({"routes": [listed]})).await.ok();
    // A field that APISIX has is not null, as there.
    let null = json!({"uri": "/b", "upstream": upstream, "desc": null});
    let message = "property \"desc\" validation failed: wrong type: expected string, got userdata";
    world.put("/routes/n", null.clone()).await.assert_error(&format!("invalid configuration: {message}"));
    world.post("/schema/validate/routes", null).await.assert_error(message);
}

#[tokio::test]
async fn crls_survive_a_put_without_them() {
    let world = World::start().await;
    let (one, two) = (root("One"), root("Two"));
    let pair = world.pair("a.test");
    let site = |client: Value| json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "sni": "a.test", "client": client});
    let both = format!("{}{}", one.certificate_pem(), two.certificate_pem());
    let full = site(json!({"ca": both, "crl": [list(&one), list(&two)], "crl_policy": "prefer"}));
    world.put("/ssls/1", full.clone()).await.ok();
    let mut tool = without_unknown_fields(&world, "/ssls/1").await;
    tool["key"] = json!(&*pair.key_pem);
    let kept = world.put("/ssls/1", tool).await.ok();
    assert_eq!((kept.header(KEPT), warnings(&kept)), (Some("client.crl, client.crl_policy"), vec![]));
    let client = world.get("/ssls/1").await.ok().json()["value"]["client"].clone();
    assert_eq!(client, full["client"]);
    // Another bundle drops the CRL that none of its CAs signed, with a warning.
    let narrowed = world.put("/ssls/1", site(json!({"ca": one.certificate_pem()}))).await.ok();
    assert_eq!(narrowed.header(KEPT), Some("client.crl, client.crl_policy"));
    assert!(
        warnings(&narrowed)[0].contains("the list of \"CN=Two\" is dropped"),
        "{:?}",
        warnings(&narrowed)
    );
    assert_eq!(narrowed.json()["value"]["client"]["crl"], json!([list_of(&full, 0)]));
    // The last CRL takes the policy with it.
    let replaced = world.patch("/ssls/1", json!({"client": {"ca": two.certificate_pem()}})).await.ok();
    assert_eq!(replaced.json()["value"]["client"], json!({"ca": two.certificate_pem()}));
    let warned = warnings(&replaced).join("\n");
    for part in
        ["client.crl: the list of \"CN=One\"", "client.ca: ", "client.crl: the revocation lists are gone"]
    {
        assert!(warned.contains(part), "{part}: {warned}");
    }
    // A CRL in the request is checked.
    let foreign = site(json!({"ca": one.certificate_pem(), "crl": [list(&two)]}));
    let refused = world.put("/ssls/1", foreign).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["field"], "client.crl[1]");
    // Replacing `client` as a whole without mentioning CRLs keeps them.
    world.put("/ssls/1", full.clone()).await.ok();
    let part = world.patch("/ssls/1/client", json!({"ca": both, "depth": 1})).await.ok();
    assert_eq!(part.json()["value"]["client"]["crl"], full["client"]["crl"]);
    // `null` removes the policy, too.
    for body in [json!({"client": {"crl": null}}), json!({"client": {"crl": null, "crl_policy": null}})] {
        world.put("/ssls/1", full.clone()).await.ok();
        let removed = world.patch("/ssls/1", body).await.ok();
        assert_eq!(removed.json()["value"]["client"], json!({"ca": both}));
    }
    world.put("/ssls/1", full.clone()).await.ok();
    let mut open = full.clone();
    open.as_object_mut().unwrap().remove("client");
    let opened = world.put("/ssls/1", open).await.ok();
    let warned = warnings(&opened).join("\n");
    for part in [
        "client.crl: removed",
        "client.crl_policy: removed",
        "client: client certificates are not requested any more",
    ] {
        assert!(warned.contains(part), "{part}: {warned}");
    }
    assert_eq!(opened.header(KEPT), None);
}

fn list_of(document: &Value, index: usize) -> Value {
    document["client"]["crl"][index].clone()
}

/// A PUT replaces the fields that APISIX knows; a weaker value gives a warning.
#[tokio::test]
async fn apisix_fields_are_replaced_with_a_warning() {
    let world = World::start().await;
    let (one, two) = (root("One"), root("Two"));
    let pair = world.pair("a.test");
    let ca = one.certificate_pem();
    let site = |client: Value| json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "sni": "a.test", "client": client});
    let strict = site(json!({"ca": ca, "depth": 0}));
    for (weaker, field) in [
        (site(json!({"ca": ca})), "client.depth"),
        (site(json!({"ca": two.certificate_pem(), "depth": 0})), "client.ca"),
        (site(json!({"ca": ca, "depth": 0, "skip_mtls_uri_regex": ["^/a$"]})), "client.skip_mtls_uri_regex"),
    ] {
        world.put("/ssls/1", strict.clone()).await.ok();
        let warned = world.put("/ssls/1", weaker).await.ok();
        let warnings = warnings(&warned);
        assert!(warnings.len() == 1 && warnings[0].starts_with(&format!("{field}: ")), "{warnings:?}");
    }
    let warned = world.put("/ssls/1", strict.clone()).await.ok();
    assert_eq!(warnings(&warned), [""; 0], "back to the strict one");
    let off = world.patch("/ssls/1", json!({"status": 0})).await.ok();
    assert!(warnings(&off)[0].starts_with("status: "));
}

#[tokio::test]
async fn a_removal_warns_about_lost_protection() {
    let world = World::start().await;
    let route = json!({"uri": "/a", "client_identity": {"allow": [{"dns": "a.b"}]}, "upstream": {"nodes": {"127.0.0.1:1": 1}}});
    world.put("/routes/1", route.clone()).await.ok();
    let gone = world.delete("/routes/1").await.ok();
    assert!(matches!(warnings(&gone)[..], [warned] if warned.starts_with("uris: ")), "{:?}", warnings(&gone));
    assert_eq!(world.delete("/routes/1").await.status, 404);

    let mut open = route;
    open.as_object_mut().unwrap().remove("client_identity");
    world.put("/routes/2", open).await.ok();
    assert_eq!(warnings(&world.delete("/routes/2").await.ok()), [""; 0]);
}
