//! Handshakes in memory beside their cryptographic floor, and the policy check of a request.
//!
//! Batches alternate, so that a machine that is slow for a while is slow for both.
#![allow(clippy::expect_used, reason = "a measurement that cannot be set up stops, like a test")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::testing::runtime;
use dataplane::testing::runtime::Driver;
use dataplane::testing::tls::client_verifier;
use model::admission::{self, ConnectionAuth};
use model::{HostName, Kind, PathOptions, RequestTarget, TlsVersion};
use pki::ca::KeyAlgorithm;
use rustls_pki_types::UnixTime;

use super::Line;
use crate::gateway;
use crate::handshake::{Credentials, Floor, TestWorker, Work, server};
use compare::identity::{Group, Version};
use compare::peer::HOST;
use e2e::resources;

/// The duration of all batches.
const LENGTH: Duration = Duration::from_secs(4);
/// Operations of each kind in a batch.
const BATCH: u32 = 20;
/// Policy checks in a batch, and batches of them.
const CHECKS: u32 = 500;

/// # Errors
/// When the core is not available.
pub(super) fn lines(cpu: usize) -> anyhow::Result<Vec<Line>> {
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            resources::pin_current_thread(cpu)?;
            // A worker needs its runtime, but nothing waits for it here: the transport is memory.
            Ok(runtime::block_on(&Driver::detect(), || async { measure() })?)
        });
        measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn measure() -> Vec<Line> {
    let credentials = Credentials::generate(KeyAlgorithm::P256);
    let worker = TestWorker::new(&credentials, true, &[TlsVersion::V12, TlsVersion::V13]);
    let config = |resume| credentials.client_config(Version::V13, Group::X25519, resume);
    let (full, resumed) = (config(false), config(true));
    let resumes = server::resumes(&worker, &resumed);
    let floor = Floor::new(KeyAlgorithm::P256, Group::X25519);
    let batch = |one: &dyn Fn() -> Duration| (0..BATCH).map(|_| one()).sum::<Duration>().as_secs_f64();
    let handshake = |config: &Arc<_>| batch(&|| server::handshake(&worker, config));
    let (mut to_floor, mut to_full) = (Vec::new(), Vec::new());
    let until = Instant::now() + LENGTH;
    while Instant::now() < until {
        let least = batch(&|| {
            let started = Instant::now();
            floor.work(&Work { signature: true, verifications: 1 });
            started.elapsed()
        });
        let whole = handshake(&full);
        to_floor.push(whole / least);
        to_full.push(handshake(&resumed) / whole);
    }
    vec![
        Line::ratio("full mTLS handshake in memory, warm cache / its cryptography", median(to_floor), 1.30),
        Line::ratio("resumed handshake in memory / a full one", median(to_full).filter(|_| resumes), 0.45),
        Line::at_most(
            "policy check of a request whose site requires a certificate",
            policy(&credentials),
            200.0,
            "ns",
        ),
    ]
}

/// Nanoseconds of one check of an accepted client.
fn policy(credentials: &Credentials) -> Option<f64> {
    let snapshot = gateway::snapshot([(Kind::Ssl, "bench", credentials.site_document(true))]);
    let sni = HostName::from_sni(HOST).expect("a name");
    let ssl = snapshot.site(&sni).map(Arc::as_ref);
    let policy = ssl.and_then(|ssl| ssl.client.as_deref());
    let client = client_verifier::evaluate_client(policy, Some(&credentials.client_chain()), UnixTime::now());
    let site = ConnectionAuth { sni: &sni, ssl, client: &client };
    let target =
        RequestTarget::new(None, Some(HOST), "/api/v1/orders/17", PathOptions::default()).expect("a target");
    assert!(admission::admit(&site, &snapshot, &target).is_ok(), "the client is let in");
    let batch = |_| {
        let started = Instant::now();
        for _ in 0..CHECKS {
            let _verdict = black_box(admission::admit(black_box(&site), &snapshot, black_box(&target)));
        }
        started.elapsed().as_nanos() as f64 / f64::from(CHECKS)
    };
    median((0..CHECKS).map(batch).collect())
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }
}
