//! Many ssl objects in this process: a lookup, the memory of one, and the delay of a change until a
//! handshake shows it.
#![allow(clippy::expect_used, reason = "a measurement that cannot be set up stops, like a test")]

use std::hint::black_box;
use std::time::Instant;

use dataplane::testing::runtime;
use dataplane::testing::runtime::Driver;
use model::{Delta, HostName, Kind, Snapshot, TlsVersion, Versioned};
use pki::ca::KeyAlgorithm;

use super::Line;
use super::handshakes::median;
use crate::handshake::{Credentials, TestWorker, server};
use crate::names::{Samples, asked};
use crate::{gateway, memory};
use compare::comparison::many::spread_out;
use compare::identity::{Group, Version};

const NAMES: u32 = 1_000_000;
const SSLS: u32 = 100_000;
/// Names looked up in turn: few popular ones, and more than the core's caches hold.
const WANTED: u32 = 512;
const SCATTERED: u32 = 1 << 16;
/// Lookups of each.
const LOOKUPS: u32 = 1 << 18;
/// Changes, one after the other.
const CHANGES: u64 = 20;

/// # Errors
/// When there is no runtime.
pub(super) fn lines() -> anyhow::Result<Vec<Line>> {
    // First, while nothing else allocates or frees memory.
    let objects = memory::in_use().into_iter().map(|measured| {
        let what = format!("an ssl object besides its certificate, {}", measured.name);
        Line::at_most(what, Some(measured.besides as f64 / 1024.0), 3.0, "KiB")
    });
    let objects: Vec<Line> = objects.collect();
    let samples = Samples::new(KeyAlgorithm::P256);
    let change = runtime::block_on(&Driver::detect(), || async { change(&samples) })?;
    let snapshot = ssls(&samples, NAMES);
    let (wanted, scattered) = (lookup(&snapshot, WANTED), lookup(&snapshot, SCATTERED));
    let mut lines = vec![
        Line::at_most(
            "one change among 100,000 ssls, in memory: applied and in a handshake, median of 20",
            change,
            5.0,
            "ms",
        ),
        Line::at_most("1,000,000 names: one lookup, of the 512 most popular ones", wanted, 150.0, "ns"),
        Line::at_most("1,000,000 names: one lookup, of 65,536 unpopular ones", scattered, 150.0, "ns"),
    ];
    lines.extend(objects);
    Ok(lines)
}

/// Ssl objects with a name of their own each; all share certificate and key.
fn ssls(samples: &Samples, count: u32) -> Snapshot {
    let one = |index| {
        let [ssl, _route] = samples.resources(index, 1);
        ssl
    };
    Snapshot::from_resources(1, (0..count).map(one))
}

fn lookup(snapshot: &Snapshot, different: u32) -> Option<f64> {
    let names: Vec<HostName> = (0..different).map(|round| asked(spread_out(round, NAMES))).collect();
    let batch = |_| {
        let started = Instant::now();
        let found = names.iter().filter(|name| snapshot.site(black_box(name)).is_some()).count();
        let took = started.elapsed().as_nanos() as f64;
        assert_eq!(found, names.len(), "every name is there");
        took / names.len() as f64
    };
    median((0..LOOKUPS / different).map(batch).collect())
}

/// Milliseconds from a delta to the end of a handshake with its certificate, without the client's
/// work.
fn change(samples: &Samples) -> Option<f64> {
    let mut credentials = Credentials::generate(KeyAlgorithm::P256);
    let worker = TestWorker::new(&credentials, true, &[TlsVersion::V12, TlsVersion::V13]);
    let config = credentials.client_config(Version::V13, Group::X25519, false);
    let mut snapshot = ssls(samples, SSLS);
    let mut took = Vec::new();
    for round in 1..=CHANGES {
        credentials.renew();
        let resource = gateway::checked(Kind::Ssl, "bench", &credentials.site_document(true));
        let upserts = vec![Versioned { version: round + 1, resource }];
        let delta = Delta { from: round, to: round + 1, upserts, removals: Vec::new() };
        let started = Instant::now();
        let next = snapshot.apply(&delta);
        worker.swap(next.clone());
        let applied = started.elapsed();
        let served = applied + server::handshake(&worker, &config);
        took.push(served.as_secs_f64() * 1000.0);
        snapshot = next;
    }
    median(took)
}
