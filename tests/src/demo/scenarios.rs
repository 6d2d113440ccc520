//! The four scenarios, each a few curl commands with what they must lead to.
//!
//! A scenario passes when every one of its steps does; a step that cannot be run at all fails its scenario only.

use std::process::Stdio;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::shell::{Expect, mark, print_command, run, step};
use super::stage::Stage;

/// Writes acknowledged before the control plane is killed.
const ACKNOWLEDGED: usize = 15;

/// Runs all of them in order; gives how many passed and how many failed.
pub async fn run_all(stage: &mut Stage) -> anyhow::Result<(usize, usize)> {
    let mut passed = Vec::new();
    title(1, "The Admin API over mutual TLS");
    passed.push(conclude(admin_api(stage).await));
    title(2, "The store survives a kill -9");
    passed.push(conclude(store(stage).await));
    title(3, "A protected route");
    passed.push(conclude(protected_route(stage).await));
    title(4, "Mutual TLS to the upstream");
    passed.push(conclude(upstream(stage).await));
    let good = passed.iter().filter(|good| **good).count();
    Ok((good, passed.len() - good))
}

fn title(number: usize, text: &str) {
    println!("\n{number}. {text}");
}

fn conclude(result: anyhow::Result<bool>) -> bool {
    result.unwrap_or_else(|problem| {
        println!("   {} {problem:#}", mark(false));
        false
    })
}

async fn admin_api(stage: &Stage) -> anyhow::Result<bool> {
    let key = stage.key_header();
    let stranger = format!("{} \\\n  {key}", stage.client("mallory"));
    let certificate = stage.client("admin-client");
    let mut good = step(
        "With a certificate of the Admin CA and the API key:",
        &stage.admin("", "routes"),
        Expect::Answer(200, "\"total\":0"),
    )
    .await?;
    good &= step(
        "Without a certificate:",
        &stage.admin_with(&key, "routes"),
        Expect::Answer(400, "No required SSL certificate was sent"),
    )
    .await?;
    good &= step(
        "With a certificate of another CA:",
        &stage.admin_with(&stranger, "routes"),
        Expect::Answer(400, "The SSL certificate error"),
    )
    .await?;
    good &= step(
        "Without the key:",
        &stage.admin_with(&certificate, "routes"),
        Expect::Answer(401, "missing apikey"),
    )
    .await?;
    Ok(good)
}

async fn store(stage: &mut Stage) -> anyhow::Result<bool> {
    println!("   (etcd over mutual TLS comes with the etcd store; this is the embedded one)");
    println!("\n   Write one upstream after another, and kill the control plane while it writes:");
    let put = stage.admin("-X PUT -d '{\"nodes\":{\"127.0.0.1:1\":1}}'", "upstreams/kept-$i");
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
            print_command(&format!("kill -9 {}", stage.control_id()));
            stage.kill_control().await;
        }
    }
    writer.kill().await?;
    let enough = acknowledged.len() >= ACKNOWLEDGED;
    println!("   {} {} writes were acknowledged before it died", mark(enough), acknowledged.len());

    stage.start_control().await?;
    println!("\n   Started again, it has:");
    let list = stage.admin("", "upstreams");
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

async fn protected_route(stage: &Stage) -> anyhow::Result<bool> {
    let (plain, _) = stage.upstreams();
    let site = format!(
        r#"-X PUT -d '{{
    "snis": ["app.example"],
    "cert": {},
    "key": {},
    "client": {{"ca": {}, "depth": 1}}
  }}'"#,
        stage.pasted("site.crt"),
        stage.pasted("site.key"),
        stage.pasted("client-ca.crt")
    );
    let route = format!(
        r#"-X PUT -d '{{"host": "app.example", "uri": "/*", "upstream": {{"type": "roundrobin", "nodes": {{"{plain}": 1}}}}}}'"#
    );
    let mut good = step(
        "A site that demands client certificates, and a route:",
        &stage.admin(&site, "ssls/app"),
        Expect::Answer(201, "/apisix/ssls/app"),
    )
    .await?;
    good &= step("", &stage.admin(&route, "routes/app"), Expect::Answer(201, "/apisix/routes/app")).await?;
    stage.settled().await?;

    let alice = stage.client("alice");
    for (about, protocols) in [
        ("A good client, HTTP/2 and TLS 1.3:", "--http2 --tlsv1.3"),
        ("The same over HTTP/1.1 and TLS 1.2:", "--http1.1 --tls-max 1.2"),
    ] {
        let command = stage.site(&format!("{protocols} {alice}"), "/hello");
        good &= step(about, &command, Expect::Answer(200, "\"uri\":\"/hello\"")).await?;
    }
    for (about, options) in [
        ("No certificate:", String::new()),
        ("A certificate of another CA:", stage.client("mallory")),
        ("An expired one:", stage.client("expired")),
    ] {
        good &= step(about, &stage.site(&options, "/hello"), Expect::Refused).await?;
    }
    Ok(good)
}

async fn upstream(stage: &Stage) -> anyhow::Result<bool> {
    let (_, strict) = stage.upstreams();
    let certificate = format!(
        r#"{{"client_cert": {}, "client_key": {}}}"#,
        stage.pasted("gateway.crt"),
        stage.pasted("gateway.key")
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
        &stage.admin(&document, "upstreams/strict"),
        Expect::Answer(201, "/apisix/upstreams/strict"),
    )
    .await?;
    let route = r#"-X PUT -d '{"host":"app.example","uri":"/strict/*","upstream_id":"strict"}'"#;
    good &=
        step("", &stage.admin(route, "routes/strict"), Expect::Answer(201, "/apisix/routes/strict")).await?;
    stage.settled().await?;
    let call = stage.site(&stage.client("alice"), "/strict/hello");
    let seen = Expect::Answer(200, "\"client_subject\":\"CN=the-gateway\"");
    good &= step("It answers, and says whom it saw:", &call, seen).await?;

    good &= step(
        "Take the certificate away:",
        &stage.admin(r#"-X PATCH -d '{"tls":null}'"#, "upstreams/strict"),
        Expect::Answer(200, ""),
    )
    .await?;
    stage.settled().await?;
    good &= step("The upstream refuses the gateway:", &call, Expect::Answer(502, "502 Bad Gateway")).await?;

    good &= step(
        "Give it back:",
        &stage.admin(&format!("-X PATCH -d '{{\"tls\": {certificate}}}'"), "upstreams/strict"),
        Expect::Answer(200, ""),
    )
    .await?;
    stage.settled().await?;
    good &= step("And it answers again:", &call, seen).await?;
    Ok(good)
}
