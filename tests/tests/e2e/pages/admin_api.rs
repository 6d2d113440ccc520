//! "Admin API": upstreams, services, routes and schemas. `?ttl=` needs an etcd and is in the suite
//! about etcd.

use serde_json::json;

use super::{Page, Step, step};

#[tokio::test]
async fn resources_in_use_are_removed_by_force() {
    let page = Page::open(json!({})).await;
    page.follow(&[
        step(
            201,
            "/apisix/upstreams/1",
            r#"curl http://$admin/apisix/admin/upstreams/1 -H "X-API-KEY: $admin_key" -X PUT -d '{
    "nodes": {
        "127.0.0.1:8080": 1
    },
    "type": "roundrobin"
}'"#,
        ),
        step(
            201,
            "\"upstream_id\":1",
            r#"curl http://$admin/apisix/admin/routes/1 -H "X-API-KEY: $admin_key" -X PUT -d '{
    "uri": "/*",
    "upstream_id": 1
}'"#,
        ),
        step(
            400,
            r#"{"error_msg":"can not delete this upstream, route [1] is still using it now""#,
            r#"curl http://$admin/apisix/admin/upstreams/1 -H "X-API-KEY: $admin_key" -X DELETE"#,
        ),
        step(
            400,
            r#"{"error_msg":"can not delete this upstream, route [1] is still using it now""#,
            r#"curl "http://$admin/apisix/admin/upstreams/1?force=anyvalue" -H "X-API-KEY: $admin_key" -X DELETE"#,
        ),
        step(
            200,
            r#"{"deleted":"1","key":"/apisix/upstreams/1"}"#,
            r#"curl "http://$admin/apisix/admin/upstreams/1?force=true" -H "X-API-KEY: $admin_key" -X DELETE"#,
        ),
    ])
    .await;
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let page = Page::open(json!({})).await;
    page.follow(&[
        step(
            201,
            "",
            r#"curl http://$admin/apisix/admin/services/1 -H "X-API-KEY: $admin_key" -X PUT -d '{"upstream": {"nodes": {"127.0.0.1:8080": 1}}}'"#,
        ),
        step(
            201,
            "",
            r#"curl http://$admin/apisix/admin/routes/1 -H "X-API-KEY: $admin_key" -X PUT -d '{"name": "a test", "uri": "/foo", "service_id": "1"}'"#,
        ),
        step(
            200,
            "\"total\":1",
            r#"curl "http://$admin/apisix/admin/routes?page=1&page_size=10" \
-H "X-API-KEY: $admin_key" -X GET"#,
        ),
        // An empty label matches nothing, against the page.
        step(
            200,
            "\"total\":0",
            r#"curl "http://$admin/apisix/admin/routes?name=test&uri=foo&label=" \
-H "X-API-KEY: $admin_key" -X GET"#,
        ),
        step(
            200,
            "\"total\":1",
            r#"curl "http://$admin/apisix/admin/routes?name=test&uri=foo" \
-H "X-API-KEY: $admin_key" -X GET"#,
        ),
        step(
            200,
            "\"total\":1",
            r#"curl "http://$admin/apisix/admin/routes?filter=service_id%3D1" \
-H "X-API-KEY: $admin_key" -X GET"#,
        ),
    ])
    .await;
}

const PATCH_ROUTE: [Step; 6] = [
    step(
        200,
        r#""nodes":{"127.0.0.1:1980":1,"127.0.0.1:1981":1}"#,
        r#"curl http://$admin/apisix/admin/routes/1 \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "upstream": {
            "nodes": {
                "127.0.0.1:1981": 1
            }
        }
    }'"#,
    ),
    step(
        200,
        r#""nodes":{"127.0.0.1:1980":1,"127.0.0.1:1981":10}"#,
        r#"curl http://$admin/apisix/admin/routes/1 \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "upstream": {
            "nodes": {
                "127.0.0.1:1981": 10
            }
        }
    }'"#,
    ),
    step(
        200,
        r#""nodes":{"127.0.0.1:1981":10}"#,
        r#"curl http://$admin/apisix/admin/routes/1 \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "upstream": {
            "nodes": {
                "127.0.0.1:1980": null
            }
        }
    }'"#,
    ),
    step(
        200,
        r#""methods":["GET","POST"]"#,
        r#"curl http://$admin/apisix/admin/routes/1 \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '{
        "methods": ["GET", "POST"]
    }'"#,
    ),
    step(
        200,
        r#""nodes":{"127.0.0.1:1982":1}"#,
        r#"curl http://$admin/apisix/admin/routes/1/upstream/nodes \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "127.0.0.1:1982": 1
    }'"#,
    ),
    step(
        200,
        r#""methods":["POST","DELETE","PATCH"]"#,
        r#"curl http://$admin/apisix/admin/routes/1/methods \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d'["POST", "DELETE", "PATCH"]'"#,
    ),
];

const SWITCH_ROUTE: [Step; 4] = [
    // An error of the page, which APISIX's schema rejects, too.
    step(
        400,
        "matches none of the enum values",
        r#"curl http://$admin/apisix/admin/routes/1/methods \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d'["POST", "DELETE", " PATCH"]'"#,
    ),
    step(
        200,
        r#""status":0"#,
        r#"curl http://$admin/apisix/admin/routes/1 \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "status": 0
    }'"#,
    ),
    step(
        200,
        r#""status":1"#,
        r#"curl http://$admin/apisix/admin/routes/1 \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "status": 1
    }'"#,
    ),
    step(
        200,
        "\"deleted\"",
        r#"curl http://$admin/apisix/admin/routes/1 -H "X-API-KEY: $admin_key" -X DELETE"#,
    ),
];

#[tokio::test]
async fn a_route_is_created_changed_and_removed() {
    let page = Page::open(json!({})).await;
    page.follow(&[step(
        201,
        "201 Created",
        r#"curl http://$admin/apisix/admin/routes/1 -H "X-API-KEY: $admin_key" -X PUT -i -d '
    {
        "uri": "/index.html",
        "hosts": ["foo.com", "*.bar.com"],
        "remote_addrs": ["127.0.0.0/8"],
        "methods": ["PUT", "GET"],
        "enable_websocket": true,
        "upstream": {
            "type": "roundrobin",
            "nodes": {
                "127.0.0.1:1980": 1
            }
        }
    }'"#,
    )])
    .await;
    page.follow(&PATCH_ROUTE).await;
    page.follow(&SWITCH_ROUTE).await;
}

const PATCH_SERVICE: [Step; 3] = [
    step(
        200,
        r#""nodes":{"127.0.0.1:1980":1,"127.0.0.1:1981":1}"#,
        r#"curl http://$admin/apisix/admin/services/201 \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "upstream": {
            "nodes": {
                "127.0.0.1:1981": 1
            }
        }
    }'"#,
    ),
    step(
        200,
        r#""nodes":{"127.0.0.1:1981":1}"#,
        r#"curl http://$admin/apisix/admin/services/201 \
    -H"X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "upstream": {
            "nodes": {
                "127.0.0.1:1980": null
            }
        }
    }'"#,
    ),
    step(
        200,
        r#""nodes":{"127.0.0.1:1982":1}"#,
        r#"curl http://$admin/apisix/admin/services/201/upstream/nodes \
    -H"X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "127.0.0.1:1982": 1
    }'"#,
    ),
];

#[tokio::test]
async fn a_service_and_its_nodes() {
    let page = Page::open(json!({})).await;
    page.follow(&[
        // The page's service has the plugin limit-count, which does not exist here.
        step(
            400,
            "limit-count",
            r#"curl http://$admin/apisix/admin/services/201  \
    -H "X-API-KEY: $admin_key" -X PUT -i -d '
    {
        "plugins": {
            "limit-count": {
                "count": 2,
                "time_window": 60,
                "rejected_code": 503,
                "key": "remote_addr"
            }
        },
        "enable_websocket": true,
        "upstream": {
            "type": "roundrobin",
            "nodes": {
                "127.0.0.1:1980": 1
            }
        }
    }'"#,
        ),
        step(
            201,
            "201 Created",
            r#"curl http://$admin/apisix/admin/services/201  \
    -H "X-API-KEY: $admin_key" -X PUT -i -d '
    {
        "enable_websocket": true,
        "upstream": {
            "type": "roundrobin",
            "nodes": {
                "127.0.0.1:1980": 1
            }
        }
    }'"#,
        ),
    ])
    .await;
    page.follow(&PATCH_SERVICE).await;
}

#[tokio::test]
async fn an_upstream_and_its_nodes() {
    let page = Page::open(json!({})).await;
    page.follow(&[
        step(
            201,
            "201 Created",
            r#"curl http://$admin/apisix/admin/upstreams/100  \
    -H "X-API-KEY: $admin_key" -i -X PUT -d '
    {
        "type":"roundrobin",
        "nodes":{
            "127.0.0.1:1980": 1
        }
    }'"#,
        ),
        step(
            200,
            r#""nodes":{"127.0.0.1:1980":1,"127.0.0.1:1981":1}"#,
            r#"curl http://$admin/apisix/admin/upstreams/100 \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "nodes": {
            "127.0.0.1:1981": 1
        }
    }'"#,
        ),
        step(
            200,
            r#""127.0.0.1:1981":10"#,
            r#"curl http://$admin/apisix/admin/upstreams/100 \
    -H"X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "nodes": {
            "127.0.0.1:1981": 10
        }
    }'"#,
        ),
        step(
            200,
            r#""nodes":{"127.0.0.1:1981":10}"#,
            r#"curl http://$admin/apisix/admin/upstreams/100 \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "nodes": {
            "127.0.0.1:1980": null
        }
    }'"#,
        ),
        step(
            200,
            r#""nodes":{"127.0.0.1:1982":1}"#,
            r#"curl http://$admin/apisix/admin/upstreams/100/nodes \
    -H "X-API-KEY: $admin_key" -X PATCH -i -d '
    {
        "127.0.0.1:1982": 1
    }'"#,
        ),
    ])
    .await;
}

#[tokio::test]
async fn an_https_upstream_and_a_spare_node() {
    let page = Page::open(json!({})).await;
    let credential = page.world.credentials.upstreams.server(&["httpbin.org"]);
    let secure = e2e::upstream::Upstream::tls("secure", &credential).await;
    let page = page.with("secure", secure.address()).with("spare", "127.0.0.1:1");
    page.follow(&[
        step(
            201,
            "\"scheme\":\"https\"",
            r#"curl -i http://$admin/apisix/admin/routes/1 \
    -H "X-API-KEY: $admin_key" -X PUT -d '
    {
        "uri": "/get",
        "upstream": {
            "type": "roundrobin",
            "scheme": "https",
            "nodes": {
                "'$secure'": 1
            }
        }
    }'"#,
        ),
        step(200, "\"upstream\":\"secure\"", r"curl http://127.0.0.1:$http/get"),
        // Without the page's health check, which does not exist here: the node of a lower priority
        // is the spare.
        step(
            201,
            "/apisix/routes/2",
            r#"curl http://$admin/apisix/admin/routes/2 -H "X-API-KEY: $admin_key" -X PUT -d '{
  "uri": "/hello",
  "upstream": {
    "type": "roundrobin",
    "nodes": [
      { "host": "127.0.0.1", "port": '${httpbin#*:}', "weight": 2000 },
      { "host": "127.0.0.1", "port": 1, "weight": 1, "priority": -1 }
    ]
  }
}'"#,
        ),
        step(200, "\"upstream\":\"httpbin\"", r"curl http://127.0.0.1:$http/hello"),
    ])
    .await;
    assert_eq!(page.upstream.requests(), 1);
}

#[tokio::test]
async fn a_document_against_its_schema() {
    let page = Page::open(json!({})).await;
    page.follow(&[step(
        400,
        r#"{"error_msg":"property \"uri\" validation failed: wrong type: expected string, got number""#,
        r#"curl http://$admin/apisix/admin/schema/validate/routes \
    -H "X-API-KEY: $admin_key" -X POST -i -d '{
    "uri": 1980,
    "upstream": {
        "scheme": "https",
        "type": "roundrobin",
        "nodes": {
            "nghttp2.org": 1
        }
    }
}'"#,
    )])
    .await;
}
