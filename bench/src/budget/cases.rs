//! The counted cases, and the program that runs under callgrind; only `counted` work costs.
#![allow(clippy::expect_used, reason = "a measurement that cannot be set up stops, like a test")]

use std::sync::Arc;

use anyhow::Context;
use conf::{SamplingRatio, TraceParents};
use dataplane::testing::reporting::trace::TraceSettings;
use dataplane::testing::runtime;
use dataplane::testing::runtime::Driver;
use model::TlsVersion;
use pki::ca::KeyAlgorithm;
use rustls::ClientConfig;

use super::proxied::{self, Reports};
use crate::handshake::{Credentials, TestWorker, server};
use compare::identity::{Group, Version};
use compare::load::Mode;

/// Handshakes before the counted ones, which build caches.
const FOREGOING: u32 = 10;

/// A measure of the budget. TLS 1.3, P-256, X25519, leaf and intermediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Case {
    /// Full mutual handshake of a client whose chain is in the cache.
    HandshakeWarm,
    /// The same with a client that was never seen.
    HandshakeCold,
    /// A resumed handshake.
    HandshakeResumed,
    /// A keep-alive HTTP/1.1 request over mutual TLS, proxied to a plain upstream.
    ProxiedRequest,
    /// The same while requests are traced, one in a hundred is recorded, and no exporter runs.
    ProxiedRequestTraced,
    /// The same with an access log, whose lines are JSON.
    ProxiedRequestLogged,
    /// As `ProxiedRequest` over HTTP/2, one stream at a time. Counted by hand, without a budget
    /// (docs/decisions/0037-http2-on-h2.md).
    ProxiedRequestH2,
}

/// How a case is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// So many operations, and nothing else counts.
    Alone(u32),
    /// A worker's whole life counts: the operations are the difference of two runs.
    Between(u32, u32),
}

impl Case {
    /// Cases with a budget, in the order of the report.
    pub const ALL: [Self; 6] = [
        Self::HandshakeWarm,
        Self::HandshakeCold,
        Self::HandshakeResumed,
        Self::ProxiedRequest,
        Self::ProxiedRequestTraced,
        Self::ProxiedRequestLogged,
    ];

    /// The name in the budget and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::HandshakeWarm => "handshake-warm",
            Self::HandshakeCold => "handshake-cold",
            Self::HandshakeResumed => "handshake-resumed",
            Self::ProxiedRequest => "proxied-request",
            Self::ProxiedRequestTraced => "proxied-request-traced",
            Self::ProxiedRequestLogged => "proxied-request-logged",
            Self::ProxiedRequestH2 => "proxied-request-h2",
        }
    }

    /// Enough operations that a single one does not show.
    pub fn counting(self) -> Counting {
        match self {
            Self::HandshakeWarm | Self::HandshakeCold | Self::HandshakeResumed => Counting::Alone(100),
            Self::ProxiedRequest
            | Self::ProxiedRequestTraced
            | Self::ProxiedRequestLogged
            | Self::ProxiedRequestH2 => Counting::Between(200, 1000),
        }
    }

    /// Runs it so many times.
    ///
    /// # Errors
    /// When a worker or its upstream cannot be started, or a request fails.
    pub fn run(self, operations: u32) -> anyhow::Result<()> {
        match self {
            Self::ProxiedRequest => proxied::run(operations.into(), Mode::KeepAlive, Reports::default())?,
            Self::ProxiedRequestLogged => {
                let reports = Reports { access_log: true, ..Reports::default() };
                proxied::run(operations.into(), Mode::KeepAlive, reports)?;
            }
            Self::ProxiedRequestTraced => {
                let tracing = TraceSettings {
                    ratio: SamplingRatio::new(0.01).context("a ratio")?,
                    parents: TraceParents::Any,
                };
                let reports = Reports { tracing: Some(tracing), ..Reports::default() };
                proxied::run(operations.into(), Mode::KeepAlive, reports)?;
            }
            Self::ProxiedRequestH2 => {
                proxied::run(operations.into(), Mode::KeepAliveH2 { streams: 1 }, Reports::default())?;
            }
            handshake => {
                // A worker needs its runtime, but nothing waits for it here: the transport is
                // memory.
                let driver = Driver::Epoll { reason: "instructions are counted".to_owned() };
                runtime::block_on(&driver, || async { handshakes(handshake, operations) })
                    .context("a runtime")?;
            }
        }
        Ok(())
    }
}

fn handshakes(case: Case, operations: u32) {
    let (worker, config) = prepare(case, operations);
    for _ in 0..FOREGOING {
        server::handshake(&worker, &config);
    }
    for _ in 0..operations {
        server::counted_handshake(&worker, &config);
    }
}

fn prepare(case: Case, operations: u32) -> (TestWorker, Arc<ClientConfig>) {
    let credentials = Credentials::generate(KeyAlgorithm::P256);
    let worker = TestWorker::new(&credentials, true, &[TlsVersion::V12, TlsVersion::V13]);
    let resume = case == Case::HandshakeResumed;
    let config = credentials.client_config(Version::V13, Group::X25519, resume);
    assert_eq!(resume, server::resumes(&worker, &config), "only a client that keeps tickets is resumed");
    if case != Case::HandshakeCold {
        return (worker, config);
    }
    // No client comes twice.
    let crowd = credentials.crowd(usize::try_from(FOREGOING + operations).expect("a small number"));
    let mut config = ClientConfig::clone(&config);
    config.client_auth_cert_resolver = Arc::new(crowd);
    (worker, Arc::new(config))
}
