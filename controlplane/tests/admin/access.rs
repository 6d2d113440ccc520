//! Addresses, keys, CORS and the small endpoints (contract 2.1, 2.2, 2.8).

use http::{HeaderValue, Method};
use serde_json::json;

use crate::world::{KEY, VIEWER, World, request};

#[tokio::test]
async fn addresses_outside_allow_admin_get_the_403_page() {
    let mut builder = World::builder();
    builder.allow = Some(vec!["10.0.0.0/8".parse().unwrap()]);
    let world = builder.start().await;
    for identity in [Some(&world.identity), None] {
        let response = world.send(identity, request(Method::GET, "/routes", Some(KEY), "".into())).await;
        assert_eq!(
            (response.status.as_u16(), response.header("content-type")),
            (403, Some("text/html; charset=utf-8"))
        );
        assert!(response.text.contains("<h1>403 Forbidden</h1>"));
    }
}

#[tokio::test]
async fn allow_admin_uses_the_real_ip() {
    let proxy = ["127.0.0.0/8".parse().unwrap()];
    let real_ip = model::RealIp::new("X-Forwarded-For", &proxy, false);
    for (real_ip, allow, sent, status) in [
        (real_ip.clone(), "10.0.0.0/8", "10.1.2.3", 200),
        (real_ip.clone(), "10.0.0.0/8", "10.1.2.3, 192.0.2.7", 403),
        (real_ip.clone(), "127.0.0.0/24", "192.0.2.7", 403),
        (real_ip, "127.0.0.0/24", "unknown", 200),
        // The header of an untrusted proxy is ignored.
        (None, "10.0.0.0/8", "10.1.2.3", 403),
    ] {
        let mut builder = World::builder();
        (builder.allow, builder.real_ip) = (Some(vec![allow.parse().unwrap()]), real_ip);
        let world = builder.start().await;
        let mut asked = request(Method::GET, "/routes", Some(KEY), "".into());
        asked.headers_mut().insert("x-forwarded-for", HeaderValue::from_static(sent));
        let response = world.send(Some(&world.identity), asked).await;
        assert_eq!(response.status.as_u16(), status, "{allow} {sent}");
    }
}

#[tokio::test]
async fn requests_need_a_valid_key() {
    let world = World::start().await;
    let ask = |method: Method, path: &str, key: Option<&str>| {
        world.send(Some(&world.identity), request(method, path, key, "".into()))
    };
    for (method, path, key, why) in [
        (Method::GET, "/routes", None, "missing apikey"),
        (Method::GET, "/routes", Some("wrong"), "wrong apikey"),
        (Method::GET, "/routes?api_key=wrong", Some(KEY), "wrong apikey"),
        (Method::GET, "/routes?api_key=", Some(KEY), "wrong apikey"),
        (Method::PUT, "/routes/1", Some(VIEWER), "invalid method for role viewer"),
        (Method::DELETE, "/nothing/1", None, "missing apikey"),
    ] {
        let response = ask(method, path, key).await;
        let expected = json!({"error_msg": "failed to check token", "description": why});
        assert_eq!((response.status.as_u16(), response.json()), (401, expected));
        assert_eq!(response.header("x-api-version"), None);
    }
    for (path, key) in [("/routes", Some(KEY)), ("/routes", Some(VIEWER))] {
        ask(Method::GET, path, key).await.ok();
    }
    ask(Method::GET, &format!("/routes?api_key={KEY}"), Some("wrong")).await.ok();
    let mut with_cookie = request(Method::GET, "/routes", None, "".into());
    with_cookie
        .headers_mut()
        .insert("cookie", HeaderValue::from_str(&format!("a=b; x_api_key={KEY}")).unwrap());
    world.send(Some(&world.identity), with_cookie).await.ok();
}

#[tokio::test]
async fn without_key_check_no_key_is_needed() {
    let mut builder = World::builder();
    builder.keys = false;
    let world = builder.start().await;
    let body = json!({"nodes": {"127.0.0.1:1980": 1}});
    world.send(Some(&world.identity), request(Method::PUT, "/upstreams/1", None, body.into())).await.ok();
}

#[tokio::test]
async fn every_response_has_the_common_headers() {
    let world = World::start().await;
    let response = world.get("/routes").await;
    assert!(response.header("server").unwrap().starts_with("Countersign/"));
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(response.header("x-api-version"), Some("v3"));
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
    assert_eq!(response.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(response.header("access-control-expose-headers"), Some("*"));
    assert_eq!(response.header("access-control-max-age"), Some("3600"));

    for path in ["/routes", "//anywhere"] {
        let response =
            world.send(Some(&world.identity), request(Method::OPTIONS, path, None, "".into())).await;
        assert_eq!(response.status, 200);
        assert_eq!(
            response.header("access-control-allow-methods"),
            Some("POST, GET, PUT, OPTIONS, DELETE, PATCH")
        );
        assert_eq!(response.header("access-control-allow-headers"), Some("*"));
        assert_eq!(response.header("content-type"), Some("text/plain"));
    }
    let head = world.send(Some(&world.identity), request(Method::HEAD, "", None, "".into())).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_not_found() {
    let world = World::start().await;
    let response = world.get("/nothing/1").await;
    assert_eq!(
        (response.status.as_u16(), response.json()),
        (404, json!({"error_msg": "Unsupported resource type: nothing"}))
    );
    for path in ["//", "//apisix", "//apisix/adminx/routes", ""] {
        let response = world.get(path).await;
        assert_eq!(
            (response.status.as_u16(), response.header("content-type")),
            (404, Some("text/html; charset=utf-8"))
        );
    }
    let odd = world.call(Method::from_bytes(b"PURGE").unwrap(), "/routes/1", "").await;
    assert_eq!((odd.status.as_u16(), odd.json()), (404, json!({"error_msg": "not found"})));
}

#[tokio::test]
async fn schemas_are_served_and_validate() {
    let world = World::start().await;
    for kind in ["ssl", "upstream", "service", "route"] {
        assert_eq!(world.get(&format!("/schema/{kind}")).await.ok().json()["type"], "object", "{kind}");
    }
    world.get("/schema/unknown").await.assert_error("not found schema: unknown");
    let good = json!({"nodes": {"127.0.0.1:1980": 1}});
    let response = world.post("/schema/validate/upstreams", good).await;
    assert_eq!((response.status.as_u16(), response.text.as_str()), (200, ""));
    let bad = world.post("/schema/validate/upstreams", json!({"nodes": 5})).await;
    assert_eq!(bad.status, 400);
    assert!(
        bad.json()["error_msg"].as_str().unwrap().starts_with("property \"nodes\" validation failed"),
        "{bad:?}"
    );
    assert!(world.store.load().await.unwrap().items.is_empty());
}

#[tokio::test]
async fn data_planes_are_listed_and_awaited() {
    let world = World::start().await;
    let all = world.get("/dataplanes").await.ok().json();
    assert_eq!((&all["total"], &all["list"][0]["name"]), (&json!(1), &json!("node-1")));
    assert_eq!(world.get("/dataplanes?acknowledged=7&timeout=1").await.status, 200);
    let late = world.get("/dataplanes?acknowledged=8&timeout=0.1").await;
    assert_eq!((late.status.as_u16(), late.json()), (504, all));
    for bad in ["acknowledged=x", "acknowledged=1&timeout=x", "acknowledged=1&timeout=-1"] {
        assert_eq!(world.get(&format!("/dataplanes?{bad}")).await.status, 400, "{bad}");
    }
    assert_eq!(world.put("/dataplanes", json!({})).await.status, 404);
}
