//! The scenarios, each a few commands with their expected results. The first four are the gateway's
//! four mutual TLS connections.
//!
//! A scenario passes when all of its steps do; a step that cannot run fails its scenario only.

use std::fs;
use std::process::Stdio;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::Tally;
use super::environment::{Environment, program_path};
use super::etcd::{self, DemoEtcd};
use super::shell::{Expect, expect_failure, expect_output, mark, print_command, run, step};

/// Writes acknowledged before the control plane is killed.
const ACKNOWLEDGED: usize = 15;

pub(super) async fn run_all(demo: &mut Environment) -> anyhow::Result<Tally> {
    let mut shown = Tally::default();
    title(1, "The Admin API over mutual TLS");
    shown.count(admin_api(demo).await);
    title(2, "etcd over mutual TLS");
    match etcd::lacking() {
        None => shown.count(etcd_store(demo).await),
        Some(program) => {
            println!(
                "   *** NOT SHOWN: there is no {program} on this machine. With etcd and etcdctl (Debian, Ubuntu: `apt-get install"
            );
            println!(
                "   *** etcd-server etcd-client`) this shows the control plane and an etcd that verify each other."
            );
            shown.skipped += 1;
        }
    }
    title(3, "A protected route");
    shown.count(protected_route(demo).await);
    title(4, "Mutual TLS to the upstream");
    shown.count(upstream(demo).await);
    title(5, "The store survives a kill -9");
    shown.count(store(demo).await);
    Ok(shown)
}

fn title(number: usize, text: &str) {
    println!("\n{number}. {text}");
}

async fn etcd_store(demo: &Environment) -> anyhow::Result<bool> {
    let etcd = DemoEtcd::start(demo).await?;
    println!("   An etcd that demands a client certificate of its own CA is running:");
    print_command(&etcd.command(demo));
    let mut good = step(
        "Without a certificate it rejects clients:",
        &etcd.health(demo, "--tls-max 1.2"),
        Expect::Rejected,
    )
    .await?;

    let settings = etcd.settings(demo)?;
    let program = program_path("controlplane");
    let mallory = fs::canonicalize(demo.file(""))?.join("mallory");
    let outsider = format!("ETCD_CLIENT={} \\\n  {program} -c {settings}", mallory.display());
    good &= expect_failure(
        "A control plane whose certificate is of another CA does not start, and says why:",
        &outsider,
        "etcd rejects our client certificate",
    )
    .await?;

    println!("\n   With a certificate of the right CA it is ready:");
    print_command(&format!("{program} -c {settings}"));
    let (process, port) = etcd::control_plane(demo, &settings).await?;
    println!("   {} its Admin API is at 127.0.0.1:{port}", mark(true));
    let route = r#"-X PUT -d '{"uri": "/in-etcd", "upstream": {"nodes": {"127.0.0.1:9001": 1}}}'"#;
    let put = demo.admin_at(port, route, "routes/in-etcd");
    good &= step("Write a route through it:", &put, Expect::Answer(201, "/apisix/routes/in-etcd")).await?;
    let get = etcd.etcdctl(demo, "get --prefix /apisix/routes/");
    good &= expect_output("etcd has it:", &get, &["/apisix/routes/in-etcd", "\"uri\":\"/in-etcd\""]).await?;
    process.stop_if_running().await;
    Ok(good)
}

async fn admin_api(demo: &Environment) -> anyhow::Result<bool> {
    let key = demo.key_header();
    let outsider = format!("{} \\\n  {key}", demo.client("mallory"));
    let certificate = demo.client("admin-client");
    let mut good = step(
        "With a certificate of the Admin CA and the API key:",
        &demo.admin("", "routes"),
        Expect::Answer(200, "\"total\":0"),
    )
    .await?;
    good &= step(
        "Without a certificate:",
        &demo.admin_with(&key, "routes"),
        Expect::Answer(400, "No required SSL certificate was sent"),
    )
    .await?;
    good &= step(
        "With a certificate of another CA:",
        &demo.admin_with(&outsider, "routes"),
        Expect::Answer(400, "The SSL certificate error"),
    )
    .await?;
    good &= step(
        "Without the key:",
        &demo.admin_with(&certificate, "routes"),
        Expect::Answer(401, "missing apikey"),
    )
    .await?;
    Ok(good)
}

async fn store(demo: &mut Environment) -> anyhow::Result<bool> {
    println!("   Write one upstream after another, and kill the control plane while it writes:");
    let put = demo.admin("-X PUT -d '{\"nodes\":{\"127.0.0.1:1\":1}}'", "upstreams/kept-$i");
    let looped = format!("for i in $(seq 1000); do\n  {}\ndone", put.replace('\n', "\n  "));
    print_command(&looped);
    let quiet = put.replacen("curl", "curl -sS -o /dev/null -w '%{http_code}'", 1);
    let script = format!("for i in $(seq 1000); do answer=$({quiet} 2>/dev/null); echo \"$i $answer\"; done");
    let mut writer = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run sh")?;
    let mut lines = BufReader::new(writer.stdout.take().context("the writer has an output")?).lines();
    let mut acknowledged = Vec::new();
    while let Some(line) = lines.next_line().await? {
        let (number, answer) = line.split_once(' ').context("a line of the writer")?;
        if !answer.starts_with("20") {
            break;
        }
        acknowledged.push(number.to_owned());
        if acknowledged.len() == ACKNOWLEDGED {
            print_command(&format!("kill -9 {}", demo.control_id()));
            demo.kill_control().await;
        }
    }
    writer.kill().await?;
    let enough = acknowledged.len() >= ACKNOWLEDGED;
    println!("   {} {} writes were acknowledged before it died", mark(enough), acknowledged.len());

    demo.start_control().await?;
    println!("\n   Started again, it has:");
    let list = demo.admin("", "upstreams");
    print_command(&list);
    let answer = run(&list).await?;
    let body: Value = serde_json::from_str(answer.body()).context("the list is JSON")?;
    let kept: Vec<&Value> =
        body["list"].as_array().into_iter().flatten().map(|item| &item["value"]["id"]).collect();
    let lost: Vec<&String> =
        acknowledged.iter().filter(|number| !kept.contains(&&json!(format!("kept-{number}")))).collect();
    let whole = lost.is_empty();
    println!(
        "   {} {} upstreams; of the {} acknowledged, {} are lost",
        mark(whole),
        kept.len(),
        acknowledged.len(),
        lost.len()
    );
    Ok(enough && whole)
}

async fn protected_route(demo: &Environment) -> anyhow::Result<bool> {
    let (plain, _) = demo.upstreams();
    let site = format!(
        r#"-X PUT -d '{{
    "snis": ["app.example"],
    "cert": {},
    "key": {},
    "client": {{"ca": {}, "depth": 1}}
  }}'"#,
        demo.json_of("site.crt"),
        demo.json_of("site.key"),
        demo.json_of("client-ca.crt")
    );
    let route = format!(
        r#"-X PUT -d '{{"host": "app.example", "uri": "/*", "upstream": {{"type": "roundrobin", "nodes": {{"{plain}": 1}}}}}}'"#
    );
    let mut good = step(
        "A site that demands client certificates, and a route:",
        &demo.admin(&site, "ssls/app"),
        Expect::Answer(201, "/apisix/ssls/app"),
    )
    .await?;
    good &= step("", &demo.admin(&route, "routes/app"), Expect::Answer(201, "/apisix/routes/app")).await?;
    demo.wait_acknowledged().await?;

    let alice = demo.client("alice");
    for (about, protocols) in [
        ("A good client, HTTP/2 and TLS 1.3:", "--http2 --tlsv1.3"),
        ("The same over HTTP/1.1 and TLS 1.2:", "--http1.1 --tls-max 1.2"),
    ] {
        let command = demo.site(&format!("{protocols} {alice}"), "/hello");
        good &= step(about, &command, Expect::Answer(200, "\"uri\":\"/hello\"")).await?;
    }
    for (about, options) in [
        ("No certificate:", String::new()),
        ("A certificate of another CA:", demo.client("mallory")),
        ("An expired one:", demo.client("expired")),
    ] {
        good &= step(about, &demo.site(&options, "/hello"), Expect::Rejected).await?;
    }
    Ok(good)
}

async fn upstream(demo: &Environment) -> anyhow::Result<bool> {
    let (_, strict) = demo.upstreams();
    let certificate = format!(
        r#"{{"client_cert": {}, "client_key": {}}}"#,
        demo.json_of("gateway.crt"),
        demo.json_of("gateway.key")
    );
    let document = format!(
        r#"-X PUT -d '{{
    "type": "roundrobin", "scheme": "https", "nodes": {{"{strict}": 1}},
    "pass_host": "rewrite", "upstream_host": "strict.example",
    "tls": {certificate}
  }}'"#
    );
    let mut good = step(
        "An upstream that demands a certificate, with the gateway's own in `tls`:",
        &demo.admin(&document, "upstreams/strict"),
        Expect::Answer(201, "/apisix/upstreams/strict"),
    )
    .await?;
    let route = r#"-X PUT -d '{"host":"app.example","uri":"/strict/*","upstream_id":"strict"}'"#;
    good &=
        step("", &demo.admin(route, "routes/strict"), Expect::Answer(201, "/apisix/routes/strict")).await?;
    demo.wait_acknowledged().await?;
    let call = demo.site(&demo.client("alice"), "/strict/hello");
    let seen = Expect::Answer(200, "\"client_subject\":\"CN=the-gateway\"");
    good &= step("It answers, and says whom it saw:", &call, seen).await?;

    good &= step(
        "Take the certificate away:",
        &demo.admin(r#"-X PATCH -d '{"tls":null}'"#, "upstreams/strict"),
        Expect::Answer(200, ""),
    )
    .await?;
    demo.wait_acknowledged().await?;
    good &= step("The upstream refuses the gateway:", &call, Expect::Answer(502, "502 Bad Gateway")).await?;

    good &= step(
        "Give it back:",
        &demo.admin(&format!("-X PATCH -d '{{\"tls\": {certificate}}}'"), "upstreams/strict"),
        Expect::Answer(200, ""),
    )
    .await?;
    demo.wait_acknowledged().await?;
    good &= step("And it answers again:", &call, seen).await?;
    Ok(good)
}
