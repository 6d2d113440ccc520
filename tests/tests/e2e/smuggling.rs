//! Request smuggling: raw requests through the gateway to a byte logger, directly and with nginx,
//! HAProxy or Envoy between, which each read what the gateway forwards once more.
//!
//! The law: behind each of them the logger sees exactly the requests that the gateway forwarded,
//! with the same methods, targets and bodies; and the request behind an attack on the client's
//! connection gets its own answer, or none.

mod chains;
mod corpus;
mod http2;
mod logger;

use std::collections::BTreeMap;

use e2e::client::bounded;
use e2e::documents::{route, site};
use e2e::raw;
use e2e::world::World;
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use chains::Chain;
use corpus::{Case, End};
use logger::SeenRequest;

/// Cases that are tried at once over one chain: their requests share its connections.
const AT_ONCE: usize = 16;

/// What a client of the gateway got for one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answers {
    /// The final statuses in order.
    statuses: Vec<String>,
    /// The targets that the logger answered, in order.
    answered: Vec<String>,
}

/// The host of a chain's route.
fn host(chain: &Chain) -> String {
    format!("{}.test", chain.name())
}

/// A gateway with a route for each chain.
async fn world(chains: &[Chain]) -> World {
    // Bodies that never end are given up soon.
    let http = json!({"client_body_timeout": "2s", "client_header_timeout": "2s"});
    let world = World::builder().settings(json!({"nginx_config": {"http": http}})).start().await;
    let mut documents = Vec::new();
    for chain in chains {
        let host = host(chain);
        let pair = world.credentials.servers.server(&[&host]);
        documents.push((format!("ssls/{}", chain.name()), site(&pair, &host)));
        documents.push((format!("routes/{}", chain.name()), route(&host, "/*", &[chain.address()])));
    }
    let borrowed: Vec<_> = documents.iter().map(|(path, json)| (path.as_str(), json.clone())).collect();
    world.apply(&borrowed).await;
    world
}

/// Sends a case and a canary behind it on one connection, and reads until the gateway ends it.
async fn send(world: &World, host: &str, number: usize, case: &Case) -> Answers {
    let mut stream = raw::send(world.http(), &case.bytes(host, number)).await;
    let (mut answered, mut buffer, mut ended) = (Vec::new(), [0; 4096], false);
    // A reset behind the answers is an end, too.
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        answered.extend_from_slice(&buffer[..count]);
        let closing = answered.to_ascii_lowercase().windows(17).any(|bytes| bytes == b"connection: close");
        if closing && !ended {
            // The gateway need not wait for the rest of a body.
            ended = stream.shutdown().await.is_ok();
        }
    }
    Answers::parse(&String::from_utf8_lossy(&answered))
}

impl Answers {
    fn parse(text: &str) -> Self {
        let heads = text.match_indices("HTTP/1.").filter_map(|(at, _)| {
            let status = text.get(at + 8..at + 13)?.strip_prefix(' ')?.strip_suffix(' ')?;
            status.bytes().all(|byte| byte.is_ascii_digit()).then(|| status.to_owned())
        });
        // The logger's answers have this line for a body; those to HEAD have none.
        let bodies = text.match_indices("seen ").map(|(at, _)| text[at + 5..].lines().next());
        Self {
            statuses: heads.filter(|status| status != "100").collect(),
            answered: bodies.map(|line| line.unwrap_or_default().to_owned()).collect(),
        }
    }
}

/// Runs the corpus over one chain; gives the answers of each case, and the logger's requests.
async fn run(world: &World, chain: &Chain, cases: &[Case]) -> Vec<(Answers, Vec<SeenRequest>)> {
    let host = host(chain);
    let sent = cases.iter().enumerate().map(|(number, case)| send(world, &host, number, case));
    let answers: Vec<Answers> = stream::iter(sent).buffered(AT_ONCE).collect().await;
    let mut seen: BTreeMap<usize, Vec<SeenRequest>> = BTreeMap::new();
    for request in chain.logger().seen() {
        let number = request.number();
        let number = number.unwrap_or_else(|| panic!("{}: of no case: {request:?}", chain.name()));
        seen.entry(number).or_default().push(request);
    }
    answers
        .into_iter()
        .enumerate()
        .map(|(number, answers)| (answers, seen.remove(&number).unwrap_or_default()))
        .collect()
}

/// Why a result is not the expected one.
fn difference(
    reader: &str,
    case: &Case,
    number: usize,
    answers: &Answers,
    seen: &[SeenRequest],
) -> Option<&'static str> {
    let (mut forwarded, mut end) = (case.forwarded.clone(), case.end);
    if case.refused_by.contains(&reader) {
        // The reader takes less than the gateway: one answer, and nothing behind it.
        (forwarded, end) = (Vec::new(), End::Answered("400"));
    }
    let mut statuses = vec!["200"; forwarded.len()];
    match end {
        End::Canary | End::Closed => {}
        End::Rejected(status) | End::Answered(status) => statuses.push(status),
    }
    let canary = matches!(end, End::Canary | End::Answered(_));
    if canary {
        statuses.push("200");
        forwarded.push(("GET", ""));
    }
    // Answers to HEAD have no body.
    let shown = seen.iter().filter(|seen| seen.method != "HEAD").map(|seen| &seen.target);
    let canary_seen = seen.iter().any(|seen| seen.target == corpus::canary(number));
    if !seen.iter().map(|seen| (seen.method.as_str(), seen.body.as_str())).eq(forwarded.iter().copied()) {
        return Some("other requests arrived");
    }
    if !seen.iter().all(|seen| seen.target.contains(&corpus::target(number))) {
        return Some("another target arrived");
    }
    if answers.statuses != statuses {
        return Some("other statuses");
    }
    if !answers.answered.iter().eq(shown) {
        return Some("an answer of another request");
    }
    (canary != canary_seen).then_some("the canary")
}

#[tokio::test]
async fn no_reader_finds_another_request() {
    let folder = tempfile::tempdir().unwrap();
    let chains = Chain::all(folder.path()).await;
    let world = world(&chains).await;
    let cases = corpus::all();
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let mut wrong = Vec::new();
    let mut direct: Vec<Vec<String>> = Vec::new();
    for chain in &chains {
        let results = bounded(chain.name(), run(&world, chain, &cases)).await;
        for (number, (case, (answers, seen))) in cases.iter().zip(&results).enumerate() {
            if let Some(difference) = difference(chain.name(), case, number, answers, seen) {
                wrong.push(format!("{} {:?}: {difference}: {answers:?} {seen:?}", chain.name(), case.name));
            }
        }
        let targets = |seen: &[SeenRequest]| seen.iter().map(|seen| seen.target.clone()).collect::<Vec<_>>();
        let results: Vec<_> = results.iter().map(|(_, seen)| targets(seen)).collect();
        for (case, (one, other)) in cases.iter().zip(direct.iter().zip(&results)) {
            if one != other && !case.refused_by.contains(&chain.name()) {
                wrong.push(format!("{} {:?}: {other:?} for {one:?}", chain.name(), case.name));
            }
        }
        if direct.is_empty() {
            direct = results;
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
