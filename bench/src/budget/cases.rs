//! What is counted, and the program that does it once callgrind watches: everything outside `counted` is free.
#![allow(clippy::expect_used, reason = "a measurement that cannot be set up stops, like a test")]

use std::sync::Arc;

use anyhow::Context;
use dataplane::rt::{self, Driver};
use model::TlsVersion;
use pki::mint::KeyAlgorithm;
use rustls::ClientConfig;

use super::proxied;
use crate::handshake::{Credentials, Desk, server};
use compare::identity::{Group, Version};
use compare::load::Mode;

/// Handshakes before the counted ones: what is made at the first is there.
const FOREGOING: u32 = 10;

/// A measure of the budget. TLS 1.3, P-256, X25519, leaf and intermediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Case {
    /// Full mutual handshake of a client whose chain is in the cache.
    HandshakeWarm,
    /// The same of a client never seen.
    HandshakeCold,
    /// A resumed handshake.
    HandshakeResumed,
    /// A keep-alive HTTP/1.1 request over mutual TLS, proxied to a plain upstream.
    ProxiedRequest,
    /// The same over HTTP/2, one stream at a time. Counted by hand, without a budget
    /// (docs/decisions/0037-http2-on-h2.md).
    ProxiedRequestH2,
}

/// How a case is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// So many operations, and nothing else goes through the counted door.
    Alone(u32),
    /// A worker's whole life goes through the door: the difference of two runs is the operations.
    Between(u32, u32),
}

impl Case {
    /// Those that have a budget, in the order of the report.
    pub const ALL: [Self; 4] =
        [Self::HandshakeWarm, Self::HandshakeCold, Self::HandshakeResumed, Self::ProxiedRequest];

    /// As it is called in the budget and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::HandshakeWarm => "handshake-warm",
            Self::HandshakeCold => "handshake-cold",
            Self::HandshakeResumed => "handshake-resumed",
            Self::ProxiedRequest => "proxied-request",
            Self::ProxiedRequestH2 => "proxied-request-h2",
        }
    }

    /// Enough of them that single ones do not show.
    pub fn counting(self) -> Counting {
        match self {
            Self::HandshakeWarm | Self::HandshakeCold | Self::HandshakeResumed => Counting::Alone(100),
            Self::ProxiedRequest | Self::ProxiedRequestH2 => Counting::Between(200, 1000),
        }
    }

    /// Does it so many times.
    ///
    /// # Errors
    /// When a worker or its upstream cannot be started, or a request fails.
    pub fn run(self, operations: u32) -> anyhow::Result<()> {
        match self {
            Self::ProxiedRequest => proxied::run(u64::from(operations), Mode::KeepAlive)?,
            Self::ProxiedRequestH2 => {
                proxied::run(u64::from(operations), Mode::KeepAliveH2 { streams: 1 })?;
            }
            handshake => {
                // A worker lives within its runtime, though nothing here waits for it: the transport is memory.
                let driver = Driver::Epoll { why: "instructions are counted".to_owned() };
                rt::run(&driver, || async { handshakes(handshake, operations) }).context("a runtime")?;
            }
        }
        Ok(())
    }
}

fn handshakes(case: Case, operations: u32) {
    let (desk, config) = prepare(case, operations);
    for _ in 0..FOREGOING {
        server::handshake(&desk, &config);
    }
    for _ in 0..operations {
        server::counted_handshake(&desk, &config);
    }
}

fn prepare(case: Case, operations: u32) -> (Desk, Arc<ClientConfig>) {
    let credentials = Credentials::mint(KeyAlgorithm::P256);
    let desk = Desk::new(&credentials, true, &[TlsVersion::V12, TlsVersion::V13]);
    let resume = case == Case::HandshakeResumed;
    let config = credentials.client_config(Version::V13, Group::X25519, resume);
    assert_eq!(resume, server::resumes(&desk, &config), "only a client that keeps tickets is resumed");
    if case != Case::HandshakeCold {
        return (desk, config);
    }
    // Nobody twice.
    let crowd = credentials.crowd(usize::try_from(FOREGOING + operations).expect("a small number"));
    let mut config = ClientConfig::clone(&config);
    config.client_auth_cert_resolver = Arc::new(crowd);
    (desk, Arc::new(config))
}
