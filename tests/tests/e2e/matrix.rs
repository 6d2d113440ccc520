//! Every client at every kind of site: mode x chain x revocation x TLS version x HTTP x visit, over
//! real handshakes.
//!
//! [`table`] holds the expected verdicts, written by hand with their reasons; `clients` issues the
//! certificates. A site that requires certificates rejects the handshake with the alert of the
//! reason; one with skip rules denies a protected path with 400; an exempt path and a site without
//! client authentication serve every client. No denied request reaches the upstream.

mod clients;
mod table;

use std::sync::Arc;

use e2e::client::{Http, HttpClient, HttpConnection, Tls, alert_in, bounded};
use e2e::documents::route;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use rustls::{AlertDescription, ClientConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use clients::{Clients, Pki};
use table::{REVOCATIONS, ROWS, Revocation, Row, Verdict};

/// Visits of the same client, which offers its sessions again. The second visit must get the
/// verdict of the first.
const VISITS: &[Visit] = &[Visit::First, Visit::Again];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visit {
    First,
    /// With the session cache of the first visit.
    Again,
}

/// The client authentication of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    /// A certificate in the handshake.
    Requires,
    /// A certificate, except below `/exempt/`.
    Skips,
}

const PROTECTED: &str = "/protected/x";
const EXEMPT: &str = "/exempt/x";

struct Site {
    mode: Mode,
    revocation: Revocation,
    host: String,
}

fn sites() -> Vec<Site> {
    let mut sites =
        vec![Site { mode: Mode::Open, revocation: Revocation::None, host: "open.matrix.test".to_owned() }];
    for mode in [Mode::Requires, Mode::Skips] {
        for revocation in REVOCATIONS {
            let host = format!("{mode:?}-{revocation:?}.matrix.test").to_lowercase();
            sites.push(Site { mode, revocation, host });
        }
    }
    sites
}

fn document(world: &World, pki: &Pki, clients: &Clients, site: &Site) -> Value {
    let credential = world.credentials.servers.server(&[&site.host]);
    let mut document = e2e::documents::site(&credential, &site.host);
    if site.mode == Mode::Open {
        return document;
    }
    document["client"] = json!({"ca": pki.bundle(clients), "depth": 1});
    if site.mode == Mode::Skips {
        document["client"]["skip_mtls_uri_regex"] = json!(["^/exempt/"]);
    }
    if let Some((lists, policy)) = pki.lists(clients, site.revocation) {
        document["client"]["crl"] = json!(lists);
        document["client"]["crl_policy"] = json!(policy);
    }
    document
}

#[tokio::test]
async fn every_client_gets_the_verdict_of_the_table() {
    let world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let pki = Pki::generate();
    let clients = Clients::generate(&pki);
    let sites = sites();
    let mut documents: Vec<(String, Value)> =
        vec![("routes/matrix".to_owned(), route("*.matrix.test", "/*", &[upstream.address()]))];
    for (number, site) in sites.iter().enumerate() {
        documents.push((format!("ssls/site-{number}"), document(&world, &pki, &clients, site)));
    }
    let documents: Vec<(&str, Value)> =
        documents.iter().map(|(path, document)| (path.as_str(), document.clone())).collect();
    world.apply(&documents).await;

    let mut wrong = Vec::new();
    let (mut served, mut resumed) = (0, 0);
    for row in ROWS {
        for site in &sites {
            for (tls, http) in
                [(Tls::V12, Http::One), (Tls::V12, Http::Two), (Tls::V13, Http::One), (Tls::V13, Http::Two)]
            {
                let client = world.client(&site.host).tls(tls).http(http);
                let client = clients
                    .shown(row.client)
                    .into_iter()
                    .fold(client, |client, shown| client.certificate(shown));
                let config = Arc::new(client.config());
                for visit in VISITS {
                    let (seen, taken_up) = visit_site(&client, &config, site).await;
                    resumed += usize::from(taken_up && *visit == Visit::Again);
                    let expected = expectation(row, site);
                    served += expected.served();
                    if seen != expected {
                        let place =
                            format!("{:?} at {} ({tls:?}, {http:?}, {visit:?})", row.client, site.host);
                        wrong.push(format!("{place}: {seen:?}, not {expected:?}, for {}", row.because));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(resumed > 4 * sites.len(), "only {resumed} of the second visits took up a session");
    assert_eq!(upstream.requests(), served, "the upstream sees what is served and nothing else");
}

/// The result of one connection, as the client sees it.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// The handshake was rejected.
    Refused(Option<AlertDescription>),
    /// The statuses of the two paths.
    Answered { protected: StatusCode, exempt: StatusCode },
}

impl Seen {
    fn served(&self) -> u64 {
        match self {
            Self::Refused(_) => 0,
            Self::Answered { protected, exempt } => {
                [protected, exempt].iter().filter(|status| status.is_success()).count() as u64
            }
        }
    }
}

fn expectation(row: &Row, site: &Site) -> Seen {
    let verdict = row.verdicts[site.revocation as usize];
    match (site.mode, verdict) {
        (Mode::Open, _) | (_, Verdict::In) => {
            Seen::Answered { protected: StatusCode::OK, exempt: StatusCode::OK }
        }
        (Mode::Skips, Verdict::Out(_)) => {
            Seen::Answered { protected: StatusCode::BAD_REQUEST, exempt: StatusCode::OK }
        }
        (Mode::Requires, Verdict::Out(rule)) => Seen::Refused(Some(rule.alert())),
    }
}

/// The result, and whether a session was resumed.
async fn visit_site(client: &HttpClient, config: &Arc<ClientConfig>, site: &Site) -> (Seen, bool) {
    if site.mode == Mode::Requires
        && let Some(refused) = knock(client, config).await
    {
        return (refused, false);
    }
    ask(client, config).await
}

/// Handshakes and reads: a client of TLS 1.3 learns of a rejection only then.
async fn knock(client: &HttpClient, config: &Arc<ClientConfig>) -> Option<Seen> {
    /// The gateway responds with 400 and forwards nothing: the request names no host.
    const H1: &[u8] = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
    /// The preface and empty SETTINGS.
    const H2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut stream = match client.handshake_with(Arc::clone(config)).await {
        Ok(stream) => stream,
        Err(refused) => return Some(Seen::Refused(refused.alert)),
    };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    // The rejection may have come already; then reading shows it.
    let _ = stream.write_all(if h2 { H2 } else { H1 }).await;
    match bounded("an alert or an answer", stream.read_exact(&mut [0; 1])).await {
        Ok(_) => None,
        Err(problem) => Some(Seen::Refused(alert_in(&problem))),
    }
}

/// Both paths over one connection; the exempt one first, because a 400 may end an HTTP/1
/// connection.
async fn ask(client: &HttpClient, config: &Arc<ClientConfig>) -> (Seen, bool) {
    let mut session: HttpConnection = match client.connect_with(Arc::clone(config)).await {
        Ok(session) => session,
        Err(refused) => return (Seen::Refused(refused.alert), false),
    };
    let resumed = session.resumed();
    let mut statuses = [StatusCode::OK; 2];
    for (path, status) in [EXEMPT, PROTECTED].into_iter().zip(&mut statuses) {
        match session.get(path).await {
            Ok(reply) => *status = reply.status,
            Err(refused) => return (Seen::Refused(refused.alert), resumed),
        }
    }
    let [exempt, protected] = statuses;
    (Seen::Answered { protected, exempt }, resumed)
}
