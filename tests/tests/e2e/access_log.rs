//! The access log: one line for each request, TCP connection and refused handshake, which no client
//! can forge, and whose target harms no traffic.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::client::{Http, bounded};
use e2e::documents::route;
use e2e::ports::Reservation;
use e2e::raw;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::StatusCode;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::stream::{ask_plain, streaming, to};

/// The settings of an access log in the world's folder. Lines of one worker are in their order.
fn logged() -> Value {
    json!({"nginx_config": {"http": {"access_log": "access.log"}}, "countersign": {"workers": 1}})
}

fn formatted(format: &str, escape: &str) -> Value {
    let mut settings = logged();
    settings["nginx_config"]["http"]["access_log_format"] = format.into();
    settings["nginx_config"]["http"]["access_log_format_escape"] = escape.into();
    settings
}

fn path(world: &World) -> PathBuf {
    world.folder().join("access.log")
}

/// The lines of a log, as soon as there are so many.
async fn lines(path: &Path, count: usize) -> Vec<String> {
    let found = async {
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.matches('\n').count() >= count {
                return text.lines().map(str::to_owned).collect::<Vec<_>>();
            }
            tokio::task::yield_now().await;
        }
    };
    let lines = bounded(&format!("{count} lines in {}", path.display()), found).await;
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

/// As [`lines`], each an object.
async fn objects(world: &World, count: usize) -> Vec<Value> {
    let lines = lines(&path(world), count).await;
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[tokio::test]
async fn a_request_is_one_line_with_every_field() {
    let (world, upstream) = World::protected(logged()).await;
    for http in [Http::One, Http::Two] {
        let mut connection = world.verified_client("app.test").http(http).connect().await.unwrap();
        assert_eq!(connection.get("/a?b=c").await.unwrap().status, StatusCode::OK);
    }
    let all = objects(&world, 2).await;
    for (line, (protocol, alpn)) in all.iter().zip([("HTTP/1.1", "http/1.1"), ("HTTP/2.0", "h2")]) {
        assert_eq!(
            (&line["kind"], &line["route"], &line["site"]),
            (&"request".into(), &"app".into(), &"app".into())
        );
        assert_eq!(line["request"]["method"], "GET");
        assert_eq!(line["request"]["protocol"], protocol);
        assert_eq!(line["request"]["host"], "app.test");
        assert!(line["request"]["uri"].as_str().unwrap().ends_with("/a?b=c"), "{line}");
        assert_eq!(
            (&line["status"], &line["completed"], &line["tries"]),
            (&200.into(), &true.into(), &1.into())
        );
        assert_eq!(line["tls"]["version"], "TLSv1.3");
        assert_eq!((&line["tls"]["sni"], &line["tls"]["alpn"]), (&"app.test".into(), &alpn.into()));
        let client = &line["client"];
        assert_eq!((&client["verified"], &client["address"]), (&true.into(), &"127.0.0.1".into()));
        assert_eq!(client["sha256"].as_str().unwrap().len(), 64);
        assert!(client["subject"].as_str().unwrap().contains("CN="), "{line}");
        assert_eq!(line["upstream"]["node"], upstream.address().to_string());
        assert_eq!(
            (&line["upstream"]["status"], &line["upstream"]["host"]),
            (&200.into(), &"app.test".into())
        );
        assert_eq!(line["request_id"].as_str().unwrap().len(), 32);
        assert!(
            line["bytes_sent"].as_u64() > Some(100) && line["bytes_received"].as_u64() > Some(30),
            "{line}"
        );
        let total = line["total_time"].as_f64().unwrap();
        assert!(total >= line["first_byte_time"].as_f64().unwrap() && total > 0.0, "{line}");
        assert!(line.get("reason").is_none(), "{line}");
    }
    assert_ne!(all[0]["request_id"], all[1]["request_id"]);
}

#[tokio::test]
async fn what_is_refused_has_its_line() {
    let (world, upstream) = World::protected(logged()).await;
    world.client("app.test").expect_alert().await;
    let bad_host = b"GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n";
    let bad_host = raw::until_closed(&mut raw::send(world.http(), bad_host).await).await;
    assert!(String::from_utf8_lossy(&bad_host).starts_with("HTTP/1.1 400"));
    let garbage = raw::until_closed(&mut raw::send(world.http(), b"GET / HTTP/9\r\n\r\n").await).await;
    assert!(String::from_utf8_lossy(&garbage).starts_with("HTTP/1.1 "), "{garbage:?}");
    let missing = world.plain("other.test").await.get("/").await.unwrap();
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let all = objects(&world, 4).await;
    let reason = |line: &Value| line["reason"].as_str().unwrap_or_default().to_owned();
    assert_eq!((&all[0]["kind"], reason(&all[0])), (&"handshake".into(), "no_certificate".to_owned()));
    assert_eq!((&all[0]["site"], &all[0]["tls"]["sni"]), (&"app".into(), &"app.test".into()));
    assert!(all[1]["status"] == 400 && !reason(&all[1]).is_empty(), "{:#}", all[1]);
    assert!(all[2]["status"].as_u64() >= Some(400) && !reason(&all[2]).is_empty(), "{:#}", all[2]);
    assert_eq!((&all[3]["status"], reason(&all[3])), (&404.into(), "no_route".to_owned()));
    assert!(all.iter().all(|line| line.get("upstream").is_none()), "{all:#?}");
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_retry_and_a_client_that_leaves_are_seen() {
    let (world, upstream) = World::open(logged()).await;
    let closed = Reservation::any();
    let mut two = route("two.test", "/*", &[closed.address(), upstream.address()]);
    two["upstream"]["nodes"] = json!([
        {"host": "127.0.0.1", "port": closed.address().port(), "weight": 1, "priority": 1},
        {"host": "127.0.0.1", "port": upstream.address().port(), "weight": 1, "priority": 0},
    ]);
    world.apply(&[("routes/two", two)]).await;
    assert_eq!(world.plain("two.test").await.get("/").await.unwrap().status, StatusCode::OK);
    let retried = &objects(&world, 1).await[0];
    assert_eq!((&retried["tries"], &retried["status"]), (&2.into(), &200.into()), "{retried:#}");
    assert_eq!(retried["upstream"]["failed"][0]["node"], closed.address().to_string());
    assert_eq!(retried["upstream"]["failed"][0]["status"], 502);
    assert_eq!(retried["upstream"]["node"], upstream.address().to_string());
    let held = b"GET /hold HTTP/1.1\r\nHost: app.test\r\n\r\n";
    let leaving = raw::send(world.http(), held).await;
    upstream.arrived(2).await;
    drop(leaving);
    let left = &objects(&world, 2).await[1];
    assert_eq!((&left["status"], &left["completed"]), (&499.into(), &false.into()), "{left:#}");
}

/// Bytes that would end a line, a string or a terminal's line.
const FORGED: &[u8] = b"a\"},\n{\"x\":1 \\ \x1b[2J \xff \xc3\xa9 \t end";

#[tokio::test]
async fn no_text_of_a_client_leaves_its_value() {
    for (settings, is_json) in [
        (logged(), true),
        (
            formatted("{\"a\": \"$http_user_agent\", \"u\": \"$request_uri\", \"r\": \"$request\"}", "json"),
            true,
        ),
        (
            formatted("$remote_addr \"$http_user_agent\" \"$request_uri\" \"$http_referer\" end", "default"),
            false,
        ),
        (formatted("$remote_addr [$http_user_agent] [$request_uri] end", "none"), false),
    ] {
        let (world, _upstream) = World::open(settings).await;
        // A header cannot have a line break, and a target no blank.
        let value: Vec<u8> = FORGED.iter().copied().filter(|byte| !matches!(byte, b'\n' | 0x1b)).collect();
        let mut request =
            b"GET /%0A%22?a='%5c%0d%0aX HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\nUser-Agent: "
                .to_vec();
        request.extend_from_slice(&value);
        request.extend_from_slice(b"\r\nReferer: \"' $status ${pid}\r\n\r\n");
        raw::until_closed(&mut raw::send(world.http(), &request).await).await;
        let line = &lines(&path(&world), 1).await[0];
        assert!(!line.chars().any(char::is_control), "{line:?}");
        if is_json {
            let read: Value = serde_json::from_str(line).unwrap();
            let agent = read
                .get("a")
                .unwrap_or(&read["request"]["user_agent"])
                .as_str()
                .unwrap_or_else(|| panic!("{line}"));
            assert_eq!(agent, String::from_utf8_lossy(&value), "{line}");
            let python = "import json,sys; sys.exit(len(json.loads(sys.stdin.readline())) < 2)";
            let file = fs::File::open(path(&world)).unwrap();
            assert!(Command::new("python3").args(["-c", python]).stdin(file).status().unwrap().success());
        } else {
            assert!(line.starts_with("127.0.0.1 ") && line.ends_with("end"), "{line}");
            assert!(!line.contains('\u{fffd}') && line.contains("\\xFF"), "{line}");
        }
    }
}

#[tokio::test]
async fn the_format_of_apisix_is_that_of_nginx() {
    let format = "$remote_addr - $remote_user [$time_local] $http_host \"$request\" $status $body_bytes_sent \
                  $request_time \"$http_referer\" \"$http_user_agent\" $upstream_addr $upstream_status \
                  $upstream_response_time \"$upstream_scheme://$upstream_host$upstream_uri\"";
    let (world, upstream) = World::open(formatted(format, "default")).await;
    world.plain("app.test").await.get("/a?b").await.unwrap();
    raw::until_closed(&mut raw::send(world.http(), b"\r\n\r\nnothing\r\n\r\n").await).await;
    let lines = lines(&path(&world), 2).await;
    let node = upstream.address();
    let (start, rest) = lines[0].split_once('[').unwrap();
    let (time, rest) = rest.split_once("] ").unwrap();
    assert_eq!(start, "127.0.0.1 - - ");
    assert!(time.ends_with(" +0000") && time.len() == 26, "{time}");
    let fields: Vec<&str> = rest.split(' ').collect();
    assert!(fields[0].starts_with("app.test"), "{rest}");
    assert!(rest.contains("/a?b HTTP/1.1\" 200 "), "{rest}");
    let expected = [format!(" {node} 200 0."), "/a?b\"".to_owned(), "\"http://app.test".to_owned()];
    assert!(expected.iter().all(|part| rest.contains(part)), "{rest}");
    assert!(lines[1].contains(" \"-\" 400 ") && lines[1].ends_with("\"-://--\""), "{}", lines[1]);
}

#[tokio::test]
async fn a_reload_changes_where_lines_go_and_their_form() {
    let (mut world, _upstream) = World::open(logged()).await;
    let get = async |world: &World| world.plain("app.test").await.get("/").await.unwrap();
    get(&world).await;
    objects(&world, 1).await;
    let reload = async |world: &mut World, more: Value, words: &[&str]| {
        let mark = world.node_log().mark();
        world.change_settings(more);
        world.write_config("node-1");
        world.node_process().signal(Signal::SIGHUP);
        world.node_log().line_after(mark, words).await
    };
    reload(&mut world, formatted("$status", "default"), &["access_log_format", "applied"]).await;
    get(&world).await;
    assert_eq!(lines(&path(&world), 2).await[1], "200");
    let unknown = reload(&mut world, formatted("$statsu", "default"), &["were not reloaded"]).await;
    assert!(unknown.contains("unknown variable $statsu (did you mean $status?)"), "{unknown}");
    let folder = json!({"nginx_config": {"http": {"access_log": "missing/access.log", "access_log_format": "$status"}}});
    let missing = reload(&mut world, folder, &["were not reloaded"]).await;
    assert!(missing.contains("missing/access.log") && missing.contains("make its folder"), "{missing}");
    get(&world).await;
    lines(&path(&world), 3).await;
    let off = json!({"nginx_config": {"http": {"access_log": "access.log", "enable_access_log": false}}});
    reload(&mut world, off, &["enable_access_log", "applied"]).await;
    get(&world).await;
    let on = json!({"nginx_config": {"http": {"enable_access_log": true}}});
    reload(&mut world, on, &["enable_access_log", "applied"]).await;
    get(&world).await;
    lines(&path(&world), 4).await;
    fs::rename(path(&world), world.folder().join("access.log.1")).unwrap();
    world.node_process().signal(Signal::SIGUSR1);
    bounded("the file is made again", async {
        while !path(&world).exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    get(&world).await;
    lines(&path(&world), 1).await;
}

#[tokio::test]
async fn a_full_target_costs_its_lines_alone() {
    let settings = json!({"nginx_config": {"http": {"access_log": "/dev/full"}}});
    let (world, _upstream) = World::open(settings).await;
    let mut connection = world.client("app.test").connect().await.unwrap();
    for _ in 0..20 {
        assert_eq!(connection.get("/").await.unwrap().status, StatusCode::OK);
    }
    let lost = "countersign_log_lines_dropped_total{log=\"access\"} 20\n";
    bounded("lost lines are counted", async {
        while !world.status("/metrics").await.text().contains(lost) {}
    })
    .await;
    world.node_log().line_with(&["/dev/full"]).await;
}

#[tokio::test]
async fn tcp_connections_have_a_log_of_their_own() {
    let mut settings = streaming();
    let http = json!({"access_log": "access.log"});
    let stream = json!({"enable_access_log": true, "access_log": "stream.log"});
    e2e::settings::merge(&mut settings, json!({"nginx_config": {"http": http, "stream": stream}}));
    let world = World::builder().settings(settings).start().await;
    let upstream = TcpUpstream::plain("a", Script::Greet).await;
    let plain = json!({"server_port": world.stream(1).port(), "upstream": to(&[upstream.address()])});
    world.apply(&[("stream_routes/plain", plain)]).await;
    ask_plain(&world).await;
    world.tcp_client("nobody.test").expect_alert().await;
    let path = world.folder().join("stream.log");
    let all: Vec<Value> =
        lines(&path, 2).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&all[0]["kind"], &all[0]["route"]), (&"tcp".into(), &"plain".into()), "{all:#?}");
    assert_eq!((&all[0]["completed"], &all[0]["bytes_received"]), (&true.into(), &3.into()));
    assert_eq!(all[0]["upstream"]["node"], upstream.address().to_string());
    assert_eq!((&all[1]["kind"], &all[1]["reason"]), (&"handshake".into(), &"no_site".into()));
    assert_eq!(fs::read_to_string(world.folder().join("access.log")).unwrap(), "");
}
