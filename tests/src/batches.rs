//! Writers of batches at the Admin API, for tests that kill a program meanwhile.
//!
//! Batch N of a writer creates upstream N and a route that refers to it, and writes N into one
//! upstream of the writer. Invariant to check: each acknowledged batch is stored as a whole, and
//! of the next one everything or nothing.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::client::bounded;

/// Writers, each with documents of its own.
const WRITERS: usize = 4;

/// The writers of one burst.
pub struct BatchWriters {
    /// The number of acknowledged batches of each writer.
    acknowledged: Vec<watch::Receiver<u64>>,
    tasks: JoinSet<()>,
}

impl BatchWriters {
    /// Each writes until the Admin API does not acknowledge a batch, and goes on after its batch of
    /// that number.
    pub fn start(admin: &Admin, after: &[u64]) -> Self {
        let mut writers = Self { acknowledged: Vec::new(), tasks: JoinSet::new() };
        for writer in 0..WRITERS {
            let after = after.get(writer).copied().unwrap_or_default();
            let (progress, acknowledged) = watch::channel(after);
            writers.acknowledged.push(acknowledged);
            let admin = admin.clone();
            writers.tasks.spawn(async move {
                for number in after + 1.. {
                    let batch = batch(writer, number);
                    match admin.call(Method::POST, "batch", Some(&batch)).await {
                        Ok(answer) if answer.status == StatusCode::OK => drop(progress.send_replace(number)),
                        Ok(answer) if answer.status.is_client_error() => {
                            panic!("{}: {}", answer.status, answer.reply.text())
                        }
                        Ok(_) | Err(_) => return,
                    }
                }
            });
        }
        writers
    }

    /// Waits until the first writer has written so many batches more.
    pub async fn progress(&mut self, more: u64) {
        let first = self.acknowledged.first_mut().expect("there are writers");
        let goal = *first.borrow() + more;
        bounded("the writers' progress", first.wait_for(|number| *number >= goal)).await.expect("it runs");
    }

    /// Waits until no writer gets an acknowledgement; gives the last one of each.
    pub async fn finished(mut self) -> Vec<u64> {
        while let Some(ended) = bounded("the writers' end", self.tasks.join_next()).await {
            ended.expect("each batch is acknowledged or has no answer");
        }
        self.acknowledged.iter().map(|acknowledged| *acknowledged.borrow()).collect()
    }
}

/// Checks all stored batches; gives the last stored one of each writer.
///
/// # Panics
/// When an acknowledged batch is not stored, or a batch is stored in part.
pub async fn assert_whole(admin: &Admin, acknowledged: &[u64]) -> Vec<u64> {
    let upstreams = ids(admin, "upstreams").await;
    let routes = ids(admin, "routes").await;
    let mut stored = Vec::new();
    for (writer, acknowledged) in acknowledged.iter().enumerate() {
        let latest = admin.get(&format!("upstreams/latest-{writer}")).await;
        let last = latest.body["value"]["desc"].as_str().map_or(0, |text| text.parse().expect("a number"));
        assert!(
            (*acknowledged..=acknowledged + 1).contains(&last),
            "writer {writer}: batch {last} is stored, and {acknowledged} was acknowledged"
        );
        let of_writer = |ids: &BTreeSet<String>| {
            let prefix = format!("{writer}-");
            ids.iter().filter(|id| id.starts_with(&prefix)).cloned().collect::<BTreeSet<_>>()
        };
        let expected: BTreeSet<String> = (1..=last).map(|number| format!("{writer}-{number}")).collect();
        assert_eq!(of_writer(&upstreams), expected);
        assert_eq!(of_writer(&routes), expected);
        stored.push(last);
    }
    stored
}

async fn ids(admin: &Admin, plural: &str) -> BTreeSet<String> {
    let answer = admin.get(plural).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.reply.text());
    let items = answer.body["list"].as_array().expect("a list");
    items.iter().map(|item| item["value"]["id"].as_str().expect("an id").to_owned()).collect()
}

fn batch(writer: usize, number: u64) -> Value {
    let put = |path: String, body: Value| json!({"method": "PUT", "path": format!("/apisix/admin/{path}"), "body": body});
    let id = format!("{writer}-{number}");
    let nodes = json!({"127.0.0.1:1": 1});
    let route = json!({"uri": format!("/{id}"), "upstream_id": id});
    json!({"operations": [
        put(format!("routes/{id}"), route),
        put(format!("upstreams/{id}"), json!({"nodes": nodes})),
        put(format!("upstreams/latest-{writer}"), json!({"nodes": nodes, "desc": number.to_string()})),
    ]})
}
