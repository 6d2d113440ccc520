//! `use_real_request_uri_unsafe`: the path as the client wrote it, where no rule could be walked round by it.

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
    let caller = world.caller("open.test");
    let table = [
        ("/a%2fb/%7Ex?y", Ok("/a%2fb/%7Ex?y")),
        ("/a/../b", Ok("/a/../b")),
        ("/a/b", Ok("/a/b")),
        // What no upstream may be sent stays refused.
        ("/a/..\\b", Err(400)),
        ("/a%00", Err(400)),
        ("/../b", Err(400)),
    ];
    expect(&caller, &table).await;
    // A rule that comes later: requests are refused whose paths are not canonical.
    let listed = json!({"client_identity": {"allow": [{"dns": "somebody.test"}]}});
    world.apply(&[("routes/late", to(&own, "open.test", "/secret/*", listed))]).await;
    let table =
        [("/a/b", Ok("/a/b")), ("/a%2Fb", Err(400)), ("/a/../secret/x", Err(403)), ("/a/../b", Err(400))];
    expect(&caller, &table).await;
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
    assert_eq!(ask_raw(&world.good_caller("list.test"), b"/x/%41").await.as_deref(), Ok("/x/A"));
}

#[tokio::test]
async fn a_raw_path_gets_past_no_predicate_of_a_route() {
    let (world, _shared) = sites(json!({})).await;
    let (own, boss) = (HeadEcho::start().await, HeadEcho::start().await);
    let caller = world.caller("open.test");
    let admin = world.admin();
    for guard in [
        json!({"vars": [["ssl_client_s_dn", "==", "CN=boss"]]}),
        json!({"vars": [["http_x_role", "==", "boss"]]}),
        json!({"remote_addrs": ["192.0.2.0/24"]}),
        json!({"methods": ["PURGE"]}),
    ] {
        // Written later than the raw route: the data plane refuses.
        world.apply(&[("routes/open", to(&own, "open.test", "/pub/*", raw_path()))]).await;
        expect(&caller, &[("/boss/../pub/x", Ok("/boss/../pub/x"))]).await;
        world.apply(&[("routes/boss", to(&boss, "open.test", "/boss/*", guard.clone()))]).await;
        expect(&caller, &[("/boss/../pub/x", Err(400)), ("/pub/x", Ok("/pub/x"))]).await;
        // And the Admin API does, also where the guarded route has another host and its node
        // another spelling.
        let mut elsewhere = to(&own, "list.test", "/boss/*", guard);
        elsewhere["upstream"]["nodes"] = json!({format!("localhost:{}", own.address().port()): 1});
        world.apply(&[("routes/boss", elsewhere)]).await;
        let document = to(&own, "open.test", "/pub/*", raw_path());
        let answer = admin.call(Method::PUT, "routes/open", Some(&document)).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.reply.text().contains("of route boss"), "{}", answer.reply.text());
        expect(&caller, &[("/boss/../pub/x", Err(400))]).await;
        world.apply(&[("routes/boss", to(&boss, "boss.test", "/boss/*", json!({})))]).await;
    }
}
