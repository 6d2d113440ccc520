//! OpenSSL's client, which keeps its session in a file: APISIX's cases A11 and A12.

use std::path::Path;

use tokio::io::AsyncWriteExt;

use super::*;

/// The output of `openssl s_client` with one request for `host`.
async fn s_client(world: &World, version: &str, sni: &str, host: &str, arguments: &[&str]) -> String {
    let usual = ["-servername", sni, version, "-ign_eof", "-CAfile", "server-ca.crt", "-verify_return_error"];
    let mut child = e2e::tools::s_client(world.https(), world.folder(), &with(&usual, arguments));
    let request = format!("GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    // A rejected handshake ends the program before it reads.
    let _ = child.stdin.take().unwrap().write_all(request.as_bytes()).await;
    let output = e2e::client::bounded("openssl", child.wait_with_output()).await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

const IDENTITY: [&str; 4] = ["-cert", "client.crt", "-key", "client.key"];

fn with<'a>(some: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [some, more].concat()
}

async fn two_sites() -> (World, Upstream) {
    let (world, upstream, _) = protected_app().await;
    let credentials = &world.credentials;
    let second = site(&credentials.servers.server(&["second.test"]), "second.test");
    world.apply(&[("ssls/second", protected(second, &credentials.clients))]).await;
    (world, upstream)
}

fn ticket_hint(output: &str) -> Option<u64> {
    let line = output.lines().find(|line| line.contains("TLS session ticket lifetime hint"))?;
    line.split_whitespace().find_map(|word| word.parse().ok())
}

#[tokio::test]
async fn a_saved_session_resumes_without_a_certificate() {
    let (world, _upstream) = two_sites().await;
    for version in ["-tls1_2", "-tls1_3"] {
        let save = with(&IDENTITY, &["-sess_out", "session.pem"]);
        // A11.
        let output = s_client(&world, version, "app.test", "app.test", &save).await;
        assert!(output.contains("HTTP/1.1 200") && output.contains("New, TLSv1."), "{version}: {output}");
        assert_eq!(ticket_hint(&output), Some(28_800), "{version}: {output}");
        assert!(Path::new(&world.folder().join("session.pem")).exists(), "{version}");
        let reuse = ["-sess_in", "session.pem"];
        let output = s_client(&world, version, "app.test", "app.test", &reuse).await;
        assert!(output.contains("HTTP/1.1 200") && output.contains("Reused, TLSv1."), "{version}: {output}");
        // One ticket a handshake.
        let tickets = output.matches("Post-Handshake New Session Ticket arrived").count();
        assert_eq!(tickets, usize::from(version == "-tls1_3"), "{version}: {output}");
        assert!(!output.contains("Max Early Data: 1"), "{version}: {output}");
    }
}

#[tokio::test]
async fn a_saved_session_under_another_name_is_not_resumed() {
    let (world, upstream) = two_sites().await;
    for version in ["-tls1_2", "-tls1_3"] {
        let save = with(&IDENTITY, &["-sess_out", "session.pem"]);
        s_client(&world, version, "app.test", "app.test", &save).await;
        // A12: APISIX responds with 400 in the resumed session; here it is not resumed, and the
        // client has no certificate.
        let seen = upstream.requests();
        let reuse = ["-sess_in", "session.pem"];
        let output = s_client(&world, version, "second.test", "second.test", &reuse).await;
        assert!(!output.contains("Reused") && !output.contains("HTTP/1.1"), "{version}: {output}");
        assert!(output.contains("alert"), "{version}: {output}");
        assert_eq!(upstream.requests(), seen, "{version}");
        // With a certificate, the full handshake succeeds.
        let output = s_client(&world, version, "second.test", "second.test", &with(&IDENTITY, &reuse)).await;
        assert!(output.contains("HTTP/1.1 200") && output.contains("New, TLSv1."), "{version}: {output}");
    }
}
