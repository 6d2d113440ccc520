//! The cases in real handshakes: a site for each, written through the Admin API, and a client with
//! the case's chain.
//!
//! Anchors or revocation lists that the Admin API rejects count as a rejection. A client of TLS 1.3
//! completes its handshake before the verdict, so acceptance is a response to a request, and a
//! rejection is an alert.

use e2e::client::{ClientCertificate, HttpClient, Tls, alert_in, bounded};
use e2e::documents::site;
use e2e::raw;
use e2e::world::World;
use http::Method;
use rustls::AlertDescription;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Score;
use crate::cases::{Case, Limbo};
use crate::verifier::NO_LIMIT;

/// Runs the cases of today.
pub(crate) fn judge(limbo: &Limbo) -> Score {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(judge_all(limbo))
}

async fn judge_all(limbo: &Limbo) -> Score {
    let world = World::start().await;
    let credential = world.credentials.servers.server(&["*.limbo.test"]);
    let admin = world.admin();
    let mut revision = 0;
    let mut sites = Vec::new();
    for (number, case) in limbo.of_today().enumerate() {
        let host = format!("case-{number}.limbo.test");
        let mut document = site(&credential, &host);
        document["client"] = json!({
            "ca": case.trusted_certs.concat(),
            "depth": case.max_chain_depth.unwrap_or(NO_LIMIT),
        });
        if !case.crls.is_empty() {
            document["client"]["crl"] = json!(case.crls);
        }
        let answer = admin.call(Method::PUT, &format!("ssls/case-{number}"), Some(&document)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", case.id));
        revision = answer.revision.unwrap_or(revision);
        let refused = (!answer.status.is_success()).then(|| answer.reply.text());
        sites.push((case, host, refused));
    }
    world.wait_acknowledged(revision).await;
    let mut score = Score::default();
    for (case, host, refused) in sites {
        let right = match refused {
            Some(why) => case.is_right(&Err(format!("refused by the Admin API: {why}")), "over TLS"),
            None => {
                let mut right = true;
                for tls in [Tls::V12, Tls::V13] {
                    let place = format!("over TLS ({tls:?})");
                    right &= match shake_hands(&world.client(&host).tls(tls), case).await {
                        Ok(verdict) => case.is_right(&verdict, &place),
                        Err(Unjudged(what)) => {
                            println!("WRONG {place}: {}: no verdict: {what}", case.id);
                            false
                        }
                    };
                }
                right
            }
        };
        score.count(right);
    }
    score
}

/// The connection ended for a reason other than the client's certificate.
struct Unjudged(String);

/// The start of the gateway's response, or the alert.
async fn shake_hands(client: &HttpClient, case: &Case) -> Result<Result<String, String>, Unjudged> {
    let key = PrivateKeyDer::from_pem_slice(case.key.as_bytes()).expect("a case's key is readable");
    let client = client.clone().certificate(&ClientCertificate::new(case.chain(), &key));
    let (alert, detail) = match client.handshake().await {
        Err(refused) => (refused.alert, refused.detail),
        Ok(mut stream) => {
            let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", client.host());
            // The rejection may have come already; then reading shows it.
            let _ = stream.write_all(request.as_bytes()).await;
            let mut first = [0; 12];
            match bounded("the first answer", stream.read_exact(&mut first)).await {
                Ok(_) => {
                    raw::until_closed(&mut stream).await;
                    return Ok(Ok(String::from_utf8_lossy(&first).into_owned()));
                }
                Err(problem) => (alert_in(&problem), problem.to_string()),
            }
        }
    };
    match alert {
        Some(AlertDescription::UnrecognisedName | AlertDescription::InternalError) | None => {
            Err(Unjudged(format!("{alert:?}: {detail}")))
        }
        Some(alert) => Ok(Err(format!("{alert:?}"))),
    }
}
