//! `use_real_request_uri_unsafe`: the path as the client wrote it, where that bypasses no rule.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{ask_raw, expect, sites, to};
use e2e::upstream::HeadEcho;

fn raw_path() -> Value {
    json!({"plugins": {"proxy-rewrite": {"use_real_request_uri_unsafe": true}}})
}

#[tokio::test]
async fn a_raw_path_is_forwarded_where_it_is_safe() {
    let (world, _shared) = sites(json!({})).await;
    let own = HeadEcho::start().await;
    world.apply(&[("routes/open", to(&own, "open.test", "/*", raw_path()))]).await;
    let client = world.client("open.test");
    let table = [
        ("/a%2fb/%7Ex?y", Ok("/a%2fb/%7Ex?y")),
        ("/a/../b", Ok("/a/../b")),
        ("/a/b", Ok("/a/b")),
        // Invalid requests stay rejected.
        ("/a/..\\b", Err(400)),
        ("/a%00", Err(400)),
        ("/../b", Err(400)),
    ];
    expect(&client, &table).await;
    // With a later rule, requests with non-canonical paths are denied.
    let listed = json!({"client_identity": {"allow": [{"dns": "other.test"}]}});
    world.apply(&[("routes/late", to(&own, "open.test", "/secret/*", listed))]).await;
    let table =
        [("/a/b", Ok("/a/b")), ("/a%2Fb", Err(400)), ("/a/../secret/x", Err(403)), ("/a/../b", Err(400))];
    expect(&client, &table).await;
    let asked = json!({"sni": "open.test", "uri": "/a%2Fb"});
    let answer = world.admin().call(Method::POST, "explain", Some(&asked)).await.unwrap().body;
    assert!(answer["outcome"]["message"].as_str().unwrap().contains("route late"), "{answer:#}");
    let lint = world.admin().get("lint").await.body.to_string();
    assert!(lint.contains("use_real_request_uri_unsafe"), "{lint}");
}

#[tokio::test]
async fn a_route_cannot_ask_for_raw_paths_beside_a_rule() {
    let (world, upstream) = sites(json!({})).await;
    let admin = world.admin();
    for (host, named) in
        [("skip.test", "ssl skip"), ("list.test", "route listed"), ("open.test", "route listed")]
    {
        let document = to(&upstream, host, "/x/*", raw_path());
        let answer = admin.call(Method::PUT, "routes/raw", Some(&document)).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{host}");
        let text = answer.reply.text();
        assert!(text.contains("use_real_request_uri_unsafe") && text.contains(named), "{host}: {text}");
    }
    let service = json!({"plugins": raw_path()["plugins"]});
    world.apply(&[("services/raw", service)]).await;
    let mut document = to(&upstream, "list.test", "/x/*", json!({"service_id": "raw"}));
    let answer = admin.call(Method::PUT, "routes/raw", Some(&document)).await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "by its service");
    document["plugins"] = json!({"proxy-rewrite": {"use_real_request_uri_unsafe": false}});
    world.apply(&[("routes/raw", document)]).await;
    assert_eq!(ask_raw(&world.verified_client("list.test"), b"/x/%41").await.as_deref(), Ok("/x/A"));
}

#[tokio::test]
async fn a_raw_path_bypasses_no_predicate_of_a_route() {
    let (world, _shared) = sites(json!({})).await;
    let (own, boss) = (HeadEcho::start().await, HeadEcho::start().await);
    let client = world.client("open.test");
    let admin = world.admin();
    for guard in [
        json!({"vars": [["ssl_client_s_dn", "==", "CN=boss"]]}),
        json!({"vars": [["http_x_role", "==", "boss"]]}),
        json!({"remote_addrs": ["192.0.2.0/24"]}),
        json!({"methods": ["PURGE"]}),
    ] {
        // Written after the raw route: the data plane denies.
        world.apply(&[("routes/open", to(&own, "open.test", "/pub/*", raw_path()))]).await;
        expect(&client, &[("/boss/../pub/x", Ok("/boss/../pub/x"))]).await;
        world.apply(&[("routes/boss", to(&boss, "open.test", "/boss/*", guard.clone()))]).await;
        expect(&client, &[("/boss/../pub/x", Err(400)), ("/pub/x", Ok("/pub/x"))]).await;
        // The Admin API rejects it, also where the guarded route has another host and its node
        // another spelling.
        let mut elsewhere = to(&own, "list.test", "/boss/*", guard);
        elsewhere["upstream"]["nodes"] = json!({format!("localhost:{}", own.address().port()): 1});
        world.apply(&[("routes/boss", elsewhere)]).await;
        let document = to(&own, "open.test", "/pub/*", raw_path());
        let answer = admin.call(Method::PUT, "routes/open", Some(&document)).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.reply.text().contains("of route boss"), "{}", answer.reply.text());
        expect(&client, &[("/boss/../pub/x", Err(400))]).await;
        world.apply(&[("routes/boss", to(&boss, "boss.test", "/boss/*", json!({})))]).await;
    }
}
