//! Connections of HTTP/2 that the upstream drains, or ends at the worst moment: no request is lost
//! that was not processed, and none is processed twice.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use e2e::world::World;
use futures_util::future::join_all;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Bytes;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::kept::load;

/// What a connection does after some requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// It drains, as RFC 9113 section 6.8 wants it: GOAWAY, PING, GOAWAY.
    Drain,
    /// It refuses every other request, once.
    Refuse,
    /// GOAWAY and FIN, whatever is in progress.
    Close,
    /// RST, when the next request has arrived.
    Reset,
}

use Moment::{Close, Drain, Refuse, Reset};

/// What became of requests, by target.
#[derive(Default)]
struct Requests {
    /// How often each was processed.
    processed: HashMap<String, usize>,
    refused: HashSet<String>,
}

/// An upstream whose connections serve `requests` requests each until their moment.
struct Draining {
    address: SocketAddr,
    log: Arc<Mutex<Requests>>,
    task: JoinHandle<()>,
}

impl Draining {
    async fn start(requests: usize, moment: Moment) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Requests>> = Arc::default();
        let shared = Arc::clone(&log);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let log = Arc::clone(&shared);
                connections.spawn(async move { drop(serve(tcp, requests, moment, &log).await) });
            }
        });
        Self { address, log, task }
    }

    fn processed(&self, target: &str) -> usize {
        self.log.lock().unwrap().processed.get(target).copied().unwrap_or_default()
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    tcp: TcpStream,
    requests: usize,
    moment: Moment,
    log: &Mutex<Requests>,
) -> Result<(), h2::Error> {
    let mut connection = server::handshake(tcp).await?;
    let mut answers = JoinSet::new();
    let mut count = 0;
    while let Some(next) = connection.accept().await {
        let (request, mut respond) = next?;
        count += 1;
        let target = request.uri().path().to_owned();
        if moment == Refuse && count % 2 == 0 && log.lock().unwrap().refused.insert(target.clone()) {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        *log.lock().unwrap().processed.entry(target).or_default() += 1;
        if moment == Reset && count > requests {
            return Ok(());
        }
        answers.spawn(answer(request, respond));
        match moment {
            Drain if count == requests => connection.graceful_shutdown(),
            Close if count == requests => connection.abrupt_shutdown(Reason::NO_ERROR),
            _ => {}
        }
    }
    Ok(())
}

/// Reads the body, which is "body" or nothing.
async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let wanted: &[u8] = if request.method() == Method::POST { b"body" } else { b"" };
    let mut body = request.into_body();
    let mut read = Vec::new();
    while let Some(data) = body.data().await {
        read.extend_from_slice(&data?);
    }
    let status = if read == wanted { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    let mut response = Response::new(());
    *response.status_mut() = status;
    respond.send_response(response, true)?;
    Ok(())
}

/// Requests of a connection: several times those that are sent again when it ends.
const SHARE: usize = 40;

#[tokio::test]
async fn an_end_between_requests_loses_and_repeats_none() {
    for moment in [Drain, Refuse, Close, Reset] {
        let node = Draining::start(SHARE, moment).await;
        let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
        let upstream = json!({"scheme": "grpc", "nodes": {node.address.to_string(): 1}});
        world.apply(&[("routes/all", json!({"uri": "/*", "upstream": upstream}))]).await;
        let clients = join_all((0..8).map(|client| load(&world, client))).await;
        for (target, method, status) in clients.into_iter().flatten() {
            let count = node.processed(&target);
            let what = format!("{moment:?} {method} {target}: {status}, processed {count} times");
            if matches!(moment, Drain | Refuse) {
                assert_eq!((status, count), (StatusCode::OK, 1), "{what}");
            } else if method == Method::GET {
                // It may be sent again, and is never lost.
                assert!(status == StatusCode::OK && count >= 1, "{what}");
            } else {
                assert!(count <= 1, "{what}");
                assert!(
                    status == StatusCode::OK && count == 1 || status == StatusCode::BAD_GATEWAY,
                    "{what}"
                );
            }
        }
    }
}
