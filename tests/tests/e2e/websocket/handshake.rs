//! The handshake, with a raw upstream: what it gets, what opens a tunnel, and what does not.

use bytes::Bytes;
use e2e::client::bounded;
use e2e::raw;
use e2e::scripted::{ScriptedGateway, read_until};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{HANDSHAKE, at_end, connect, enabled, field, open, open_http2, plain, switching, tls};

/// The head that the upstream gets, whatever the client's protocol.
fn assert_handshake(head: &str) {
    assert!(head.starts_with("GET /chat?room=1 HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("host", "app.test"),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-protocol", "chat"),
        ("sec-websocket-version", "13"),
    ] {
        assert_eq!(field(head, name), Some(value), "{name}: {head}");
    }
    assert!(field(head, "content-length").is_none() && field(head, "transfer-encoding").is_none(), "{head}");
    assert!(field(head, "x-forwarded-for").is_some(), "{head}");
}

#[tokio::test]
async fn bytes_pass_both_ways_over_http_1() {
    let gateway = enabled().await;
    let mut client = plain(&gateway).await;
    // Behind the handshake in one write: bytes of the tunnel.
    client.write_all(format!("{HANDSHAKE}early").as_bytes()).await.unwrap();
    let (mut upstream, head) = gateway.request().await;
    assert_handshake(&head);
    assert_eq!(field(&head, "sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    upstream.write_all(format!("{}first", switching(&head)).as_bytes()).await.unwrap();
    let answered = read_until(&mut client, "first").await;
    assert!(answered.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answered}");
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("sec-websocket-protocol", "chat"),
    ] {
        assert_eq!(field(&answered, name), Some(value), "{name}: {answered}");
    }
    read_until(&mut upstream, "early").await;
    client.write_all(b"GET /x HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut upstream, "\r\n\r\n").await, "GET /x HTTP/1.1\r\n\r\n");
    // Each direction ends on its own.
    client.shutdown().await.unwrap();
    at_end(&mut upstream).await;
    upstream.write_all(b"last").await.unwrap();
    read_until(&mut client, "last").await;
    drop(upstream);
    at_end(&mut client).await;
    let counted = async { while gateway.world.metric("countersign_websockets_active").await > 0 {} };
    bounded("the WebSocket is counted as closed", counted).await;
    for (metric, count) in [
        ("countersign_websockets_total", 1),
        ("countersign_websocket_bytes_total{direction=\"to_upstream\"}", 24),
        ("countersign_websocket_bytes_total{direction=\"to_client\"}", 9),
        ("countersign_http_responses_total{code_class=\"1xx\"}", 1),
    ] {
        assert_eq!(gateway.world.metric(metric).await, count, "{metric}");
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_over_http_2() {
    let gateway = enabled().await;
    let mut connection = gateway.http2().await;
    let (response, mut send) = connection.send_request(connect("websocket"), false).unwrap();
    // DATA before the response waits for the tunnel.
    send.send_data(Bytes::from_static(b"early"), false).unwrap();
    let (mut upstream, head) = gateway.request().await;
    assert_handshake(&head);
    upstream.write_all(format!("{}first", switching(&head)).as_bytes()).await.unwrap();
    let response = bounded("the response", response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    for name in ["connection", "upgrade", "sec-websocket-accept", "content-length"] {
        assert!(!response.headers().contains_key(name), "{:?}", response.headers());
    }
    let mut stream = super::Stream { receive: response.into_body(), send, _connection: connection };
    assert_eq!(stream.read(5).await, b"first");
    read_until(&mut upstream, "early").await;
    stream.send.send_data(Bytes::from_static(b"more"), true).unwrap();
    read_until(&mut upstream, "more").await;
    at_end(&mut upstream).await;
    upstream.write_all(b"last").await.unwrap();
    assert_eq!(stream.read(4).await, b"last");
    drop(upstream);
    assert_eq!(stream.ended().await, Ok(()));
}

#[tokio::test]
async fn megabytes_pass_unchanged() {
    const BYTES: usize = 4 * 1024 * 1024;
    let gateway = enabled().await;
    let sent = e2e::upstream::pattern(BYTES);
    let client = gateway.world.client("app.test");
    let mut session = tls(&client).await;
    let mut upstream = open(&gateway, &mut session).await;
    let mut echoed = vec![0; BYTES];
    let echo = async {
        let (mut read, mut write) = upstream.split();
        tokio::io::copy(&mut read, &mut write).await
    };
    let (mut read, mut write) = tokio::io::split(session);
    let whole = async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut echoed)) };
    let both = async {
        tokio::select! { _ = echo => panic!("the echo ended"), whole = whole => whole }
    };
    bounded("the echo over HTTP/1", both).await.unwrap();
    assert!(echoed == sent, "HTTP/1");

    let (mut stream, mut upstream) = open_http2(&gateway, &client).await;
    let (mut read, mut write) = upstream.split();
    let echo = async { tokio::io::copy(&mut read, &mut write).await };
    let super::Stream { receive, send, .. } = &mut stream;
    let upload = async {
        let mut rest = Bytes::from(sent.clone());
        while !rest.is_empty() {
            send.reserve_capacity(rest.len());
            let window = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
            send.send_data(rest.split_to(window.min(rest.len())), false).unwrap();
        }
    };
    let download = async {
        let mut read = Vec::new();
        while read.len() < BYTES {
            let data = receive.data().await.unwrap().unwrap();
            receive.flow_control().release_capacity(data.len()).unwrap();
            read.extend_from_slice(&data);
        }
        read
    };
    let whole = async { tokio::join!(upload, download).1 };
    let both = async {
        tokio::select! { _ = echo => panic!("the echo ended"), whole = whole => whole }
    };
    assert!(bounded("the echo over HTTP/2", both).await == sent, "HTTP/2");
}

#[tokio::test]
async fn the_route_decides_before_its_service() {
    let gateway = ScriptedGateway::start().await;
    for (of_service, of_route, opens) in [
        (json!(null), json!(null), false),
        (json!(true), json!(null), true),
        (json!(true), json!(false), false),
        (json!(false), json!(true), true),
    ] {
        let with = |mut document: Value, flag: &Value| {
            if !flag.is_null() {
                document["enable_websocket"] = flag.clone();
            }
            document
        };
        let upstream = json!({"type": "roundrobin", "nodes": {gateway.address().to_string(): 1}});
        let service = with(json!({"upstream": upstream}), &of_service);
        let route = with(json!({"uri": "/*", "host": "app.test", "service_id": "chat"}), &of_route);
        gateway.world.apply(&[("services/chat", service), ("routes/app", route)]).await;
        let (mut http1, mut http2) = (plain(&gateway).await, gateway.http2().await);
        if opens {
            open(&gateway, &mut http1).await;
            open_http2(&gateway, &gateway.world.client("app.test")).await;
            continue;
        }
        http1.write_all(HANDSHAKE.as_bytes()).await.unwrap();
        let answered = read_until(&mut http1, "</html>").await;
        assert!(answered.starts_with("HTTP/1.1 426 "), "{of_service} {of_route}: {answered}");
        let (response, _body) = http2.send_request(connect("websocket"), false).unwrap();
        let response = bounded("the response", response).await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED, "{of_service} {of_route}");
        assert!(gateway.is_quiet(), "nothing reached the upstream");
    }
}

#[tokio::test]
async fn an_answer_without_101_is_an_ordinary_response() {
    let gateway = enabled().await;
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole", 200),
        (
            "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 5\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nwhole",
            426,
        ),
        ("HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n", 404),
    ] {
        let mut client = plain(&gateway).await;
        client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
        let (mut upstream, _) = gateway.request().await;
        upstream.write_all(answer.as_bytes()).await.unwrap();
        let answered = read_until(&mut client, "whole").await;
        assert!(answered.starts_with(&format!("HTTP/1.1 {status} ")), "{answered}");
        assert!(!answered.to_ascii_lowercase().contains("upgrade:"), "{answered}");
        // Nothing else is sent on that connection; the next request gets one of its own.
        at_end(&mut upstream).await;

        let mut http2 = gateway.http2().await;
        let (response, _body) = http2.send_request(connect("websocket"), false).unwrap();
        let (mut upstream, _) = gateway.request().await;
        upstream.write_all(answer.as_bytes()).await.unwrap();
        let mut response = bounded("the response", response).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(bounded("the body", response.body_mut().data()).await.unwrap().unwrap(), "whole");
        at_end(&mut upstream).await;
    }
    // The connection of the client goes on.
    let mut client = plain(&gateway).await;
    client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    let (mut upstream, _) = gateway.request().await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole").await.unwrap();
    read_until(&mut client, "whole").await;
    client.write_all(b"GET /next HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
    let (mut upstream, head) = gateway.request().await;
    assert!(head.starts_with("GET /next ") && field(&head, "upgrade").is_none(), "{head}");
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext").await.unwrap();
    read_until(&mut client, "next").await;
}

#[tokio::test]
async fn a_101_for_another_handshake_is_502() {
    let gateway = enabled().await;
    let right = |head: &str| switching(head);
    let answers: [fn(&str) -> String; 6] = [
        |head| switching(head).replace("Upgrade: websocket\r\n", ""),
        |head| switching(head).replace("Upgrade: websocket", "Upgrade: h2c"),
        |head| switching(head).replace("Connection: Upgrade\r\n", ""),
        |head| switching(head).replace("Accept: ", "Accept: x"),
        |head| switching(head).replace("HTTP/1.1", "HTTP/1.0"),
        |_| "HTTP/1.1 101 \r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
    ];
    for answer in answers {
        let mut client = plain(&gateway).await;
        client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
        let (mut upstream, head) = gateway.request().await;
        assert_ne!(answer(&head), right(&head));
        upstream.write_all(answer(&head).as_bytes()).await.unwrap();
        let answered = read_until(&mut client, "</html>").await;
        assert!(answered.starts_with("HTTP/1.1 502 "), "{:?}: {answered}", answer(&head));
        assert!(raw::until_closed(&mut upstream).await.is_empty());
        let mut http2 = gateway.http2().await;
        let (response, _body) = http2.send_request(connect("websocket"), false).unwrap();
        let (mut upstream, head) = gateway.request().await;
        upstream.write_all(answer(&head).as_bytes()).await.unwrap();
        let response = bounded("the response", response).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{:?}", answer(&head));
        assert!(raw::until_closed(&mut upstream).await.is_empty());
    }
    let lines = ["no response from the upstream", "upstream_invalid", "Sec-WebSocket-Accept"];
    gateway.world.node_log().line_with(&lines).await;
}

#[tokio::test]
async fn a_handshake_has_no_body_and_the_right_method() {
    let gateway = enabled().await;
    let get = HANDSHAKE.trim_end();
    for (request, status) in [
        (format!("{get}\r\nContent-Length: 5\r\n\r\nhello"), "400"),
        (format!("{get}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "400"),
        (HANDSHAKE.replace("GET ", "POST "), "426"),
        (HANDSHAKE.replace("Connection: keep-alive, Upgrade\r\n", ""), "426"),
        (HANDSHAKE.replace("websocket", "websocket, h2c"), "426"),
    ] {
        let mut client = plain(&gateway).await;
        client.write_all(request.as_bytes()).await.unwrap();
        let answered = read_until(&mut client, "</html>").await;
        assert!(answered.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answered}");
    }
    let with_length = |length: &'static str| {
        let mut request = connect("websocket");
        request.headers_mut().insert("content-length", length.parse().unwrap());
        request
    };
    let other = connect("connect-udp");
    let bare = Request::connect("app.test:443").body(()).unwrap();
    for (request, ends, status) in [
        (with_length("5"), false, 400),
        (connect("websocket"), true, 400),
        (other, false, 501),
        (bare, false, 405),
    ] {
        let mut http2 = gateway.http2().await;
        let (response, _body) = http2.send_request(request, ends).unwrap();
        assert_eq!(bounded("the response", response).await.unwrap().status(), status);
    }
    assert!(gateway.is_quiet(), "nothing reached the upstream");
}
