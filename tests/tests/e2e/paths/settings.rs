//! The settings of `apisix` about paths, for rules and upstreams alike.

use serde_json::json;

use super::{expect, sites};

#[tokio::test]
async fn rules_and_upstream_agree_on_encoded_slashes() {
    let (world, _upstream) = sites(json!({"apisix": {"match_uri_encoded_slash": true}})).await;
    let skip = [
        ("/public/a%2Fb", Ok("/public/a%2Fb")),
        ("/public/a%2fb", Ok("/public/a%2Fb")),
        ("/public/a%252Fb", Ok("/public/a%252Fb")),
        ("/public%2fx", Err(400)),
        ("/public/..%2fsecret", Err(400)),
        ("/public/a%2f..%2f..%2fsecret", Err(400)),
        ("/secret%2f..%2fpublic/x", Ok("/public/x")),
        ("/public/a%2F/b", Ok("/public/a/b")),
    ];
    expect(&world.client("skip.test"), &skip).await;
    // One segment for the rules and for the upstream: `/secret%2Fx` is not below `/secret/`.
    let list = [("/secret/x", Err(403)), ("/secret/a%2Fb", Err(403)), ("/secret%2Fx", Ok("/secret%2Fx"))];
    expect(&world.verified_client("list.test"), &list).await;
}

#[tokio::test]
async fn parameters_and_the_trailing_slash_are_not_checked() {
    let settings = json!({"apisix": {"normalize_uri_like_servlet": true, "delete_uri_tail_slash": true}});
    let (world, _upstream) = sites(settings).await;
    let list = [
        ("/free;x=1/y;z", Ok("/free;x=1/y;z")),
        ("/free/", Ok("/free")),
        ("/", Ok("/")),
        ("/secret;x/y", Err(403)),
        ("/free/..;/secret/y", Err(403)),
        ("/secret/..;x/free", Ok("/free")),
        ("/%73ecret%3Bx/y", Err(403)),
        ("/;x/secret/y", Err(400)),
        ("/free/..;%5Csecret/y", Err(400)),
    ];
    expect(&world.verified_client("list.test"), &list).await;
    let skip = [("/public/..;/secret", Err(400)), ("/public/x;y/", Ok("/public/x;y"))];
    expect(&world.client("skip.test"), &skip).await;
}
