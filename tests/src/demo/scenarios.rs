//! The scenarios, each a few commands with what they must lead to. The first four are the gateway's
//! four mutual TLS connections.
//!
//! A scenario passes when every one of its steps does; a step that cannot be run at all fails its scenario only.

use std::process::Stdio;
use std::{fmt, fs};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::etcd::{self, Etcd};
use super::shell::{Expect, ends, mark, print_command, run, says, step};
use super::stage::{Stage, built};

/// Writes acknowledged before the control plane is killed.
const ACKNOWLEDGED: usize = 15;

/// How the scenarios went.
#[derive(Default)]
pub struct Shown {
    /// Everything was as it must be.
    pub passed: usize,
    /// Something was not.
    pub failed: usize,
    /// This machine lacks a program for them.
    pub not_shown: usize,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} scenarios passed, {} failed", self.passed, self.failed)?;
        if self.not_shown > 0 {
            write!(f, ", {} NOT SHOWN (see above)", self.not_shown)?;
        }
        Ok(())
    }
}

impl Shown {
    fn conclude(&mut self, result: anyhow::Result<bool>) {
        let good = result.unwrap_or_else(|problem| {
            println!("   {} {problem:#}", mark(false));
            false
        });
        if good {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }
}

/// Runs all of them in order.
pub async fn run_all(stage: &mut Stage) -> anyhow::Result<Shown> {
    let mut shown = Shown::default();
    title(1, "The Admin API over mutual TLS");
    shown.conclude(admin_api(stage).await);
    title(2, "etcd over mutual TLS");
    match etcd::lacking() {
        None => shown.conclude(etcd_store(stage).await),
        Some(program) => {
            println!(
                "   *** NOT SHOWN: there is no {program} on this machine. With etcd and etcdctl (Debian, Ubuntu: `apt-get install"
            );
            println!(
                "   *** etcd-server etcd-client`) this shows the control plane and an etcd that verify each other."
            );
            shown.not_shown += 1;
        }
    }
    title(3, "A protected route");
    shown.conclude(protected_route(stage).await);
    title(4, "Mutual TLS to the upstream");
    shown.conclude(upstream(stage).await);
    title(5, "The store survives a kill -9");
    shown.conclude(store(stage).await);
    Ok(shown)
}

fn title(number: usize, text: &str) {
    println!("\n{number}. {text}");
}

async fn etcd_store(stage: &Stage) -> anyhow::Result<bool> {
    let etcd = Etcd::start(stage).await?;
    println!("   An etcd that demands a client certificate of its own CA is running:");
    print_command(&etcd.command(stage));
    let mut good = step(
        "Without a certificate it answers nobody:",
        &etcd.health(stage, "--tls-max 1.2"),
        Expect::Refused,
    )
    .await?;

    let settings = etcd.settings(stage)?;
    let program = built("controlplane");
    let mallory = fs::canonicalize(stage.file(""))?.join("mallory");
    let stranger = format!("ETCD_CLIENT={} \\\n  {program} -c {settings}", mallory.display());
    good &= ends(
        "A control plane whose certificate is of another CA does not start, and says why:",
        &stranger,
        "etcd refuses our client certificate",
    )
    .await?;

    println!("\n   With a certificate of the right CA it is ready:");
    print_command(&format!("{program} -c {settings}"));
    let (process, port) = etcd::control_plane(stage, &settings).await?;
    println!("   {} its Admin API is at 127.0.0.1:{port}", mark(true));
    let route = r#"-X PUT -d '{"uri": "/in-etcd", "upstream": {"nodes": {"127.0.0.1:9001": 1}}}'"#;
    let put = stage.admin_at(port, route, "routes/in-etcd");
    good &= step("Write a route through it:", &put, Expect::Answer(201, "/apisix/routes/in-etcd")).await?;
    let get = etcd.etcdctl(stage, "get --prefix /apisix/routes/");
    good &= says("etcd has it:", &get, &["/apisix/routes/in-etcd", "\"uri\":\"/in-etcd\""]).await?;
    process.stop_if_running().await;
    Ok(good)
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
    println!("   Write one upstream after another, and kill the control plane while it writes:");
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
    stage.wait_acknowledged().await?;

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
    stage.wait_acknowledged().await?;
    let call = stage.site(&stage.client("alice"), "/strict/hello");
    let seen = Expect::Answer(200, "\"client_subject\":\"CN=the-gateway\"");
    good &= step("It answers, and says whom it saw:", &call, seen).await?;

    good &= step(
        "Take the certificate away:",
        &stage.admin(r#"-X PATCH -d '{"tls":null}'"#, "upstreams/strict"),
        Expect::Answer(200, ""),
    )
    .await?;
    stage.wait_acknowledged().await?;
    good &= step("The upstream refuses the gateway:", &call, Expect::Answer(502, "502 Bad Gateway")).await?;

    good &= step(
        "Give it back:",
        &stage.admin(&format!("-X PATCH -d '{{\"tls\": {certificate}}}'"), "upstreams/strict"),
        Expect::Answer(200, ""),
    )
    .await?;
    stage.wait_acknowledged().await?;
    good &= step("And it answers again:", &call, seen).await?;
    Ok(good)
}
